"""Channel pruning on small networks: what is cut is what was asked for, and the cut network computes what it must."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from edgecompress import cost, masks
from edgecompress.compress import channels
from edgecompress.compress.channels.grouping import find_groups
from edgecompress.compress.contract import Context, full_params, parse_params
from edgecompress.errors import UserError
from edgecompress.models import build, kept
from edgecompress.models.checkpoint import load_model, save_model
from edgecompress.models.resnet import CifarResNet, Shortcut
from edgecompress.study import ModelSpec
from tests.small_nets import few_digits, same_state, small_net

pytestmark = pytest.mark.heavy

SHAPE = (1, 32, 32)


def prune(model, tmp_path, data=None, **params):
    torch.set_num_threads(1)
    context = Context(data=data or few_digits(64), seed=0, teacher=copy.deepcopy(model), scratch=tmp_path)
    cut = channels.apply(model, parse_params("channels", params), context)
    return cut.eval(), context.notes


def tiny_resnet(seed: int = 0, blocks: int = 2, width: float = 0.5) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CifarResNet(blocks, 10, 1, width)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):  # as after a training: no two channels alike
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.3)
                nn.init.normal_(module.running_mean, std=0.3)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


class DepthWise(nn.Module):
    """The block of MobileNets: expand, depth-wise, project, added to what came in."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, stride=4, padding=1)
        self.expand, self.bn1 = nn.Conv2d(16, 48, 1, bias=False), nn.BatchNorm2d(48)
        self.depth, self.bn2 = nn.Conv2d(48, 48, 3, padding=1, groups=48, bias=False), nn.BatchNorm2d(48)
        self.project, self.bn3 = nn.Conv2d(48, 16, 1, bias=False), nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        y = nn.functional.relu6(self.bn1(self.expand(x)))
        y = nn.functional.hardswish(self.bn2(self.depth(y)))
        return self.head((x + self.bn3(self.project(y))).mean((2, 3)))


@pytest.mark.parametrize("key", ["macs", "params"])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("make", [tiny_resnet, DepthWise])
def test_a_budget_is_met_by_the_projects_own_count(tmp_path, key, share, make):
    model = make()
    before = cost.count(model, SHAPE)
    cut, notes = prune(model, tmp_path, which="all", multiple=1, **{key: share})
    after = cost.count(cut, SHAPE)
    reached = getattr(after, key) / getattr(before, key)
    assert reached == pytest.approx(notes[f"{key}_left"], rel=1e-9)
    assert notes["budget_met"] and reached == pytest.approx(share, rel=0.02)


def test_widths_are_multiples_and_what_cannot_be_met_in_them_is_said(tmp_path):
    cut, notes = prune(tiny_resnet(width=1), tmp_path, macs=0.5, multiple=8, which="all")
    assert all(left % 8 == 0 for left, _ in notes["widths"].values())
    assert all(m.out_channels % 8 == 0 for m in cut.modules() if isinstance(m, nn.Conv2d))
    _, notes = prune(small_net(), tmp_path, macs=0.97, multiple=8)
    assert not notes["budget_met"] and "0.97 was asked for" in notes["budget_reason"]


@pytest.mark.parametrize("which", ["inner", "stream", "all"])
def test_inner_and_stream_channels_are_separate_choices(tmp_path, which):
    model = tiny_resnet()
    cut, notes = prune(model, tmp_path, macs=0.75, multiple=1, which=which)
    stream = {"conv1", "layer2.0.conv2", "layer3.0.conv2"}
    named = {name for name, (left, whole) in notes["widths"].items() if left < whole}
    assert {"inner": named.isdisjoint(stream), "stream": named <= stream, "all": bool(named & stream)}[which]
    assert cut.linear.out_features == 10 and "output" in notes["locked"]["linear"]


def test_the_groups_of_a_cifar_resnet_end_at_its_shortcuts():
    groups = {group.name: group for group in find_groups(tiny_resnet(), SHAPE)}
    assert groups["conv1"].writers == ("conv1", "layer1.0.conv2", "layer1.1.conv2") and groups["conv1"].stream
    assert (groups["conv1"].size, groups["layer2.0.conv2"].size, groups["layer3.0.conv2"].size) == (8, 16, 32)
    readers = {s.module for s in groups["layer2.0.conv2"].slots if s.side == "in"}
    assert readers == {"layer2.1.conv1", "layer3.0.conv1", "layer3.0.shortcut"}
    assert not groups["layer1.0.conv1"].stream


