"""Every mistake in a study or device file is one message with the file, the key and the choices."""

from __future__ import annotations

import math
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml

from edgecompress.activations import for_cpu, for_this_machine
from edgecompress.cli import main
from edgecompress.device_profile import DeviceProfile
from edgecompress.errors import UserError
from edgecompress.study import StudySpec
from edgecompress.studyfile import read_device, read_study, shipped_profiles

GOOD: dict[str, Any] = {"name": "s", "model": {"name": "resnet20"}, "data": {"name": "digits"}}


def write(folder: Path, study: Any) -> Path:
    path = folder / "study.yaml"
    path.write_text(study if isinstance(study, str) else yaml.safe_dump(study))
    return path


def test_the_smallest_study_has_every_default(tmp_path: Path) -> None:
    study = read_study(write(tmp_path, GOOD))
    assert study.recipes == {"baseline": ()} and study.devices == ("local",)
    assert study.trains_baseline is not None and study.trains_baseline.epochs == 6


def test_a_study_survives_its_own_json(tmp_path: Path) -> None:
    recipes = {"p": [{"method": "magnitude", "sparsity": 0.5, "finetune": {"epochs": 1}}]}
    study = read_study(write(tmp_path, {**GOOD, "recipes": recipes}))
    assert StudySpec.model_validate(study.model_dump(mode="json")) == study


