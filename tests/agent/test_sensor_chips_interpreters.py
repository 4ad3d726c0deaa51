"""The sensors of chips and counters out of the zipapp, isolated (-I), by every interpreter of the agent."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from .test_sensor_hwmon import INA219, _tree
from .test_sensor_rapl import _zone

READ = """
import json, sys
from pathlib import Path
agent, tests, root = sys.argv[1:]
sys.path[:0] = [agent, tests]
import simulated_ina219 as simulated
from edgecompress_agent import i2c, wire
from edgecompress_agent.ina219_chip import Settings
from edgecompress_agent.sensors import auto, hwmon, ina219, rapl

clock = simulated.VirtualClock()
chip = simulated.SimulatedIna219(simulated.constant(5.0), clock)
found = [
    ina219.Ina219(chip, Settings.of({}), clock=clock.monotonic_ns, sleep=clock.sleep),
    hwmon.open({}, Path(root)),
    rapl.open({"interval_s": 0.01}, Path(root)),
]
for sensor in found:
    print(json.dumps([wire.to_json(sensor.info), sensor.read(5).power_uw]))
    sensor.close()
device = i2c.Device(-1, 0x40, i2c.FUNC_I2C)
for call in (lambda: device.read_word(0), lambda: auto.open({"none": 1})):
    try:
        call()
    except Exception as error:
        print(json.dumps([type(error).__name__, str(error)[:40]]))
"""


def test_every_interpreter_reads_them(python: str, agent: Path, tmp_path: Path) -> None:
    _tree(tmp_path, INA219)
    _zone(tmp_path, "intel-rapl:0", "package-0", 5)
    done = subprocess.run(
        [python, "-I", "-c", READ, str(agent), str(Path(__file__).parent), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    chip, driver, counter, refused, unknown = map(json.loads, done.stdout.splitlines())
    assert (chip[0]["name"], chip[1]) == ("ina219", 5_000_000)
    assert (driver[0]["name"], driver[1]) == ("hwmon", 5008 * 600)
    assert (counter[0]["name"], counter[1]) == ("rapl", 0)
    assert refused[0] in ("OSError", "ValueError") and unknown[0] == "AgentError"
