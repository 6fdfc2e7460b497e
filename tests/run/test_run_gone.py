# SPDX-License-Identifier: Apache-2.0
"""What the supervisor sees of a thread that was killed, or whose memory an exec has taken away."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from greenlet import getcurrent

from softsgx.run import ptrace
from softsgx.run.mm import Mm
from softsgx.run.tracee import Process, Tracee


@contextmanager
def stopped(*argv: str) -> Iterator[Tracee]:
    """Trace a program of which the first stop has been waited for."""
    with subprocess.Popen(argv, stdin=subprocess.PIPE) as program:
        ptrace.seize(program.pid)
        ptrace.interrupt(program.pid)
        os.waitpid(program.pid, ptrace.WALL)
        mm = Mm(program.pid)
        try:
            yield Tracee(program.pid, Process(program.pid, mm, {}), lambda *_: None, getcurrent())
        finally:
            os.close(mm.mem)
            program.kill()


def test_a_stopped_thread_is_not_gone() -> None:
    with stopped("cat") as tracee:
        assert not tracee.gone
        assert not tracee.mm.gone


def test_a_killed_thread_is_gone() -> None:
    with stopped("cat") as tracee:
        os.kill(tracee.tid, signal.SIGKILL)
        assert tracee.gone
        os.waitid(os.P_PID, tracee.tid, os.WEXITED | os.WNOWAIT)
        assert tracee.mm.gone


def test_a_thread_is_gone_from_memory_that_an_exec_has_taken() -> None:
    with stopped("sh", "-c", "read line; exec cat") as tracee:
        # The new program stands at its exec stop, which has not been waited for.
        ptrace.cont(tracee.tid)
        Path(f"/proc/{tracee.tid}/fd/0").write_text("\n", encoding="ascii")
        os.waitid(os.P_PID, tracee.tid, os.WSTOPPED | os.WNOWAIT)
        assert tracee.mm.gone
        assert tracee.gone