def test_parameters_of_a_step_are_complete_with_their_defaults(tmp_path: Path) -> None:
    study = read_study(write(tmp_path, {**GOOD, "recipes": {"p": [{"method": "magnitude", "sparsity": 0.5}]}}))
    params = study.recipes["p"][0].params
    assert params["sparsity"] == 0.5 and params["allocation"] == "uniform"


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"recpies": {}}, ["recpies", "unknown key", "'recipes'"]),
        ({"model": {"name": "resnet21"}}, ["model.name", "unknown model 'resnet21'", "'resnet20'"]),
        ({"model": {"name": "resnet20", "weights": "none.pt"}}, ["model.weights", "no such file", "none.pt"]),
        ({"model": {"nam": "resnet20"}}, ["nam", "unknown key", "'name'", "model.name: is needed and missing"]),
        ({"data": {"name": "digit"}}, ["data.name", "unknown dataset 'digit'", "'digits'"]),
        ({"data": {"name": "digits", "root": "x"}}, ["data", "takes no 'root'"]),
        ({"data": {"name": "npz"}}, ["data", "needs 'path'"]),
        ({"formats": ["onnx-int4"]}, ["formats", "unknown format 'onnx-int4'", "'onnx-int8'"]),
        ({"formats": []}, ["formats", "at least 1"]),
        ({"formats": ["onnx-fp32", "onnx-fp32"]}, ["formats", "stands twice"]),
        ({"devices": []}, ["devices", "at least 1"]),
        ({"recipes": {}}, ["recipes", "at least 1"]),
        ({"recipes": {"p": [{"method": "magnitud", "sparsity": 0.5}]}}, ["recipes.p[0]", "'magnitud'", "'magnitude'"]),
        ({"recipes": {"p": [{"method": "magnitude", "sparsty": 0.5}]}}, ["recipes.p[0]", "'sparsty'", "'sparsity'"]),
        ({"recipes": {"p": [{"method": "magnitude", "sparsity": 1.5}]}}, ["recipes.p[0]", "sparsity"]),
        ({"recipes": {"p": [{"method": "distill", "temperature": 0}]}}, ["recipes.p[0]", "temperature"]),
        ({"recipes": {"p": [{"sparsity": 0.5}]}}, ["recipes.p[0]", "needs 'method'"]),
        ({"recipes": {"a/b": []}}, ["recipes", "'a/b'"]),
        ({"baseline": {"epochs": "many"}}, ["baseline.epochs", "integer", "'many'"]),
        ({"baseline": {"epochs": -1}}, ["baseline.epochs", "greater than or equal to 0"]),
        ({"seed": -1}, ["seed"]),
        ({"measure": {"blocks": 1}}, ["measure.blocks"]),
    ],
)
def test_a_mistake_names_file_key_and_choice(tmp_path: Path, change: dict[str, Any], parts: list[str]) -> None:
    path = write(tmp_path, {**GOOD, **change})
    with pytest.raises(UserError) as caught:
        read_study(path)
    message = str(caught.value)
    for part in [str(path), *parts]:
        assert part in message, message


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a: [1", ["study.yaml:1", "not valid YAML"]),
        ("- 1", ["must be a mapping"]),
        ("", ["must be a mapping"]),
        ("name: a\nname: b\n", ["study.yaml:2", "'name' stands twice"]),
        (
            "name: s\nmodel: {name: resnet20}\ndata: {name: digits}\nrecipes:\n  a: []\n  a: []\n",
            [":6", "stands twice"],
        ),
        ("name: ${EDGECOMPRESS_TEST_UNSET}\n", ["EDGECOMPRESS_TEST_UNSET is not set", "name"]),
        ("name: !!python/object/apply:os.system [ls]\n", ["not valid YAML"]),
        ("[1]: x", ["plain word"]),
    ],
)
def test_broken_yaml_is_one_message_with_the_line(tmp_path: Path, text: str, parts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        read_study(write(tmp_path, text))
    for part in parts:
        assert part in str(caught.value), str(caught.value)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"model": {"name": "resnet20", "weights": "folder"}}, "model.weights"),
        ({"data": {"name": "npz", "path": "folder"}}, "data.path"),
        ({"recipes": {"r": [{"method": "amc", "policy": "folder"}]}}, "policy"),
        ({"recipes": {"r": [{"method": "distill", "student": {"width": 0.5, "weights": "folder"}}]}}, "weights"),
        ({"recipes": {"r": [{"method": "distill", "teachers": [{"width": 2, "weights": "folder"}]}]}}, "weights"),
        (
            {"recipes": {"r": [{"method": "magnitude", "finetune": {"distill": {"teachers": {"weights": "folder"}}}}]}},
            "weights",
        ),
    ],
)
def test_a_directory_where_a_file_is_needed(
    tmp_path: Path, change: dict[str, Any], key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder").mkdir()
    file = write(tmp_path, {**GOOD, **change})
    assert main(["run", str(file), "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path / 'folder'} is a directory, and a file is needed" in error and key in error
    assert "Traceback" not in error and not (tmp_path / "run").exists()


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize(
    ("recipes", "places"),
    [
        (
            {"search": [{"method": "amc", "save": "found.yaml"}], "apply": [{"method": "amc", "policy": "./found.yaml"}]},
            ("step 1 of apply", "step 1 of search"),
        ),
        (
            {"apply": ["magnitude", {"method": "amc", "policy": "{base}/found.yaml"}],
             "search": ["magnitude", {"method": "amc", "params": 0.5, "save": "found.yaml"}]},
            ("step 2 of apply", "step 2 of search"),
        ),
        (
            {"r": [{"method": "amc", "params": {"save": "found.yaml"}}, {"method": "amc", "policy": "found.yaml"}]},
            ("step 2 of r", "step 1 of r"),
        ),
    ],
)  # fmt: skip
def test_a_file_that_the_study_itself_saves_is_no_policy_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], there: bool, recipes: Any,
    places: tuple[str, str],
) -> None:  # fmt: skip
    (tmp_path / "study").mkdir()
    if there:
        (tmp_path / "study" / "found.yaml").write_text("amc_policy: 1\nkeep: {conv1: 0.5}\n")
    text = yaml.safe_dump({**GOOD, "recipes": recipes}).replace("{base}", str(tmp_path / "study"))
    file = write(tmp_path / "study", text)
    monkeypatch.chdir(tmp_path)
    assert main(["run", str(file), "--out", "run"]) == 2
    error = capsys.readouterr().err
    assert f"recipes: {places[0]} reads " in error and f"which {places[1]} saves in this same study" in error
    assert "Do the search in a study of its own" in error and len(error.splitlines()) == 1, error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"method": "amc", "policy": "loop"}, "policy: no such file: {base}/loop"),
        ({"method": "amc", "policy": "loop/x.yaml"}, "policy: no such file: {base}/loop/x.yaml"),
        ({"method": "amc", "policy": "~nobody-here/x.yaml"}, "policy: ~nobody-here/x.yaml: there is no such home directory"),
        ({"method": "amc", "save": "~nobody-here/x.yaml"}, "save: ~nobody-here/x.yaml: there is no such home directory"),
    ],
)  # fmt: skip
def test_a_path_that_leads_nowhere_is_one_message(tmp_path: Path, step: Any, message: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UserError) as error:
        read_study(write(tmp_path, {**GOOD, "recipes": {"r": [step]}}))
    said = f"recipes.r[0]: method amc: {message.replace('{base}', str(tmp_path))}"
    assert str(error.value) == f"{tmp_path / 'study.yaml'}: {said}"
    with pytest.raises(UserError, match=r"model\.weights: ~nobody-here/w\.pt: there is no such home directory"):
        read_study(write(tmp_path, {**GOOD, "model": {"name": "resnet20", "weights": "~nobody-here/w.pt"}}))


