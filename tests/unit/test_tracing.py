"""The graph of channels, through everything that moves, joins, scales or ends them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from edgecompress.compress import lookahead
from edgecompress.errors import UserError
from edgecompress.graph import Graph
from edgecompress.models import build
from edgecompress.study import ModelSpec
from edgecompress.tracing import trace

pytestmark = pytest.mark.heavy


class Between(nn.Module):
    """Two convolutions of 4 and 1×1 kernels with something between them. The second may have other inputs."""

    def __init__(self, middle, inputs: int = 4) -> None:
        super().__init__()
        self.first, self.second, self.middle = nn.Conv2d(3, 4, 1), nn.Conv2d(inputs, 2, 1), middle

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.middle(self.first(x)))


def neighbours(model: Between) -> tuple[list[float], list[float]]:
    """P of each input channel of the second convolution and N of each output channel of the first one, where rows of the
    first have squared norms 1, 10, 100, … and columns of the second 1, 2, 4, …"""
    with torch.no_grad():
        model.first.weight.zero_()[:, 0, 0, 0] = 10.0 ** (torch.arange(4) / 2)
        inputs = model.second.in_channels
        model.second.weight.zero_()[0, :, 0, 0] = 2.0 ** (torch.arange(inputs) / 2)
    found = lookahead.scores(model, torch.zeros(1, 3, 4, 4), dtype=torch.float64)
    first, second = model.first.weight.detach().double(), model.second.weight.detach().double()
    previous = (found["second.weight"] / second.square())[0, :, 0, 0]
    following = (found["first.weight"] / first.square())[:, 0, 0, 0]
    return previous.tolist(), following.tolist()


ROWS, COLUMNS = [1.0, 10.0, 100.0, 1000.0], [1.0, 2.0, 4.0, 8.0]


class Shuffle(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


class Do(nn.Module):
    """Anything as a module."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def written_in_parts(x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    out[:, :2] = x[:, 2:]
    out[:, 2:] = x[:, :2]
    return out


def added_in_place_through_a_view(x: Tensor) -> Tensor:
    x = x * 1.0
    x.view(1, -1)[:, :16] += x[:, 3].reshape(1, 16)
    return x


@pytest.mark.parametrize(
    ("middle", "previous", "following"),
    [
        (nn.Sequential(nn.ReLU(), nn.MaxPool2d(2), nn.Dropout2d(), nn.GELU()), ROWS, COLUMNS),
        (nn.Sequential(nn.Upsample(scale_factor=2), nn.ReflectionPad2d(1), nn.AdaptiveAvgPool2d(2)), ROWS, COLUMNS),
        (Do(lambda x: torch.nn.functional.interpolate(x, size=(3, 3), mode="bilinear")), ROWS, COLUMNS),
        (Shuffle(), [1.0, 100.0, 10.0, 1000.0], [1.0, 4.0, 2.0, 8.0]),
        (nn.ChannelShuffle(2), [1.0, 100.0, 10.0, 1000.0], [1.0, 4.0, 2.0, 8.0]),
        (Do(lambda x: x.flip(1)), ROWS[::-1], COLUMNS[::-1]),
        (Do(lambda x: torch.cat(x.chunk(2, 1)[::-1], 1)), [100.0, 1000.0, 1.0, 10.0], [4.0, 8.0, 1.0, 2.0]),
        (Do(lambda x: x[:, [3, 3, 0, 1]]), [1000.0, 1000.0, 1.0, 10.0], [4.0, 8.0, 0.0, 3.0]),
        (Do(lambda x: x.index_select(1, torch.tensor([1, 0, 3, 2]))), [10.0, 1.0, 1000.0, 100.0], [2.0, 1.0, 8.0, 4.0]),
        (Do(lambda x: torch.nn.functional.pad(x[:, 1:3], (0, 0, 0, 0, 1, 1))), [0.0, 10.0, 100.0, 0.0], [0.0, 2.0, 4.0, 0.0]),
        (Do(lambda x: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)), ROWS, COLUMNS),
        (Do(lambda x: x.reshape(x.shape[0], 4, -1).softmax(2).reshape(x.shape)), ROWS, COLUMNS),
        (Do(lambda x: x + x.relu()), ROWS, COLUMNS),
        (Do(lambda x: x + x.flip(1)), [1001.0, 110.0, 110.0, 1001.0], [9.0, 6.0, 6.0, 9.0]),
        (Do(lambda x: x * 2), [4.0, 40.0, 400.0, 4000.0], [4.0, 8.0, 16.0, 32.0]),
        (Do(lambda x: x / torch.tensor([1.0, 2.0, 1.0, 0.5]).reshape(4, 1, 1)), [1.0, 2.5, 100.0, 4000.0], [1.0, 0.5, 4.0, 32.0]),
        (Do(lambda x: (x - 0.5).add_(3)), ROWS, COLUMNS),
        (Do(lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True))), ROWS, COLUMNS),
    ],
)  # fmt: skip
def test_channels_are_followed(middle, previous, following):
    model = Between(middle)
    found = neighbours(model)
    assert found[0] == pytest.approx(previous, rel=1e-5) and found[1] == pytest.approx(following, rel=1e-5)
    assert trace(model, torch.zeros(1, 3, 4, 4)).not_followed == ()


