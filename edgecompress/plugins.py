"""Find a method, exporter or dataset by its file's name: the folder is the registry.

A plug-in module imports torch and other heavy libraries inside its functions, so that its facts (Params, docstring) can be
read at once: names are validated and keys computed before anything heavy is loaded.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from types import ModuleType

from edgecompress.errors import UserError, near_misses


def names(package: str, *, attribute: str) -> list[str]:
    """Names of the plug-ins of a package: its modules that define `attribute`, with '_' written as '-' only by the caller."""
    found = []
    for info in pkgutil.iter_modules(importlib.import_module(package).__path__):
        module = importlib.import_module(f"{package}.{info.name}")
        if hasattr(module, attribute):
            found.append(info.name)
    return sorted(found)


def find(package: str, name: str, *, attribute: str, kind: str, where: str = "") -> ModuleType:
    """The module `package.name` if it is a plug-in; UserError with the near misses otherwise. Import failures are raised."""
    if name.isidentifier() and importlib.util.find_spec(f"{package}.{name}") is not None:
        module = importlib.import_module(f"{package}.{name}")
        if hasattr(module, attribute):
            return module
    raise UserError(f"unknown {kind} {name!r}", where=where, fix=near_misses(name, names(package, attribute=attribute)))
