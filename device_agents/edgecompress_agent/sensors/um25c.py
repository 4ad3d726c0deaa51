"""RDTech UM25C (also UM24C, UM34C), a USB meter that is asked by Bluetooth serial (rfcomm): F0 is answered by 130 bytes.

Sources: the UM25C's manual (voltage ±(0.05 % + 2 digits), current ±(0.1 % + 4 digits), refreshed twice a second); the
protocol as the sigrok project describes it ("RDTech UM series"): big endian, u16 @0 model (0x0963 UM24C, 0x09C9 UM25C,
0x0D4C UM34C), u16 @2 voltage (UM25C: V/1000, the others V/100), u16 @4 current (A/10000; A/1000), u32 @6 power W/1000.
The other two: ±(0.5 % + 2 digits) and ±(0.8 % + 3 digits), as their shops say.

An answer holds voltage, current and their product, and is taken only if they agree, so that lost or shifted bytes show. The
meter does not say when it has refreshed: an answer that repeats the one before, within one refresh, is called stale.

Scope: USB input (what goes through the plug).
"""

from __future__ import annotations

import threading
import time
from typing import Any, Dict, NamedTuple, Optional

from edgecompress_agent import option_values, serial_port
from edgecompress_agent.errors import AgentError
from edgecompress_agent.sensors import Sample, SensorFault, check_options
from edgecompress_agent.wire import SensorInfo

OPTIONS: Dict[str, str] = {
    "port": "Device file of the Bluetooth line, such as /dev/rfcomm0 (made by rfcomm bind 0 ADDRESS). Needed.",
    "model": "auto, um25c, um24c or um34c; default auto: as the meter says.",
    "interval_s": "Seconds between two questions, 0.1 to 10; default 0.5, the meter's own rate.",
}

ASK = b"\xf0"
ANSWER_BYTES = 130
REFRESH_S = 0.5
_BAD_ANSWERS = 3
_MODELS = {0x0963: "um24c", 0x09C9: "um25c", 0x0D4C: "um34c"}


class _Scale(NamedTuple):
    volt: float
    ampere: float
    gain_error: float
    offset_error_w: float


_SCALES = {
    # offset: digits of current at the voltage of USB, and digits of voltage at the largest current
    "um25c": _Scale(1e-3, 1e-4, 0.0015, 4e-4 * 5.1 + 2e-3 * 5),
    "um24c": _Scale(1e-2, 1e-3, 0.013, 3e-3 * 5.1 + 2e-2 * 3),
    "um34c": _Scale(1e-2, 1e-3, 0.013, 3e-3 * 5.1 + 2e-2 * 4),
}


class Answer(NamedTuple):
    """model: of _MODELS, None for an unknown number."""

    model: Optional[str]
    volts: float
    amperes: float
    power_mw: int


def parse_answer(data: bytes, model: str) -> Optional[Answer]:
    """The reading in an answer, with the scales of `model`; None when it is not one: length, or a product that is not it."""
    if len(data) != ANSWER_BYTES:
        return None
    scale = _SCALES[model]
    volts = int.from_bytes(data[2:4], "big") * scale.volt
    amperes = int.from_bytes(data[4:6], "big") * scale.ampere
    power_mw = int.from_bytes(data[6:10], "big")
    # 5 % and 50 mW: the three may be of slightly different moments
    if abs(power_mw - 1e3 * volts * amperes) > 50 + 0.05 * power_mw:
        return None
    return Answer(_MODELS.get(int.from_bytes(data[0:2], "big")), volts, amperes, power_mw)


