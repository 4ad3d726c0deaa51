"""The decision which multiple of channels an engine likes: from recorded latencies, and from engines made up to be known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecompress.channel_sweep import MULTIPLES, Setting, centre_for, class_of, decide

SETTING = Setting()

RECORDED_ONNX = (
    (0.435637, 0.743675, 1.052404, 1.087379, 0.993915, 0.960933, 1.317381, 1.733041, 1.794396, 1.858036, 1.608667),
    (0.436199, 0.737824, 1.031375, 1.079285, 0.997691, 0.953619, 1.296872, 1.666336, 1.73237, 1.262368, 1.75389),
    (0.435437, 0.75148, 1.045742, 1.095736, 0.996229, 0.972875, 1.334674, 1.668861, 1.752918, 1.268399, 1.708845),
    (0.436559, 0.751239, 1.082711, 1.102468, 1.011848, 0.965441, 1.344892, 1.674181, 1.76992, 1.273369, 1.676244),
    (0.436979, 0.74607, 1.516375, 1.111896, 1.00727, 0.985369, 1.330045, 1.632823, 1.797603, 1.285662, 1.683488),
)
"""ms, ONNX Runtime 1.32.0 float on an EPYC with AVX2, one thread, other work on both of its cores."""


def made_up(per_mac, *, rounds: int = 3, noise: float = 0.0, seed: int = 0) -> list[list[float]]:
    """Latencies of an engine that takes per_mac(width) for each multiply-accumulate, in rounds of a drifting device."""
    generator = np.random.default_rng(seed)
    exact = np.array([SETTING.macs(w) * per_mac(w) for w in SETTING.widths])
    drift = generator.uniform(1, 2, (rounds, 1))
    return (exact * drift * np.exp(generator.normal(0, noise, (rounds, len(exact))))).tolist()


def padded(tile: int):
    """An engine that computes whole tiles of output channels."""
    return lambda width: -(-width // tile) * tile / width


def test_the_recorded_latencies_of_onnx_runtime_with_avx2_say_8():
    decision = decide(SETTING, RECORDED_ONNX)
    assert decision.multiple == 8 and decision.certain
    by_multiple = {cost.multiple: cost for cost in decision.costs}
    assert by_multiple[1].relative > 1.3 and by_multiple[4].relative > 1.1 and by_multiple[8].relative < 1.05
    assert all(cost.low <= cost.relative <= cost.high for cost in decision.costs)
    # one of the five measurements of width 56 was disturbed by half: it does not count
    assert decision.relative[56] == 1.0


def test_an_engine_that_falls_back_to_slow_kernels_is_given_its_block():
    for block in MULTIPLES:
        slow = decide(SETTING, made_up(lambda w, block=block: 1.0 if w % block == 0 else 1.6))
        assert slow.multiple == block and slow.agreement == 1.0
        assert slow.costs[-1].relative == pytest.approx(1.0)


def test_an_engine_that_pads_is_given_its_tile():
    assert decide(SETTING, made_up(padded(16))).multiple == 16
    assert decide(SETTING, made_up(padded(32))).multiple == 32
    # tiles of 4 cost an odd width 3 % in the mean: not worth a choice of channels
    assert decide(SETTING, made_up(padded(4))).multiple == 1


def test_an_engine_without_steps_gives_1_however_wider_networks_fare():
    for exponent in (-0.5, 0.0, 0.3):
        decision = decide(SETTING, made_up(lambda w, exponent=exponent: w**exponent))
        assert decision.multiple == 1
        assert [cost.relative for cost in decision.costs] == pytest.approx([1.0] * len(MULTIPLES))


def test_one_disturbed_round_of_five_changes_nothing():
    rounds = made_up(lambda w: 1.0 if w % 8 == 0 else 1.4, rounds=5)
    rounds[2] = (np.array(rounds[2]) * np.random.default_rng(1).uniform(1, 4, len(rounds[2]))).tolist()
    assert decide(SETTING, rounds).multiple == 8


def test_noise_is_said():
    calm = decide(SETTING, made_up(padded(16), noise=0.005, rounds=5))
    wild = decide(SETTING, made_up(padded(16), noise=0.5, rounds=5))
    assert calm.certain and calm.multiple == 16 and calm.spread < 0.03
    assert not wild.certain and wild.spread > 0.5


@settings(deadline=None, max_examples=20)
@given(st.lists(st.floats(0.2, 20), min_size=5, max_size=5))
def test_the_speed_of_a_whole_round_does_not_count(factors):
    rounds = [[t * f for t in row] for row, f in zip(RECORDED_ONNX, factors, strict=True)]
    expected, found = decide(SETTING, RECORDED_ONNX), decide(SETTING, rounds)
    assert found.multiple == expected.multiple
    assert [c.relative for c in found.costs] == pytest.approx([c.relative for c in expected.costs])


@pytest.mark.parametrize("centre", [48, 80, 112, 240])
def test_the_widths_favour_no_multiple(centre):
    widths = Setting(centre).widths
    by_class = {m: [w for w in widths if class_of(w) == m] for m in MULTIPLES}
    assert [len(by_class[m]) for m in MULTIPLES] == [2, 2, 2, 2, 1, 2]
    for multiple, members in by_class.items():
        assert np.mean(members) == centre
        for tile in (16, 32):
            padding = np.mean([-w % tile for w in members])
            assert padding == (0 if multiple >= tile else tile / 2)


def test_the_centre_follows_the_model():
    assert [centre_for(w) for w in (3, 16, 48, 63, 65, 111, 500)] == [48, 48, 48, 48, 80, 112, 240]


@pytest.mark.parametrize(
    "rounds", [[], [[1.0] * 11], [[1.0] * 10] * 3, [[1.0] * 10 + [0.0]] * 3, [[1.0] * 10 + [float("nan")]] * 3]
)
def test_what_are_no_latencies_is_refused(rounds):
    with pytest.raises(ValueError, match="latenc"):
        decide(SETTING, rounds)


@pytest.mark.parametrize(
    "wrong", [{"centre": 32}, {"centre": 50}, {"sizes": ()}, {"sizes": (8, 16)}, {"sizes": (8, 8)}]
)
def test_a_setting_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match=r"centre|sizes"):
        Setting(**wrong)
