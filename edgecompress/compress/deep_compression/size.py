"""The size of a network as the Deep Compression paper counts it: codes and gaps, Huffman-coded, and the codebooks."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgecompress.coding.huffman import code_lengths
from edgecompress.coding.relative_index import encode

if TYPE_CHECKING:
    from torch import Tensor, nn

FLOAT_BITS = 32
_CANDIDATES = range(1, 13)


@dataclass(frozen=True)
class LayerSize:
    """A layer with a codebook. All sizes in bits; without its bias.

    entries: what is stored: the non-zeros and the fillers of the relative index, which have code 0. weight_bits: b_w, so that
    every code fits. fixed_bits: entries · (b_w + index_bits) + codebook_bits. huffman_bits: the Huffman code lengths of all
    codes and of all gaps, and codebook_bits. codebook_bits: 32 · 2^b_w. table_bits: of the two Huffman codes, 5 bits for the
    length of each of 2^b_w codes and 2^index_bits gaps; the paper does not count them.
    """

    name: str
    weights: int
    nonzeros: int
    entries: int
    values: int
    weight_bits: int
    index_bits: int
    code_bits: int
    gap_bits: int
    codebook_bits: int
    table_bits: int

    @property
    def fixed_bits(self) -> int:
        return self.entries * (self.weight_bits + self.index_bits) + self.codebook_bits

    @property
    def huffman_bits(self) -> int:
        return self.code_bits + self.gap_bits + self.codebook_bits


@dataclass(frozen=True)
class Count:
    """A network: its layers with a codebook, and how many other parameters (biases, batch norm, excluded layers) it has.

    ratio: of all parameters at 32 bits to the layers' huffman_bits and the other parameters at 32 bits. ratio_fixed: the
    same before Huffman coding. ratio_weights: of the layers alone, biases and the like on neither side. ratio_with_tables:
    as ratio, the Huffman codes' own tables counted too.
    """

    layers: tuple[LayerSize, ...]
    other_parameters: int

    @property
    def dense_bits(self) -> int:
        return FLOAT_BITS * (sum(layer.weights for layer in self.layers) + self.other_parameters)

    @property
    def huffman_bits(self) -> int:
        return sum(layer.huffman_bits for layer in self.layers) + FLOAT_BITS * self.other_parameters

    def as_json(self) -> dict[str, Any]:
        """Plain values: the ratios, bytes and, per layer, all fields with `fixed_bits` and `huffman_bits`."""
        others = FLOAT_BITS * self.other_parameters
        weights = FLOAT_BITS * sum(layer.weights for layer in self.layers)
        fixed = sum(layer.fixed_bits for layer in self.layers)
        coded = sum(layer.huffman_bits for layer in self.layers)
        tables = sum(layer.table_bits for layer in self.layers)
        return {
            "dense_bytes": self.dense_bits / 8,
            "fixed_bytes": (fixed + others) / 8,
            "huffman_bytes": self.huffman_bits / 8,
            "other_bytes": others / 8,
            "table_bytes": tables / 8,
            "ratio": self.dense_bits / self.huffman_bits,
            "ratio_fixed": self.dense_bits / (fixed + others),
            "ratio_weights": weights / coded,
            "ratio_with_tables": self.dense_bits / (self.huffman_bits + tables),
            "layers": [
                {**dataclasses.asdict(layer), "fixed_bits": layer.fixed_bits, "huffman_bits": layer.huffman_bits}
                for layer in self.layers
            ],
        }


def count(model: nn.Module, weights: dict[str, Tensor], index_bits: int | None) -> Count:
    """The sizes of the named weights, and of the model's other parameters. index_bits None: the best for each layer."""
    counted = sum(weight.numel() for weight in weights.values())
    layers = tuple(layer(name, weight, index_bits) for name, weight in weights.items())
    return Count(layers, sum(p.numel() for p in model.parameters()) - counted)


def layer(name: str, weight: Tensor, index_bits: int | None) -> LayerSize:
    """The size of one layer, by its distinct non-zero values and their places in memory order."""
    if index_bits is None:
        return min((layer(name, weight, bits) for bits in _CANDIDATES), key=lambda size: size.huffman_bits)
    import numpy as np

    flat = weight.detach().cpu().reshape(-1).numpy()
    positions = np.flatnonzero(flat)
    values, codes = np.unique(flat[positions], return_inverse=True)
    index = encode(positions, index_bits)
    fillers = int(index.filler.sum())
    # Code 0 is the fillers'; where there are none, the values may have all the codes.
    weight_bits = max(len(values) - 1 + (fillers > 0), 0).bit_length()
    return LayerSize(
        name=name,
        weights=flat.size,
        nonzeros=positions.size,
        entries=index.gaps.size,
        values=len(values),
        weight_bits=weight_bits,
        index_bits=index_bits,
        code_bits=_huffman_bits(np.append(np.bincount(codes.reshape(-1), minlength=len(values)), fillers)),
        gap_bits=_huffman_bits(np.bincount(index.gaps)),
        codebook_bits=FLOAT_BITS * 2**weight_bits if len(values) else 0,
        table_bits=5 * (2**weight_bits + 2**index_bits) if len(values) else 0,
    )


def _huffman_bits(counts: Any) -> int:
    """Bits of all symbols under a Huffman code for their own counts."""
    return sum(int(n) * length for n, length in zip(counts, code_lengths(counts), strict=True))
