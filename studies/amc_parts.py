"""What the studies of AMC share: parts that are files under --state, and a policy's network before and after the same training."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from cifar_resnet56 import IN_SHAPE, dataset, network

from edgecompress.progress import SILENT
from edgecompress.rundir import write_atomically

if TYPE_CHECKING:
    from torch import nn

    from edgecompress.compress.contract import Bench, Context

TRAINING = {"weight_decay": 1e-4, "distill": {"temperature": 4, "alpha": 0.9}}
"""Of the fine-tunings, beside their epochs and learning rate; the teacher is the whole network."""


VALIDATION, HARDLY_ANY = 0.1, 1e-6
"""Of the training images, what a search looks at; and one image, as none is not a validation part."""


class Told:
    """What a search says, on standard output."""

    def __init__(self) -> None:
        self.task = SILENT.task

    def say(self, text: str) -> None:
        print(text, flush=True)


class Parts:
    """One network, whose searches, cuts and trainings are each a file under --state."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.data = dataset(given, VALIDATION)
        self._began = time.monotonic()

    def settings(self, names: tuple[str, ...]) -> dict[str, Any]:
        return {name: getattr(self.given, name) for name in names}

    def part(self, name: str, make: Callable[[], dict[str, Any]], by: tuple[str, ...]) -> dict[str, Any] | None:
        """The part's result; None where it is not there and time is up. by: the options that it depends on; SystemExit: it is of
        others."""
        file, settings = self.given.state / f"{name}.json", self.settings(by)
        if not file.exists():
            if time.monotonic() - self._began > 60 * self.given.minutes:
                return None
            write_atomically(file, json.dumps({"settings": settings, **make()}, indent=1) + "\n")
        result: dict[str, Any] = json.loads(file.read_text())
        if result["settings"] != settings:
            print(f"{file} is of other settings: {result['settings']}; give another --state", file=sys.stderr)
            raise SystemExit(2)
        return result

    def model(self) -> nn.Module:
        return network(self.given, self.given.model)

    def context(self, model: nn.Module, seed: int, name: str, benches: Callable[..., Bench] | None = None) -> Context:
        from edgecompress.compress.contract import Context

        scratch = self.given.state / "checkpoints" / name
        return Context(
            data=self.data, seed=seed, teacher=copy.deepcopy(model), scratch=scratch, progress=Told(), benches=benches
        )

    def search(
        self, seed: int, name: str, wanted: dict[str, Any], benches: Callable[..., Bench] | None = None
    ) -> dict[str, Any]:
        """The notes of a search with its baselines."""
        from edgecompress.compress import amc
        from edgecompress.compress.contract import parse_params

        model = self.model()
        context = self.context(model, seed, name, benches)
        amc.apply(model, parse_params("amc", wanted), context)
        notes = context.notes
        return {"seed": seed, **notes["search"], "widths": notes["widths"], "on_device": notes.get("on_device")}

    def dense(self) -> dict[str, Any]:
        """The whole network on the test images."""
        from edgecompress.evaluate import accuracy

        scored = accuracy(self.model(), self.data)
        return {"top1": scored.top1, "correct": scored.correct}

    def cut(self, name: str, seed: int, keep: dict[str, float]) -> tuple[nn.Module, Context]:
        """A policy's network, and the context that it was made in. name: of the part."""
        from edgecompress.compress import amc
        from edgecompress.compress.amc import policy
        from edgecompress.compress.contract import parse_params

        model = self.model()
        file = self.given.state / "policies" / f"{name}.yaml"
        policy.write(file, "channels", keep)
        context = self.context(model, seed, name)
        amc.apply(model, parse_params("amc", {"policy": str(file), "fit": self.given.fit}), context)
        return model, context

    def prune(self, name: str, seed: int, keep: dict[str, float]) -> dict[str, Any]:
        """A policy's network before any training, on the test images."""
        from edgecompress import cost
        from edgecompress.evaluate import accuracy

        whole = cost.count(self.model(), IN_SHAPE)
        model, context = self.cut(name, seed, keep)
        left, scored = cost.count(model, IN_SHAPE), accuracy(model, self.data)
        return {
            "macs_left": left.macs / whole.macs,
            "params_left": left.params / whole.params,
            "top1": scored.top1,
            "correct": scored.correct,
            "widths": context.notes["widths"],
        }

    def validate(self, name: str, seed: int, keep: dict[str, float]) -> dict[str, Any]:
        """A policy's network before any training, on every validation image."""
        from edgecompress.evaluate import accuracy

        return {"top1": accuracy(self.cut(name, seed, keep)[0], self.data, "val").top1}

    def tune(
        self, name: str, seed: int, keep: dict[str, float], epochs: Sequence[int], lr: float, images: str = "train"
    ) -> dict[str, Any]:
        """The same after a training of so many epochs, or one after the other, each from half the learning rate before. images:
        all: the validation images are trained on, too (but for one)."""
        from edgecompress.compress.contract import parse_params
        from edgecompress.evaluate import accuracy

        model, context = self.cut(name, seed, keep)
        if images == "all":
            context = dataclasses.replace(context, data=dataset(self.given, HARDLY_ANY))
        for number, count in enumerate(epochs):
            training = {**TRAINING, "epochs": count, "lr": lr / 2**number}
            context.train(model, parse_params("amc", {"finetune": training}).finetune, method="amc")
        scored = accuracy(model, self.data)
        return {
            "top1": scored.top1,
            "correct": scored.correct,
            "training": [dataclasses.asdict(t) for t in context.trainings],
        }
