"""The measurements of a study: all boards at the same time, one job per board, one thread and one session for each.

This machine, as a device, is measured when the boards are done, and alone: what it does for them would disturb it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from edgecompress.board.route import resolve
from edgecompress.board.transport import OutOfReach
from edgecompress.board_line import BoardLine, Overall
from edgecompress.dealing import Deal, Stopped
from edgecompress.device_profile import DeviceProfile
from edgecompress.errors import StepFailed, UserError, without_name
from edgecompress.plan import Plan, Variant
from edgecompress.pools import Device, members_of
from edgecompress.progress import Progress
from edgecompress.records import Measurement, Round
from edgecompress.rundir import RunDir
from edgecompress.sessions import Sessions
from edgecompress.steps import Steps
from edgecompress.study import StudySpec
from edgecompress.variant_rounds import JobFailed, VariantRounds

if TYPE_CHECKING:
    from edgecompress.data import Dataset

_GRACE_S = 10.0
"""How long an interrupted run waits for its threads, which end after what they are asking a board at the moment."""

_TROUBLES = 2
"""Jobs in a row that failed by a board's own fault, after which a pool does without it."""


class _Elsewhere(Exception):
    """The board failed in this job, and there is another one to ask."""


@dataclass
class _Lane:
    """One device under way: what is to be measured, and by which board."""

    device: str
    variants: list[Variant]
    deal: Deal[Variant]
    boards: int
    earlier: dict[Variant, str] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def board_ended(self) -> bool:
        """Whether it was the last one."""
        with self.lock:
            self.boards -= 1
            return self.boards == 0


