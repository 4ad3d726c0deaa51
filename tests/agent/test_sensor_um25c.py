"""The sensor um25c on a pseudo-terminal: a meter that answers as the protocol says, or in some other way."""

from __future__ import annotations

import itertools
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from edgecompress_agent import sensors
from edgecompress_agent.errors import AgentError
from edgecompress_agent.sensors import SensorFault, um25c
from edgecompress_agent.sensors.um25c import parse_answer
from hypothesis import given
from hypothesis import strategies as st

from tests.agent.fake_meter import FakeMeter

pytestmark = pytest.mark.slow

Plug = Callable[..., Any]
NUMBERS = {"um25c": 0x09C9, "um24c": 0x0963, "um34c": 0x0D4C, "unknown": 0x1234}


def answer(volts: float, amperes: float, model: str = "um25c", as_model: str | None = None) -> bytes:
    """130 bytes: model, V, A, W, and zeros up to the end mark FFF1."""
    fine = (as_model or model) == "um25c"
    power = round(1000 * volts * amperes)
    head = struct.pack(
        ">HHHI",
        NUMBERS[model],
        round(volts * (1000 if fine else 100)),
        round(amperes * (10000 if fine else 1000)),
        power,
    )
    return head + bytes(118) + b"\xff\xf1"


@pytest.fixture
def plug() -> Iterator[Plug]:
    """Opens the sensor on a meter whose n-th answer is given by a function."""
    made: list[Any] = []

    def make(answers: Callable[[int], bytes | None], **options: Any) -> Any:
        def play(meter: FakeMeter) -> None:
            for count in itertools.count():
                asked = meter.receive()
                if not asked:
                    return
                assert asked == b"\xf0"
                said = answers(count)
                if said is None:
                    meter.unplug()
                    return
                meter.send(said[:70])
                meter.wait(0.01)  # Bluetooth hands an answer over in pieces
                meter.send(said[70:])

        meter = FakeMeter(play)
        made.append(meter)
        made.append(sensors.open_sensor("um25c", {"port": meter.port, "interval_s": 0.1, **options}))
        return made[-1]

    yield make
    for one in reversed(made):
        one.close()


def test_an_answer() -> None:
    """The worked example: 5.123 V, 0.6125 A, 3.138 W as big-endian numbers at 2, 4 and 6."""
    data = bytes.fromhex("09c9140317ed00000c42") + bytes(120)
    found = parse_answer(data, "um25c")
    assert found is not None
    assert found.model == "um25c" and found.volts == pytest.approx(5.123) and found.amperes == pytest.approx(0.6125)
    assert found.power_mw == 3138


def test_the_models_differ_in_scale() -> None:
    for model in ("um24c", "um34c"):
        found = parse_answer(answer(5.12, 0.612, model), model)
        assert found is not None and found.volts == pytest.approx(5.12) and found.amperes == pytest.approx(0.612)
        assert parse_answer(answer(5.12, 0.612, model), "um25c") is None


@pytest.mark.parametrize("cut", [0, 1, 129, 131, 260])
def test_an_answer_of_another_length(cut: int) -> None:
    assert parse_answer((answer(5, 1) * 2)[:cut], "um25c") is None


def test_shifted_bytes_are_noticed() -> None:
    good = answer(5.123, 0.6125)
    for shift in range(1, 130):
        found = parse_answer(good[shift:] + good[:shift], "um25c")
        assert found is None or found.model is None  # which the sensor compares with the model that it has opened


@given(st.binary(max_size=140) | st.binary(min_size=130, max_size=130), st.sampled_from(["um25c", "um24c", "um34c"]))
def test_any_bytes(data: bytes, model: str) -> None:
    found = parse_answer(data, model)
    assert found is None or abs(found.power_mw - 1e3 * found.volts * found.amperes) <= 50 + 0.05 * found.power_mw


