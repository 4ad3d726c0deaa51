"""ResNet-56 before any fine-tuning: what each factor of lookahead's score does to accuracy, and how many channels it empties.

Rules: magnitude; lookahead; lookahead without the batch norms' factors; and the layers as a plain chain in the order of their
definition with shortcuts left out, which is what the paper's code takes a ResNet for. No training; about two minutes of one core.
`python studies/lookahead_factors_resnet56.py --help`.
"""

from __future__ import annotations

import copy
import json
import sys
from typing import TYPE_CHECKING, Any

from cifar_resnet56 import IN_SHAPE, dataset, files_are_there, network, parser_of

from edgecompress.rundir import write_atomically

if TYPE_CHECKING:
    from torch import Tensor, nn


def main() -> int:
    parser = parser_of("lookahead_factors_resnet56", __doc__)
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.5, 0.7, 0.8, 0.9, 0.95, 0.98])
    given = parser.parse_args()
    if not files_are_there(given):
        return 2
    import torch

    torch.set_num_threads(given.threads)
    model, data = network(given), dataset(given)
    rows = [
        {"rule": rule, "sparsity": sparsity, **_pruned(model, scores, sparsity, data)}
        for rule, scores in _rules(model).items()
        for sparsity in given.sparsities
    ]
    write_atomically(given.out / "results.json", json.dumps({"images": len(data.val), "rows": rows}, indent=1) + "\n")
    write_atomically(given.out / "table.md", table(rows))
    print(table(rows))
    return 0


def _rules(model: nn.Module) -> dict[str, dict[str, Tensor]]:
    import torch

    from edgecompress.compress import lookahead

    example = torch.zeros(1, *IN_SHAPE)
    ours = lookahead.scores(model, example, dtype=torch.float64)
    return {
        "magnitude": {name: model.get_parameter(name).detach().double().square() for name in ours},
        "lookahead": ours,
        "lookahead, no batch norm": lookahead.scores(model, example, dtype=torch.float64, batch_norm=False),
        "plain chain": chain(model, list(ours)),
    }


def chain(model: nn.Module, names: list[str]) -> dict[str, Tensor]:
    """Squared scores with each layer's neighbours in `names` for its own: Park et al. 2020, `lap_bn` of the code. float64."""
    import torch

    weights = [model.get_parameter(name).detach().double() for name in names]
    gains = [_gains(model, name, weight) for name, weight in zip(names, weights, strict=True)]
    found = {}
    for i, (name, weight) in enumerate(zip(names, weights, strict=True)):
        before, after = torch.ones(weight.shape[1]).double(), gains[i]
        if i > 0:
            before = gains[i - 1] * weights[i - 1].square().flatten(1).sum(1)
        if i + 1 < len(weights):
            after = after * weights[i + 1].square().transpose(0, 1).flatten(1).sum(1)
        factor = after[:, None] * before[None, :]
        found[name] = weight.square() * factor.reshape(*factor.shape, *[1] * (weight.ndim - 2))
    return found


def _gains(model: nn.Module, name: str, weight: Tensor) -> Tensor:
    """Squared factor of the batch norm behind a layer, for each output channel."""
    import torch

    norm = dict(model.named_modules()).get(name.removesuffix(".weight").replace("conv", "bn"))
    if not isinstance(norm, torch.nn.BatchNorm2d) or norm.running_var is None:
        return torch.ones(len(weight)).double()
    return norm.weight.detach().double().square() / (norm.running_var.double() + 1e-10)


def _pruned(model: nn.Module, scores: dict[str, Tensor], sparsity: float, data: Any) -> dict[str, Any]:
    from edgecompress import masks
    from edgecompress.evaluate import accuracy

    pruned, emptied, channels = copy.deepcopy(model), 0, 0
    for name, score in scores.items():
        mask = masks.keep_highest(score, round((1 - sparsity) * score.numel()))
        pruned.get_parameter(name).data.mul_(mask)
        emptied += int((mask.flatten(1).sum(1) == 0).sum())
        channels += len(mask)
    return {"val_top1": accuracy(pruned, data, "val").top1, "emptied_channels": emptied, "channels": channels}


def table(rows: list[dict[str, Any]]) -> str:
    """Accuracy in % and, in brackets, output channels without any weight left, as Markdown."""
    sparsities = sorted({row["sparsity"] for row in rows})
    cells = {(r["rule"], r["sparsity"]): f"{100 * r['val_top1']:.1f} ({r['emptied_channels']})" for r in rows}
    lines = [
        "| zeros, % | " + " | ".join(f"{100 * s:g}" for s in sparsities) + " |",
        "|---|" + "---:|" * len(sparsities),
    ]
    for rule in dict.fromkeys(row["rule"] for row in rows):
        lines.append(f"| {rule} | " + " | ".join(cells[rule, s] for s in sparsities) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
