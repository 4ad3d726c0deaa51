"""Entropy coding: relative index, canonical Huffman codes, and the container file `.ecz` (`pack` and `unpack`).

Needs numpy alone: a model is packed and unpacked without torch.
"""

from __future__ import annotations

from edgecompress.coding.packing import pack, unpack

__all__ = ["pack", "unpack"]
