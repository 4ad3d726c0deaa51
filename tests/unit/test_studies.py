"""The studies' own arithmetic: a training that leaves out what is pruned, and the table over seeds."""

from __future__ import annotations

import base64
import copy
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edgecompress import masks  # noqa: E402
from edgecompress.models.lap import lap_mlp  # noqa: E402

pytestmark = pytest.mark.heavy
STUDIES = Path(__file__).resolve().parents[2] / "studies"


@pytest.fixture(autouse=True)
def _as_a_study_runs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(STUDIES))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _data(images: int = 90):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(images, 16, generator=generator), torch.randint(0, 7, (images,), generator=generator)


def _mlp(density: float | None):
    # 7 classes do not divide a batch of 20: a gradient that is zero but for rounding would be a whole step of Adam
    torch.manual_seed(0)
    model = lap_mlp(7, (1, 4, 4), width=0.1)
    if density is not None:
        masks.put(
            model, {n: torch.rand(p.shape) < density for n, p in model.named_parameters() if n.endswith("weight")}
        )
    return model


def _dense_reference(model, data, *, lr, batch, order, iterations):
    """Autograd on the whole network, masks applied after each step."""
    from masked_mlp import _batches

    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for chosen in _batches(len(data[1]), batch, order, iterations):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(data[0][chosen].reshape(-1, 1, 4, 4)), data[1][chosen]).backward()
        for parameter, drop in masks.dropped(model):
            parameter.grad.masked_fill_(drop, 0.0)
        optimizer.step()
        masks.apply(model)


@pytest.mark.parametrize("density", [None, 0.3, 0.06], ids=["dense", "30 %", "6 %"])
def test_training_without_the_pruned_weights_equals_training_with_them(density) -> None:
    from masked_mlp import train

    model = _mlp(density)
    reference = copy.deepcopy(model)
    settings = {"lr": 5e-3, "batch": 20, "order": (3, 1), "iterations": 30}
    train(model, _data(), **settings)
    before = {n: p.clone() for n, p in reference.named_parameters()}
    _dense_reference(reference, _data(), **settings)
    moved = 0.0
    for (name, ours), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-5)
        moved = max(moved, float((theirs.detach() - before[name]).abs().max()))
    assert moved > 0.01


def test_batches_use_every_image_once_a_pass_and_follow_from_their_seed() -> None:
    from masked_mlp import _batches

    first = list(_batches(90, 20, (0, 4), 9))
    assert [len(b) for b in first] == [20] * 9
    assert len(set(torch.cat(first[:4]).tolist())) == 80
    assert all(torch.equal(a, b) for a, b in zip(first, _batches(90, 20, (0, 4), 9), strict=True))
    assert not torch.equal(first[0], next(iter(_batches(90, 20, (0, 5), 1))))


def _row(seed: int, level: int | None, method: str | None, error: float) -> dict:
    images = 1003
    wrong = round(error * images)
    bits = np.packbits(np.arange(images) >= wrong)
    return {
        "seed": seed, "level": level, "method": method, "test_error": error, "kept_fraction": 0.01, "test_images": images,
        "correct": base64.b64encode(bits).decode(),
    }  # fmt: skip


def test_the_table_pairs_the_methods_by_seed() -> None:
    from mnist_lookahead_report import table

    rows = [_row(seed, None, None, 0.02) for seed in range(3)]
    # seeds differ by points, the methods by a tenth of one: only the pairs can tell
    for seed, error in enumerate((0.10, 0.14, 0.18)):
        rows += [_row(seed, 4, "magnitude", error), _row(seed, 4, "lookahead", error - 0.001 * (1 + 0.01 * seed))]
        rows += [_row(seed, 5, "magnitude", error), _row(seed, 5, "lookahead", 0.28 - error)]
    first, second = table(rows)
    assert math.isclose(first["magnitude"].value, 14.0)
    assert first["magnitude"].high - first["magnitude"].value == pytest.approx(4.302653 * 4 / math.sqrt(3), rel=1e-5)
    assert first["difference"].value == pytest.approx(-0.101)
    assert first["verdict"] == "lookahead lower"
    # a tenth of a point is one image of 1003, and no network tells that apart; 8 points are told, in either direction
    assert (first["pairs_lower"], first["pairs_higher"], first["pairs"]) == (0, 0, 3)
    assert (second["pairs_lower"], second["pairs_higher"]) == (1, 1)
    assert second["verdict"] == "no measurable difference"


@pytest.mark.parametrize("method", ["magnitude", "lookahead"])
def test_the_levels_keep_what_the_paper_keeps(method) -> None:
    from mnist_lookahead import LEVELS, pruned

    torch.manual_seed(0)
    model = lap_mlp(10, (1, 28, 28))
    total = sum(p.numel() for n, p in model.named_parameters() if n.endswith("weight"))
    kept = [sum(int(m.sum()) for m in pruned(model, level, method).values()) / total for level in LEVELS]
    assert [round(100 * k, 2) for k in kept] == [6.36, 3.21, 1.63, 0.84, 0.43, 0.23, 0.12]


