# SPDX-License-Identifier: Apache-2.0
"""Keeps every userfaultfd open until the traced programs are dead.

Owns a small process with a duplicate of each, for as long as that program lives. Were the supervisor's
descriptors the only ones, a program could, between the supervisor's death and its own (PTRACE_O_EXITKILL),
touch a hole of its enclave and read a silent zero page.
"""

import os
import select
import time

from softsgx.run import descriptors, signals
from softsgx.run import numbers as n

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket

# A program that does not die of EXITKILL within this time hangs in the kernel for good.
_PATIENCE = 10.0


class Keeper:
    """The supervisor's end."""

    def __init__(self) -> None:
        self._socket: socket | None = None
        self.pid = 0  # until it was waited for

    def keep(self, uffd: int, pid: int) -> None:
        """Hand over a duplicate of the userfaultfd of process `pid`."""
        said = pid.to_bytes(4, "little")
        try:
            descriptors.send(self._running(), said, uffd)
        except (BrokenPipeError, ConnectionResetError):
            # Somebody has killed it. What it held the supervisor has still; who maps from now on is
            # as safe as before.
            self.close()
            descriptors.send(self._running(), said, uffd)

    def has_ended(self) -> None:
        """Take note that it was waited for: its id may be another's from now on."""
        self.pid = 0
        self.close()

    def close(self) -> None:
        """Let the keeper go."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self.pid:
            # Somebody may have stopped it.
            os.kill(self.pid, n.SIGCONT)
            os.waitpid(self.pid, 0)
            self.pid = 0

    def _running(self) -> "socket":
        if self._socket is None:
            self._socket = self._start()
        return self._socket

    def _start(self) -> "socket":
        ours, theirs = descriptors.pair()
        # Of a stop and a SIGCONT that come during a fork the child gets the stop alone, unless its
        # parent blocks SIGCONT: ignored, it is dropped too early (kernel/signal.c, __send_signal_locked).
        mask = signals.block(signals.bits(n.SIGCONT))
        self.pid = os.fork()
        if self.pid == 0:
            try:
                _keep(theirs)
            finally:
                os._exit(0)
        signals.set_mask(mask)
        theirs.close()
        return ours


def _keep(channel: "socket") -> None:
    # A terminal's signals must not end it before the programs have ended.
    signals.ignore(signals.SIGINT, signals.SIGQUIT, signals.SIGTERM, signals.SIGHUP)
    fd = channel.fileno()
    highest = os.sysconf("SC_OPEN_MAX")
    os.closerange(0, fd)
    os.closerange(fd + 1, min(highest, 1 << 20))
    held = _Held()
    held.poll.register(fd, select.POLLIN)
    while True:
        # Those that have ended first: their descriptors' numbers may be given again.
        if not held.let_go(held.poll.poll(), fd):
            continue
        data, uffd = descriptors.receive(channel)
        if not data:
            break
        if uffd >= 0:
            held.take(int.from_bytes(data, "little"), uffd)
    held.poll.unregister(fd)
    deadline = time.monotonic() + _PATIENCE
    while held.processes and time.monotonic() < deadline:
        held.let_go(held.poll.poll(max(0.0, deadline - time.monotonic()) * 1000), fd)


class _Held:
    """What the keeper holds: for each living process its userfaultfd, by its pidfd."""

    def __init__(self) -> None:
        self.poll = select.poll()
        self.processes: dict[int, tuple[int, int]] = {}

    def take(self, pid: int, uffd: int) -> None:
        """Hold the userfaultfd of a process, instead of the one of before its last exec."""
        for pidfd, (other, _) in list(self.processes.items()):
            if other == pid:
                self._close(pidfd)
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            os.close(uffd)
            return
        except OSError:
            return  # no descriptor left: this one stays open until the keeper ends
        self.processes[pidfd] = pid, uffd
        self.poll.register(pidfd, select.POLLIN)

    def let_go(self, events: list[tuple[int, int]], channel: int) -> bool:
        """Close what belonged to processes that have ended; tell whether the channel is ready."""
        for ready, _ in events:
            if ready != channel:
                self._close(ready)
        return any(ready == channel for ready, _ in events)

    def _close(self, pidfd: int) -> None:
        self.poll.unregister(pidfd)
        _, uffd = self.processes.pop(pidfd)
        os.close(pidfd)
        os.close(uffd)
