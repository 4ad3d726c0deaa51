"""The bytes of a safetensors file: its tensors as bit patterns, without torch, and the same file from them again.

Format: 8 bytes length of a JSON header, the header (name → dtype, shape, data_offsets), the tensors one after the other.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgecompress.coding.sections import DTYPES, Bits
from edgecompress.errors import UserError


@dataclass(frozen=True)
class TensorInfo:
    """name; dtype: a key of DTYPES; shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """Bytes of an element."""
        return DTYPES[self.dtype][0]

    @property
    def kind(self) -> str:
        """ "u", "i" or "f", see DTYPES."""
        return DTYPES[self.dtype][1]


def read(path: Path) -> list[tuple[TensorInfo, Bits]]:
    """The tensors in the order of the file, each a view of the mapped file. UserError: not a safetensors file."""
    try:
        data = np.memmap(path, dtype=np.uint8, mode="r")
        length = int(data[:8].view("<u8")[0])
        header = json.loads(data[8 : 8 + length].tobytes())
        header.pop("__metadata__", None)
        entries = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
        tensors, end = [], 0
        for name, entry in entries:
            info = TensorInfo(name, entry["dtype"], tuple(entry["shape"]))
            begin, end = end, end + info.elements * info.size
            if entry["data_offsets"] != [begin, end]:
                raise ValueError(f"{name!r} does not lie where it should")
            raw = data[8 + length + begin : 8 + length + end]
            tensors.append((info, raw.view(np.ndarray).view(f"<u{info.size}")))
        if 8 + length + end != data.size:
            raise ValueError("it goes on behind its last tensor, or ends before it")
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=str(path)) from None
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        reason = f"not a safetensors file that can be packed: {error}"
        raise UserError(reason, where=str(path), fix="Save the model again.") from None
    return tensors


def header(tensors: Sequence[TensorInfo]) -> bytes:
    """The start of a safetensors file with these tensors, as the safetensors library writes it."""
    entries: dict[str, Any] = {}
    end = 0
    for info in tensors:
        begin, end = end, end + info.elements * info.size
        entries[info.name] = {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
