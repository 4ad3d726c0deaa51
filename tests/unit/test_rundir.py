from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edgecompress.errors import UserError
from edgecompress.records import Accuracy, Cost, Failure, ModelRecord, StepRecord, TrainRecord, from_json, to_json
from edgecompress.rundir import RunDir, content_key, write_atomically

ACCURACY = Accuracy(split="test", images=4, top1=0.75, top5=None, correct="1101")
MODEL = ModelRecord(
    directory="files/model/abc",
    steps=(
        StepRecord(
            method="magnitude",
            params={"sparsity": 0.5},
            seconds=1.5,
            trainings=(TrainRecord(1, 2.0, 100, 0.1, ({"loss": 0.1},), "cpu", "32", 0),),
        ),
    ),
    cost=Cost(10, 5, 100, 50, 4000),
    accuracy=ACCURACY,
)


def test_records_survive_json() -> None:
    text = json.dumps(to_json(MODEL))
    assert from_json(ModelRecord, json.loads(text)) == MODEL


def test_key_is_the_same_for_equal_inputs_and_differs_for_others() -> None:
    assert content_key("a", {"x": 1, "y": (1, 2)}) == content_key("a", {"y": [1, 2], "x": 1})
    assert content_key("a", {"x": 1}) != content_key("a", {"x": 1.5})
    assert content_key("ab", "c") != content_key("a", "bc")
    with pytest.raises(ValueError):
        content_key(float("nan"))


def test_a_step_is_done_when_its_record_is_there(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    assert run.record("model", "k", ModelRecord) is None
    run.fail("model", "k", Failure("model", "broke"))
    assert run.failure("model", "k") == Failure("model", "broke")
    run.commit("model", "k", MODEL)
    assert run.record("model", "k", ModelRecord) == MODEL
    assert run.failure("model", "k") is None


def test_a_folder_is_whole_or_absent(tmp_path: Path) -> None:
    run = RunDir(tmp_path)

    def broken(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        run.make_folder("model", "k", broken)
    assert not run.path("files", "model", "k").exists()
    folder, made = run.make_folder("model", "k", lambda folder: (folder / "whole").write_text("y"))
    assert [p.name for p in folder.iterdir()] == ["whole"] and made == 1


def test_a_broken_record_is_named(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    write_atomically(tmp_path / "records" / "model" / "k.json", '{"directory": 1')
    with pytest.raises(UserError, match="cannot be read") as caught:
        run.record("model", "k", ModelRecord)
    assert "k.json" in caught.value.where and "Delete the file" in caught.value.fix


def test_writing_atomically_replaces_and_leaves_nothing_behind(tmp_path: Path) -> None:
    for text in ("first", "second"):
        write_atomically(tmp_path / "deep" / "file", text)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["file"]
    assert (tmp_path / "deep" / "file").read_text() == "second"


def test_one_process_holds_the_directory_and_its_death_frees_it(tmp_path: Path) -> None:
    hold = "import sys,time; from pathlib import Path; from edgecompress.rundir import RunDir\n"
    hold += "with RunDir(Path(sys.argv[1])).locked(): print('held', flush=True); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", hold, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another process"), RunDir(tmp_path).locked():
            pass
    finally:
        other.kill()
        other.wait()
    with RunDir(tmp_path).locked():
        pass


def test_run_id_is_made_once(tmp_path: Path) -> None:
    first = RunDir(tmp_path).run_id
    assert RunDir(tmp_path).run_id == first and len(first) == 32


def test_no_run_directory_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run directory"):
        RunDir(tmp_path).read_json("plan.json")
