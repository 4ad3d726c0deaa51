"""Tools and serial meters out of the zipapp, isolated (-I), by every interpreter of the agent."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from tests.agent import fake_tool
from tests.agent.fake_meter import FakeMeter
from tests.agent.tegrastats_lines import BY_NAME
from tests.agent.test_sensor_pi_pmic import TEXT, WATTS
from tests.agent.test_sensor_um25c import answer

READ = """
import json, sys
sys.path.insert(0, sys.argv[1])
from edgecompress_agent import sensors, wire
for name, options in json.load(sys.stdin):
    sensor = sensors.open_sensor(name, options)
    sample = sensor.read(20)
    sensor.close()
    print(json.dumps([wire.to_json(sensor.info), sample._asdict()]))
"""


def test_every_interpreter_reads_them(python: str, agent: Path, tmp_path: Path) -> None:
    line = BY_NAME["AGX Xavier"].line("bare")
    tegrastats = fake_tool.put(tmp_path, "tegrastats", f"while True:\n    time.sleep(0.02)\n    say({line!r})")
    vcgencmd = fake_tool.put(tmp_path, "vcgencmd", f"say({TEXT!r})")

    def print_lines(meter: FakeMeter) -> None:
        millis = 0
        while meter.wait(0.01):
            meter.send(b"%d,5.000,500.0\r\n" % millis)
            millis += 10

    def say_power(meter: FakeMeter) -> None:
        while meter.receive():
            meter.send(answer(5.0, 0.5))

    serial, usb = FakeMeter(print_lines), FakeMeter(say_power)
    asked = [
        ("tegrastats", {"command": str(tegrastats), "interval_ms": 20}),
        ("pi_pmic", {"command": str(vcgencmd), "interval_s": 5}),
        ("serial_csv", {"port": serial.port}),
        ("um25c", {"port": usb.port}),
    ]
    try:
        done = subprocess.run(
            [python, "-I", "-W", "error", "-c", READ, str(agent)],
            input=json.dumps(asked), capture_output=True, text=True, timeout=120, env={**os.environ, "PYTHONHASHSEED": "1"},
        )  # fmt: skip
    finally:
        serial.close()
        usb.close()
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    found = [json.loads(answered) for answered in done.stdout.splitlines()]
    assert [info["scope"] for info, _ in found] == ["module", "pmic-rails", "as-wired", "usb-input"]
    wanted = [1000 * (BY_NAME["AGX Xavier"].total_mw or 0), round(1e6 * sum(WATTS.values())), 2_500_000, 2_500_000]
    assert [sample["power_uw"] for _, sample in found] == wanted
