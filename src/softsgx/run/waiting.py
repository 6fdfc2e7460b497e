# SPDX-License-Identifier: Apache-2.0
"""Waits for the next stop of a traced thread, or for a descriptor that wants attention.

Owns the poll set and the bell. Between stops the supervisor sleeps in poll. A thread that enters
and leaves an enclave stops again at once, and for it the supervisor waits in wait4 itself: four
system calls less a stop, and the kernel wakes it on the thread's own processor, which is what
most of a trap costs. For that time the bell, a thread that polls the same descriptors, calls it
out of wait4 by a signal. The bell touches nothing but the flag `_waiting`.
"""

import _thread
import ctypes
import os
import select
import time

from softsgx.run import signals
from softsgx.run.ptrace import WALL, tgkill

_BELL = signals.SIGURG
_RING_AGAIN = 0.001  # seconds; a ring that comes before wait4 has begun is lost

_libc = ctypes.CDLL(None, use_errno=True)
_wait4 = _libc.wait4
_wait4.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
_status = ctypes.c_int()
_status_at = ctypes.addressof(_status)


class Waiter:
    """The one place where the supervisor sleeps."""

    def __init__(self, child: int) -> None:
        """`child` is readable at SIGCHLD, which does not ring: wait4 itself answers it."""
        self._others: list[int] = []
        self._poll = select.epoll()
        self._poll.register(child, select.EPOLLIN)
        # The same without SIGCHLD, which wait4 itself answers.
        self._look = select.epoll()
        self._waiting = False
        # What the bell polls, when there is one.
        self._bell: select.epoll | None = None
        self._pid = os.getpid()

    def watch(self, fd: int) -> None:
        """Wait for a descriptor too."""
        self._others.append(fd)
        self._poll.register(fd, select.EPOLLIN)
        self._look.register(fd, select.EPOLLIN)
        if self._bell is not None:
            self._bell.register(fd, select.EPOLLIN | select.EPOLLET)

    def forget(self, fd: int) -> None:
        """Wait for a descriptor no more; it is still open."""
        self._others.remove(fd)
        for poll in filter(None, (self._poll, self._look, self._bell)):
            poll.unregister(fd)

    def close(self) -> None:
        """Stop waiting for good."""
        self._poll.close()
        self._look.close()

    def stop(self) -> tuple[int, int]:
        """Give pid and status of a stop or end that waits now; pid 0 for none."""
        return os.waitpid(-1, os.WNOHANG | WALL)

    def next_stop(self) -> tuple[int, int]:
        """Wait for the next stop or end; pid 0 where a descriptor wants attention first."""
        if self._bell is None:
            self._start_bell()
        # What came before the flag is seen here; what comes after it rings.
        self._waiting = True
        if self._look.poll(0):
            self._waiting = False
            return 0, 0
        pid = _wait4(-1, _status_at, WALL, None)
        self._waiting = False
        if pid < 0:
            return 0, 0
        return pid, _status.value

    def ready(self, timeout: float) -> list[int]:
        """Give the descriptors that want attention; waits for one so many seconds, or for ever (-1)."""
        wanted = []
        for fd, events in self._poll.poll(timeout):
            if events == select.EPOLLHUP:
                # The listener, when nobody has the filter any more: it would say so until the end.
                self._poll.unregister(fd)
                self._look.unregister(fd)
            else:
                wanted.append(fd)
        return wanted

    def _start_bell(self) -> None:
        signals.interrupt_calls_by(_BELL)
        # Here, for where the thread begins late the run may be over, and the descriptors closed.
        self._bell = poll = select.epoll()
        for fd in self._others:
            poll.register(fd, select.EPOLLIN | select.EPOLLET)
        # The threading module would cost every start a millisecond.
        _thread.start_new_thread(self._ring, (poll,))

    def _ring(self, poll: select.epoll) -> None:
        while True:
            poll.poll(-1)
            while self._waiting:
                tgkill(self._pid, self._pid, _BELL)
                time.sleep(_RING_AGAIN)