def test_a_cut_shortcut_takes_the_channels_that_it_took_before():
    whole, cut = Shortcut(4, 8, 2), Shortcut(4, 8, 2)
    x = torch.randn(2, 4, 6, 6)
    into, out = [0, 2, 3], [1, 2, 3, 5, 7]
    cut.narrow(torch.tensor(into), torch.tensor(out), torch.device("cpu"))
    silent = x.clone()
    silent[:, 1] = 0
    assert torch.equal(cut(x[:, into]), whole(silent)[:, out])
    further = copy.deepcopy(cut)
    further.narrow(torch.tensor([1]), torch.tensor([1, 3]), torch.device("cpu"))
    assert torch.equal(further(x[:, [2]])[:, 0], torch.zeros(2, 3, 3)), "channel 2 of the output took channel 0"
    assert not cut.state_dict()


@pytest.mark.parametrize("importance", ["l1", "l2", "lap", "bn_scale"])
def test_channels_that_do_nothing_go_first(tmp_path, importance):
    model = tiny_resnet()
    dead = {"layer1.0": [1, 6], "layer2.1": [0, 3, 9, 15], "layer3.0": [5, 30]}
    with torch.no_grad():
        for name, index in dead.items():
            block = model.get_submodule(name)
            for tensor in (block.conv1.weight, block.bn1.weight, block.bn1.bias):
                tensor[index] = 0
            block.conv2.weight[:, index] = 0
    x = torch.randn(3, *SHAPE)
    with torch.no_grad():
        expected = model(x)
    ratios = {
        f"{name}.conv1": 1 - len(index) / model.get_submodule(name).conv1.out_channels for name, index in dead.items()
    }
    cut, _ = prune(model, tmp_path, ratios=ratios, multiple=1, importance=importance)
    for name, index in dead.items():
        assert not set(kept.get(cut)[f"{name}.conv1"]["out"]) & set(index)
    with torch.no_grad():
        assert torch.allclose(cut(x), expected, atol=1e-5)


def test_l1_is_the_mean_over_coupled_layers_divided_by_its_groups_mean(tmp_path):
    from edgecompress.compress.channels.importance import score

    model = small_net()
    group = next(g for g in find_groups(model, SHAPE) if g.name == "fc1")
    (value,) = score(model, [group], "l1", reduce="mean", in_shape=SHAPE, data=None, images=1, seed=0)
    rows, columns = model.fc1.weight.detach().abs().sum(1), model.fc2.weight.detach().abs().sum(0)
    expected = ((rows + columns) / 2).double().numpy()
    np.testing.assert_allclose(value, expected / expected.mean(), rtol=1e-5)


def test_fold_takes_the_norms_of_the_exported_rows():
    from edgecompress.compress.channels.importance import score

    model = tiny_resnet()
    group = next(g for g in find_groups(model, SHAPE) if g.name == "layer2.1.conv1")
    arguments = {"reduce": "sum", "in_shape": SHAPE, "data": None, "images": 1, "seed": 0}
    (value,) = score(model, [group], "l2", fold=True, **arguments)
    block = model.get_submodule("layer2.1")
    fused = nn.utils.fuse_conv_bn_eval(block.conv1, block.bn1)
    expected = (fused.weight.detach() ** 2).sum((1, 2, 3)) + (block.conv2.weight.detach() ** 2).sum((0, 2, 3))
    np.testing.assert_allclose(value, expected / expected.mean(), rtol=1e-5)
    (plain,) = score(model, [group], "l2", **arguments)
    assert not np.allclose(plain, value)


