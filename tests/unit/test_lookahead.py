"""The lookahead score against brute force and against slow loops after the paper's code; selection; what is refused."""

from __future__ import annotations

import copy
import itertools
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import edgecompress
from edgecompress import masks
from edgecompress.compress import lookahead
from edgecompress.errors import UserError
from tests.small_nets import few_digits, small_net

pytestmark = pytest.mark.heavy

SIZES = st.integers(1, 5)


def zeros(*shape: int) -> Tensor:
    return torch.zeros(1, *shape, dtype=torch.float64)


def cut(weight: Tensor, place: tuple[int, ...]) -> Tensor:
    without = weight.detach().clone()
    without[place] = 0
    return without - weight.detach()


@settings(max_examples=40, deadline=None)
@given(sizes=st.tuples(SIZES, SIZES, SIZES, SIZES), seed=st.integers(0, 2**16))
def test_a_linear_score_is_the_loss_of_the_product_of_three_layers(sizes, seed):
    torch.manual_seed(seed)
    first, second, third = layers = [nn.Linear(a, b).double() for a, b in itertools.pairwise(sizes)]
    score = lookahead.scores(nn.Sequential(*layers), zeros(sizes[0]), dtype=torch.float64)["1.weight"]
    for place in itertools.product(*map(range, score.shape)):
        lost = (third.weight @ cut(second.weight, place) @ first.weight).detach().square().sum()
        torch.testing.assert_close(score[place], lost, rtol=1e-9, atol=1e-15)


