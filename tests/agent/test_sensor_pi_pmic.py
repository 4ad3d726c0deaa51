"""The sensor pi_pmic, with a process in vcgencmd's place that prints what a Raspberry Pi 5 prints."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from edgecompress_agent import sensors
from edgecompress_agent.errors import AgentError
from edgecompress_agent.sensors import SensorFault, pi_pmic
from hypothesis import given
from hypothesis import strategies as st

from tests.agent import fake_tool

pytestmark = pytest.mark.slow

TEXT = """\
 3V7_WL_SW_A current(0)=0.00780744A
   3V3_SYS_A current(1)=0.12199130A
   1V8_SYS_A current(2)=0.18054710A
  DDR_VDD2_A current(3)=0.02147046A
  DDR_VDDQ_A current(4)=0.00000000A
  VDD_CORE_A current(7)=1.54489000A
   0V8_AON_A current(16)=0.00305250A
      HDMI_A current(22)=0.02417580A
 3V7_WL_SW_V volt(8)=3.69977600V
   3V3_SYS_V volt(9)=3.31003300V
   1V8_SYS_V volt(10)=1.80512600V
  DDR_VDD2_V volt(11)=1.10476100V
  DDR_VDDQ_V volt(12)=0.60146460V
  VDD_CORE_V volt(15)=0.88725180V
   0V8_AON_V volt(19)=0.80029220V
      HDMI_V volt(23)=5.08664000V
     EXT5V_V volt(24)=5.09066000V
      BATT_V volt(25)=0.00000000V
"""
WATTS = {
    "3V7_WL_SW": 0.00780744 * 3.699776, "3V3_SYS": 0.1219913 * 3.310033, "1V8_SYS": 0.1805471 * 1.805126,
    "DDR_VDD2": 0.02147046 * 1.104761, "DDR_VDDQ": 0.0, "VDD_CORE": 1.54489 * 0.8872518, "0V8_AON": 0.0030525 * 0.8002922,
    "HDMI": 0.0241758 * 5.08664,
}  # fmt: skip
Make = Callable[[str], Path]


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Puts a vcgencmd first on PATH. Its body knows TEXT and `count`: how often it was asked before."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)

    def make(body: str) -> Path:
        known = (
            f"TEXT = {TEXT!r}\nassert asked == ['pmic_read_adc']\nsince = open(sys.argv[0] + '.asked', 'a+')\n"
            "since.seek(0)\ncount = len(since.read())\nsince.write('x')\nsince.close()\n"
        )
        return fake_tool.put(tmp_path / "bin", "vcgencmd", known + body)

    return make


INTERVAL_S = 0.6
"""More than twice what a busy machine takes to start the Python in vcgencmd's place: else the sensor refuses to open."""


def opened(**options: Any) -> Any:
    return sensors.open_sensor("pi_pmic", {"interval_s": INTERVAL_S, **options})


def test_pairs_by_name() -> None:
    watts, alone = pi_pmic.parse_adc(TEXT)
    assert watts == pytest.approx(WATTS)
    assert alone == ["EXT5V_V", "BATT_V"]


def test_order_and_numbers_do_not_matter() -> None:
    lines = TEXT.splitlines()
    assert pi_pmic.parse_adc("\n".join(reversed(lines)))[0] == pytest.approx(WATTS)
    assert pi_pmic.parse_adc(TEXT.replace("volt(15)", "volt(3)"))[0] == pytest.approx(WATTS)


@pytest.mark.parametrize(
    "line",
    ["VDD_CORE_A volt(7)=1.5V", "VDD_CORE_A current(7)=1.5V", "VDD_CORE_V current(7)=1.5A", "VDD_CORE_A current(7)=nanA",
     "VDD_CORE_A current(7)=1.2.3A", "VDD_CORE_A current(7)=", "VDD_CORE_A current(7)=1.5A 3", "VDD_CORE_A current(7)=1e3A"],
)  # fmt: skip
def test_what_is_no_value(line: str) -> None:
    assert pi_pmic.parse_adc(line + "\nVDD_CORE_V volt(15)=0.88725180V") == ({}, ["VDD_CORE_V"])


@given(st.text() | st.lists(st.sampled_from([*TEXT.splitlines(), "x", "VDD_CORE_A", "=1A"]) | st.text()).map("\n".join))
def test_any_text(text: str) -> None:
    watts, _ = pi_pmic.parse_adc(text)
    assert watts == pytest.approx({name: WATTS[name] for name in watts})


