"""Compression methods. A method is one file here (the file's name is its name) with two things:

- a frozen dataclass `Params`: every parameter has a type, a default and is documented in the class's docstring;
- `apply(model, params, context) -> nn.Module`: returns the compressed model (it may be the one given, changed in place),
  same inputs, same outputs.

The module's docstring says what the method does, what it costs, what it needs, and its paper. Heavy imports (torch) stand
inside the functions. Nothing is registered anywhere else.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _CallablePackage(ModuleType):
    """`edgecompress.compress` is both this package and, as README and DESIGN write it, the function `compress(model, …)`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """`edgecompress.api.compress`."""
        from edgecompress.api import compress

        return compress(*args, **kwargs)


sys.modules[__name__].__class__ = _CallablePackage
