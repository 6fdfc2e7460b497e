# SPDX-License-Identifier: Apache-2.0
"""What is done about a thread that sleeps at a page: where the answer fails, it stops, and nobody else does."""

import os
from types import SimpleNamespace
from typing import Any

import pytest

from softsgx.driver.reclaim import AGAIN
from softsgx.run import page_faults, ptrace, userfaults
from softsgx.run.ptrace import TraceeGone
from softsgx.run.userfaults import Userfaults

ADDRESS = 0x7F00_0000_1234


def told(
    monkeypatch: pytest.MonkeyPatch, outcome: Any, tid: int = 7
) -> tuple[list[Any], list[int], Any]:
    """Have one fault of thread 7 told; give what was asked, who was interrupted, and the thread."""
    asked: list[Any] = []
    interrupted: list[int] = []

    def answered(*question: Any) -> bool:
        asked.append(question[1:])
        if isinstance(outcome, bool):
            return outcome
        raise outcome

    def interrupt(who: int) -> None:
        interrupted.append(who)
        if who == 8:
            raise TraceeGone

    monkeypatch.setattr(page_faults, "answered", answered)
    monkeypatch.setattr(ptrace, "interrupt", interrupt)
    waker: list[int] = []
    enclaves: Any = SimpleNamespace(wake=waker.append)
    thread: Any = SimpleNamespace(tid=tid, mm=SimpleNamespace(enclaves=enclaves), fault=None)
    waiter: Any = SimpleNamespace(watch=lambda _: None, forget=lambda _: None)
    reader, writer = os.pipe()
    faults = Userfaults(waiter, {tid: thread})
    faults.watch(reader, enclaves)
    os.write(writer, userfaults._MESSAGE.pack(userfaults._PAGEFAULT, 2, ADDRESS, tid))
    faults.answer(reader)
    faults.forget(reader)
    assert reader not in faults
    os.close(reader)
    os.close(writer)
    assert not waker
    return asked, interrupted, thread


def test_who_is_answered_goes_on_without_a_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, interrupted, thread = told(monkeypatch, outcome=True)
    assert asked == [(ADDRESS, 2)]
    assert not interrupted
    assert thread.fault is None


@pytest.mark.parametrize(
    "outcome",
    [False, *(kind("later") for kind in AGAIN), OSError(28, "no space"), RuntimeError("a mistake")],
    ids=repr,
)
def test_who_is_not_is_stopped(monkeypatch: pytest.MonkeyPatch, outcome: Any) -> None:
    _, interrupted, thread = told(monkeypatch, outcome)
    assert interrupted == [7]
    assert thread.fault == ADDRESS


def test_who_has_ended_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    _, interrupted, thread = told(monkeypatch, outcome=False, tid=8)
    assert interrupted == [8]
    assert thread.fault is None
