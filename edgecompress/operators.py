"""A measurement with the time of each operator: the cut graph goes along where the engine needs it, and the costs are added
from the file to what the device answers."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edgecompress_agent import wire

from edgecompress.errors import StepFailed, UserError
from edgecompress.measurement import blob
from edgecompress.progress import SILENT, Progress

if TYPE_CHECKING:
    from edgecompress.board.session import Session


def measure(
    session: Session,
    job: wire.Job,
    files: Mapping[str, Path],
    artifact: Path,
    *,
    progress: Progress = SILENT,
    label: str = "",
) -> wire.Result:
    """`session.measure`; when the job asks for it, with the time of each operator, its MACs and its bytes.

    Whatever keeps the operators' times away is the result's `operators_reason`; the measurement itself stands.
    """
    if not job.profile_ops:
        return session.measure(job, files, progress=progress, label=label)
    with tempfile.TemporaryDirectory() as scratch:
        job, files, reason = _with_pieces(job, files, artifact, Path(scratch) / "operators.zip")
        result = session.measure(job, files, progress=progress, label=label)
    if result.operators is None:
        return dataclasses.replace(result, operators_reason=reason or result.operators_reason)
    return dataclasses.replace(result, operators=_with_costs(result.operators, artifact, job.batch))


def _with_pieces(
    job: wire.Job, files: Mapping[str, Path], artifact: Path, pieces: Path
) -> tuple[wire.Job, Mapping[str, Path], str | None]:
    """(job, files, None) with the cut graph; or as they were, with why there is none."""
    if job.engine != "litert":
        return job, files, None
    from edgecompress.export.cut_tflite import cut

    try:
        cut(artifact, pieces)
    except (StepFailed, UserError) as error:
        return job, files, f"LiteRT's Python runtime tells no operator's time, and {error}"
    found = blob(pieces)
    return dataclasses.replace(job, pieces=found), {**files, found.sha256: pieces}, None


def _with_costs(profile: wire.OpProfile, artifact: Path, batch: int) -> wire.OpProfile:
    from edgecompress.export.operator_costs import costs

    known = costs(artifact, profile.operators, batch)
    made = (
        dataclasses.replace(o, layer=layer, macs=macs, parameter_bytes=parameters)
        for o, (layer, macs, parameters) in zip(profile.operators, known, strict=True)
    )
    return dataclasses.replace(profile, operators=tuple(made))
