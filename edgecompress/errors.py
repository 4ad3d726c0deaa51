"""The one error that a user is meant to read: what is wrong, where, and how to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A wrong request or an environment that lacks something. The command line prints it without a traceback, exit status 2.

    what: one sentence. where: file, key or device it came from. fix: what to do about it.
    """

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        super().__init__(what, where, fix)
        self.what, self.where, self.fix = what, where, fix

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}\n  {self.fix}" if self.fix else text


class StepFailed(Exception):
    """A step of a study that was asked for rightly and could not be done: recorded with this reason, the others go on."""


def without_name(name: str, problem: object) -> str:
    """What is wrong with a device, for a sentence that has named it already."""
    return str(problem).removeprefix(f"{name}: ")


def near_misses(name: str, choices: Iterable[str]) -> str:
    """A sentence for an unknown name: the nearest choices first, then all of them."""
    choices = sorted(choices)
    near = difflib.get_close_matches(name, choices, n=2, cutoff=0.6)
    hint = f"Did you mean {' or '.join(repr(n) for n in near)}? " if near else ""
    return f"{hint}Choices: {', '.join(choices) if choices else 'none'}."
