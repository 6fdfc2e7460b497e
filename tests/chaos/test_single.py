# SPDX-License-Identifier: Apache-2.0
"""What the chaos test makes of the status of a run that was sent what may end it."""

import sys
from pathlib import Path
from signal import SIGABRT, SIGALRM, SIGHUP, SIGINT, SIGKILL, SIGQUIT, SIGSEGV, SIGTERM, Signals

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
from single import wrong_status

RIGHT = [
    # status, the program's own, signals to the supervisor, to the first program
    (-SIGTERM, -SIGTERM, set(), {SIGTERM}),
    # The supervisor passes on what comes just before the other signal.
    (-SIGHUP, -SIGHUP, {SIGHUP, SIGTERM}, {SIGTERM}),
    (-SIGTERM, -SIGTERM, {SIGTERM}, {SIGKILL}),
    (-SIGSEGV, -SIGSEGV, set(), {SIGSEGV, SIGTERM}),
    # It was killed itself, and its programs with it.
    (-SIGKILL, None, {SIGKILL}, {SIGTERM}),
    # A handler may make of it what it likes.
    (3, 3, set(), {SIGALRM}),
    # Before Linux 6.15 nobody tells the program's own status.
    (-SIGTERM, None, set(), {SIGTERM}),
]
WRONG = [
    (0, -SIGTERM, set(), {SIGTERM}),
    (1, 1, set(), {SIGTERM}),
    (-SIGABRT, -SIGABRT, set(), {SIGKILL}),
    # What the supervisor ignores is not passed on.
    (-SIGINT, -SIGINT, {SIGINT}, {SIGTERM}),
    (-SIGQUIT, -SIGQUIT, {SIGQUIT}, {SIGTERM}),
    (1, None, set(), {SIGTERM}),
]
Case = tuple[int, int | None, set[Signals], set[Signals]]


def judged(case: Case, *, good: bool = False) -> str:
    status, program, supervisor, first = case
    delivered = {"supervisor": supervisor, "first": first}
    return wrong_status(status, program, delivered, seen=True, good=good)


@pytest.mark.parametrize("case", RIGHT)
def test_a_program_ends_by_any_signal_that_may_have_come_first(case: Case) -> None:
    assert not judged(case)


@pytest.mark.parametrize("case", WRONG)
def test_no_other_status_follows_a_signal_that_is_certain_to_end_it(case: Case) -> None:
    assert f"exit status {case[0]}" in judged(case)


def test_a_program_may_have_finished_before_it_was_sent_one() -> None:
    assert not judged((7, 7, set(), {SIGTERM}), good=True)
