"""The zoo and torchvision: parameter counts from the literature, any input, seeded, and the real checkpoints' accuracy."""

from __future__ import annotations

from pathlib import Path

import pytest

pytestmark = pytest.mark.heavy

import torch  # noqa: E402

from edgecompress import data  # noqa: E402
from edgecompress.errors import UserError  # noqa: E402
from edgecompress.models import ZOO, build  # noqa: E402
from edgecompress.study import DataSpec, ModelSpec  # noqa: E402

PARAMETERS = {
    "resnet20": 269_722, "resnet32": 464_154, "resnet44": 658_586, "resnet56": 853_018, "resnet110": 1_727_962,
    "vgg16_bn": 14_728_266, "vgg19_bn": 20_040_522, "lenet300": 266_610, "lenet5": 431_080,
}  # fmt: skip
MNIST_SHAPED = ("lenet300", "lenet5", "lap_mlp")


def parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def shape_of(name: str) -> tuple[int, int, int]:
    return (1, 28, 28) if name in MNIST_SHAPED else (3, 32, 32)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_those_of_the_literature(name: str) -> None:
    assert parameters(build(ModelSpec(name=name), num_classes=10, in_shape=shape_of(name))) == PARAMETERS[name]


@pytest.mark.parametrize(
    ("name", "ratios", "rounds", "kept_percent"),
    [
        ("lap_mlp", [0.5] * 4 + [0.25], (4, 7, 10), (6.36, 0.84, 0.12)),
        ("lap_conv6", [0.15] * 6 + [0.2, 0.2, 0.1], (12, 15, 18), (10.62, 6.18, 3.62)),
        ("vgg19_bn", [0.15] * 16 + [0.1], (13, 27), (12.09, 1.24)),
    ],
)
def test_layers_have_the_sizes_that_give_the_lap_papers_columns(
    name: str, ratios: list[float], rounds: tuple[int, ...], kept_percent: tuple[float, ...]
) -> None:
    model = build(ModelSpec(name=name), num_classes=10, in_shape=shape_of(name))
    sizes = [p.numel() for k, p in model.named_parameters() if k.endswith("weight") and p.ndim > 1]
    for t, expected in zip(rounds, kept_percent, strict=True):
        kept = sum(n * (1 - p) ** t for n, p in zip(sizes, ratios, strict=True)) / sum(sizes)
        assert round(100 * kept, 2) == expected


@pytest.mark.parametrize("name", ZOO)
def test_any_number_of_channels_and_classes_and_a_smaller_width(name: str) -> None:
    full = build(ModelSpec(name=name), num_classes=7, in_shape=(2, 32, 32))
    half = build(ModelSpec(name=name, width=0.3), num_classes=7, in_shape=(2, 32, 32))
    assert half(torch.rand(3, 2, 32, 32)).shape == (3, 7)
    assert parameters(half) < parameters(full)


def test_vgg_takes_larger_images_than_cifars() -> None:
    model = build(ModelSpec(name="vgg11_bn", width=0.1), num_classes=5, in_shape=(3, 96, 64))
    assert model.eval()(torch.rand(1, 3, 96, 64)).shape == (1, 5)


def test_an_image_too_small_for_the_network_is_a_message_with_its_size() -> None:
    with pytest.raises(UserError, match=r"model vgg11_bn: the network does not take 28×28 images with 1 channel"):
        build(ModelSpec(name="vgg11_bn", width=0.1), num_classes=10, in_shape=(1, 28, 28))


def test_the_shortcut_is_option_a() -> None:
    block = build(ModelSpec(name="resnet20"), num_classes=10, in_shape=(3, 32, 32)).layer2[0]
    x = torch.rand(1, 16, 8, 8)
    out = block.shortcut(x)
    assert out.shape == (1, 32, 4, 4)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2]) and not out[:, :8].any() and not out[:, 24:].any()