@pytest.mark.parametrize("model", ["um25c", "um24c", "um34c"])
def test_power_over_time(model: str, plug: Plug) -> None:
    began = time.monotonic_ns()
    sensor = plug(lambda n: answer(5.0, 0.1 * (n + 1), model))
    assert (sensor.info.name, sensor.info.scope, sensor.info.interval_s) == ("um25c", "usb-input", 0.5)
    assert model.upper() in sensor.info.description
    assert sensor.info.gain_error == (0.0015 if model == "um25c" else 0.013)
    samples = [sensor.read(20) for _ in range(4)]
    assert [s.power_uw for s in samples] == [
        1_000_000,
        1_500_000,
        2_000_000,
        2_500_000,
    ]  # the first answer told the model
    # asked for every 0.1 s and no sooner; how much later is the machine's affair
    assert all(s.t_ns >= began + n * 100_000_000 for n, s in enumerate(samples))
    assert all(b.t_ns > a.t_ns for a, b in itertools.pairwise(samples)) and samples[-1].t_ns < time.monotonic_ns()
    assert not any(s.stale for s in samples)


def test_an_unknown_number_is_told_by_its_scale(plug: Plug) -> None:
    assert "UM25C" in plug(lambda _: answer(5.0, 0.5, "unknown", "um25c")).info.description
    assert "UM24C" in plug(lambda _: answer(5.0, 0.5, "unknown", "um24c")).info.description
    assert "UM25C" in plug(lambda _: answer(5.0, 0.0, "unknown", "um25c"), model="um25c").info.description
    with pytest.raises(AgentError, match="name it by the option model"):
        plug(lambda _: answer(5.0, 0.0, "unknown", "um25c"))


def test_a_repeat_within_one_refresh_is_stale(plug: Plug, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(um25c, "REFRESH_S", 30)  # no machine is so busy
    sensor = plug(lambda n: answer(5.0, 0.1 * (n // 5 + 1)))
    assert [sensor.read(20).stale for _ in range(9)] == [False, True, True, True, False, True, True, True, True]


def test_a_steady_load_is_not_stale_at_the_meters_own_rate(plug: Plug) -> None:
    sensor = plug(lambda _: answer(5.0, 0.1), interval_s=1.0)
    assert [sensor.read(20).stale for _ in range(3)] == [False] * 3


def test_single_garbled_answers_are_left_out(plug: Plug) -> None:
    bad = {
        2: answer(5.0, 1.0)[:100],
        4: b"\x00" + answer(5.0, 1.0)[:-1],
        6: answer(5, 1) + b"xx",
        8: answer(5, 1, "unknown", "um25c"),
    }
    sensor = plug(lambda n: bad.get(n, answer(5.0, 0.001 * n)))
    assert [sensor.read(20).power_uw for _ in range(6)] == [5000 * n for n in (1, 3, 5, 7, 9, 10)]


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (lambda n: bytes(range(130)), "3 garbled answers in a row"),
        (lambda n: b"", r"did not answer within \d\.\d s"),
        (lambda n: None, "is gone|cannot be written"),
    ],
)
def test_fails_later(after: Callable[[int], bytes | None], words: str, plug: Plug) -> None:
    sensor = plug(lambda n: answer(5.0, 0.1 * (n + 1)) if n < 3 else after(n))
    sensor.read(20)
    sensor.read(20)
    with pytest.raises(SensorFault, match=words):
        for _ in range(3):
            sensor.read(1 if "did not answer" in words else 20)


@pytest.mark.parametrize(
    ("answers", "options", "words"),
    [
        (lambda n: b"", {}, "did not answer.*PIN 1234"),
        (lambda n: b"OK\r\n" * 10, {}, "is no UM25C"),
        (lambda n: answer(5, 1, "um24c"), {"model": "um25c"}, "says that it is a um24c, not a um25c"),
        (lambda n: answer(5, 1), {"model": "um26c"}, "model must be one of auto"),
        (lambda n: answer(5, 1), {"interval_s": 0.01}, "from 0.1 to 10"),
        (lambda n: answer(5, 1), {"intervall_s": 1}, "did you mean interval_s"),
        (lambda n: answer(5, 1), {"port": "/dev/rfcomm77"}, "is not there"),
        (lambda n: answer(5, 1), {"port": None}, "needs the option port"),
    ],
)
def test_refuses(answers: Callable[[int], bytes], options: dict[str, Any], words: str, plug: Plug) -> None:
    with pytest.raises(AgentError, match=words):
        plug(answers, **options)


def test_closed(plug: Plug) -> None:
    sensor = plug(lambda _: answer(5.0, 0.1))
    sensor.close()
    sensor.close()
    with pytest.raises(SensorFault, match="closed"):
        sensor.read(5)
    assert um25c.probe() is None
