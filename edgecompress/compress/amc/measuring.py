"""A budget in latency or energy: the table of layers is measured, tried on whole networks, and put right during the search."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import numpy as np

from edgecompress.compress.amc.environment import Environment, Units
from edgecompress.compress.amc.layer_networks import NOTHING, nothing, shapes
from edgecompress.compress.amc.layer_table import TOLERANCE, DeviceCost, Grid, Seen, widths
from edgecompress.errors import StepFailed, UserError

if TYPE_CHECKING:
    from edgecompress.compress.amc import Params
    from edgecompress.compress.amc.search import Result, Trail
    from edgecompress.compress.amc.spaces import ChannelSpace
    from edgecompress.compress.contract import Context, Resource, Small

T = TypeVar("T")

RETRY_WAITS_S = (5.0, 30.0)
"""A device that failed is asked again after so long, and then the search pauses."""
PROBES = 3
"""Whole networks that are measured before the search, beside the least: the uniform policy and random ones."""
LOOK_EVERY = 50
"""The best policy is measured after so many evaluations, where it is another than before."""
SETTLE = 5
"""Policies that are measured at the end at most, until the best one is known to keep to the budget."""
_LEAST_PART = 0.02
"""Of a layer's measurement that is taken for the layer, however little it is above that of a network that does nothing."""


