"""Magnitude pruning against numpy: which weights stay, how many, and that earlier masks and exclusions hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from edgecompress import masks
from edgecompress.compress.contract import Context, full_params, parse_params
from edgecompress.compress.magnitude import apply, prunable
from edgecompress.errors import UserError
from edgecompress.progress import SILENT
from tests.small_nets import few_digits, same_state, small_net

pytestmark = pytest.mark.heavy

LAYERS = ("conv1.weight", "conv2.weight", "fc1.weight", "fc2.weight")


def prune(model, tmp_path, data=None, progress=SILENT, **params):
    context = Context(data=data, seed=0, teacher=model, scratch=tmp_path, progress=progress)
    return apply(model, parse_params("magnitude", params), context), context


def by_numpy(weight: np.ndarray, keep: int) -> np.ndarray:
    mask = np.zeros(weight.size, bool)
    mask[np.argsort(-np.abs(weight.ravel()), kind="stable")[:keep]] = True
    return mask.reshape(weight.shape)


@pytest.mark.parametrize("sparsity", [0.0, 0.37, 0.8, 0.999])
def test_per_layer_the_largest_stay_and_biases_are_not_touched(tmp_path, sparsity):
    model, dense = small_net(), dict(small_net().named_parameters())
    prune(model, tmp_path, sparsity=sparsity)
    for name, parameter in model.named_parameters():
        before = dense[name].detach().numpy()
        if name in LAYERS:
            keep = by_numpy(before, round((1 - sparsity) * before.size))
            np.testing.assert_array_equal(parameter.detach().numpy(), np.where(keep, before, 0))
            np.testing.assert_array_equal(masks.get(model)[name].numpy(), keep)
        else:
            np.testing.assert_array_equal(parameter.detach().numpy(), before)
    assert set(masks.get(model)) == set(LAYERS)


def test_global_has_one_cut_off_over_all_layers(tmp_path):
    model, dense = small_net(), dict(small_net().named_parameters())
    _, context = prune(model, tmp_path, sparsity=0.7, allocation="global")
    everything = np.concatenate([dense[name].detach().numpy().ravel() for name in LAYERS])
    keep = by_numpy(everything, round(0.3 * everything.size))
    np.testing.assert_array_equal(np.concatenate([masks.get(model)[n].numpy().ravel() for n in LAYERS]), keep)
    fractions = context.notes["kept_fraction"]
    assert len(set(fractions.values())) > 1 and context.notes["kept_fraction_overall"] == pytest.approx(0.3, abs=1e-3)


def test_a_mapping_gives_each_layer_its_own_sparsity(tmp_path):
    model = small_net()
    sparsity = {"*": 0.5, "fc*": 0.9, "fc2": 0.25}
    prune(model, tmp_path, sparsity=sparsity, exclude="conv1")
    kept = {name: int(mask.sum()) / mask.numel() for name, mask in masks.get(model).items()}
    assert kept == pytest.approx({"conv2.weight": 0.5, "fc1.weight": 0.1, "fc2.weight": 0.75}, abs=0.005)
    assert full_params("magnitude", {"sparsity": sparsity})["sparsity"] == sparsity
    with pytest.raises(UserError, match=r"sparsity: 'layer9\*' matches no"):
        prune(small_net(), tmp_path, sparsity={"*": 0.5, "layer9*": 0.5})
    with pytest.raises(UserError, match="sparsity: no pattern matches the layer conv1"):
        prune(small_net(), tmp_path, sparsity={"fc*": 0.5})


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.8, 0.98])
@pytest.mark.parametrize("allocation", ["erk", "lamp", "global"])
def test_an_allocation_keeps_exactly_what_the_uniform_one_would_and_the_largest_of_each_layer(
    tmp_path, allocation, sparsity
):
    model, dense = small_net(), dict(small_net().named_parameters())
    prune(model, tmp_path, sparsity=sparsity, allocation=allocation)
    found = masks.get(model)
    assert sum(int(mask.sum()) for mask in found.values()) == round(
        (1 - sparsity) * sum(dense[name].numel() for name in LAYERS)
    )
    for name, mask in found.items():
        np.testing.assert_array_equal(mask.numpy(), by_numpy(dense[name].detach().numpy(), int(mask.sum())))


def test_lamp_is_the_score_of_its_paper(tmp_path):
    model, dense = small_net(), dict(small_net().named_parameters())
    prune(model, tmp_path, sparsity=0.9, allocation="lamp")
    scores = []
    for name in LAYERS:
        squares = dense[name].detach().numpy().astype(np.float64).ravel() ** 2
        scores.append(np.array([square / squares[squares >= square].sum() for square in squares]))
    everything = np.concatenate(scores)
    keep = by_numpy(everything, round(0.1 * everything.size))
    np.testing.assert_array_equal(np.concatenate([masks.get(model)[n].numpy().ravel() for n in LAYERS]), keep)


def test_lamp_does_not_empty_a_layer_that_a_single_cut_off_empties(tmp_path):
    def net():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(30, 30), nn.Linear(30, 4))
        with torch.no_grad():
            model[1].weight.mul_(1e-25)  # its squares are no float32 numbers
        return model

    kept = {}
    for allocation in ("lamp", "global"):
        model = net()
        prune(model, tmp_path, sparsity=0.9, allocation=allocation)
        kept[allocation] = int(masks.get(model)["1.weight"].sum())
    assert kept["global"] == 0 and kept["lamp"] >= 10


def test_a_pruned_model_is_the_start_of_a_lamp_step_that_looks_at_what_is_alive(tmp_path):
    """LAMP's sums are over what is alive: the score of a second step is that of the smaller layer."""
    model = small_net()
    prune(model, tmp_path, sparsity={"conv*": 0.0, "fc1": 0.95, "fc2": 0.0})
    alive = {name: model.get_parameter(name).detach().numpy().ravel().copy() for name in LAYERS}
    prune(model, tmp_path, sparsity=0.5, allocation="lamp")
    scores = {}
    for name, weights in alive.items():
        squares = weights[weights != 0].astype(np.float64) ** 2
        scores[name] = np.array([square / squares[squares >= square].sum() for square in squares])
    total = sum(map(len, scores.values()))
    cut = np.sort(np.concatenate(list(scores.values())))[::-1][round(0.5 * total) - 1]
    assert {n: int(m.sum()) for n, m in masks.get(model).items()} == {
        n: int((s >= cut).sum()) for n, s in scores.items()
    }


