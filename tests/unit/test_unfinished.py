"""`edgecompress compress` that is stopped: the same command goes on from OUT.unfinished and ends as an undisturbed one does."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import numpy as np
import torch

from edgecompress import resume
from edgecompress.cli import main, models
from edgecompress.cli.parser import parse
from edgecompress.cli.settings import data_spec, step
from edgecompress.models import checkpoint
from edgecompress.rundir import RunDir
from edgecompress.study import ModelSpec, TrainSpec
from edgecompress.unfinished import Unfinished
from tests.small_nets import few_digits

pytestmark = pytest.mark.heavy
ROOT = Path(__file__).resolve().parents[2]
AMC = "amc:macs=0.5,episodes=20,warmup=5,images=20,fit=20,baselines=[random],lower=0.1,multiple=1"
NET = ["compress", "--model", "lenet5", "--data", "npz:path=digits.npz"]
SEARCHED = [*NET, "--epochs", "3", "--step", AMC, "--step", "magnitude:sparsity=0.3"]
DIVERGES = "magnitude:sparsity=0.5,finetune={epochs: 1, lr: 1.0e+30}"
GOES_ON = "goes on from what is kept in "
KEPT = "What is done is kept in o.unfinished; the same command goes on from there."
STILL = "still holds what another command left"
SEARCH = "*/search"


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data, path = few_digits(200, 60), tmp_path_factory.mktemp("data") / "digits.npz"
    train, test = (part.images(np.arange(len(part))) for part in (data.train, data.test))
    np.savez(path, x_train=train, y_train=data.train.labels, x_test=test, y_test=data.test.labels)
    return path


@pytest.fixture(autouse=True)
def here(tmp_path: Path, digits: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    Path("digits.npz").symlink_to(digits)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def stopped(*argv: str, by: signal.Signals, when: Callable[[], bool]) -> tuple[int, str]:
    """(exit status, standard error) of a command that gets a signal as soon as something holds."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    # tests that were started in the background of a shell ignore interrupts, and so would what they start
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [sys.executable, "-m", "edgecompress", *argv], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    signal.signal(signal.SIGINT, before)
    deadline = time.monotonic() + 300
    while not when():
        assert process.poll() is None and time.monotonic() < deadline, "it ended before it could be stopped"
        time.sleep(0.002)
    process.send_signal(by)
    error = process.communicate(timeout=300)[1]
    return process.returncode, error


@contextmanager
def ctrl_c_after(checkpoints_written: int) -> Iterator[None]:
    """Ctrl-C in this process, right after so many checkpoints."""
    real, left = resume.write, checkpoints_written

    def write(*arguments: Any) -> None:
        nonlocal left
        real(*arguments)
        left -= 1
        if left == 0:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resume, "write", write)
        yield


def checkpoints(pattern: str) -> list[Path]:
    return list(Path("o.unfinished").glob(f"scratch/{pattern}/checkpoint.pt"))


def written(pattern: str) -> int:
    """When the newest of these checkpoints was written; 0: there is none."""
    return max((path.stat().st_mtime_ns for path in checkpoints(pattern)), default=0)


def result(out: str) -> tuple[dict[str, bytes], Any]:
    """The bytes of the model and, of the report, what does not depend on when and how often it was stopped."""
    report = json.loads((Path(out) / "report.json").read_text())
    for part in [report, *report["steps"]]:
        del part["seconds"]
        search = part.get("notes", {}).get("search", {})
        for key in ("policies_per_second", "pass_share", "policies_scored", "scoring_seconds", "resumed_at"):
            search.pop(key, None)
        for strategy in search.get("strategies", {}).values():
            del strategy["seconds"]
    return {file.name: file.read_bytes() for file in Path(out).iterdir() if file.name != "report.json"}, report


def left() -> list[str]:
    return sorted(path.name for path in Path().iterdir() if path.name != "digits.npz")


def test_stopped_in_training_and_in_search_it_ends_in_the_same_bits(capsys: pytest.CaptureFixture[str]) -> None:
    argv = [*SEARCHED, "--out"]
    assert main([*argv, "whole"]) == 0 and left() == ["whole"]
    status, error = stopped(*argv, "o", by=signal.SIGINT, when=lambda: bool(checkpoints("*")))
    assert status == 130 and KEPT in error
    earlier = written(SEARCH)  # by the first, where the interrupt reached it late
    status, error = stopped(*argv, "o", by=signal.SIGKILL, when=lambda: written(SEARCH) > earlier)
    assert status == -signal.SIGKILL and f"{GOES_ON}o.unfinished" in error
    capsys.readouterr()
    assert main([*argv, "o"]) == 0
    assert f"{GOES_ON}o.unfinished" in capsys.readouterr().err and left() == ["o", "whole"]
    search = json.loads(Path("o/report.json").read_text())["steps"][0]["notes"]["search"]
    assert search["resumed_at"] >= 5
    assert result("o") == result("whole")


