"""Bring your own: `package.module:callable` with its arguments, and what is said when it does not work."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.heavy

import torch  # noqa: E402

from edgecompress.errors import UserError  # noqa: E402
from edgecompress.models import build  # noqa: E402
from edgecompress.study import ModelSpec  # noqa: E402

NETWORKS = """
import torch
from torch import nn

NOT_CALLABLE = 3

class Net(nn.Module):
    def __init__(self, classes, hidden=4):
        super().__init__()
        self.first = nn.Linear(12, hidden)
        self.last = nn.Linear(hidden, classes)

    def forward(self, x):
        return self.last(torch.relu(self.first(x.flatten(1))))

def fails(): raise LookupError("no such preset")
def returns_a_number(): return 3
def pair():
    net = Net(3)
    class Pair(nn.Module):
        def forward(self, x): return net(x), x
    return Pair()
class Drops(Net):
    def forward(self, x): return super().forward(x)[0]
"""


@pytest.fixture
def own_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current directory with networks, as a user has it; not on the search path."""
    (tmp_path / "own_networks.py").write_text(NETWORKS)
    (tmp_path / "own_broken.py").write_text("raise OSError('no licence')\n")
    (tmp_path / "own_needy.py").write_text("import a_library_that_is_not_there\n")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in ("own_networks", "own_broken", "own_needy"):
        sys.modules.pop(name, None)


def own(name: str, **args: Any) -> torch.nn.Module:
    return build(ModelSpec(name=name, args=args), num_classes=3, in_shape=(3, 2, 2))


def test_a_class_in_the_current_directory_is_built_with_its_args(own_modules: Path) -> None:
    path = list(sys.path)
    model = own("own_networks:Net", classes=3, hidden=5)
    assert model(torch.rand(4, 3, 2, 2)).shape == (4, 3) and model.first.out_features == 5
    assert sys.path == path


def test_its_random_weights_follow_the_seed(own_modules: Path) -> None:
    first, again = (own("own_networks:Net", classes=3) for _ in range(2))
    assert torch.equal(first.first.weight, again.first.weight)


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("own_nothing:Net", {}, "there is no module 'own_nothing'"),
        ("own_networks.sub:Net", {}, "there is no module 'own_networks.sub'"),
        ("own_needy:Net", {}, "needs the module 'a_library_that_is_not_there'"),
        ("own_broken:Net", {}, "importing 'own_broken' raised OSError: no licence"),
        ("own_networks:Nett", {}, "no function or class 'Nett'\n  Did you mean 'Net'"),
        ("own_networks:NOT_CALLABLE", {}, "no function or class 'NOT_CALLABLE'"),
        ("own_networks:Net", {}, "missing a required argument: 'classes'"),
        ("own_networks:Net", {"classes": 3, "depth": 2}, "unexpected keyword argument 'depth'"),
        ("own_networks:fails", {}, "raised LookupError: no such preset"),
        ("own_networks:returns_a_number", {}, "returned a int, not a torch.nn.Module"),
        ("own_networks:Net", {"classes": 4}, r"gives \(2, 4\) for 2 images, and the data have 3 classes"),
        ("own_networks:Drops", {"classes": 3}, r"gives \(3,\) for 2 images"),
        ("own_networks:pair", {}, "returns a tuple, not one tensor"),
    ],
)
def test_what_does_not_work_is_said(own_modules: Path, name: str, args: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        own(name, **args)
    assert caught.value.where == f"model {name}" and caught.value.fix


def test_the_wrong_image_size_is_said(own_modules: Path) -> None:
    with pytest.raises(UserError, match="does not take 4×4 images with 3 channels"):
        build(ModelSpec(name="own_networks:Net", args={"classes": 3}), num_classes=3, in_shape=(3, 4, 4))
