"""edgecompress: from a trained CNN to accuracy, bytes, latency and joules per inference on a board.

    import edgecompress as ec
    result = ec.compress(model, "magnitude", data="digits", sparsity=0.9)
    model = ec.load("runs/quickstart/models/magnitude-80")

Nothing heavy is imported until it is used. `ec.compress` is the package of the methods, and it can be called: it is
`edgecompress.api.compress` then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgecompress.version import __version__

if TYPE_CHECKING:
    from edgecompress.api import compress, load

__all__ = ["__version__", "compress", "load"]


def __getattr__(name: str) -> Any:
    import importlib

    if name == "compress":
        return importlib.import_module("edgecompress.compress")
    if name == "load":
        return importlib.import_module("edgecompress.api").load
    raise AttributeError(f"module 'edgecompress' has no attribute {name!r}")