class DeviceBudget:
    """What the search is told of a device, and what it was asked: a `search.Watcher`."""

    def __init__(self, space: ChannelSpace, params: Params, context: Context) -> None:
        """The table is measured, or taken from what is kept. UserError: nothing to measure on, a budget that is none."""
        what: Resource = "latency" if params.latency is not None else "energy"
        self._what = what
        self._space, self._params, self._context = space, params, context
        self._bench = context.bench(params.device, params.format)
        self.identity = self._bench.identity()
        self.dense: float | None = None
        self.share = self._share(getattr(params, what))
        grids, self.table = self._measure_layers()
        sizes, least = tuple(c.size for c in space.choices), tuple(c.lowest for c in space.choices)
        self.cost = DeviceCost(grids, space.sides, sizes, self.share, least=least)
        self._looked_at = 0

    # --- before the search -----------------------------------------------------------------------------------------

    def _measure_layers(self) -> tuple[dict[str, Grid], dict[str, float]]:
        space = self._space
        multiple = max((c.step for c in space.choices), default=1)
        least = [c.lowest / c.size for c in space.choices]
        networks: dict[str, Small] = {NOTHING: nothing}
        plans = {}
        for layer, shape in shapes(space.model, space.in_shape).items():
            whole, low = space.sides([1.0] * len(least))(layer), space.sides(least)(layer)
            whole_in, whole_out = (round(w) for w in whole)
            step = math.lcm(multiple, whole_out // shape.groups) if shape.coupled else multiple
            outs = widths(whole_out, round(low[1]), step)
            ins = (1,) if shape.coupled else widths(whole_in, round(low[0]), step)
            names = []
            for into in ins:
                row = []
                for out in outs:
                    real = out * whole_in // whole_out if shape.coupled else into
                    narrow = shape.narrowed(out, whole_out)
                    row.append(narrow.name(real, out))
                    networks[row[-1]] = narrow.network(real, out)
                names.append(row)
            plans[layer] = (ins, outs, names)
        found = self._retried(lambda: self._bench.small(self._what, networks), "the table of layers")
        empty = found[NOTHING]

        def alone(name: str) -> float:
            return max(found[name] - empty, _LEAST_PART * found[name])

        grids = {
            layer: Grid(ins, outs, tuple(tuple(alone(name) for name in row) for row in names))
            for layer, (ins, outs, names) in plans.items()
        }
        return grids, found

    def _share(self, wanted: float | str) -> float:
        if not isinstance(wanted, str):
            return wanted
        unit = "ms" if self._what == "latency" else "mJ"
        self.dense = self._retried(self._of_dense, "the whole network")
        share = float(wanted.removesuffix(unit)) / self.dense
        if not 0 < share < 1:
            raise UserError(
                f"{self._what}: {wanted} was asked for; the network as it is takes {self.dense:.4g} {unit}",
                fix="Ask for less, or leave the step out.",
            )
        return share

    def _of_dense(self) -> float:
        if self._what == "energy":
            return self._bench.energy_mj(self._space.model, self._in_shape)
        with self._bench.against(self._space.model, self._in_shape) as against:
            return against.dense_ms()

    @property
    def _in_shape(self) -> Any:
        return self._space.in_shape

    def probe(self, env: Environment, keep: Callable[[], None]) -> None:
        """Try the table on a few whole networks, unless that was done. keep: called after each. UserError: the budget is out of
        reach."""
        lowest = env.lowest()
        new = self._add(lowest, 0)
        if not env.fits(lowest):
            self._refuse(self.cost(env.ratios(lowest)))
        if new:
            keep()
        if len(self.cost.seen) < 1 + PROBES:
            rng = np.random.default_rng([self._context.seed, 5])
            policies = {env.uniform(), *(env.walk(rng.random(len(env.choices)).tolist()) for _ in range(PROBES - 1))}
            for units in sorted(policies, reverse=True):
                if self._add(units, 0):
                    keep()
            errors = self.cost.errors()
            said = ", ".join(f"{100 * e:+.1f} %" for e in errors)
            self._context.progress.say(
                f"amc: {self._what} from the table of layers is off on {len(errors)} whole networks by {said}; "
                f"a network is taken to save {self.cost.slope:.3f} of what its layers save"
            )

    def _refuse(self, reached: float) -> NoReturn:
        raise UserError(
            f"{self._what}: {getattr(self._params, self._what)} is out of reach: the least that may be kept was measured, and "
            f"takes {reached:.3f} of the whole network's",
            fix="Ask for more, a smaller lower, a smaller multiple, which: all, or fewer layers in exclude.",
        )

    # --- while it searches -----------------------------------------------------------------------------------------

    def look(self, trail: Trail, best: Result | None) -> bool:
        """Measure the best policy now and then; whether it was."""
        if best is None or len(trail.units) - self._looked_at < LOOK_EVERY:
            return False
        measured = self._add(best.units, len(trail.units))
        self._looked_at = len(trail.units)
        return measured

    def settle(self, best: Callable[[], Result | None]) -> None:
        """Measure what is best until that is a policy which was measured, and keeps to the budget."""
        for _ in range(SETTLE):
            found = best()
            if found is None or not self._add(found.units, found.evaluation):
                return

    def knows(self, units: Units) -> bool:
        """Whether a policy's whole network was measured."""
        return any(s.units == units for s in self.cost.seen)

    def _add(self, units: Units, evaluation: int) -> bool:
        """Measure a policy's whole network unless that was done; whether it was measured now."""
        if self.knows(units):
            return False
        self.cost.add(units, self._retried(lambda: self._ratio(units), "a whole network"), evaluation)
        return True

    def _ratio(self, units: Units) -> float:
        candidate = self._space.candidate(units)
        if self._what == "latency":
            with self._bench.against(self._space.model, self._in_shape) as against:
                return against(candidate, self.share).ratio
        # Both in turn, the uncut one on either side: what the device drifts by cancels.
        before = self._bench.energy_mj(self._space.model, self._in_shape)
        cut = self._bench.energy_mj(candidate, self._in_shape)
        after = self._bench.energy_mj(self._space.model, self._in_shape)
        return 2 * cut / (before + after)

    def _retried(self, ask: Callable[[], T], about: str) -> T:
        """What the device answers; asked again where it fails. StepFailed: it failed too often; what is known is kept."""
        for wait_s in (*RETRY_WAITS_S, None):
            try:
                return ask()
            except StepFailed as error:
                if wait_s is None:
                    raise StepFailed(
                        f"amc is paused: the device failed {len(RETRY_WAITS_S) + 1} times over {about}; what was searched and "
                        f"measured is kept, and the same command goes on from there. The device: {error}"
                    ) from error
                self._context.progress.say(f"amc: {about}: {error}; tried again in {wait_s:g} s")
                time.sleep(wait_s)
        raise AssertionError

    # --- what is kept ----------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        seen = [[list(s.units), s.predicted, s.measured, s.evaluation] for s in self.cost.seen]
        return {"seen": seen, "looked_at": self._looked_at, "dense": self.dense, "share": self.share}

    def restore(self, state: dict[str, Any]) -> None:
        for units, _, measured, evaluation in state["seen"]:
            self.cost.add(units, measured, evaluation)
        self._looked_at, self.dense, self.share = state["looked_at"], state["dense"], state["share"]
        self.cost.budget = self.share

    def notes(self, units: Units) -> dict[str, Any]:
        """Plain JSON for the step's record. units: of the policy that was applied."""

        def plain(seen: Seen) -> dict[str, Any]:
            return {
                "evaluation": seen.evaluation, "predicted": seen.predicted, "measured": seen.measured,
                "error": seen.predicted / seen.measured - 1,
            }  # fmt: skip

        applied = next((s.measured for s in self.cost.seen if s.units == units), None)
        errors = [abs(e) for e in self.cost.errors()]
        return {
            "of": self._what,
            "unit": "ms" if self._what == "latency" else "mJ",
            "layers": dict(sorted(self.table.items())),
            "whole_networks": [plain(s) for s in self.cost.seen],
            "median_error": float(np.median(errors)) if errors else None,
            "slope": self.cost.slope,
            "share": self.share,
            "whole": self.dense,
            "measured": applied,
            "met": applied is not None and applied <= self.share * (1 + TOLERANCE),
            "identity": self.identity,
        }