def test_environment_and_paths_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGECOMPRESS_TEST_NAME", "from-env")
    (tmp_path / "w.safetensors").write_bytes(b"")
    study = {**GOOD, "name": "${EDGECOMPRESS_TEST_NAME}", "model": {"name": "resnet20", "weights": "w.safetensors"}}
    path = write(tmp_path, study)
    monkeypatch.chdir("/")
    read = read_study(path)
    assert read.name == "from-env" and read.model.weights == tmp_path / "w.safetensors"
    assert read.trains_baseline is None, "weights are given: nothing is trained unless asked for"


def test_settings_of_the_command_line(tmp_path: Path) -> None:
    recipes = {"p": [{"method": "magnitude", "sparsity": 0.5}]}
    path = write(tmp_path, {**GOOD, "recipes": recipes})
    study = read_study(path, ["measure.min_s=2", "recipes.p.0.sparsity=0.25", "formats=[onnx-int8]"])
    assert study.measure.min_s == 2 and study.recipes["p"][0].params["sparsity"] == 0.25
    assert study.formats == ("onnx-int8",)


@pytest.mark.parametrize(
    "setting",
    [
        "measure",
        "=1",
        "recipes.p.7.sparsity=1",
        "name.x=1",
        "measure.min_s=[",
        "measure.mins=2",
        "seed=2026-99-99",
        "recipes.p.².x=1",
        "measure={blocks: 2, blocks: 3}",
    ],
)
def test_wrong_settings(tmp_path: Path, setting: str) -> None:
    path = write(tmp_path, {**GOOD, "recipes": {"p": [{"method": "magnitude", "sparsity": 0.5}]}})
    with pytest.raises(UserError):
        read_study(path, [setting])


