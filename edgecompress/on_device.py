"""What a method may ask a device while it works: the multiple of channels that its engine likes, and how fast a candidate is.

This module joins the export and the measurement, so that a method needs neither: it is handed a `Bench` (see
`compress/contract.py`). Every figure comes through the agent, like those of a study.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecompress_agent import wire

from edgecompress import channel_sweep, energy, latency_search, measurement, small_networks, stats
from edgecompress.channel_sweep import Decision, Setting
from edgecompress.device_profile import DeviceProfile
from edgecompress.errors import StepFailed
from edgecompress.latency_search import LatencyRatio
from edgecompress.progress import SILENT, Progress
from edgecompress.rundir import content_key, write_atomically
from edgecompress.study import MeasureSpec, PowerSpec

if TYPE_CHECKING:
    from torch import nn

    from edgecompress.board.session import Session
    from edgecompress.compress.contract import Resource, Small

FORMAT_VERSION = 1
_SWEEP_S, _AGAINST_S = 0.15, 0.6
"""Timed seconds of one network in one round."""
UNDISTURBED = 0.1
"""Networks are compared by this quantile of their latencies: what they take while nothing else runs. On a machine that others
use, too, the median of the longer-running network holds more interruptions than that of the shorter one."""
_POWER = PowerSpec(window_s=1.0, min_samples=20, windows=3, idle_s=0.0, settle_s=0.2, max_window_s=60.0)
"""The power pass of a network while a method searches: short, as there are many of them."""
_LEAST_ROUNDS, _MOST_ROUNDS = 3, 9
_HALF_WIDTH = 0.01
_CALIBRATION_IMAGES = 4


def cache_folder() -> Path:
    """Where sweeps are kept on this machine: edgecompress/channel-sweeps under $XDG_CACHE_HOME, default ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgecompress" / "channel-sweeps"


