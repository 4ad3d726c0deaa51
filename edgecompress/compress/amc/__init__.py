"""AMC: an agent learns which fraction of each group of channels (or of each layer's weights) to keep under a budget.

What it does: a DDPG agent walks through the network group by group and says what fraction to keep; a walk that knows the cost of
every network holds it to the budget. Each policy's network is made, the layers behind the cut are fitted anew by least squares,
and its accuracy on validation images, without any training, is the reward of the whole walk. Uniform, random, greedy and
evolutionary searches get as many evaluations under the same budget, and are recorded beside it.
Costs: the evaluations: `episodes` for the agent and as many for each baseline, each one pass over `images` validation images;
a table of layers on the device for a budget in latency or energy (minutes, kept); the fine-tuning its epochs.
Needs: data with a validation part (none for a given policy); a device for latency, one with a sensor for energy.
Gains: MACs, parameters, bytes, latency and energy (channels); the compressed size of a file (weights).
Paper: He et al. 2018, "AMC: AutoML for Model Compression and Acceleration on Mobile Devices" (ECCV, arXiv:1802.03494); the
agent: Lillicrap et al. 2016 (arXiv:1509.02971); the least squares: He et al. 2017 (arXiv:1707.06168).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from edgecompress import patterns
from edgecompress.compress.contract import Context, FineTune, Resource, share_or
from edgecompress.study import ExistingPath, StudyPath

if TYPE_CHECKING:
    from torch import nn

Share = Annotated[float, Field(gt=0, lt=1)]
Reward = Literal["error", "accuracy", "error-log-macs", "error-log-params"]
Baseline = Literal["uniform", "random", "greedy", "evolutionary"]

ON_DEVICE: tuple[Resource, ...] = ("latency", "energy")
BUDGETS = ("macs", "params", "bytes", *ON_DEVICE)

FITTING_IMAGES = 500
"""Training images that the weights are fitted on, unless given. (The authors' code: 3,000.)"""


@dataclass(frozen=True)
class Params:
    """Parameters of AMC.

    macs, params, bytes, latency, energy: the budget: the fraction left of the network that comes into the step, in (0, 1); one
        of them, which no policy exceeds. latency may be in milliseconds, "12.5 ms", energy in millijoules for one inference,
        "3.2 mJ"; both at batch 1, measured on `device` in `format`; channels only. bytes: of the network's state in memory; with
        granularity weights, of its layers as sparse values and gaps. Default: macs 0.5; with a reward that has a logarithm, none.
    reward: "error": −error; "accuracy"; "error-log-macs", "error-log-params": −error · ln of the MACs or parameters, which
        trade by themselves and need no budget. Of the validation images.
    unspent: what a walk leaves of the budget: "left" as the agent chose (the paper); "spread": given to all groups in
        proportion, for the agent and all baselines that walk.
    granularity: "channels": a group of channels that hang together is one action; "weights": one layer's single weights.
    episodes: policies that the agent evaluates. warmup: of them, those with even random actions before it learns.
    patience: end when so many evaluations in a row brought nothing better (after twice the warm-up); None: never.
    baselines: searches that get as many evaluations as the agent had: "uniform" (which under a budget has one policy only),
        "random", "greedy" (by sensitivity), "evolutionary".
    choose: whose policy is applied and saved: "amc": the agent's; "best": that of whichever search found the best one.
    images: of the validation part that a policy is scored on, at most; and training images that importance taylor looks at.
    fit: training images that the layers behind removed channels are fitted on by least squares; 0: they are not; channels
        only, default 500.
    lower: fraction of every group that is kept at least, to the nearest whole unit, in (0, 1].
    multiple: numbers of channels are multiples of it (or all); "auto": of what the engine of `device` likes; channels only.
    which: "inner": channels inside blocks; "stream": those of residual streams; "all"; channels only.
    importance: which of a group's channels go first: "readers" (Σ|w| of what reads them, as in the paper), "l1", "l2", "lap",
        "bn_scale", "taylor" as in `channels`; channels only. (Weights: the smallest.)
    exclude: layers that stay whole, by name, with `*` and `?`.
    device, format: what latency, energy and multiple: auto are measured on: a device of the study (default: its first one, or
        the --device of compress), and an export format.
    policy: a file with a policy: it is applied, and nothing is searched.
    save: a file that the found policy is written to, for `policy`.
    finetune: training after it; None: none. Its lr is 0.01 unless given.
    """

    macs: Share | None = None
    params: Share | None = None
    bytes: Share | None = None
    latency: Annotated[float | str | None, share_or("ms", "12.5 ms")] = None
    energy: Annotated[float | str | None, share_or("mJ", "3.2 mJ")] = None
    reward: Reward = "error"
    unspent: Literal["left", "spread"] = "left"
    granularity: Literal["channels", "weights"] = "channels"
    episodes: Annotated[int, Field(ge=1)] = 800
    warmup: Annotated[int, Field(ge=0)] = 100
    patience: Annotated[int, Field(ge=1)] | None = None
    baselines: tuple[Baseline, ...] = ("uniform", "random", "greedy", "evolutionary")
    choose: Literal["amc", "best"] = "amc"
    images: Annotated[int, Field(ge=1)] = 5000
    fit: Annotated[int, Field(ge=0)] | None = None
    lower: Annotated[float, Field(gt=0, le=1)] = 0.2
    multiple: Annotated[int, Field(ge=1)] | Literal["auto"] = 8
    which: Literal["inner", "stream", "all"] = "all"
    importance: Literal["readers", "l1", "l2", "lap", "bn_scale", "taylor"] = "readers"
    exclude: patterns.LayerNames = ()
    device: str | None = None
    format: str = "onnx-fp32"
    policy: ExistingPath | None = None
    save: StudyPath | None = None
    finetune: FineTune = None

    def __post_init__(self) -> None:
        budgets = [name for name in BUDGETS if getattr(self, name) is not None]
        if len(budgets) > 1:
            raise ValueError(f"one budget at a time: {' and '.join(budgets)} are given")
        if (self.device is not None or self.format != "onnx-fp32") and not measures(self):
            raise ValueError(
                "device and format are what latency, energy and multiple: auto are measured on; none is asked for"
            )
        if self.policy is not None:
            self._check_beside_policy()
            return
        if not budgets and self.reward in ("error", "accuracy"):
            object.__setattr__(self, "macs", 0.5)
        if self.unspent == "spread" and self.budget is None:
            raise ValueError("unspent: there is no budget that could be left; leave it out, or give one")
        if self.choose == "best" and not self.baselines:
            raise ValueError("choose: best is of all searches, and baselines leaves none but the agent's")
        if self.warmup >= self.episodes:
            raise ValueError(f"warmup ({self.warmup}) must be below episodes ({self.episodes})")
        if len(set(self.baselines)) < len(self.baselines):
            raise ValueError("baselines: each once")
        if self.granularity == "weights":
            _check_weights(self)

    def _check_beside_policy(self) -> None:
        """ValueError: what would have no effect beside a given policy."""
        used = ["granularity", "fit", "which", "importance", "exclude", "policy", "finetune"]
        used += ["images"] if self.importance == "taylor" else []
        others = [f for f in dataclasses.fields(self) if f.name not in used and getattr(self, f.name) != f.default]
        if others:
            names = ", ".join(f.name for f in others)
            raise ValueError(f"a policy says itself what is kept, and nothing is searched: leave {names} out")

    @property
    def budget(self) -> str | None:
        """Which the request is, of BUDGETS; None: there is none."""
        return next((n for n in BUDGETS if getattr(self, n) is not None), None)

    @property
    def fitting_images(self) -> int:
        """Images for the least squares; 0: they are left out."""
        if self.granularity == "weights":
            return 0
        return FITTING_IMAGES if self.fit is None else self.fit


def measures(params: Params) -> set[Resource]:
    """What a step with these parameters asks a device for."""
    if params.policy is not None:
        return set()
    asked = {name for name in ON_DEVICE if getattr(params, name) is not None}
    return asked | {"latency"} if params.multiple == "auto" else asked


def _check_weights(params: Params) -> None:
    if params.budget in ON_DEVICE:
        raise ValueError(
            f"{params.budget}: no engine here skips single zeros; with granularity weights ask for macs, params or bytes"
        )
    usual = {"multiple": 8, "which": "all", "importance": "readers", "fit": None}
    given = [name for name, value in usual.items() if getattr(params, name) != value]
    if given:
        raise ValueError(f"{' and '.join(given)}: for channels only; with granularity weights leave it out")


def check_files(params: Params) -> None:
    """UserError: a policy that cannot be read, a file that cannot be written."""
    from edgecompress.compress.amc import applying

    applying.check_files(params)


def restore_files(params: Params, notes: dict[str, Any], say: Callable[[str], None]) -> None:
    """The policy of a finished search, where its file is gone."""
    from edgecompress.compress.amc import policy

    if params.save is not None and not params.save.exists():
        policy.restore(params.save, params.granularity, notes["policy"], say)


def check(model: nn.Module, params: Params, context: Context) -> None:
    """UserError: a network without a group that can be cut, a budget of MACs, parameters or bytes below what the lower bounds
    allow, a policy that does not fit, a file that cannot be written."""
    from edgecompress.compress.amc import applying

    applying.check(model, params, context)


def apply(model: nn.Module, params: Params, context: Context) -> nn.Module:
    """The model itself, pruned in place by the agent's best policy (or the given one) and fine-tuned.

    UserError, before the search: a budget that the lower bounds do not allow, a network without a group that can be cut, no
    validation images, a policy that does not fit. An interrupted search goes on from `context.scratch`.
    """
    from edgecompress.compress.amc import applying

    if params.policy is None:
        applying.search(model, params, context)
    else:
        applying.from_file(model, params, context)
    if params.finetune is not None:
        context.train(model, params.finetune, method="amc")
    return model
