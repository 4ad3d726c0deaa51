"""Time and memory of lookahead scores against magnitude's in the same run: VGG-16 (138 million weights) and ResNet-50.

Magnitude: |w| of every layer and a plain sort, whose place in the order is the mask. Lookahead: the trace and the scores of
every weight; beside it the masks that it selects (no sort). Each runs twice in a process of its own, on one thread, in the
order A B C, C B A. `lookahead_scoring.py resnet50` takes one network. Time: processor time of the process, which other work on
the machine disturbs less than the clock; both are printed. Memory: the largest resident size while it works (read every 2 ms)
less that before it, plus the weights themselves.
Limits: scores ≤ 3 × the time of the sort, peak of the scores ≤ 2.5 × the bytes of the weights.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

NETWORKS = ("resnet50", "vgg16")
WORK = ("magnitude sort", "lookahead scores", "lookahead masks")
ORDERS = (WORK, WORK[::-1])
TIME_LIMIT, MEMORY_LIMIT = 3.0, 2.5


def main() -> int:
    if len(sys.argv) == 3 and sys.argv[2] in WORK:
        print(json.dumps(_measure(*sys.argv[1:])))
        return 0
    missed = False
    for network in sys.argv[1:] or NETWORKS:
        runs: dict[str, list[dict[str, float]]] = {work: [] for work in WORK}
        for order in ORDERS:
            for work in order:
                command = [sys.executable, str(Path(__file__).resolve()), network, work]
                runs[work].append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
        sort = statistics.median(run["processor_s"] for run in runs[WORK[0]])
        for work, measured in runs.items():
            seconds = statistics.median(run["processor_s"] for run in measured)
            peak = max(run["peak_over_weights"] for run in measured)
            clock = ", ".join(f"{run['clock_s']:.2f}" for run in measured)
            print(
                f"{network}: {work}: {seconds:.2f} s of processor ({seconds / sort:.2f} × the sort; by the clock {clock}), "
                f"peak {peak:.2f} × the weights",
                flush=True,
            )
            if work == WORK[1]:
                missed |= seconds > TIME_LIMIT * sort or peak > MEMORY_LIMIT
    return int(missed)


def _measure(network: str, work: str) -> dict[str, float]:
    import torch

    from edgecompress.compress import lookahead
    from edgecompress.compress.magnitude import prunable
    from edgecompress.models.torchvision_import import import_torchvision

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = import_torchvision().models.get_model(network, weights=None).eval()
    image = torch.zeros(1, 3, 224, 224)
    with torch.no_grad():
        model(image)  # the libraries are loaded, and weights are in memory
    tasks: dict[str, Callable[[], object]] = {
        "magnitude sort": lambda: {n: w.abs().reshape(-1).sort() for n, w in prunable(model).items()},
        "lookahead scores": lambda: lookahead.scores(model, image),
        "lookahead masks": lambda: lookahead.masks(model, image, 0.9),
    }
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    before, highest, done = _resident(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            highest[0] = max(highest[0], _resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    clock, processor = time.perf_counter(), time.process_time()
    result = tasks[work]()
    processor, clock = time.process_time() - processor, time.perf_counter() - clock
    highest[0] = max(highest[0], _resident())
    done.set()
    watcher.join()
    del result
    return {
        "processor_s": processor,
        "clock_s": clock,
        "peak_over_weights": 1 + (highest[0] - before) / weights,
    }


def _resident() -> int:
    """Bytes of this process in memory (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


if __name__ == "__main__":
    sys.exit(main())