def test_lap_sums_the_lookahead_scores_of_rows_and_columns_even_after_a_cut(tmp_path):
    from edgecompress.compress.channels.importance import score
    from edgecompress.compress.lookahead import scores

    model, _ = prune(tiny_resnet(), tmp_path, macs=0.6, multiple=1, which="all")
    assert any(isinstance(m, Shortcut) and m.padding is None for m in model.modules()), "else this shows nothing"
    group = next(g for g in find_groups(model, SHAPE) if g.name == "layer2.0.conv1")
    (value,) = score(model, [group], "lap", reduce="sum", in_shape=SHAPE, data=None, images=1, seed=0)
    lap = scores(model, torch.zeros(1, *SHAPE), dtype=torch.float64)
    expected = lap["layer2.0.conv1.weight"].sum((1, 2, 3)) + lap["layer2.0.conv2.weight"].sum((0, 2, 3))
    np.testing.assert_allclose(value, expected / expected.mean(), rtol=1e-9)
    # The makers of what a stage reads first, through the cut shortcut: the silenced whole network has the same scores.
    whole = copy.deepcopy(tiny_resnet())
    record = kept.get(model)
    for name, module in whole.named_modules():
        for dim, side in enumerate(("out", "in")):
            index = record.get(name, {}).get(side)
            if index is not None and isinstance(module, nn.Conv2d | nn.Linear):
                gone = torch.ones(module.weight.shape[dim], dtype=torch.bool)
                gone[list(index)] = False
                module.weight.data.index_fill_(dim, torch.nonzero(gone)[:, 0], 0)
    wide = scores(whole, torch.zeros(1, *SHAPE), dtype=torch.float64)["layer3.0.conv1.weight"]
    for dim, side in enumerate(("out", "in")):
        wide = wide.index_select(dim, torch.tensor(record["layer3.0.conv1"].get(side, range(wide.shape[dim]))))
    torch.testing.assert_close(lap["layer3.0.conv1.weight"], wide)


def test_taylor_is_the_square_of_what_closing_a_gate_does_to_the_loss():
    from edgecompress.compress.channels.importance import BATCH, score
    from edgecompress.data import batches

    model, data = tiny_resnet(), few_digits(64)
    chosen = [g for g in find_groups(model, SHAPE) if g.name in ("layer1.1.conv1", "layer2.0.conv2")]
    values = score(model, chosen, "taylor", reduce="mean", in_shape=SHAPE, data=data, images=BATCH, seed=3)
    images, labels = next(batches(data, data.train, batch_size=BATCH, shuffle=True, augment=False, seed=3, epoch=0))
    wide, images = copy.deepcopy(model).double(), images.double()
    for group, value in zip(chosen, values, strict=True):
        for unit in (0, 3):
            losses = []
            for gate in (1 + 1e-5, 1 - 1e-5):
                gated = copy.deepcopy(wide)
                with torch.no_grad():
                    for slot in group.slots:
                        module = gated.get_submodule(slot.module)
                        if slot.side == "in" and isinstance(module, nn.Conv2d):
                            module.weight[:, slot.channels[slot.units == unit]] *= gate
                    losses.append(float(nn.functional.cross_entropy(gated(images), labels)))
            slope = (losses[0] - losses[1]) / 2e-5
            assert value[unit] == pytest.approx(slope**2, rel=1e-3, abs=1e-12)
    assert all(p.requires_grad and p.grad is None for p in model.parameters()) and not model.training


def test_a_grouped_convolution_loses_whole_groups_with_their_inputs(tmp_path):
    cut, notes = prune(small_net(), tmp_path, ratios={"conv1": 0.5}, multiple=1)
    assert notes["widths"]["conv1"] == [4, 8]
    assert (cut.conv1.out_channels, cut.conv2.in_channels, cut.conv2.out_channels, cut.conv2.groups) == (4, 4, 8, 2)
    assert cut.fc1.in_features == 8 * 16


def test_masks_are_cut_with_their_channels(tmp_path):
    model = tiny_resnet()
    generator = torch.Generator().manual_seed(0)
    whole = {n: torch.rand(p.shape, generator=generator) > 0.5 for n, p in model.named_parameters() if p.ndim == 4}
    masks.put(model, whole)
    cut, _ = prune(model, tmp_path, macs=0.5, multiple=1, which="all", finetune={"epochs": 1, "batch_size": 32})
    assert set(masks.get(cut)) == set(whole)
    for name, mask in masks.get(cut).items():
        sides, expected = kept.get(cut).get(name.removesuffix(".weight"), {}), whole[name]
        for dim, side in enumerate(("out", "in")):
            if side in sides:
                expected = expected.index_select(dim, torch.tensor(sides[side]))
        assert torch.equal(mask, expected)
        assert not dict(cut.named_parameters())[name].detach()[~mask].any(), "still zero after the training"


