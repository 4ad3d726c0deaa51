"""The figures of the README are those of the results beside them."""

from __future__ import annotations

import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_readmes_table_is_that_of_the_results() -> None:
    table = runpy.run_path(str(ROOT / "docs" / "results" / "quickstart" / "table.py"))["table"]()
    readme = (ROOT / "README.md").read_text()
    assert f"-->\n{table}\n<!-- end of table -->" in readme
