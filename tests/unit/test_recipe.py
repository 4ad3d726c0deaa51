"""Steps in a row: a mask stays a mask, the teacher is the model that came in, a broken step is told."""

from __future__ import annotations

import sys
import types
from dataclasses import dataclass

import pytest
import torch

from edgecompress import codebooks, masks, recipe
from edgecompress.errors import StepFailed, UserError
from edgecompress.recipe import run_steps
from edgecompress.study import Step
from tests.small_nets import few_digits, same_state, small_net

pytestmark = pytest.mark.heavy

PRUNE = {"method": "magnitude", "sparsity": 0.7}
RECOVER = {"method": "distill", "epochs": 1, "batch_size": 60}


@pytest.fixture(scope="module")
def digits():
    torch.set_num_threads(1)
    return few_digits(120)


def steps(*values) -> tuple[Step, ...]:
    return tuple(Step.model_validate(v) for v in values)


def test_a_mask_stays_a_mask_through_later_steps(digits, tmp_path):
    again = {"method": "magnitude", "sparsity": 0.5, "exclude": "conv?", "finetune": {"epochs": 1, "batch_size": 60}}
    model, records = run_steps(small_net(), steps(PRUNE, RECOVER, again), data=digits, seed=0, scratch=tmp_path)
    kept = round(0.3 * 24 * 256)
    assert int((model.fc1.weight != 0).sum()) == round(0.5 * kept)
    assert int((model.conv2.weight != 0).sum()) == round(0.3 * model.conv2.weight.numel())
    assert [r.method for r in records] == ["magnitude", "distill", "magnitude"]
    assert [len(r.trainings) for r in records] == [0, 1, 1]
    assert records[0].params["allocation"] == "uniform" and records[2].params["finetune"]["lr"] == 0.01
    assert all(r.seconds >= r.train_seconds >= 0 for r in records) and records[1].train_seconds > 0
    assert records[1].trainings[0].seed != records[2].trainings[0].seed
    assert not model.training


def test_the_same_again_is_the_same_and_costs_no_training(digits, tmp_path):
    first, _ = run_steps(small_net(), steps(PRUNE, RECOVER), data=digits, seed=4, scratch=tmp_path)
    fresh, _ = run_steps(small_net(), steps(PRUNE, RECOVER), data=digits, seed=4, scratch=tmp_path / "fresh")
    again, records = run_steps(small_net(), steps(PRUNE, RECOVER), data=digits, seed=4, scratch=tmp_path)
    assert same_state(first, fresh) and same_state(first, again)
    assert records[1].trainings[0].resumed_at_epoch == 1


def test_a_student_ends_the_masks(digits, tmp_path):
    student = {**RECOVER, "student": {"name": "tests.small_nets:small_net", "args": {"seed": 8}}}
    model, records = run_steps(small_net(), steps(PRUNE, student), data=digits, seed=0, scratch=tmp_path)
    assert masks.get(model) == {} and "replaced_model" in records[1].notes


def test_no_steps_is_the_model_itself(tmp_path):
    model = small_net()
    result, records = run_steps(model, (), data=None, seed=0, scratch=tmp_path)
    assert result is model and records == ()


@dataclass(frozen=True)
class NoParams:
    pass


def with_method(monkeypatch, apply) -> None:
    """A real method module under the name 'magnitude', whose apply is the given function."""
    module = types.ModuleType("edgecompress.compress.magnitude")
    module.Params, module.apply = NoParams, apply
    monkeypatch.setitem(sys.modules, "edgecompress.compress.magnitude", module)
    monkeypatch.setattr(recipe, "find", lambda *args, **kwargs: module)
    monkeypatch.setattr(recipe, "parse_params", lambda *args: NoParams())
    monkeypatch.setattr(recipe, "full_params", lambda *args: {})


def masked_net():
    model = small_net()
    masks.put(model, {"fc1.weight": torch.arange(24 * 256).reshape(24, 256) % 2 == 0})
    return model


def test_a_step_that_revives_pruned_weights_is_refused(monkeypatch, tmp_path):
    def revive(model, params, context):
        with torch.no_grad():
            model.fc1.weight.fill_(0.5)
        return model

    step = steps(PRUNE)
    with_method(monkeypatch, revive)
    with pytest.raises(StepFailed, match=r"fc1\.weight a value that an earlier step had pruned"):
        run_steps(masked_net(), step, data=None, seed=0, scratch=tmp_path)


