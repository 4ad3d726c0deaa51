"""Directories that cannot be trusted, and what a person is told to do about them."""

from __future__ import annotations

from pathlib import Path

import pytest
from edgecompress_agent import private


@pytest.mark.parametrize(
    ("mode", "advised"), [(0o777, "chmod -R go-w"), (0o1777, "set workdir to a directory of your own")]
)
def test_the_rights_of_a_directory_that_others_share_are_not_to_be_changed(
    mode: int, advised: str, tmp_path: Path
) -> None:
    (place := tmp_path / "place").mkdir()
    place.chmod(mode)
    said = private.directory(place)
    assert said is not None and advised in said and ("chmod" in said) == (mode == 0o777)


def test_the_home_directory_or_one_above_it_is_not_the_agent_s_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home := tmp_path / "above/home").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    for root in (home, home.parent, home / "x" / "..", "~"):
        said = private.complaint(str(root))
        assert said is not None and "holds the user's other files as well: set workdir to" in said
    assert private.complaint(str(home / ".cache/edgecompress")) is None
