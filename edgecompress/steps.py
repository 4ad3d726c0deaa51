"""Do the steps of a plan: once each, failures kept, what depends on a failed step failing with its reason."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Sequence
from typing import TypeVar

from edgecompress.errors import StepFailed, UserError
from edgecompress.progress import Progress
from edgecompress.records import Failure
from edgecompress.rundir import RunDir

RecordT = TypeVar("RecordT")
StepId = tuple[str, str]
"""Stage and key."""


class Steps:
    """The bookkeeping of one pass: `failed` holds what failed in it, by stage and key. Several threads may do steps at once,
    as long as no two of them do the same one."""

    def __init__(self, run_dir: RunDir, progress: Progress) -> None:
        self._dir, self._progress = run_dir, progress
        self.done_now = self.done_before = 0
        self.failed: dict[StepId, Failure] = {}
        self._counting = threading.Lock()

    def do(
        self,
        step: StepId,
        label: str,
        kind: type[RecordT],
        make: Callable[[], RecordT],
        *,
        needs: Sequence[StepId] = (),
        raises: tuple[type[Exception], ...] = (),
    ) -> None:
        """Do one step unless its record is there, and commit what `make` returns; keep the reason when it fails.

        needs: steps whose failure is this one's. raises: errors that end the whole run, since nothing else can be done.
        """
        if self._dir.record(*step, kind) is not None:
            with self._counting:
                self.done_before += 1
            return
        reasons = [self.failed[need] for need in needs if need in self.failed]
        if reasons:
            self._fail(step, Failure(stage=reasons[0].stage, reason=reasons[0].reason))
            return
        self._progress.say(label)
        try:
            record = make()
        except raises:
            raise
        except (StepFailed, UserError) as error:
            failure = Failure(stage=step[0], reason=str(error))
        except Exception as error:  # noqa: BLE001 - one broken variant must not cost the others: kept, shown, exit status 1
            reason = f"{type(error).__name__}: {error}"
            failure = Failure(stage=step[0], reason=reason, traceback=traceback.format_exc())
        else:
            self._dir.commit(*step, record)
            self._dir.drop_scratch(step[1])
            with self._counting:
                self.done_now += 1
            return
        self._progress.say(f"{label}: failed: {failure.reason}")
        self._fail(step, failure)

    def _fail(self, step: StepId, failure: Failure) -> None:
        self._dir.fail(*step, failure)
        self.failed[step] = failure
