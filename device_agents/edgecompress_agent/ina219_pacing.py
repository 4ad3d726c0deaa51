"""When a chip that converts without end, on a clock of its own, will have its next value: followed by what is seen of it.

The chip's clock is up to 10 % slow (SBOS448G 7.5), and a flag tells only that a value is ready, not since when. So the flag is
looked at shortly before the value is due; a value that was not there and then is, gives the time of its conversion to
half a step of looking; period and phase follow these (a phase-locked loop). A value that was missed is dated by the period.
"""

from __future__ import annotations

_FASTEST, _SLOWEST = 0.85, 1.25
"""Periods that a chip can have, of the nominal one. The datasheet has it up to 1.10, and no other limit."""


class Pacing:
    """Times in ns of the clock that the caller uses. A conversion ends at `ready_ns`, the next one at `due_ns`."""

    def __init__(self, period_ns: float, started_ns: int) -> None:
        self.nominal_ns = period_ns
        self.period_ns = period_ns
        self.ready_ns = float(started_ns)
        self.step_ns = max(period_ns / 32, 300e3)
        """Time between two looks. 0.3 ms: one word at 100 kHz takes longer."""
        self._flag_stuck = False

    @property
    def due_ns(self) -> float:
        return self.ready_ns + self.period_ns

    @property
    def look_ns(self) -> float:
        """The first look at the next value, which is due between the second look and the third."""
        return self.due_ns - 1.5 * self.step_ns

    def seen(self, before_ns: float, now_ns: int, looks: int) -> None:
        """A new value is there now. looks: how many it took; before_ns: when the last one in vain was."""
        missed = max(0, int((now_ns - self.due_ns) // self.period_ns))
        due = self.due_ns + missed * self.period_ns
        late = now_ns - self.look_ns > 2 * self.step_ns  # then it tells nothing of when the value came
        if looks > 1:
            self._flag_stuck = False
        elif not late and self.period_ns <= self.nominal_ns * _FASTEST:
            self._flag_stuck = True  # always set, and no chip is so fast: by the nominal period then
        if self._flag_stuck:
            self.ready_ns, self.period_ns = due, self.nominal_ns
            return
        if looks > 1:
            ended = (before_ns + now_ns) / 2
        elif late:
            ended = min(due, float(now_ns))
        else:
            ended = now_ns - self.step_ns / 2  # it came before it was due
        error = ended - due
        if abs(error) > self.period_ns / 4:
            self.ready_ns = ended  # lost: begin anew from here
            return
        self.ready_ns = due + error / 2
        period = self.period_ns + error / 8 / (missed + 1)
        self.period_ns = min(max(period, self.nominal_ns * _FASTEST), self.nominal_ns * _SLOWEST)

    def unseen(self, now_ns: int) -> None:
        """Nothing new came for several periods, and the old value was taken instead."""
        self.ready_ns = float(now_ns)
