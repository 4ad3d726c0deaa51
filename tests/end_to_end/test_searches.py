"""Searches of whole studies: recipes that search alike share one, others have their own, and one that was stopped goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from edgecompress import pipeline, resume  # noqa: E402
from edgecompress.compress.amc import scoring  # noqa: E402
from edgecompress.rundir import RunDir  # noqa: E402
from edgecompress.study import StudySpec  # noqa: E402
from edgecompress.studyfile import read_device  # noqa: E402

pytestmark = pytest.mark.heavy

SEARCH = {
    "method": "amc", "macs": 0.6, "episodes": 8, "warmup": 3, "images": 20, "fit": 0, "multiple": 1, "lower": 0.4,
    "baselines": ["random"],
}  # fmt: skip
TUNED = {**SEARCH, "choose": "best", "finetune": {"epochs": 1, "batch_size": 256}}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pipeline.Measuring, "all", lambda self: None)  # what is looked at here is over before it
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(seed: int = 0, **recipes: Any) -> None:
    study = StudySpec.model_validate({
        "name": "searches", "seed": seed, "model": {"name": "resnet20", "width": 0.25, "depth": 0.3},
        "data": {"name": "digits"}, "baseline": {"epochs": 0}, "recipes": recipes, "formats": ["onnx-fp32"],
    })  # fmt: skip
    pipeline.run(study, {"local": read_device("local")}, RunDir(Path("run")), command="test")


def searches() -> list[Path]:
    return sorted(Path("run/searches").glob("*/amc-*"))


def notes(recipe: str) -> dict[str, Any]:
    """What the last step of a recipe has in its record, by the plan of the last run."""
    key = json.loads(Path("run/plan.json").read_text())["recipes"][recipe][-1]["key"]
    record = json.loads(Path(f"run/records/model/{key}.json").read_text())
    found: dict[str, Any] = record["steps"][-1]["notes"]
    return found


def strategies(step: dict[str, Any], what: str) -> dict[str, Any]:
    return {name: found[what] for name, found in step["search"]["strategies"].items()}


def test_recipes_share_a_search_that_was_stopped_and_others_have_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    write, score, scored = resume.write, scoring.Scorer.top1, []

    def stops(folder: Path, content: dict[str, Any]) -> None:
        write(folder, content)
        if "random" in content["trails"]:
            raise KeyboardInterrupt

    monkeypatch.setattr(scoring.Scorer, "top1", lambda self, model: scored.append(model) or score(self, model))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(resume, "write", stops)
        run(first=[SEARCH], second=[TUNED])
    assert len(searches()) == 1
    run(first=[SEARCH], second=[TUNED])
    assert len(searches()) == 1
    first, second = notes("first"), notes("second")
    assert 8 <= first["search"]["resumed_at"] < 16, "it went on from where it was stopped"
    assert second["search"]["resumed_at"] == 16, "all of it was there"
    assert second["search"]["policies_scored"] == len(scored), "and was done once"
    assert strategies(first, "rewards") == strategies(second, "rewards")
    best = strategies(second, "best")
    assert first["policy"] == best["amc"]["policy"] and second["policy"] == best[second["applied"]]["policy"]

    run(first=[SEARCH], larger=[{**SEARCH, "macs": 0.7}])
    assert len(searches()) == 2 and notes("larger")["search"]["resumed_at"] is None
    run(seed=1, first=[SEARCH])
    assert len(searches()) == 3 and notes("first")["search"]["resumed_at"] is None
