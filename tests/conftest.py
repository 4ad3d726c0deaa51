"""Fixtures that every part of the tests shares."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")  # how long an example takes is the machine's affair, and who else is at work on it

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def edgecompress_data() -> Path:
    """The folder of real data and weights; tests that need it are skipped by name where it is absent."""
    folder = Path(os.environ.get("EDGECOMPRESS_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "cifar10").is_dir():
        pytest.skip(f"needs the real data: no cifar10/ under EDGECOMPRESS_DATA={folder}")
    return folder


@pytest.fixture(scope="session")
def unpacked_data(edgecompress_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """cifar10.npz and mnist.npz made from the real data, once for all tests of a run."""
    out = tmp_path_factory.mktemp("unpacked")
    subprocess.run([sys.executable, str(edgecompress_data / "unpack.py"), str(out)], check=True, capture_output=True)
    return out
