"""`edgecompress compress` with what a step refuses: one message, and nothing written. And what it leaves when it succeeds."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from edgecompress import api
from edgecompress.cli import main
from edgecompress.models import build
from edgecompress.models.checkpoint import save_model
from edgecompress.study import ModelSpec

pytestmark = pytest.mark.heavy
COMPRESS = ["compress", "--model", "resnet20", "--width", "0.25", "--data", "digits", "--out", "o"]


@pytest.mark.parametrize(
    ("step", "part"),
    [
        ("magnitude:sparsity=1", "sparsity"),
        ("magnitude:sparsity=-0.1", "sparsity"),
        ("magnitude:exclude=nothing", "nothing"),
        ("magnitude:steps=4", "finetune"),
        ("lookahead:sparsity=1.5", "sparsity"),
        ("lookahead:ratios={nothing: 0.5}", "nothing"),
        ("channels:macs=0.001", "macs"),
        ("channels:exclude=nothing", "nothing"),
    ],
)
def test_a_refused_step_is_one_message_and_leaves_nothing(
    step: str, part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*COMPRESS, "--step", step]) == 2
    error = capsys.readouterr().err
    assert part in error and "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_an_empty_directory_that_was_there_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "o").mkdir()
    assert main([*COMPRESS, "--step", "magnitude:exclude=nothing"]) == 2
    assert (tmp_path / "o").is_dir()


@pytest.mark.parametrize(
    "steps",
    [
        ["amc:macs=0.01"],
        ["channels:macs=0.001"],
        ["magnitude", "amc:policy=empty.yaml"],
        ["magnitude", "amc:save=no/p.yaml"],
    ],
)
def test_what_cannot_be_is_said_before_the_training(
    steps: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.yaml").touch()
    monkeypatch.setattr("edgecompress.train.fit", lambda *given, **more: pytest.fail("it was trained"))
    assert main([*COMPRESS, "--epochs", "1", *(word for step in steps for word in ("--step", step))]) == 2
    error = capsys.readouterr().err
    assert f"step {len(steps)} (" in error and "Traceback" not in error
    assert [path.name for path in tmp_path.iterdir()] == ["empty.yaml"]


def test_a_policy_that_the_command_itself_saves_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.yaml").write_text("amc_policy: 1\nkeep: {conv1: 0.5}\n")
    assert main([*COMPRESS, "--step", "amc:save=p.yaml", "--step", "amc:policy=p.yaml"]) == 2
    error = capsys.readouterr().err
    assert "step 2 of steps reads p.yaml, which step 1 of steps saves" in error and "Traceback" not in error


def test_one_step_after_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*COMPRESS, "--step", "lookahead:sparsity=0.5", "--step", "channels:macs=0.6,multiple=2"]) == 0
    model = api.load(tmp_path / "o")
    weight = model.get_parameter("layer1.0.conv1.weight")
    assert (weight == 0).any() and len(weight) <= 4


@pytest.mark.parametrize(
    ("classes", "channels", "said"), [(10, 3, "does not take 32×32 images with 1 channel"), (7, 1, "have 10 classes")]
)
def test_data_that_do_not_fit_a_model_are_one_message_at_export(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], classes: int, channels: int, said: str
) -> None:
    spec = ModelSpec(name="resnet20", width=0.25)
    save_model(tmp_path / "m", build(spec, num_classes=classes, in_shape=(channels, 32, 32)))
    out = tmp_path / "out"
    code = main(["export", str(tmp_path / "m"), "--data", "digits", "--format", "onnx-int8", "--out", str(out)])
    captured = capsys.readouterr()
    assert code == 2 and said in captured.err and len(captured.err.splitlines()) == 2 and captured.out == ""
    assert not out.exists()
