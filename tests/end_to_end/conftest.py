"""A small study that runs the whole way in well under a minute, and a way to run it as a user would."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

# The sshd of tests/board serves here too.
from tests.board.conftest import make_sshd, shared_sshd, ssh_profile, sshd  # noqa: F401

SMALL: dict[str, Any] = {
    "name": "small",
    "seed": 3,
    "model": {"name": "lenet5"},
    "data": {"name": "digits", "calibration_images": 64},
    "baseline": {"epochs": 2, "lr": 0.02, "batch_size": 64},
    "recipes": {
        "baseline": [],
        "half": [{"method": "magnitude", "sparsity": 0.5, "finetune": {"epochs": 1, "lr": 0.01, "batch_size": 64}}],
    },
    "formats": ["onnx-fp32", "onnx-int8"],
    "devices": ["local"],
    "measure": {"warmup_s": 0.05, "min_s": 0.2, "blocks": 2},
}

Edgecompress = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def edgecompress(tmp_path: Path) -> Edgecompress:
    """Run the command line in a process of its own, in `tmp_path`."""

    def call(*argv: str, timeout: float = 540) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "edgecompress", *argv]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=timeout)

    return call


@pytest.fixture
def small_study(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    return path


def rows(run_dir: Path) -> dict[tuple[str, str, str], dict[str, Any]]:
    """The rows of results.json by (recipe, format, device)."""
    document = json.loads((run_dir / "results.json").read_text())
    return {(r["recipe"], r["format"], r["device"]): r for r in document["rows"]}