def test_an_unknown_study_is_refused_with_the_known_ones() -> None:
    run = subprocess.run(
        [sys.executable, str(STUDIES / "run.py"), "mnist_lokahead"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 2
    assert "mnist_lookahead" in run.stderr and "masked_mlp" not in run.stderr


def test_the_table_of_deep_compression() -> None:
    import deep_compression_mnist as study

    network = {
        "network": "LeNet-5",
        "paper": {"error_before": 0.8, "error_after": 0.74, "ratio_fixed": 33, "ratio": 39},
        "test": [{"top1": n / 1000, "images": 1000, "correct": "1" * n + "0" * (1000 - n)} for n in (992, 994)],
        "paper_size": {
            "ratio_fixed": 30.04, "ratio": 41.06, "huffman_bytes": 41_500.0, "ratio_with_tables": 40.9, "dense_bytes": 1e6,
        },
        "ecz": {"file_bytes": 25_000},
    }  # fmt: skip
    (line,) = study.table([network]).splitlines()[2:]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells == [
        "LeNet-5", "0.80 → 0.60 [0.28, 1.30]", "0.80 → 0.74", "30.0×", "33×", "**41.1×** (41.5 kB)", "39×", "40.9×",
        "40.0× (25,000 B)",
    ]  # fmt: skip


def test_the_distillation_table_pairs_the_students_of_a_seed(tmp_path):
    import mnist_distillation_report as report

    def row(seed, hidden, errors, temperature=None, teacher=False):
        return {"seed": seed, "hidden": hidden, "errors": errors, "temperature": temperature, "teacher": teacher}

    rows = [row(0, 1200, 70, teacher=True)]
    rows += [r for s, a, b in ((0, 150, 80), (1, 140, 76)) for r in (row(s, 800, a), row(s, 800, b, 20.0))]
    assert report.paired(rows, 800, 20.0) == [(150, 80), (140, 76)]
    assert report.write(tmp_path, {"command": "c"}, rows) == 0
    text = (tmp_path / "table.md").read_text()
    assert "| 2 × 800 | T = 20 | 80, 76 | 78.0 [52.6, 103.4] | 67.0 [28.9, 105.1] |" in text
    assert "| 2 × 1200 | labels, dropout, moved images | 70 | 70.0 | – |" in text
    assert report.write(tmp_path, {"command": "c"}, rows[:3]) == 1


def test_the_distillation_study_does_the_papers_pair_first():
    import mnist_distillation as study

    names = [job.name for job in study.jobs(2, 1, [30])]
    assert names[:5] == [
        "seed-0-1200-teacher",
        "seed-0-800-plain",
        "seed-0-800-T20",
        "seed-1-800-plain",
        "seed-1-800-T20",
    ]
    assert len(set(names)) == 5 + 2 * 6


def test_the_resnet56_table_sets_lookahead_beside_magnitude_of_the_same_zeros_and_seed():
    import unstructured_resnet56 as study

    def training(way, right, images=1000):
        top1 = {"dense": 0.9, "pruned": 0.1, "tuned": right / images}
        return {"way": way, "seed": 0, "top1": top1, "correct": {"tuned": "1" * right + "0" * (images - right)}}

    found = [training("magnitude-95", 700), training("lookahead-80", 900), training("lookahead-95", 800)]
    (line,) = study.table(found).splitlines()[2:]
    assert line.startswith("| 95 | 0 | 90.00 → 10.00 → 70.00 | 90.00 → 10.00 → 80.00 | +10.00 [+")
    assert float(line.split("|")[-2]) < 1e-20


def test_the_amc_table_sets_every_search_beside_the_agents_of_the_same_seed():
    import amc_resnet56

    def result(way: str, seed: int, correct: str, tuned: str | None) -> dict:
        def scored(hits: str) -> dict:
            return {"top1": hits.count("1") / len(hits), "correct": hits, "macs_left": 0.49}

        return {
            "way": way, "seed": seed, "search": {"best": {"top1": 0.8}}, "pruned": scored(correct),
            "tuned": None if tuned is None else scored(tuned),
        }  # fmt: skip

    found = [result("amc", s, "1" * 16 + "0" * 4, "1" * 18 + "0" * 2) for s in (0, 1)]
    found += [result("random", s, "1" * 8 + "0" * 12, None) for s in (0, 1)]
    lines = amc_resnet56.table(found).splitlines()
    assert len(lines) == 4 and lines[2].startswith("| amc | 2 | 0.490 (0.490, 0.490) | 80.00 (80.00, 80.00) | 80.00")
    assert "90.00 (90.00, 90.00)" in lines[2] and "+40.00" in lines[3] and "0.016; 0.016" in lines[3]
