# SPDX-License-Identifier: Apache-2.0
"""A thread for what may keep its caller waiting: nobody waits for it longer than a moment.

Owns the thread and two eventfds.  One piece of work is outstanding at a time; what belongs behind it is
queued.  The lock is for the moment in which one side gives up while the other is done.
"""

import _thread
import errno
import os
import select
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Generic, TypeVar

from softsgx.driver.backing import BackingStalled

T = TypeVar("T")

# A disk answers in less; what takes longer waits for somebody who may never answer.
PATIENCE_MS = 50
# So often again where it is not the store that is late, but the thread's turn on a busy machine.
_TURNS = 40


class Job(Generic[T]):
    """A piece of work; ``late`` is done behind it by the worker, if nobody waits for it any more."""

    __slots__ = ("abandoned", "done", "error", "late", "result", "work")

    def __init__(self, work: Callable[[], T], late: "Callable[[Job[T]], None] | None") -> None:
        self.work = work
        self.late = late
        self.result: T | None = None
        self.error: Exception | None = None
        self.done = False
        self.abandoned = False

    def do(self) -> None:
        """Do the work, on whichever thread."""
        try:
            self.result = self.work()
        except Exception as error:  # noqa: BLE001 - whoever asked for it gets it
            self.error = error

    def outcome(self) -> T:
        """Return what the work returned, or raise what it raised."""
        if self.error is not None:
            raise self.error
        return self.result  # type: ignore[return-value]  # T may be None


class Worker:
    """Does one thing after another; ``ready`` is called, by the worker's thread, when it is free after a stall."""

    def __init__(self, ready: Callable[[], None]) -> None:
        self._ready = ready
        self._lock = _thread.allocate_lock()
        self._asked = os.eventfd(0, os.EFD_CLOEXEC)
        self._answered = os.eventfd(0, os.EFD_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._answered, select.POLLIN)
        self._job: Job[Any] | None = None
        self._queue: deque[Callable[[], object]] = deque()
        self._ending = False
        self._tid = 0
        try:
            # The threading module would cost every start a millisecond.
            _thread.start_new_thread(self._run, ())
        except RuntimeError as error:
            self._close()
            raise OSError(errno.EAGAIN, "no more threads can be started") from error

    @property
    def busy(self) -> bool:
        """Whether something is outstanding for which nobody waits any more."""
        return self._job is not None

    def ask(self, work: Callable[[], T], late: Callable[[Job[T]], None] | None = None) -> T:
        """Have work done and return its result; BackingStalled at once if the worker is busy, else after a moment.

        ``late`` is called by the worker's thread when work that nobody waits for any more is done.
        """
        if self._job is not None:
            raise BackingStalled("the store has not answered yet")
        job = Job(work, late)
        self._job = job
        os.eventfd_write(self._asked, 1)
        turns = _TURNS
        while not self._poll.poll(PATIENCE_MS):
            turns -= 1
            if turns and self._runs():
                continue
            with self._lock:
                if not job.done:
                    job.abandoned = True
                    raise BackingStalled(f"the store has not answered for {PATIENCE_MS} ms")
        os.eventfd_read(self._answered)
        self._job = None
        return job.outcome()

    def _runs(self) -> bool:
        """Tell whether the thread waits for a processor, and for nothing else."""
        try:
            with open(f"/proc/self/task/{self._tid}/stat", "rb") as stat:  # noqa: PTH123
                return stat.read().rpartition(b") ")[2].startswith(b"R")
        except OSError:
            return self._tid == 0  # it has not begun

    def post(self, work: Callable[[], object]) -> None:
        """Have work done behind what is outstanding; nobody asks for its result."""
        with self._lock:
            if self._job is not None:
                self._queue.append(work)
                return
        try:
            self.ask(work)
        except BackingStalled:
            return

    def end(self, last: Callable[[], object]) -> None:
        """Have the last work done, and let the thread end."""
        with self._lock:
            self._ending = True
            if self._job is not None:
                self._queue.append(last)
                return
        try:
            self.ask(last)
        except BackingStalled:
            return
        # It waits for work again, and there is none.
        os.eventfd_write(self._asked, 1)

    def _run(self) -> None:
        self._tid = _thread.get_native_id()
        while True:
            os.eventfd_read(self._asked)
            job = self._job
            if job is None:
                break
            job.do()
            with self._lock:
                job.done = True
                abandoned = job.abandoned
            if not abandoned:
                os.eventfd_write(self._answered, 1)
                continue
            if self._catch_up(job):
                break
            self._ready()
        self._close()

    def _catch_up(self, job: Job[Any]) -> bool:
        """Do what belongs behind work that came late, and be free; True if the thread ends."""
        if job.late is not None:
            Job(partial(job.late, job), None).do()
        while True:
            with self._lock:
                if not self._queue:
                    self._job = None
                    return self._ending
                work = self._queue.popleft()
            Job(work, None).do()

    def _close(self) -> None:
        os.close(self._asked)
        os.close(self._answered)
