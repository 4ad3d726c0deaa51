"""The acceptance study: the pretrained ResNet-20 on all 9,980 CIFAR-10 test images, scored by the agent, here and over SSH."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from edgecompress.device_profile import DeviceProfile
from edgecompress.studyfile import read_device, shipped_profiles
from tests.end_to_end.conftest import Edgecompress, rows

pytestmark = pytest.mark.heavy


def study(tmp_path: Path, data: Path, unpacked: Path, formats: list[str]) -> None:
    value = {
        "name": "cifar",
        "model": {"name": "resnet20", "weights": str(data / "weights" / "resnet20.safetensors")},
        "data": {
            "name": "npz",
            "path": str(unpacked / "cifar10.npz"),
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
        },
        "formats": formats,
        "measure": {"warmup_s": 0.1, "min_s": 0.5, "blocks": 2},
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(value))


def test_resnet20_scores_as_published_on_every_format(
    edgecompress: Edgecompress, tmp_path: Path, edgecompress_data: Path, unpacked_data: Path
) -> None:
    formats = ["onnx-fp32", "onnx-int8", "tflite-fp32", "tflite-int8"]
    study(tmp_path, edgecompress_data, unpacked_data, formats)
    done = edgecompress("run", "study.yaml", "--out", "run")
    assert done.returncode == 0, done.stderr
    made = {form: row for (_, form, _), row in rows(tmp_path / "run").items()}
    for form in ("onnx-fp32", "tflite-fp32"):
        assert round(made[form]["top1"] * 9980) == pytest.approx(9155, abs=2)
    for form in ("onnx-int8", "tflite-int8"):
        assert made[form]["top1"] == pytest.approx(0.9173, abs=0.01)
    assert made["onnx-fp32"]["train_seconds"] is None, "the weights came from a file: nothing was trained here"


@pytest.mark.sshd
def test_the_ssh_device_gives_the_same_accuracies(
    edgecompress: Edgecompress,
    tmp_path: Path,
    edgecompress_data: Path,
    unpacked_data: Path,
    ssh_profile: Callable[..., DeviceProfile],
) -> None:
    study(tmp_path, edgecompress_data, unpacked_data, ["onnx-fp32", "onnx-int8"])
    local = yaml.safe_load(shipped_profiles("devices")["local"].read_text())
    board = ssh_profile(int8_activations=read_device("local").int8_activations)
    for profile in ({**local, "name": "here"}, board.model_dump(mode="json", exclude_none=True)):
        (tmp_path / f"{profile['name']}.yaml").write_text(yaml.safe_dump(profile))
    done = edgecompress("run", "study.yaml", "--out", "run", "--device", "here.yaml", "--device", "board.yaml")
    assert done.returncode == 0, done.stderr
    made = rows(tmp_path / "run")
    for form in ("onnx-fp32", "onnx-int8"):
        here, there = made["baseline", form, "here"], made["baseline", form, "board"]
        assert here["top1"] == there["top1"] and here["top5"] == there["top5"]
    assert round(made["baseline", "onnx-fp32", "board"]["top1"] * 9980) == pytest.approx(9155, abs=2)
