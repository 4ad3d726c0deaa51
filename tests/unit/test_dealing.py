"""Which board measures what: the order, who takes what is given back, and that nothing is lost or done twice by threads."""

from __future__ import annotations

import random
import threading
from collections import Counter

import pytest

from edgecompress.dealing import Deal, Stopped


def deal(items: str, rounds: int, boards: str, begun: dict[str, tuple[str, int]] | None = None) -> Deal[str]:
    return Deal(items, rounds, boards, threading.Event(), begun)


def all_of(dealt: Deal[str], board: str) -> list[tuple[int, str]]:
    made = []
    while (job := dealt.next(board)) is not None:
        made.append(job)
        dealt.done(job[1])
    return made


def test_one_board_goes_forwards_then_backwards() -> None:
    order = all_of(deal("ABC", 3, "x"), "x")
    assert "".join(item for _, item in order) == "ABCCBAABC"
    assert [number for number, _ in order] == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_what_an_earlier_run_began_is_gone_on_with_on_the_same_board() -> None:
    assert all_of(deal("ABC", 2, "x", {"A": ("x", 1), "B": ("x", 2)}), "x") == [(0, "C"), (1, "C"), (1, "A")]
    # y is in the pool no more: A is begun anew
    assert all_of(deal("AB", 2, "x", {"A": ("y", 1)}), "x") == [(0, "A"), (0, "B"), (1, "B"), (1, "A")]


def test_all_rounds_of_a_variant_are_one_boards_and_a_fast_board_takes_more() -> None:
    dealt = deal("ABCD", 2, "xy")
    assert dealt.next("x") == (0, "A") and dealt.next("y") == (0, "B")
    for item in "ACD":  # x is done with three while y has its first
        dealt.done(item)
        if item != "D":
            assert dealt.next("x") == (0, "C" if item == "A" else "D")
    assert all_of_one(dealt, "x") == [(1, "D"), (1, "C"), (1, "A")]
    dealt.done("B")
    assert dealt.next("y") == (1, "B")


def all_of_one(dealt: Deal[str], board: str) -> list[tuple[int, str]]:
    made = []
    for _ in range(3):
        job = dealt.next(board)
        assert job is not None
        made.append(job)
        dealt.done(job[1])
    return made


def test_a_variant_that_failed_is_tried_on_one_other_board() -> None:
    dealt = deal("AB", 1, "xy")
    assert dealt.next("x") == (0, "A") and dealt.can_go_elsewhere("A")
    dealt.give_back("x", "A")
    assert dealt.next("x") == (0, "B"), "not A, which failed here"
    assert dealt.next("y") == (0, "A")
    assert not dealt.can_go_elsewhere("A"), "two tries are all"
    dealt.close("A")
    dealt.done("B")
    assert dealt.next("x") is None and dealt.next("y") is None


def test_a_variant_comes_back_to_a_board_only_when_no_other_is_left() -> None:
    dealt = deal("A", 1, "xy")
    assert dealt.next("x") == (0, "A")
    dealt.give_back("x", "A")
    assert dealt.leave("y")
    assert dealt.next("x") == (0, "A") and not dealt.can_go_elsewhere("A")


def test_a_board_that_leaves_gives_back_what_it_began_and_the_last_one_stays() -> None:
    dealt = deal("AB", 2, "xy")
    assert dealt.next("x") == (0, "A")
    dealt.done("A")
    assert dealt.next("y") == (0, "B")
    assert dealt.leave("x")
    dealt.done("B")
    assert dealt.next("y") == (0, "A"), "from its first round"
    assert not dealt.leave("y")


def test_a_waiting_board_is_woken_and_the_end_of_the_run_reaches_it() -> None:
    dealt = deal("A", 1, "xy")
    dealt.next("x")
    found: list[object] = []
    waiting = threading.Thread(target=lambda: found.append(dealt.next("y")))
    waiting.start()
    dealt.give_back("x", "A")
    waiting.join(60)
    assert found == [(0, "A")]

    stopped = threading.Event()
    other = Deal("A", 1, "xy", stopped)
    other.next("x")

    def wait() -> None:
        with pytest.raises(Stopped):
            other.next("y")
        found.append("stopped")

    waiting = threading.Thread(target=wait)
    waiting.start()
    stopped.set()
    waiting.join(60)
    assert found[-1] == "stopped"


@pytest.mark.parametrize("seed", range(5))
def test_threads_lose_nothing_and_do_nothing_twice(seed: int) -> None:
    """30 boards, 200 variants of 3 rounds; jobs fail at random, boards leave at random."""
    boards, items, rounds = [f"b{i}" for i in range(30)], [f"v{i}" for i in range(200)], 3
    dealt = Deal(items, rounds, boards, threading.Event())
    done: Counter[tuple[str, str]] = Counter()  # variant and board → rounds, of those that came to their end
    ends: Counter[str] = Counter()
    lock, draw = threading.Lock(), random.Random(seed)

    def work(board: str) -> None:
        made: Counter[str] = Counter()
        while (job := dealt.next(board)) is not None:
            number, item = job
            with lock:
                luck = draw.random()
            assert number == 0 or made[item] == number, "rounds in their order, on one board"
            made[item] = number + 1
            if luck < 0.05:
                if dealt.can_go_elsewhere(item):
                    dealt.give_back(board, item)
                else:
                    with lock:
                        ends[item] += 1
                    dealt.close(item)
                if luck < 0.02 and dealt.leave(board):
                    return
                continue
            if number + 1 == rounds:
                with lock:
                    ends[item] += 1
                    done[item, board] = made[item]
            dealt.done(item)

    threads = [threading.Thread(target=work, args=(board,)) for board in boards]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    assert set(ends) == set(items) and set(ends.values()) == {1}
    assert set(done.values()) == {rounds}
