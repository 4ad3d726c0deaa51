"""The bench of a device: a sweep that is kept only when it is certain, and candidates measured on this machine for real."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from edgecompress_agent import wire
from torch import nn

from edgecompress import cost
from edgecompress.board.session import Session, connect
from edgecompress.channel_sweep import LEAST_ROUNDS, MOST_ROUNDS, Setting
from edgecompress.errors import StepFailed, UserError
from edgecompress.on_device import DeviceBench
from edgecompress.progress import SILENT
from edgecompress.studyfile import read_device
from edgecompress.sweep_networks import network, setting_for

pytestmark = [pytest.mark.heavy, pytest.mark.slow]

SETTING = Setting(sizes=(4, 2))


class Metered(Session):
    """A session whose device is this machine, but for the time that a job takes: that is made up from the file's width."""

    def __init__(self, real: Session, per_mac) -> None:
        super().__init__(real.profile, real._agent)
        self.per_mac, self.asked = per_mac, []

    def measure(self, job: wire.Job, blobs: Mapping[str, Path], progress=SILENT, label: str = "") -> wire.Result:
        width = int(job.artifact.name.removeprefix("width-").partition(".")[0])
        self.asked.append(width)
        ns = tuple(int(1e3 * SETTING.macs(width) * self.per_mac(width)) for _ in range(10))
        return wire.Result(job.job_id, "0" * 64, "ok", blocks=(wire.Block(0, ns),))


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def local():
    with connect(read_device("local")) as session:
        yield session


def test_a_sweep_is_made_of_interleaved_rounds_and_kept(local, tmp_path):
    session = Metered(local, lambda w: 1.0 if w % 8 == 0 else 1.5)
    made = DeviceBench(session, "onnx-fp32", cache=tmp_path).sweep(SETTING)
    assert made["multiple"] == 8 and made["agreement"] == 1.0 and not made["cached"]
    assert session.asked == [*SETTING.widths, *SETTING.widths[::-1], *SETTING.widths]
    assert all(len(row["latency_ms"]) == LEAST_ROUNDS for row in made["widths"])
    assert made["identity"]["engine_version"].startswith("onnxruntime") and made["identity"]["device"] == "local"

    again = Metered(local, lambda w: 1.0)
    kept = DeviceBench(again, "onnx-fp32", cache=tmp_path).sweep(SETTING)
    assert kept == {**made, "cached": True} and again.asked == []
    # another number of threads is another sweep, and so is one that is asked for afresh
    assert DeviceBench(again, "onnx-fp32", threads=2, cache=tmp_path).sweep(SETTING)["multiple"] == 1
    assert DeviceBench(again, "onnx-fp32", cache=tmp_path).sweep(SETTING, fresh=True)["multiple"] == 1

    for file in tmp_path.glob("*.json"):
        file.write_text(file.read_text()[:-40])  # a damaged file is no sweep
    assert DeviceBench(session, "onnx-fp32", cache=tmp_path).sweep(SETTING)["multiple"] == 8


def test_a_sweep_in_noise_is_used_and_not_kept(local, tmp_path):
    generator = np.random.default_rng(3)
    session = Metered(local, lambda w: float(np.exp(generator.normal(0, 0.5))))
    said = []

    class Heard(type(SILENT)):
        def say(self, text: str) -> None:
            said.append(text)

    made = DeviceBench(session, "onnx-fp32", cache=tmp_path, progress=Heard()).sweep(SETTING)
    assert len(session.asked) == MOST_ROUNDS * len(SETTING.widths)
    assert made["agreement"] < 0.9 and "too noisy" in said[0] and not list(tmp_path.glob("*.json"))
    assert json.loads(json.dumps(made, allow_nan=False)) == made


def test_a_candidate_is_measured_against_the_dense_network(local, tmp_path):
    setting = Setting(sizes=(32, 16))
    dense, half = network(setting, 64), network(setting, 32)
    before = {name: tensor.clone() for name, tensor in half.state_dict().items()}
    with DeviceBench(local, "onnx-fp32", cache=tmp_path).against(dense, (3, 32, 32)) as ratio_of:
        found = ratio_of(half, target=0.9)
    assert 0.05 < found.ratio < 0.6  # a quarter of the arithmetic, on every engine
    assert found.low <= found.ratio <= found.high and found.rounds >= 3
    assert found.candidate_ms < found.dense_ms
    assert all(torch.equal(tensor, before[name]) for name, tensor in half.state_dict().items())


