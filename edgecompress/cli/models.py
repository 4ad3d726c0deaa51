"""The verbs about one model: compress, evaluate, export, methods."""

from __future__ import annotations

import argparse
import copy
import json
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edgecompress.cli.bars import progress
from edgecompress.cli.settings import data_spec, key_values, step
from edgecompress.errors import UserError
from edgecompress.records import Accuracy, to_json
from edgecompress.study import DataSpec, ModelSpec, Step, TrainSpec


def _new_directory(path: Path, fix: str = "Choose another --out; nothing is overwritten.") -> Path:
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError("is there already and not empty", where=str(path), fix=fix)
    return path


@contextmanager
def _made(path: Path) -> Iterator[None]:
    """The directory, made now: what cannot be written is found out before the work. Gone again if nothing came into it."""
    new = not path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fix = "Choose another directory with --out."
        raise UserError(f"cannot be made: {error.strerror}", where=str(path), fix=fix) from None
    try:
        yield
    finally:
        if new:
            with suppress(OSError):  # it is not empty
                path.rmdir()


def compress(arguments: argparse.Namespace) -> int:
    from edgecompress.studyfile import validate
    from edgecompress.unfinished import folder_beside, unfinished

    out: Path = arguments.out
    if not folder_beside(out).exists():
        _new_directory(out)
    model_values = {
        "name": arguments.model,
        "args": key_values(arguments.model_arg, "--model-arg"),
        "width": arguments.width,
        "weights": arguments.weights,
    }
    spec = validate(ModelSpec, model_values, where="--model", base=Path())
    data = data_spec(arguments.data)
    steps = tuple(step(text) for text in arguments.steps)
    values = {"epochs": arguments.epochs, "lr": arguments.lr, "batch_size": 64}
    training = validate(TrainSpec, values, where="--epochs, --lr", base=Path())
    keys = _keys(spec, data, training, steps, arguments)
    sys.path.insert(0, str(Path.cwd()))

    from edgecompress import api
    from edgecompress.benches import open_benches
    from edgecompress.data import load as datasets_load
    from edgecompress.models import build
    from edgecompress.models.checkpoint import save_model
    from edgecompress.recipe import check_before
    from edgecompress.rundir import write_atomically
    from edgecompress.train import fit

    dataset = datasets_load(data, seed=arguments.seed)
    model = build(spec, num_classes=dataset.num_classes, in_shape=dataset.in_shape, seed=arguments.seed)
    with progress() as bars, _made(out), unfinished(out, keys, bars) as kept:
        if not kept.saving:
            goes_on = "Move it away: the same command then goes on from what is kept. Nothing is overwritten."
            _new_directory(out, *[goes_on] if kept.found() else [])
        with open_benches(steps, arguments.device, bars):
            pass  # a device that is away is found out before the training
        if training.epochs:
            # Where nothing is trained here, `api.compress` looks in time.
            check_before(steps, lambda: (copy.deepcopy(model).eval(), dataset.in_shape), bars.say)
            fit(
                model, dataset, training, seed=arguments.seed, checkpoints=kept.training, progress=bars, label="training"
            )  # fmt: skip
        elif spec.weights is None and ":" not in spec.name:
            bars.say("warning: no --weights and no --epochs: the network that is compressed has random weights")
        result = api.compress(
            model, list(steps), data=dataset, seed=arguments.seed, scratch=kept.steps, device=arguments.device,
            progress=bars,
        )  # fmt: skip
        kept.begin_saving()
        save_model(out, result.model)
        write_atomically(out / "report.json", json.dumps(to_json(result.report), indent=1) + "\n")
    before, after = result.report.cost_before, result.report.cost_after
    assert before is not None and after is not None  # there are data
    rows = [
        ("parameters", f"{before.params:,}", f"{after.params:,}"),
        ("non-zero parameters", f"{before.nonzero_params:,}", f"{after.nonzero_params:,}"),
        ("MACs", f"{before.macs:,}", f"{after.macs:,}"),
        ("MACs without zeros", f"{before.effective_macs:,}", f"{after.effective_macs:,}"),
        ("top-1", _percent(result.report.accuracy_before), _percent(result.report.accuracy_after)),
    ]
    for name, was, now in [("", "before", "after"), *rows]:
        print(f"{name:<20}{was:>16}{now:>16}")
    print(out)
    return 0


def _keys(
    model: ModelSpec, data: DataSpec, training: TrainSpec, steps: tuple[Step, ...], arguments: argparse.Namespace
) -> tuple[str, ...]:
    """The keys of the network before the steps and after each of them: those that they would have in a study."""
    from edgecompress.board.bundle import build
    from edgecompress.compress.contract import asked_of_device
    from edgecompress.plan import make_plan
    from edgecompress.pools import Device
    from edgecompress.study import StudySpec
    from edgecompress.studyfile import read_device, validate

    values = {
        "name": "compress", "seed": arguments.seed, "model": model, "data": data, "baseline": training,
        "recipes": {"steps": steps},
    }  # fmt: skip
    study = validate(StudySpec, values, where="compress", base=Path())
    asked = [found for step in steps if (found := asked_of_device(step.method, step.params)) is not None]
    names = dict.fromkeys(
        [arguments.device, *(found.device for found in asked if found.device is not None)] if asked else []
    )
    devices: dict[str, Device] = {name: read_device(name, where="device") for name in names}
    chain = make_plan(study, devices, agent_sha256=build()[1]).recipes["steps"]
    return tuple(node.key for node in chain)


