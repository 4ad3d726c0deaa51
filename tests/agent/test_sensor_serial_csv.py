"""The sensor serial_csv on a pseudo-terminal: lines, clocks, and everything that a serial line does to them."""

from __future__ import annotations

import itertools
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from edgecompress_agent import sensors
from edgecompress_agent.errors import AgentError
from edgecompress_agent.sensors import SensorFault, serial_csv
from edgecompress_agent.sensors.serial_csv import Line, parse_csv
from hypothesis import given
from hypothesis import strategies as st

from tests.agent.fake_meter import FakeMeter

pytestmark = pytest.mark.slow

Play = Callable[[FakeMeter], None]
Plug = Callable[..., Any]


@pytest.fixture
def plug() -> Iterator[Plug]:
    """Opens the sensor on a meter that is played; `meters` has the fakes."""
    made: list[Any] = []

    def make(play: Play, **options: Any) -> Any:
        meter = FakeMeter(play)
        made.append(meter)
        sensor = sensors.open_sensor("serial_csv", {"port": meter.port, **options})
        made.append(sensor)
        return sensor

    make.made = made  # type: ignore[attr-defined]
    yield make
    for one in reversed(made):
        one.close()


def printing(line: Callable[[int], bytes], interval_s: float = 0.01) -> Play:
    """A meter that prints `line(count)` again and again, as a clock of its own says: where the machine was busy, some at once."""

    def play(meter: FakeMeter) -> None:
        began = time.monotonic()
        for count in itertools.count():
            if not meter.wait(max(0.0, began + (count + 1) * interval_s - time.monotonic())):
                return
            meter.send(line(count))

    return play


def plain(count: int) -> bytes:
    return b"%d,5.00,%d.0\r\n" % (5000 + 10 * count, count)


def test_a_line() -> None:
    assert parse_csv("1234,5.012,612.5") == Line(1234, round(5.012 * 612.5 * 1e3))
    assert parse_csv(" 0 , 5 , -3 ") == Line(0, -15000)
    assert parse_csv("4294967295,5.,1") == Line(4294967295, 5000)


@pytest.mark.parametrize(
    "line",
    ["", "millis,volts,milliamps", "1,2", "1,2,3,4", "1;2;3", "-1,5,5", "1,-5,5", "1,5,nan", "1,5,inf", "1,5,1e9", "1,5,5x",
     "4294967296,5,5", "1,5.0.0,5", "1,,5", "٣,5,5", "1,5000,5", "1,5,5\x00"],
)  # fmt: skip
def test_no_line(line: str) -> None:
    assert parse_csv(line) is None


@given(st.text() | st.text(alphabet="0123456789.,- \r", max_size=30))
def test_any_text(text: str) -> None:
    line = parse_csv(text)
    assert line is None or (0 <= line.millis < 1 << 32 and abs(line.power_uw) < 1e12)


def test_power_over_time(plug: Plug) -> None:
    sensor = plug(printing(plain))
    assert (sensor.info.name, sensor.info.scope, sensor.info.interval_s) == ("serial_csv", "as-wired", 0.01)
    samples = [sensor.read(20) for _ in range(30)]
    first = samples[0].power_uw // 5000
    assert [s.power_uw for s in samples] == [5000 * (first + i) for i in range(30)]
    assert not any(s.stale or s.overflow for s in samples)
    assert abs(samples[-1].t_ns - time.monotonic_ns()) < 2e9


def test_stamps_are_the_meters_clock_and_not_the_arrival(plug: Plug) -> None:
    """A USB adapter hands lines over in bursts; the value's moment is in the line."""
    began = time.monotonic()

    def play(meter: FakeMeter) -> None:
        chance, count, held = random.Random(1), 0, b""
        while meter.wait(0.005):
            now = time.monotonic() - began
            while count * 0.01 < now:
                held += b"%d,5.00,100.0\n" % (10 * count)
                count += 1
            if chance.random() < 0.3:
                meter.send(held)
                held = b""

    sensor = plug(play)
    samples = [sensor.read(20) for _ in range(100)]
    steps = [(b.t_ns - a.t_ns) / 1e6 for a, b in itertools.pairwise(samples)]
    assert sum(abs(step - 10) < 0.01 for step in steps) > 90  # but where a shorter lag was found
    true_ns = [(s.t_ns / 1e9 - began) % 0.01 for s in samples[-20:]]
    assert max(min(t, 0.01 - t) for t in true_ns) < 0.006


@pytest.mark.parametrize("drift", [100e-6, -100e-6])
def test_the_clocks_follow_each_other_and_wrap(drift: float) -> None:
    """100 ppm apart for an hour, each line 0 to 16 ms late: the stamp stays within 10 ms of the truth (without: 360 ms)."""
    clocks, chance = serial_csv._Clocks(), random.Random(2)
    start, worst = (1 << 32) - 1_800_000, 0.0
    for second in range(3600):
        true_ns = 10**12 + second * 10**9
        millis = round(start + second * 1000 * (1 + drift))
        stamped = clocks.stamp(millis % (1 << 32), true_ns + round(chance.random() * 16e6))
        assert stamped is not None and not stamped[1]
        if second > 60:
            worst = max(worst, abs(stamped[0] - true_ns))
    assert worst < 10e6