class Streams(nn.Module):
    """Linear layers with a residual addition and a concatenation: x → a → h; h + b(h) → [·, c(x)] → d."""

    def __init__(self, inputs: int, hidden: int, side: int, outputs: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(inputs, hidden), nn.Linear(hidden, hidden)
        self.c, self.d = nn.Linear(inputs, side), nn.Linear(hidden + side, outputs)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.d(torch.cat([h + self.b(h), self.c(x)], 1))


@settings(max_examples=15, deadline=None)
@given(sizes=st.tuples(SIZES, SIZES, SIZES, SIZES), seed=st.integers(0, 2**16))
def test_in_a_linear_graph_a_score_is_the_loss_of_the_block_of_a_layer_and_all_its_neighbours(sizes, seed):
    torch.manual_seed(seed)
    model = Streams(*sizes).double()
    found = lookahead.scores(model, zeros(sizes[0]))
    weight = {name: getattr(model, name).weight.detach() for name in "abcd"}
    hidden, side = sizes[1:3]
    onto, beside = weight["d"][:, :hidden], weight["d"][:, hidden:]
    for name, makers, readers in [
        ("a", [torch.eye(sizes[0]).double()[:, None, :]], [weight["b"], onto]),
        ("b", [weight["a"]], [onto]),
        ("c", [torch.eye(sizes[0]).double()[:, None, :]], [beside]),
    ]:
        before = torch.cat([m.reshape(len(m), -1) for m in makers], 1)
        for place in itertools.product(*map(range, weight[name].shape)):
            # Each input channel of the network counts 1, hence the unit row of its own.
            lost = (torch.cat(readers) @ cut(weight[name], place) @ before).square().sum()
            torch.testing.assert_close(found[f"{name}.weight"][place], lost, rtol=1e-9, atol=1e-15)
    before = (
        torch.cat([torch.cat([weight["a"], weight["b"]], 1), torch.zeros(hidden, sizes[0])], 1).double(),
        torch.cat([torch.zeros(side, sizes[0] + hidden), weight["c"]], 1).double(),
    )
    for place in itertools.product(*map(range, weight["d"].shape)):
        lost = (cut(weight["d"], place) @ torch.cat(before)).square().sum()
        torch.testing.assert_close(found["d.weight"][place], lost, rtol=1e-9, atol=1e-15)


# The paper's code, as loops over single weights


def slow_chain(layers: list[nn.Module], norms: list[nn.Module | None]) -> list[Tensor]:
    """S of a chain of convolutions and linear layers, after methods of alinlab/lookahead_pruning. norms: after each layer."""
    weights = [layer.weight.detach() for layer in layers]

    def gain(i: int, channel: int) -> float:
        norm = norms[i]
        return (
            1.0 if norm is None else float(norm.weight[channel].detach() / (norm.running_var[channel] + 1e-10).sqrt())
        )

    found = []
    for i, weight in enumerate(weights):
        score = torch.zeros_like(weight)
        for place in itertools.product(*map(range, weight.shape)):
            k, j = place[:2]
            previous = following = 1.0
            if i > 0:
                positions = weight.shape[1] // weights[i - 1].shape[0]  # above 1: features of a flattened channel
                source = j // positions
                previous = sum(float(w) ** 2 for w in weights[i - 1][source].flatten()) * gain(i - 1, source) ** 2
            if i + 1 < len(weights):
                positions = weights[i + 1].shape[1] // weight.shape[0]
                columns = weights[i + 1][:, k * positions : (k + 1) * positions]
                following = sum(float(w) ** 2 for w in columns.flatten()) * gain(i, k) ** 2
            score[place] = float(weight[place]) ** 2 * previous * following
        found.append(score)
    return found


def lively(model: nn.Module) -> nn.Module:
    """With batch norms as a training leaves them, in float64."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 0.3, 2)
            nn.init.uniform_(module.running_var, 0.3, 2)
            nn.init.uniform_(module.running_mean, -1, 1)
    return model.double()


def chain() -> tuple[nn.Sequential, list[nn.Module], list[nn.Module | None]]:
    """Batch norms after convolutions and before a flatten with four positions, pooling, dropout."""
    torch.manual_seed(4)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(16, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Dropout(0.5), nn.Linear(5, 3),
    )  # fmt: skip
    lively(model)
    return model, [model[0], model[4], model[9], model[13]], [model[1], model[5], model[10], None]


def test_a_chain_scores_as_the_papers_code():
    model, layers, norms = chain()
    found = lookahead.scores(model, zeros(2, 8, 8))
    assert list(found) == ["0.weight", "4.weight", "9.weight", "13.weight"]
    for score, expected in zip(found.values(), slow_chain(layers, norms), strict=True):
        torch.testing.assert_close(score, expected, rtol=1e-9, atol=0)
    plain = lookahead.scores(model, zeros(2, 8, 8), batch_norm=False)
    for score, expected in zip(plain.values(), slow_chain(layers, [None] * 4), strict=True):
        torch.testing.assert_close(score, expected, rtol=1e-9, atol=0)


def test_batch_norm_adds_what_was_asked_to_the_variance():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, eps=0.5), nn.Linear(2, 1))
    factor = {eps: lookahead.scores(model, torch.zeros(1, 2), bn_eps=eps)["2.weight"] for eps in (1e-10, None, 3.0)}
    torch.testing.assert_close(factor[1e-10], 1.5 * factor[None])
    torch.testing.assert_close(factor[1e-10], 4.0 * factor[3.0])


class Residual(nn.Module):
    """A ResNet's stage: stem, a block whose shortcut is a convolution, a block whose shortcut is the stream itself, head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(2, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)
        self.a1, self.a1_norm = nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(4)
        self.a2, self.a2_norm = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.short, self.short_norm = nn.Conv2d(3, 4, 1, stride=2, bias=False), nn.BatchNorm2d(4)
        self.b1, self.b1_norm = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.b2, self.b2_norm = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem_norm(self.stem(x)))
        out = self.a2_norm(self.a2(torch.relu(self.a1_norm(self.a1(x)))))
        x = torch.relu(out + self.short_norm(self.short(x)))
        out = self.b2_norm(self.b2(torch.relu(self.b1_norm(self.b1(x)))))
        out += x
        return self.head(torch.relu(out).mean((2, 3)))


def residual() -> Residual:
    torch.manual_seed(5)
    return lively(Residual()).eval()


