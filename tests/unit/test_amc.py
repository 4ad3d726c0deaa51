"""AMC on small networks: candidates are the networks that they stand for, budgets are kept, searches repeat and go on."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from edgecompress import cost, masks
from edgecompress.compress import amc
from edgecompress.compress.amc import agent, applying, policy, scoring
from edgecompress.compress.amc.greedy import Greedy
from edgecompress.compress.amc.reconstruction import Products
from edgecompress.compress.amc.search import Search
from edgecompress.compress.amc.spaces import ChannelSpace, WeightSpace, sparse_bytes
from edgecompress.compress.channels import proof
from edgecompress.compress.contract import Context, parse_params
from edgecompress.errors import UserError
from edgecompress.models import kept
from tests.small_nets import few_digits, same_state, small_net
from tests.unit.test_channels import SHAPE, DepthWise, tiny_resnet

pytestmark = pytest.mark.heavy

QUICK = {"episodes": 6, "warmup": 2, "images": 30, "fit": 30, "multiple": 1, "baselines": ()}


@pytest.fixture(scope="module")
def digits():
    torch.set_num_threads(1)
    return few_digits(64)


def context_for(model, tmp_path, data, **changes):
    return Context(data=data, seed=0, teacher=copy.deepcopy(model), scratch=tmp_path, **changes)


def compress(model, tmp_path, data, **params):
    context = context_for(model, tmp_path, data)
    return amc.apply(model, parse_params("amc", params), context).eval(), context.notes


def channel_space(model, tmp_path, data, **params):
    wanted = parse_params("amc", {**QUICK, **params})
    return ChannelSpace(model, wanted, context_for(model, tmp_path, data), wanted.multiple)


def half(space, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(int(rng.integers(c.lowest, c.size + 1)) for c in space.choices)


@pytest.mark.parametrize("make", [tiny_resnet, DepthWise, small_net])
def test_a_candidate_is_the_network_with_the_other_channels_at_zero(tmp_path, digits, make):
    """What is scored (a cut copy) computes what the dense network does in place with these channels silenced."""
    model = make().eval()
    before = copy.deepcopy(model)
    space = channel_space(model, tmp_path, digits)
    units = half(space)
    images = torch.randn(8, *SHAPE)
    with torch.no_grad():
        cut = space.candidate(units)(images)
        silenced = proof.silenced(copy.deepcopy(model), space.keep(units))(images)
    assert torch.allclose(cut, silenced, atol=1e-4 * float(silenced.abs().max()))
    assert same_state(model, before)


@pytest.mark.parametrize("make", [tiny_resnet, DepthWise, small_net])
def test_costs_are_those_that_the_project_counts(tmp_path, digits, make):
    model = make().eval()
    space = channel_space(model, tmp_path, digits)
    units = half(space, 1)
    keep = [n / c.size for n, c in zip(units, space.choices, strict=True)]
    cut = space.candidate(units)
    counted = cost.count(cut, SHAPE)
    assert space.costs["macs"](keep) == pytest.approx(counted.macs)
    assert space.costs["params"](keep) == pytest.approx(counted.params)
    assert space.costs["bytes"](keep) == pytest.approx(cost.weight_bytes(cut))


class Redundant(nn.Module):
    """Channels 4 to 7 of the first layer are sums of the others, so that the second can do without them."""

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 6, kernel, padding=kernel // 2, stride=2)
        self.head = nn.Linear(6, 10)
        with torch.no_grad():
            for leaf in (self.first.weight, self.first.bias):
                leaf[4:] = leaf[:4] + leaf[[1, 2, 3, 0]]

    def forward(self, x):
        return self.head(self.second(self.first(x)).mean((2, 3)))


@pytest.mark.parametrize("kernel", [1, 3])
def test_least_squares_restore_what_the_kept_channels_can_give(kernel):
    torch.manual_seed(0)
    model = Redundant(kernel).eval()
    batches = [torch.randn(20, 1, 12, 12) for _ in range(4)]
    products = Products(model, ["second"], batches, seed=0)
    dense = model.second.weight.detach()
    fitted = products.fitted("second", dense, [0, 1, 2, 3])
    with torch.no_grad():
        given = model.first(batches[0])
        wanted = torch.conv2d(given, dense, None, stride=2, padding=kernel // 2)
        got = torch.conv2d(given[:, :4], fitted[:, :4], None, stride=2, padding=kernel // 2)
        before = torch.conv2d(given[:, :4], dense[:, :4], None, stride=2, padding=kernel // 2)
    assert float((got - wanted).abs().max()) < 1e-2 * float((before - wanted).abs().max())
    assert torch.equal(fitted[:, 4:], dense[:, 4:])
    assert torch.equal(products.fitted("second", dense, range(8)), dense)


def test_the_fit_is_the_least_squares_solution():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5)).eval()
    images = torch.randn(200, 1, 3, 4)
    layer = model[1]
    rows, keep = images.flatten(1).double(), [0, 2, 3, 7, 11]
    wanted = torch.linalg.lstsq(rows[:, keep], rows @ layer.weight.detach().double().T).solution.T
    got = Products(model, ["1"], [images[:100], images[100:]], seed=0).fitted("1", layer.weight, keep)
    assert torch.allclose(got[:, keep].double(), wanted, atol=1e-4)


def test_weights_that_a_mask_holds_are_not_fitted(tmp_path, digits):
    model = small_net().eval()
    masks.put(model, {"fc1.weight": torch.rand(24, 256) > 0.5})
    space = channel_space(model, tmp_path, digits)
    space.learn(scoring.training_images(digits, 40, 0), 0)
    assert space.products.left_out == ["conv2", "fc1"] and "fc2" in space.products


@pytest.mark.parametrize("key", ["macs", "params", "bytes"])
def test_a_budget_is_kept_by_the_projects_own_count(tmp_path, digits, key):
    model = tiny_resnet(blocks=1)
    before, whole = cost.count(model, SHAPE), cost.weight_bytes(model)
    cut, notes = compress(model, tmp_path, digits, **{**QUICK, key: 0.5})
    after = cost.count(cut, SHAPE)
    left = {"macs": after.macs / before.macs, "params": after.params / before.params}
    left["bytes"] = cost.weight_bytes(cut) / whole
    assert 0.1 < left[key] <= 0.5 and notes[f"{key}_left"] == pytest.approx(left[key])
    assert len(notes["search"]["strategies"]["amc"]["rewards"]) == 6
    assert kept.get(cut)


def test_weights_are_masked_layer_by_layer(tmp_path, digits):
    model = small_net().eval()
    params = {**QUICK, "params": 0.4, "granularity": "weights"}
    del params["fit"], params["multiple"]
    cut, notes = compress(model, tmp_path, digits, **params)
    left = cost.count(cut, SHAPE).nonzero_params / cost.count(small_net(), SHAPE).params
    assert left <= 0.4 and set(masks.get(cut)) == {f"{n}.weight" for n in ("conv1", "conv2", "fc1", "fc2")}
    for name, (left_weights, whole) in notes["kept_weights"].items():
        assert int(masks.get(cut)[f"{name}.weight"].sum()) == left_weights < whole or left_weights == whole
    assert sparse_bytes(10_000, 10_000) == 40_000 and sparse_bytes(10_000, 1000) < 6000


def test_a_layer_without_a_weight_left_is_no_choice_and_stays_empty(tmp_path, digits):
    model = small_net().eval()
    empty = torch.zeros_like(model.conv2.weight, dtype=torch.bool)
    masks.put(model, {"conv2.weight": empty, "fc1.weight": torch.rand_like(model.fc1.weight) < 0.3})
    params = {key: QUICK[key] for key in ("episodes", "warmup", "images")}
    params |= {"granularity": "weights", "baselines": ["uniform", "greedy"]}
    space = WeightSpace(model, parse_params("amc", {**params, "macs": 0.9}), context_for(model, tmp_path, digits))
    assert [c.name for c in space.choices] == ["conv1", "fc1", "fc2"]
    units = half(space)
    keep = [n / c.size for n, c in zip(units, space.choices, strict=True)]
    counted = cost.count(space.candidate(units), SHAPE)
    assert space.costs["macs"](keep) == pytest.approx(counted.effective_macs)
    assert space.costs["params"](keep) == pytest.approx(counted.nonzero_params)
    sizes = [getattr(model, c.name).weight.numel() for c in space.choices]
    rest = cost.weight_bytes(model) - 4 * (sum(sizes) + model.conv2.weight.numel())
    assert space.costs["bytes"](keep) == pytest.approx(rest + sum(map(sparse_bytes, sizes, units)))
    for key in ("macs", "params", "bytes"):
        cut, notes = compress(copy.deepcopy(model), tmp_path / key, digits, **params, **{key: 0.9})
        assert not masks.get(cut)["conv2.weight"].any() and "conv2" not in notes["kept_weights"]
    file = tmp_path / "policy.yaml"
    policy.write(file, "weights", {"conv2": 0.5, "fc1": 0.5})  # of a checkpoint in which conv2 had some
    cut, notes = compress(copy.deepcopy(model), tmp_path, digits, policy=str(file))
    left, whole = notes["kept_weights"]["fc1"]
    assert left == round(whole / 2) and not masks.get(cut)["conv2.weight"].any()
    masks.put(model, {f"{n}.weight": torch.zeros_like(getattr(model, n).weight) for n in ("conv1", "fc1", "fc2")})
    with pytest.raises(UserError, match="no weight is left in any layer"):
        compress(model, tmp_path, digits, **params, macs=0.9)


@pytest.mark.parametrize(
    ("kind", "value"),
    [("error", -0.25), ("accuracy", 0.75), ("error-log-macs", -0.25 * np.log(1000)), ("error-log-params", -0.25 * np.log(50))],
)  # fmt: skip
def test_rewards(kind, value):
    assert scoring.reward(kind, 0.75, 1000, 50) == pytest.approx(value)


def test_a_reward_with_a_logarithm_needs_no_budget(tmp_path, digits):
    _, notes = compress(tiny_resnet(blocks=1), tmp_path, digits, **QUICK, reward="error-log-macs")
    assert notes["search"]["budget"] is None and notes["macs_left"] <= 1


def test_the_truncated_normal_stays_in_its_bounds_and_has_its_mean():
    rng = np.random.default_rng(0)
    drawn = np.array([agent.truncated_normal(0.9, 0.5, rng) for _ in range(4000)])
    assert drawn.min() >= 0 and drawn.max() <= 1 and drawn.mean() == pytest.approx(0.6129, abs=0.02)
    assert agent.truncated_normal(0.3, 0.0, rng) == 0.3
    assert 0.99 < agent.truncated_normal(1.0, 1e-4, rng) <= 1.0


def test_the_agent_learns_which_action_is_rewarded():
    """Two steps, of which the first must be near 0.8 and the second near 0.2."""
    torch.manual_seed(0)
    learner = agent.Ddpg(steps=2, warmup=40, seed=0)
    states = np.zeros((2, 10), np.float32)
    states[1, 0] = 1.0

    def reward(actions):
        return -((actions[0] - 0.8) ** 2) - (actions[1] - 0.2) ** 2

    for _ in range(220):
        actions = tuple(learner.act(state) for state in states)
        learner.learn(agent.Episode(states, actions, ()), reward(actions))
    with torch.no_grad():
        wanted = learner.actor(torch.from_numpy(states)).flatten().tolist()
    assert wanted[0] > 0.55 and wanted[1] < 0.45 and reward(wanted) > -0.1


def search_in(folder, model, data, score, **params):
    wanted = parse_params("amc", {**QUICK, **params})
    space = ChannelSpace(model, wanted, context_for(model, folder, data), wanted.multiple)
    env = applying._environment(space, wanted)
    return env, Search(env, score, lambda units, top1: top1 - 1, folder=folder, key="k", progress=amc_progress())


def amc_progress():
    from edgecompress.progress import SILENT

    return SILENT


class Killed(Exception):
    pass


@pytest.mark.parametrize("name", ["amc", "uniform", "random", "greedy", "evolutionary"])
def test_a_killed_search_goes_on_to_the_same_policies(tmp_path, digits, name):
    model = tiny_resnet(blocks=1)

    def score(units):
        return float(np.tanh(sum(units) / 200)) * (1 - units[0] / 50)

    count = 26

    def strategy(env):
        return (
            applying._learning(
                env,
                dataclasses.replace(parse_params("amc", QUICK), episodes=26, warmup=8),
                context_for(model, tmp_path, digits),
            )
            if name == "amc"
            else applying._baseline(name, env, count, 0)
        )

    env, whole = search_in(tmp_path / "whole", model, digits, score)
    whole.run(strategy(env), count)
    calls = []

    def dying(units):
        calls.append(units)
        if len(calls) == 13:
            raise Killed
        return score(units)

    env, first = search_in(tmp_path / "killed", model, digits, dying)
    if name != "uniform":
        with pytest.raises(Killed):
            first.run(strategy(env), count)
    env, second = search_in(tmp_path / "killed", model, digits, score)
    second.run(strategy(env), count)
    assert second.trails[name].units == whole.trails[name].units
    assert second.best(name) == whole.best(name)
    assert name == "uniform" or second.resumed_at >= 10
    third = search_in(tmp_path / "killed", model, digits, dying)[1]
    third.run(strategy(env), count)  # nothing is left to do
    assert third.best(name) == whole.best(name)


def test_the_greedy_way_cuts_what_is_not_needed(tmp_path, digits):
    """Only the first group matters: it stays as wide as it can."""
    model = tiny_resnet(blocks=1)
    env, search = search_in(tmp_path, model, digits, lambda units: units[0] / env.choices[0].size)
    search.run(Greedy(env, 60, 0), 60)
    best = search.best("greedy")
    assert best.units[0] == env.choices[0].size and env.fits(best.units)
    assert search.rewards("greedy")[:5] == [None] * 5, "the sensitivities are of networks over the budget"


def test_a_search_that_finds_nothing_better_ends_early(tmp_path, digits):
    env, search = search_in(tmp_path, tiny_resnet(blocks=1), digits, lambda units: 0.5)
    search.run(applying._baseline("random", env, 100, 0), 100, patience=7, least=10)
    assert len(search.trails["random"].units) == 10


def test_the_whole_step_repeats_itself_and_records_every_baseline(tmp_path, digits):
    params = {**QUICK, "baselines": ("uniform", "random", "greedy", "evolutionary"), "episodes": 8, "warmup": 3}
    one, notes = compress(tiny_resnet(blocks=1), tmp_path / "one", digits, **params)
    two, again = compress(tiny_resnet(blocks=1), tmp_path / "two", digits, **params)
    assert same_state(one, two) and notes["policy"] == again["policy"]
    found = notes["search"]["strategies"]
    assert {n: s["evaluations"] for n, s in found.items()} == {
        "amc": 8, "uniform": 1, "random": 8, "greedy": 8, "evolutionary": 8,
    }  # fmt: skip
    assert all(s["best"] is None or s["best"]["budget_used"] <= 0.5 + 1e-9 for s in found.values())
    assert notes["search"]["policies_per_second"] > 0 and 0 < notes["search"]["pass_share"] < 1


def test_a_policy_is_written_read_changed_and_applied_to_other_weights(tmp_path, digits):
    file = tmp_path / "policy.yaml"
    cut, notes = compress(tiny_resnet(blocks=1), tmp_path / "search", digits, **QUICK, save=str(file))
    text = file.read_text()
    assert text.startswith("#") and policy.read(file).keep == notes["policy"]
    other, applied = compress(tiny_resnet(seed=1, blocks=1), tmp_path, digits, policy=str(file))
    assert applied["widths"] == notes["widths"] and kept.get(other).keys() == kept.get(cut).keys()
    file.write_text("amc_policy: 1\nkeep: {'layer?.0.conv1': 0.5, layer3.0.conv2: 0.25}\n")
    _, edited = compress(tiny_resnet(blocks=1), tmp_path, digits, policy=str(file))
    assert edited["widths"]["layer1.0.conv1"] == [4, 8] and edited["widths"]["layer3.0.conv2"] == [8, 32]
    assert edited["widths"]["conv1"] == [8, 8]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("amc_policy: 1\nkeep: {layer9.0.conv1: 0.5}", "'layer9.0.conv1' matches nothing"),
        ("amc_policy: 1\nkeep: {linear: 0.5}", "'linear' matches nothing"),
        ("amc_policy: 1\nkeep: {conv1: 0.5, layer1.0.conv2: 0.7}", "share their channels"),
        ("amc_policy: 1\nkeep: {conv1: 0}", "keep.conv1: 0 is no fraction"),
        ("amc_policy: 1\nkeep: {conv1: some}", "keep.conv1"),
        ("amc_policy: 1\nkept: {conv1: 0.5}", "unknown key"),
        ("amc_policy: 2\nkeep: {conv1: 0.5}", "amc_policy"),
        ("keep: {conv1: 0.5}", "amc_policy: is needed"),
    ],
)
def test_a_wrong_policy_is_one_clear_message(tmp_path, digits, content, words):
    file = tmp_path / "policy.yaml"
    file.write_text(content + "\n")
    model = tiny_resnet(blocks=1)
    with pytest.raises(UserError, match=words) as caught:
        compress(model, tmp_path, digits, policy=str(file))
    assert str(file) in str(caught.value) and same_state(model, tiny_resnet(blocks=1))


def test_what_cannot_be_met_is_said_before_the_search(tmp_path, digits):
    for params, words in [
        ({"macs": 0.03}, "macs: 0.03 is out of reach: the lowest is"),
        ({"macs": 0.5, "multiple": 64}, "at its least already"),
        ({"macs": 0.5, "exclude": ["*"]}, "no channels can be cut"),
        ({"macs": 0.5, "exclude": ["nothing"]}, "matches no convolution"),
        ({"macs": 0.5, "save": str(tmp_path / "no" / "where.yaml")}, "cannot be written"),
    ]:
        model = tiny_resnet(blocks=1)
        with pytest.raises(UserError, match=words):
            compress(model, tmp_path, digits, **{**QUICK, **params})
        assert same_state(model, tiny_resnet(blocks=1))
    with pytest.raises(UserError, match="needs data"):
        compress(tiny_resnet(blocks=1), tmp_path, None, **QUICK)
    empty = dataclasses.replace(digits, val=digits.val.subset(np.arange(0)))
    with pytest.raises(UserError, match="needs validation images"):
        compress(tiny_resnet(blocks=1), tmp_path, empty, **QUICK)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"macs": 0.5, "params": 0.5}, "one budget at a time: macs and params"),
        ({"warmup": 800}, "must be below episodes"),
        ({"granularity": "weights", "multiple": 4}, "multiple: for channels only"),
        ({"baselines": ["random", "random"]}, "each once"),
        ({"policy": "/no/such/file"}, "no such file"),
    ],
)
def test_bad_parameters_are_one_clear_message(params, words):
    with pytest.raises(ValueError, match=words):
        parse_params("amc", params)