def test_what_the_device_cannot_run_is_a_failed_step(local, tmp_path):
    class Refused(Metered):
        def measure(self, job, blobs, progress=SILENT, label=""):
            return wire.Result(job.job_id, "0" * 64, "failed", reason="out of memory")

    with pytest.raises(StepFailed, match="local: out of memory"):
        DeviceBench(Refused(local, None), "onnx-fp32", cache=tmp_path).sweep(SETTING)


def layer(width):
    return lambda: (nn.Sequential(nn.Conv2d(8, width, 3, padding=1), nn.ReLU()).eval(), (8, 32, 32))


def test_small_networks_are_measured_once_and_a_failure_keeps_what_there_is(local, tmp_path):
    networks = {"conv 8": layer(8), "conv 128": layer(128)}
    found = DeviceBench(local, "onnx-fp32", cache=tmp_path).small("latency", networks)
    assert 0 < found["conv 8"] < found["conv 128"]

    class Dying(Session):
        def measure(self, job, blobs, progress=SILENT, label=""):
            asked.append(job.artifact.name)
            raise StepFailed("local: gone")

    asked: list[str] = []
    dying = DeviceBench(Dying(local.profile, local._agent), "onnx-fp32", cache=tmp_path)
    assert dying.small("latency", networks) == found and asked == []
    with pytest.raises(StepFailed, match="gone"):
        dying.small("latency", {**networks, "conv 16": layer(16)})
    more = DeviceBench(local, "onnx-fp32", cache=tmp_path).small("latency", {**networks, "conv 16": layer(16)})
    assert {name: more[name] for name in networks} == found and more["conv 16"] > 0
    for file in (tmp_path / "layers").glob("*.json"):
        file.write_text(file.read_text()[:-40])  # a damaged file is none
    with pytest.raises(StepFailed, match="gone"):
        dying.small("latency", networks)


def replaying(tmp_path, watts):
    trace = tmp_path / "trace.csv"
    trace.write_text("seconds,watts\n" + "".join(f"{k / 100:.2f},{watts}\n" for k in range(200)))
    update = {"sensor": "replay", "sensor_options": {"path": str(trace), "loop": True}}
    return read_device("local").model_copy(update=update)


def test_energy_is_the_sensors_power_times_the_time_of_an_inference(tmp_path, monkeypatch):
    answers = []
    measure = Session.measure
    monkeypatch.setattr(Session, "measure", lambda *given: answers.append(measure(*given)) or answers[-1])
    with connect(replaying(tmp_path, 4.0)) as session:
        session.check_sensor()
        mj = DeviceBench(session, "onnx-fp32", cache=tmp_path).energy_mj(*layer(128)())
    (answer,) = answers
    windows = [w for w in answer.power.windows if w.kind == "power"]
    seconds = sum(w.end_ns - w.start_ns for w in windows) / sum(w.inferences for w in windows) / 1e9
    assert len(windows) == 3 and mj == pytest.approx(1e3 * 4.0 * seconds, rel=0.01)


def test_energy_without_a_sensor_that_reads_is_refused(local, tmp_path):
    with pytest.raises(UserError, match="has no power sensor, and energy was asked for"):
        local.check_sensor()
    absent = {"sensor": "replay", "sensor_options": {"path": str(tmp_path / "absent.csv")}}
    with connect(read_device("local").model_copy(update=absent)) as session:
        with pytest.raises(UserError, match=r"its sensor replay cannot be read: .*absent.csv"):
            session.check_sensor()
        with pytest.raises(StepFailed, match="local"):
            DeviceBench(session, "onnx-fp32", cache=tmp_path).energy_mj(*layer(8)())


def test_the_networks_are_what_the_setting_says():
    for setting in (Setting(), Setting(80, (14, 7)), Setting(48, (10, 3, 1))):
        for width in (setting.widths[0], setting.widths[2]):
            model, size = network(setting, width), setting.sizes[0]
            assert cost.count(model, (3, size, size)).macs == setting.macs(width)
            assert model(torch.zeros(2, 3, size, size)).shape == (2, width)
    one, two = network(Setting(), 41), network(Setting(), 41)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_the_setting_follows_the_model():
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.MaxPool2d(2), nn.Conv2d(16, 128, 3, padding=1), nn.MaxPool2d(2),
        nn.Conv2d(128, 128, 3, padding=1), nn.Conv2d(128, 128, 3, padding=1, groups=128), nn.Flatten(),
    )  # fmt: skip
    setting = setting_for(model, (3, 32, 32))
    assert setting.sizes == (32, 16, 8) and setting.centre in (80, 112)
    assert setting_for(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), (3, 2, 2)) == Setting()
