"""One step of a recipe from beginning to end: what may be cut, the search or a policy's file, the cut, and the record of it all."""

from __future__ import annotations

import dataclasses
import itertools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecompress import cost, resume
from edgecompress.compress.amc import ON_DEVICE, notes, policy, scoring, spaces
from edgecompress.compress.amc.environment import Environment, Units
from edgecompress.compress.amc.greedy import Greedy
from edgecompress.compress.amc.measuring import DeviceBudget
from edgecompress.compress.amc.search import Result, Search
from edgecompress.compress.amc.spaces import ChannelSpace, Space, WeightSpace
from edgecompress.compress.amc.strategies import Evolutionary, Learning, Random, Strategy, Uniform
from edgecompress.compress.channels import measuring
from edgecompress.errors import StepFailed, UserError
from edgecompress.rundir import write_atomically

if TYPE_CHECKING:
    from torch import nn

    from edgecompress.compress.amc import Params
    from edgecompress.compress.contract import Context

_FORMAT = 2


def check_files(params: Params) -> None:
    """UserError: a policy's file that cannot be read, or could not be written."""
    _check_writable(params)
    if params.policy is not None:
        policy.read(params.policy)


def check(model: nn.Module, params: Params, context: Context) -> None:
    """What `search` and `from_file` would refuse of a network like this one, found out without data and without a device."""
    _check_writable(params)
    params = dataclasses.replace(
        params, device=None, format="onnx-fp32", multiple=1 if params.multiple == "auto" else params.multiple,
        importance="readers" if params.importance == "taylor" else params.importance,
    )  # fmt: skip
    if params.policy is not None:
        _policy_of(params, model, context)
        return
    space = _space(model, params, context)
    _check_choices(space, params)
    if context.reweighted and params.granularity == "weights":
        return  # how many weights there will be is not known
    if params.budget in ("macs", "params", "bytes"):
        spaces.out_of_reach(space, params.budget, getattr(params, params.budget), params)


def search(model: nn.Module, params: Params, context: Context) -> None:
    """Search, and make the model what the agent's best policy says."""
    data = context.need_data("amc")
    _check_writable(params)
    scorer = scoring.Scorer(data, params.images, context.seed)
    space = _space(model, params, context)
    _check_choices(space, params)
    device = DeviceBudget(space, params, context) if params.budget in ON_DEVICE else None
    identity = None if device is None else device.identity
    env = _environment(space, params, device)
    _learn(space, params, context)

    def reward(units: Units, top1: float) -> float:
        keep = env.ratios(units)
        return scoring.reward(params.reward, top1, space.costs["macs"](keep), space.costs["params"](keep))

    choices = [[c.name, c.size, c.step, c.lowest] for c in space.choices]  # what "auto" came to is in it
    key = resume.state_key(model, data, [_FORMAT, _decisive(params), choices, context.seed, data.record(), identity])
    found = Search(
        env,
        lambda units: scorer.top1(space.candidate(units)),
        reward,
        folder=context.scratch / "search" if context.shared is None else context.shared / f"amc-{key[:16]}",
        key=key,
        progress=context.progress,
        watcher=device,
    )
    if device is not None:
        env.budget = device.share  # as it was when the search began, where this goes on from one
        device.probe(env, found.save)
    found.run(_learning(env, params, context), params.episodes, patience=params.patience, least=2 * params.warmup)
    spent = len(found.trails["amc"].units)
    for name in params.baselines:
        found.run(_baseline(name, env, spent, context.seed), spent)
    searches: tuple[str, ...] = ("amc", *params.baselines)
    if device is not None:
        for search in searches:  # what the later ones measured may have moved what is best of the earlier
            if (result := _best(found, search, device)) is None or not device.knows(result.units):
                found.settle(search)
        found.save()
    best = {name: result for name in searches if (result := _best(found, name, device)) is not None}
    if "amc" not in best and (params.choose == "amc" or not best):
        raise StepFailed(
            "amc: no policy that was tried keeps to the budget"
            + (
                ""
                if device is None
                else ", as measured; choose: best, more episodes or a multiple that the engine likes may help"
            )
        )
    known = {n: r for n, r in best.items() if device is None or device.knows(r.units)} or best
    chosen = "amc" if params.choose == "amc" else max(known, key=lambda n: known[n].reward)
    units = best[chosen].units
    _finish(model, space, units, params, context)
    context.note("applied", chosen)
    notes.of_search(found, best, space, env, params, context, scorer=scorer)
    if device is not None:
        notes.of_device(device, units, params, context)
    if params.save is not None:
        _save(params.save, policy.text(params.granularity, policy.ratios(space, units)), context)


def from_file(model: nn.Module, params: Params, context: Context) -> None:
    """Make the model what a policy's file says. UserError: the file does not fit the network or the step."""
    wanted, space, units = _policy_of(params, model, context)
    if context.data is not None:
        _learn(space, wanted, context)
    _finish(model, space, units, wanted, context)


