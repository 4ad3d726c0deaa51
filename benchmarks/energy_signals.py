"""Devices whose energy is known: waveforms with an exact integral, and the meters that read them, for `energy_accuracy.py`."""

from __future__ import annotations

import bisect
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from edgecompress_agent import wire
from edgecompress_agent.ina219_chip import Settings
from edgecompress_agent.sampler import Recorder
from edgecompress_agent.sensors.ina219 import Ina219
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "agent"))
import simulated_ina219  # the register-level chip of the sensor's own tests

Array = NDArray[np.float64]
IDLE_W = 2.7
WANDER = 0.003
JITTER = 0.01
SETTLE_S, IDLE_S, WINDOW_S, WINDOWS, MIN_SAMPLES = 0.5, 5.0, 10.0, 5, 100

# One inference: (fraction of its time, W at the start of the part, W at its end), parts in order.
WAVEFORMS: dict[str, tuple[tuple[float, float, float], ...]] = {
    "constant": ((1.0, 5.0, 5.0),),
    "square": ((0.5, 7.0, 7.0), (0.5, 3.5, 3.5)),
    "ramp": ((0.8, 3.0, 8.0), (0.2, 8.0, 3.0)),
    "bursts": ((0.2, 3.5, 3.5), (0.1, 9.0, 9.0), (0.15, 3.5, 3.5), (0.1, 9.0, 9.0), (0.45, 3.5, 3.5)),
    "spikes": ((0.49, 4.0, 4.0), (0.02, 14.0, 14.0), (0.49, 4.0, 4.0)),
}


@dataclass(frozen=True)
class Signal:
    """Power over time: linear from (starts[i], from_w[i]) to (starts[i + 1], to_w[i]); joules up to each start."""

    starts: Array
    from_w: Array
    to_w: Array
    joules: Array

    @staticmethod
    def of(lengths: Array, from_w: Array, to_w: Array) -> Signal:
        starts = np.concatenate(([0.0], np.cumsum(lengths)))
        joules = np.concatenate(([0.0], np.cumsum(lengths * (from_w + to_w) / 2)))
        return Signal(starts, from_w, to_w, joules)

    def up_to(self, t: Array) -> Array:
        """Joules from 0 to t, exactly."""
        i = np.clip(np.searchsorted(self.starts, t, side="right") - 1, 0, self.from_w.size - 1)
        into, length = t - self.starts[i], self.starts[i + 1] - self.starts[i]
        slope = (self.to_w[i] - self.from_w[i]) / length
        total: Array = self.joules[i] + into * (self.from_w[i] + slope * into / 2)
        return total

    def mean(self, start: Array, end: Array) -> Array:
        means: Array = (self.up_to(end) - self.up_to(start)) / (end - start)
        return means


@dataclass(frozen=True)
class Run:
    """One power pass: the signal, the windows (s), and the two truths in J per inference; idle_w: the idle device's."""

    signal: Signal
    windows: tuple[tuple[str, float, float, int], ...]
    truth_windows_j: float
    truth_process_j: float
    idle_w: float


@dataclass(frozen=True)
class Meter:
    """info: with the limits that it declares. read: the signal and its end → (stamps in s, W) of an otherwise right meter."""

    info: wire.SensorInfo
    read: Callable[[Signal, float, np.random.Generator], tuple[Array, Array]]


class Wave:
    """The signal as the simulated chip wants it: one moment after the other."""

    def __init__(self, signal: Signal) -> None:
        self._starts, self._from_w, self._to_w = signal.starts.tolist(), signal.from_w.tolist(), signal.to_w.tolist()
        self._joules = signal.joules.tolist()

    def energy_j(self, t_s: float) -> float:
        i = min(max(bisect.bisect_right(self._starts, t_s) - 1, 0), len(self._from_w) - 1)
        into, length = t_s - self._starts[i], self._starts[i + 1] - self._starts[i]
        slope = (self._to_w[i] - self._from_w[i]) / length
        return float(self._joules[i] + into * (self._from_w[i] + slope * into / 2))


def ina219(signal: Signal, end: float, rng: np.random.Generator) -> tuple[Array, Array]:
    """The agent's own sensor and store on the register-level chip: 0.1 ohm in a supply of 5 V, the default 32 averages of the
    current. The chip's clock is up to 10 % slow (SBOS448G 7.5), its noise 10 uV, every sleep of the reader up to 0.2 ms late."""
    noise = rng.normal(0, 1e-5, 1 << 14).tolist()
    late = iter(rng.uniform(0, 2e-4, 1 << 16).tolist())
    clock = simulated_ina219.VirtualClock(overshoot=lambda: next(late))
    chip = simulated_ina219.SimulatedIna219(
        Wave(signal), clock, cycle_factor=1 + rng.uniform(0, 0.1), noise_v=lambda number: noise[number % len(noise)]
    )
    sensor = Ina219(chip, Settings.of({}), clock=clock.monotonic_ns, sleep=clock.sleep)
    recorder = Recorder(sensor.info.interval_s)
    while clock.now_s < end - 0.05:
        recorder.add(sensor.read(1.0))
    trace = recorder.trace(sensor.info)
    if trace.stale or trace.overflows:
        raise SystemExit(f"the simulated chip gave {trace.stale} stale readings and {trace.overflows} overflows")
    return np.asarray(trace.t_ns) / 1e9, np.asarray(trace.power_uw) / 1e6


