"""AdaRound: whether each weight is rounded up or down is learned, layer by layer (Nagel et al. 2020, arXiv:2004.10568).

A weight is w = step · (⌊W/step⌋ + h(V)) with h(V) = clip(1.2 · sigmoid(V) − 0.1, 0, 1) (eq. 23), and V is learned so that the
layer, its ReLU included, gives for the inputs of the network that is rounded so far what it gives in float for the float
network's inputs (eq. 25), while λ Σ 1 − |2h − 1|^β drives every h to 0 or 1 (eq. 24).

W is the weight as the int8 files hold it: with its batch norm folded in, and on the file's own grid. What is learned goes
back into the model as a float weight that lies on that grid. The largest weight of a channel (of a tensor), which makes the
scale, is not learned: it stays on the outermost level, so that an exporter finds the same scale again and its rounding
gives the learned integers. Weights on a level (pruned ones among them) stay there too, so none moves by a whole step.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgecompress.compress.contract import Context
from edgecompress.compress.quantize.adaround_spec import AdaRoundSpec
from edgecompress.compress.quantize.folding import compute
from edgecompress.compress.quantize.grids import Grid, Layer, grid, learnable, put
from edgecompress.compress.quantize.rounding import limit, output_axis
from edgecompress.errors import StepFailed, UserError
from edgecompress.progress import SILENT, Progress
from edgecompress.quantization import Granularity

if TYPE_CHECKING:
    from edgecompress.compress.quantize import Params

_LOW, _HIGH = -0.1, 1.1
"""γ and ζ: the sigmoid is stretched to this range, so that h reaches 0 and 1."""

_BATCH = 64


@dataclass(frozen=True)
class Learned:
    """What became of the layers.

    integers: layer → levels of its folded weight (int16, the weight's shape). errors: layer → mean squared error of its outputs
    for the calibration images with nearest rounding and as learned. moved: layer → share of its weights that are not at the
    nearest level. left: layers that could not be learned. output_errors: of the network's outputs, with every layer nearest,
    and as learned. kept: False when that was no better, and the weights are as they were.
    """

    integers: dict[str, Tensor]
    errors: dict[str, tuple[float, float]]
    moved: dict[str, float]
    left: list[str]
    output_errors: tuple[float, float]
    kept: bool


def round_weights(model: nn.Module, context: Context, names: list[str], params: Params, spec: AdaRoundSpec) -> Learned:
    """Learn the rounding of the named layers on the calibration images, and put it into the weights, in place.

    UserError: no data or calibration images, images with NaN, a model that cannot be traced, weights that share values, no
    layer to learn. StepFailed: the float network's outputs are not finite.
    """
    from edgecompress import codebooks
    from edgecompress.data import calibration_images, check_images

    data = context.need_data("quantize with adaround")
    shared = [name for name in names if f"{name}.weight" in codebooks.get(model)]
    if shared:
        raise UserError(
            f"adaround: the weights of {', '.join(shared)} share values, which rounding them one by one would end",
            fix="Leave adaround out, or the codebook, or keep these layers in float (float_layers).",
        )
    images = calibration_images(data)
    check_images(images, data.in_shape)
    found = learn(
        model, torch.from_numpy(images[: spec.images]), names, most=limit(params.weight_bits), granularity=params.weights,
        spec=spec, seed=context.seed, progress=context.progress,
    )  # fmt: skip
    context.note("adaround_layers", {
        name: {"error_nearest": nearest, "error_learned": learned, "not_nearest": found.moved[name]}
        for name, (nearest, learned) in found.errors.items()
    })  # fmt: skip
    context.note("adaround_left_nearest", found.left)
    context.note("adaround_output_error", {"nearest": found.output_errors[0], "learned": found.output_errors[1]})
    context.note("adaround_kept", found.kept)
    return found


def learn(
    model: nn.Module,
    images: Tensor,
    names: list[str],
    *,
    most: int,
    granularity: Granularity,
    spec: AdaRoundSpec,
    seed: int,
    progress: Progress = SILENT,
) -> Learned:
    """Learn the rounding of the named layers to levels from -most to most, in the order in which they compute, in place.

    images: float32 (N, C, H, W). A layer whose learned rounding is no better than the nearest on these images gets the
    nearest; when the network's outputs are no better, all weights are as before. UserError and StepFailed as `round_weights`.
    """
    from edgecompress.evaluate import device_of

    layers = learnable(model, names, granularity)
    if not layers:
        raise UserError(
            "adaround: no layer of this model can be learned", fix="Leave adaround out, or fewer layers in float."
        )
    images = images.to(device_of(model))
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        exact = copy.deepcopy(model)
        reference = _outputs(exact, images)
        if not torch.isfinite(reference).all():
            raise StepFailed("adaround: the network's outputs for the calibration images are not finite")
        before = {layer.name: layer.module.weight.detach().clone() for layer in layers}
        grids = {layer.name: grid(layer, most, granularity) for layer in layers}
        chooser = torch.Generator().manual_seed(seed)
        integers, errors = {}, {}
        with progress.task("learned rounding", total=len(layers)) as task:
            for layer in layers:
                asked = _inputs(exact, exact.get_submodule(layer.name), images)
                given = _inputs(model, layer.module, images)
                integers[layer.name], errors[layer.name] = _learn_layer(
                    layer, grids[layer.name], asked, given, spec, chooser
                )
                put(layer.module, layer.norm, grids[layer.name], integers[layer.name])
                task.advance()
        learned = _mean_square(_outputs(model, images), reference)
        for layer in layers:
            put(exact.get_submodule(layer.name), layer.norm, grids[layer.name], grids[layer.name].nearest())
        nearest = _mean_square(_outputs(exact, images), reference)
        kept = learned <= nearest
        if not kept:
            with torch.no_grad():
                for layer in layers:
                    layer.module.weight.copy_(before[layer.name])
    finally:
        for module, mode in modes.items():
            module.training = mode
    return Learned(
        integers={name: levels.to(torch.int16) for name, levels in integers.items()},
        errors=errors,
        moved={name: float((levels != grids[name].nearest()).float().mean()) for name, levels in integers.items()},
        left=[name for name in names if name not in integers],
        output_errors=(nearest, learned),
        kept=kept,
    )


def soft(v: Tensor) -> Tensor:
    """h(V), from 0 (down) to 1 (up)."""
    return (torch.sigmoid(v) * (_HIGH - _LOW) + _LOW).clamp(0, 1)


def start(fraction: Tensor) -> Tensor:
    """V with h(V) = fraction: learning begins at the float weight."""
    return -torch.log((_HIGH - _LOW) / (fraction - _LOW) - 1)


def undecided(h: Tensor, beta: float) -> Tensor:
    """Σ 1 − |2h − 1|^β (scalar): 0 when every weight is up or down."""
    return (1 - (2 * h - 1).abs().pow(beta)).sum()


def beta_at(done: float, spec: AdaRoundSpec) -> float | None:
    """β when so much of the iterations is done (0 to 1); None during the warm-up."""
    if done < spec.warm_up:
        return None
    after = (done - spec.warm_up) / (1 - spec.warm_up)
    return spec.beta_end + (spec.beta_start - spec.beta_end) * 0.5 * (1 + math.cos(math.pi * after))


def _learn_layer(
    layer: Layer, levels: Grid, asked: Tensor, given: Tensor, spec: AdaRoundSpec, chooser: torch.Generator
) -> tuple[Tensor, tuple[float, float]]:
    """The layer's integers, and its errors with the nearest ones and with these. asked, given: its inputs in float and now."""

    def forward(inputs: Tensor, weight: Tensor) -> Tensor:
        outputs = compute(layer.module, inputs, weight, levels.bias)
        return outputs if layer.activation is None else getattr(functional, layer.activation)(outputs)

    @torch.no_grad()
    def error(integers: Tensor) -> float:
        parts = zip(given.split(_BATCH), wanted.split(_BATCH), strict=True)
        total = sum(float((forward(x, integers * levels.step) - y).double().square().sum()) for x, y in parts)
        return total / wanted.numel()

    with torch.no_grad():
        wanted = torch.cat([forward(x, levels.weight) for x in asked.split(_BATCH)])
    below, nearest = levels.below(), levels.nearest()
    channels = levels.weight.shape[output_axis(layer.module)]
    v = start((levels.weight / levels.step - below).clamp(0, 1)).requires_grad_()
    adam = torch.optim.Adam([v], lr=spec.lr)
    for done in range(spec.iterations):
        batch = torch.randperm(len(given), generator=chooser)[: spec.batch_size].to(given.device)
        h = soft(v).masked_fill(levels.fixed, 0.0)
        outputs = forward(given[batch], (below + h) * levels.step)
        # the squared norm over the channels, the mean over images and places
        loss = functional.mse_loss(outputs, wanted[batch]) * channels
        beta = beta_at(done / spec.iterations, spec)
        if beta is not None:
            loss = loss + spec.regulariser * undecided(h, beta)
        adam.zero_grad()
        loss.backward()
        adam.step()
    with torch.no_grad():
        up = (soft(v) >= 0.5) & ~levels.fixed
        integers = (below + up).clamp(-levels.most, levels.most)
    errors = error(nearest), error(integers)
    return (integers, errors) if errors[1] < errors[0] else (nearest, (errors[0], errors[0]))


class _Reached(Exception):
    """The layer that is looked for has its input: what comes after need not be computed."""


@torch.no_grad()
def _inputs(model: nn.Module, layer: nn.Module, images: Tensor) -> Tensor:
    """What the layer reads for these images."""
    found: list[Tensor] = []

    def take(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found.append(inputs[0].clone())
        raise _Reached

    handle = layer.register_forward_pre_hook(take)
    try:
        for batch in images.split(_BATCH):
            try:
                model(batch)
            except _Reached:
                continue
    finally:
        handle.remove()
    return torch.cat(found)


@torch.no_grad()
def _outputs(model: nn.Module, images: Tensor) -> Tensor:
    from edgecompress.evaluate import logits

    return torch.cat([logits(model, batch) for batch in images.split(_BATCH)])


def _mean_square(a: Tensor, b: Tensor) -> float:
    return float((a - b).double().square().mean())
