"""How often each channel is alive after its ReLU: the weights of the activation-weighted variant (LAP-act)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from edgecompress.graph import Graph


def measure(model: nn.Module, graph: Graph, images: Tensor, batch: int = 64) -> dict[int, Tensor]:
    """Call index → (out,) mean over positions of √p, p the share of images whose value after the ReLU is above 0.

    Calls whose output meets no ReLU on its way are left out (their factor is 1). The paper's code sums √p over positions;
    the mean differs by a constant of the layer, which changes no choice within it.
    """
    nodes = graph.rectified
    counts: dict[str, Tensor] = {}

    class Counting(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            if n.name in nodes:
                alive = (result > 0).sum(0).double()
                counts[n.name] = counts[n.name] + alive if n.name in counts else alive
            return result

    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            interpreter = Counting(fx.symbolic_trace(model))
            for part in images.split(batch):
                interpreter.run(part)
    finally:
        for module, mode in modes.items():
            module.training = mode
    found: dict[int, Tensor] = {}
    for name, links in nodes.items():
        share = torch.sqrt(counts[name] / len(images)).float().cpu()
        share = share.reshape(share.shape[0], -1).mean(1)
        for link in links:
            if link.maker >= 0 and link.maker not in found:  # the first ReLU on a channel's way decides
                values = torch.zeros(graph.calls[link.maker].outputs)
                seen = link.channels >= 0
                found[link.maker] = values.index_reduce_(
                    0, link.channels[seen], share[seen], "mean", include_self=False
                )
    return found
