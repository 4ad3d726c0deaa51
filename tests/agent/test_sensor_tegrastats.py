"""The sensor tegrastats, with a process in the tool's place: every way in which it can fail to be there, and to go on."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from edgecompress_agent import sensors
from edgecompress_agent.errors import AgentError
from edgecompress_agent.sensors import SensorFault, tegrastats

from tests.agent import fake_tool
from tests.agent.conftest import alive, children, wait_for
from tests.agent.tegrastats_lines import BY_NAME, FAMILIES, NANO_2GB, Family

pytestmark = pytest.mark.slow

ORIN = BY_NAME["AGX Orin"]
Make = Callable[[str], Path]


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Puts a tegrastats first on PATH. Its body knows `interval`, in s, and the lines of AGX Orin by their VDD_GPU_SOC."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)

    def make(body: str) -> Path:
        known = (
            "assert asked[0] == '--interval'\ninterval = int(asked[1]) / 1000\n"
            f"def line(mw):\n    return {ORIN.line('mW')!r}.replace('2399mW', str(mw) + 'mW', 1)\n"
            "def forever(print_one):\n    count = 0\n    while True:\n"
            "        time.sleep(interval)\n        print_one(count)\n        count += 1\n"
        )
        return fake_tool.put(tmp_path / "bin", "tegrastats", known + body)

    return make


@pytest.fixture
def opened() -> Iterator[Callable[..., Any]]:
    """Opens as the agent does, and closes."""
    made: list[Any] = []

    def make(**options: Any) -> Any:
        made.append(sensors.open_sensor("tegrastats", {"interval_ms": 20, **options}))
        return made[-1]

    yield make
    for sensor in made:
        sensor.close()


def test_power_over_time(tool: Make, opened: Callable[..., Any]) -> None:
    tool("forever(lambda n: say(line(1000 + n)))")
    sensor = opened()
    info = sensor.info
    assert (info.name, info.scope, info.interval_s, info.replayed) == ("tegrastats", "module", 0.02, False)
    assert info.resolution_w == 0.4 and info.gain_error > 0 and info.offset_error_w > 0
    samples = [sensor.read(20) for _ in range(10)]
    gpu = [s.rails_mw["VDD_GPU_SOC"] for s in samples]
    assert gpu == list(range(gpu[0], gpu[0] + 10))
    assert [s.power_uw for s in samples] == [1000 * (g - 398 + 4032) for g in gpu]
    assert all(s.rails_mw.keys() == ORIN.rails_mw.keys() and not s.stale and not s.overflow for s in samples)
    steps = [b.t_ns - a.t_ns for a, b in itertools.pairwise(samples)]
    assert all(step > 0 for step in steps)
    assert abs(samples[-1].t_ns - time.monotonic_ns()) < 1e9


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_every_board(family: Family, tool: Make, opened: Callable[..., Any]) -> None:
    tool(f"forever(lambda n: say({family.line('dated')!r}))")
    for sensor in (opened(), opened(board=family.name)):
        assert sensor.info.scope == family.scope
        sample = sensor.read(20)
        assert sample.power_uw == 1000 * (family.total_mw or 0)
        assert sample.rails_mw == family.rails_mw


def test_lines_that_waited_keep_their_distance(tool: Make, opened: Callable[..., Any]) -> None:
    """A thread that was kept from reading for a while gets several lines at once."""
    tool("forever(lambda n: say(line(1000 + n)))")
    sensor = opened(interval_ms=200)  # after 20 of them it would throw away what waited
    sensor.read(20)
    time.sleep(1.3)
    samples = [sensor.read(20) for _ in range(4)]
    steps = [(b.t_ns - a.t_ns) / 1e6 for a, b in itertools.pairwise(samples)]
    assert steps == pytest.approx([200] * 3, abs=1)


def test_what_was_printed_long_before_is_not_read(tool: Make, opened: Callable[..., Any]) -> None:
    tool("forever(lambda n: say(line(1000 + n)))")
    sensor = opened(interval_ms=10)
    time.sleep(0.5)
    began = time.monotonic_ns()
    first = sensor.read(20)
    assert first.t_ns >= began
    assert first.rails_mw["VDD_GPU_SOC"] > 1005, "the second line would say 1001"


def test_single_lines_that_are_none_are_left_out(tool: Make, opened: Callable[..., Any]) -> None:
    tool("forever(lambda n: say(line(1000 + n) if n % 2 == 0 else 'nvmap: a message in between'))")
    sensor = opened()
    assert [sensor.read(20).rails_mw["VDD_GPU_SOC"] % 2 for _ in range(5)] == [0] * 5


def test_what_it_said_before_it_ended_is_told(tool: Make, opened: Callable[..., Any]) -> None:
    tool("say('tegrastats: cannot open /sys/kernel/debug/bpmp: Permission denied')\nos._exit(1)")
    with pytest.raises(AgentError, match=r"ended with exit status 1; it printed '.*Permission denied'"):
        opened()


@pytest.mark.parametrize("last", ["os._exit(3)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_dies(last: str, tool: Make, opened: Callable[..., Any]) -> None:
    tool(f"for n in range(4):\n    time.sleep(interval)\n    say(line(n))\n{last}")
    sensor = opened()
    with pytest.raises(SensorFault, match=r"tegrastats ended with exit status 3|tegrastats was killed by signal 9"):
        for _ in range(5):
            sensor.read(20)


@pytest.mark.parametrize(
    "after",
    [
        "line(n).replace('mW', 'uW')",
        "line(n).replace('VDD_CPU_CV', 'VDD_CPU')",
        "line(n).partition(' VDD')[0]",
        "'{\"rails\": {}}'",
    ],
)
def test_changes_its_format(after: str, tool: Make, opened: Callable[..., Any]) -> None:
    tool(f"forever(lambda n: say(line(n) if n < 4 else {after}))")
    sensor = opened()
    with pytest.raises(SensorFault, match="changed its format"):
        for _ in range(5):
            sensor.read(20)


def test_falls_silent(tool: Make, opened: Callable[..., Any]) -> None:
    tool("time.sleep(interval)\nsay(line(1))\ntime.sleep(interval)\nsay(line(2))\ntime.sleep(60)")
    sensor = opened()
    with pytest.raises(SensorFault, match=r"printed nothing for 0\.3 s"):
        for _ in range(2):
            sensor.read(0.3)


def test_no_rails(tool: Make, opened: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    tool(f"forever(lambda n: say({NANO_2GB!r}))")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(AgentError, match=r"prints no power rails without root: .*hwmon"):
        opened()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(AgentError, match=r"prints no power rails: .*Nano 2GB"):
        opened()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("say('tegrastats: unknown option --interval')\nos._exit(1)", "ended with exit status 1"),
        ("forever(lambda n: say('hello'))", "does not print what tegrastats prints"),
        (
            f"forever(lambda n: say({BY_NAME['AGX Thor'].line('mW')!r}.replace(' VIN 25530mW/12765mW', '')))",
            "VIN is missing",
        ),
        ("forever(lambda n: say(line(n) + ' VDD_IN 5mW/5mW'))", "name the board"),
    ],
)
def test_refuses_what_gives_no_total(body: str, words: str, tool: Make, opened: Callable[..., Any]) -> None:
    tool(body)
    before = set(children(os.getpid()))
    with pytest.raises(AgentError, match=words):
        opened()
    assert set(children(os.getpid())) <= before, "the tool was left running"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"intervall_ms": 20}, "did you mean interval_ms"),
        ({"interval_ms": 1}, "10 to 10000"),
        ({"interval_ms": "20"}, "interval_ms must be a number"),
        ({"interval_ms": True}, "interval_ms must be a number"),
        ({"board": 5}, "board must be text"),
        ({"board": "toaster"}, "no policy"),
        ({"board": "Nano 2GB"}, "no power monitor"),
        ({"board": "Nano 4GB"}, "POM_5V_IN is missing"),
        ({"command": "no-such-tool"}, "no-such-tool is not on this device"),
    ],
)
def test_refuses_options(options: dict[str, Any], words: str, tool: Make, opened: Callable[..., Any]) -> None:
    tool("forever(lambda n: say(line(n)))")
    with pytest.raises(AgentError, match=words):
        opened(**options)


def test_not_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert tegrastats.probe() is None
    with pytest.raises(AgentError, match="tegrastats is not on this device"):
        sensors.open_sensor("tegrastats", {})


def test_probe_finds_the_tool_and_does_not_start_it(tool: Make, tmp_path: Path) -> None:
    path = tool(f"open({str(tmp_path / 'started')!r}, 'w')")
    assert str(path) in (tegrastats.probe() or "")
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("stubborn", ["", "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"])
def test_close_ends_the_tool_and_the_wait(stubborn: str, tool: Make, opened: Callable[..., Any]) -> None:
    tool(stubborn + "time.sleep(interval)\nsay(line(1))\ntime.sleep(60)")
    before = set(children(os.getpid()))
    sensor = opened()
    (pid,) = set(children(os.getpid())) - before
    caught: list[SensorFault] = []

    def wait() -> None:
        try:
            sensor.read(30)
        except SensorFault as fault:
            caught.append(fault)

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.1)
    sensor.close()
    sensor.close()
    thread.join(20)
    assert not thread.is_alive() and len(caught) == 1
    wait_for(lambda: not alive(pid), 30)


def test_the_tool_does_not_outlive_a_killed_agent(tool: Make, tmp_path: Path) -> None:
    """It writes into a pipe that nobody reads any more."""
    tool("open(sys.argv[0] + '.pid', 'w').write(str(os.getpid()))\nforever(lambda n: say(line(n)))")
    child = os.fork()
    if child == 0:
        try:
            sensors.open_sensor("tegrastats", {"interval_ms": 20})
        finally:  # whatever it raises: two processes must not go on with the tests
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    pid = int((tmp_path / "bin" / "tegrastats.pid").read_text())
    wait_for(lambda: not alive(pid))