def test_another_command_does_not_go_on_from_it_and_leaves_it(capsys: pytest.CaptureFixture[str]) -> None:
    argv = [*NET, "--step", AMC, "--out"]
    assert main([*argv, "alone"]) == 0
    with ctrl_c_after(2):
        assert main([*NET, "--width", "0.5", "--step", AMC, "--out", "o"]) == 130
    assert KEPT in capsys.readouterr().err
    (kept,) = checkpoints(SEARCH)
    before = kept.read_bytes()
    assert main([*argv, "o"]) == 0
    said = capsys.readouterr().err
    assert "o.unfinished holds what another command left" in said and GOES_ON not in said
    assert f"o.unfinished {STILL}" in said
    assert result("o") == result("alone") and kept.read_bytes() == before


def test_a_step_that_measures_on_another_device_is_another_request() -> None:
    def keys(*more: str) -> tuple[str, ...]:
        arguments = parse([*NET, "--step", "amc:latency=0.5", "--out", "o", *more])
        spec, training = ModelSpec(name=arguments.model), TrainSpec(epochs=0)
        return models._keys(spec, data_spec(arguments.data), training, tuple(map(step, arguments.steps)), arguments)

    Path("other.yaml").write_text("name: other\ntransport: local\n")
    assert keys() == keys("--device", "local")
    (training, steps), (same, others) = keys(), keys("--device", "other.yaml")
    assert training == same and steps != others


def test_a_step_that_failed_leaves_the_training_to_a_mended_one(capsys: pytest.CaptureFixture[str]) -> None:
    argv = [*NET, "--epochs", "1", "--out", "o", "--step"]
    assert main([*argv, DIVERGES]) == 1
    error = capsys.readouterr().err
    assert "diverged" in error and KEPT in error
    (training,) = checkpoints("*")
    written = training.stat().st_mtime_ns
    assert main([*argv, DIVERGES]) == 1
    assert training.stat().st_mtime_ns == written, "it is not trained again"
    assert main([*argv, "magnitude:sparsity=0.5"]) == 0
    error = capsys.readouterr().err
    assert f"{GOES_ON}o.unfinished" in error and f"o.unfinished {STILL}" in error
    assert training.exists(), "the one that failed may go on from it, too: a device may have been away"


TUNED = "magnitude:sparsity=0.3,finetune={epochs: 1, batch_size: 50}"
TUNED_LONG = "magnitude:sparsity=0.5,finetune={epochs: 2, batch_size: 50}"


def test_a_changed_later_step_goes_on_with_what_the_earlier_ones_did(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*NET, "--step", AMC, "--step", DIVERGES, "--out", "o"]) == 1
    assert KEPT in capsys.readouterr().err and checkpoints(SEARCH)
    changed = ["--step", AMC, "--step", "magnitude:sparsity=0.5"]
    assert main([*NET, *changed, "--out", "o"]) == 0
    assert f"{GOES_ON}o.unfinished" in capsys.readouterr().err and checkpoints(SEARCH)
    search = json.loads(Path("o/report.json").read_text())["steps"][0]["notes"]["search"]
    assert search["resumed_at"] == 40, "all of it was there"
    assert main([*NET, *changed, "--out", "whole"]) == 0 and result("o") == result("whole")


@pytest.mark.parametrize("others", [["--step", TUNED], ["--step", TUNED, "--step", "magnitude:sparsity=0.4"]])
def test_what_two_commands_begin_with_stays_as_long_as_one_of_them_wants_it(
    others: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [*NET, "--step", TUNED, "--step", TUNED_LONG, "--out"]
    with ctrl_c_after(2):
        assert main([*argv, "o"]) == 130
    assert len(checkpoints("*/training-0")) == 2
    assert main([*NET, *others, "--out", "o"]) == 0
    assert len(checkpoints("*/training-0")) == 2, "the other command's are not harmed"
    assert main([*argv, "o"]) == 2
    assert "Move it away: the same command then goes on from what is kept" in capsys.readouterr().err
    shutil.rmtree("o")
    assert main([*argv, "o"]) == 0 and left() == ["o"]
    steps = json.loads(Path("o/report.json").read_text())["steps"]
    assert [step["trainings"][0]["resumed_at_epoch"] for step in steps] == [1, 1]


def request(*keys: str, did: str = "") -> Unfinished:
    """A request that has begun, and trained in each of these folders."""
    made = Unfinished(RunDir(Path("o.unfinished")), keys)
    made.begin()
    for key in did.split():
        folder = Path("o.unfinished/scratch", key, "training-0")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "checkpoint.pt").touch()
    return made


