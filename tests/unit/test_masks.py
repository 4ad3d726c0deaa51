"""Masks: exact zeros, exact counts, and that they travel with the model but not in its state dict."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgecompress import masks
from edgecompress.errors import UserError

pytestmark = pytest.mark.heavy


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))


def test_put_get_strip():
    model = net()
    keys = list(model.state_dict())
    keep = torch.arange(12).reshape(3, 4) % 2 == 0
    masks.put(model, {"0.weight": keep})
    assert list(model.state_dict()) == keys
    assert torch.equal(masks.get(model)["0.weight"], keep) and set(masks.get(model)) == {"0.weight"}
    assert torch.equal(model[0].weight == 0, ~keep)
    assert torch.equal(masks.get(copy.deepcopy(model))["0.weight"], keep)
    masks.strip(model)
    assert masks.get(model) == {} and torch.equal(model[0].weight == 0, ~keep)


def test_apply_writes_plus_zero_even_over_nan_and_negative_numbers():
    model = net()
    masks.put(model, {"0.weight": torch.zeros(3, 4, dtype=torch.bool)})
    with torch.no_grad():
        model[0].weight.fill_(-1.0)
        model[0].weight[0, 0] = float("nan")
        model[0].weight[0, 1] = float("-inf")
    masks.apply(model)
    assert torch.equal(model[0].weight.detach().view(torch.int32), torch.zeros(3, 4, dtype=torch.int32))


def test_a_mask_for_another_model_is_a_clear_message():
    with pytest.raises(UserError, match=r"'9\.weight' fits no parameter"):
        masks.put(net(), {"9.weight": torch.ones(3, 4, dtype=torch.bool)})
    with pytest.raises(UserError, match=r"shape \(4, 3\), the parameter \(3, 4\)"):
        masks.put(net(), {"0.weight": torch.ones(4, 3, dtype=torch.bool)})


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=40), st.data())
def test_keep_highest_is_a_stable_sort(entries, data):
    scores = torch.tensor([float(score) for score, _ in entries])
    alive = torch.tensor([living for _, living in entries])
    keep = data.draw(st.integers(0, int(alive.sum())))
    order = sorted((i for i in range(len(entries)) if entries[i][1]), key=lambda i: (-entries[i][0], i))
    expected = torch.zeros(len(entries), dtype=torch.bool)
    expected[order[:keep]] = True
    assert torch.equal(masks.keep_highest(scores, keep, alive), expected)


@pytest.mark.parametrize("kind", ["random", "few values", "mostly zero", "rising", "periodic", "one high"])
@pytest.mark.parametrize("masked", [False, True])
def test_many_scores_are_selected_as_by_a_stable_sort(kind, masked, monkeypatch):
    monkeypatch.setattr(masks, "_SAMPLE", 16)
    monkeypatch.setattr(masks, "_PIECE", 50)
    generator = torch.Generator().manual_seed(1)
    count = 1600
    scores = {
        "random": torch.rand(count, generator=generator),
        "few values": torch.randint(0, 4, (count,), generator=generator).float(),
        "mostly zero": torch.rand(count, generator=generator) * (torch.rand(count, generator=generator) > 0.9),
        "rising": torch.arange(count).float(),
        "periodic": (torch.arange(count) % 100 == 0).float(),  # the sample sees ones alone
        "one high": torch.nn.functional.one_hot(torch.tensor(700), count).float(),
    }[kind]
    alive = torch.rand(count, generator=generator) > 0.4 if masked else None
    living = torch.arange(count) if alive is None else torch.nonzero(alive)[:, 0]
    order = living[scores[living].sort(descending=True, stable=True).indices]
    for keep in (0, 1, 2, len(living) // 10, len(living) // 2, len(living) - 1, len(living)):
        expected = torch.zeros(count, dtype=torch.bool)
        expected[order[:keep]] = True
        assert torch.equal(masks.keep_highest(scores, keep, alive), expected), keep


def test_keep_highest_refuses_what_is_not_there():
    with pytest.raises(ValueError, match="cannot keep 3 of 2"):
        masks.keep_highest(torch.ones(2), 3)
    assert masks.keep_highest(torch.ones(2, 2), 4).shape == (2, 2)