def test_shipped_profiles_are_valid(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for file in ("weights/resnet56.safetensors", "cifar10.npz"):  # what a study names has to be there
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    monkeypatch.setenv("EDGECOMPRESS_DATA", str(tmp_path))
    monkeypatch.setenv("CIFAR10_50K", str(tmp_path / "cifar10.npz"))
    names = set(shipped_profiles("devices"))
    assert names >= {"local", "raspberry-pi-4", "raspberry-pi-5", "jetson-nano", "jetson-orin-nano", "jetson-agx-orin"}
    for name in names:
        assert read_device(name).name == name
    for path in shipped_profiles("studies").values():
        read_study(path)


@pytest.mark.parametrize(
    ("profile", "part"),
    [
        ({"name": "x", "transport": "ssh"}, "needs 'host'"),
        ({"name": "x", "host": "h"}, "host needs transport: ssh"),
        ({"name": "x", "transport": "serial"}, "needs 'serial_port'"),
        ({"name": "x", "transport": "serial", "serial_port": "/dev/ttyUSB0", "port": 22}, "port needs transport: ssh"),
        ({"name": "x", "transport": "serial", "serial_port": "/dev/ttyUSB0", "user": "pi\nreboot"}, "user"),
        ({"name": "x", "transport": "serial", "serial_port": "/dev/ttyUSB0", "password_env": "A B"}, "password_env"),
        ({"name": "x", "transport": "serial", "serial_port": "/dev/ttyUSB0", "password": "s3cret"}, "password_env"),
        ({"name": "x", "transport": "ssh", "host": "h", "baud": 9600}, "baud needs transport: serial"),
        ({"name": "x", "transport": "usb"}, "transport"),
        ({"name": "x", "pyton": "python3"}, "'python'"),
        ({"name": "x", "python": "python3; reboot"}, "python"),
        ({"name": "x", "workdir": "~bob/x"}, "workdir: only one's own '~' is expanded: write the path in full"),
        ({"name": "x", "python": "~bob/x"}, "python: only one's own '~' is expanded"),
        ({"name": "x", "sensor": "ina2190"}, "sensor"),
        ({"name": "x", "battery_wh": math.inf}, "battery_wh: input should be a finite number"),
        ({"name": "x", "cpus": []}, "cpus: needs at least 1 item"),
        ({"name": "x", "cpus": 3}, "cpus: input should be a list, not 3"),
        ({"name": "x", "engines": ["onnx"]}, "engines: input should be a mapping of keys to values"),
        ({"name": "x", "cpus": [-1]}, "cpus[0]"),
        ({"name": "x", "engines": {"onnx": "litert"}}, "litert runs no .onnx files; onnxruntime does"),
        (
            {"name": "x", "sensor": "ina219", "sensor_options": {"shunt_ohm": math.nan}},
            "sensor_options: a value must be",
        ),
        ({"name": "x", "sensor": "replay", "sensor_options": {"path": date(2026, 1, 2)}}, "date is not JSON"),
    ],
)
def test_wrong_device_profiles(tmp_path: Path, profile: dict[str, Any], part: str) -> None:
    path = tmp_path / "d.yaml"
    path.write_text(yaml.safe_dump(profile))
    with pytest.raises(UserError) as caught:
        read_device(str(path))
    assert part in str(caught.value) and str(path) in str(caught.value)


def test_unknown_device_lists_the_near_misses() -> None:
    with pytest.raises(UserError, match="raspberry-pi-5"):
        read_device("rapsberry-pi-5")


def test_validating_a_study_imports_nothing_heavy(tmp_path: Path) -> None:
    import subprocess

    code = "import sys; from pathlib import Path; from edgecompress.studyfile import read_study; read_study(Path(sys.argv[1]))\n"
    code += "print([m for m in ('torch', 'onnx', 'onnxruntime', 'litert_torch', 'matplotlib', 'paramiko') if m in sys.modules])"
    path = write(tmp_path, {**GOOD, "recipes": {"p": [{"method": "magnitude", "sparsity": 0.5}], "d": ["distill"]}})
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_activations_are_those_that_the_cpu_runs_fast_and_without_saturation() -> None:
    assert for_cpu("x86_64", {"avx2", "avx512_vnni"}) == "uint8" and for_cpu("x86_64", {"avx_vnni"}) == "uint8"
    assert for_cpu("x86_64", {"avx2"}) == "uint8-reduced" and for_cpu("aarch64", set()) == "int8"
    assert DeviceProfile(name="x").int8_activations == for_this_machine()
    assert DeviceProfile(name="x", transport="ssh", host="h").int8_activations == "int8"
    assert DeviceProfile(name="x", int8_activations="symmetric-int8").int8_activations == "symmetric-int8"