def test_a_residual_stream_has_all_its_makers_and_readers_and_each_its_own_batch_norm():
    model = residual()
    found = lookahead.scores(model, zeros(2, 4, 4))
    makers = {"a1": ["stem"], "a2": ["a1"], "short": ["stem"], "b1": ["a2", "short"], "b2": ["b1"],
              "head": ["a2", "short", "b2"]}  # fmt: skip
    readers = {name: [other for other, sources in makers.items() if name in sources] for name in [*makers, "stem"]}
    for name, its_readers in readers.items():
        weight = getattr(model, name).weight.detach()
        expected = torch.zeros_like(weight)
        for place in itertools.product(*map(range, weight.shape)):
            k, j = place[:2]
            previous = following = 0.0
            for maker in makers.get(name, []):
                norm = getattr(model, f"{maker}_norm")
                gain = float(norm.weight[j].detach()) ** 2 / (float(norm.running_var[j]) + 1e-10)
                previous += float(getattr(model, maker).weight[j].detach().square().sum()) * gain
            for reader in its_readers:
                norm = getattr(model, f"{name}_norm")
                gain = float(norm.weight[k].detach()) ** 2 / (float(norm.running_var[k]) + 1e-10)
                following += float(getattr(model, reader).weight[:, k].detach().square().sum()) * gain
            previous = 1.0 if name == "stem" else previous
            following = 1.0 if name == "head" else following
            expected[place] = float(weight[place]) ** 2 * previous * following
        torch.testing.assert_close(found[f"{name}.weight"], expected, rtol=1e-9, atol=0)


def slow_rows_and_columns(layer: nn.Module) -> tuple[list[float], list[float], dict[tuple[int, ...], tuple[int, int]]]:
    """Σ w² of each output and input channel of any convolution, and which (output, input) a weight belongs to."""
    groups, transposed = layer.groups, isinstance(layer, nn.ConvTranspose2d)
    rows, columns = [0.0] * layer.out_channels, [0.0] * layer.in_channels
    belongs = {}
    for place in itertools.product(*map(range, layer.weight.shape)):
        first, second = place[:2]
        group = first // (layer.weight.shape[0] // groups)
        other = group * layer.weight.shape[1] + second
        out, into = (other, first) if transposed else (first, other)
        belongs[place] = out, into
        rows[out] += float(layer.weight[place]) ** 2
        columns[into] += float(layer.weight[place]) ** 2
    return rows, columns, belongs


@pytest.mark.parametrize(
    "middle",
    [
        lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4),
        lambda: nn.Conv2d(4, 8, 3, padding=1, groups=4),
        lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2),
        lambda: nn.ConvTranspose2d(4, 6, 2, stride=2),
        lambda: nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2),
    ],
    ids=["depthwise", "depthwise ×2", "grouped", "transposed", "transposed, grouped"],
)
def test_convolutions_of_every_kind(middle):
    torch.manual_seed(6)
    layer = middle()
    first, last = nn.Conv2d(2, 4, 1, groups=2), nn.Conv2d(layer.out_channels, 2, 1)
    model = nn.Sequential(first, nn.ReLU(), layer, nn.SiLU(), last).double()
    found = lookahead.scores(model, zeros(2, 4, 4))
    before, after = slow_rows_and_columns(first)[0], slow_rows_and_columns(last)[1]
    rows, columns, belongs = slow_rows_and_columns(layer)
    for place, (out, into) in belongs.items():
        expected = float(layer.weight[place]) ** 2 * before[into] * after[out]
        assert float(found["2.weight"][place]) == pytest.approx(expected, rel=1e-9)
    for place, (out, _) in slow_rows_and_columns(first)[2].items():
        assert float(found["0.weight"][place]) == pytest.approx(
            float(first.weight[place]) ** 2 * columns[out], rel=1e-9
        )
    for place, (_, into) in slow_rows_and_columns(last)[2].items():
        assert float(found["4.weight"][place]) == pytest.approx(float(last.weight[place]) ** 2 * rows[into], rel=1e-9)


