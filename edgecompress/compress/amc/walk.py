"""The resource-constrained action walk of AMC (He et al. 2018, algorithm 1): an agent may ask for anything, and gets what a budget
allows.

The keep ratio k_t of one group is decided after the other; those that are not decided yet count at their least. A cost that is
linear in each single ratio (MACs, parameters, bytes: F·k_in·k_out of a layer) tells the most that k_t may be in closed form.
Pure, without torch: ratios and costs are floats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

Used = Callable[[Sequence[float]], float]
"""Keep ratios of all groups, in order, each in [0, 1] → what a network with them costs."""

_HALVINGS = 40


def chain(work: Sequence[float], buffers: Sequence[float] | None = None) -> Used:
    """The cost of a plain chain of layers, as the paper's code has it: Σ F_i·k_i·k_{i+1} + B_i·k_i, with k of the output 1.

    work: F_i, of layer i when it is whole; buffers: B_i, of the depth-wise layers right before it (default: none). The
    ratios are those of the layers' input channels; that of layer 0, the image's, has to be given as 1. ValueError when the two
    are not as many as each other.
    """
    before = [0.0] * len(work) if buffers is None else list(buffers)
    if len(before) != len(work):
        raise ValueError(f"{len(work)} layers and {len(before)} buffers")

    def used(keep: Sequence[float]) -> float:
        out = [*keep[1:], 1.0]
        return sum(f * k * n + b * k for f, b, k, n in zip(work, before, keep, out, strict=True))

    return used


def constrained(
    action: float, t: int, keep: Sequence[float], used: Used, budget: float, *, linear: bool = True
) -> float:
    """The keep ratio of group t: the action, unless what is left of the budget allows less; never below keep[t], its least.

    keep: the ratios of all groups: decided before t, at their least from t on. budget: in the unit of `used`; inf: none.
    linear: whether `used` is linear in keep[t]; otherwise it need only grow with it, and the most is found by halving.

    a_t = max(min(clip(a, 0, 1), (budget - other) / this), k_t), with `other` the cost without the group and `this` what it adds
    when it is whole. That a budget is left unspent is the agent's own choice.
    """
    most = min(max(action, 0.0), 1.0)
    if budget != float("inf"):
        most = min(most, _closed(t, keep, used, budget) if linear else _halved(t, keep, used, budget))
    return max(most, keep[t])


def _with(keep: Sequence[float], t: int, ratio: float) -> list[float]:
    return [*keep[:t], ratio, *keep[t + 1 :]]


def _closed(t: int, keep: Sequence[float], used: Used, budget: float) -> float:
    other = used(_with(keep, t, 0.0))
    this = used(_with(keep, t, 1.0)) - other
    return (budget - other) / this if this > 0 else 1.0


def _halved(t: int, keep: Sequence[float], used: Used, budget: float) -> float:
    low, high = keep[t], 1.0
    if used(_with(keep, t, high)) <= budget:
        return high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if used(_with(keep, t, middle)) <= budget:
            low = middle
        else:
            high = middle
    return low