def test_power_over_time(tool: Make) -> None:
    tool("say(TEXT.replace('1.54489000A', '%.8fA' % (1 + count / 100)))")
    began = time.monotonic_ns()
    sensor = opened()
    assert (sensor.info.scope, sensor.info.interval_s) == ("pmic-rails", INTERVAL_S)
    assert any("not the input power" in note for note in sensor.info.notes)
    assert any("EXT5V_V, BATT_V" in note for note in sensor.info.notes)
    assert any("of one core" in note for note in sensor.info.notes)
    samples = [sensor.read(20) for _ in range(3)]
    rest = sum(WATTS.values()) - WATTS["VDD_CORE"]
    for number, sample in enumerate(samples, start=3):  # opening took three readings
        assert sample.power_uw == pytest.approx(1e6 * (rest + (1 + number / 100) * 0.8872518), abs=2)
        assert sample.rails_mw["VDD_CORE"] == round(1e3 * (1 + number / 100) * 0.8872518)
        assert sample.rails_mw.keys() == WATTS.keys() and not sample.stale
    assert began < samples[0].t_ns < samples[-1].t_ns < time.monotonic_ns()
    assert samples[-1].t_ns >= began + 2e9 * INTERVAL_S, "no sooner; how much later is the machine's affair"
    sensor.close()


def test_a_value_belongs_to_the_middle_of_its_reading(tool: Make) -> None:
    tool("time.sleep(0.5)\nsay(TEXT)")
    sensor = opened(interval_s=10)
    before = time.monotonic_ns()
    sample = sensor.read(20)
    after = time.monotonic_ns()
    assert sample.t_ns == pytest.approx((before + after) / 2, abs=0.2 * (after - before))


def test_repeats_are_stale(tool: Make) -> None:
    tool("say(TEXT.replace('1.54489000A', '%.8fA' % (1 + count // 2)))")
    sensor = opened()
    assert [sensor.read(20).stale for _ in range(4)] == [False, False, True, False]  # the 4th to 7th answer


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("""say('error=1 error_msg="Command not registered"')""", "firmware has no pmic_read_adc"),
        ('say("Can\'t open device file: /dev/vcio")\nos._exit(255)', "group video"),
        ("say('VCHI initialization failed')\nos._exit(255)", "group video"),
        ("say(TEXT.replace('VDD_CORE_A', 'VDD_CARE_A'))", "gives no VDD_CORE"),
        ("os._exit(4)", "exit status 4"),
        ("time.sleep(0.35)\nsay(TEXT)", "too long for one every 0.6 s"),
        ("time.sleep(30)", "no answer within"),
    ],
)
def test_refuses(body: str, words: str, tool: Make) -> None:
    tool(body)
    with pytest.raises(AgentError, match=words):
        opened()
    if "too long" not in words:
        assert pi_pmic.probe() is None


@pytest.mark.parametrize(
    ("after", "words"),
    [
        ("say('error=2 error_msg=\"Invalid arguments\"')", "changed its format"),
        ("say(TEXT.replace('HDMI_V', 'HDMI_W'))", "lacks rails"),
        ("os._exit(1)", "exit status 1"),
        ("time.sleep(30)", "no answer within"),
        ("os.remove(sys.argv[0])\nsay(TEXT)", "cannot be started"),
    ],
)
def test_fails_later(after: str, words: str, tool: Make) -> None:
    body = "".join(f"    {line}\n" for line in after.splitlines())
    tool(f"if count < 5:\n    say(TEXT)\nelse:\n{body}")
    sensor = opened()
    sensor.read(20)
    with pytest.raises(SensorFault, match=words):
        for _ in range(3):
            sensor.read(3 if "no answer" in words else 20)


def test_one_bad_answer_is_left_out(tool: Make) -> None:
    tool("say(TEXT if count != 4 else 'garbled')")
    began = time.monotonic_ns()
    sensor = opened()
    first, second = sensor.read(20), sensor.read(20)
    assert first.t_ns < second.t_ns and second.t_ns >= began + 2e9 * INTERVAL_S, "the third question's"


def test_closed_and_not_here(tool: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool("say(TEXT)")
    assert "8 rails" in (pi_pmic.probe() or "")
    sensor = opened(interval_s=10)
    sensor.read(20)
    with pytest.raises(SensorFault, match="within 1 s"):
        sensor.read(1)
    sensor.close()
    sensor.close()
    with pytest.raises(SensorFault, match="closed"):
        sensor.read(20)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert pi_pmic.probe() is None
    with pytest.raises(AgentError, match="vcgencmd is not on this device"):
        opened()
    for options, words in (({"intervals": 1}, "did you mean interval_s"), ({"interval_s": 0}, "0.05 to 10")):
        with pytest.raises(AgentError, match=words):
            opened(**options)