def test_half_is_rounded_to_even(tmp_path):
    model = nn.Sequential(nn.Linear(5, 1, bias=False), nn.Linear(1, 7, bias=False))
    prune(model, tmp_path, sparsity=0.5)
    kept = [int(m.sum()) for m in masks.get(model).values()]
    assert kept == [2, 4]  # round(2.5), round(3.5)


@pytest.mark.parametrize("allocation", ["uniform", "erk", "lamp", "global"])
def test_a_second_pruning_counts_from_what_is_alive_and_revives_nothing(tmp_path, allocation):
    model = small_net()
    prune(model, tmp_path, sparsity=0.5, allocation=allocation)
    first = masks.get(model)
    with torch.no_grad():
        model.fc2.weight.masked_fill_(
            first["fc2.weight"], 1e-12
        )  # alive, and smaller than a zero could tempt one to think
    prune(model, tmp_path, sparsity=0.6, allocation=allocation)
    second = masks.get(model)
    assert all(not (second[n] & ~first[n]).any() for n in LAYERS)
    if allocation == "uniform":
        for name in LAYERS:
            assert int(second[name].sum()) == round(0.4 * int(first[name].sum()))
    else:
        assert sum(int(m.sum()) for m in second.values()) == round(0.4 * sum(int(m.sum()) for m in first.values()))


def test_exclusions_are_patterns_of_layer_names(tmp_path):
    model = small_net()
    prune(model, tmp_path, sparsity=0.5, exclude=["conv?", "fc2"])
    assert set(masks.get(model)) == {"fc1.weight"}
    assert full_params("magnitude", {"exclude": "conv1"})["exclude"] == ["conv1"]


def test_shared_weights_are_pruned_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
            self.b.weight = self.a.weight

    assert list(prunable(Twice())) == ["a.weight"]
    assert prunable(Twice(), ("a",)).keys() == {"a.weight"}, "b still uses it"


