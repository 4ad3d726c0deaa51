"""The command line from outside: what it prints, where, and its exit status."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edgecompress.cli import main
from edgecompress.cli.settings import short_form
from edgecompress.errors import UserError


def test_help_imports_nothing_heavy() -> None:
    code = "import sys\nfrom edgecompress.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "print([m for m in ('torch', 'numpy', 'pydantic', 'yaml', 'rich', 'paramiko') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    for verb in ("run", "report", "compress", "evaluate", "export", "profile", "device", "pack", "unpack", "methods"):
        assert f"\n    {verb} " in done.stdout


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (["run", "absent.yaml"], "absent.yaml"),
        (["report", "absent"], "not a run directory"),
        (["profile", "absent.onnx"], "absent.onnx"),
        (["evaluate", "absent", "--data", "digits"], "neither a directory"),
        (["compress", "--model", "resnet2", "--data", "digits", "--step", "magnitude", "--out", "o"], "'resnet20'"),
        (["compress", "--model", "resnet20", "--data", "digits", "--step", "magnitud", "--out", "o"], "'magnitude'"),
        (["export", "m", "--format", "onnx-fp16", "--data", "digits", "--out", "o"], "'onnx-fp32'"),
        (["device", "doctor", "jetson-nan"], "'jetson-nano'"),
        (["methods", "distil"], "'distill'"),
    ],
)
def test_a_wrong_request_is_one_message_and_status_2(
    argv: list[str], part: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert part in err and "Traceback" not in err and out == ""
    assert list(tmp_path.iterdir()) == [], "a wrong request writes nothing"


def test_verbose_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "absent.yaml", "--verbose"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_methods_are_listed_and_described(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines()} >= {"magnitude", "distill"}
    assert main(["methods", "distill"]) == 0
    text = capsys.readouterr().out
    assert "Hinton" in text and "temperature" in text and "4.0" in text


def test_devices_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["device", "list"]) == 0
    assert "raspberry-pi-5" in capsys.readouterr().out


def test_the_short_form_keeps_brackets_and_quotes_whole() -> None:
    name, values = short_form("distill:student={name: resnet20, width: 0.5},epochs=3,exclude=[a,b],x='1,2'", "--step")
    assert name == "distill"
    assert values == {"student": {"name": "resnet20", "width": 0.5}, "epochs": 3, "exclude": ["a", "b"], "x": "1,2"}


@pytest.mark.parametrize("text", ["m:x", "m:=1", "m:x=1,x=2", "m:x=[1"])
def test_a_wrong_short_form(text: str) -> None:
    with pytest.raises(UserError):
        short_form(text, "--step")
