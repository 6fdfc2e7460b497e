# SPDX-License-Identifier: Apache-2.0
"""A thread for what may keep its caller waiting: nobody waits for it longer than a moment.

Owns the thread and two eventfds.  Work is done in the order in which it was given.  The lock is for the
queue, and for the moment in which one side gives up while the other is done.
"""

import _thread
import contextlib
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

    __slots__ = ("abandoned", "awaited", "done", "error", "late", "result", "work")

    def __init__(
        self, work: Callable[[], T], late: "Callable[[Job[T]], None] | None", *, awaited: bool
    ) -> None:
        self.work = work
        self.late = late
        self.awaited = awaited
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
    """Does one thing after another; ``ready`` is called, by its thread, when it has caught up after a stall.

    ``stalled`` tells that somebody has given up waiting, and that nobody may ask before that.
    """

    def __init__(self, ready: Callable[[], None]) -> None:
        self._ready = ready
        self._lock = _thread.allocate_lock()
        # Counts what is in the queue: whoever takes the last piece knows that nothing comes after it.
        self._given = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_SEMAPHORE)
        self._answered = os.eventfd(0, os.EFD_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._answered, select.POLLIN)
        self._queue: deque[Job[Any] | None] = deque()
        self.stalled = False
        self._tid = 0
        try:
            # The threading module would cost every start a millisecond.
            _thread.start_new_thread(self._run, ())
        except RuntimeError as error:
            os.close(self._given)
            os.close(self._answered)
            raise OSError(errno.EAGAIN, "no more threads can be started") from error

    def ask(self, work: Callable[[], T], late: Callable[[Job[T]], None] | None = None) -> T:
        """Have work done and return its result; BackingStalled after a moment, or at once while it is stalled.

        ``late`` is called by the worker's thread when work that nobody waits for any more is done.
        """
        if self.stalled:
            raise BackingStalled("the store has not answered yet")
        job = Job(work, late, awaited=True)
        self._give(job)
        turns = _TURNS
        while not self._poll.poll(PATIENCE_MS):
            turns -= 1
            if turns and self._runs():
                continue
            with self._lock:
                if not job.done:
                    job.abandoned = self.stalled = True
                    raise BackingStalled(f"the store has not answered for {PATIENCE_MS} ms")
        os.eventfd_read(self._answered)
        return job.outcome()

    def post(self, work: Callable[[], object]) -> None:
        """Have work done of whose result nobody hears: by the time that this returns, unless it stalls."""
        if self.stalled:
            self._give(Job(work, None, awaited=False))
            return
        # Where it stalls now it is in the queue all the same.
        with contextlib.suppress(BackingStalled):
            self.ask(work)

    def _give(self, job: Job[Any] | None) -> None:
        with self._lock:
            self._queue.append(job)
        os.eventfd_write(self._given, 1)

    def _runs(self) -> bool:
        """Tell whether the thread waits for a processor, and for nothing else."""
        try:
            with open(f"/proc/self/task/{self._tid}/stat", "rb") as stat:  # noqa: PTH123
                return stat.read().rpartition(b") ")[2].startswith(b"R")
        except OSError:
            return self._tid == 0  # it has not begun

    def end(self, last: Callable[[], object]) -> None:
        """Have the last work done, and let the thread end."""
        self.post(last)
        # Nobody waits for an answer any more.
        self._give(Job(partial(os.close, self._answered), None, awaited=False))
        self._give(None)

    def _run(self) -> None:
        self._tid = _thread.get_native_id()
        while True:
            os.eventfd_read(self._given)
            with self._lock:
                job = self._queue.popleft()
            if job is None:
                break
            job.do()
            with self._lock:
                job.done = True
                abandoned = job.abandoned
            if job.awaited and not abandoned:
                os.eventfd_write(self._answered, 1)
            if abandoned and job.late is not None:
                Job(partial(job.late, job), None, awaited=False).do()
            with self._lock:
                caught_up = self.stalled and not self._queue
                if caught_up:
                    self.stalled = False
            if caught_up:
                self._ready()
        os.close(self._given)