def test_iterative_pruning_follows_the_cubic_schedule_and_trains_between(tmp_path):
    counts = []

    class Watch:
        def task(self, label, total):
            counts.append(int(masks.get(model)["fc1.weight"].sum()))
            return SILENT.task(label, total)

        def say(self, text):
            pass

    model = small_net()
    torch.set_num_threads(1)
    finetune = {"epochs": 7, "batch_size": 100}
    _, context = prune(model, tmp_path, few_digits(), Watch(), sparsity=0.9, steps=3, finetune=finetune)
    size = model.fc1.weight.numel()
    assert counts == [round((1 - 0.9 * (1 - (1 - t / 3) ** 3)) * size) for t in (1, 2, 3)]
    assert [t.epochs for t in context.trainings] == [2, 2, 3]
    assert context.trainings[0].history[0]["lr"] <= 0.01, "a fine-tuning's lr is 0.01 unless given"
    assert int((model.fc1.weight != 0).sum()) == counts[-1] == round(0.1 * size)
    again = small_net()
    prune(again, tmp_path / "other", few_digits(), sparsity=0.9, steps=3, finetune=finetune)
    assert same_state(model, again)


def test_each_step_goes_by_the_magnitudes_that_the_training_before_it_left(tmp_path):
    torch.set_num_threads(1)
    once = {"epochs": 1, "batch_size": 25, "lr": 0.1}
    first, whole = small_net(), small_net()
    prune(first, tmp_path / "first", few_digits(), sparsity=0.8 * (1 - 0.5**3), finetune=once)
    prune(whole, tmp_path / "whole", few_digits(), sparsity=0.8, steps=2, finetune={**once, "epochs": 2})
    for name in LAYERS:
        trained = dict(first.named_parameters())[name].detach().numpy()
        expected = by_numpy(trained, round((1 - 0.8) * trained.size))
        np.testing.assert_array_equal(masks.get(whole)[name].numpy(), expected)


def test_an_emptied_layer_is_told(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 300))
    _, context = prune(model, tmp_path, sparsity=0.99)
    assert context.notes["emptied_layers"] == ["0.weight"]


def test_bad_input_is_one_clear_message(tmp_path):
    with pytest.raises(UserError, match="'layer9' matches no") as error:
        prune(small_net(), tmp_path, exclude=["layer9"])
    assert "conv1" in str(error.value)
    with pytest.raises(UserError, match="no convolution or linear layer"):
        prune(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()), tmp_path)
    with pytest.raises(UserError, match="no convolution or linear layer"):
        prune(small_net(), tmp_path, exclude=["*"])
    broken = small_net()
    with torch.no_grad():
        broken.fc1.weight[0, 0] = float("nan")
    with pytest.raises(UserError, match=r"fc1\.weight holds values that are not finite"):
        prune(broken, tmp_path)
    assert masks.get(broken) == {}
    with pytest.raises(UserError, match="needs data"):
        prune(small_net(), tmp_path, finetune={"epochs": 1})


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"sparsity": 1.0}, "sparsity: must be at least 0 and less than 1, not 1.0"),
        ({"sparsity": -0.1}, "sparsity: must be at least 0"),
        ({"sparsity": float("nan")}, "sparsity: must be at least 0 and less than 1, not nan"),
        ({"sparsity": "much"}, "sparsity: a number is needed, not 'much'"),
        ({"sparsity": True}, "sparsity: a number is needed, not True"),
        ({"sparsity": {}}, "sparsity: the mapping is empty"),
        ({"sparsity": {"conv*": 0.5, "fc*": 1}}, "less than 1 for 'fc\\*', not 1"),
        ({"sparsity": {"*": 0.5}, "allocation": "erk"}, "allocation erk finds each layer's share itself"),
        ({"allocation": "network"}, "'uniform', 'erk', 'lamp' or 'global'"),
        ({"steps": 0}, "steps must be 1 or more"),
        ({"steps": 3}, "give finetune"),
        ({"steps": 3, "finetune": {"epochs": 2}}, "must not exceed the epochs"),
        ({"steps": 2, "finetune": {"epochs": 4, "warmup_epochs": 2}}, "warmup_epochs"),
        ({"finetune": {"epoch": 2}}, "finetune.epoch"),
        ({"sparsty": 0.5}, "Did you mean 'sparsity'"),
    ],
)
def test_bad_parameters_are_one_clear_message(params, words):
    with pytest.raises(ValueError, match=words.replace(".", r"\.")):
        parse_params("magnitude", params)