def ina219_info() -> wire.SensorInfo:
    clock = simulated_ina219.VirtualClock()
    chip = simulated_ina219.SimulatedIna219(simulated_ina219.constant(3.0), clock)
    return Ina219(chip, Settings.of({}), clock=clock.monotonic_ns, sleep=clock.sleep).info


def sampled(
    interval_s: float, aperture_s: float, step_w: float
) -> Callable[[Signal, float, np.random.Generator], tuple[Array, Array]]:
    """A meter that looks for aperture_s every interval_s, read by a program that wakes up to 5 % of an interval late."""

    def read(signal: Signal, end: float, rng: np.random.Generator) -> tuple[Array, Array]:
        middles = float(rng.uniform(0, interval_s / 2)) + interval_s * np.arange(1.0, int(end / interval_s) + 1)
        middles += rng.uniform(0, 0.05 * interval_s, middles.size)
        middles = middles[middles + aperture_s / 2 < end]
        power_w = np.round(signal.mean(middles - aperture_s / 2, middles + aperture_s / 2) / step_w) * step_w
        return middles, power_w

    return read


def _info(name: str, description: str, scope: str, interval_s: float, step_w: float) -> wire.SensorInfo:
    return wire.SensorInfo(name, description, scope, interval_s, step_w, gain_error=0.01, offset_error_w=0.01)


METERS = {
    "ina219": Meter(ina219_info(), ina219),
    "module-100ms": Meter(_info("tegrastats", "1 ms every 100 ms", "module", 0.1, 0.001), sampled(0.1, 0.001, 0.001)),
    "usb-500ms": Meter(_info("um25c", "averages 0.5 s", "usb-input", 0.5, 0.001), sampled(0.5, 0.47, 0.001)),
}


def make_run(waveform: str, period_s: float, interval_s: float, rng: np.random.Generator, pause: bool) -> Run:
    """Idle, settling, windows back to back, idle: as the agent runs a power pass with this sensor."""
    parts = np.asarray(WAVEFORMS[waveform])
    window_s = max(WINDOW_S, (MIN_SAMPLES + 3) * interval_s)
    count = math.ceil(window_s / period_s)
    settle = math.ceil(SETTLE_S / period_s)
    lengths: list[Array] = []
    from_w: list[Array] = []
    to_w: list[Array] = []
    windows: list[tuple[str, float, float, int]] = []

    def idle(kind: str) -> float:
        pieces = np.full(100, (IDLE_S + 2 * SETTLE_S) / 100)
        level = IDLE_W * (1 + 0.001 * rng.normal()) + 0.02 * rng.normal(size=100)
        begin = float(sum(a.sum() for a in lengths))
        lengths.append(pieces)
        from_w.append(level)
        to_w.append(level)
        windows.append((kind, begin + SETTLE_S, begin + SETTLE_S + IDLE_S, 0))
        return float(level.mean())

    before = idle("idle-before")

    def infer(n: int, level: float, counted: bool) -> None:
        took = period_s * np.exp(JITTER * rng.normal(size=n) - JITTER**2 / 2)
        begin = float(sum(a.sum() for a in lengths))
        lengths.append(np.outer(took, parts[:, 0]).ravel())
        from_w.append(np.tile(parts[:, 1] * level, n))
        to_w.append(np.tile(parts[:, 2] * level, n))
        if counted:
            windows.append(("power", begin, begin + float(took.sum()), n))

    for _ in range(WINDOWS):
        level = 1 + WANDER * rng.normal()
        if pause:
            lengths.append(np.array([rng.uniform(0, max(interval_s, period_s))]))
            from_w.append(np.array([IDLE_W]))
            to_w.append(np.array([IDLE_W]))
        infer(settle, level, False)
        infer(count, level, True)
    after = idle("idle-after")
    signal = Signal.of(np.concatenate(lengths), np.concatenate(from_w), np.concatenate(to_w))
    ends = np.asarray([w[1:3] for w in windows if w[0] == "power"])
    drawn = float((signal.up_to(ends[:, 1]) - signal.up_to(ends[:, 0])).sum())
    mean_w = float((parts[:, 0] * (parts[:, 1] + parts[:, 2]) / 2).sum())
    return Run(signal, tuple(windows), drawn / (WINDOWS * count), mean_w * period_s, (before + after) / 2)
