"""Weight sharing: the weights of a layer take one of a few values, its codebook, found by k-means.

What it does: in every convolution and fully connected layer the non-zero weights are clustered, min Σ |w − c|² within the
layer, and each is replaced by the value of its cluster. Zeros stay zeros. In the fine-tuning the values are what is
trained, each with the sum of its weights' gradients; which weight has which value is fixed from the clustering on.
Costs: a sort of each layer's weights (half a second for a million); the fine-tuning costs its epochs.
Needs: no data, unless it fine-tunes. Gains: bits per weight in a packed file (log2 of the number of values, less with entropy
coding). Neither plain size nor latency changes: no engine here computes with codes.
Paper: Han, Mao and Dally 2016, "Deep Compression: Compressing Deep Neural Networks with Pruning, Trained Quantization and
Huffman Coding", section 3 (arXiv:1510.00149).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from edgecompress import codebooks, kmeans, patterns
from edgecompress.compress.contract import Context, FineTune
from edgecompress.compress.magnitude import prunable
from edgecompress.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn


DEFAULT_BITS = 5

Count = Annotated[int, Field(ge=1, le=2**24)]
Bits = Annotated[int, Field(ge=1, le=16)]


@dataclass(frozen=True)
class Params:
    """Parameters of weight sharing.

    values: how many non-zero values a layer has, exactly: one number, or a mapping from patterns of layer names to numbers
        ({"conv*": 256, "*": 32}; of several that match, the one that spells out more of the name).
    bits: instead of values: the width of a code, 1 to 16, as one number or a mapping. A layer gets up to 2^bits values,
        the zero among them where it has zeros; one with fewer distinct weights keeps them all. Neither given: 5.
    init: where k-means starts: "linear" (evenly between the smallest and the largest weight: large weights, which matter
        most, keep values near them), "density" (evenly in the cumulative distribution) or "forgy" (random weights).
    exclude: layers left as they are, by name; `*` and `?` match as in file names.
    biases: whether the layers' biases get a codebook of their own (one with no more distinct values stays as it is).
    finetune: training of the values; None: none. Its lr is 0.01 unless given: the sum of many gradients wants a small one.
    """

    values: Count | dict[str, Count] | None = None
    bits: Bits | dict[str, Bits] | None = None
    init: kmeans.Init = "linear"
    exclude: patterns.LayerNames = ()
    biases: bool = False
    finetune: FineTune = None

    def __post_init__(self) -> None:
        if self.values is not None and self.bits is not None:
            raise ValueError("give values or bits, not both")


def keeps_layers(params: Params) -> bool:
    """Whether the network after the step has the layers and sizes of the one before."""
    return True


def apply(model: nn.Module, params: Params, context: Context) -> nn.Module:
    """The model itself, its weights replaced in place and fine-tuned. UserError: more values than there are, an unknown layer."""
    weights = prunable(model, params.exclude)
    layers = {name.rpartition(".")[0]: name for name in weights}
    if params.values is not None:
        wanted = {layers[k]: v for k, v in patterns.of_layers(params.values, layers, "values").items()}
        _check_enough(weights, wanted)
    else:
        bits = patterns.of_layers(DEFAULT_BITS if params.bits is None else params.bits, layers, "bits")
        wanted = {layers[k]: values_in(weights[layers[k]], b) for k, b in bits.items()}
    if params.biases:
        for layer, name in layers.items():
            bias = getattr(model.get_submodule(layer), "bias", None)
            # One of zeros alone, as a fresh network has them, would be held at zero.
            if bias is not None and _distinct(bias):
                weights[f"{layer}.bias"] = bias.detach()
                wanted[f"{layer}.bias"] = min(wanted[name], _distinct(bias))
    share(model, weights, wanted, params.init, context)
    if params.finetune is not None:
        context.train(model, params.finetune, method="codebook")
    return model


def share(
    model: nn.Module, weights: Mapping[str, Tensor], wanted: Mapping[str, int], init: kmeans.Init, context: Context
) -> None:
    """Cluster the non-zeros of each named parameter into the wanted number of values and put its codes in place.

    Notes in the step's record: `values` (how many each has) and `mean_squared_error` (of the non-zeros, before any training).
    """
    import torch

    found = {}
    with context.progress.task("codebook: k-means", len(weights)) as task:
        for number, (name, weight) in enumerate(weights.items()):
            found[name] = _cluster(weight, wanted[name], init, context.seed + number)
            task.advance()
    with torch.no_grad():
        for name, (replaced, _, _) in found.items():
            model.get_parameter(name).copy_(replaced)
    codebooks.put(model, {name: codes for name, (_, codes, _) in found.items()})
    context.note("values", dict(wanted))
    context.note("mean_squared_error", {name: error for name, (_, _, error) in found.items()})


def _cluster(weight: Tensor, count: int, init: kmeans.Init, seed: int) -> tuple[Tensor, Tensor, float]:
    """The clustered weights (float32, on the CPU), their codes (int32) and the mean squared error of the non-zeros."""
    import numpy as np
    import torch

    plain = weight.detach().cpu().float().numpy()
    alive = plain != 0
    replaced, codes, error = np.zeros(plain.shape, np.float32), np.zeros(plain.shape, np.int32), 0.0
    if alive.any():
        found = kmeans.cluster(plain[alive], count, init=init, seed=seed)
        replaced[alive], codes[alive] = found.centres[found.labels], found.labels + 1
        error = found.sse / int(alive.sum())
    return torch.from_numpy(replaced), torch.from_numpy(codes), error


def values_in(weight: Tensor, bits: int) -> int:
    """How many non-zero values a weight can have under codes of this many bits, one of which is the zero's, if it has zeros."""
    return min(2**bits - int(bool((weight == 0).any())), _distinct(weight))


def _distinct(weight: Tensor) -> int:
    """Distinct values other than zero."""
    import torch

    found = torch.unique(weight.detach())
    return len(found) - int(bool((found == 0).any()))


def _check_enough(weights: Mapping[str, Tensor], wanted: Mapping[str, int]) -> None:
    short = {name: _distinct(weights[name]) for name, count in wanted.items() if _distinct(weights[name]) < count}
    if short:
        name, found = next(iter(short.items()))
        layer = name.rpartition(".")[0]
        more = f" (nor have {len(short) - 1} more layers)" if len(short) > 1 else ""
        raise UserError(
            f"{name} has {found} distinct non-zero weights, not the {wanted[name]} values asked for{more}",
            where="method codebook, values",
            fix=f"Ask for fewer in this layer, for example values: {{'{layer}': {max(1, found)}, '*': {wanted[name]}}}; or give "
            "bits, which lets a layer have fewer values.",
        )
