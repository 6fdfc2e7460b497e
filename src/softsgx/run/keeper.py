# SPDX-License-Identifier: Apache-2.0
"""Keeps every userfaultfd open until the traced programs are dead.

Owns a small process with a duplicate of each. Were the supervisor's descriptors the only ones,
a program could, between the supervisor's death and its own (PTRACE_O_EXITKILL), touch a hole of
its enclave and read a silent zero page.
"""

import contextlib
import os
import select
import signal
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket

# A program that does not die of EXITKILL within this time hangs in the kernel for good.
_PATIENCE = 10.0


class Keeper:
    """The supervisor's end."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self.pid = 0

    def keep(self, uffd: int, pid: int) -> None:
        """Hand over a duplicate of the userfaultfd of process `pid`."""
        if self._socket is None:
            self._start()
        if self._socket is not None:
            import socket  # noqa: PLC0415  (most programs map no enclave)

            socket.send_fds(self._socket, [pid.to_bytes(4, "little")], [uffd])

    def close(self) -> None:
        """Let the keeper go."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.pid, 0)

    def _start(self) -> None:
        import socket  # noqa: PLC0415

        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = os.fork()
        if self.pid == 0:
            try:
                _keep(theirs.detach())
            finally:
                os._exit(0)
        theirs.close()
        self._socket = ours


def _keep(fd: int) -> None:
    # A terminal's signals must not end it before the programs have ended.
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    highest = os.sysconf("SC_OPEN_MAX")
    os.closerange(0, fd)
    os.closerange(fd + 1, min(highest, 1 << 20))
    import socket  # noqa: PLC0415

    pids = set()
    with socket.socket(fileno=fd) as channel:
        while True:
            data, _, _, _ = socket.recv_fds(channel, 4, 1)
            if not data:
                break
            # The descriptor that came along stays open by never being closed.
            pids.add(int.from_bytes(data, "little"))
    _wait_for(pids)


def _wait_for(pids: set[int]) -> None:
    waiting = []
    for pid in pids:
        try:
            waiting.append(os.pidfd_open(pid))
        except OSError:
            continue
    deadline = time.monotonic() + _PATIENCE
    for pidfd in waiting:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
