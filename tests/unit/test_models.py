"""What is known of models without torch: names, and that asking for them loads nothing heavy."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest
from pydantic import ValidationError

from edgecompress.models import ZOO
from edgecompress.study import DataSpec, ModelSpec


def test_validating_a_model_and_a_dataset_loads_neither_torch_nor_pillow_nor_sklearn() -> None:
    code = (
        "import sys; from edgecompress.study import ModelSpec, DataSpec; from edgecompress import data; "
        "ModelSpec(name='resnet20'); spec = DataSpec(name='digits'); data.fingerprint(spec); "
        "print([m for m in ('torch', 'torchvision', 'PIL', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_misspelt_model_names_the_near_miss() -> None:
    with pytest.raises(ValidationError, match=r"Did you mean .*'resnet20'.*Choices"):
        ModelSpec(name="resnet2O")


@pytest.mark.parametrize("name", ["torchvision:resnet18", "package.module:function"])
def test_other_models_are_known_by_their_colon(name: str) -> None:
    assert ModelSpec(name=name).name == name


def test_a_misspelt_dataset_names_the_near_miss() -> None:
    with pytest.raises(ValidationError, match=r"Did you mean 'digits'"):
        DataSpec(name="digit")


@pytest.mark.heavy
def test_every_zoo_entry_points_at_a_function() -> None:
    for entry in ZOO.values():
        module, _, function = entry.partition(":")
        assert callable(getattr(importlib.import_module(module), function))