def _policy_of(params: Params, model: nn.Module, context: Context) -> tuple[Params, Any, Units]:
    """The parameters as the policy's file has them, what it is about, and its units."""
    assert params.policy is not None
    given, where = policy.read(params.policy), str(params.policy)
    if params.granularity == "weights" != given.granularity:
        raise UserError(f"the policy is one of {given.granularity}, and granularity weights is asked for", where=where)
    ignored = [n for n in ("which", "importance", "fit") if getattr(params, n) != getattr(type(params), n)]
    if given.granularity == "weights" and ignored:
        raise UserError(
            f"{' and '.join(ignored)}: for channels only, and the policy is one of weights",
            where=where,
            fix="Leave it out.",
        )
    wanted = dataclasses.replace(params, granularity=given.granularity)
    space = _space(model, wanted, context)
    units = policy.units_of(given, space, where=where)
    unnamed = policy.unnamed(given, space)
    if unnamed:
        what = "groups" if given.granularity == "channels" else "layers"
        context.note("not_named", unnamed)
        context.progress.say(
            f"amc: {where} names {len(units) - len(unnamed)} of {len(units)} {what}; {', '.join(unnamed)} stay whole"
        )
    return wanted, space, units


def _best(found: Search, name: str, device: DeviceBudget | None) -> Result | None:
    """A search's best policy; of those under a budget on a device one that was measured, where there is one."""
    best = found.best(name)
    if device is not None and best is not None and not device.knows(best.units):
        return found.best(name, among=device.knows) or best
    return best


def _save(file: Path, text: str, context: Context) -> None:
    """Write the policy. What was in the file before is kept beside it, where it is something else."""
    if file.exists() and not (os.access(file, os.R_OK) and file.read_text(encoding="utf-8", errors="replace") == text):
        before = next(f for n in itertools.count(1) if not (f := file.with_name(f"{file.name}~{n}")).exists())
        file.replace(before)
        context.progress.say(f"amc: {file} is written anew; what was in it is now {before}")
    write_atomically(file, text)


def _decisive(params: Params) -> dict[str, Any]:
    """The parameters that decide what a search finds (not which others there are, where it is written, nor what comes after)."""
    return {
        k: v
        for k, v in dataclasses.asdict(params).items()
        if k not in ("finetune", "save", "policy", "baselines", "choose")
    }


def _check_writable(params: Params) -> None:
    """UserError when the policy could not be written: before hours are spent on it."""
    if params.save is None:
        return
    folder = params.save.parent
    if params.save.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(
            "the policy cannot be written there",
            where=f"save: {params.save}",
            fix="Name a file in a folder that exists.",
        )


def _space(model: nn.Module, params: Params, context: Context) -> Any:
    if params.granularity == "weights":
        return WeightSpace(model, params, context)
    multiple = (
        1
        if params.policy is not None
        else measuring.multiple_for(model, context.input_shape(model, "amc"), params, context)
    )
    return ChannelSpace(model, params, context, multiple)


def _check_choices(space: Space, params: Params) -> None:
    """UserError: there is nothing to choose."""
    if all(choice.levels == 1 for choice in space.choices):
        raise UserError(
            f"every group is at its least already, with widths in multiples of {space.choices[0].step} and at least "
            f"{params.lower:g} of each kept",
            fix="Ask for a smaller multiple or a smaller lower.",
        )


def _environment(space: Space, params: Params, device: DeviceBudget | None = None) -> Environment:
    """UserError: a budget out of reach."""
    key, macs, spread = params.budget, space.costs["macs"], params.unspent == "spread"
    if device is not None:
        return Environment(space.choices, macs=macs, used=device.cost, budget=device.share, linear=False, spread=spread)
    if key is None:
        return Environment(space.choices, macs=macs, used=macs, budget=float("inf"))
    share: float = getattr(params, key)
    spaces.out_of_reach(space, key, share, params)
    used = space.costs[key]
    whole = used([1.0] * len(space.choices))
    return Environment(
        space.choices, macs=macs, used=used, budget=share * whole, linear=space.linear[key], spread=spread
    )


def _learn(space: Any, params: Params, context: Context) -> None:
    count = params.fitting_images
    if count:
        space.learn(scoring.training_images(context.need_data("amc"), count, context.seed), context.seed)


def _learning(env: Environment, params: Params, context: Context) -> Learning:
    return Learning(env, warmup=params.warmup, seed=context.seed)


def _baseline(name: str, env: Environment, evaluations: int, seed: int) -> Strategy:
    if name == "uniform":
        return Uniform(env, evaluations)
    if name == "random":
        return Random(env, seed)
    return Greedy(env, evaluations, seed) if name == "greedy" else Evolutionary(env, seed)


def _finish(model: nn.Module, space: Any, units: Units, params: Params, context: Context) -> None:
    """The cut, and what it left."""
    before = cost.count(model, space.in_shape), cost.weight_bytes(model)
    space.apply(model, units)
    after = cost.count(model, space.in_shape)
    note = context.note
    if params.granularity == "channels":
        note("macs_left", after.macs / before[0].macs)
        note("params_left", after.params / before[0].params)
        note("bytes_left", cost.weight_bytes(model) / before[1])
        per_unit = {g.name: g.per_unit for g in space.groups}
        kept = {
            c.name: [n * per_unit[c.name], c.size * per_unit[c.name]] for c, n in zip(space.choices, units, strict=True)
        }
        note("widths", kept)
        note("locked", {g.name: g.locked for g in space.all_groups if g.locked is not None})
        left_out = space.products.left_out if space.products is not None else space.readers()
        note("not_fitted", left_out)
    else:
        note("macs_left", after.effective_macs / before[0].effective_macs)
        note("params_left", after.nonzero_params / before[0].nonzero_params)
        note("kept_weights", {c.name: [n, c.size] for c, n in zip(space.choices, units, strict=True)})
    note("policy", policy.ratios(space, units))
