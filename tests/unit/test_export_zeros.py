"""Zeros from the mask to the file: through fine-tuning and distillation, folded batch norm and int8; and no denormal numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgecompress import masks
from edgecompress.errors import StepFailed
from edgecompress.export import census, onnx_fp32, zeros
from edgecompress.export.contract import ExportContext, export_artifact
from edgecompress.recipe import run_steps
from edgecompress.study import Step
from tests.small_nets import few_digits, small_net

pytestmark = pytest.mark.heavy
TINY = 1.17e-38


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def plain_file(model: nn.Module, path: Path) -> census.Census:
    onnx_fp32.export(
        model.eval(), path, ExportContext((1, 32, 32), np.empty((0, 1, 32, 32), np.float32), "uint8", path.parent)
    )
    return census.count(path)


def export(model: nn.Module, name: str, folder: Path, data):
    return export_artifact(model, name, folder, dataset=data, activation_type="uint8", cache=folder / "cache")


def test_zeros_stay_through_fine_tuning_distillation_and_export(tmp_path):
    data = few_digits(128)
    training = {"epochs": 1, "batch_size": 64, "lr": 0.05, "weight_decay": 0.01}
    steps = (
        Step.model_validate({"method": "magnitude", "sparsity": 0.8, "allocation": "erk", "finetune": training}),
        Step.model_validate({"method": "distill", "train": {**training, "optimizer": "adam", "lr": 0.01, "ema": 0.9}}),
    )
    model, _ = run_steps(small_net(), steps, data=data, seed=0, scratch=tmp_path / "scratch")
    dropped = sum(int((~mask).sum()) for mask in masks.get(model).values())
    weights, counted = zeros.of_layers(model)
    assert counted == dropped == weights - round(0.2 * weights)
    float_file = export(model, "onnx-fp32", tmp_path, data)
    assert (float_file.weights, float_file.zeros, float_file.model_zeros) == (weights, dropped, dropped)
    int8_file = export(model, "onnx-int8", tmp_path, data)
    assert int8_file.zeros >= int8_file.model_zeros == dropped
    assert not [w for w in (*float_file.warnings, *int8_file.warnings) if "zero" in w]


def test_a_channel_that_batch_norm_switches_off_and_what_int8_rounds_are_counted_beside_the_mask(tmp_path):
    data, model = few_digits(64), small_net()
    masks.put(model, {"fc1.weight": torch.arange(24 * 256).reshape(24, 256) % 4 == 0})
    with torch.no_grad():
        model.bn1.weight[3] = 0.0
        model.fc2.weight[:, :5] = 1e-7  # a row's largest weight is about 0.2: these are 0 in steps of 1/127 of it
    masked = 24 * 256 * 3 // 4
    float_file = export(model, "onnx-fp32", tmp_path, data)
    assert (float_file.model_zeros, float_file.zeros) == (masked, masked + model.conv1.weight[3].numel())
    int8_file = export(model, "onnx-int8", tmp_path, data)
    assert int8_file.model_zeros == masked and int8_file.zeros >= float_file.zeros + 50


def test_a_file_that_lost_zeros_is_refused(tmp_path):
    pruned = small_net()
    masks.put(pruned, {"fc1.weight": torch.arange(24 * 256).reshape(24, 256) % 2 == 0})
    weights, there = zeros.of_layers(pruned)
    dense = plain_file(small_net(), tmp_path / "dense.onnx")
    with pytest.raises(StepFailed, match=f"{there - dense.zeros} of {there} zero weights of the model are not zero"):
        zeros.compare(dense, weights, there, "onnx-fp32")
    assert zeros.compare(dense, weights, 0, "onnx-fp32") == ()
    assert zeros.compare(dense, weights + 1, 0, "onnx-fp32") == ()
    (warning,) = zeros.compare(dense, weights + 1, there, "onnx-fp32")
    assert "could not be counted" in warning and str(there) in warning


def test_denormal_numbers_are_flushed_out_of_the_file_and_out_of_it_only(tmp_path):
    model = small_net()
    with torch.no_grad():
        model.fc1.weight[0] = 1e-39
        model.fc1.weight[1] = -1e-44
        model.fc1.weight[2] = -2e-38  # small, and a normal number
        model.bn1.running_var[0] = 3e-42
        model.bn1.running_mean[0] = 1e-41
    found = plain_file(model, tmp_path / "as-it-is.onnx")
    assert found.denormals == 2 * 256
    (warning,) = zeros.compare(found, *zeros.of_layers(model), "onnx-fp32")
    assert "512 weights of this file are denormal" in warning
    artifact = export(model, "onnx-fp32", tmp_path, few_digits(64))
    assert census.count(tmp_path / artifact.file).denormals == 0
    assert artifact.zeros == artifact.model_zeros == 2 * 256 and artifact.warnings == ()
    assert float(model.fc1.weight[0, 0].detach()) != 0, "the model itself is left as it is"
    assert zeros.flush_denormals(model) == 2 * 256 + 2
    assert zeros.flush_denormals(model) == 0
    assert float(model.fc1.weight[2, 0].detach()) == pytest.approx(-2e-38, abs=1e-40) and TINY < 2e-38


def test_a_dead_channel_leaves_denormal_statistics_behind():
    """Why they are flushed: pruning makes channels that are always zero, and batch norm's averages then shrink without end."""
    norm = nn.BatchNorm2d(2).train()
    images = torch.zeros(2, 2, 1, 1)
    images[:, 1] = torch.tensor([1.0, -1.0]).reshape(2, 1, 1)
    for _ in range(850):
        norm(images)
    assert 0 < float(norm.running_var[0]) < TINY
    assert zeros.flush_denormals(norm) == 1 and float(norm.running_var[1]) > 1


def test_shared_weights_count_once():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    with torch.no_grad():
        model[0].weight[0] = 0.0
    assert zeros.of_layers(model) == (16, 4)
