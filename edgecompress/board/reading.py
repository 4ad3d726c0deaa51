"""One reading of a device's power sensor, where it hangs: on the board, or at this machine."""

from __future__ import annotations

import json

from edgecompress_agent import sensor_check, wire

from edgecompress.board.agent import Agent
from edgecompress.board.transport import DeviceError, readable
from edgecompress.device_profile import DeviceProfile

_SENSOR_S = 60.0
"""A serial meter may start anew when its line is opened, and then takes some seconds."""


def read_once(profile: DeviceProfile, agent: Agent) -> wire.SensorReading:
    """A reading of the profile's sensor, or the reason why there is none. The profile must name one."""
    if profile.meter_at == "host":
        return sensor_check.check(profile.sensor, profile.sensor_options)
    options = json.dumps(profile.sensor_options).encode()
    try:
        answer = agent.verb("sensor", profile.sensor, stdin=options, timeout_s=_SENSOR_S)
        return wire.from_json(wire.SensorReading, answer)
    except (DeviceError, wire.WireError) as error:
        return wire.SensorReading(reason=readable(str(error), 500))
