# SPDX-License-Identifier: Apache-2.0
"""Signals to the first program before it is one."""

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from softsgx.run import ptrace, spawn

SIGNALS_BEFORE = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGALRM, signal.SIGSEGV)


@pytest.fixture
def started() -> Iterator[list[int]]:
    """Give the list into which a test puts whom it has started."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        while os.WIFSTOPPED(os.waitpid(pid, ptrace.WALL)[1]):
            pass


def spawn_disturbed(monkeypatch: pytest.MonkeyPatch, *numbers: int) -> int:
    """Start a program to which signals are sent as soon as it is traced; give its pid."""

    def seize(pid: int) -> None:
        ptrace_seize(pid)
        for number in numbers:
            os.kill(pid, number)

    ptrace_seize = ptrace.seize
    monkeypatch.setattr(ptrace, "seize", seize)
    limits = {resource.RLIMIT_NOFILE: resource.getrlimit(resource.RLIMIT_NOFILE)}
    pid, listener = spawn.spawn("/bin/true", ["true"], spawn.Inherited(0, 0, limits))
    os.close(listener)
    return pid


@pytest.mark.parametrize("number", SIGNALS_BEFORE)
def test_a_signal_waits_until_the_program_is_there(
    monkeypatch: pytest.MonkeyPatch, started: list[int], number: signal.Signals
) -> None:
    started.append(spawn_disturbed(monkeypatch, number))
    status = os.waitpid(started[0], ptrace.WALL)[1]
    assert os.WIFSTOPPED(status)
    assert status >> 8 == number


def test_a_stop_holds_the_start_up(monkeypatch: pytest.MonkeyPatch, started: list[int]) -> None:
    seen: list[str] = []

    def go_on(pid: int) -> None:
        time.sleep(0.2)
        with open(f"/proc/{pid}/stat", encoding="ascii") as stat:  # noqa: PTH123
            seen.append(stat.read().rpartition(")")[2].split()[0])
        os.kill(pid, signal.SIGCONT)

    fork = os.fork

    def fork_and_go_on() -> int:
        pid = fork()
        if pid:
            threading.Thread(target=go_on, args=[pid]).start()
        return pid

    monkeypatch.setattr(os, "fork", fork_and_go_on)
    started.append(spawn_disturbed(monkeypatch, signal.SIGSTOP))
    assert seen == ["t"]


def test_a_program_killed_before_it_is_one_has_ended_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(spawn.EndedEarly) as ended:
        spawn_disturbed(monkeypatch, signal.SIGKILL)
    assert ended.value.status == signal.SIGKILL


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_a_terminals_signal_does_not_end_who_starts_the_program(
    tmp_path: Path, number: signal.Signals
) -> None:
    script = f"""
import os, sys
from softsgx.cli import main
from softsgx.run import ptrace
seize = ptrace.seize
def seize_disturbed(pid):
    os.kill(os.getpid(), {int(number)})
    seize(pid)
ptrace.seize = seize_disturbed
sys.exit(main(["run", "--state", {str(tmp_path / "state")!r}, "sh", "-c", "exit 5"]))
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert (ended.returncode, ended.stderr) == (5, b"")
