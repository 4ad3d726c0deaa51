"""A study whose models and files are made already, so that what a test sees of it is the measuring."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from edgecompress import pipeline
from edgecompress.board.bundle import build
from edgecompress.plan import make_plan
from edgecompress.pools import Device
from edgecompress.progress import Progress, Task
from edgecompress.records import Accuracy, Artifact, Cost, ModelRecord, Parity
from edgecompress.report import collect
from edgecompress.rundir import RunDir
from edgecompress.study import StudySpec


def linear(path: Path, seed: int) -> None:
    """A linear classifier of 1 × 32 × 32 images as an ONNX file."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weight = np.random.default_rng(seed).normal(size=(1024, 10)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["input"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["logits"])],
        "linear",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 1, 32, 32])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 10])],
        [numpy_helper.from_array(weight, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def study(recipes: int, **measure: Any) -> StudySpec:
    steps = {f"r{n}": [{"method": "magnitude", "sparsity": 0.1 + 0.01 * n}] if n else [] for n in range(recipes)}
    usual = {"warmup_s": 0.01, "min_s": 0.1, "blocks": 2, "rounds": 2, "score_images": 20}
    return StudySpec.model_validate({
        "name": "fleet", "model": {"name": "lenet5"}, "data": {"name": "digits"}, "recipes": steps, "formats": ["onnx-fp32"],
        "measure": usual | measure,
    })  # fmt: skip


def made_before(
    run_dir: RunDir, asked: StudySpec, devices: dict[str, Device], write: Callable[[Path, int], None] = linear
) -> None:
    """Write the records of every model and artifact of the study, as if an earlier run had been ended before measuring."""
    plan = make_plan(asked, devices, agent_sha256=build()[1])
    run_dir.root.mkdir(parents=True, exist_ok=True)
    run_dir.path("lock").touch()
    score, cost = Accuracy("test", 1, 1.0, None, "1"), Cost(1, 1, 1, 1, 1)
    for node in {node.key: node for chain in plan.recipes.values() for node in chain}.values():
        folder = run_dir.path("files", "model", node.key)
        folder.mkdir(parents=True)
        (folder / "model.json").write_text('{"files": {}}')
        run_dir.commit("model", node.key, ModelRecord(f"files/model/{node.key}", (), cost, score))
    for number, artifact in enumerate(plan.artifacts.values()):
        path = run_dir.path("files", "artifact", artifact.key, "model.onnx")
        path.parent.mkdir(parents=True)
        write(path, number)
        data = path.read_bytes()
        record = Artifact(
            artifact.format, str(path.relative_to(run_dir.root)), hashlib.sha256(data).hexdigest(), len(data), len(data), 0.0,
            Parity(1, 0.0, 0.0, 1.0, 1e-3, None), {}, 1, 0, (1, 1, 32, 32), "float32", None, {},
        )  # fmt: skip
        run_dir.commit("artifact", artifact.key, record)


class Watching(Progress):
    """A progress that remembers what was said, and calls `then` when the text is part of it, once."""

    def __init__(self, text: str = "", then: Callable[[], object] = lambda: None) -> None:
        self.texts: list[str] = []
        self.shown: set[str] = set()
        self._text, self._then, self._lock = text, then, threading.Lock()

    def say(self, text: str) -> None:
        with self._lock:
            self.texts.append(text)
            then, fits = self._then, bool(self._text) and self._text in text
            if fits:
                self._text = ""
        if fits:
            then()

    @contextmanager
    def task(self, label: str, total: float | None) -> Iterator[Task]:
        yield self

    def advance(self, steps: float = 1) -> None:
        pass

    def describe(self, text: str) -> None:
        self.shown.add(text)

    def restart(self, label: str, total: float) -> None:
        self.shown.add(label)


def run(
    run_dir: RunDir, asked: StudySpec, devices: dict[str, Device], progress: Progress, *, skip_absent: bool = False
) -> list[dict[str, Any]]:
    """Run the study, and the rows of its report."""
    pipeline.run(asked, devices, run_dir, command="test", progress=progress, skip_absent=skip_absent)
    return rows(run_dir)


def rows(run_dir: RunDir) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = collect(run_dir)["rows"]
    return found
