"""Which integer type an int8 ONNX file's activations should have on a device: the type decides speed and accuracy there.

- `uint8`: x86 with VNNI (AVX512-VNNI or AVX-VNNI), whose dot product adds into 32 bits.
- `uint8-reduced`: x86 without VNNI. Its kernels add two products into 16 bits, which saturate; weights of 7 bits (ONNX
  Runtime's `reduce_range`) cannot. Measured on an AVX2 machine, ResNet-20 on CIFAR-10: 91.20 % without, 91.76 % with, at the
  same speed; float 91.73 %.
- `int8`: ARM. `symmetric-int8` (zero point 0): GPUs and TensorRT.

Source of the advice: ONNX Runtime's documentation, "Quantize ONNX models", section on data types and x86 saturation.
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Literal

ActivationType = Literal["uint8", "uint8-reduced", "int8", "symmetric-int8"]

_VNNI = {"avx512_vnni", "avx_vnni"}


def for_cpu(machine: str, cpu_flags: set[str]) -> ActivationType:
    """The type for a CPU: machine as `uname -m` says it, cpu_flags as in /proc/cpuinfo (x86 only)."""
    if machine.lower() not in ("x86_64", "amd64", "i686"):
        return "int8"
    return "uint8" if _VNNI & cpu_flags else "uint8-reduced"


def for_this_machine() -> ActivationType:
    """The type for the CPU that this runs on; an x86 one whose flags cannot be read counts as one without VNNI."""
    flags: set[str] = set()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = (line for line in cpuinfo.read_text(errors="replace").splitlines() if line.startswith("flags"))
        flags = set(next(lines, "").partition(":")[2].split())
    return for_cpu(platform.machine(), flags)