def test_a_cut_network_is_saved_as_its_base_and_comes_back_bit_for_bit(tmp_path):
    model = build(ModelSpec(name="resnet20", width=0.5), num_classes=10, in_shape=SHAPE)
    cut, _ = prune(model, tmp_path, macs=0.7, multiple=1, which="all")
    x = torch.randn(3, *SHAPE)
    for number in range(2):  # a second cut composes with the first
        save_model(tmp_path / "saved", cut)
        again = load_model(tmp_path / "saved")
        assert same_state(cut, again) and kept.get(again) == kept.get(cut)
        with torch.no_grad():
            assert torch.equal(cut(x), again(x))
        if number == 0:
            cut, _ = prune(again, tmp_path, macs=0.7, multiple=1, which="all")


def test_a_network_of_ones_own_is_cut_without_data_when_an_example_tells_its_input():
    import edgecompress

    model = nn.Sequential(nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 4))
    result = edgecompress.compress(model, "channels", macs=0.5, multiple=1, example_input=torch.zeros(1, 12))
    assert result.model[0].out_features == 20 and model[0].out_features == 40
    assert result.report.cost_after.macs * 2 == result.report.cost_before.macs
    with pytest.raises(UserError, match="size of its images"):
        edgecompress.compress(model, "channels")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (["conv1"], "kept: "),
        ({"conv1": {"out": [0, "1"]}}, "kept: "),
        ({"conv1": {"out": [0, 0]}}, "are none of its"),
        ({"conv1": {"out": [99]}}, "are none of its"),
        ({"conv1": {"out": []}}, "are none of its"),
        ({"linear": {"up": [0]}}, "kept: "),
        ({"layer7": {"out": [0]}}, "'layer7', which this model does not have"),
        ({"pool": {"out": [0]}}, "has no side 'out'"),
        ({"conv1": {"out": [0]}}, "no checkpoint of this model"),
    ],
)
def test_a_damaged_record_of_what_is_kept_is_one_clear_message(tmp_path, damage, words):
    import json

    save_model(tmp_path, build(ModelSpec(name="resnet20", width=0.25), num_classes=10, in_shape=SHAPE))
    file = tmp_path / "model.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "kept": damage}))
    with pytest.raises(UserError, match=words):
        load_model(tmp_path)


def test_a_network_of_ones_own_is_filled_from_its_uncut_self(tmp_path):
    cut, _ = prune(DepthWise(), tmp_path, macs=0.5, multiple=1, which="all")
    save_model(tmp_path / "saved", cut, num_classes=10, in_shape=SHAPE)
    x = torch.randn(3, *SHAPE)
    for given in (DepthWise(), copy.deepcopy(cut)):
        again = load_model(tmp_path / "saved", given)
        with torch.no_grad():
            assert torch.equal(cut(x), again(x))
    with pytest.raises(UserError, match="does not have"):
        load_model(tmp_path / "saved", small_net())


def test_steps_end_at_the_budget_and_train_between(tmp_path):
    model = tiny_resnet()
    before = cost.count(model, SHAPE).macs
    context = Context(data=few_digits(64), seed=0, teacher=copy.deepcopy(model), scratch=tmp_path)
    params = parse_params(
        "channels", {"macs": 0.4, "multiple": 1, "steps": 3, "finetune": {"epochs": 4, "batch_size": 32}}
    )
    cut = channels.apply(model, params, context)
    assert cost.count(cut, SHAPE).macs / before == pytest.approx(0.4, rel=0.02)
    assert [t.epochs for t in context.trainings] == [1, 1, 2]


