"""MACs by operator: whatever ONNX Runtime makes of a file, they are found under its names and sum to the network's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from edgecompress_agent import onnxruntime_events
from edgecompress_agent.engines import onnxruntime as engine
from edgecompress_agent.wire import OpTime

from edgecompress import data
from edgecompress.cost import count
from edgecompress.export.contract import export_artifact
from edgecompress.export.operator_costs import costs
from edgecompress.models import build
from edgecompress.study import DataSpec, ModelSpec
from tests.small_nets import small_net

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.heavy
SHAPE = (1, 32, 32)


def as_run(path: Path, batch: int, scratch: Path) -> tuple[OpTime, ...]:
    """The operators as this machine's ONNX Runtime runs them."""
    loaded, end = engine.load_profiled(path, 1, ["CPUExecutionProvider"], str(scratch / "ops"))
    loaded.step(loaded.prepare([np.zeros((batch, *SHAPE), np.float32)]))
    return onnxruntime_events.read(Path(end()), skip=0)[1]


@pytest.mark.parametrize("network", ["resnet20", "vgg11_bn", "grouped"])
@pytest.mark.parametrize("form", ["onnx-fp32", "onnx-int8"])
def test_the_macs_of_all_operators_are_those_of_the_network(network: str, form: str, tmp_path: Path) -> None:
    if network == "grouped":
        model: torch.nn.Module = small_net()
    else:
        model = build(ModelSpec(name=network, width=0.25), num_classes=10, in_shape=SHAPE, seed=1)
    model.eval()
    digits = data.load(DataSpec(name="digits", calibration_images=16), seed=0)
    artifact = export_artifact(
        model, form, tmp_path / "out", dataset=digits, activation_type="uint8", cache=tmp_path / "cache"
    )  # fmt: skip
    path = tmp_path / "out" / artifact.file
    for batch in (1, 3):
        operators = as_run(path, batch, tmp_path)
        found = costs(path, operators, batch)
        assert None not in [macs for _, macs, _ in found]
        assert sum(macs or 0 for _, macs, _ in found) == batch * count(model, SHAPE).macs
    layers = [layer for layer, _, _ in found if layer]
    assert len(layers) == len(set(layers)) == sum(
        isinstance(m, (torch.nn.Conv2d, torch.nn.Linear)) for m in model.modules()
    )  # fmt: skip
    stored = sum(b or 0 for _, macs, b in found if macs)
    assert 0.9 * artifact.weights * (1 if form == "onnx-int8" else 4) <= stored <= artifact.file_bytes


def test_an_operator_that_the_file_does_not_know_has_no_macs(tmp_path: Path) -> None:
    from tests.agent import tiny_models

    file = tiny_models.write_onnx(tmp_path / "m.onnx", repeat=2)
    unknown = OpTime("made_up_by_the_engine", "Conv", 1, 1000, 1000, parameter_bytes=12)
    assert costs(file, [unknown], 1) == [(None, None, None)]
