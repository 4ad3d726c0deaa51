"""The truth that the emulated board's figures are held against, held itself against a sum of small steps."""

from __future__ import annotations

import numpy as np
import pytest

from tests.board.emulated.waveform import Waveform, shapes


def current_a(waveform: Waveform, t_ns: np.ndarray) -> np.ndarray:
    """At moments since its beginning, straight from the definition."""
    rest, found = t_ns % waveform.period_ns, np.zeros(t_ns.shape)
    at = 0
    for ns, a, b in waveform.parts:
        inside = (rest >= at) & (rest < at + ns)
        found[inside] = a + (b - a) * (rest[inside] - at) / ns
        at += ns
    return found / 1e6


@pytest.mark.parametrize("name", ["constant", "square", "ramp", "bursts", "spikes"])
def test_the_energy_of_a_waveform(name: str) -> None:
    waveform, begun = shapes(10_000_000)[name], 10**15
    assert waveform.period_ns == 10_000_000
    for start, end in ((0, 10_000_000), (1_234_567, 8_765_432), (9_900_000, 35_050_000)):
        steps = np.linspace(start, end, 200_001)
        middle = (steps[:-1] + steps[1:]) / 2
        summed = float(current_a(waveform, middle).sum()) * 5.0 * (end - start) / 200_000 / 1e9
        assert waveform.joules(begun, begun + start, begun + end) == pytest.approx(summed, rel=1e-4)


def test_hours_after_its_beginning_it_is_still_exact() -> None:
    waveform = shapes(37_000_000)["ramp"]
    later = 7 * 3600 * 10**9 // 37_000_000 * 37_000_000
    assert waveform.joules(0, later, later + 5_000_000) == pytest.approx(waveform.joules(0, 0, 5_000_000), rel=1e-12)
    assert waveform.text.startswith("5000000 25900000:300000:1100000,")
