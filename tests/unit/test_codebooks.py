"""Shared values: they travel with the model, stay equal through any training, and move by the sum of their gradients."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import Tensor, nn

from edgecompress import codebooks, masks
from edgecompress.errors import UserError
from edgecompress.models.checkpoint import load_model, save_model
from edgecompress.study import TrainSpec
from edgecompress.train import fit
from tests.small_nets import few_digits, same_state, small_net

pytestmark = pytest.mark.heavy

SHARED = ("conv1.weight", "conv2.weight", "fc1.weight", "fc2.bias")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def digits():
    return few_digits()


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))


def shared_net():
    """A network whose weights have few values each, at random places, some of them zero."""
    model, generator = small_net(), torch.Generator().manual_seed(3)
    codes = {
        name: torch.randint(0, 6, p.shape, generator=generator)
        for name, p in model.named_parameters()
        if name in SHARED
    }
    codebooks.put(model, codes)
    return model, codes


def test_put_get_strip():
    model = net()
    keys = list(model.state_dict())
    codes = torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0], [5, 5, 1, 0]])
    first = model[0].weight.detach().clone()
    codebooks.put(model, {"0.weight": codes})
    assert list(model.state_dict()) == keys
    table = torch.tensor([0.0, first[0, 1], first[0, 2], first[0, 3], 0.0, first[2, 0]])
    assert torch.equal(model[0].weight, table[codes])
    assert torch.equal(codebooks.values(model[0].weight, codes), table)
    for one in (model, copy.deepcopy(model)):
        assert torch.equal(codebooks.get(one)["0.weight"], codes.int()) and set(codebooks.get(one)) == {"0.weight"}
    with torch.no_grad():
        model[0].weight[1, 3] = -0.5
        model[0].weight[2, 1] += 1
    assert not codebooks.holds(model[0].weight, codes)
    codebooks.apply(model)
    assert codebooks.holds(model[0].weight, codes) and torch.equal(model[0].weight, table[codes])
    codebooks.strip(model)
    assert codebooks.get(model) == {} and torch.equal(model[0].weight, table[codes])


def test_the_caller_keeps_its_codes():
    model, codes = net(), torch.ones(3, 4, dtype=torch.int32)
    codebooks.put(model, {"0.weight": codes})
    masks.put(model, {"0.weight": torch.arange(12).reshape(3, 4) > 3})
    codebooks.apply(model)
    assert (codes == 1).all()
    assert (codebooks.get(model)["0.weight"][0] == 0).all() and (model[0].weight[0] == 0).all()
    assert (model[0].weight[1:] == model[0].weight[1, 0]).all() and model[0].weight[1, 0] != 0, (
        "not the dropped one's zero"
    )


def test_codes_for_another_model_are_a_clear_message():
    with pytest.raises(UserError, match=r"'9\.weight' fit no parameter"):
        codebooks.put(net(), {"9.weight": torch.ones(3, 4, dtype=torch.int32)})
    with pytest.raises(UserError, match=r"shape \(4, 3\), the parameter \(3, 4\)"):
        codebooks.put(net(), {"0.weight": torch.ones(4, 3, dtype=torch.int32)})
    for codes in (torch.full((3, 4), -1), torch.ones(3, 4)):
        with pytest.raises(UserError, match="no integers from 0"):
            codebooks.put(net(), {"0.weight": codes})


def test_a_parameter_of_another_shape_has_no_codes():
    model = net()
    codebooks.put(model, {"0.weight": torch.ones(3, 4, dtype=torch.int32)})
    model[0].weight = nn.Parameter(torch.ones(2, 4))
    assert codebooks.get(model) == {} and codebooks.hold(model) == []
    codebooks.strip(model)
    assert dict(model.named_buffers()) == {}


class ByCodebook(nn.Module):
    """The oracle: a small net whose layers compute their weights from a codebook that is a parameter, values[codes]."""

    def __init__(self, model: nn.Module, codes: dict[str, Tensor]) -> None:
        super().__init__()
        self.net, self.codes = model, codes
        self.values = nn.ParameterDict()
        for name, parameter in list(model.named_parameters()):
            if name in codes:
                self.values[name.replace(".", "_")] = nn.Parameter(codebooks.values(parameter, codes[name])[1:].clone())
                path, _, leaf = name.rpartition(".")
                delattr(model.get_submodule(path), leaf)
                setattr(model.get_submodule(path), leaf, None)

    def forward(self, x: Tensor) -> Tensor:
        for name, codes in self.codes.items():
            table = torch.cat([torch.zeros(1), self.values[name.replace(".", "_")]])
            path, _, leaf = name.rpartition(".")
            module = self.net.get_submodule(path)
            module.__dict__[leaf] = table[codes]
            module._parameters.pop(leaf, None)
        return self.net(x)


@pytest.mark.parametrize(
    "choices",
    [
        {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0},
        {"optimizer": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
        {"optimizer": "adam", "lr": 0.003, "weight_decay": 0.1},
        {"optimizer": "adamw", "lr": 0.003, "weight_decay": 0.5},
        {"optimizer": "sgd", "momentum": 0.9, "clip_norm": 0.05, "lr": 0.05},
    ],
)
def test_it_trains_as_a_layer_whose_codebook_is_the_parameter(digits, choices):
    model, codes = shared_net()
    oracle = ByCodebook(shared_net()[0], codes)
    codebooks.strip(oracle)
    spec = TrainSpec(**{"epochs": 2, "lr": 0.001, "batch_size": 50, "precision": "32", **choices})
    fit(model, digits, spec)
    fit(oracle, digits, spec)
    for name, own in codes.items():
        values = codebooks.values(dict(model.named_parameters())[name], own)[1:]
        expected = oracle.values[name.replace(".", "_")].detach()
        start = codebooks.values(dict(shared_net()[0].named_parameters())[name], own)[1:]
        moved = (expected - start).abs().max()
        assert moved > 0
        torch.testing.assert_close(values, expected, rtol=1e-3, atol=2e-3 * float(moved))


def test_the_gradient_is_the_sum_over_the_cluster():
    model = net()
    codes = torch.tensor([[0, 1, 2, 2], [2, 2, 1, 0], [4, 4, 1, 0]])
    codebooks.put(model, {"0.weight": codes})
    gradient = torch.arange(12.0).reshape(3, 4) + 1
    model[0].weight.grad = gradient.clone()
    (shared,) = codebooks.hold(model)
    shared.gather()
    expected = torch.zeros(3, 4)
    for code, place in ((1, (0, 1)), (2, (0, 2)), (4, (2, 0))):
        expected[place] = gradient[codes == code].sum()
    assert torch.equal(model[0].weight.grad, expected)


def test_codes_of_zeros_alone_hold_everything_at_zero():
    model = net()
    codebooks.put(model, {"0.weight": torch.zeros(3, 4, dtype=torch.int32)})
    model[0].weight.grad = torch.ones(3, 4)
    (shared,) = codebooks.hold(model)
    shared.gather()
    with torch.no_grad():
        model[0].weight.fill_(3)
    shared.spread()
    assert not model[0].weight.grad.any() and not model[0].weight.any()


@pytest.mark.parametrize(
    "choices",
    [
        {"optimizer": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
        {"optimizer": "adamw", "weight_decay": 0.5, "ema": 0.9},
        {"optimizer": "adam", "ema": 0.5, "clip_norm": 0.5, "precision": "bf16"},
    ],
)
def test_members_stay_exactly_equal_and_zeros_zero(digits, choices):
    model, codes = shared_net()
    keep = torch.arange(24 * 256).reshape(24, 256) % 3 > 0
    masks.put(model, {"fc1.weight": keep})
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    fit(model, digits, TrainSpec(**{"epochs": 2, "lr": 0.003, "batch_size": 32, **choices}))
    for name, parameter in model.named_parameters():
        if name not in codes:
            continue
        own = codes[name] * keep if name == "fc1.weight" else codes[name]
        assert torch.equal(codebooks.get(model)[name], own.int())
        for code in range(6):
            members = parameter.detach()[own == code]
            if not len(members):  # the bias has ten weights only
                continue
            assert len(torch.unique(members.view(torch.int32))) == 1, name
            assert (members[0] == 0) == (code == 0)
        assert not torch.equal(parameter, start[name])


def test_frozen_values_do_not_move(digits):
    model, _ = shared_net()
    model.fc1.weight.requires_grad_(False)
    before = model.fc1.weight.detach().clone()
    fit(model, digits, TrainSpec(epochs=1, lr=0.003, batch_size=50))
    assert torch.equal(model.fc1.weight, before)


def test_a_resumed_training_has_the_same_codes(digits, tmp_path):
    spec = TrainSpec(epochs=1, lr=0.003, batch_size=100)
    fit(shared_net()[0], digits, spec, checkpoints=tmp_path)
    again = shared_net()[0]
    assert fit(again, digits, spec, checkpoints=tmp_path).resumed_at_epoch == 1
    assert codebooks.holds(again.fc1.weight, codebooks.get(again)["fc1.weight"])
    other = codebooks.strip(shared_net()[0])
    assert fit(other, digits, spec, checkpoints=tmp_path).resumed_at_epoch is None


@pytest.mark.slow
def test_two_processes_keep_the_values_shared(digits):
    model = nn.Sequential(nn.Flatten(), nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 10))
    codes = torch.arange(16 * 1024).reshape(16, 1024) % 5
    codebooks.put(model, {"1.weight": codes})
    one = copy.deepcopy(model)
    spec = TrainSpec(epochs=1, lr=1e-4, batch_size=50, precision="32")
    fit(model, digits, spec, devices=2)
    fit(one, digits, spec)
    assert codebooks.holds(model[1].weight, codes) and len(torch.unique(model[1].weight.detach())) == 5
    torch.testing.assert_close(model[1].weight, one[1].weight, rtol=1e-3, atol=1e-5)


def test_saved_and_loaded(tmp_path):
    model, codes = shared_net()
    masks.put(model, {"fc1.weight": codes["fc1.weight"] > 1})
    save_model(tmp_path, model, num_classes=10, in_shape=(1, 32, 32))
    assert {p.name for p in tmp_path.iterdir()} == {"model.json", "weights.safetensors", "masks.safetensors"}
    again = load_model(tmp_path, small_net())
    assert same_state(model.eval(), again) and set(codebooks.get(again)) == set(SHARED)
    for name, own in codebooks.get(again).items():
        pairs = set(zip(own.reshape(-1).tolist(), codebooks.get(model)[name].reshape(-1).tolist(), strict=True))
        assert len(pairs) == len({one for one, _ in pairs}) == len({other for _, other in pairs}), (
            "the same sets of weights"
        )
        assert all((one == 0) == (other == 0) for one, other in pairs)
    save_model(tmp_path, small_net(), num_classes=10, in_shape=(1, 32, 32))
    assert codebooks.get(load_model(tmp_path, shared_net()[0])) == {}
    description = json.loads((tmp_path / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps({**description, "shared_values": ["fc9.weight"]}))
    with pytest.raises(UserError, match=r"'fc9\.weight', whose weights share values, is no parameter"):
        load_model(tmp_path, small_net())


def test_packed_and_loaded(tmp_path):
    import edgecompress
    from edgecompress.coding import pack

    model, _ = shared_net()
    save_model(tmp_path / "model", model, num_classes=10, in_shape=(1, 32, 32))
    pack(tmp_path / "model", tmp_path / "model.ecz")
    again = edgecompress.load(tmp_path / "model.ecz", small_net())
    assert same_state(model.eval(), again) and set(codebooks.get(again)) == set(SHARED)


def test_an_exported_copy_is_plain():
    from edgecompress.export.contract import _plain

    model, codes = shared_net()
    plain = _plain(model)
    assert not [name for name, _ in plain.named_buffers() if name.endswith(codebooks.SUFFIX)]
    assert codebooks.holds(plain.fc1.weight, codes["fc1.weight"]) and codebooks.get(model)
