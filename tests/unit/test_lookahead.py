"""The lookahead score against brute force, an independent loop, and the paper's code on a chain."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edgecompress import masks
from edgecompress.compress import lookahead
from edgecompress.errors import UserError

pytestmark = pytest.mark.heavy


@settings(max_examples=60, deadline=None)
@given(sizes=st.tuples(*[st.integers(1, 7)] * 4), seed=st.integers(0, 2**16))
def test_a_linear_score_is_the_loss_of_the_product_of_three_layers(sizes: tuple[int, ...], seed: int) -> None:
    torch.manual_seed(seed)
    first, second, third = layers = [nn.Linear(a, b).double() for a, b in itertools.pairwise(sizes)]
    score = lookahead.scores(nn.Sequential(*layers), torch.zeros(1, sizes[0]).double(), dtype=torch.float64)["1.weight"]
    whole = third.weight @ second.weight @ first.weight
    for k in range(second.out_features):
        for j in range(second.in_features):
            cut = second.weight.detach().clone()
            cut[k, j] = 0
            lost = ((whole - third.weight @ cut @ first.weight) ** 2).sum()
            assert float(score[k, j]) == pytest.approx(float(lost.detach()), rel=1e-9, abs=1e-15)


class Residual(nn.Module):
    """stem → (a → norm → ReLU → b) + stem → flatten with 4 positions → head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.a = nn.Conv2d(4, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.b = nn.Conv2d(6, 4, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(torch.flatten(torch.relu(self.b(torch.relu(self.norm(self.a(x)))) + x), 1))


def residual() -> Residual:
    torch.manual_seed(3)
    model = Residual()
    model.norm.running_var.uniform_(0.5, 2)
    nn.init.uniform_(model.norm.weight, 0.5, 2)
    return model.eval()


def test_a_residual_block_and_a_flatten_have_their_true_neighbours() -> None:
    model = residual()
    found = lookahead.scores(model, torch.zeros(1, 3, 2, 2))
    stem, a, b, head = (layer.weight.detach() for layer in (model.stem, model.a, model.b, model.head))
    gain = (model.norm.weight / torch.sqrt(model.norm.running_var + model.norm.eps)).detach()
    columns = (head**2).sum(0).reshape(4, 4).sum(1)  # of a channel's four positions
    rows = {"stem": (stem**2).sum((1, 2, 3)), "a": (a**2).sum((1, 2, 3)) * gain**2, "b": (b**2).sum((1, 2, 3))}
    reads = {"a": (a**2).sum((0, 2, 3)), "b": (b**2).sum((0, 2, 3))}
    expected = {
        "stem.weight": stem**2 * (reads["a"] + columns).reshape(4, 1, 1, 1),
        "a.weight": a**2 * rows["stem"].reshape(1, 4, 1, 1) * (reads["b"] * gain**2).reshape(6, 1, 1, 1),
        "b.weight": b**2 * rows["a"].reshape(1, 6, 1, 1) * columns.reshape(4, 1, 1, 1),
        "head.weight": head**2 * (rows["stem"] + rows["b"]).repeat_interleave(4),
    }
    assert list(found) == ["stem.weight", "a.weight", "b.weight", "head.weight"]
    for name, score in expected.items():
        torch.testing.assert_close(found[name], score, rtol=1e-4, atol=1e-7)


def test_groups_and_shared_layers() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 4, 1)
            self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
            self.twice = nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.twice(torch.relu(self.twice(self.depthwise(self.first(x))))).mean((2, 3))

    torch.manual_seed(0)
    model = Net()
    found = lookahead.scores(model, torch.zeros(1, 3, 4, 4))
    first, depthwise, twice = (m.weight.detach() for m in (model.first, model.depthwise, model.twice))
    rows = (first**2).sum((1, 2, 3))
    shared_rows, shared_columns = (twice**2).sum((1, 2, 3)), (twice**2).sum((0, 2, 3))
    deep_rows = (depthwise**2).sum((1, 2, 3))
    torch.testing.assert_close(
        found["depthwise.weight"], depthwise**2 * (rows * shared_columns).reshape(4, 1, 1, 1), rtol=1e-4, atol=1e-7
    )
    torch.testing.assert_close(found["first.weight"], first**2 * deep_rows.reshape(4, 1, 1, 1), rtol=1e-4, atol=1e-7)
    both = deep_rows.reshape(1, 4) * shared_columns.reshape(4, 1) + shared_rows.reshape(1, 4)
    torch.testing.assert_close(found["twice.weight"], twice**2 * both.reshape(4, 4, 1, 1), rtol=1e-4, atol=1e-7)


def test_forward_mode_scores_with_what_is_left_before() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))
    kept = lookahead.masks(model, torch.zeros(1, 4), 0.5, mode="forward")
    pruned = model[0].weight.detach() * kept["0.weight"]
    score = model[1].weight.detach() ** 2 * (pruned**2).sum(1)
    assert torch.equal(kept["1.weight"], masks.keep_highest(score, round(0.5 * 15)))
    backward = lookahead.masks(model, torch.zeros(1, 4), 0.5, mode="backward")
    last = model[1].weight.detach() * backward["1.weight"]
    score = model[0].weight.detach() ** 2 * (last**2).sum(0).reshape(-1, 1)
    assert torch.equal(backward["0.weight"], masks.keep_highest(score, 10))


@pytest.mark.parametrize("options", [{}, {"mode": "backward", "splits": 3}, {"scope": "global", "splits": 2}])
def test_masks_keep_the_count_and_start_from_present_ones(options: dict[str, object]) -> None:
    model = residual()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    masks.put(model, {"a.weight": torch.arange(model.a.weight.numel()).reshape(model.a.weight.shape) % 2 == 0})
    cut = model.a.weight.detach().clone()
    kept = lookahead.masks(model, torch.zeros(1, 3, 2, 2), 0.75, **options)  # type: ignore[arg-type]
    total = sum(int(mask.sum()) for mask in kept.values())
    alive = sum(p.numel() for n, p in before.items() if n in kept) - model.a.weight.numel() // 2
    assert total == pytest.approx(alive / 4, abs=2)
    assert not kept["a.weight"].reshape(-1)[1::2].any()
    assert torch.equal(model.a.weight, cut)
    assert torch.equal(model.b.weight, before["b.weight"])


def test_bad_requests_are_refused_in_one_message() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) if x.sum() > 0 else self.layer(-x)

    with pytest.raises(UserError, match="cannot be traced"):
        lookahead.scores(Branching(), torch.zeros(1, 4))
    with pytest.raises(UserError, match="no convolution or linear layer"):
        lookahead.scores(nn.Sequential(nn.ReLU()), torch.zeros(1, 4))
    model = nn.Sequential(nn.Linear(4, 2))
    with pytest.raises(UserError, match=r"not in \[0, 1\)"):
        lookahead.masks(model, torch.zeros(1, 4), {"0.weight": 1.0})
    with pytest.raises(UserError, match="matches no convolution"):
        lookahead.masks(model, torch.zeros(1, 4), {"2.weight": 0.5})
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        lookahead.scores(model, torch.zeros(1, 4))
