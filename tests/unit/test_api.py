"""`edgecompress.compress` and `edgecompress.load`, as a program that imports the package uses them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import edgecompress as ec
from edgecompress import masks
from edgecompress.errors import StepFailed, UserError
from edgecompress.models import build
from edgecompress.models.checkpoint import save_model
from edgecompress.study import DataSpec, ModelSpec
from tests.small_nets import few_digits, same_state, small_net

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def digits():
    torch.set_num_threads(1)
    return few_digits(120)


def test_without_data(digits):
    model = small_net()
    result = ec.compress(model, "magnitude", sparsity=0.9, example_input=torch.zeros(4, 1, 32, 32))
    assert same_state(model, small_net()) and masks.get(model) == {}, "the model given is not changed"
    report = result.report
    assert report.params_before == report.params_after == sum(p.numel() for p in model.parameters())
    assert report.nonzero_after < 0.2 * report.nonzero_before
    assert report.bytes_before == report.bytes_after, "zeros take the same room"
    assert report.cost_before.macs == report.cost_after.macs > 5 * report.cost_after.effective_macs
    assert report.accuracy_before is None and report.accuracy_reason == "not measured: no data given"
    assert report.cost_reason is None and report.seconds > 0
    assert report.steps[0].params["sparsity"] == 0.9
    assert result.model(torch.zeros(2, 1, 32, 32)).shape == (2, 10)
    nothing_known = ec.compress(model, "magnitude").report
    assert nothing_known.cost_before is None and "shape" in nothing_known.cost_reason


def test_with_data_and_a_list_of_steps(digits):
    steps = [
        {"method": "magnitude", "sparsity": 0.5},
        {"method": "distill", "epochs": 4, "batch_size": 20, "lr": 0.05, "alpha": 0},
    ]
    report = ec.compress(small_net(), steps, data=digits, seed=1).report
    assert report.accuracy_before.images == report.accuracy_after.images == 120
    assert report.accuracy_after.split == "test" and report.accuracy_after.top1 > report.accuracy_before.top1
    assert report.cost_after.nonzero_params == report.nonzero_after
    assert [s.method for s in report.steps] == ["magnitude", "distill"]


def test_a_failure_says_what_is_kept_only_with_scratch(digits, tmp_path):
    tuning = {"epochs": 1, "batch_size": 60}
    steps = [
        {"method": "magnitude", "sparsity": 0.3, "finetune": tuning},
        {"method": "magnitude", "finetune": {**tuning, "lr": 1e30}},
    ]
    with pytest.raises(StepFailed, match=r"diverged(.|\n)*are not kept, for no scratch was given"):
        ec.compress(small_net(), steps, data=digits)
    for _ in range(2):
        with pytest.raises(StepFailed, match="diverged") as error:
            ec.compress(small_net(), steps, data=digits, scratch=tmp_path)
        assert "not kept" not in str(error.value)
    report = ec.compress(small_net(), steps[:1], data=digits, scratch=tmp_path).report
    assert report.steps[0].trainings[0].resumed_at_epoch == 1
    with pytest.raises(StepFailed) as error:  # nothing was done yet
        ec.compress(small_net(), steps[1:], data=digits)
    assert "not kept" not in str(error.value)


@pytest.mark.parametrize(
    ("scratch", "words"),
    [
        (["a"], "scratch: one directory for each step is needed: the steps are 2, the directories 1"),
        (["a", "b", "c"], "the steps are 2, the directories 3"),
        ([], "the steps are 2, the directories 0"),
        ((name for name in "ab"), "scratch: no directory, and no list of directories"),
        (["a", 3], "scratch: no directory, and no list of directories"),
        ("file", "scratch: file is no directory"),
        (["a", "file/b"], "scratch: file is no directory"),
    ],
)
def test_a_wrong_scratch_is_refused_before_any_work(digits, tmp_path, monkeypatch, scratch, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    step = {"method": "magnitude", "finetune": {"epochs": 1, "batch_size": 60}}
    if isinstance(scratch, list):
        scratch = [Path(folder) if isinstance(folder, str) else folder for folder in scratch]
    with pytest.raises(UserError, match=words):
        ec.compress(small_net(), [step, step], data=digits, scratch=scratch)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("kind", [list, tuple])
def test_scratch_may_be_one_directory_for_each_step(digits, tmp_path, kind):
    step = {"method": "magnitude", "finetune": {"epochs": 1, "batch_size": 60}}
    ec.compress(small_net(), [step, step], data=digits, scratch=kind([tmp_path / "a", str(tmp_path / "b")]))
    assert {path.parent.parent.name for path in tmp_path.rglob("checkpoint.pt")} == {"a", "b"}


def test_data_by_name_and_by_spec():
    by_name = ec.compress(small_net(), "magnitude", data="digits").report
    by_spec = ec.compress(small_net(), "magnitude", data=DataSpec(name="digits")).report
    assert by_name.accuracy_after == by_spec.accuracy_after and by_name.accuracy_after.images == 497


def test_load_gives_back_what_was_saved(tmp_path):
    spec = ModelSpec(name="lenet300")
    model = ec.compress(build(spec, num_classes=10, in_shape=(1, 28, 28)), "magnitude", sparsity=0.9).model
    save_model(tmp_path, model)
    loaded = ec.load(tmp_path)
    assert same_state(model, loaded) and masks.get(loaded).keys() == masks.get(model).keys()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: ec.compress(m, "magnitud"), "unknown method 'magnitud'"),
        (lambda m: ec.compress(m, "magnitude", sparsity=1.5), "sparsity"),
        (lambda m: ec.compress(m, [{"method": "magnitude"}], sparsity=0.5), "parameters belong into the steps"),
        (lambda m: ec.compress(m, [{"sparsity": 0.5}]), "a step needs 'method'"),
        (lambda m: ec.compress(m, 3), "int is no method"),
        (lambda m: ec.compress(m, "magnitude", data="digit"), "unknown dataset 'digit'"),
        (lambda m: ec.compress(m, "magnitude", data="npz"), "needs 'path'"),
        (lambda m: ec.compress(m, "magnitude", data=[1, 2]), "data is a list"),
        (lambda m: ec.compress(m, "distill", epochs=1), "needs data"),
    ],
)
def test_wrong_requests_are_one_clear_message(call, words):
    with pytest.raises(UserError, match=words):
        call(small_net())


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ({"method": "amc", "policy": "empty.yaml"}, r"step 2 \(amc\), empty.yaml: is empty"),
        (
            {"method": "amc", "save": "nowhere/policy.yaml"},
            r"step 2 \(amc\), save: .*the policy cannot be written there",
        ),
        ({"method": "amc", "macs": 0.01}, r"step 2 \(amc\): macs: 0.01 is out of reach: the lowest is"),
        ({"method": "channels", "exclude": ["nothing"]}, r"step 2 \(channels\): .*nothing"),
    ],
)
def test_a_later_step_is_looked_at_before_the_first_one_trains(digits, tmp_path, monkeypatch, step, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.yaml").touch()
    monkeypatch.setattr("edgecompress.train.fit", lambda *given, **more: pytest.fail("it was trained"))
    with pytest.raises(UserError, match=words):
        ec.compress(small_net(), [{"method": "distill", "epochs": 1}, step], data=digits)


def test_a_step_that_cannot_be_is_refused_before_anything_is_scored(digits, monkeypatch):
    monkeypatch.setattr("edgecompress.evaluate.accuracy", lambda *given, **more: pytest.fail("it was scored"))
    with pytest.raises(UserError, match=r"step 1 \(channels\): macs: 0.001 is out of reach"):
        ec.compress(small_net(), "channels", macs=0.001, data=digits)


def test_the_import_is_light_and_the_package_of_methods_is_callable():
    code = (
        "import sys, edgecompress as ec; assert 'torch' not in sys.modules; assert callable(ec.compress);"
        "from edgecompress.compress.contract import method_names; names = method_names();"
        "assert 'torch' not in sys.modules and 'magnitude' in names; assert callable(ec.compress);"
        "assert ec.compress.contract.method_names is method_names"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'decompress'"):
        ec.decompress  # noqa: B018