def test_the_seed_decides_the_weights_and_leaves_the_callers_random_state() -> None:
    spec = ModelSpec(name="resnet20", width=0.25)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, again, other = (build(spec, num_classes=10, in_shape=(3, 32, 32), seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.conv1.weight, other.conv1.weight)


def test_build_leaves_the_network_in_train_mode_with_untouched_statistics() -> None:
    model = build(ModelSpec(name="resnet20", width=0.25), num_classes=10, in_shape=(3, 32, 32))
    assert model.training and model.layer1[0].bn1.training
    assert not model.bn1.running_mean.any() and int(model.bn1.num_batches_tracked) == 0


TORCHVISION = {
    "resnet18": 11_689_512, "resnet34": 21_797_672, "resnet50": 25_557_032, "alexnet": 61_100_840,
    "mobilenet_v2": 3_504_872, "vgg16": 138_357_544, "vgg16_bn": 138_365_992, "vgg19": 143_667_240,
}  # fmt: skip


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvisions_models_have_their_parameters(name: str) -> None:
    # The networks pool to one size before their linear layers, so a small image checks the same parameters sooner.
    side = 224 if name in ("alexnet", "vgg16", "vgg16_bn", "vgg19") else 64
    model = build(ModelSpec(name=f"torchvision:{name}"), num_classes=1000, in_shape=(3, side, side))
    assert parameters(model) == TORCHVISION[name]


def test_a_torchvision_model_gets_the_datas_classes_and_its_args() -> None:
    spec = ModelSpec(name="torchvision:mobilenet_v2", args={"width_mult": 0.25})
    model = build(spec, num_classes=7, in_shape=(3, 64, 64))
    assert model.classifier[1].out_features == 7 and model.features[0][0].out_channels == 8


def test_googlenet_returns_logits_in_train_mode_too() -> None:
    model = build(ModelSpec(name="torchvision:googlenet"), num_classes=3, in_shape=(3, 64, 64))
    assert isinstance(model.train()(torch.rand(2, 3, 64, 64)), torch.Tensor)


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("resnet19", {}, r"no classification model 'resnet19'\n  Did you mean 'resnet"),
        ("resnet18", {"depth": 3}, "refused its arguments: TypeError.*depth"),
        ("resnet18", {"num_classes": 9}, r"gives \(2, 9\) for 2 images, and the data have 10 classes"),
        ("resnet18", {"weights": "NO_SUCH"}, "refused its arguments"),
        ("fcn_resnet50", {}, "no classification model"),
    ],
)
def test_a_torchvision_request_that_is_wrong(name: str, args: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(ModelSpec(name=f"torchvision:{name}", args=args), num_classes=10, in_shape=(3, 32, 32))


def test_grey_images_for_an_rgb_network() -> None:
    with pytest.raises(UserError, match="does not take 32×32 images with 1 channel: RuntimeError"):
        build(ModelSpec(name="torchvision:resnet18"), num_classes=10, in_shape=(1, 32, 32))


@pytest.mark.timeout(1800)  # a minute or two alone, far more where the cores are shared
@pytest.mark.parametrize(("name", "correct"), [("resnet20", 9_155), ("resnet56", 9_320)])
def test_the_published_weights_give_their_accuracy_on_the_test_images(
    name: str, correct: int, edgecompress_data: Path, unpacked_data: Path
) -> None:
    dataset = data.load(DataSpec(name="npz", path=unpacked_data / "cifar10.npz"), seed=0)
    spec = ModelSpec(name=name, weights=edgecompress_data / "weights" / f"{name}.safetensors")
    model = build(spec, num_classes=dataset.num_classes, in_shape=dataset.in_shape).eval()
    right = 0
    with torch.inference_mode():
        for images, labels in data.batches(
            dataset, dataset.test, batch_size=256, shuffle=False, augment=False, seed=0, epoch=0
        ):
            right += int((model(images).argmax(1) == labels).sum())
    # 91.73 % and 93.39 % of 9,980; another CPU may round one image on the edge to the other side
    assert len(dataset.test) == 9_980 and abs(right - correct) <= 2


def test_the_mlp_of_the_distillation_experiment() -> None:
    net = build(
        ModelSpec(name="mlp", args={"dropout": 0.5, "input_dropout": 0.2}), num_classes=10, in_shape=(1, 28, 28)
    )
    assert sum(p.numel() for p in net.parameters()) == 784 * 1200 + 1200 + 1200 * 1200 + 1200 + 12010
    assert [m.p for m in net.modules() if isinstance(m, torch.nn.Dropout)] == [0.2, 0.5, 0.5]
    small = build(ModelSpec(name="mlp", args={"hidden": 30}, depth=0.5), num_classes=10, in_shape=(1, 28, 28))
    assert [m.out_features for m in small.modules() if isinstance(m, torch.nn.Linear)] == [30, 10]
    for args in ({"hidden": 0}, {"dropout": 1.0}):
        with pytest.raises(UserError, match=next(iter(args))):
            build(ModelSpec(name="mlp", args=args), num_classes=10, in_shape=(1, 28, 28))


@pytest.mark.parametrize(("name", "depth", "convolutions"), [("resnet56", 1 / 3, 19), ("vgg16_bn", 0.5, 8)])
def test_depth_multiplies_the_layers_of_each_stage(name: str, depth: float, convolutions: int) -> None:
    net = build(ModelSpec(name=name, width=0.1, depth=depth), num_classes=10, in_shape=(3, 32, 32))
    assert sum(isinstance(m, torch.nn.Conv2d) for m in net.modules()) == convolutions
    with pytest.raises(ValueError, match="lenet5 has no stages"):
        ModelSpec(name="lenet5", depth=0.5)
    with pytest.raises(ValueError, match="takes no 'units' in args"):
        ModelSpec(name="mlp", args={"units": 5})
