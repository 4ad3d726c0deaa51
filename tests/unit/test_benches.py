"""The devices that steps measure on: part of the steps' keys, and reached before anything is trained."""

from __future__ import annotations

import pytest

from edgecompress.benches import open_benches
from edgecompress.cli import main
from edgecompress.compress.contract import Asked
from edgecompress.device_profile import DeviceProfile
from edgecompress.errors import UserError
from edgecompress.plan import make_plan
from edgecompress.study import Step, StudySpec

AWAY = {"name": "away", "transport": "ssh", "host": "127.0.0.1", "port": 1, "user": "nobody", "connect_timeout_s": 2}


def study(**params) -> StudySpec:
    recipes = {"plain": [{"method": "channels", "macs": 0.5}], "measured": [{"method": "channels", **params}]}
    return StudySpec.model_validate(
        {"name": "s", "model": {"name": "resnet20"}, "data": {"name": "digits"}, "recipes": recipes}
    )


def keys(devices: dict[str, DeviceProfile], agent: str = "a", **params) -> dict[str, tuple]:
    plan = make_plan(study(**params), devices, agent_sha256=agent)
    return {name: (chain[-1].key, chain[-1].measures) for name, chain in plan.recipes.items()}


def test_the_device_is_part_of_the_key_of_the_steps_that_measure_and_of_no_other():
    local, pi = DeviceProfile(name="local"), DeviceProfile(name="pi", cpus=(0,))
    usual = keys({"local": local, "pi": pi}, multiple="auto")
    assert usual["plain"][1] is None and usual["measured"][1] == Asked("local", "onnx-fp32")
    named = keys({"local": local, "pi": pi}, multiple="auto", device="pi")
    assert named["measured"][1] == Asked("pi", "onnx-fp32") and named["measured"][0] != usual["measured"][0]

    for devices, agent in (({"local": DeviceProfile(name="local", cpus=(1,))}, "a"), ({"local": local}, "b")):
        other = keys(devices, agent, multiple="auto")
        assert other["plain"] == usual["plain"] and other["measured"][0] != usual["measured"][0]


def test_a_device_that_is_not_of_the_study_is_one_clear_message():
    with pytest.raises(UserError, match=r"(?s)recipes.measured: .*'jetson', which is not one of this run's.*local"):
        keys({"local": DeviceProfile(name="local")}, latency=0.5, device="jetson")


def test_steps_that_measure_nothing_connect_to_nothing():
    steps = [Step.model_validate({"method": "channels", "macs": 0.5})]
    with open_benches(steps, DeviceProfile.model_validate(AWAY)):
        pass


def test_a_device_that_is_away_is_found_out_before_the_training(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    profile = "\n".join(f"{key}: {value}" for key, value in AWAY.items())
    (tmp_path / "away.yaml").write_text(profile)
    (tmp_path / "study.yaml").write_text(
        "name: s\nmodel: {name: resnet20}\ndata: {name: digits}\nbaseline: {epochs: 1}\ndevices: [away.yaml]\n"
        "recipes: {cut: [{method: channels, latency: 0.5}]}\nformats: [onnx-fp32]\n"
    )
    assert main(["run", "study.yaml", "--out", "run"]) == 2
    said = capfd.readouterr().err
    assert "device away" in said and "Traceback" not in said
    assert not list((tmp_path / "run").rglob("records"))

    step = [Step.model_validate({"method": "channels", "latency": 0.5})]
    with pytest.raises(UserError, match="device away"), open_benches(step, DeviceProfile.model_validate(AWAY)):
        pass


def test_an_energy_without_a_sensor_is_refused_before_any_work(monkeypatch):
    step = [Step.model_validate({"method": "amc", "energy": 0.5})]
    with (
        pytest.raises(UserError, match="device local: has no power sensor"),
        open_benches(step, DeviceProfile(name="local")),
    ):
        pass


def test_a_sweep_of_what_cannot_be_is_refused(capfd):
    for argv, words in (
        (["channels", "nowhere"], "unknown device 'nowhere'"),
        (["channels", "local", "--format", "onnx-fp16"], "unknown export format 'onnx-fp16'"),
        (["channels", "local", "--sizes", "8,16"], "from large to small"),
        (["channels", "local", "--threads", "0"], "1 or more"),
    ):
        assert main(["device", *argv]) == 2
        assert words in capfd.readouterr().err