def test_a_mask_that_a_step_forgot_is_put_back(monkeypatch, tmp_path):
    step = steps(PRUNE)
    with_method(monkeypatch, lambda model, params, context: masks.strip(model))
    model, _ = run_steps(masked_net(), step, data=None, seed=0, scratch=tmp_path)
    assert torch.equal(masks.get(model)["fc1.weight"], masks.get(masked_net())["fc1.weight"])


def test_a_step_that_leaves_nan_or_another_shape_is_refused(monkeypatch, tmp_path, digits):
    step = steps(PRUNE)

    def spoil(model, params, context):
        with torch.no_grad():
            model.fc2.bias[0] = float("inf")
        return model

    with_method(monkeypatch, spoil)
    with pytest.raises(StepFailed, match=r"fc2\.bias that are not finite"):
        run_steps(small_net(), step, data=None, seed=0, scratch=tmp_path)
    with_method(monkeypatch, lambda model, params, context: small_net(classes=3))
    with pytest.raises(UserError, match="after method magnitude"):
        run_steps(small_net(), step, data=digits, seed=0, scratch=tmp_path)


SHARE = {"method": "codebook", "values": 6, "exclude": "conv1"}


def few_values(model, names=("conv2", "fc1", "fc2")) -> bool:
    weights = [model.get_submodule(name).weight.detach() for name in names]
    return all(len(torch.unique(w[w != 0])) <= 6 and len(w.unique()) > 2 for w in weights)


def test_shared_values_stay_shared_through_pruning_and_distillation(digits, tmp_path):
    again = {"method": "magnitude", "sparsity": 0.5, "finetune": {"epochs": 1, "batch_size": 60, "lr": 1e-3}}
    recover = {**RECOVER, "lr": 1e-3}
    model, records = run_steps(small_net(), steps(SHARE, recover, again), data=digits, seed=0, scratch=tmp_path)
    assert few_values(model) and set(codebooks.get(model)) == {"conv2.weight", "fc1.weight", "fc2.weight"}
    assert not any("codebooks_ended" in r.notes for r in records)
    for name, codes in codebooks.get(model).items():
        assert torch.equal(codes == 0, model.get_parameter(name) == 0)


def test_the_record_says_where_shared_values_end(digits, tmp_path):
    student = {**RECOVER, "student": {"name": "tests.small_nets:small_net", "args": {"seed": 8}}}
    model, records = run_steps(small_net(), steps(SHARE, student), data=digits, seed=0, scratch=tmp_path)
    assert records[1].notes["codebooks_ended"] == ["conv2.weight", "fc1.weight", "fc2.weight"]
    assert codebooks.get(model) == {}
    other = {"method": "codebook", "values": 5, "init": "density", "exclude": ["conv?", "fc2"]}
    model, records = run_steps(small_net(), steps(SHARE, other), data=None, seed=0, scratch=tmp_path)
    assert "codebooks_ended" not in records[0].notes and set(codebooks.get(model)) == {
        "conv2.weight", "fc1.weight", "fc2.weight",
    }  # fmt: skip
    assert len(model.fc1.weight.unique()) == 5 and len(model.fc2.weight.unique()) == 6


def test_codes_that_a_step_forgot_are_put_back_and_spoilt_ones_end(monkeypatch, tmp_path):
    step = steps(PRUNE)
    model = small_net()
    codes = {"fc1.weight": torch.arange(24 * 256).reshape(24, 256) % 4, "fc2.weight": torch.ones(10, 24).long()}
    codebooks.put(model, codes)

    def forget_and_spoil(model, params, context):
        codebooks.strip(model)
        with torch.no_grad():
            model.fc2.weight[0, 0] += 1
            model.fc1.weight[3] = 0
        return model

    with_method(monkeypatch, forget_and_spoil)
    model, records = run_steps(model, step, data=None, seed=0, scratch=tmp_path)
    assert records[0].notes["codebooks_ended"] == ["fc2.weight"]
    codes["fc1.weight"][3] = 0
    assert torch.equal(codebooks.get(model)["fc1.weight"], codes["fc1.weight"].int()) and len(codebooks.get(model)) == 1
