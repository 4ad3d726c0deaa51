"""What the `.ecz` container costs and saves: against the entropy bound and against zstd, in one run.

A network of VGG-16's shapes (138 M weights) and ResNet-56 with its real weights, both with 90 % zeros in each layer and 32 values
each. Every figure is taken in a process of its own, so that peak memory is that step's. Limits (those of the issue): the file of
the VGG-16 at most 1.02 x the entropy bound of values and gaps, plus codebooks; 30 s to encode and 3 s to decode it on one core;
ResNet-56 at most 1.03 x its bound, plus codebooks. `zstd -19 -T1` of the same weights' index bytes (one byte a weight) beside.

    python benchmarks/coding.py [--out docs/results/quantisation/coding.json] [--no-zstd]

Weights of ResNet-56: weights/resnet56.safetensors under EDGECOMPRESS_DATA; without them, and without the program zstd, that
part is left out and said to be. Seconds of CPU time decide, and wall time stands beside: other work on the machine costs wall time.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

DENSITY = 0.1
VALUES = 32
VGG_RATIO, VGG_ENCODE_S, VGG_DECODE_S, RESNET_RATIO = 1.02, 30.0, 3.0, 1.03
VGG_CHANNELS = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
VGG_LINEAR = ((4096, 25088), (4096, 4096), (1000, 4096))
GIVEN_RESNET_BOUND, GIVEN_RESNET_CODEBOOKS = 79_895, 7_168
"""Measured elsewhere for the same network, density and number of values by another k-means."""


def codebook(weights: np.ndarray, rounds: int, start: str = "linear") -> np.ndarray:
    """32 values by k-means (Deep Compression), float32, rising; its start is even between the extremes, or by density.

    From a linear start some values lie between the weights of either sign and are taken by none.
    """
    centres = np.linspace(weights.min(), weights.max(), VALUES)
    if start == "density":
        centres = np.quantile(weights, (np.arange(VALUES) + 0.5) / VALUES)
    for _ in range(rounds):
        nearest = np.searchsorted((centres[1:] + centres[:-1]) / 2, weights)
        counts = np.bincount(nearest, minlength=VALUES)
        sums = np.bincount(nearest, weights, minlength=VALUES)
        centres = np.where(counts > 0, sums / np.maximum(counts, 1), centres)
    return centres.astype(np.float32)


def shared(weights: np.ndarray, kept: np.ndarray, values: np.ndarray) -> np.ndarray:
    out = np.zeros(weights.size, dtype=np.float32)
    places = np.flatnonzero(kept)
    out[places] = values[np.searchsorted((values[1:] + values[:-1]) / 2, weights[places])]
    return out


def write_model(directory: Path, tensors: dict[str, np.ndarray], name: str) -> None:
    from safetensors.numpy import save_file

    directory.mkdir()
    weights = directory / "weights.safetensors"
    save_file(tensors, weights)
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    description = {"format": 1, "model": {"name": name}, "num_classes": 10, "in_shape": [3, 32, 32]}
    (directory / "model.json").write_text(json.dumps({**description, "files": {weights.name: digest}}, indent=1))


def make_vgg(directory: Path) -> None:
    """Normal weights, the tenth of largest magnitude kept, one codebook for all layers (as of the figures measured elsewhere)."""
    rng = np.random.default_rng(0)
    shapes = [(o, i, 3, 3) for i, o in itertools.pairwise(VGG_CHANNELS)] + list(VGG_LINEAR)
    cut = 1.6448536269514722  # a tenth of a normal distribution lies beyond
    sample = rng.standard_normal(4_000_000)
    values = codebook(sample[np.abs(sample) > cut], 100)
    tensors = {}
    for number, shape in enumerate(shapes):
        weights = rng.standard_normal(int(np.prod(shape)), dtype=np.float32)
        tensors[f"{number:02}.weight"] = shared(weights, np.abs(weights) > cut, values).reshape(shape)
    write_model(directory, tensors, "vgg16-sized")


def make_resnet(directory: Path, source: Path, start: str) -> None:
    """The 55 convolutions and the classifier of ResNet-56, each pruned to a tenth by magnitude, a codebook for each."""
    from safetensors.numpy import load_file

    tensors = {}
    for name, weights in load_file(source).items():
        if weights.ndim < 2:
            continue
        flat = weights.reshape(-1).astype(np.float64)
        order = np.argsort(-np.abs(flat), kind="stable")
        kept = np.zeros(flat.size, dtype=bool)
        kept[order[: round(DENSITY * flat.size)]] = True
        tensors[name] = shared(flat, kept, codebook(flat[kept], 10, start)).reshape(weights.shape)
    write_model(directory, tensors, "resnet56 without its float rest")


def encode(directory: Path, out: Path, coder: str) -> dict[str, Any]:
    from edgecompress.coding import pack

    report = pack(directory, out, coder=coder)
    coded = [t for t in report.tensors if t.bound_bits is not None]
    bound = sum(t.bound_bits or 0 for t in coded) / 8
    codebooks = sum(t.codebook_bytes for t in coded)
    sections = sum(t.section_bytes for t in coded)
    return {
        "tensors": len(coded), "weights": sum(t.elements for t in coded), "kept": sum(t.kept for t in coded),
        "fillers": sum(t.entries - t.kept for t in coded if t.form == "gaps"), "bound_bytes": bound, "codebook_bytes": codebooks,
        "stream_bytes": sum(t.value_bits + t.gap_bits for t in coded) / 8, "section_bytes": sections,
        "table_bytes": report.table_bytes, "directory_bytes": report.directory_bytes, "file_bytes": report.file_bytes,
        "paper_bytes": report.paper_bytes, "dense_bytes": report.dense_bytes,
        "file_over_bound": (report.file_bytes - codebooks) / bound,
        "sections_and_tables_over_bound": (sections + report.table_bytes - codebooks) / bound,
    }  # fmt: skip


def decode(path: Path) -> dict[str, Any]:
    """Every tensor of the file into memory, one after the other."""
    from edgecompress.coding.ecz import EczFile

    elements = 0
    with EczFile(path) as file:
        for name, tensors in file.files.items():
            for tensor in tensors:
                elements += file.tensor(name, tensor).size
    return {"elements": elements}


def index_bytes(directory: Path, out: Path) -> dict[str, Any]:
    """One byte a weight, 0 for zero: what zstd gets to compress. (`pack` looks for the few values and the places itself.)"""
    from edgecompress.coding import safetensors_file

    with out.open("wb") as stream:
        for _, bits in safetensors_file.read(directory / "weights.safetensors"):
            found = np.unique(bits)
            stream.write(np.searchsorted(found, bits).astype(np.uint8).tobytes())
    return {"bytes": out.stat().st_size}


STEPS: dict[str, Callable[..., Any]] = {
    "make_vgg": make_vgg, "make_resnet": make_resnet, "encode": encode, "decode": decode, "index_bytes": index_bytes,
}  # fmt: skip


def step(name: str, *arguments: object) -> dict[str, Any]:
    """One step in a process of its own, on one core: what it returns, its seconds and its peak memory."""
    command = [sys.executable, __file__, "--step", name, *map(str, arguments)]
    one_core = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **one_core})
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def run_step(name: str, arguments: list[str]) -> None:
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[-1]})
    import edgecompress.coding  # noqa: F401  # before the clocks start

    before = resource.getrusage(resource.RUSAGE_SELF)
    wall = time.perf_counter()
    result = STEPS[name](*[Path(a) if os.sep in a else a for a in arguments]) or {}
    after = resource.getrusage(resource.RUSAGE_SELF)
    result["cpu_s"] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    result["wall_s"] = time.perf_counter() - wall
    result["peak_bytes"] = after.ru_maxrss * 1024
    result["peak_before_bytes"] = before.ru_maxrss * 1024
    print(json.dumps(result))


def zstd(source: Path, packed: Path) -> dict[str, Any]:
    found: dict[str, Any] = {
        "version": subprocess.run(["zstd", "-V"], check=True, capture_output=True, text=True).stdout.strip()
    }
    unpacked = packed.with_suffix(".again")
    for name, command in (
        ("encode", ["zstd", "-q", "-f", "-19", "-T1", str(source), "-o", str(packed)]),
        ("decode", ["zstd", "-q", "-f", "-d", str(packed), "-o", str(unpacked)]),
    ):
        before, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(command, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        found[name] = {"cpu_s": cpu, "wall_s": time.perf_counter() - wall}
    found["bytes"] = packed.stat().st_size
    unpacked.unlink()
    return found


def measure(directory: Path, work: Path, with_zstd: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for coder in ("huffman", "range"):
        path = work / f"{directory.name}.{coder}.ecz"
        found[coder] = {"encode": step("encode", directory, path, coder), "decode": step("decode", path)}
    if with_zstd:
        raw = work / f"{directory.name}.index"
        step("index_bytes", directory, raw)
        found["zstd -19 of the index bytes"] = zstd(raw, work / f"{directory.name}.zst")
    return found


def show(name: str, found: dict[str, Any]) -> None:
    one = found["huffman"]["encode"]
    print(
        f"{name}: {one['weights']:,} weights, {one['kept']:,} kept, bound {one['bound_bytes']:,.0f} B, "
        f"codebooks {one['codebook_bytes']:,} B"
    )
    for coder in ("huffman", "range"):
        e, d = found[coder]["encode"], found[coder]["decode"]
        print(
            f"  {coder:<8} file {e['file_bytes']:>11,} B  {e['file_over_bound']:.4f} x the bound (sections and tables "
            f"{e['sections_and_tables_over_bound']:.4f}), encode {e['cpu_s']:.2f} s CPU ({e['wall_s']:.2f} wall, peak "
            f"{e['peak_bytes'] / 1e6:,.0f} MB), decode {d['cpu_s']:.2f} s ({d['wall_s']:.2f}, {d['peak_bytes'] / 1e6:,.0f} MB)"
        )
    z = found.get("zstd -19 of the index bytes")
    if z:
        print(
            f"  zstd -19 file {z['bytes']:>11,} B  {z['bytes'] / one['bound_bytes']:.4f} x the bound, encode "
            f"{z['encode']['cpu_s']:.2f} s CPU ({z['encode']['wall_s']:.2f} wall), decode {z['decode']['cpu_s']:.2f} s"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--no-zstd", action="store_true")
    parser.add_argument("--step", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        run_step(arguments.step[0], arguments.step[1:])
        return 0
    with_zstd = shutil.which("zstd") is not None and not arguments.no_zstd
    if not with_zstd:
        print("zstd is left out: the program is not there, or was not wanted")
    source = (
        Path(os.environ.get("EDGECOMPRESS_DATA", ROOT.parent / "shared" / "data")) / "weights" / "resnet56.safetensors"
    )
    checks = {}
    results: dict[str, Any] = {
        "command": "python benchmarks/coding.py " + " ".join(sys.argv[1:]), "python": platform.python_version(),
        "numpy": np.__version__, "processor": platform.machine(), "load_before": os.getloadavg()[0],
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="edgecompress-bench-") as folder:
        work = Path(folder)
        step("make_vgg", work / "vgg16")
        results["vgg16"] = measure(work / "vgg16", work, with_zstd)
        show("VGG-16-sized", results["vgg16"])
        huffman = results["vgg16"]["huffman"]
        checks["VGG-16: file at most 1.02 x the bound"] = huffman["encode"]["file_over_bound"] <= VGG_RATIO
        checks["VGG-16: encoded in 30 s"] = huffman["encode"]["cpu_s"] <= VGG_ENCODE_S
        checks["VGG-16: decoded in 3 s"] = huffman["decode"]["cpu_s"] <= VGG_DECODE_S
        if source.is_file():
            for start in ("linear", "density"):
                name = f"resnet56-{start}"
                step("make_resnet", work / name, source, start)
                results[name] = measure(work / name, work, with_zstd)
                show(f"ResNet-56, k-means from a {start} start", results[name])
            e = results["resnet56-linear"]["huffman"]["encode"]
            allowed = RESNET_RATIO * GIVEN_RESNET_BOUND + GIVEN_RESNET_CODEBOOKS
            checks[f"ResNet-56, linear: file at most 1.03 x 79,895 B + 32 values a layer = {allowed:,.0f} B"] = (
                e["file_bytes"] <= allowed
            )
            e = results["resnet56-density"]["huffman"]["encode"]
            checks["ResNet-56, all 32 values in use: sections and code tables at most 1.03 x its own bound"] = (
                e["sections_and_tables_over_bound"] <= RESNET_RATIO
            )
        else:
            print(f"ResNet-56 is left out: {source} is not there")
    results["load_after"] = os.getloadavg()[0]
    results["checks"] = checks
    for name, held in checks.items():
        print(f"{'held' if held else 'MISSED'}: {name}")
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")
    return int(not all(checks.values()))


if __name__ == "__main__":
    sys.exit(main())
