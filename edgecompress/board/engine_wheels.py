"""Which engines a board can have: the wheels for its Python and machine, in pinned versions, and older ones to fall back to.

Pinned, so that two boards with the same Python measure the same engines; found by asking the package index for wheels of
each Python on aarch64, armv7l and x86_64.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgecompress.board.transport import readable
from edgecompress.errors import UserError

WHEELS: dict[tuple[int, int], tuple[str, ...]] = {
    (3, 8): ("numpy==1.24.4", "onnxruntime==1.19.2", "tflite-runtime==2.13.0"),
    (3, 9): ("numpy==2.0.2", "onnxruntime==1.19.2", "ai-edge-litert==2.1.0"),
    (3, 10): ("numpy==2.2.6", "onnxruntime==1.23.2", "ai-edge-litert==2.3.0"),
    (3, 11): ("numpy==2.4.6", "onnxruntime==1.32.0", "ai-edge-litert==2.3.0"),
    (3, 12): ("numpy==2.4.6", "onnxruntime==1.32.0", "ai-edge-litert==2.3.0"),
    (3, 13): ("numpy==2.4.6", "onnxruntime==1.32.0", "ai-edge-litert==2.3.0"),
}
"""For 64-bit ARM and x86. ai-edge-litert has no wheel for 3.8; onnxruntime's newest need 3.11."""

WHEELS_ARMV7: dict[tuple[int, int], tuple[str, ...]] = {(3, 11): ("tflite-runtime==2.14.0",)}
"""32-bit ARM: no onnxruntime, and no numpy either, which comes from the board's own distribution (below 2, as it must be)."""

OLDER: dict[str, tuple[str, ...]] = {
    "onnxruntime==1.32.0": ("onnxruntime==1.23.2", "onnxruntime==1.20.1"),
    "onnxruntime==1.23.2": ("onnxruntime==1.20.1", "onnxruntime==1.19.2"),
    "ai-edge-litert==2.3.0": ("ai-edge-litert==2.1.0",),
    "tflite-runtime==2.13.0": ("tflite-runtime==2.12.0",),
}
"""What is tried, in this order, where an engine's import fails (a wheel that does not suit the CPU ends it by a signal). All have
wheels for aarch64 and the Pythons above, and take their numpy."""

PACKAGES = {"onnxruntime": ("onnxruntime",), "litert": ("ai-edge-litert", "tflite-runtime")}
"""Engine → what pip may know it as."""


@dataclass(frozen=True)
class BoardPython:
    """An interpreter on the device. machine: what its wheels are called by (a 32-bit Python on a 64-bit kernel: armv7l). glibc:
    its version; None where it has another C library."""

    command: str
    version: tuple[int, int]
    machine: str
    glibc: tuple[int, int] | None = None


def wheels(python: BoardPython, *, where: str) -> tuple[str, ...]:
    """What pip shall install. UserError when there are no engines for this Python and machine."""
    table = {"aarch64": WHEELS, "x86_64": WHEELS, "armv7l": WHEELS_ARMV7}.get(python.machine)
    if table is None:
        fix = "Build an engine for it, and name its Python in the device profile (python:)."
        raise UserError(f"no engine has wheels for {readable(python.machine, 40)}", where=where, fix=fix)
    if python.version not in table:
        have = ", ".join(f"{major}.{minor}" for major, minor in table)
        what = f"no engine has wheels for Python {python.version[0]}.{python.version[1]} on {python.machine}"
        fix = f"Install one of these Pythons there: {have}"
        raise UserError(what, where=where, fix=fix + (", or a 64-bit system." if python.machine == "armv7l" else "."))
    return table[python.version]
