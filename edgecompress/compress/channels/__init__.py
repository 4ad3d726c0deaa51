"""Structured pruning: whole channels are cut out, so that the network is smaller and faster on every engine.

What it does: Torch-Pruning's dependency graph says which channels hang together (a channel, its batch norm, the weights that
read it, the same channel of every layer added to it). The least important of them are cut until a budget is met, of MACs,
of parameters or of the latency on a device, or by ratios layer by layer. Widths are rounded to a multiple that the engine
likes; which one that is can be measured.
Costs: seconds for the graph and the search; taylor a pass of gradients over its images; the fine-tuning costs its epochs;
a measured multiple about a minute of the device, once; a latency some 20 s for each of at most 9 candidates.
Needs: data for taylor and for fine-tuning; a device for a latency and a measured multiple; otherwise none.
Gains: MACs, parameters, the plain size of a file, and latency.
Papers: Fang et al. 2023, "DepGraph: Towards Any Structural Pruning" (arXiv:2301.12900); importance l1: Li et al. 2017
(arXiv:1608.08710); bn_scale: Liu et al. 2017 (arXiv:1708.06519); taylor: Molchanov et al. 2019 (arXiv:1906.10771);
lap: Park et al. 2020 (arXiv:2002.04809).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from edgecompress import patterns
from edgecompress.compress.contract import Context, FineTune, Resource, share_or
from edgecompress.study import TrainSpec

if TYPE_CHECKING:
    from torch import nn


Share = Annotated[float, Field(gt=0, lt=1)]
Ratio = Annotated[float, Field(gt=0, le=1)]

BUDGETS = ("macs", "params", "latency", "ratios")


@dataclass(frozen=True)
class Params:
    """Parameters of channel pruning.

    macs, params: the budget, as the fraction that is left of the network that comes into the step, in (0, 1); one of them,
        or latency, or ratios. macs: 0.5 is half of its multiply-accumulates. Default: macs 0.5.
    latency: the budget on a device: as the fraction that is left, in (0, 1), or as a median in milliseconds, "12.5 ms". At
        batch 1; measured on `device` in `format`, fine-tuning or not: weights do not change it.
    ratios: instead of a budget, layer → fraction of its output channels that are kept, in (0, 1]; names may hold `*` and
        `?`; of several that match a layer, the one that spells out most of its name. Layers that match none stay.
    importance: "l2", "l1" (norms of the weights), "lap" (their lookahead scores: what both neighbours make of them),
        "bn_scale" (of batch norm's scales), "taylor" (what the loss would change by, estimated from gradients).
    reduce: of the importances of the layers that are coupled in a channel: "mean" or "sum". (taylor is one value for all
        of them: there is nothing to choose.)
    fold: for l1 and l2: batch norms are folded into the layers before them, as in an exported file, before the norms are taken.
    scope: "global" cuts the least important channels wherever they are; "layer" the same fraction everywhere.
    which: "inner": channels inside the blocks, which one layer writes; "stream": those of residual streams, which several
        layers add into; "all": both.
    multiple: widths are rounded to multiples of it; "auto": to what the engine of `device` likes, measured there.
    min_keep: the least fraction of its channels that every group keeps, in (0, 1].
    exclude: layers whose output channels all stay, by name, with `*` and `?`.
    device, format: what latency and multiple: auto are measured on: a device of the study (default: its first one, or the
        --device of compress), and an export format.
    images: training images that taylor looks at.
    steps: prunings, each followed by its share of the fine-tuning's epochs; each takes an equal part of what goes.
    finetune: training after the pruning; None: none. Its lr is 0.01 unless given.
    """

    macs: Share | None = None
    params: Share | None = None
    latency: Annotated[float | str | None, share_or("ms", "12.5 ms")] = None
    ratios: dict[str, Ratio] | None = None
    importance: Literal["l1", "l2", "lap", "bn_scale", "taylor"] = "l2"
    reduce: Literal["mean", "sum"] = "mean"
    fold: bool = False
    scope: Literal["global", "layer"] = "global"
    which: Literal["inner", "stream", "all"] = "inner"
    multiple: Annotated[int, Field(ge=1)] | Literal["auto"] = 8
    min_keep: Ratio = 0.1
    exclude: patterns.LayerNames = ()
    device: str | None = None
    format: str = "onnx-fp32"
    images: Annotated[int, Field(ge=1)] = 1024
    steps: Annotated[int, Field(ge=1)] = 1
    finetune: FineTune = None

    def __post_init__(self) -> None:
        budgets = [name for name in BUDGETS if getattr(self, name) is not None]
        if not budgets:
            object.__setattr__(self, "macs", 0.5)
        if len(budgets) > 1:
            raise ValueError(f"one budget at a time: {' and '.join(budgets)} are given")
        if self.ratios == {}:
            raise ValueError("ratios: name at least one layer")
        if self.fold and self.importance not in ("l1", "l2"):
            raise ValueError(f"fold is for the norms l1 and l2, not for {self.importance}")
        if self.importance == "taylor" and self.reduce != "mean":
            raise ValueError("reduce is for l1, l2 and bn_scale; taylor is one value for all coupled layers")
        if (self.device is not None or self.format != "onnx-fp32") and not measures(self):
            raise ValueError(
                "device and format are what latency and multiple: auto are measured on; neither is asked for"
            )
        if self.steps > 1:
            _check_steps(self)

    @property
    def budget(self) -> str:
        """Which the request is, of BUDGETS."""
        return next(n for n in BUDGETS if getattr(self, n) is not None)


def measures(params: Params) -> set[Resource]:
    """What a step with these parameters asks a device for."""
    return {"latency"} if params.latency is not None or params.multiple == "auto" else set()


def _check_steps(params: Params) -> None:
    if params.ratios is not None:
        raise ValueError("steps above 1 go towards a budget: give macs, params or latency, not ratios")
    if params.finetune is None:
        raise ValueError("steps above 1 prune between fine-tunings: give finetune, or steps: 1")
    if params.finetune.epochs < params.steps:
        raise ValueError(f"steps ({params.steps}) must not exceed the epochs of finetune ({params.finetune.epochs})")
    if params.finetune.warmup_epochs >= params.finetune.epochs // params.steps:
        raise ValueError("the warmup_epochs of finetune must be below the epochs of one step")


def check(model: nn.Module, params: Params, context: Context) -> None:
    """UserError: a network that cannot be traced or has nothing to cut, a budget of MACs or parameters out of reach, a layer name
    that matches nothing. The model is cut."""
    from edgecompress.compress.channels.cutting import Cutter

    # Where a budget ends up is not known of a device, nor of several steps, each with what the one before left.
    unknown = params.latency is not None or params.steps > 1
    known = dataclasses.replace(
        params, steps=1, finetune=None, device=None, format="onnx-fp32", latency=None,
        macs=0.5 if params.latency is not None else params.macs,
        multiple=1 if params.multiple == "auto" else params.multiple,
        importance="l2" if params.importance == "taylor" else params.importance,
    )  # fmt: skip
    cutter = Cutter(model, known, context)
    if unknown:
        cutter.look()
    else:
        cutter.cut(1)


def apply(model: nn.Module, params: Params, context: Context) -> nn.Module:
    """The model itself, cut in place and fine-tuned.

    UserError: a network that cannot be traced or has nothing to cut, a budget out of reach (with the lowest that is not), a
    layer name that matches nothing, weights that are not finite.
    """
    from edgecompress.compress.channels.cutting import Cutter

    cutter = Cutter(model, params, context)
    for step in range(1, params.steps + 1):
        cutter.cut(step)
        if params.finetune is not None:
            context.train(model, _share(params.finetune, step, params.steps), method="channels")
    return model


def _share(spec: TrainSpec, step: int, steps: int) -> TrainSpec:
    """The training of one of several steps: equal epochs, what remains goes to the last."""
    epochs = spec.epochs // steps + (spec.epochs % steps if step == steps else 0)
    return spec.model_copy(update={"epochs": epochs})