class DeviceBench:
    """A device, an export format and a number of threads. Not for use from several threads at once."""

    def __init__(
        self, session: Session, format: str, *, threads: int = 1, progress: Progress = SILENT, cache: Path | None = None
    ) -> None:
        self._session, self._format, self._threads, self._progress = session, format, threads, progress
        self._cache = cache or cache_folder()

    @property
    def profile(self) -> DeviceProfile:
        return self._session.profile

    def multiple(self, model: nn.Module, in_shape: tuple[int, int, int]) -> dict[str, Any]:
        """See `sweep`, for the widths and spatial sizes of this model."""
        from edgecompress.sweep_networks import setting_for

        return self.sweep(setting_for(model, in_shape))

    def sweep(self, setting: Setting, *, fresh: bool = False) -> dict[str, Any]:
        """The measured multiple and its evidence as plain JSON (docs/methods/channels-device.md describes it).

        Kept under the identity of the device, its engine and all code that decides; a sweep that did not come to a certain
        result is not kept. fresh: measure although there is one. StepFailed, UserError: as `Session.measure`.
        """
        identity = self._identity(setting)
        path = self._cache / f"{content_key(identity)}.json"
        kept = None if fresh else _kept(path, setting, identity)
        if kept is not None:
            return kept | {"cached": True}
        began = time.monotonic()
        rounds = self._rounds(setting)
        decision = channel_sweep.decide(setting, rounds)
        record = {**_record(setting, rounds, decision, identity), "seconds": round(time.monotonic() - began, 1)}
        if decision.certain:
            write_atomically(path, json.dumps(record, indent=1) + "\n")
        else:
            self._progress.say(
                f"warning: {self.profile.name}, {self._format}: the device is too noisy to be sure of the multiple of channels: "
                f"{decision.multiple} in {100 * decision.agreement:.0f} % of the resampled rounds. It is used, and not kept."
            )
        return record | {"cached": False}

    def _identity(self, setting: Setting) -> dict[str, Any]:
        swept = {"centre": setting.centre, "sizes": list(setting.sizes)}
        return {"version": FORMAT_VERSION, **self.identity(), "setting": swept}

    def identity(self) -> dict[str, Any]:
        """Plain JSON of all that what is measured here depends on."""
        from edgecompress.export.contract import packages
        from edgecompress.plan import DEVICE_STEP_CODE, code_hash, versions

        hello = self._session.hello()
        engine = self._engine()
        found = hello.engines[engine]
        there = hello.conditions
        return {
            "device": self.profile.name,
            "board": there.board,
            "cpu": there.cpu_model,
            "machine": there.machine,
            "int8_instructions": None if there.int8_instructions is None else list(there.int8_instructions),
            "engine": engine,
            "engine_version": f"{found.package or engine} {found.version}",
            "providers": list(self.profile.providers),
            "cpus": None if self.profile.cpus is None else list(self.profile.cpus),
            "threads": self._threads,
            "format": self._format,
            "int8_activations": self.profile.int8_activations if self._format == "onnx-int8" else None,
            "agent_sha256": hello.agent_sha256,
            "toolchain": versions(*packages(self._format)),
            "code": code_hash(DEVICE_STEP_CODE),
        }

    def _engine(self) -> str:
        return measurement.engine_for(self.profile, self._format)

    def _rounds(self, setting: Setting) -> list[list[float]]:
        """Latency in ms of each network, round by round: forwards, then backwards, until the decision is certain."""
        from edgecompress.export.contract import packages
        from edgecompress.plan import versions
        from edgecompress.sweep_networks import network

        in_shape = (3, setting.sizes[0], setting.sizes[0])
        label = f"channel sweep of {self._format} on {self.profile.name}"
        rounds: list[list[float]] = []
        # The networks of a sweep are always the same, and the converter of TFLite takes seconds for each.
        kept = self._cache / "files" / content_key(versions(*packages(self._format)))
        with tempfile.TemporaryDirectory() as scratch:
            files = []
            with self._progress.task(f"{label}: export", total=len(setting.widths)) as task:
                for width in setting.widths:
                    files.append(self.export(network(setting, width), in_shape, Path(scratch), f"width-{width}", kept))
                    task.advance()
            while len(rounds) < channel_sweep.MOST_ROUNDS:
                number = len(rounds)
                with self._progress.task(f"{label}: round {number + 1}", total=len(files)) as task:
                    order = files if number % 2 == 0 else files[::-1]
                    taken = {}
                    for file in order:
                        taken[file] = self.latency_ms(file, _SWEEP_S)
                        task.advance()
                rounds.append([taken[file] for file in files])
                if len(rounds) >= channel_sweep.LEAST_ROUNDS and channel_sweep.decide(setting, rounds).certain:
                    break
        return rounds

    def small(self, what: Resource, networks: Mapping[str, Small]) -> dict[str, float]:
        """See `Bench.small`."""
        return small_networks.measured(self, what, networks, self._cache / "layers", self._progress)

    def energy_mj(self, model: nn.Module, in_shape: tuple[int, int, int]) -> float:
        """See `Bench.energy_mj`."""
        with tempfile.TemporaryDirectory() as scratch:
            return self.file_energy_mj(self.export(model, in_shape, Path(scratch), "candidate"))

    @contextmanager
    def against(self, dense: nn.Module, in_shape: tuple[int, int, int]) -> Iterator[Against]:
        """Measure candidates against `dense`, which is exported once."""
        with tempfile.TemporaryDirectory() as scratch:
            yield Against(self, dense, in_shape, Path(scratch))

    def export(
        self, model: nn.Module, in_shape: tuple[int, int, int], folder: Path, stem: str, cache: Path | None = None
    ) -> Path:
        """The model as a file. int8 is calibrated on seeded noise: its values do not change how long it takes."""
        import numpy as np

        from edgecompress.export.contract import ExportContext, export_file

        noise = np.random.default_rng(0).standard_normal((_CALIBRATION_IMAGES, *in_shape)).astype(np.float32)
        context = ExportContext(in_shape, noise, self.profile.activation_type, cache or folder / "cache")
        return export_file(model, self._format, folder, stem, context)

    def latency_ms(self, file: Path, seconds: float, q: float = UNDISTURBED) -> float:
        """The q-quantile of one measurement's latencies."""
        result = self._measure(file, warmup_s=seconds / 3, min_s=seconds, blocks=3, power=None)
        taken = [ns for block in result.blocks for ns in block.latencies_ns]
        if not taken or min(taken) <= 0:
            raise StepFailed(f"{self.profile.name}: the device answered latencies that are none")
        return stats.quantile(taken, q) / 1e6

    def file_energy_mj(self, file: Path) -> float:
        """Gross energy of one inference, mJ, by a short power pass. StepFailed: the trace gives none, and why."""
        result = self._measure(file, warmup_s=0.2, min_s=0.1, blocks=2, power=_POWER)
        if result.power is None:
            raise StepFailed(f"{self.profile.name}: no energy: {result.power_reason or 'the device sent no trace'}")
        asked = wire.PowerPlan(**_POWER.model_dump())
        found = energy.summarise(result.power, conditions=result.conditions, plan=asked)
        if found.gross_j is None:
            raise StepFailed(f"{self.profile.name}: no energy: {'; '.join(found.invalid)}")
        return 1e3 * found.gross_j.value

    def _measure(self, file: Path, **how: Any) -> wire.Result:
        """The result of one job. StepFailed with its reason where it failed."""
        measure = MeasureSpec(rounds=1, threads=self._threads, score_on="none", **how)
        job, files = measurement.make_job(
            uuid.uuid4().hex[:16], file, None, normalisation=((), ()), profile=self.profile, measure=measure
        )
        result = self._session.measure(job, files)
        if result.status != "ok":
            raise StepFailed(f"{self.profile.name}: {result.reason}")
        return result


