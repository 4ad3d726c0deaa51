"""The step: how many values each layer gets, that zeros and excluded layers are left, that the values are k-means."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from edgecompress import codebooks, kmeans, masks
from edgecompress.compress.codebook import apply
from edgecompress.compress.contract import Context, full_params, parse_params
from edgecompress.errors import UserError
from edgecompress.recipe import run_steps
from edgecompress.study import Step
from tests.small_nets import few_digits, same_state, small_net

pytestmark = pytest.mark.heavy

LAYERS = ("conv1", "conv2", "fc1", "fc2")


def shared(tmp_path, model=None, data=None, seed=0, **params):
    torch.set_num_threads(1)
    model = model or small_net()
    context = Context(data=data, seed=seed, teacher=model, scratch=tmp_path)
    return apply(model, parse_params("codebook", params), context), context


def distinct(weight) -> int:
    return len(torch.unique(weight[weight != 0]))


@pytest.mark.parametrize("init", ["linear", "density", "forgy"])
def test_each_layer_has_its_own_k_means(tmp_path, init):
    dense = small_net()
    model, context = shared(tmp_path, values=5, init=init, seed=4)
    for number, layer in enumerate(LAYERS):
        before = dense.get_submodule(layer).weight.detach().numpy()
        expected = kmeans.cluster(before.ravel(), 5, init=init, seed=4 + number)
        after = model.get_submodule(layer).weight.detach().numpy()
        np.testing.assert_array_equal(after.ravel(), expected.centres.astype(np.float32)[expected.labels])
        error = context.notes["mean_squared_error"][f"{layer}.weight"]
        assert error == pytest.approx(((after - before) ** 2).mean(), rel=1e-3)
    assert torch.equal(model.fc1.bias, dense.fc1.bias) and torch.equal(model.bn1.weight, dense.bn1.weight)
    assert context.notes["values"] == {f"{layer}.weight": 5 for layer in LAYERS}


def test_zeros_stay_zeros_and_take_no_part(tmp_path):
    model = small_net()
    keep = torch.arange(24 * 256).reshape(24, 256) % 4 == 0
    masks.put(model, {"fc1.weight": keep})
    with torch.no_grad():
        model.fc2.weight[:, 3] = 0  # zeros without a mask
    before = model.fc1.weight.detach().clone()
    shared(tmp_path, model, few_digits(100), values=4, finetune={"epochs": 1, "batch_size": 50, "lr": 1e-3})
    assert torch.equal(model.fc1.weight == 0, ~keep) and not model.fc2.weight[:, 3].any()
    expected = kmeans.cluster(before[keep].numpy(), 4)
    assert torch.equal(codebooks.get(model)["fc1.weight"][keep], torch.from_numpy(expected.labels) + 1)
    assert all(distinct(model.get_submodule(layer).weight) == 4 for layer in LAYERS)


def test_values_and_bits_by_layer(tmp_path):
    model, _ = shared(tmp_path, values={"*": 7, "conv?": 9, "fc2": 3})
    assert [distinct(model.get_submodule(layer).weight) for layer in LAYERS] == [9, 9, 7, 3]
    model = small_net()
    masks.put(model, {"fc1.weight": torch.arange(24 * 256).reshape(24, 256) % 4 == 0})
    _, context = shared(tmp_path, model, bits={"fc*": 4, "conv*": 8}, exclude="conv2")
    # 200 weights have no 256 values; with zeros, one of the codes is theirs.
    assert context.notes["values"] == {"conv1.weight": 200, "fc1.weight": 15, "fc2.weight": 16}
    assert distinct(model.conv1.weight) == 200 and set(codebooks.get(model)) == set(context.notes["values"])
    _, context = shared(tmp_path)
    assert set(context.notes["values"].values()) == {32}


def test_biases(tmp_path):
    dense = small_net()
    model, context = shared(tmp_path, values=12, biases=True)
    # conv2 has 16 biases and fc1 24; fc2 has 10, which keep their values; conv1 has none
    assert context.notes["values"] == {
        "conv1.weight": 12, "conv2.weight": 12, "fc1.weight": 12, "fc2.weight": 12,
        "conv2.bias": 12, "fc1.bias": 12, "fc2.bias": 10,
    }  # fmt: skip
    assert distinct(model.conv2.bias) == 12 and torch.equal(model.fc2.bias, dense.fc2.bias)


def test_the_values_are_trained_and_which_weight_has_which_is_not(tmp_path):
    model, _ = shared(tmp_path, data=few_digits(100), values=6, finetune={"epochs": 2, "batch_size": 50, "lr": 1e-3})
    before, _ = shared(tmp_path, values=6)
    for name, codes in codebooks.get(before).items():
        assert torch.equal(codebooks.get(model)[name], codes)
        assert not torch.equal(model.get_parameter(name), before.get_parameter(name))
        assert distinct(model.get_parameter(name).detach()) == 6


def test_shared_weights_of_two_layers_have_one_codebook(tmp_path):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
            self.b.weight = self.a.weight

    model, _ = shared(tmp_path, Twice(), values=3)
    assert set(codebooks.get(model)) == {"a.weight"} and distinct(model.b.weight) == 3


def test_it_survives_a_recipe_and_yaml(tmp_path):
    step = Step.model_validate({"method": "codebook", "values": {"conv*": 8, "fc?": 5}, "init": "density"})
    again = Step.model_validate({"method": "codebook", **step.params})
    assert again == step and step.params["bits"] is None
    one, _ = run_steps(small_net(), (step,), data=None, seed=0, scratch=tmp_path)
    two, _ = run_steps(small_net(), (again,), data=None, seed=0, scratch=tmp_path)
    assert same_state(one, two)
    assert full_params("codebook", {"values": 3})["values"] == 3


def test_more_values_than_there_are_is_one_clear_message_and_changes_nothing(tmp_path):
    model = small_net()
    masks.put(model, {"fc2.weight": torch.arange(240).reshape(10, 24) < 20})
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(UserError, match=r"fc2\.weight has 20 distinct non-zero weights, not the 32 values") as error:
        shared(tmp_path, model, values=32)
    assert "values: {'fc2': 20, '*': 32}" in str(error.value)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()) and codebooks.get(model) == {}


def test_bad_layers_are_one_clear_message(tmp_path):
    with pytest.raises(UserError, match="values: 'layer9' matches no convolution or linear layer"):
        shared(tmp_path, values={"layer9": 3, "*": 4})
    with pytest.raises(UserError, match="bits: no pattern matches the layer fc2"):
        shared(tmp_path, bits={"conv*": 3, "fc1": 4})
    with pytest.raises(UserError, match=r"'fc\?' and '\?c1' match the layer fc1 equally well"):
        shared(tmp_path, values={"fc?": 3, "?c1": 4, "*": 5})
    with pytest.raises(UserError, match="needs data"):
        shared(tmp_path, values=3, finetune={"epochs": 1})


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"values": 4, "bits": 2}, "values or bits, not both"),
        ({"values": 0}, "greater than or equal to 1"),
        ({"bits": 17}, "less than or equal to 16"),
        ({"bits": {"fc1": 0}}, "greater than or equal to 1"),
        ({"init": "random"}, "'linear', 'density' or 'forgy'"),
        ({"value": 4}, "Did you mean 'values'"),
    ],
)
def test_bad_parameters_are_one_clear_message(params, words):
    with pytest.raises(ValueError, match=words):
        parse_params("codebook", params)