class Measuring:
    """One pass over the measurements of a plan. dataset: loads the study's data, once, whatever thread asks."""

    def __init__(
        self, study: StudySpec, devices: Mapping[str, Device], run_dir: RunDir, plan: Plan, *, steps: Steps,
        sessions: Sessions, dataset: Callable[[], Dataset], progress: Progress,
    ) -> None:  # fmt: skip
        self._study, self._devices, self._dir, self._plan = study, devices, run_dir, plan
        self._steps, self._sessions, self._progress = steps, sessions, progress
        self._rounds = VariantRounds(study, run_dir, plan, sessions=sessions, dataset=dataset)
        self._stopped = threading.Event()
        self._errors: list[BaseException] = []
        self._places: dict[tuple[str, ...], threading.Lock] = {}

    def all(self) -> None:
        """Measure what is not measured yet, and put the rounds together. Every variant ends with a record or a failure."""
        here = [name for name, d in self._devices.items() if all(m.transport == "local" for m in members_of(d))]
        for names in ([name for name in self._devices if name not in here], *([name] for name in here)):
            self._wave(names)

    def _wave(self, names: Sequence[str]) -> None:
        lanes = []
        for name in names:
            lane = self._lane(name)
            if lane.variants:
                lanes.append(lane)
            else:
                self._put_all_together(name)
        boards = [(lane, member) for lane in lanes for member in members_of(self._devices[lane.device])]
        for _, member in boards:
            self._places.setdefault(_place(member), threading.Lock())
        with ExitStack() as stack:
            overall = None
            if len(boards) > 1:
                total = sum(len(lane.variants) for lane in lanes) * self._study.measure.rounds
                overall = Overall(stack.enter_context(self._progress.task("measuring", total)), len(boards))
            self._run([(lane, member, overall, threading.Event()) for lane, member in boards])

    def _run(self, boards: Sequence[tuple[_Lane, DeviceProfile, Overall | None, threading.Event]]) -> None:
        """Start a thread for each board and wait. When one has an error of its own, or a person interrupts, all are ended first."""
        started = []
        try:
            for board in boards:
                threading.Thread(
                    target=self._thread, args=board, name=f"measure on {board[1].name}", daemon=True
                ).start()
                started.append(board)
            for *_, ended in started:
                # An event and not `join`, which in Python 3.11 takes a running thread for ended once an interrupt came
                # in between; and with a limit, as the signal may have reached another thread than this one.
                while not ended.wait(0.5):
                    pass
        finally:
            self._stopped.set()
            until = time.monotonic() + _GRACE_S
            for lane, member, _, ended in started:
                if not ended.wait(max(0.0, until - time.monotonic())):
                    self._sessions.forget(lane.device, member.name)  # it closes it itself, or ends with the process
        if self._errors:
            raise self._errors[0]
        self._stopped.clear()

    def _thread(self, lane: _Lane, member: DeviceProfile, overall: Overall | None, ended: threading.Event) -> None:
        try:
            with ExitStack() as stack:
                if overall is not None:
                    stack.callback(overall.board_ended)
                stack.callback(self._sessions.drop, lane.device, member.name)
                task = stack.enter_context(self._progress.task(member.name, total=1.0))
                self._board(lane, member, BoardLine(member.name, task, self._progress, self._stopped), overall)
        except Stopped:
            pass
        except BaseException as error:  # noqa: BLE001 - raised again by the main thread
            self._errors.append(error)
            self._stopped.set()
        finally:
            ended.set()

    def _board(self, lane: _Lane, member: DeviceProfile, line: BoardLine, overall: Overall | None) -> None:
        """Measure on one board until nothing is left for it, or its pool does without it."""
        board, troubles, measured, failed = member.name, 0, 0, 0
        if self._is_away(lane, member, line):
            return
        while True:
            line.restart("waiting for work", 1.0)
            job = lane.deal.next(board)
            if job is None:
                break
            number, variant = job
            with self._alone(member, line):
                trouble = self._round(lane, member, number, variant, line)
            if overall is not None:
                overall.round_ended()
            if self._rounds.steps(variant)[number] in self._steps.failed:
                failed += 1
            else:
                measured += trouble is None
            troubles = 0 if trouble is None else troubles + 1
            lost = isinstance(trouble, OutOfReach)
            if trouble is not None and (lost or troubles >= _TROUBLES) and self._leaves(lane, member, line, trouble):
                return
        if overall is not None:
            said = f"{measured} round{'' if measured == 1 else 's'} measured"
            line.say(f"done: {said}, {failed} failed" if failed else f"done: {said}")
        if lane.board_ended():
            self._put_all_together(lane.device)

    def _is_away(self, lane: _Lane, member: DeviceProfile, line: BoardLine) -> bool:
        """Whether the pool has to do without a board from the beginning: it shall not take work that it cannot do. The last
        board, and one that is a device by itself, take it all the same, so that every row has its reason."""
        if len(members_of(self._devices[lane.device])) == 1:
            return False
        line.restart("connecting", 1.0)
        try:
            self._sessions.get(lane.device, member)
        except (StepFailed, UserError) as error:
            return self._leaves(lane, member, line, error, told=self._sessions.told_away(lane.device, member.name))
        return False

    def _leaves(
        self, lane: _Lane, member: DeviceProfile, line: BoardLine, trouble: Exception, *, told: bool = False
    ) -> bool:
        if not lane.deal.leave(member.name):
            return False
        if not told:
            line.say(f"{lane.device} goes on without it: {_first_line(member, trouble)}")
        lane.board_ended()
        return True

    @contextmanager
    def _alone(self, member: DeviceProfile, line: BoardLine) -> Iterator[None]:
        """With the board to oneself: two profiles may describe the same one."""
        lock = self._places[_place(member)]
        if not lock.acquire(blocking=False):
            line.restart("waiting: its board is measuring for another device", 1.0)
            while not lock.acquire(timeout=0.5):
                line.advance(0)
        try:
            yield
        finally:
            lock.release()

    # --- the variants of a device -----------------------------------------------------------------------------------

    def _variants(self, device: str) -> list[Variant]:
        return [variant for variant in self._plan.variants if variant.device == device]

    def _lane(self, device: str) -> _Lane:
        # Recipes that lead to the same model share their measurement.
        open_variants = {
            v.measurement: v
            for v in self._variants(device)
            if self._dir.record("measurement", v.measurement, Measurement) is None
        }
        members = members_of(self._devices[device])
        items = list(open_variants.values())
        begun = {variant: at for variant in items if (at := self._rounds.begun(variant)) is not None}
        deal = Deal(items, self._study.measure.rounds, [m.name for m in members], self._stopped, begun)
        return _Lane(device, items, deal, len(members))

    def _round(
        self, lane: _Lane, member: DeviceProfile, number: int, variant: Variant, line: BoardLine
    ) -> Exception | None:
        """One round of a variant on a board. Returned: the trouble that the board itself made, if it did."""
        board, total = member.name, self._study.measure.rounds
        what, step = f"{variant.recipe} {variant.format}", self._rounds.steps(variant)[number]
        where = board if board == lane.device else f"{board} of {lane.device}"
        troubles: list[Exception] = []

        def made() -> Round:
            try:
                return self._rounds.measure(variant, number, member, line, f"{what}, round {number + 1} of {total}")
            except JobFailed:
                raise
            except (StepFailed, UserError) as error:
                troubles.append(error)
                if isinstance(error, OutOfReach):
                    self._sessions.drop(lane.device, board)  # the next job tries to connect once
                if lane.deal.can_go_elsewhere(variant):
                    raise _Elsewhere(str(error)) from error
                earlier = lane.earlier.get(variant)
                if earlier is None:
                    raise
                raise StepFailed(f"{error}; before that, {earlier}") from error

        if number == 0:
            self._rounds.discard_of_others(variant, board)
        artifact = variant.artifact
        needs = [("model", artifact.model), ("artifact", artifact.key)]
        label = f"{what} on {where}, round {number + 1} of {total}"
        try:
            self._steps.do(step, label, Round, made, needs=needs, raises=(_Elsewhere,))
        except _Elsewhere as error:
            lane.earlier[variant] = str(error)
            line.say(f"{what}: failed here, tried on another board: {_first_line(member, error)}")
            lane.deal.give_back(board, variant)
        else:
            if step in self._steps.failed:
                lane.deal.close(variant)
            else:
                lane.deal.done(variant)
        return troubles[0] if troubles else None

    def _put_all_together(self, device: str) -> None:
        """The measurement of each variant from its rounds, which are let go of."""
        for variant in self._variants(device):
            step = ("measurement", variant.measurement)
            label, made_of = f"{variant.recipe} {variant.format} on {device}", self._rounds.steps(variant)
            is_open = self._dir.record(*step, Measurement) is None
            make = partial(self._rounds.put_together, variant)
            self._steps.do(step, label, Measurement, make, needs=made_of)
            if is_open and step not in self._steps.failed:
                for stage, key in made_of:
                    self._dir.discard(stage, key)


def _first_line(member: DeviceProfile, trouble: Exception) -> str:
    return without_name(member.name, trouble).splitlines()[0]


def _place(profile: DeviceProfile) -> tuple[str, ...]:
    """Where a board is, as far as this machine's SSH configuration tells."""
    if profile.transport == "local":
        return ("local",)
    if profile.serial_port is not None:
        return profile.transport, str(profile.serial_port.resolve())
    last = resolve(profile)[-1]
    return profile.transport, last.host, str(last.port)