@pytest.mark.parametrize(
    ("first", "did", "second", "stays"),
    [
        ("base M A", "base", "base N", "base"),
        ("base M A", "base M", "base N", "base M"),
        ("base M A", "base M", "base M C", "base M"),
        ("base M A", "base M", "base M", "base M"),
        ("base M", "base M", "base M A", "base M"),  # the first's request lies in a folder of the second's
        ("base M", "base", "base M A", "base M"),
    ],
)
def test_folders_that_a_stopped_request_names_stay_when_another_ends(
    first: str, did: str, second: str, stays: str
) -> None:
    stopped = request(*first.split(), did=did)
    other = request(*second.split(), did=second)
    assert other.others()
    other.drop()
    kept = {path.parent.parent.name for path in checkpoints("*/training-0")}
    assert kept == set(stays.split()) and stopped.found() and other.others()
    request(*second.split(), did=second).drop()
    assert stopped.found(), "and when it ends once more"
    stopped.drop()
    assert not Path("o.unfinished").exists()


@pytest.mark.parametrize("second", ["base M A", "N A"])
def test_a_request_with_nothing_left_keeps_no_folder_alive(second: str) -> None:
    request("base", "M")
    ended = request(*second.split())
    assert not ended.others()
    ended.drop()
    assert not Path("o.unfinished").exists()


@pytest.mark.parametrize("how", ["begun", "ended"])
def test_stopped_while_it_saves_the_same_command_makes_it_whole(
    how: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [*NET, "--step", "magnitude:sparsity=0.5", "--out"]
    assert main([*argv, "whole"]) == 0
    real = checkpoint.save_model

    def saves_a_part(folder: Path, *rest: Any, **more: Any) -> None:
        (folder / "weights.safetensors").write_bytes(b"a part") if how == "begun" else real(folder, *rest, **more)
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save_model", saves_a_part)
    assert main([*argv, "o"]) == 130
    monkeypatch.setattr(checkpoint, "save_model", real)
    assert main([*NET, "--step", "magnitude:sparsity=0.6", "--out", "o"]) == 2, "another command finds a full directory"
    assert "nothing is overwritten" in capsys.readouterr().err
    assert main([*argv, "o"]) == 0
    assert result("o") == result("whole") and left() == ["o", "whole"]
    assert main([*argv, "o"]) == 2 and left() == ["o", "whole"]


def test_what_another_command_finished_meanwhile_is_not_overwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = ([*NET, "--step", f"magnitude:sparsity={s}", "--out", "o"] for s in (0.5, 0.9))
    real = checkpoint.save_model

    def stops(folder: Path, *rest: Any, **more: Any) -> None:
        real(folder, *rest, **more)
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save_model", stops)
    assert main(first) == 130
    monkeypatch.setattr(checkpoint, "save_model", real)
    shutil.rmtree("o")
    assert main(second) == 0
    made = result("o")
    assert main(first) == 2 and result("o") == made
    assert main([*NET, "--step", "magnitude", "--out", "/"]) == 2


def test_nothing_stays_where_nothing_was_done(capsys: pytest.CaptureFixture[str]) -> None:
    argv = [*NET, "--step", DIVERGES, "--out", "o"]
    assert main(argv) == 1
    assert "kept" not in capsys.readouterr().err and left() == []


def test_one_process_at_a_time_and_no_folder_of_other_things(capsys: pytest.CaptureFixture[str]) -> None:
    argv = [*NET, "--step", "magnitude", "--out", "o"]
    with RunDir(Path("o.unfinished")).locked():
        assert main(argv) == 2
    assert "o.unfinished: another process is at work in this directory" in capsys.readouterr().err
    Path("o.unfinished").mkdir(exist_ok=True)
    Path("o.unfinished/lock").unlink(missing_ok=True)
    Path("o.unfinished/mine").touch()
    assert main(argv) == 2
    assert "no run directory" in capsys.readouterr().err and [p.name for p in Path("o.unfinished").iterdir()] == [
        "mine"
    ]
    Path("o.unfinished/lock").touch()
    assert main(argv) == 0 and left() == ["o", "o.unfinished"]
    assert [p.name for p in Path("o.unfinished").iterdir()] == ["mine"], "only what is our own is removed"
