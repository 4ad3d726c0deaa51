"""Where the bytes of an `.ecz` file go, as the Deep Compression paper counts them and as they lie on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgecompress.coding.safetensors_file import TensorInfo
from edgecompress.coding.sections import FORMS, GAPS, PLANES, SUPPORT, Coded


@dataclass(frozen=True)
class TensorSize:
    """One tensor. Sizes in bytes unless the name says bits.

    form: of its section ("raw", "gaps", "dense", "planes", "support"). elements, kept: all and the non-zero ones. values:
    distinct non-zeros. fixed_weight_bits, fixed_index_bits, fixed_entries: of the smallest fixed-width form, the paper's "P+Q"
    (entries count fillers; 0 index bits: dense); None without a codebook. entries, index_bits: of the form in the file.
    value_bits, gap_bits: of its coded streams. codebook_bytes. section_bytes: with its head, lanes, padding and CRC32.
    dense_bytes: without compression. bound_bits: entropy of values and gaps by their own counts, None without a codebook.
    """

    file: str
    name: str
    form: str
    elements: int
    kept: int
    values: int
    fixed_weight_bits: int | None
    fixed_index_bits: int | None
    fixed_entries: int | None
    entries: int
    index_bits: int
    value_bits: int
    gap_bits: int
    codebook_bytes: int
    section_bytes: int
    dense_bytes: int
    bound_bits: float | None

    @property
    def quantised_bytes(self) -> float:
        """The paper's size before Huffman coding: entries · (weight bits + index bits) and the codebook; else as it is."""
        if self.fixed_entries is None or self.fixed_weight_bits is None or self.fixed_index_bits is None:
            return self.paper_bytes
        return self.fixed_entries * (self.fixed_weight_bits + self.fixed_index_bits) / 8 + self.codebook_bytes

    @property
    def paper_bytes(self) -> float:
        """The paper's size: the code lengths of all entries and the codebook; a tensor without one as it is. A mask that the
        zeros tell takes nothing."""
        if self.form == FORMS[SUPPORT]:
            return 0.0
        if self.bound_bits is None:
            return float(self.dense_bytes)
        return (self.value_bits + self.gap_bits) / 8 + self.codebook_bytes


@dataclass(frozen=True)
class PackReport:
    """A packed file: file_bytes = head_bytes + directory_bytes + table_bytes + sections. source_bytes: of the model directory."""

    tensors: tuple[TensorSize, ...]
    head_bytes: int
    directory_bytes: int
    table_bytes: int
    file_bytes: int
    source_bytes: int

    @property
    def weights(self) -> tuple[TensorSize, ...]:
        """The tensors of the weights themselves, without masks."""
        return tuple(t for t in self.tensors if t.file == self.tensors[0].file)

    @property
    def dense_bytes(self) -> int:
        """The weights without compression."""
        return sum(t.dense_bytes for t in self.weights)

    @property
    def paper_bytes(self) -> float:
        """All weights as the paper counts: neither code tables, nor the file's structure, nor masks."""
        return sum(t.paper_bytes for t in self.weights)

    @property
    def quantised_bytes(self) -> float:
        """The same before Huffman coding."""
        return sum(t.quantised_bytes for t in self.weights)


def tensor_size(file: str, info: TensorInfo, coded: Coded, parts: Sequence[bytes], bits: Sequence[int]) -> TensorSize:
    """The row of a tensor whose section is `parts`. bits: of each of its streams, without lanes and padding."""
    few = coded.bound_bits is not None
    weight_bits, index_bits, entries = coded.fixed or (None, None, None)
    # All planes stored raw: the section is written as a raw one.
    form = FORMS[parts[0][0] & 15] if coded.form == PLANES else FORMS[coded.form]
    return TensorSize(
        file=file, name=info.name, form=form, elements=coded.elements, kept=coded.kept, values=coded.values,
        fixed_weight_bits=weight_bits, fixed_index_bits=index_bits, fixed_entries=entries,
        entries=coded.entries, index_bits=coded.index_bits,
        value_bits=bits[0] if few and bits else 0, gap_bits=bits[1] if coded.form == GAPS and bits else 0,
        codebook_bytes=len(coded.codebook), section_bytes=sum(map(len, parts)) + 4,
        dense_bytes=info.elements * info.size, bound_bits=coded.bound_bits,
    )  # fmt: skip
