"""Quantisation-aware training (QAT): the network is trained with the rounding of its int8 file already in it.

What it does: every weight and every activation that the engines quantise is rounded in the forward pass, and the gradient goes
through as if it were not (straight-through estimator). The ranges of the activations are observed or learned with the weights.
They stay with the model, and the int8 exporters take them instead of calibrating: what was trained is what runs. Masks and
shared values of earlier steps hold.
Costs: a training of one and a half to two times the processor time of a plain one.
Needs: data, and a model that torch.fx can trace, of convolutions, linear layers, ReLU, poolings and additions. Gains: the
accuracy that int8 after training loses.
Papers: Jacob et al. 2018 (arXiv:1712.05877); straight-through: Bengio et al. 2013 (arXiv:1308.3432); learned ranges: Choi et
al. 2018, PACT (arXiv:1805.06085).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from edgecompress import quantization
from edgecompress.compress.contract import Context, FineTune
from edgecompress.quantization import Calibration
from edgecompress.study import Positive, TrainSpec

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Params:
    """Parameters of quantisation-aware training.

    finetune: the training; its lr is 0.01 unless given. epochs, lr: over `finetune` where both are given.
    ranges: of the activations: "learned" with the weights, or "observed", a moving average of what training sees.
    calibration: the rule for the ranges that training starts from, on the calibration images, as in method quantize.
    weight_bits: 8, or 7 for devices of x86 without VNNI, whose files have 7-bit weights.
    batch_norm: "fixed", the statistics are those of the network that is given, as in the file; or "updated" by the batches, for
    a network that an earlier step has damaged or that is trained for many epochs.
    """

    finetune: FineTune = None
    epochs: Annotated[int, Field(ge=1)] | None = None
    lr: Positive | None = None
    ranges: Literal["learned", "observed"] = "learned"
    calibration: Calibration = "mse"
    weight_bits: Annotated[int, Field(ge=7, le=8)] = 8
    batch_norm: Literal["fixed", "updated"] = "fixed"


def training(params: Params) -> TrainSpec:
    """The training that the parameters ask for."""
    spec = params.finetune or TrainSpec(epochs=1, lr=0.01)
    given = {key: value for key, value in (("epochs", params.epochs), ("lr", params.lr)) if value is not None}
    return type(spec).model_validate({**spec.model_dump(), **given})


def apply(model: nn.Module, params: Params, context: Context) -> nn.Module:
    """The model itself, trained in place, with the ranges of its activations. UserError: no data, a model that is not traced,
    an operation that int8 training does not know.
    """
    from edgecompress.compress.qat.network import QuantisedTraining

    quantization.refuse_other(model, "qat")
    data = context.need_data("qat")
    network = QuantisedTraining(model, params, data)
    with network.rounding():
        context.train(network.module, training(params), method="qat")
    ranges = network.ranges()
    quantization.put(model, quantization.Quantization(ranges=ranges))
    context.note("activation_ranges", {site: list(pair) for site, pair in ranges.items()})
    return model
