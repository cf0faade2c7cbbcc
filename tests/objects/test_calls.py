"""A loop that waits for the store still sends heartbeats."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable

import pytest

from engine.objects.calls import Calls


def test_the_owner_sends_heartbeats_while_it_waits() -> None:
    beats: list[float] = []
    answered = threading.Event()

    def beat() -> None:
        beats.append(calls.unanswered_s)
        if len(beats) == 2:
            answered.set()

    calls = Calls(beat)
    assert calls(lambda: answered.wait(60))
    assert 0 < beats[0] < beats[1]
    assert calls.unanswered_s == 0


def test_other_threads_make_their_requests_themselves() -> None:
    calls = Calls(lambda: None)
    made_by: list[int] = []
    thread = threading.Thread(target=lambda: made_by.append(calls(threading.get_ident)))
    thread.start()
    thread.join()
    assert made_by == [thread.ident]
    assert calls(threading.get_ident) != threading.get_ident()
    assert Calls(None)(threading.get_ident) == threading.get_ident()


def test_errors_are_raised_in_the_caller() -> None:
    def fail() -> None:
        raise OSError("refused")

    calls = Calls(lambda: None)
    with pytest.raises(OSError, match="refused"):
        calls(fail)
    assert calls.unanswered_s == 0


def test_a_request_is_begun_once_the_one_before_is_answered() -> None:
    calls = Calls(lambda: None)
    let_go, order = threading.Event(), []

    def first() -> str:
        assert let_go.wait(60)
        order.append("first")
        return "answer"

    answer = calls.begin(first)
    assert calls.unanswered_s > 0
    assert order == []  # it is in flight while its owner does something else
    let_go.set()
    calls(lambda: order.append("second"))
    assert order == ["first", "second"]
    assert answer() == "answer"
    assert calls.unanswered_s == 0


def test_the_error_of_a_begun_request_is_its_own() -> None:
    def fail() -> None:
        raise OSError("refused")

    calls = Calls(lambda: None)
    begun = calls.begin(fail)
    assert calls(lambda: 1) == 1
    with pytest.raises(OSError, match="refused"):
        begun()


@pytest.mark.parametrize("beat", [None, lambda: None])
def test_an_answer_is_not_kept(beat: Callable[[], None] | None) -> None:
    class Large:
        pass

    calls = Calls(beat)
    kept = weakref.ref(calls(Large))
    gc.collect()
    assert kept() is None