class _Um25c:
    def __init__(self, port: str, model: str, interval_s: float) -> None:
        self._port, self._interval_s = port, interval_s
        self._closed = threading.Event()
        self._last, self._renewed_ns = b"", 0
        self._source = serial_port.open_port(port, 9600)
        try:
            self._model, self._head = self._find_model(model)
        except AgentError:
            self.close()
            raise
        self._next_ns = time.monotonic_ns()
        scale = _SCALES[self._model]
        self.info = SensorInfo(
            name="um25c",
            description=f"{self._model.upper()} at {port}, asked every {interval_s:g} s",
            scope="usb-input",
            interval_s=max(interval_s, REFRESH_S),
            resolution_w=max(1e-3, scale.ampere * 5),
            gain_error=scale.gain_error,
            offset_error_w=scale.offset_error_w,
            notes=(
                "the meter refreshes about twice a second and does not say when: a stamp may be late by up to 0.5 s",
            ),
        )

    def _find_model(self, wanted: str) -> "tuple[str, bytes]":
        """(model, its two bytes). AgentError when nobody answers, or another meter."""
        data = b""
        for _ in range(_BAD_ANSWERS):
            try:
                data = self._ask(2.0)
            except SensorFault as fault:
                raise AgentError(
                    f"{fault}: is the meter on, its Bluetooth switched on and paired (PIN 1234), and the line bound to it?"
                ) from None
            said = _MODELS.get(int.from_bytes(data[:2], "big"))
            if wanted != "auto" and said not in (None, wanted):
                raise AgentError(f"the meter at {self._port} says that it is a {said}, not a {wanted}")
            for model in [said] if said else [wanted] if wanted != "auto" else list(_SCALES):
                # the scales differ by a factor of 100 in the product, so that only the right ones fit; 0 W fits all
                answer = parse_answer(data, model)
                if answer and (said or wanted != "auto" or answer.power_mw > 100):
                    return model, data[:2]
        raise AgentError(
            f"what answers at {self._port} is no UM25C, UM24C or UM34C that draws power (got {len(data)} bytes, "
            f"{data[:10].hex()}…): name it by the option model"
        )

    def read(self, timeout_s: float) -> Sample:
        deadline, data = time.monotonic() + timeout_s, b""
        for _ in range(_BAD_ANSWERS):
            wait_s = (self._next_ns - time.monotonic_ns()) / 1e9
            if wait_s >= deadline - time.monotonic():
                raise SensorFault(f"{self._port} gave no answer that can be used within {timeout_s:g} s")
            if self._closed.wait(max(0.0, wait_s)):
                raise SensorFault("the sensor was closed")
            asked_ns = time.monotonic_ns()
            data = self._ask(deadline - time.monotonic())
            answered_ns = time.monotonic_ns()
            self._next_ns = max(self._next_ns + round(1e9 * self._interval_s), answered_ns)
            answer = parse_answer(data, self._model)
            if answer and data[:2] == self._head:
                stale = data == self._last and answered_ns - self._renewed_ns < 1e9 * REFRESH_S
                if not stale:
                    self._last, self._renewed_ns = data, answered_ns
                return Sample((asked_ns + answered_ns) // 2, 1000 * answer.power_mw, stale)
        raise SensorFault(
            f"{self._port}: {_BAD_ANSWERS} garbled answers in a row; the last one has {len(data)} bytes, {data[:10].hex()}…"
        )

    def _ask(self, timeout_s: float) -> bytes:
        """The answer, as many bytes as came. What was left of an earlier one is thrown away first. SensorFault: none came."""
        while self._source.read(0):
            pass
        self._source.write(ASK)
        data, deadline = b"", time.monotonic() + max(0.0, timeout_s)
        while len(data) < ANSWER_BYTES:
            # the bytes of an answer come in one go: after the first one a short silence is its end
            left = deadline - time.monotonic()
            more = self._source.read(max(0.0, min(left, 0.3) if data else left))
            if more == b"":
                raise SensorFault(f"{self._port} is gone: unplugged, or out of reach?")
            if more is None:
                if not data:
                    raise SensorFault(f"{self._port} did not answer within {timeout_s:.1f} s")
                break
            data += more
        return data

    def close(self) -> None:
        self._closed.set()
        self._source.close()


def open(options: Dict[str, Any]) -> _Um25c:
    """AgentError: an unknown option, no port, no permission (with the group), no answer, another meter."""
    check_options("um25c", options, OPTIONS)
    port = option_values.text("um25c", options, "port")
    if port is None:
        raise AgentError("sensor um25c needs the option port, such as /dev/rfcomm0 (sudo rfcomm bind 0 ADDRESS)")
    model = str(option_values.choice("um25c", options, "model", "auto", ("auto", "um25c", "um24c", "um34c")))
    interval_s = option_values.number("um25c", options, "interval_s", REFRESH_S, 0.1, 10)
    return _Um25c(port, model, interval_s)


def probe() -> Optional[str]:
    """None: a Bluetooth line does not tell what is at its other end without connecting to it. It has to be named."""
    return None
