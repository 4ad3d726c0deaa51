"""Weights from and to disk: strict, without running code, masks kept, a damaged directory refused."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.heavy

import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from torch import nn  # noqa: E402

from edgecompress import masks  # noqa: E402
from edgecompress.errors import UserError  # noqa: E402
from edgecompress.models import build  # noqa: E402
from edgecompress.models.checkpoint import load_model, load_weights, save_model  # noqa: E402
from edgecompress.study import ModelSpec  # noqa: E402

SPEC = ModelSpec(name="resnet20", width=0.25)
SHAPE = (3, 32, 32)


def small(seed: int = 0, classes: int = 10) -> nn.Module:
    return build(SPEC, num_classes=classes, in_shape=SHAPE, seed=seed)


def same(first: nn.Module, second: nn.Module) -> bool:
    one, two = first.state_dict(), second.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def save(model: nn.Module, directory: Path) -> None:
    save_model(directory, model, num_classes=10, in_shape=SHAPE)


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model_state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_torch_checkpoints_are_unwrapped(tmp_path: Path, wrapper: str | None, prefix: str) -> None:
    source = small(seed=1)
    state: Any = {prefix + k: v for k, v in source.state_dict().items()}
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / "w.pth")
    target = small()
    load_weights(target, tmp_path / "w.pth")
    assert same(source, target)


def test_half_precision_and_no_batch_counts(tmp_path: Path) -> None:
    state = {k: v.half() for k, v in small(seed=1).state_dict().items() if not k.endswith("num_batches_tracked")}
    save_file(state, tmp_path / "w.safetensors")
    target = small()
    load_weights(target, tmp_path / "w.safetensors")
    assert target.conv1.weight.dtype == torch.float32
    assert torch.equal(target.conv1.weight, state["conv1.weight"].float())


def test_a_checkpoint_of_another_model_names_the_keys_and_changes_nothing(tmp_path: Path) -> None:
    other = build(ModelSpec(name="resnet32", width=0.25), num_classes=7, in_shape=SHAPE)
    state = other.state_dict()
    del state["bn1.weight"]
    torch.save(state, tmp_path / "w.pt")
    target, before = small(), small()
    with pytest.raises(UserError) as caught:
        load_weights(target, tmp_path / "w.pt")
    message = str(caught.value)
    assert "missing: bn1.weight;" in message and "linear.weight (7, 16) for (10, 16)" in message
    assert "unexpected: layer1.3.conv1.weight" in message and " more" in message
    assert same(target, before)


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    witness = tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (witness,))

    torch.save({"state_dict": Evil()}, tmp_path / "evil.pt")
    (tmp_path / "bare.pkl").write_bytes(pickle.dumps(Evil()))
    for name in ("evil.pt", "bare.pkl"):
        with pytest.raises(UserError, match="is refused"):
            load_weights(small(), tmp_path / name)
    assert not witness.exists()


def test_a_whole_pickled_module_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    with pytest.raises(UserError, match="holds more than tensors"):
        load_weights(small(), tmp_path / "module.pt")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.pt", None, "no such file"),
        ("absent.safetensors", None, "no such file"),
        ("text.safetensors", b"hello", "not a safetensors file"),
        ("empty.safetensors", b"", "not a safetensors file"),
        ("text.pt", b"hello, this is no checkpoint", "refused|cannot be read"),
        ("empty.pt", b"", "cannot be read as a checkpoint"),
        ("cut.pt", b"PK\x03\x04 and then nothing", "cannot be read as a checkpoint"),
    ],
)
def test_files_that_are_no_checkpoints(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        load_weights(small(), tmp_path / name)
    assert caught.value.where == str(tmp_path / name)


@pytest.mark.parametrize("value", [{}, [1, 2], torch.zeros(3), {"epoch": 3, "optimizer": {}}, {"a": 1}])
def test_files_without_a_state_dict(tmp_path: Path, value: Any) -> None:
    torch.save(value, tmp_path / "w.pt")
    with pytest.raises(UserError, match="no state dict"):
        load_weights(small(), tmp_path / "w.pt")


def test_a_model_comes_back_as_it_was_with_its_masks(tmp_path: Path) -> None:
    model = small(seed=3)
    weight = model.layer1[0].conv1.weight
    masks.put(model, {"layer1.0.conv1.weight": weight.abs() > weight.abs().median()})
    model.bn1.running_mean.fill_(0.25)
    save(model, tmp_path / "m")
    again = load_model(tmp_path / "m")
    assert same(model, again) and not again.training
    assert masks.get(again).keys() == {"layer1.0.conv1.weight"}
    assert torch.equal(masks.get(again)["layer1.0.conv1.weight"], masks.get(model)["layer1.0.conv1.weight"])
    images = torch.rand(2, *SHAPE)
    assert torch.equal(model.eval()(images), again(images))


def test_saving_again_replaces_the_files_and_leaves_no_stale_masks(tmp_path: Path) -> None:
    model = small(seed=3)
    masks.put(model, {"conv1.weight": torch.zeros_like(model.conv1.weight, dtype=torch.bool)})
    save(model, tmp_path / "m")
    save(small(seed=4), tmp_path / "m")
    assert {p.name for p in (tmp_path / "m").iterdir()} == {"model.json", "weights.safetensors"}
    assert not masks.get(load_model(tmp_path / "m")) and same(load_model(tmp_path / "m"), small(seed=4))


def test_a_saved_model_does_not_need_the_checkpoint_it_began_with(tmp_path: Path) -> None:
    save_file(small(seed=1).state_dict(), tmp_path / "w.safetensors")
    spec = ModelSpec(name="resnet20", width=0.25, weights=tmp_path / "w.safetensors")
    model = build(spec, num_classes=10, in_shape=SHAPE)
    save(model, tmp_path / "m")
    (tmp_path / "w.safetensors").unlink()
    assert same(load_model(tmp_path / "m"), small(seed=1))


def test_a_callers_own_module_is_filled_and_needs_to_be_given(tmp_path: Path) -> None:
    def network() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))

    model = network()
    masks.put(model, {"1.weight": model[1].weight > 0})
    save(model, tmp_path / "m")
    assert "caller's own" in json.loads((tmp_path / "m" / "model.json").read_text())["architecture"]
    again = load_model(tmp_path / "m", network())
    assert same(model, again) and masks.get(again).keys() == {"1.weight"}
    with pytest.raises(UserError, match=r"cannot build it\n  Pass the network"):
        load_model(tmp_path / "m")
    with pytest.raises(UserError, match="is no checkpoint of this model"):
        load_model(tmp_path / "m", small())


def test_tied_weights_are_saved(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(10, 10)
            self.b = nn.Linear(10, 10)
            self.b.weight = self.a.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x.mean((2, 3)).repeat(1, 4)[:, :10]))

    model = Tied()
    save(model, tmp_path / "m")
    again = load_model(tmp_path / "m", Tied())
    assert same(model, again) and again.b.weight is again.a.weight


def test_a_torchvision_model_comes_back_with_its_args(tmp_path: Path) -> None:
    spec = ModelSpec(name="torchvision:mobilenet_v2", args={"width_mult": 0.1})
    model = build(spec, num_classes=10, in_shape=SHAPE, seed=2)
    save(model, tmp_path / "m")
    assert same(model, load_model(tmp_path / "m"))


def test_damaged_and_foreign_directories(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.json is missing"):
        load_model(tmp_path)
    save(small(), tmp_path / "m")
    description = json.loads((tmp_path / "m" / "model.json").read_text())
    # A save that was killed between the weights and model.json: the weights are another model's.
    save_file(small(seed=9).state_dict(), tmp_path / "m" / "weights.safetensors")
    with pytest.raises(UserError, match="is damaged, or was not written to its end"):
        load_model(tmp_path / "m")
    for change, message in (
        ({"format": 99}, "has format 99; this version reads 1"),
        ({"model": {"name": "resnet21"}, "files": {}}, "describes no model that this version builds"),
    ):
        (tmp_path / "m" / "model.json").write_text(json.dumps(description | change))
        with pytest.raises(UserError, match=message):
            load_model(tmp_path / "m")
    (tmp_path / "m" / "model.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        load_model(tmp_path / "m")
