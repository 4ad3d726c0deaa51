"""The keys of a study's steps: another code, another key."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from edgecompress import plan
from edgecompress.compress.contract import method_names
from edgecompress.study import StudySpec


def test_a_steps_key_is_made_of_its_methods_code_and_of_what_that_names(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[list[str]] = []
    monkeypatch.setattr(plan, "code_hash", lambda paths: hashed.append(list(paths)) or "0")
    recipes = {"r": ["deep_compression"]}
    study = StudySpec.model_validate(
        {"name": "x", "model": {"name": "resnet20"}, "data": {"name": "digits"}, "recipes": recipes}
    )
    plan.make_plan(study, {}, agent_sha256="0")
    (of_step,) = [set(paths) for paths in hashed if "compress/deep_compression.py" in paths]
    assert {"loop.py", "codebooks.py"} <= of_step
    assert {"compress/codebook.py", "compress/magnitude.py", "coding/huffman.py", "coding/relative_index.py"} <= of_step
    assert "compress/distill.py" not in of_step


def test_a_policys_file_is_part_of_the_key_by_what_it_says(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"

    def key(text: str) -> str:
        file.write_text(text)
        study = StudySpec.model_validate(
            {
                "name": "x", "model": {"name": "resnet20"}, "data": {"name": "digits"},
                "recipes": {"r": [{"method": "amc", "policy": str(file)}]},
            }
        )  # fmt: skip
        return plan.make_plan(study, {}, agent_sha256="0").recipes["r"][-1].key

    first = key("amc_policy: 1\nkeep: {conv1: 0.5}\n")
    assert first != key("amc_policy: 1\nkeep: {conv1: 0.25}\n")
    assert first == key("amc_policy: 1\nkeep: {conv1: 0.5}\n")


def test_weights_that_torchvision_knows_by_name_are_no_file() -> None:
    teacher = {"name": "torchvision:resnet18", "args": {"weights": "DEFAULT"}}
    step = {"method": "distill", "teachers": [teacher]}
    recipes = {"r": [step]}
    study = StudySpec.model_validate(
        {"name": "x", "model": {"name": "resnet20"}, "data": {"name": "digits"}, "recipes": recipes}
    )
    assert len(plan.make_plan(study, {}, agent_sha256="0").recipes["r"]) == 2


def test_every_file_that_a_key_is_made_of_is_there() -> None:
    named = set(plan.MODEL_CODE + plan.EXPORT_CODE + plan.MEASURE_CODE + plan.DEVICE_STEP_CODE)
    for method in method_names():
        named |= set(plan.method_code(method))
    for name in named:
        assert (plan.PACKAGE / name).exists() or (plan.PACKAGE / name).with_suffix("").is_dir(), name


def test_what_a_method_imports_is_in_its_key() -> None:
    """Whatever module of the package a method imports, on any of its lines, is hashed or has no say in the numbers."""
    silent = {
        "api", "errors", "plugins", "progress", "study", "records", "compress.contract", "version",
        "resume", "rundir", "studyfile",
    }  # fmt: skip
    for method in method_names():
        files = plan.method_code(method)
        hashed = {
            name.removesuffix(".py").replace("/", ".") for name in (*plan.MODEL_CODE, *plan.DEVICE_STEP_CODE, *files)
        }
        for name in files:
            path = plan.PACKAGE / name
            sources = [path] if path.exists() else sorted(path.with_suffix("").glob("*.py"))
            for node in (n for source in sources for n in ast.walk(ast.parse(source.read_text()))):
                if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("edgecompress"):
                    continue
                module = (node.module or "").removeprefix("edgecompress").removeprefix(".")
                wanted = [module] if module else [alias.name for alias in node.names]
                for one in wanted:
                    assert one in silent or any(f"{one}.".startswith(f"{h}.") for h in hashed), f"{name} imports {one}"


def test_a_change_of_the_code_changes_the_hash(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(plan, "PACKAGE", tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "__init__.py").write_text("a = 1\n")
    before = plan.code_hash(["folder.py"])
    (tmp_path / "folder" / "__init__.py").write_text("a = 2\n")
    assert plan.code_hash(["folder.py"]) != before
