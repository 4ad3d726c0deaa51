"""The zipapp: the same bytes from the same sources, wherever they are, and nothing else in it."""

from __future__ import annotations

import ast
import hashlib
import io
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from edgecompress.board import bundle

PACKAGE = Path(__file__).resolve().parents[2] / "device_agents" / "edgecompress_agent"
SOURCES = sorted(PACKAGE.rglob("*.py"))

STANDARD = sys.stdlib_module_names
ENGINES = {"engines/onnxruntime.py": {"onnxruntime"}, "engines/litert.py": set()}
NUMPY = {"profiling.py", "inputs.py", "measure.py"}


def test_name_is_the_hash() -> None:
    data, sha256 = bundle.build()
    assert hashlib.sha256(data).hexdigest() == sha256


def test_holds_the_sources_and_nothing_else() -> None:
    with zipfile.ZipFile(io.BytesIO(bundle.build()[0])) as archive:
        names = archive.namelist()
        assert names == sorted(names)
        assert set(names) == {"__main__.py", *(f"edgecompress_agent/{s.relative_to(PACKAGE)}" for s in SOURCES)}
        for source in SOURCES:
            assert archive.read(f"edgecompress_agent/{source.relative_to(PACKAGE)}") == source.read_bytes()


def test_other_process_and_installed_copy_give_the_same_bytes(tmp_path: Path) -> None:
    """As in an installed wheel: both packages side by side, other file times, compiled files beside them."""
    for package in (PACKAGE, Path(bundle.__file__).parents[1]):
        shutil.copytree(package, tmp_path / package.name, copy_function=shutil.copyfile)
    (tmp_path / "edgecompress_agent" / "__pycache__").mkdir(exist_ok=True)
    (tmp_path / "edgecompress_agent" / "__pycache__" / "wire.pyc").write_bytes(b"x")
    code = "from edgecompress.board import bundle; print(bundle.__file__, bundle.build()[1])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONHASHSEED": "7"},
    )  # fmt: skip
    assert done.stdout.split() == [str(tmp_path / "edgecompress" / "board" / "bundle.py"), bundle.build()[1]], (
        done.stderr
    )


@pytest.mark.parametrize("source", SOURCES, ids=lambda s: str(s.relative_to(PACKAGE)))
def test_imports_only_what_a_board_has(source: Path) -> None:
    """The standard library; numpy where arrays are; the engine in its own file. Nothing of the host."""
    place = str(source.relative_to(PACKAGE))
    allowed = {*STANDARD, "edgecompress_agent", *ENGINES.get(place, set()), *(["numpy"] if place in NUMPY else [])}
    imported: set[str] = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "absolute imports only"
            imported.add((node.module or "").partition(".")[0])
    assert imported <= allowed, imported - allowed


def test_every_interpreter_compiles_it(python: str) -> None:
    code = "import sys\nfor f in sys.argv[1:]: compile(open(f, encoding='utf-8').read(), f, 'exec')"
    done = subprocess.run([python, "-I", "-c", code, *map(str, SOURCES)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_refuses_to_run_in_another_way() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "edgecompress_agent", "hello", "."],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
    )  # fmt: skip
    assert done.returncode == 1
    assert "zipapp" in done.stdout
