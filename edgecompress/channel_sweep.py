"""Which multiple of channels an engine likes on a device: which networks are measured, and the decision from their latencies.

An engine works through channels in blocks (ONNX Runtime's NCHWc layout in 8 or 16, XNNPACK's tiles in 8 or 16): a width that
is no multiple of the block pads to it, or falls back to slower kernels. Where the steps are is a property of engine and CPU.
Nothing here measures or does I/O: the same latencies give the same decision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MULTIPLES = (1, 2, 4, 8, 16, 32)

TOLERANCE = 0.05
"""Of the multiples within this of the best latency per multiply-accumulate the smallest is taken: it leaves the most choice
of which channels to keep. 5 %, as the target for pruned networks is 0.95 of the speed that their MACs promise."""

LEAST_ROUNDS, MOST_ROUNDS = 3, 7
AGREEMENT = 0.9
"""The decision stands when this fraction of resampled rounds come to it; until then more rounds are measured."""

_OFFSETS = (-16, -8, -7, -6, -4, 0, 4, 6, 7, 8, 16)
_RESAMPLES = 400
_LARGEST_CENTRE = 240


@dataclass(frozen=True)
class Setting:
    """The networks of a sweep: at each spatial size (height = width, large to small) blocks of a 3×3 and a 1×1 convolution.

    centre: the width that the others lie around, an odd multiple of 16, 48 or more.
    """

    centre: int = 48
    sizes: tuple[int, ...] = (32, 16, 8)

    def __post_init__(self) -> None:
        if self.centre < 48 or self.centre % 32 != 16:
            raise ValueError(f"centre {self.centre} is not 48, 80, 112, …")
        if not self.sizes or min(self.sizes) < 1 or list(self.sizes) != sorted(set(self.sizes), reverse=True):
            raise ValueError(f"sizes {self.sizes} are not different, positive and from large to small")

    @property
    def widths(self) -> tuple[int, ...]:
        """Of each multiple two widths on either side of the centre, so that neither width nor padding favours one of them.

        (16 itself has the centre alone.) On average each but the largest is as far from the next multiple of 16, and of 32.
        """
        return tuple(self.centre + offset for offset in _OFFSETS)

    def blocks(self) -> tuple[tuple[int, int], ...]:
        """(spatial size, blocks there): twice as many at each smaller size, as deep networks have it, at most 4."""
        return tuple((size, min(2**i, 4)) for i, size in enumerate(self.sizes))

    def macs(self, width: int) -> int:
        """Multiply-accumulates of the network of this width, its first convolution from 3 channels included."""
        pixels = sum(size * size * count for size, count in self.blocks())
        return width * width * 10 * pixels + 3 * width * 9 * self.sizes[0] ** 2


def centre_for(width: float) -> int:
    """The centre of the sweep for a network whose typical width is this: the nearest odd multiple of 16 from 48 to 240."""
    nearest = 32 * round((width - 16) / 32) + 16
    return int(min(max(nearest, 48), _LARGEST_CENTRE))


@dataclass(frozen=True)
class Cost:
    """What rounding to a multiple costs: latency per multiply-accumulate over that of the best one, and its 95 % interval."""

    multiple: int
    relative: float
    low: float
    high: float


@dataclass(frozen=True)
class Decision:
    """multiple: the smallest within TOLERANCE of the best. agreement: fraction of resampled rounds that come to the same.

    relative: width → latency per multiply-accumulate over the least of all widths. spread: median over the widths of how
    far the rounds lie apart, relative, after each round's own level is taken out.
    """

    multiple: int
    agreement: float
    costs: tuple[Cost, ...]
    relative: dict[int, float]
    spread: float

    @property
    def certain(self) -> bool:
        return self.agreement >= AGREEMENT


def decide(setting: Setting, rounds: Sequence[Sequence[float]]) -> Decision:
    """The multiple from the latencies of `setting.widths` (in their order, any unit) in two or more rounds.

    Each round's mean is taken out first (a device that slows down slows all of them), then the median over the rounds is
    taken. With y the logarithm of the latency per multiply-accumulate, y = a + b·log(width) + g(class) is fitted by least
    squares; the class of a width is the largest multiple that divides it. A multiple costs the mean of exp(g) over the
    classes that its own multiples are of: half of the multiples of 8 are multiples of 16, and so on.

    ValueError for latencies that are not positive numbers, or another count of them.
    """
    table = np.asarray(rounds, dtype=np.float64)
    if table.ndim != 2 or table.shape[1] != len(setting.widths) or len(table) < 2:
        raise ValueError(f"latencies of shape {table.shape} for {len(setting.widths)} widths and two or more rounds")
    if not (np.isfinite(table).all() and (table > 0).all()):
        raise ValueError("a latency is not a positive number")
    logs = np.log(table / [setting.macs(width) for width in setting.widths])
    logs -= logs.mean(axis=1, keepdims=True)
    generator = np.random.default_rng(0)
    drawn = generator.integers(len(logs), size=(_RESAMPLES, len(logs)))
    resampled = _costs(setting, np.median(logs[drawn], axis=1))
    costs = _costs(setting, np.median(logs, axis=0)[None])
    chosen = int(_chosen(costs)[0])
    low, high = np.quantile(resampled, [0.025, 0.975], axis=0)
    middle = np.exp(np.median(logs, axis=0))
    return Decision(
        multiple=chosen,
        agreement=float((_chosen(resampled) == chosen).mean()),
        costs=tuple(
            Cost(m, float(c), float(min(a, c)), float(max(b, c)))
            for m, c, a, b in zip(MULTIPLES, costs[0], low, high, strict=True)
        ),
        relative={width: float(v / middle.min()) for width, v in zip(setting.widths, middle, strict=True)},
        spread=float(np.median(np.ptp(logs, axis=0))),
    )


def class_of(width: int) -> int:
    """The largest of MULTIPLES that divides the width."""
    return max(m for m in MULTIPLES if width % m == 0)


def _costs(setting: Setting, logs: np.ndarray) -> np.ndarray:
    """(tables, widths) logarithms → (tables, MULTIPLES): latency per multiply-accumulate over that of the best multiple."""
    classes = [class_of(width) for width in setting.widths]
    columns = [np.ones(len(classes)), np.log(setting.widths)]
    columns += [np.array([float(c == m) for c in classes]) for m in MULTIPLES[:-1]]
    solution = np.linalg.lstsq(np.stack(columns, axis=1), logs.T, rcond=None)[0]
    per_class = np.exp(np.vstack([solution[2:], np.zeros(len(logs))]))
    costs = np.stack([_shares(len(MULTIPLES) - first) @ per_class[first:] for first in range(len(MULTIPLES))], axis=1)
    relative: np.ndarray = costs / costs.min(axis=1, keepdims=True)
    return relative


def _shares(classes: int) -> np.ndarray:
    """Of the multiples of a number those in each class from its own upwards: a half, a quarter, …, and what is left."""
    shares: np.ndarray = 0.5 ** np.arange(1, classes + 1)
    shares[-1] = 1 - shares[:-1].sum()
    return shares


def _chosen(costs: np.ndarray) -> np.ndarray:
    """(tables, MULTIPLES) → (tables,): the smallest multiple within the tolerance of the best."""
    chosen: np.ndarray = np.asarray(MULTIPLES)[(costs <= 1 + TOLERANCE).argmax(axis=1)]
    return chosen
