"""ResNet-56 at half the MACs: our channels against Torch-Pruning's plain group magnitude, the same fine-tuning for both.

A stopped study goes on with the same command. `python studies/channels_resnet56.py --help`.
"""

from __future__ import annotations

import copy
import functools
import sys
from importlib import metadata
from typing import Any

from cifar_resnet56 import IN_SHAPE, Training, compared, parser_of, top1, trainings, write

from edgecompress.errors import StepFailed

PEER = "torch-pruning"
OURS: dict[str, dict[str, Any]] = {
    "l1": {"importance": "l1"},
    "l2": {"importance": "l2"},
    "l1-fold": {"importance": "l1", "fold": True},
    "l2-fold": {"importance": "l2", "fold": True},
    "lap": {"importance": "lap"},
    "taylor": {"importance": "taylor"},
    "bn_scale": {"importance": "bn_scale"},
    "l2-all": {"importance": "l2", "which": "all"},
    "lap-all": {"importance": "lap", "which": "all"},
}
"""Name → parameters of the method, beside the budget and the multiple that all share."""


def main() -> int:
    parser = parser_of("channels_resnet56", __doc__)
    parser.add_argument(
        "--ways", nargs="+", default=[PEER, "l1", "lap", "taylor"], choices=[PEER, *OURS], metavar="WAY"
    )
    parser.add_argument("--macs", type=float, default=0.5, help="fraction of the multiply-accumulates that is left")
    parser.add_argument("--multiple", type=int, default=8, help="of the widths, for all")
    given = parser.parse_args()
    settings = {"macs": given.macs, "multiple": given.multiple}
    ways = {
        way: functools.partial(plain_group_magnitude, **settings)
        if way == PEER
        else functools.partial(ours, wanted={**settings, **OURS[way]})
        for way in given.ways
    }
    done = trainings(ways, given, settings)
    if done is None:
        return 2
    write(given.out, *done, table(done[1]))
    return 0


def ours(model: Any, context: Any, *, wanted: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    from edgecompress.compress import channels
    from edgecompress.compress.contract import parse_params

    return channels.apply(model, parse_params("channels", wanted), context), dict(context.notes)


def plain_group_magnitude(model: Any, context: Any, *, macs: float, multiple: int) -> tuple[Any, dict[str, Any]]:
    """The model cut by Torch-Pruning's GroupMagnitudeImportance, global, at the ratio that comes nearest to the MACs.

    By itself Torch-Pruning takes the padding of the option A shortcut for an element-wise operation and leaves a network that
    does not run; the shortcut is told to it as a layer with two sides, which is the one thing that is added to the peer.
    """
    import torch
    import torch_pruning

    from edgecompress import cost
    from edgecompress.models.resnet import Shortcut

    class BothSides(torch_pruning.pruner.function.BasePruningFunc):
        def prune_out_channels(self, layer: Any, idxs: Any) -> Any:
            kept = [k for k in range(layer.out_channels) if k not in set(idxs)]
            layer.narrow(None, torch.tensor(kept), torch.device("cpu"))
            return layer

        def prune_in_channels(self, layer: Any, idxs: Any) -> Any:
            kept = [k for k in range(layer.in_channels) if k not in set(idxs)]
            layer.narrow(torch.tensor(kept), None, torch.device("cpu"))
            return layer

        def get_out_channels(self, layer: Any) -> int:
            return int(layer.out_channels)

        def get_in_channels(self, layer: Any) -> int:
            return int(layer.in_channels)

    whole = cost.count(model, IN_SHAPE).macs

    def at(ratio: float) -> tuple[Any, float]:
        cut = copy.deepcopy(model)
        pruner = torch_pruning.pruner.MagnitudePruner(
            cut, torch.zeros(1, *IN_SHAPE), importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
            global_pruning=True, pruning_ratio=ratio, round_to=multiple, ignored_layers=[cut.linear],
            customized_pruners={Shortcut: BothSides()},
        )  # fmt: skip
        pruner.step()
        return cut, cost.count(cut, IN_SHAPE).macs / whole

    low, high, tried = 0.0, 1.0, []
    for _ in range(12):
        ratio = (low + high) / 2
        cut, left = at(ratio)
        tried.append((abs(left / macs - 1), ratio, left, cut))
        if left > macs:
            low = ratio
        else:
            high = ratio
    miss, ratio, left, cut = min(tried, key=lambda t: t[0])
    if miss > 0.05:
        raise StepFailed(f"Torch-Pruning comes no nearer to {macs:g} of the MACs than {left:.3f}")
    return cut.eval(), {"pruning_ratio": ratio, "torch_pruning": metadata.version("torch-pruning")}


def table(found: list[Training]) -> str:
    """The trainings as Markdown, each beside the peer's of the same seed: difference, its interval, and McNemar's p (Holm)."""
    peers = {r["seed"]: r for r in found if r["way"] == PEER}
    others = [r for r in found if r["way"] != PEER and r["seed"] in peers]
    against = dict(zip(map(id, others), compared((peers[r["seed"]], r) for r in others), strict=True))
    lines = [
        "| way | seed | MACs left | parameters left | top-1 % dense → pruned → tuned | against the peer [95 %] | p (Holm) |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in found:
        cells = [r["way"], str(r["seed"]), f"{r['macs_left']:.3f}", f"{r['params_left']:.3f}", top1(r)]
        lines.append("| " + " | ".join([*cells, *against.get(id(r), ("", ""))]) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
