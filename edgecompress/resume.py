"""Checkpoints of a training in the middle: written whole or not at all, and gone on from only by the very same training."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecompress import codebooks, masks
from edgecompress.errors import UserError
from edgecompress.study import TrainSpec

if TYPE_CHECKING:
    from torch import nn

    from edgecompress.compress.contract import Loss
    from edgecompress.data import Dataset

_FORMAT = 1


def training_key(model: nn.Module, data: Dataset, spec: TrainSpec, seed: int, devices: int, loss: Loss) -> str:
    """A hash of everything that the result of a training depends on: its first weights, masks, codes, data, spec, seed, loss."""
    facts = [_FORMAT, spec.model_dump(mode="json"), seed, devices, data.record(), _loss_facts(loss)]
    return state_key(model, data, facts)


def state_key(model: nn.Module, data: Dataset, facts: Any) -> str:
    """A hash of a model's weights, masks and codes, of its training data, and of plain JSON facts."""
    import torch

    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    digest.update(data.train.labels.tobytes())
    tensors = {**model.state_dict(), **{f"{name}{masks.SUFFIX}": mask for name, mask in masks.get(model).items()}}
    tensors |= {f"{name}{codebooks.SUFFIX}": codes for name, codes in codebooks.get(model).items()}
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(memoryview(tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()


def _loss_facts(loss: Loss) -> Any:
    """A loss that depends on more than its class says so with `facts() -> str` (a teacher's weights, for one)."""
    facts = getattr(loss, "facts", None)
    if callable(facts):
        return facts()
    return repr(loss) if dataclasses.is_dataclass(loss) else getattr(loss, "__qualname__", type(loss).__qualname__)


def read(directory: Path | None, key: str, say: Callable[[str], None] | None = None) -> dict[str, Any] | None:
    """The checkpoint of the training with this key, tensors on the CPU; None when there is none, or another training's.

    say: is told of a checkpoint that is damaged, which then counts for none, as it only saves time. None: a UserError.
    """
    path = None if directory is None else directory / "checkpoint.pt"
    if path is None or not path.exists():
        return None
    try:
        saved = _read(path)
    except (MemoryError, PermissionError):
        raise
    except Exception as error:  # zipfile, pickle and torch raise anything over bytes that are not theirs
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        if say is None:
            raise UserError(
                f"this checkpoint is damaged: {reason}",
                where=str(path),
                fix="Delete the file; what it kept is then done anew.",
            ) from error
        say(f"{path}: this checkpoint is damaged, and what it kept is done anew: {reason}")
        return None
    return saved if saved.get("key") == key else None


def _read(path: Path) -> dict[str, Any]:
    """Any exception: it is damaged. (Torch does not look at the checksums of the archive that it reads.)"""
    import torch

    with zipfile.ZipFile(path) as archive:
        bad = archive.testzip()
    if bad is not None:
        raise ValueError(f"the checksum of {bad} in it is wrong")
    saved = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(saved, dict):
        raise TypeError(f"it holds a {type(saved).__name__}")
    return saved


def write(directory: Path, content: dict[str, Any]) -> None:
    """Keep a checkpoint: tensors and plain values only. A kill at any moment leaves the old one or the new one, whole."""
    import torch

    directory.mkdir(parents=True, exist_ok=True)
    temporary = directory / "checkpoint.partial"
    with temporary.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(directory / "checkpoint.pt")
