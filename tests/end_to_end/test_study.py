"""A whole study through the command line: what is made, what is repeated, what a failure costs, what a kill costs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.end_to_end.conftest import SMALL, Edgecompress, rows

pytestmark = pytest.mark.heavy

STABLE = ("params", "nonzero_params", "macs", "effective_macs", "file_bytes", "packed_bytes", "top1", "top5", "status")
"""Fields of a row that two runs of the same study have in common to the last digit."""


def stable(run_dir: Path) -> dict[tuple[str, str, str], dict[str, object]]:
    return {key: {field: row[field] for field in STABLE} for key, row in rows(run_dir).items()}


def test_a_study_is_done_once(edgecompress: Edgecompress, small_study: Path, tmp_path: Path) -> None:
    first = edgecompress("run", str(small_study), "--out", "run")
    assert first.returncode == 0, first.stderr
    assert "report.html" in first.stdout
    made = rows(tmp_path / "run")
    assert set(made) == {(r, f, "local") for r in ("baseline", "half") for f in ("onnx-fp32", "onnx-int8")}
    for (recipe, form, _), row in made.items():
        assert row["status"] == "ok" and row["scored_on"] and row["top1"] > 0.8
        assert row["latency_ms_p50"] > 0 and row["latency_ms_low"] <= row["latency_ms_p50"] <= row["latency_ms_high"]
        assert row["energy_mj"] is None and "no sensor" in row["energy_reason"], row
        assert (row["nonzero_params"] < 0.6 * row["params"]) == (recipe == "half")
        assert (row["file_bytes"] < 0.5 * made[recipe, "onnx-fp32", "local"]["file_bytes"]) == (form == "onnx-int8")

    records = sorted((tmp_path / "run" / "records").rglob("*.json"))
    before = {path: path.stat().st_mtime_ns for path in records}
    second = edgecompress("run", str(small_study), "--out", "run")
    assert second.returncode == 0, second.stderr
    assert {path: path.stat().st_mtime_ns for path in sorted((tmp_path / "run" / "records").rglob("*.json"))} == before
    assert stable(tmp_path / "run") == {key: {f: row[f] for f in STABLE} for key, row in made.items()}
    assert second.stdout == first.stdout


def test_a_finished_study_needs_no_torch(edgecompress: Edgecompress, small_study: Path, tmp_path: Path) -> None:
    assert edgecompress("run", str(small_study), "--out", "run", "--set", "formats=[onnx-fp32]").returncode == 0
    code = "import sys\nfrom edgecompress.cli import main\nstatus = main(sys.argv[1:])\n"
    code += "print(status, [m for m in ('torch', 'onnxruntime', 'litert_torch', 'sklearn') if m in sys.modules])"
    argv = ["run", str(small_study), "--out", "run", "--set", "formats=[onnx-fp32]"]
    done = subprocess.run([sys.executable, "-c", code, *argv], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"


def test_a_change_repeats_only_what_it_reaches(edgecompress: Edgecompress, small_study: Path, tmp_path: Path) -> None:
    assert edgecompress("run", str(small_study), "--out", "run", "--set", "formats=[onnx-fp32]").returncode == 0
    models = set((tmp_path / "run" / "records" / "model").iterdir())
    artifacts = set((tmp_path / "run" / "records" / "artifact").iterdir())
    more = edgecompress(
        "run", str(small_study), "--out", "run", "--set", "formats=[onnx-fp32]", "--set", "measure.min_s=0.3"
    )
    assert more.returncode == 0, more.stderr
    assert set((tmp_path / "run" / "records" / "model").iterdir()) == models
    assert set((tmp_path / "run" / "records" / "artifact").iterdir()) == artifacts
    assert len(list((tmp_path / "run" / "records" / "measurement").iterdir())) == 4


def test_what_fails_is_a_row_and_the_others_go_on(edgecompress: Edgecompress, tmp_path: Path) -> None:
    recipes = {
        "baseline": [],
        "diverges": [{"method": "magnitude", "sparsity": 0.5, "finetune": {"epochs": 1, "lr": 1e30, "batch_size": 64}}],
    }
    study = {**SMALL, "recipes": recipes, "formats": ["onnx-fp32"]}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    done = edgecompress("run", "study.yaml", "--out", "run")
    assert done.returncode == 1, done.stderr
    made = rows(tmp_path / "run")
    assert made["baseline", "onnx-fp32", "local"]["status"] == "ok"
    failed = made["diverges", "onnx-fp32", "local"]
    assert failed["status"] == "failed" and "lr" in failed["reason"] and failed["top1"] is None
    assert "diverges" in (tmp_path / "run" / "report.html").read_text()
    assert "diverges" in done.stdout


def test_the_report_needs_only_the_run_directory(edgecompress: Edgecompress, small_study: Path, tmp_path: Path) -> None:
    assert edgecompress("run", str(small_study), "--out", "run", "--set", "formats=[onnx-fp32]").returncode == 0
    small_study.unlink()
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    before = json.loads((moved / "results.json").read_text())
    for form in ("html", "md", "csv", "json"):
        done = edgecompress("report", "moved", "--format", form)
        assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"] == before["rows"]


@pytest.mark.parametrize("moment", ["training", "model", "artifact", "measurement"])
def test_killed_at_any_stage_it_ends_in_the_same_report(
    moment: str, edgecompress: Edgecompress, small_study: Path, tmp_path: Path
) -> None:
    """kill -9 when the first trace of a stage appears; the next run must end as an undisturbed one does."""
    assert edgecompress("run", str(small_study), "--out", "whole").returncode == 0
    argv = [sys.executable, "-m", "edgecompress", "run", str(small_study), "--out", "killed"]
    process = subprocess.Popen(
        argv, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    trace = tmp_path / "killed" / ("scratch" if moment == "training" else f"records/{moment}")
    deadline = time.monotonic() + 300
    while not (trace.is_dir() and any(p.is_file() for p in trace.rglob("*"))):
        assert process.poll() is None and time.monotonic() < deadline, f"no trace of the stage {moment}"
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "results.json").exists()

    again = edgecompress("run", str(small_study), "--out", "killed")
    assert again.returncode == 0, again.stderr
    assert stable(tmp_path / "killed") == stable(tmp_path / "whole")


def test_what_was_damaged_is_made_again(edgecompress: Edgecompress, small_study: Path, tmp_path: Path) -> None:
    argv = ("run", str(small_study), "--out", "run", "--set", "formats=[onnx-fp32]")
    assert edgecompress(*argv).returncode == 0
    before = stable(tmp_path / "run")
    for pattern in ("artifact/*/*.onnx", "model/*/weights.safetensors"):
        for file in (tmp_path / "run" / "files").glob(pattern):
            file.write_bytes(b"junk")
    again = edgecompress(*argv)
    assert again.returncode == 0 and "is damaged or gone: it is made again" in again.stderr
    assert stable(tmp_path / "run") == before
    assert all(f.stat().st_size > 1000 for f in (tmp_path / "run" / "files").glob("artifact/*/*.onnx"))


def test_a_directory_of_other_things_is_left_alone(
    edgecompress: Edgecompress, small_study: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "results.json").write_text("mine")
    done = edgecompress("run", str(small_study), "--out", "mine")
    assert done.returncode == 2 and "no run directory" in done.stderr
    assert (tmp_path / "mine" / "results.json").read_text() == "mine"


def test_a_model_that_ends_the_program_is_a_failure(edgecompress: Edgecompress, tmp_path: Path) -> None:
    (tmp_path / "quits.py").write_text("import sys\ndef net():\n    sys.exit(0)\n")
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({**SMALL, "model": {"name": "quits:net"}}))
    done = edgecompress("run", "study.yaml", "--out", "run")
    assert done.returncode == 1 and "ended the program" in done.stderr
