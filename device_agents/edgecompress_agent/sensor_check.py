"""Whether a sensor can be opened and read, for `device doctor`: one reading, and the device is let go again."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, Dict

from edgecompress_agent import sensors, store
from edgecompress_agent.errors import AgentError
from edgecompress_agent.wire import SensorReading


def check(name: str, options: Dict[str, Any]) -> SensorReading:
    """One reading of the sensor, or the reason why there is none."""
    try:
        sensor = sensors.open_sensor(name, options)
    except (AgentError, OSError) as error:
        return SensorReading(reason=str(error))
    try:
        timeout_s = max(2.0, 5 * sensor.info.interval_s)
        until = time.monotonic() + 2 * timeout_s
        sample = sensor.read(timeout_s)
        while sample.stale and time.monotonic() < until:
            sample = sensor.read(timeout_s)
        if sample.stale:
            return SensorReading(info=sensor.info, reason="it repeats its old value and has no new one")
        return SensorReading(info=sensor.info, power_uw=sample.power_uw)
    except (AgentError, OSError) as error:
        return SensorReading(info=sensor.info, reason=str(error))
    finally:
        sensor.close()


def check_here(base: Path, name: str, options: Dict[str, Any]) -> SensorReading:
    """The same on a board, unless a job has it: two readers of one chip would spoil the trace."""
    held = store.try_lock(base / "lock")
    if held is None:
        return SensorReading(reason="a job is running on the board, which may be reading it", busy=True)
    try:
        return check(name, options)
    finally:
        os.close(held)


def check_unlocked(base: Path, name: str, options: Dict[str, Any]) -> SensorReading:
    """The same without making anything: a board that has no lock file yet has no job either."""
    return check_here(base, name, options) if (base / "lock").exists() else check(name, options)