def test_positions_that_become_channels_and_back():
    previous, following = neighbours(Between(nn.PixelUnshuffle(2), 16))
    assert previous == pytest.approx([row for row in ROWS for _ in range(4)], rel=1e-5)
    assert following == pytest.approx([15.0, 240.0, 3840.0, 61440.0], rel=1e-5)
    # Four channels share one: a mean of their makers, and each is read by its readers.
    previous, following = neighbours(Between(nn.PixelShuffle(2), 1))
    assert previous == pytest.approx([277.75], rel=1e-5) and following == pytest.approx([1.0] * 4)


@pytest.mark.parametrize(
    ("middle", "operation"),
    [
        (Do(lambda x: x.sort(1).values), "sort"),
        (Do(lambda x: torch.matmul(x, x)), "bmm"),
        (Do(lambda x: x.cumsum(1)), "cumsum"),
        (Do(lambda x: x.mean(1, keepdim=True).expand_as(x)), "mean"),
        (Do(written_in_parts), "write through a view"),
        (Do(added_in_place_through_a_view), "write through a view"),
    ],
)
def test_where_channels_end_the_network_counts_as_ending(middle, operation):
    model = Between(middle)
    previous, following = neighbours(model)
    assert operation in trace(model, torch.zeros(1, 3, 4, 4)).not_followed
    assert previous == [1.0] * 4 and min(following) > 0.999


def test_the_output_and_the_input_count_as_a_reader_and_a_maker():
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            hidden = self.first(x) + x
            return {"hidden": hidden, "logits": self.second(hidden)}

    torch.manual_seed(0)
    model = Both().double()
    found = lookahead.scores(model, torch.zeros(1, 3))
    first, second = model.first.weight.detach(), model.second.weight.detach()
    torch.testing.assert_close(found["first.weight"], first.square() * (1 + second.square().sum(0))[:, None])
    torch.testing.assert_close(found["second.weight"], second.square() * (1 + first.square().sum(1))[None])


def test_sequences_layer_norm_and_a_class_token():
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch, self.token = nn.Conv2d(3, 4, 2, stride=2), nn.Parameter(torch.zeros(1, 1, 4))
            self.norm, self.wide, self.head = nn.LayerNorm(4), nn.Linear(4, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.patch(x).flatten(2).transpose(1, 2)
            x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
            return self.head(self.wide(self.norm(x))[:, 0])

    torch.manual_seed(0)
    model = Tokens().double()
    nn.init.uniform_(model.norm.weight, 0.5, 2)
    graph = trace(model, torch.zeros(1, 3, 4, 4))
    assert graph.not_followed == ()
    found = lookahead.scores(model, torch.zeros(1, 3, 4, 4))
    patch, wide, head = (layer.weight.detach() for layer in (model.patch, model.wide, model.head))
    # Four of five positions are patches, one is the token, which is from outside.
    before = (0.8 * patch.square().sum((1, 2, 3)) + 0.2) * model.norm.weight.detach() ** 2
    torch.testing.assert_close(
        found["wide.weight"], wide.square() * before[None] * head.square().sum(0)[:, None], rtol=1e-9, atol=0
    )


def test_python_that_depends_on_shapes_is_run_and_on_values_is_refused():
    class Branching(nn.Module):
        def __init__(self, condition) -> None:
            super().__init__()
            self.layer, self.condition = nn.Linear(4, 2), condition

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) if self.condition(self.layer(x)) else self.layer(-x)

    assert lookahead.scores(Branching(lambda x: x.shape[1] == 2), torch.zeros(1, 4)).keys() == {"layer.weight"}
    for condition in (lambda x: x.sum() > 0, lambda x: bool((x > 0).any()), lambda x: float(x.max()) > 1,
                      lambda x: len(torch.nonzero(x)) > 1):  # fmt: skip
        with pytest.raises(UserError, match="cannot be traced: its path through the network depends on the values"):
            lookahead.scores(Branching(condition), torch.zeros(1, 4))


def test_a_model_that_is_not_of_torchs_operators_is_refused():
    class Numpy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return torch.from_numpy(self.layer(x).detach().numpy().copy())

    with pytest.raises(UserError, match="its output does not follow from its input"):
        lookahead.scores(Numpy(), torch.zeros(1, 4))
    with pytest.raises(UserError, match=r"its run on an input of shape .* failed"):
        lookahead.scores(nn.Sequential(nn.Linear(4, 2)), torch.zeros(2, 3))


def test_weights_that_are_computed_are_neighbours_and_the_ones_they_come_from_are_not_scored():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).double()
    nn.utils.parametrizations.weight_norm(model[0])
    found = lookahead.scores(model, torch.zeros(1, 3))
    assert found.keys() == {"1.weight"}
    weight, before = model[1].weight.detach(), model[0].weight.detach()
    torch.testing.assert_close(found["1.weight"], weight.square() * before.square().sum(1)[None])


@pytest.mark.parametrize("name", ["resnet20", "vgg11_bn", "lenet5", "lap_conv6"])
def test_every_layer_of_the_zoo_is_followed(name):
    model = build(ModelSpec(name=name), num_classes=10, in_shape=(3, 32, 32))
    graph: Graph = trace(model, torch.zeros(1, 3, 32, 32))
    assert graph.not_followed == ()
    layers = [n for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert [use.weight for use in graph.uses] == [f"{layer}.weight" for layer in layers]
