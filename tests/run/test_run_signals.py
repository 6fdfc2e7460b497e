# SPDX-License-Identifier: Apache-2.0
"""Signals and execs that come where a thread carries out calls for its supervisor."""

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import subprocess

    from conftest import Harness

pytestmark = pytest.mark.live


def oldest_child(run: "subprocess.Popen[str]", of: int | None = None) -> int:
    """Wait for a child of the run's supervisor, whose oldest is the first program, or of `of`."""
    pid = run.pid if of is None else of
    while run.poll() is None:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
        if children:
            return int(children[0])
    pytest.fail(f"process {pid} has ended without a child")


# -- stops -------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["exec", "ioctl"])
def test_a_stop_in_an_injected_call_is_only_a_stop(softsgx: "Harness", where: str) -> None:
    softsgx.checked("stopped", where)


@pytest.mark.parametrize("mode", ["ioctl", "continue"])
def test_a_child_that_is_bound_to_its_parent_ends_with_it(softsgx: "Harness", mode: str) -> None:
    command = softsgx.command(softsgx.program("stopped"), *softsgx.enclave(), mode)
    with softsgx.started(command) as process:
        first = oldest_child(process)
        oldest_child(process, of=first)
        os.kill(first, signal.SIGALRM)
        ended = softsgx.end_of(process)
    assert tuple(ended) == (-signal.SIGALRM, "", "")


def test_sigcont_to_a_running_program_changes_nothing(softsgx: "Harness") -> None:
    softsgx.checked("stopped", "continue")


def test_a_terminals_stop_is_told_by_its_number(softsgx: "Harness") -> None:
    softsgx.checked("stopped", "terminal", "2")


# -- signals that others send ------------------------------------------------------------------


def test_realtime_signals_keep_value_and_code(softsgx: "Harness") -> None:
    softsgx.checked("sent_inside", "values")


def test_a_blocked_fault_signal_waits_until_the_thread_is_outside(softsgx: "Harness") -> None:
    softsgx.checked("sent_inside", "blocked")


def test_a_stop_that_has_ended_does_not_come_back(softsgx: "Harness") -> None:
    softsgx.checked("sent_inside", "stopped")


def test_a_node_is_opened_while_the_supervisor_is_sent_signals(softsgx: "Harness") -> None:
    softsgx.checked("rung")


def test_sigterm_to_the_run_reaches_who_is_left(softsgx: "Harness") -> None:
    # In a pipe, so that the first program is gone before the word is there to read.
    rest = (
        "trap 'echo caught; exit' TERM; while kill -0 $1; do sleep 0.02; done 2>&-; "
        "echo alone; while :; do sleep 0.02; done"
    )
    command = softsgx.command("sh", "-c", 'sh -c "$0" - $$ & exit 3', rest)
    with softsgx.started(command) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "alone\n"
        process.send_signal(signal.SIGTERM)
        ended = softsgx.end_of(process)
    # It reaches what the shell waits for as well, which the shell may say.
    assert (ended.status, ended.out) == (3, "caught\n")


# -- mask and action of SIGILL -----------------------------------------------------------------


@pytest.mark.parametrize("what", ["block", "spent", "refused"])
def test_enclu_leaves_mask_and_action_of_sigill(softsgx: "Harness", what: str) -> None:
    softsgx.checked("illegal_action", what)


def test_any_number_of_threads_set_the_action_of_sigill(softsgx: "Harness") -> None:
    ended = softsgx.run(softsgx.program("actions_of_threads"))
    assert tuple(ended) == (0, "", "")


# -- other threads -----------------------------------------------------------------------------


@pytest.mark.parametrize("leader", ["add", "map"])
def test_an_exec_beside_a_call_of_the_node_is_an_exec(softsgx: "Harness", leader: str) -> None:
    softsgx.checked("exec_beside", leader)


def test_a_process_killed_in_the_exec_of_another_thread_has_ended(softsgx: "Harness") -> None:
    softsgx.checked("exec_killed")


def test_first_enclaves_of_many_threads(softsgx: "Harness") -> None:
    softsgx.checked("first_mappings")
