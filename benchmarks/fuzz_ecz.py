"""Bent `.ecz` files against the reader: 100,000 mutations, each of them a clear error or the right model, or this fails.

Of several small packed models (both coders, every form of section, streams of one lane and of many) copies are cut, bent bit by
bit, grown, given huge numbers and wrong directories (`tests/unit/ecz_case.py`), half of them with checksums made right again,
and unpacked. It runs in processes with a limit on their address space (what was taken at the start, 9 times the limit on the
tensors, and 64 MB) and on the seconds of each file, so that a crash, a hang and memory beyond the checked size are found out: they
end the process, and the file is kept.

    python benchmarks/fuzz_ecz.py [--mutations 100000] [--seed 0] [--out docs/results/quantisation/fuzz.json]
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "unit")]

LIMIT_BYTES = 16 << 20
MEMORY_BYTES = 9 * LIMIT_BYTES + (64 << 20)
FILE_S = 20
"""Longest that a file may take, in seconds of CPU time."""
PER_PROCESS = 5_000
MODELS = (("huffman", 300), ("range", 300), ("huffman", 2_400), ("range", 2_400))
LARGE = (("huffman", 282_000), ("range", 282_000))
"""One process in ten bends these, whose streams have lanes enough to be decoded side by side."""


def worker(folder: Path, seed: int, count: int) -> None:
    """Bend and unpack `count` files; print what came of them as JSON."""
    from ecz_case import mutations, write_model

    from edgecompress.coding import pack, unpack
    from edgecompress.errors import UserError

    rng = np.random.default_rng(seed)
    large = seed % 10 == 9
    coder, size = LARGE[seed // 10 % 2] if large else MODELS[seed % len(MODELS)]
    model = write_model(folder / "model", seed=seed, size=size)
    pack(model, folder / "good.ecz", coder=coder)
    unpack(folder / "good.ecz", folder / "warm")  # libraries are loaded now
    good = (folder / "good.ecz").read_bytes()
    wanted = contents(model)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY_BYTES, taken + MEMORY_BYTES))
    peak_before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.signal(signal.SIGVTALRM, signal.SIG_DFL)  # a hang ends the process
    kinds: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    reasons: collections.Counter[str] = collections.Counter()
    slowest = 0.0
    bent, out = folder / "bent.ecz", folder / "out"
    for (kind, data), _ in zip(mutations(good, rng), range(count), strict=False):
        bent.write_bytes(data)
        began = time.process_time()
        signal.setitimer(signal.ITIMER_VIRTUAL, FILE_S)
        try:
            unpack(bent, out, limit_bytes=LIMIT_BYTES)
        except UserError as error:
            kinds[kind]["refused"] += 1
            reasons[error.what.split(": ")[-1][:60]] += 1
            if out.exists():
                raise AssertionError("a refused file left something behind") from error
        else:
            kinds[kind]["the right model"] += 1
            if contents(out) != wanted:
                raise AssertionError(f"{kind}: another model came out of {bent}")
            shutil.rmtree(out)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        slowest = max(slowest, time.process_time() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"kinds": kinds, "reasons": reasons, "slowest_s": slowest, "peak_growth_bytes": (peak - peak_before) * 1024,
                      "coder": coder, "size": size, "file_bytes": len(good)}))  # fmt: skip


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(Path(arguments.worker[0]), int(arguments.worker[1]), int(arguments.worker[2]))
        return 0
    began = time.perf_counter()
    kinds: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    reasons: collections.Counter[str] = collections.Counter()
    slowest, growth, done, failed, number = 0.0, 0, 0, [], 0
    while done < arguments.mutations:
        seed = arguments.seed + number
        # The large files take longer, so a process bends fewer of them.
        count = min(PER_PROCESS if seed % 10 != 9 else PER_PROCESS // 10, arguments.mutations - done)
        folder = Path(tempfile.mkdtemp(prefix="edgecompress-fuzz-"))
        command = [sys.executable, __file__, "--worker", str(folder), str(seed), str(count)]
        one_core = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}
        process = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **one_core})
        number, done = number + 1, done + count
        if process.returncode:
            failed.append({"seed": seed, "exit": process.returncode, "error": process.stderr[-800:]})
            print(
                f"FAILED: seed {seed}, exit {process.returncode}; the file: {folder / 'bent.ecz'}\n{process.stderr[-800:]}"
            )
            continue
        shutil.rmtree(folder)
        found: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
        for kind, counts in found["kinds"].items():
            kinds[kind].update(counts)
        reasons.update(found["reasons"])
        slowest, growth = max(slowest, found["slowest_s"]), max(growth, found["peak_growth_bytes"])
        print(f"{done:,} of {arguments.mutations:,}", end="\r", file=sys.stderr, flush=True)
    total: collections.Counter[str] = collections.Counter()
    for kind, counts in sorted(kinds.items()):
        total.update(counts)
        print(f"{kind:<32} {dict(counts)}")
    print(
        f"{total['refused']:,} refused with a clear error, {total['the right model']:,} gave the right model, "
        f"{len(failed)} processes failed; slowest file {slowest:.2f} s of CPU time, memory grew by {growth / 1e6:.0f} MB at most, "
        f"{time.perf_counter() - began:.0f} s in all"
    )
    if arguments.out:
        results = {
            "command": "python benchmarks/fuzz_ecz.py " + " ".join(sys.argv[1:]), "python": platform.python_version(),
            "numpy": np.__version__, "mutations": done, "total": total, "failed": failed, "slowest_cpu_s": slowest,
            "peak_growth_bytes": growth, "limit_bytes": LIMIT_BYTES, "memory_limit_bytes": MEMORY_BYTES,
            "kinds": kinds, "reasons": dict(reasons.most_common()), "wall_s": time.perf_counter() - began,
        }  # fmt: skip
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
