"""AMC: whose policy is applied, where it is written, what of a search is kept for others, and searches without a budget."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch

from edgecompress.compress import amc
from edgecompress.compress.amc import policy, scoring
from edgecompress.compress.contract import Context, parse_params
from edgecompress.errors import StepFailed, UserError
from tests.small_nets import few_digits
from tests.unit.test_amc_device import MadeUp
from tests.unit.test_channels import tiny_resnet

pytestmark = pytest.mark.heavy

QUICK = {"episodes": 12, "warmup": 4, "images": 30, "fit": 0, "multiple": 1}


@pytest.fixture(scope="module")
def digits():
    torch.set_num_threads(1)
    return few_digits(64)


def compress(tmp_path, data, *, benches=None, shared=None, **params):
    model = tiny_resnet(blocks=1)
    context = Context(
        data=data, seed=0, teacher=copy.deepcopy(model), scratch=tmp_path / "scratch", benches=benches, shared=shared
    )
    return amc.apply(model, parse_params("amc", {**QUICK, **params}), context).eval(), context.notes


def test_the_best_policy_of_all_searches_can_be_applied_and_saved(tmp_path, digits, monkeypatch):
    # What is scored later is better, so that the last search has the best policy.
    later = itertools.count()
    monkeypatch.setattr(scoring.Scorer, "top1", lambda self, model: next(later) / 1000)
    file = tmp_path / "found.yaml"
    _, usual = compress(tmp_path / "a", digits, baselines=("random", "evolutionary"))
    _, notes = compress(tmp_path / "b", digits, baselines=("random", "evolutionary"), choose="best", save=str(file))
    best = {n: s["best"] for n, s in notes["search"]["strategies"].items()}
    winner = max(best, key=lambda n: best[n]["reward"])
    assert usual["applied"] == "amc" and usual["policy"] == best["amc"]["policy"]
    assert notes["applied"] == winner and notes["policy"] == best[winner]["policy"] == policy.read(file).keep
    assert winner == "evolutionary" and notes["better_than_amc"]


def test_a_file_with_another_policy_is_kept_beside_the_new_one(tmp_path, digits):
    file = tmp_path / "found.yaml"
    file.write_text("by hand\n")
    compress(tmp_path / "a", digits, baselines=(), save=str(file))
    assert (tmp_path / "found.yaml~1").read_text() == "by hand\n"
    first = file.read_text()
    compress(tmp_path / "b", digits, baselines=(), save=str(file))
    compress(tmp_path / "c", digits, baselines=(), lower=0.6, macs=0.6, save=str(file))
    assert (tmp_path / "found.yaml~2").read_text() == first != file.read_text()
    assert sorted(f.name for f in tmp_path.glob("found*")) == ["found.yaml", "found.yaml~1", "found.yaml~2"]


def test_steps_that_differ_in_what_comes_after_share_one_search(tmp_path, digits):
    shared = tmp_path / "searches"
    _, first = compress(tmp_path / "a", digits, shared=shared, baselines=("random",))
    more = {"baselines": ("random", "greedy"), "finetune": {"epochs": 1}, "save": str(tmp_path / "found.yaml")}
    _, second = compress(tmp_path / "b", digits, shared=shared, **more)
    assert first["search"]["resumed_at"] is None and second["search"]["resumed_at"] == 24
    assert second["policy"] == first["policy"] and (tmp_path / "found.yaml").exists()
    _, other = compress(tmp_path / "c", digits, shared=shared, baselines=(), macs=0.6)
    assert other["search"]["resumed_at"] is None and len(list(shared.iterdir())) == 2


def test_a_search_on_one_device_is_not_gone_on_with_on_another(tmp_path, digits):
    class Another(MadeUp):
        def identity(self):
            return {"device": "another"}

    first, same, another = MadeUp(), MadeUp(), Another()
    for device in (first, same, another):
        compress(tmp_path, digits, benches=device, shared=tmp_path / "searches", latency=0.6, baselines=())
    assert same.whole == 0 < another.whole


def test_what_is_said_of_a_budget_on_a_device_is_its_share_of_the_whole_network(tmp_path, digits):
    device = MadeUp()
    _, notes = compress(tmp_path, digits, benches=device, latency=0.6)
    strategies, known = notes["search"]["strategies"], notes["on_device"]
    assert known["slope"] < 0.99, "or this test says nothing"
    measured = [w["measured"] for w in known["whole_networks"]]
    for name, found in strategies.items():
        assert found["best"]["budget_used"] in [pytest.approx(m) for m in [*measured, 0.6]], f"{name} was not measured"


def test_the_whole_network_is_measured_before_its_layers(tmp_path, digits):
    device = MadeUp()
    with pytest.raises(UserError, match="the network as it is takes"):
        compress(tmp_path, digits, benches=device, latency="900 ms")
    assert not device.alone
    with pytest.raises(UserError, match=r"latency: 0.02 is out of reach"):
        compress(tmp_path, digits, benches=device, latency=0.02)
    assert device.alone and device.whole == 1, "the least network, and no other"


def test_whole_networks_measured_before_a_failure_are_kept(tmp_path, digits, monkeypatch):
    class Dies(MadeUp):
        def against(self, dense, in_shape):
            if self.whole == 2:
                self.fails, self.whole = 3, 3
            return super().against(dense, in_shape)

    monkeypatch.setattr("edgecompress.compress.amc.measuring.RETRY_WAITS_S", (0.0, 0.0))
    with pytest.raises(StepFailed, match="paused"):
        compress(tmp_path, digits, benches=Dies(), latency=0.6, baselines=())
    again = MadeUp()
    _, notes = compress(tmp_path, digits, benches=again, latency=0.6, baselines=())
    measured = len(notes["on_device"]["whole_networks"])
    assert again.whole == measured - 2


def test_without_a_budget_every_search_tries_many_policies(tmp_path, digits):
    more = {"reward": "error-log-macs", "episodes": 60, "warmup": 20, "lower": 0.3}
    _, notes = compress(tmp_path, digits, **more, baselines=("uniform", "greedy"))
    found = notes["search"]["strategies"]
    assert found["uniform"]["different"] == found["uniform"]["evaluations"] > 8
    assert found["greedy"]["different"] > 40
    rewards = found["uniform"]["rewards"]
    assert max(rewards) > rewards[0], "the uncut network's reward is not the best"


def test_a_policy_that_leaves_groups_out_is_said(tmp_path, digits):
    file = tmp_path / "policy.yaml"
    file.write_text("amc_policy: 1\nkeep: {'layer1.*': 0.5}\n")
    _, notes = compress_policy(file, tmp_path, digits)
    assert "layer2.0.conv1" in notes["not_named"] and "layer1.0.conv1" not in notes["not_named"]
    file.write_text("amc_policy: 1\nkeep: {'*': 0.5}\n")
    assert "not_named" not in compress_policy(file, tmp_path, digits)[1]


def compress_policy(file, tmp_path, data, **params):
    model = tiny_resnet(blocks=1)
    context = Context(data=data, seed=0, teacher=copy.deepcopy(model), scratch=tmp_path / "scratch")
    return amc.apply(model, parse_params("amc", {"policy": str(file), **params}), context), context.notes


def test_what_a_policys_granularity_has_no_use_for_is_refused(tmp_path, digits):
    file = tmp_path / "policy.yaml"
    file.write_text("amc_policy: 1\ngranularity: weights\nkeep: {conv1: 0.5}\n")
    with pytest.raises(UserError, match="which: for channels only, and the policy is one of weights"):
        compress_policy(file, tmp_path, digits, which="inner")
    file.write_text("amc_policy: 1\nkeep: {conv1: 0.5}\n")
    with pytest.raises(UserError, match="the policy is one of channels, and granularity weights is asked for"):
        compress_policy(file, tmp_path, digits, granularity="weights")


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"lower": 0.9}, "leave lower out"),
        ({"multiple": 4, "warmup": 3, "baselines": []}, "leave multiple, warmup, baselines out|leave warmup"),
        ({"macs": 0.5, "save": "x.yaml"}, "leave macs, save out"),
        ({"unspent": "spread", "choose": "best"}, "leave unspent, choose out"),
        ({"images": 7}, "leave images out"),
    ],
)
def test_what_has_no_effect_beside_a_policy_is_refused(tmp_path, params, words):
    file = tmp_path / "policy.yaml"
    file.write_text("amc_policy: 1\nkeep: {conv1: 0.5}\n")
    with pytest.raises(ValueError, match=words):
        parse_params("amc", {"policy": str(file), **params})


@pytest.mark.parametrize("value", ["0 ms", "5 s", 5, 0.0, 1.0, "0.5", True, [1]])
def test_a_budget_on_a_device_that_is_none_is_one_clear_message(value):
    for method in ("amc", "channels"):
        with pytest.raises(ValueError, match=r"neither a fraction of the whole network's.*such as '12.5 ms'"):
            parse_params(method, {"latency": value})
    with pytest.raises(ValueError, match="choose: best is of all searches"):
        parse_params("amc", {"choose": "best", "baselines": []})
    with pytest.raises(ValueError, match="unspent: there is no budget"):
        parse_params("amc", {"unspent": "spread", "reward": "error-log-macs"})


def test_another_multiple_from_the_device_is_another_search(tmp_path, digits):
    class Likes(MadeUp):
        def __init__(self, multiple):
            super().__init__()
            self.likes = multiple

        def multiple(self, model, in_shape):
            return {"multiple": self.likes}

    for likes in (2, 8):
        _, notes = compress(
            tmp_path,
            digits,
            shared=tmp_path / "searches",
            benches=Likes(likes),
            multiple="auto",
            macs=0.6,
            baselines=(),
        )
        assert notes["search"]["resumed_at"] is None
        assert all(kept % likes == 0 for kept, _ in notes["widths"].values())


def test_what_one_step_asks_for_does_not_disturb_another_steps_unfinished_search(tmp_path, digits, monkeypatch):
    baselines = ("evolutionary", "greedy", "random")
    _, whole = compress(tmp_path / "whole", digits, shared=tmp_path / "a", baselines=baselines)
    score, counted = scoring.Scorer.top1, itertools.count()

    def dies(self, model):
        if next(counted) == 30:
            raise KeyboardInterrupt
        return score(self, model)

    shared = tmp_path / "b"
    monkeypatch.setattr(scoring.Scorer, "top1", dies)
    with pytest.raises(KeyboardInterrupt):
        compress(tmp_path / "first", digits, shared=shared, baselines=baselines)
    monkeypatch.setattr(scoring.Scorer, "top1", score)
    compress(tmp_path / "second", digits, shared=shared, baselines=("random",))
    _, notes = compress(tmp_path / "first", digits, shared=shared, baselines=baselines)
    for name, found in whole["search"]["strategies"].items():
        assert notes["search"]["strategies"][name]["rewards"] == found["rewards"], name