def test_a_shared_layer_has_the_scores_of_its_uses_together():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.twice = nn.Linear(3, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.twice(torch.relu(self.twice(self.first(x))))

    torch.manual_seed(0)
    model = Net().double()
    found = lookahead.scores(model, zeros(3))
    first, twice = model.first.weight.detach(), model.twice.weight.detach()
    rows, columns = twice.square().sum(1), twice.square().sum(0)
    torch.testing.assert_close(found["first.weight"], first.square() * columns[:, None])
    both = first.square().sum(1)[None] * columns[:, None] + rows[None]
    torch.testing.assert_close(found["twice.weight"], twice.square() * both)


# Selection


def kept_by_loop(score: Tensor, removed: float, alive: Tensor) -> Tensor:
    """round((1 − p) · alive) highest, halves to even, the first of equal ones."""
    keep = round((1 - removed) * int(alive.sum()))
    order = sorted(torch.nonzero(alive.flatten())[:, 0].tolist(), key=lambda i: (-float(score.flatten()[i]), i))
    mask = torch.zeros(score.numel(), dtype=torch.bool)
    mask[order[:keep]] = True
    return mask.reshape(score.shape)


def test_base_masks_keep_the_highest_of_what_is_alive():
    model, *_ = chain()
    start = torch.rand(4, 3, 3, 3) > 0.3
    masks.put(model, {"4.weight": start})
    ratios = {"4.weight": 0.5, "9": 0.75, "1*": 0.1, "0.weight": 0}
    score = lookahead.scores(model, zeros(2, 8, 8))
    found = lookahead.masks(model, zeros(2, 8, 8), ratios)
    whole = {name: torch.ones_like(s, dtype=torch.bool) for name, s in score.items()}
    assert torch.equal(found["4.weight"], kept_by_loop(score["4.weight"], 0.5, start))
    assert torch.equal(found["9.weight"], kept_by_loop(score["9.weight"], 0.75, whole["9.weight"]))
    assert torch.equal(found["13.weight"], kept_by_loop(score["13.weight"], 0.1, whole["13.weight"]))
    assert found["0.weight"].all()
    assert list(lookahead.masks(model, zeros(2, 8, 8), {"9": 0.5})) == ["9.weight"]


def test_halves_are_rounded_to_even():
    model = nn.Sequential(nn.Linear(5, 1), nn.Linear(1, 7))
    found = lookahead.masks(model, torch.zeros(1, 5), 0.5)
    assert int(found["0.weight"].sum()) == 2 and int(found["1.weight"].sum()) == 4


@pytest.mark.parametrize("mode", ["base", "forward", "backward"])
@pytest.mark.parametrize("splits", [1, 3])
def test_modes_and_splits_prune_in_their_order_with_what_is_left(mode, splits):
    model, _, norms = chain()
    names = ["0.weight", "4.weight", "9.weight", "13.weight"]
    ratio = {"0.weight": 0.3, "4.weight": 0.7, "9.weight": 0.8, "13.weight": 0.5}
    found = lookahead.masks(model, zeros(2, 8, 8), ratio, mode=mode, splits=splits)
    pruned = copy.deepcopy(model)
    layers = [pruned[0], pruned[4], pruned[9], pruned[13]]
    alive = [torch.ones_like(layer.weight, dtype=torch.bool) for layer in layers]
    for step in range(splits):
        order = [3, 2, 1, 0] if mode == "backward" else [0, 1, 2, 3]
        scores = slow_chain(layers, norms)
        for i in order:
            if mode != "base":
                scores = slow_chain(layers, norms)
            p = Fraction(ratio[names[i]])
            removed = (p / splits) / (1 - p * step / splits)
            alive[i] = kept_by_loop(scores[i], float(removed), alive[i])
            if mode != "base":
                layers[i].weight.data.mul_(alive[i])
        for layer, mask in zip(layers, alive, strict=True):
            layer.weight.data.mul_(mask)
    for name, mask in zip(names, alive, strict=True):
        assert torch.equal(found[name], mask), name
    if mode != "base" and splits == 1:
        scored = lookahead.scores(model, zeros(2, 8, 8), mode=mode, ratios=ratio)
        assert all(torch.equal(kept_by_loop(scored[n], ratio[n], torch.ones_like(found[n])), found[n]) for n in names)


def test_global_divides_each_layers_scores_by_their_norm_and_keeps_earlier_masks():
    model, *_ = chain()
    masks.put(model, {"9.weight": torch.arange(80).reshape(5, 16) % 2 == 0})
    score = lookahead.scores(model, zeros(2, 8, 8))
    flat = torch.cat([(s / s.norm()).flatten() for s in score.values()])
    alive = torch.cat([masks.get(model).get(name, torch.ones_like(s)).flatten().bool() for name, s in score.items()])
    found = lookahead.masks(model, zeros(2, 8, 8), 0.6, scope="global")
    assert torch.equal(torch.cat([mask.flatten() for mask in found.values()]), kept_by_loop(flat, 0.6, alive))


def test_activations_weigh_each_channel_by_how_often_it_is_alive():
    model, layers, _ = chain()
    model.eval()
    images = torch.randn(7, 2, 8, 8, dtype=torch.float64)
    found = lookahead.masks(model, zeros(2, 8, 8), 0.6, images=images, batch_norm=False)
    sums = lookahead.scores(model, zeros(2, 8, 8), images=images, batch_norm=False)
    scaled = copy.deepcopy(layers)
    with torch.no_grad():
        # The paper's code: row k of every layer but the last times √p, summed over positions.
        for layer, end in zip(scaled[:3], (3, 7, 12), strict=True):
            p = (model[:end](images) > 0).double().mean(0)
            factor = p.sqrt().reshape(len(p), -1).sum(1)
            layer.weight.mul_(factor.reshape([-1] + [1] * (layer.weight.dim() - 1)))
    for name, expected in zip(found, slow_chain(scaled, [None] * 4), strict=True):
        assert torch.equal(found[name], kept_by_loop(expected, 0.6, torch.ones_like(found[name])))
        torch.testing.assert_close(sums[name] / sums[name].norm(), expected / expected.norm(), rtol=1e-9, atol=0)


@pytest.mark.parametrize("options", [{}, {"mode": "forward"}, {"mode": "backward", "splits": 3}, {"scope": "global"}])
def test_scoring_changes_nothing_of_the_model(options):
    model = residual().train()
    model.a1_norm.eval()
    masks.put(model, {"a1.weight": torch.rand(4, 3, 3, 3) > 0.5})
    before = {name: tensor.clone() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    training = {name: module.training for name, module in model.named_modules()}
    lookahead.masks(model, zeros(2, 4, 4), 0.5, images=torch.randn(3, 2, 4, 4).double(), **options)
    lookahead.scores(model, zeros(2, 4, 4), images=torch.randn(3, 2, 4, 4).double())
    after = dict([*model.named_parameters(), *model.named_buffers()])
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert training == {name: module.training for name, module in model.named_modules()}
    assert all(parameter.grad is None for parameter in model.parameters())


def test_types():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    assert lookahead.scores(model, torch.zeros(1, 3))["0.weight"].dtype == torch.float32
    exact = lookahead.scores(model, torch.zeros(1, 3), dtype=torch.float64)["0.weight"]
    twin = copy.deepcopy(model).double()
    torch.testing.assert_close(exact, lookahead.scores(twin, torch.zeros(1, 3))["0.weight"], rtol=1e-12, atol=0)
    assert lookahead.scores(model.bfloat16(), torch.zeros(1, 3))["0.weight"].dtype == torch.float32


# The method


def test_apply_prunes_leaves_out_and_tells_of_emptied_layers():
    digits = few_digits(64)
    result = edgecompress.compress(
        small_net(), "lookahead", data=digits, sparsity=0.75, ratios={"fc2": 0.999, "conv*": 0.5}, exclude="conv1"
    )
    notes = result.report.steps[0].notes
    assert masks.get(result.model).keys() == {"conv2.weight", "fc1.weight", "fc2.weight"}
    assert notes["emptied_layers"] == ["fc2.weight"] and not result.model.fc2.weight.any()
    assert notes["kept_fraction"] == {"conv2.weight": 0.5, "fc1.weight": 0.25, "fc2.weight": 0.0}
    whole = {name: weight.numel() for name, weight in result.model.named_parameters()}
    kept = sum(int(mask.sum()) for mask in masks.get(result.model).values())
    assert notes["kept_fraction_overall"] == kept / sum(whole[name] for name in masks.get(result.model))


def test_apply_gives_the_masks_of_the_function_and_needs_no_data():
    model = small_net()
    result = edgecompress.compress(model, "lookahead", example_input=torch.zeros(1, 1, 32, 32), sparsity=0.7)
    expected = lookahead.masks(model, torch.zeros(1, 1, 32, 32), 0.7)
    found = masks.get(result.model)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    with pytest.raises(UserError, match="must know the size of its images"):
        edgecompress.compress(model, "lookahead")
    with pytest.raises(UserError, match="needs data"):
        edgecompress.compress(model, "lookahead", example_input=torch.zeros(1, 1, 32, 32), weigh_activations=True)


def test_a_layer_that_takes_no_part_is_left_as_it_is_and_named():
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head, self.aside = nn.Linear(4, 6), nn.Linear(6, 10), nn.Linear(6, 10)

        def forward(self, x: Tensor) -> Tensor:
            x = self.body(x.flatten(1))
            return self.aside(x) if self.training else self.head(x)

    result = edgecompress.compress(Auxiliary(), "lookahead", example_input=torch.zeros(1, 1, 2, 2), sparsity=0.5)
    assert masks.get(result.model).keys() == {"body.weight", "head.weight"}
    assert result.report.steps[0].notes["unused_layers"] == ["aside.weight"]
    with pytest.raises(UserError, match="'aside' matches no convolution or linear layer"):
        lookahead.masks(Auxiliary(), torch.zeros(1, 1, 2, 2), {"aside": 0.5})


def line() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


def test_bad_requests_have_one_message_each():
    x = torch.zeros(1, 4)
    for ratio in (1.0, -0.1, float("nan"), "half"):
        with pytest.raises(UserError, match=r"is not in \[0, 1\)"):
            lookahead.masks(line(), x, ratio)
        with pytest.raises(UserError, match=r"for 0.weight is not in \[0, 1\)"):
            lookahead.masks(line(), x, {"0.weight": ratio})
    for call, message in [
        (lambda: lookahead.masks(line(), x, {"fc*": 0.5}), "'fc\\*' matches no convolution or linear layer"),
        (lambda: lookahead.masks(line(), x, {}), "nothing to prune"),
        (lambda: lookahead.masks(line(), x, {"0": 0.5, "2": 0.1}, scope="global"), "removes one fraction"),
        (lambda: lookahead.masks(line(), x, 0.5, scope="global", mode="forward"), "takes mode base"),
        (lambda: lookahead.masks(line(), x, 0.5, splits=0), "splits must be 1 or more"),
        (lambda: lookahead.masks(line(), x, 0.5, mode="sideways"), "no mode 'sideways'"),
        (lambda: lookahead.scores(line(), x, mode="forward"), "Give ratios"),
        (lambda: lookahead.scores(line(), x, mode="sideways"), "no mode 'sideways'"),
        (lambda: lookahead.scores(nn.Sequential(nn.ReLU()), x), "no convolution or linear layer to prune"),
        (lambda: lookahead.scores(line(), torch.zeros(1, 5)), "cannot be traced"),
        (lambda: masks.put(line(), lookahead.masks(nn.Sequential(nn.Linear(4, 9)), x, 0.5)), "mask for '0.weight'"),
    ]:
        with pytest.raises(UserError, match=message) as caught:
            call()
        assert len(str(caught.value).splitlines()) <= 2


@pytest.mark.parametrize("where", ["0.weight", "2.weight", "1.weight", "1.running_var"])
def test_values_that_are_not_finite_are_refused(where):
    model = line()
    with torch.no_grad():
        model.state_dict()[where].flatten()[0] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        lookahead.scores(model, torch.zeros(1, 4))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UserError, match="not finite"):
        edgecompress.compress(model, "lookahead", example_input=torch.zeros(1, 4), exclude="2")
    assert not masks.get(model)
    after = model.state_dict()
    assert all(torch.equal(before[name].nan_to_num(7), after[name].nan_to_num(7)) for name in before)


def test_parameters_that_contradict_each_other_are_refused():
    for wrong in ({"sparsity": 1.0}, {"ratios": {"fc1": 1.0}}, {"mode": "sideways"}, {"splits": 0}, {"activation_images": 0},
                  {"scope": "global", "mode": "forward"}, {"scope": "global", "ratios": {"fc1": 0.5}}):  # fmt: skip
        with pytest.raises(UserError):
            edgecompress.compress(small_net(), "lookahead", example_input=torch.zeros(1, 1, 32, 32), **wrong)
    with pytest.raises(UserError, match="'nothing' matches no convolution or linear layer"):
        edgecompress.compress(
            small_net(), "lookahead", example_input=torch.zeros(1, 1, 32, 32), ratios={"nothing": 0.5}
        )
