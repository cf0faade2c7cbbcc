"""A loop that waits for the store still sends heartbeats."""

from __future__ import annotations

import threading

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
