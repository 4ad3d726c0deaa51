"""The command line: parse, call one function, print. Nothing heavy is imported before a verb needs it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgecompress.errors import StepFailed, UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Exit status: 0 done, 1 a step failed, 2 the request was wrong, 130 interrupted."""
    from edgecompress.cli.parser import parse
    from edgecompress.errors import StepFailed, UserError

    os.environ.setdefault(
        "ORT_DISABLE_TELEMETRY", "1"
    )  # on since 1.29: names and hashes of models would go to its maker
    os.umask(os.umask(0o022) | 0o022)  # whatever the user's is: what we leave is not for everyone to write to
    arguments = parse(argv)
    try:
        status: int = arguments.verb(arguments)
        sys.stdout.flush()
        return status
    except (UserError, StepFailed) as error:
        return complain(error, arguments.verbose)
    except KeyboardInterrupt:
        hint = " What is done is kept; the same command goes on from there." if arguments.resumable else ""
        return _complain(f"edgecompress: interrupted.{hint}", 130, arguments.verbose)
    except SystemExit as error:
        # Only code of the user's own (a model that calls sys.exit) ends up here: done it is not.
        return _complain(
            f"edgecompress: code that was called ended the program (exit {error.code})", 1, arguments.verbose
        )
    except BrokenPipeError:
        # The reader of our output has gone (`| head`): nothing more to say, also not at the interpreter's exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def complain(error: UserError | StepFailed, verbose: bool) -> int:
    """Say what is wrong; the exit status that it has."""
    from edgecompress.errors import UserError

    return _complain(f"edgecompress: {error}", 2 if isinstance(error, UserError) else 1, verbose)


def _complain(message: str, status: int, verbose: bool) -> int:
    if verbose:
        import traceback

        traceback.print_exc()
    print(message, file=sys.stderr)
    return status
