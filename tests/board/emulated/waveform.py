"""What the emulated INA219's current does, and the energy that this is: the truth that a measurement is held against."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

PARAMETERS = "/sys/module/ina219_fixture/parameters"
LOW_UA, HIGH_UA = 300_000, 1_100_000
"""Idle and loaded board, about, at 5 V."""


@dataclass(frozen=True)
class Waveform:
    """A current that repeats. supply_uv: microvolts; parts: (ns, µA at its beginning, µA at its end), straight lines."""

    parts: tuple[tuple[int, int, int], ...]
    supply_uv: int = 5_000_000

    @property
    def text(self) -> str:
        """As the kernel module takes it."""
        return f"{self.supply_uv} " + ",".join(":".join(map(str, part)) for part in self.parts)

    @property
    def period_ns(self) -> int:
        return sum(ns for ns, _, _ in self.parts)

    def joules(self, begun_ns: int, start_ns: int, end_ns: int) -> float:
        """Energy from start to end, of a waveform that began at begun_ns (the board's monotonic clock): exact."""
        charge = self._charge(end_ns - begun_ns) - self._charge(start_ns - begun_ns)
        return float(charge * self.supply_uv / 10**21)  # µV · µA · ns

    def _charge(self, t_ns: int) -> Fraction:
        """µA · ns from the beginning."""
        turns, rest = divmod(t_ns, self.period_ns)
        sum_ = turns * sum((Fraction(ns * (a + b), 2) for ns, a, b in self.parts), Fraction())
        for ns, a, b in self.parts:
            span = min(rest, ns)
            sum_ += Fraction(a) * span + Fraction((b - a) * span * span, 2 * ns)
            rest -= span
        return sum_


def shapes(period_ns: int) -> dict[str, Waveform]:
    """Those of issue 3, at one period: what an inference may draw."""

    def of(*parts: tuple[float, int, int]) -> Waveform:
        return Waveform(tuple((round(share * period_ns), a, b) for share, a, b in parts))

    middle = (LOW_UA + HIGH_UA) // 2
    burst = [(0.06, HIGH_UA, HIGH_UA), (0.04, LOW_UA, LOW_UA)] * 4
    return {
        "constant": of((1.0, middle, middle)),
        "square": of((0.4, HIGH_UA, HIGH_UA), (0.6, LOW_UA, LOW_UA)),
        "ramp": of((0.7, LOW_UA, HIGH_UA), (0.3, HIGH_UA, LOW_UA)),
        "bursts": of(*burst, (0.6, LOW_UA, LOW_UA)),
        "spikes": of((0.02, 3 * HIGH_UA // 2 + HIGH_UA, 3 * HIGH_UA // 2 + HIGH_UA), (0.98, LOW_UA, LOW_UA)),
    }