def test_a_line_that_repeats_its_moment_is_stale(plug: Plug) -> None:
    sensor = plug(printing(lambda n: plain(n if n < 40 else n // 2 * 2)))
    samples = [sensor.read(20) for _ in range(60)]
    assert [s.stale for s in samples[-8:]].count(True) == 4
    assert all(b.t_ns > a.t_ns for a, b in itertools.pairwise(samples))


@pytest.mark.parametrize(
    "garbled",
    [
        b"50,,00\n",
        b"\xff\xfe\x00,5,5\n",
        b"9995400,5.00,3.0\n",
        b"54,5.00,3.0\n",
        b"\n\n",
        b"millis,volts,milliamps\r\n",
    ],
)
def test_single_garbled_lines_are_left_out(garbled: bytes, plug: Plug) -> None:
    sensor = plug(printing(lambda n: plain(n) if n % 5 else garbled))
    samples = [sensor.read(20) for _ in range(30)]
    assert all(s.power_uw // 5000 % 5 for s in samples)
    assert 0.25e9 < samples[-1].t_ns - samples[0].t_ns < 0.45e9


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (lambda n: b"\x80\x81\x82\x83 %d\n" % n, "they are no readings"),
        (lambda n: plain(n - 400), "its clock jumped"),
        (lambda n: plain(n + 100_000), "its clock jumped"),
        (lambda n: b"", r"sent no line for \d\.\d s"),
    ],
)
def test_fails_later(after: Callable[[int], bytes], words: str, plug: Plug) -> None:
    sensor = plug(printing(lambda n: plain(n) if n < 30 else after(n)))
    for _ in range(3):
        sensor.read(20)
    with pytest.raises(SensorFault, match=words):
        for _ in range(40):
            sensor.read(0.5 if "sent no line" in words else 20)


def test_unplugged(plug: Plug) -> None:
    def play(meter: FakeMeter) -> None:
        for count in range(100):
            meter.wait(0.01)
            meter.send(plain(count))
        meter.unplug()

    sensor = plug(play)
    with pytest.raises(SensorFault, match="is gone"):
        for _ in range(110):
            sensor.read(20)


def test_closed_while_it_waits(plug: Plug) -> None:
    sensor = plug(printing(lambda n: plain(n) if n < 60 else b""))
    caught: list[SensorFault] = []

    def wait() -> None:
        try:
            for _ in range(100):
                sensor.read(30)
        except SensorFault as fault:
            caught.append(fault)

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(1)  # the meter has fallen silent by then
    sensor.close()
    thread.join(20)
    assert not thread.is_alive() and "closed" in str(caught[0])


def test_what_a_board_prints_while_it_starts_is_skipped(plug: Plug) -> None:
    """Opening the line resets it: the end of the old numbers, its boot loader's words, and new numbers from 0."""

    def line(count: int) -> bytes:
        if count < 6:
            return plain(count)
        return b"ets Jun  8 2016\r\nmillis,volts,milliamps\n" if count == 6 else b"%d,5.00,1.0\n" % (10 * count - 70)

    sensor = plug(printing(line))
    assert sensor.info.interval_s == 0.01
    samples = [sensor.read(20) for _ in range(5)]
    assert samples[-1].t_ns - samples[0].t_ns == pytest.approx(0.04e9, rel=0.6)
    assert all(s.power_uw == 5000 for s in samples)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"", "does the meter print"),
        (b"7,5.0,100\n", "clock stands still"),
        (b"\xaa\x55\x13\xff", "at 115200 baud"),
        (b"T=21.5\n", "prints no lines of millis,volts,milliamps"),
    ],
)
def test_refuses_what_is_no_such_meter(line: bytes, words: str, plug: Plug, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serial_csv, "_FIRST_S", 20 if words == "clock stands still" else 1)
    with pytest.raises(AgentError, match=words):
        plug(printing(lambda _: line))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "needs the option port"),
        ({"prot": "/dev/ttyUSB0"}, "did you mean port"),
        ({"port": "/dev/no-such-line"}, "is not there"),
        ({"port": "/dev/null"}, "is not a serial line"),
        ({"port": 5}, "port must be text"),
        ({"port": "/dev/null", "baud": 115201}, "baud must be one of"),
        ({"port": "/dev/null", "gain_error": "2 %"}, "gain_error must be a number"),
        ({"port": "/dev/null", "resolution_w": -1}, "resolution_w must be a number"),
    ],
)
def test_refuses_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(AgentError, match=words):
        sensors.open_sensor("serial_csv", options)


def test_limits_may_be_given(plug: Plug) -> None:
    sensor = plug(printing(plain), resolution_w=0.001, gain_error=0.003, offset_error_w=0.02, baud=921600)
    assert (sensor.info.resolution_w, sensor.info.gain_error, sensor.info.offset_error_w) == (0.001, 0.003, 0.02)


def test_no_permission_names_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(AgentError, match="dialout"):
        sensors.open_sensor("serial_csv", {"port": "/dev/ttyUSB77"})


def test_is_never_found_by_itself() -> None:
    assert serial_csv.probe() is None
