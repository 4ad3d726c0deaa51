"""What a search leaves in the record of its step: every evaluation of every search, and what was asked of a device."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from edgecompress.compress.amc import ON_DEVICE, policy

if TYPE_CHECKING:
    from edgecompress.compress.amc import Params
    from edgecompress.compress.amc.environment import Environment, Units
    from edgecompress.compress.amc.measuring import DeviceBudget
    from edgecompress.compress.amc.scoring import Scorer
    from edgecompress.compress.amc.search import Result, Search
    from edgecompress.compress.amc.spaces import Space
    from edgecompress.compress.contract import Context


def of_device(device: DeviceBudget, units: Units, params: Params, context: Context) -> None:
    """The table, what it was off by, and whether the applied policy's network was measured to keep to the budget."""
    found = device.notes(units)
    context.note("on_device", found)
    context.note("budget_met", found["met"])
    if not found["met"]:
        measured = "not measured" if found["measured"] is None else f"{found['measured']:.3f} of the whole network's"
        reason = f"{params.budget}: {device.share:.3f} was asked for; the policy's network is {measured}"
        context.note("budget_reason", reason)
        context.progress.say(f"amc: {reason}")


def of_search(
    found: Search,
    bests: dict[str, Result],
    space: Space,
    env: Environment,
    params: Params,
    context: Context,
    *,
    scorer: Scorer,
) -> None:
    """All that was tried: for each strategy the reward of every evaluation, and its best policy, which can be applied as well."""
    strategies: dict[str, Any] = {}
    # What a device measures is over the whole network's already.
    whole = 1.0 if params.budget in ON_DEVICE else env.used([1.0] * len(env.choices))
    for name in ("amc", *params.baselines):
        trail = found.trails[name]
        best = bests.get(name)
        strategies[name] = {
            "evaluations": len(trail.units),
            "different": len(set(trail.units)),
            "seconds": round(trail.seconds, 1),
            "rewards": [None if r is None else round(r, 6) for r in found.rewards(name)],
            "best": None if best is None else {
                "reward": best.reward, "top1": best.top1, "evaluation": best.evaluation,
                "budget_used": env.used(env.ratios(best.units)) / whole,
                "policy": policy.ratios(space, best.units),
            },
        }  # fmt: skip
    speed = found.scored / found.scoring_s if found.scoring_s else None
    took = found.scoring_s - found.scoring_s_before
    context.note(
        "search",
        {
            "reward": params.reward,
            "granularity": params.granularity,
            "budget": params.budget,
            "share": None if params.budget is None else getattr(params, params.budget),
            "scored_on": f"{scorer.images} images of val",
            "policies_per_second": speed,
            "pass_share": scorer.pass_s / took if took > 0 else None,
            "policies_scored": found.scored,
            "scoring_seconds": round(found.scoring_s, 1),
            "resumed_at": found.resumed_at,
            "strategies": strategies,
        },
    )
    rewards = {n: s["best"]["reward"] for n, s in strategies.items() if s["best"] is not None}
    agents = rewards.get("amc", -math.inf)
    better = [n for n, value in rewards.items() if n != "amc" and value > agents]
    if better:
        said = ", ".join(f"{n} {rewards[n]:.4g}" for n in better)
        context.note("better_than_amc", better)
        context.progress.say(
            f"amc: a better policy was found by {said} (the agent's: {agents:.4g}); "
            + (
                f"that of {context.notes['applied']} is applied"
                if params.choose == "best"
                else "choose: best applies it"
            )
        )
