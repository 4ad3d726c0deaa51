"""The agent as one file: a zipapp whose bytes depend on its sources only, so that its SHA-256 is its name and version."""

from __future__ import annotations

import functools
import hashlib
import io
import zipfile
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

PACKAGE = "edgecompress_agent"
_MAIN = f"import sys\n\nfrom {PACKAGE}.__main__ import main\n\nsys.exit(main())\n"
_TIMESTAMP = (1980, 1, 1, 0, 0, 0)
"""The earliest that a zip file can hold."""


@functools.cache
def build() -> tuple[bytes, str]:
    """(the zipapp, its SHA-256 in hexadecimal). The sources are those beside this package, or the installed ones."""
    files = {
        "__main__.py": _MAIN.encode(),
        **{f"{PACKAGE}/{name}": data for name, data in _sources(_package()).items()},
    }
    buffer = io.BytesIO()
    # stored, not deflated: the bytes that zlib makes differ between its versions, and the agent is some 50 KB
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, _TIMESTAMP)
            entry.create_system = 3  # Unix, on every system that builds it
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, files[name])
    data = buffer.getvalue()
    return data, hashlib.sha256(data).hexdigest()


def source(name: str) -> str:
    """The text of one file of the agent's package."""
    return _package().joinpath(name).read_text(encoding="utf-8")


def _package() -> Traversable:
    """The agent's package: in the source tree where this file is in one, else as it was installed beside this package."""
    beside = Path(__file__).resolve().parents[2] / "device_agents" / PACKAGE
    return beside if beside.is_dir() else resources.files(PACKAGE)


def _sources(folder: Traversable, prefix: str = "") -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for entry in folder.iterdir():
        if entry.is_dir():
            found.update(_sources(entry, f"{prefix}{entry.name}/"))
        elif entry.name.endswith(".py"):
            found[prefix + entry.name] = entry.read_bytes()
    return found