def _percent(accuracy: Accuracy | None) -> str:
    return "not scored" if accuracy is None else f"{100 * accuracy.top1:.2f} %"


def evaluate(arguments: argparse.Namespace) -> int:
    from edgecompress import stats

    what: Path = arguments.what
    data = data_spec(arguments.data)
    if what.is_dir() or (what.suffix == ".ecz" and what.is_file()):
        from edgecompress import api
        from edgecompress.data import load as datasets_load
        from edgecompress.evaluate import accuracy

        dataset = datasets_load(data, seed=arguments.seed)
        sys.path.insert(0, str(Path.cwd()))
        model = api.load(what)
        with progress() as bars:
            scored = accuracy(model, dataset, arguments.part, progress=bars)
    elif what.suffix in (".onnx", ".tflite") and what.is_file():
        scored = _score_file(what, arguments)
    else:
        raise UserError(
            "neither a directory of a saved model nor an .ecz, .onnx or .tflite file", where=str(what),
            fix="Give what `edgecompress compress`, `pack` or `export` made.",
        )  # fmt: skip
    low, high = stats.wilson(round(scored.top1 * scored.images), scored.images)
    if arguments.json:
        print(json.dumps({**to_json(scored), "top1_low": low, "top1_high": high}))
    else:
        interval = f"95 % interval {100 * low:.2f} to {100 * high:.2f}"
        print(f"top-1 {100 * scored.top1:.2f} % ({interval}), {scored.images:,} {scored.split} images")
        if scored.top5 is not None:
            print(f"top-5 {100 * scored.top5:.2f} %")
    return 0


def _score_file(artifact: Path, arguments: argparse.Namespace) -> Accuracy:
    """Score an exported file by the agent on this machine."""
    import tempfile

    from edgecompress import measurement
    from edgecompress.board.session import connect
    from edgecompress.data import load as datasets_load
    from edgecompress.errors import StepFailed
    from edgecompress.study import MeasureSpec
    from edgecompress.studyfile import read_device

    dataset = datasets_load(data_spec(arguments.data), seed=arguments.seed)
    part = measurement.part_of(dataset, arguments.part)
    measure = MeasureSpec(warmup_s=0, min_s=0.01, blocks=2, score_on=arguments.part)
    profile = read_device("local")
    with tempfile.TemporaryDirectory(prefix="edgecompress-") as folder, progress() as bars:
        images = Path(folder) / "images.npy"
        measurement.write_images(part, len(part), images)
        job, files = measurement.make_job(
            uuid.uuid4().hex[:16],
            artifact,
            images,
            normalisation=(dataset.mean, dataset.std),
            profile=profile,
            measure=measure,
        )
        with connect(profile) as session:
            result = session.measure(job, files, progress=bars, label=f"scoring {artifact.name}")
    if result.status != "ok":
        raise StepFailed(f"{artifact}: {result.reason}")
    return measurement.score(result.predictions or (), part.labels, arguments.part, dataset.num_classes)


def export(arguments: argparse.Namespace) -> int:
    from edgecompress.activations import ActivationType
    from edgecompress.export.contract import check_installed, export_artifact
    from edgecompress.studyfile import read_device

    out = _new_directory(arguments.out)
    data = data_spec(arguments.data)
    for form in arguments.formats:
        check_installed(form)
    activations: ActivationType = arguments.activations or read_device("local").activation_type

    import tempfile

    from edgecompress import api
    from edgecompress.data import load as datasets_load
    from edgecompress.models.building import check_output
    from edgecompress.rundir import write_atomically

    dataset = datasets_load(data, seed=arguments.seed)
    sys.path.insert(0, str(Path.cwd()))
    model = api.load(arguments.model_dir)
    check_output(model, num_classes=dataset.num_classes, in_shape=dataset.in_shape, where="--data")
    with _made(out), progress() as bars, tempfile.TemporaryDirectory(prefix="edgecompress-") as cache:
        for form in dict.fromkeys(arguments.formats):
            artifact = export_artifact(
                model, form, out, dataset=dataset, activation_type=activations, cache=Path(cache), progress=bars
            )
            write_atomically(out / f"{artifact.file}.json", json.dumps(to_json(artifact), indent=1) + "\n")
            difference = f"largest difference from torch {artifact.parity.max_abs_diff:.2g}"
            print(f"{out / artifact.file}  {artifact.file_bytes:,} bytes, {difference}")
            for warning in artifact.warnings:
                print(f"warning: {warning}", file=sys.stderr)
            for note in artifact.notes:
                print(f"note: {note}", file=sys.stderr)
    return 0


def methods(arguments: argparse.Namespace) -> int:
    import dataclasses
    import inspect

    from edgecompress import plugins
    from edgecompress.compress.contract import full_params, method_names

    if arguments.name is None:
        for name in method_names():
            module = plugins.find("edgecompress.compress", name, attribute="apply", kind="method")
            print(f"{name:<16}{(inspect.getdoc(module) or '').splitlines()[0]}")
        return 0
    module = plugins.find("edgecompress.compress", arguments.name, attribute="apply", kind="method")
    print(
        f"{arguments.name}\n\n{inspect.getdoc(module)}\n\n{inspect.getdoc(module.Params)}\n\nParameters and defaults:"
    )
    required = {
        f.name
        for f in dataclasses.fields(module.Params)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    defaults = {} if required else full_params(arguments.name, {})
    for field in dataclasses.fields(module.Params):
        default = (
            "required" if field.name in required else json.dumps(defaults[field.name]) if defaults else field.default
        )
        print(f"  {field.name} = {default}")
    return 0