class Against:
    """Candidates against one dense network, in interleaved rounds: dense, candidate; candidate, dense; …"""

    def __init__(self, bench: DeviceBench, dense: nn.Module, in_shape: tuple[int, int, int], scratch: Path) -> None:
        self._bench, self._in_shape, self._scratch = bench, in_shape, scratch
        self._dense = bench.export(dense, in_shape, scratch, "dense")
        self._count = 0

    def dense_ms(self) -> float:
        """p50 of the dense network, for a budget in ms: the median of a few measurements."""
        return statistics.median(self._bench.latency_ms(self._dense, _AGAINST_S, 0.5) for _ in range(_LEAST_ROUNDS))

    def __call__(self, model: nn.Module, target: float | None = None) -> LatencyRatio:
        """The latency of `model` (left as it is) over the dense network's. StepFailed, UserError: as `Session.measure`.

        target: the ratio that is searched for; a candidate that is clearly off it is given fewer rounds.
        """
        self._count += 1
        bench = self._bench
        candidate = bench.export(model, self._in_shape, self._scratch, f"candidate-{self._count}")
        taken: dict[Path, list[float]] = {self._dense: [], candidate: []}
        with bench._progress.task(f"candidate {self._count} on {bench.profile.name}", total=_MOST_ROUNDS) as task:
            while True:
                number = len(taken[candidate])
                for file in (self._dense, candidate) if number % 2 == 0 else (candidate, self._dense):
                    taken[file].append(bench.latency_ms(file, _AGAINST_S))
                task.advance()
                if number + 1 < _LEAST_ROUNDS or number % 2:  # an odd number of rounds has a median of its own
                    continue
                found = latency_search.ratio_of(taken[self._dense], taken[candidate])
                if number + 1 >= _MOST_ROUNDS or _known(found, target):
                    return found


def _known(found: LatencyRatio, target: float | None) -> bool:
    """Whether a ratio is known well enough: to 1 %, or to be off the target."""
    if (found.high - found.low) / 2 <= _HALF_WIDTH * found.ratio:
        return True
    if target is None:
        return False
    tolerance = latency_search.TOLERANCE * target
    return found.low > target + tolerance or found.high < target - tolerance


def _record(
    setting: Setting, rounds: list[list[float]], decision: Decision, identity: dict[str, Any]
) -> dict[str, Any]:
    return {
        "multiple": decision.multiple,
        "agreement": decision.agreement,
        "spread": decision.spread,
        "costs": [dataclasses.asdict(cost) for cost in decision.costs],
        "widths": [
            {
                "width": width,
                "class": channel_sweep.class_of(width),
                "macs": setting.macs(width),
                "latency_ms": [round_[place] for round_ in rounds],
                "relative": decision.relative[width],
            }
            for place, width in enumerate(setting.widths)
        ],
        "identity": identity,
    }


def _kept(path: Path, setting: Setting, identity: dict[str, Any]) -> dict[str, Any] | None:
    """An earlier sweep, its decision made again from its latencies; None where there is none, or it is not what it should be."""
    try:
        record: dict[str, Any] = json.loads(path.read_text())
        rounds = [list(column) for column in zip(*(row["latency_ms"] for row in record["widths"]), strict=True)]
        decision = channel_sweep.decide(setting, rounds)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if record.get("identity") != identity:
        return None
    return {**_record(setting, rounds, decision, identity), "seconds": record.get("seconds")}
