"""Which board of a device measures what: the variants are dealt as boards become free, and each stays where it was begun.

A device that is one board does A B C, C B A, … (`rounds` says why). In a pool every board does so with the variants that it
took. All rounds of a variant are one board's: boards of one kind differ by a few per cent, and that must not look like the
variant's own scatter (docs/adr/0011).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")

TRIES = 2
"""Boards that a variant is tried on: one that brings down every board it comes to shall not have them all."""


class Stopped(BaseException):
    """The run is being ended (an interrupt, or an error elsewhere). Not a failure of the step at hand: nothing is recorded."""


class Deal(Generic[Item]):
    """The variants of one device and its boards. For as many threads as there are boards.

    items: in the order of the study, hashable. begun: board and rounds that an earlier run got done, of some of them.
    """

    def __init__(
        self,
        items: Sequence[Item],
        rounds: int,
        boards: Sequence[str],
        stopped: threading.Event,
        begun: Mapping[Item, tuple[str, int]] | None = None,
    ) -> None:
        self._rounds, self._boards, self._stopped = rounds, list(boards), stopped
        begun = {item: at for item, at in (begun or {}).items() if at[0] in self._boards}
        self._waiting = [item for item in items if item not in begun]
        self._taken: dict[str, list[Item]] = {
            board: [item for item in items if item in begun and begun[item][0] == board] for board in boards
        }
        self._done = {item: count for item, (_, count) in begun.items()}
        self._open = list(items)
        self._tried: dict[Item, list[str]] = {}
        self._changed = threading.Condition()
        for item in [i for i, count in self._done.items() if count >= rounds]:
            self.close(item)

    def next(self, board: str) -> tuple[int, Item] | None:
        """The round and the variant that this board does next; waits while another may have to give one back. None: all is done.

        Raises Stopped when the run is to end.
        """
        with self._changed:
            while True:
                if self._stopped.is_set():
                    raise Stopped
                if not self._open:
                    return None
                found = self._choose(board)
                if found is not None:
                    return found
                self._changed.wait(0.2)

    def _choose(self, board: str) -> tuple[int, Item] | None:
        mine = self._taken[board]
        # One that failed here goes to another board, unless it has failed on all that are left.
        fresh = [i for i in self._waiting if board not in self._tried.get(i, ())]
        spent = [i for i in self._waiting if all(b in self._tried.get(i, ()) for b in self._boards)]
        for item in (*fresh, *spent):
            self._waiting.remove(item)
            mine.append(item)
            self._done[item] = 0
            return 0, item
        if not mine:
            return None
        number = min(self._done[item] for item in mine)
        due = [item for item in mine if self._done[item] == number]
        return number, due[0] if number % 2 == 0 else due[-1]

    def done(self, item: Item) -> None:
        """A round of this variant is done."""
        with self._changed:
            self._done[item] += 1
            if self._done[item] >= self._rounds:
                self._close(item)

    def close(self, item: Item) -> None:
        """Nothing more is to be done for this variant: it failed."""
        with self._changed:
            self._close(item)

    def _close(self, item: Item) -> None:
        self._open.remove(item)
        for mine in self._taken.values():
            if item in mine:
                mine.remove(item)
        self._changed.notify_all()

    def can_go_elsewhere(self, item: Item) -> bool:
        """Whether there are other boards, and the variant has a try left."""
        with self._changed:
            return len(self._boards) > 1 and len(self._tried.get(item, ())) + 1 < TRIES

    def give_back(self, board: str, item: Item) -> None:
        """The variant failed on this board: another one begins it anew."""
        with self._changed:
            self._taken[board].remove(item)
            self._tried.setdefault(item, []).append(board)
            self._waiting.append(item)
            self._changed.notify_all()

    def leave(self, board: str) -> bool:
        """Take a board out, and deal what it had begun to the others. False for the last one, which stays: each variant that
        is left shall have its own reason."""
        with self._changed:
            if len(self._boards) == 1:
                return False
            self._boards.remove(board)
            self._waiting += self._taken[board]
            self._taken[board] = []
            self._changed.notify_all()
            return True
