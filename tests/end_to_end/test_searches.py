"""Searches of whole studies: recipes that search alike share one, others have their own, and one that was stopped goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from edgecompress import pipeline, resume  # noqa: E402
from edgecompress.compress.amc import scoring  # noqa: E402
from edgecompress.progress import SILENT, Progress, Silent  # noqa: E402
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


def run(seed: int = 0, progress: Progress = SILENT, **recipes: Any) -> pipeline.Outcome:
    study = StudySpec.model_validate({
        "name": "searches", "seed": seed, "model": {"name": "resnet20", "width": 0.25, "depth": 0.3},
        "data": {"name": "digits"}, "baseline": {"epochs": 0}, "recipes": recipes, "formats": ["onnx-fp32"],
    })  # fmt: skip
    here = {"local": read_device("local")}
    return pipeline.run(study, here, RunDir(Path("run")), command="test", progress=progress)


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


class Heard(Silent):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def say(self, text: str) -> None:
        self.texts.append(text)


def test_a_saved_policy_that_is_gone_is_written_again_by_a_finished_run() -> None:
    def again() -> list[str]:
        heard = Heard()
        done = run(progress=heard, **recipes)
        assert done.done_now == 0
        return heard.texts

    folder = Path("policies")
    folder.mkdir()
    file = folder / "found.yaml"
    searched = {**SEARCH, "baselines": [], "save": str(file)}
    recipes = {"first": [searched], "second": [{**searched, "macs": 0.9, "lower": 0.8}]}
    assert run(**recipes).done_now > 0
    found = file.read_text()
    assert Path("policies/found.yaml~1").read_text() != found, "the second recipe wrote over the first one's"
    assert again() == []
    file.unlink()
    assert again() == [f"amc: {file} was gone and is written again"] and file.read_text() == found
    file.write_text("by hand\n")
    assert again() == [] and file.read_text() == "by hand\n"
    shutil.rmtree(folder)
    said = again()
    assert len(said) == 2 and f"{file} is gone and cannot be written again: there is no folder policies" in said[0]
    assert not folder.exists()
