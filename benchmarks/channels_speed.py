"""How much of the speed that fewer MACs promise an engine gives: speed-up over the MACs' ratio of networks cut to half.

    python benchmarks/channels_speed.py [--formats onnx-fp32,tflite-fp32] [--models resnet56,vgg16_bn] [--rounds 5] [--json FILE]

ResNet-56 (weights/resnet56.safetensors under EDGECOMPRESS_DATA; without them random ones: which channels go then means nothing,
how long the network takes does) and VGG-16-BN for CIFAR-10 (random weights), each cut to half of its MACs by the method
`channels`, with widths in multiples of 1, 8, 16 and of what the sweep on this machine says (`auto`), inner channels
and all; and by Torch-Pruning itself (GroupMagnitudeImportance, global, round_to=8). All are exported and measured by the agent at
batch 1 on one thread, in interleaved rounds: dense and every cut, then backwards. A latency is the 10 % quantile of a round's
inferences (docs/adr/0007): other work on these cores does not count. Of each cut: the median over the rounds of speed-up / (MACs
before / MACs after), its 95 % interval and the least and greatest.

Exit status 1 when `auto` (inner channels, the method's default, or all where half of the MACs cannot be met in those) has an
interval below the target, 3 when that is too wide to tell or the rounds of a network lie more than 25 % apart. Where it is not
within the target, the time by type of operator and module of both networks is printed.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import re
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgecompress import cost, measurement, models, operators, stats
from edgecompress.board.session import Session, connect
from edgecompress.compress import channels
from edgecompress.compress.contract import Context, parse_params
from edgecompress.errors import StepFailed, UserError
from edgecompress.latency_search import CALM
from edgecompress.on_device import DeviceBench
from edgecompress.study import MeasureSpec, ModelSpec
from edgecompress.studyfile import read_device
from edgecompress.sweep_networks import setting_for

ROOT = Path(__file__).resolve().parent.parent
TARGET = 0.95
MACS = 0.5
IN_SHAPE = (3, 32, 32)
SECONDS = 0.6
OURS = ("inner auto", "inner 1", "inner 8", "inner 16", "all auto", "all 8", "all 16")
JUDGED = ("inner auto", "all auto")
"""What is held to the target: inner channels, the default, where half of the MACs can be met in them at that multiple."""
PEER = "torch-pruning 8"


def dense_network(name: str) -> nn.Module:
    weights = (
        Path(os.environ.get("EDGECOMPRESS_DATA", ROOT.parent / "shared" / "data")) / "weights" / f"{name}.safetensors"
    )
    spec = {"name": name, "weights": str(weights)} if weights.exists() else {"name": name}
    return models.build(ModelSpec.model_validate(spec), num_classes=10, in_shape=IN_SHAPE, seed=0).eval()


def ours(model: nn.Module, way: str, multiple: int, scratch: Path) -> nn.Module:
    """A copy cut by the method `channels`. way: which channels, and the multiple or auto."""
    which, _, rounding = way.partition(" ")
    params = {"macs": MACS, "which": which, "multiple": multiple if rounding == "auto" else int(rounding)}
    context = Context(data=None, seed=0, teacher=model, scratch=scratch)
    return channels.apply(copy.deepcopy(model), parse_params("channels", params), context).eval()


def peer(model: nn.Module) -> nn.Module:
    """A copy cut by Torch-Pruning at the ratio nearest to the MACs. The option A shortcut, whose padding it takes for an
    element-wise operation, is told to it as a layer with two sides."""
    import torch_pruning

    from edgecompress.models.resnet import Shortcut

    class BothSides(torch_pruning.pruner.function.BasePruningFunc):
        def prune_out_channels(self, layer: Any, idxs: Any) -> Any:
            layer.narrow(None, torch.tensor(sorted({*range(layer.out_channels)} - set(idxs))), torch.device("cpu"))
            return layer

        def prune_in_channels(self, layer: Any, idxs: Any) -> Any:
            layer.narrow(torch.tensor(sorted({*range(layer.in_channels)} - set(idxs))), None, torch.device("cpu"))
            return layer

        def get_out_channels(self, layer: Any) -> int:
            return int(layer.out_channels)

        def get_in_channels(self, layer: Any) -> int:
            return int(layer.in_channels)

    whole, found = macs(model), []
    low, high = 0.0, 1.0
    for _ in range(9):
        ratio, cut = (low + high) / 2, copy.deepcopy(model)
        last = [m for m in cut.modules() if isinstance(m, nn.Linear)][-1]
        torch_pruning.pruner.MagnitudePruner(
            cut, torch.zeros(1, *IN_SHAPE), importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
            global_pruning=True, pruning_ratio=ratio, round_to=8, ignored_layers=[last],
            customized_pruners={Shortcut: BothSides()},
        ).step()  # fmt: skip
        left = macs(cut) / whole
        found.append((abs(left - MACS), ratio, cut))
        low, high = (ratio, high) if left > MACS else (low, ratio)
    return min(found, key=lambda f: f[:2])[2].eval()


def macs(model: nn.Module) -> int:
    return cost.count(model, IN_SHAPE).macs


def measure(
    bench: DeviceBench, files: dict[str, Path], count: int, tell: Callable[[str], None]
) -> dict[str, list[float]]:
    """Latency in ms of each file in each round."""
    taken: dict[str, list[float]] = defaultdict(list)
    for number in range(count):
        for name in files if number % 2 == 0 else reversed(files):
            tell(f"round {number + 1} of {count}: {name}")
            taken[name].append(bench.latency_ms(files[name], SECONDS))
    return taken


def by_stage(session: Session, file: Path) -> dict[str, tuple[float, float]]:
    """(ms, MACs) of one inference by type of operator and, for layers, by the module of the network that they are in."""
    spec = MeasureSpec(warmup_s=0.3, min_s=1.0, blocks=3, rounds=1, score_on="none", power=None, profile_ops=True)
    job, files = measurement.make_job(
        os.urandom(8).hex(), file, None, normalisation=((), ()), profile=session.profile, measure=spec
    )
    result = operators.measure(session, job, files, file)
    if result.operators is None:
        raise StepFailed(str(result.reason or result.operators_reason))
    found: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
    for one in result.operators.operators:
        module = re.search(r"layer\d+|features", one.layer or "")
        kind = f"{one.type} {module[0] if module else one.layer}" if one.layer else one.type
        calls, (ms, work) = one.calls / result.operators.inferences, found[kind]
        found[kind] = (ms + one.p50_ns * calls / 1e6, work + (one.macs or 0) * calls)
    return found


def compare(session: Session, name: str, form: str, count: int, scratch: Path) -> tuple[dict[str, Any], int]:
    """The rows of one model in one format, printed as they come, and the verdict on `auto`."""
    bench = DeviceBench(session, form)
    dense = dense_network(name)
    sweep = bench.sweep(setting_for(dense, IN_SHAPE))
    networks = {"dense": dense}
    for way in OURS:
        try:
            networks[way] = ours(dense, way, sweep["multiple"], scratch)
        except UserError as error:
            say(f"{name} {form}: {way}: {error.what}")
    networks[PEER] = peer(dense)
    judged = next(way for way in JUDGED if way in networks)
    files = {}
    for number, (way, network) in enumerate(networks.items()):
        tell(f"{name} {form}: export {way}")
        files[way] = bench.export(network, IN_SHAPE, scratch, f"{name}-{form}-{number}")
    taken = measure(bench, files, count, lambda text: tell(f"{name} {form}: {text}"))
    tell("")
    sure = f"agreement {sweep['agreement']:.2f}, rounds {sweep['spread']:.1%} apart"
    say(f"{name} {form}: multiple {sweep['multiple']} measured ({sure})")
    whole, rows, status = macs(dense), [], 0
    for way, network in networks.items():
        ratio = whole / macs(network)
        gained = [d / c / ratio for d, c in zip(taken["dense"], taken[way], strict=True)]
        found = stats.quantile_with_interval([[g] for g in gained], 0.5, seed=0)
        rows.append({"way": way, "macs_ratio": ratio, "ms": taken[way], "gained": gained, **found._asdict()})
        say(
            f"  {way:16} {stats.quantile(taken[way], 0.5):8.3f} ms, MACs 1/{ratio:.3f}, speed-up / MACs' ratio {found.value:.3f} "
            f"[{found.low:.3f}, {found.high:.3f}] (rounds from {min(gained):.3f} to {max(gained):.3f})"
        )
        if way == judged:
            crowded = max(max(taken[w]) / min(taken[w]) for w in ("dense", judged)) > 1 + CALM
            status = 3 if crowded else 1 if found.high < TARGET else 3 if found.low < TARGET else 0
    profiles = {}
    if status:
        profiles = {way: by_stage(session, files[way]) for way in ("dense", judged)}
        say(f"  where the time goes, ms (GMAC/s), dense and {judged}:")
        for kind in sorted(
            {**profiles["dense"], **profiles[judged]}, key=lambda k: -profiles["dense"].get(k, (0.0, 0.0))[0]
        ):
            shown = [profiles[way].get(kind, (0.0, 0.0)) for way in ("dense", judged)]
            say(f"    {kind:28}" + "".join(f"{ms:8.3f} ({work / max(ms, 1e-9) / 1e6:4.1f})" for ms, work in shown))
    return {
        "model": name,
        "format": form,
        "sweep": sweep,
        "rows": rows,
        "judged": judged,
        "ms_and_macs_by_stage": profiles,
    }, status


def tell(text: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", default="onnx-fp32,tflite-fp32")
    parser.add_argument("--models", default="resnet56,vgg16_bn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write all latencies there")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    found, statuses = [], []
    with connect(read_device("local")) as session, tempfile.TemporaryDirectory() as scratch:
        for form in asked.formats.split(","):
            for name in asked.models.split(","):
                result, status = compare(session, name, form, asked.rounds, Path(scratch))
                verdict = {0: "within", 1: "BELOW", 3: "too noisy to tell from"}[status]
                say(f"{name} {form}: {result['judged']} is {verdict} the target of {TARGET}")
                found.append(result)
                statuses.append(status)
                if asked.json:
                    asked.json.write_text(json.dumps({"command": sys.argv, "results": found}, indent=1) + "\n")
    return 1 if 1 in statuses else max(statuses)


if __name__ == "__main__":
    sys.exit(main())
