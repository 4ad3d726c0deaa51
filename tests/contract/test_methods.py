"""What every compression method must keep, found by its file: nothing here names a method but its example parameters."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from edgecompress import masks
from edgecompress.compress.contract import full_params, method_names, parse_params
from edgecompress.data import Dataset
from edgecompress.models import kept as kept_channels
from edgecompress.plugins import find
from edgecompress.recipe import run_steps
from edgecompress.study import Step
from tests.small_nets import few_digits, same_state, small_net

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).resolve().parents[2]

# Parameters that make a method do its work quickly on a small network. A method that is not named here runs with its
# defaults: a new file is covered without a line in this one.
EXAMPLES: dict[str, dict[str, Any]] = {
    "magnitude": {"sparsity": 0.6, "finetune": {"epochs": 1, "batch_size": 64}},
    "codebook": {"bits": 3, "finetune": {"epochs": 1, "batch_size": 64, "lr": 0.001}},
    "deep_compression": {
        "kept": {"conv1": 0.8, "*": 0.4},
        "finetune": {"epochs": 1, "batch_size": 64},
        "finetune_codebook": {"epochs": 1, "batch_size": 64, "lr": 0.001},
    },
    "distill": {"epochs": 1, "batch_size": 64, "temperature": 3},
    "channels": {"macs": 0.6, "multiple": 1, "finetune": {"epochs": 1, "batch_size": 64}},
    "amc": {
        "episodes": 4,
        "warmup": 1,
        "images": 60,
        "fit": 40,
        "multiple": 1,
        "finetune": {"epochs": 1, "batch_size": 64},
    },
    "quantize": {"equalise": True, "correct_bias": True},
    "qat": {"epochs": 1, "finetune": {"batch_size": 64, "lr": 0.01}},
}


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return few_digits(128)


@pytest.fixture(params=method_names())
def method(request) -> str:
    torch.set_num_threads(1)
    return request.param


def compressed(
    method: str, digits: Dataset, scratch: Path, *, seed: int = 0, model: nn.Module | None = None
) -> nn.Module:
    step = Step(method=method, params=EXAMPLES.get(method, {}))
    result, _ = run_steps(model or small_net(), (step,), data=digits, seed=seed, scratch=scratch)
    return result


def test_its_docstring_says_what_it_costs_and_needs_and_its_paper(method):
    module = find("edgecompress.compress", method, attribute="apply", kind="method")
    for word in ("What it does:", "Costs:", "Needs:", "Gains:"):
        assert word in module.__doc__, f"{method}: the docstring lacks {word!r}"
    assert re.search(r"Papers?: .*\b(19|20)\d\d\b", module.__doc__, re.DOTALL), "author and year of the paper"
    for field in module.Params.__dataclass_fields__:
        assert re.search(rf"\b{field}\b", module.Params.__doc__), f"Params.{field} is not documented"
    assert module.Params.__dataclass_params__.frozen


def test_it_has_a_page(method):
    page = (ROOT / "docs" / "methods" / f"{method}.md").read_text(encoding="utf-8")
    for heading in ("## What it does", "## When to use it", "## Cost", "## Limits", "## Paper"):
        assert heading in page, f"docs/methods/{method}.md lacks {heading!r}"


def test_its_parameters_survive_yaml_and_json(method):
    full = full_params(method, EXAMPLES.get(method, {}))
    again = yaml.safe_load(yaml.safe_dump(json.loads(json.dumps(full))))
    assert full_params(method, again) == full
    step = Step.model_validate({"method": method, **again})
    assert step.params == full


def test_same_inputs_same_outputs_finite(method, digits, tmp_path):
    model = compressed(method, digits, tmp_path)
    with torch.no_grad():
        out = model(torch.rand(3, *digits.in_shape))
    assert out.shape == (3, 10) and torch.isfinite(out).all() and not model.training


def test_it_changes_the_model_and_repeats_itself_under_its_seed(method, digits, tmp_path):
    one = compressed(method, digits, tmp_path / "one", seed=5)
    two = compressed(method, digits, tmp_path / "two", seed=5)
    assert same_state(one, two)
    assert not same_state(one, small_net().eval())


def test_it_keeps_an_earlier_mask(method, digits, tmp_path):
    start = small_net()
    keep = torch.arange(24 * 256).reshape(24, 256) % 2 == 0
    masks.put(start, {"fc1.weight": keep})
    model = compressed(method, digits, tmp_path, model=start)
    for dim, side in enumerate(("out", "in")):  # a method that cuts channels cuts their part of the mask
        index = kept_channels.get(model).get("fc1", {}).get(side, range(keep.shape[dim]))
        keep = keep.index_select(dim, torch.tensor(index))
    kept = masks.get(model)["fc1.weight"]
    assert not (kept & ~keep).any()
    weight = dict(model.named_parameters())["fc1.weight"]
    assert not weight.detach()[~keep].any()


def test_it_keeps_the_layers_where_it_says_so(method, digits, tmp_path):
    """What later steps are refused before the training is reckoned with them."""
    module = find("edgecompress.compress", method, attribute="apply", kind="method")
    if not hasattr(module, "keeps_layers"):
        return
    assert module.keeps_layers(parse_params(method, EXAMPLES.get(method, {})))
    sizes = [{n: p.shape for n, p in m.named_parameters()} for m in (small_net(), compressed(method, digits, tmp_path))]
    assert sizes[0] == sizes[1]


def test_its_result_exports_and_passes_parity(method, digits, tmp_path):
    from edgecompress.export.contract import export_artifact

    model = compressed(method, digits, tmp_path / "scratch")
    for name in ("onnx-fp32", "onnx-int8"):
        artifact = export_artifact(
            model, name, tmp_path, dataset=digits, activation_type="uint8" if name.endswith("int8") else None,
            cache=tmp_path / "cache",
        )  # fmt: skip
        assert (tmp_path / artifact.file).stat().st_size == artifact.file_bytes
        layers = [m.weight for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        assert artifact.weights == sum(w.numel() for w in layers)
        if name == "onnx-fp32":
            assert artifact.parity.max_abs_diff <= artifact.parity.tolerance
            assert artifact.zeros == sum(int((w == 0).sum()) for w in layers)
