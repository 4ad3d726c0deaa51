"""The verbs about the packed container: pack, unpack."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import TYPE_CHECKING

from edgecompress.errors import UserError

if TYPE_CHECKING:
    from edgecompress.coding.sizes import PackReport, TensorSize


def pack(arguments: argparse.Namespace) -> int:
    from edgecompress.coding import pack as pack_model

    report = pack_model(arguments.model_dir, arguments.out, coder=arguments.coder)
    if arguments.json:
        sums = {name: getattr(report, name) for name in ("dense_bytes", "quantised_bytes", "paper_bytes")}
        print(json.dumps({**dataclasses.asdict(report), **sums}, indent=1))
    else:
        _show(report)
        print(arguments.out)
    return 0


def unpack(arguments: argparse.Namespace) -> int:
    from edgecompress.coding import unpack as unpack_model

    if not 0 < arguments.limit_gib < 1 << 20:
        raise UserError(f"--limit-gib {arguments.limit_gib:g}", fix="Give a number of GiB above 0.")
    unpack_model(arguments.packed, arguments.out, limit_bytes=int(arguments.limit_gib * (1 << 30)))
    print(arguments.out)
    return 0


_COLUMNS = ("layer", "weights", "kept %", "weight bits", "index bits", "coded bits", "bytes", "ratio", "bound")


def _show(report: PackReport) -> None:
    """One line for each tensor with a codebook, the rest together; then the whole as the paper counts and as it lies on disk."""
    coded = [t for t in report.weights if t.bound_bits is not None]
    rest = [t for t in report.weights if t.bound_bits is None]
    masks = report.tensors[len(report.weights) :]
    lines = [_COLUMNS, *map(_line, coded)]
    if rest:
        size = sum(t.section_bytes for t in rest)
        ratio = f"{sum(t.dense_bytes for t in rest) / size:.2f}"
        elements = f"{sum(t.elements for t in rest):,}"
        lines.append((f"{len(rest)} without codebook", elements, "", "", "", "", f"{size:,}", ratio, ""))
    if masks:
        size = sum(t.section_bytes for t in masks)
        lines.append((f"{len(masks)} masks", "", "", "", "", "", f"{size:,}", "", ""))
    widths = [max(len(line[i]) for line in lines) for i in range(len(_COLUMNS))]
    for line in lines:
        print(line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)))
    dense = report.dense_bytes
    print()
    for name, counted in (
        ("dense", float(dense)),
        ("as the paper counts, before coding", report.quantised_bytes),
        ("as the paper counts", report.paper_bytes),
        ("the file, every byte of it", float(report.file_bytes)),
    ):
        print(f"{name:<38}{counted:>14,.0f} bytes  {dense / counted if counted else 0:6.1f} x smaller")
    sections = report.file_bytes - report.table_bytes - report.directory_bytes - report.head_bytes
    print(
        f"The file: sections {sections:,}, code tables {report.table_bytes:,} (the paper does not count them), "
        f"directory {report.directory_bytes:,}, head {report.head_bytes}."
    )


def _line(t: TensorSize) -> tuple[str, ...]:
    """Bits as the paper's tables have them: of an entry, fillers counted as entries."""
    entries = max(t.entries, 1)
    gap = f"{t.gap_bits / entries:.2f}" if t.form == "gaps" else "0"
    return (
        t.name,
        f"{t.elements:,}",
        f"{100 * t.kept / max(t.elements, 1):.1f}",
        str(t.fixed_weight_bits),
        str(t.fixed_index_bits),
        f"{t.value_bits / entries:.2f} + {gap}",
        f"{t.section_bytes:,}",
        f"{t.dense_bytes / t.section_bytes:.1f}",
        f"{(t.bound_bits or 0) / 8 + t.codebook_bytes:,.0f}",
    )
