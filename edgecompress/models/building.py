"""From a model spec to a network: find the function, call it, and check with one forward pass that it fits the data."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgecompress.errors import UserError, near_misses
from edgecompress.models import ZOO, Origin
from edgecompress.models.torchvision_import import import_torchvision
from edgecompress.study import ModelSpec

InShape = tuple[int, int, int]

TORCHVISION = "torchvision:"


def construct(spec: ModelSpec, *, num_classes: int, in_shape: InShape, seed: int, pretrained: bool = True) -> nn.Module:
    """The network of a spec, initialised under `seed`, in train mode, its output checked. `spec.weights` is not read.

    pretrained: False leaves out torchvision's own `weights` argument, for a network that a saved checkpoint fills at once.
    """
    where = f"model {spec.name}"
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        if spec.name.startswith(TORCHVISION):
            model = _torchvision(spec, num_classes, pretrained, where)
        elif ":" in spec.name:
            model = _callable(spec, where)
        else:
            module, _, function = ZOO[spec.name].partition(":")
            build = getattr(importlib.import_module(module), function)
            depth = {} if spec.depth is None else {"depth": spec.depth}
            model = build(num_classes, in_shape, 1.0 if spec.width is None else spec.width, **depth, **spec.args)
    check_output(model, num_classes=num_classes, in_shape=in_shape, where=where)
    model.__dict__["edgecompress_origin"] = Origin(spec, num_classes, in_shape)
    return model.train()


def check_output(model: nn.Module, *, num_classes: int, in_shape: InShape, where: str) -> None:
    """One forward pass of two black images. UserError unless it gives one tensor of shape (2, num_classes)."""
    training = model.training
    channels, height, width = in_shape
    size = f"{height}×{width} images with {channels} channel{'s' if channels != 1 else ''}"
    first = next(model.parameters(), None)
    images = torch.zeros(2, *in_shape, device=first.device if first is not None else "cpu")
    try:
        with torch.no_grad():
            output = model.eval()(images)
    except Exception as error:
        raise UserError(
            f"the network does not take {size}: {_sentence(error)}",
            where=where,
            fix="Use data of the size and the channels that it was made for, or give its arguments in args.",
        ) from error
    finally:
        model.train(training)
    if not isinstance(output, torch.Tensor):
        raise UserError(
            f"the network returns a {type(output).__name__}, not one tensor of logits",
            where=where,
            fix="Wrap it in a module whose forward returns the logits (n, classes).",
        )
    if tuple(output.shape) != (2, num_classes):
        raise UserError(
            f"the network gives {tuple(output.shape)} for 2 images, and the data have {num_classes} classes: "
            f"it must be (2, {num_classes})",
            where=where,
            fix="Give the number of classes in its arguments, or use the data that it was made for.",
        )


def _sentence(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def _torchvision(spec: ModelSpec, num_classes: int, pretrained: bool, where: str) -> nn.Module:
    models = import_torchvision().models
    name = spec.name.removeprefix(TORCHVISION)
    known = models.list_models(module=models)
    if name not in known:
        raise UserError(f"torchvision has no classification model {name!r}", where=where, fix=near_misses(name, known))
    arguments: dict[str, Any] = {"weights": None, "num_classes": num_classes}
    if name in ("googlenet", "inception_v3"):
        # Their auxiliary heads make forward return a tuple in train mode, which no other classifier does.
        arguments |= {"aux_logits": False, "init_weights": True}
    arguments |= spec.args
    if not pretrained and arguments["weights"] is not None:
        arguments["weights"] = None
        if name in ("googlenet", "inception_v3"):
            arguments.setdefault("transform_input", True)  # what their pretrained weights imply
    from urllib.error import URLError

    try:
        model: nn.Module = models.get_model(name, **arguments)
    except URLError as error:
        raise UserError(
            f"its pretrained weights could not be downloaded: {error.reason}",
            where=where,
            fix="Fetch them on a machine with a network and give the file as weights.",
        ) from None
    except (TypeError, ValueError, KeyError) as error:
        raise UserError(f"refused its arguments: {_sentence(error)}", where=where, fix="Mend args.") from error
    return model


def _callable(spec: ModelSpec, where: str) -> nn.Module:
    module_name, _, attribute = spec.name.partition(":")
    with _current_directory_importable():
        function = _find(module_name, attribute, where)
        try:
            inspect.signature(function).bind(**spec.args)
        except TypeError as error:
            raise UserError(
                f"cannot be called with args {spec.args}: {error}",
                where=where,
                fix=f"It takes {attribute}{inspect.signature(function)}; only args are passed.",
            ) from None
        except ValueError:
            pass  # a builtin without a signature: the call itself tells
        try:
            model = function(**spec.args)
        except Exception as error:
            raise UserError(
                f"raised {_sentence(error)}", where=where, fix="--verbose shows where it was raised."
            ) from error
    if not isinstance(model, nn.Module):
        raise UserError(
            f"returned a {type(model).__name__}, not a torch.nn.Module", where=where, fix="It must return the network."
        )
    return model


def _find(module_name: str, attribute: str, where: str) -> Callable[..., Any]:
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        if module_name == missing or module_name.startswith(f"{missing}."):
            raise UserError(
                f"there is no module {missing!r}",
                where=where,
                fix="Install it, run from the directory that holds it, or put that directory on PYTHONPATH.",
            ) from None
        raise UserError(f"needs the module {missing!r}", where=where, fix=f"Install {missing}.") from error
    except Exception as error:
        raise UserError(
            f"importing {module_name!r} raised {_sentence(error)}",
            where=where,
            fix="--verbose shows where it was raised.",
        ) from error
    function = getattr(module, attribute, None)
    if not callable(function):
        names = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise UserError(
            f"{module_name} has no function or class {attribute!r}", where=where, fix=near_misses(attribute, names)
        )
    found: Callable[..., Any] = function
    return found


@contextmanager
def _current_directory_importable() -> Iterator[None]:
    """The console script's search path lacks the current directory; a user's own module is looked for there, last."""
    here = str(Path.cwd())
    added = here not in sys.path and "" not in sys.path
    if added:
        sys.path.append(here)
    try:
        yield
    finally:
        if added:
            sys.path.remove(here)