class Padded(nn.Module):
    """The functional option A shortcut, as many CIFAR ResNets write it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 6, 3, stride=4, padding=1), nn.Conv2d(6, 12, 3, stride=2, padding=1)
        self.head = nn.Linear(12, 10)

    def forward(self, x):
        x = torch.relu(self.a(x))
        y = nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 3, 3))
        return self.head(torch.relu(self.b(x) + y).mean((2, 3)))


def test_a_functional_padding_keeps_its_channels_and_pairs_the_others_rightly(tmp_path):
    cut, notes = prune(Padded(), tmp_path, ratios={"a": 0.5}, multiple=1, which="all")
    assert notes["widths"]["a"] == [3, 6] and cut.b.out_channels == 9
    record = kept.get(cut)
    assert record["b"]["out"] == (0, 1, 2, *(k + 3 for k in record["a"]["out"]), 9, 10, 11)


class Mixing(nn.Module):
    """Turns or shuffles its channels, which the dependency graph takes for element-wise operations."""

    def __init__(self, shuffle: bool) -> None:
        super().__init__()
        self.shuffle = shuffle
        self.a, self.b, self.head = nn.Conv2d(1, 8, 3, 4, 1), nn.Conv2d(8, 8, 1), nn.Linear(8, 10)

    def forward(self, x):
        x = torch.relu(self.a(x))
        n, c, h, w = x.shape
        x = x.reshape(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w) if self.shuffle else x.flip(1)
        return self.head(torch.relu(self.b(x)).mean((2, 3)))


@pytest.mark.parametrize(("shuffle", "reason"), [(True, "does not run"), (False, "mixes or counts")])
def test_channels_that_the_forward_mixes_are_locked_and_the_others_cut(tmp_path, shuffle, reason):
    cut, notes = prune(Mixing(shuffle), tmp_path, ratios={"a": 0.5, "b": 0.5}, multiple=1)
    assert cut.a.out_channels == 8 and cut.b.out_channels == 4
    assert reason in notes["locked"]["a"]


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(1, 8, 3, 4, 1), nn.Conv2d(8, 8, 1), nn.Linear(8, 10)

    def forward(self, x):
        return self.head(torch.relu(self.b(torch.relu(self.b(torch.relu(self.a(x)))))).mean((2, 3)))


def test_bad_input_is_one_clear_message_and_changes_nothing(tmp_path):
    for params, words in [
        ({"exclude": ["layer9"]}, "exclude: 'layer9' matches no"),
        ({"ratios": {"convx": 0.5}}, "ratios: 'convx' matches no"),
        ({"exclude": ["*"]}, "no channels can be cut"),
        ({"which": "stream"}, "no channels can be cut"),
        ({"macs": 0.001, "multiple": 1}, "the lowest is 0"),
        ({"multiple": 64}, "multiple that widths are rounded to"),
    ]:
        model = small_net()
        with pytest.raises(UserError, match=words):
            prune(model, tmp_path, **params)
        assert same_state(model, small_net()) and not kept.get(model)
    with pytest.raises(UserError, match="share their channels"):
        prune(tiny_resnet(), tmp_path, which="all", ratios={"conv1": 0.5, "layer1.0.conv2": 0.25})
    with pytest.raises(UserError, match="bn_scale needs a batch norm"):
        prune(small_net(), tmp_path, importance="bn_scale")
    broken = small_net()
    with torch.no_grad():
        broken.fc1.weight[0, 0] = float("nan")
    with pytest.raises(UserError, match=r"fc1\.weight holds values that are not finite"):
        prune(broken, tmp_path)
    with pytest.raises(UserError, match="no convolution or linear layer"):
        prune(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(1024)), tmp_path)
    with pytest.raises(UserError, match="used more than once"):
        prune(Twice(), tmp_path, multiple=1)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"macs": 0.5, "params": 0.5}, "one budget at a time: macs and params"),
        ({"macs": 1.0}, "macs: Input should be less than 1"),
        ({"params": 0}, "params: Input should be greater than 0"),
        ({"ratios": {}}, "name at least one layer"),
        ({"ratios": {"a": 1.5}}, "less than or equal to 1"),
        ({"multiple": 0}, "multiple"),
        ({"steps": 2}, "give finetune"),
        ({"steps": 3, "finetune": {"epochs": 2}}, "must not exceed the epochs"),
        ({"steps": 2, "ratios": {"a": 0.5}, "finetune": {"epochs": 2}}, "not ratios"),
        ({"importance": "taylor", "reduce": "sum"}, "one value for all"),
        ({"importance": "lap", "fold": True}, "fold is for the norms"),
    ],
)
def test_bad_parameters_are_one_clear_message(params, words):
    with pytest.raises(ValueError, match=words):
        parse_params("channels", params)


def test_half_of_the_macs_is_the_default():
    assert full_params("channels", {})["macs"] == 0.5
