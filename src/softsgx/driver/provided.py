# SPDX-License-Identifier: Apache-2.0
"""The backing store that a program, or whoever runs it, provides: files or memory, one or two.

Owns the extents.  A store that may keep its caller waiting (a file that is served late, memory whose
pages are) is reached through a worker, so that a bad store is the trouble of its own enclave only.
"""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from softsgx.arch.secinfo import PAGE_SIZE
from softsgx.driver.backing import (
    NO_PCMD,
    PCMD_SHIFT,
    PCMD_SIZE,
    Backing,
    BackingFault,
    BackingStalled,
    Evicted,
    Held,
    writes,
)
from softsgx.driver.extent import Extent
from softsgx.driver.worker import Job, Worker

_Answer = TypeVar("_Answer")


class ExtentBacking:
    """Contents in one extent, PCMDs in another, or from ``pcmds_at`` on in the same.

    Its methods wait as long as its extents do.  ``released`` is called when they are closed.
    """

    kills = False
    stalled = False
    stalls = 0

    def __init__(
        self,
        contents: Extent,
        pcmds: Extent,
        pcmds_at: int,
        *,
        kill_on_error: bool,
        released: Callable[[], object],
    ) -> None:
        self._contents = contents
        self._pcmds = pcmds
        self._pcmds_at = pcmds_at
        self.kill_on_error = kill_on_error
        self._released = released
        self._closed = False
        self._held = Held()

    @property
    def waits(self) -> bool:
        """Whether a method may keep its caller waiting."""
        return self._contents.waits or self._pcmds.waits

    @property
    def gone(self) -> bool:
        """Whether the memory's process has ended."""
        return self._contents.gone or self._pcmds.gone

    @property
    def pages_held(self) -> int:
        """The pages whose contents are in the store now."""
        return self._held.pages

    @property
    def bytes_held(self) -> int:
        """What they and their pages of PCMDs occupy."""
        return self._held.bytes

    def pin(self, indices: list[int]) -> list[int]:
        """Return those of the pages whose two places can be written now."""
        return [index for index in indices if self._reserve(index)]

    def _reserve(self, index: int) -> bool:
        if index in self._held:
            return True
        try:
            self._contents.reserve(index * PAGE_SIZE, PAGE_SIZE)
            self._pcmds.reserve(self._pcmds_at + index * PCMD_SIZE, PCMD_SIZE)
        except OSError:
            return False
        return True

    def store(self, pages: list[Evicted]) -> int:
        """Write contents and PCMDs; return how many pages, from the first, are in the store."""
        stored = 0
        for run in writes(pages):
            first = run[0][0]
            for index, _, _ in run:
                self._held.add(index)
            try:
                self._contents.write(first * PAGE_SIZE, [page[1] for page in run])
                self._pcmds.write(self._pcmds_at + first * PCMD_SIZE, [page[2] for page in run])
            except OSError:
                # What is there of the run may not stay.
                self.forget(run)
                break
            stored += len(run)
        return stored

    def forget(self, pages: list[Evicted]) -> None:
        """Discard pages that do not count as stored."""
        for index, _, _ in pages:
            self.discard(index)

    def load(self, index: int) -> tuple[bytes, bytes]:
        """Return a page's contents and PCMD; BackingFault."""
        return self.load_run(index, 1)

    def load_run(self, index: int, count: int) -> tuple[bytes, bytes]:
        """Return contents and PCMDs of neighbours; BackingFault."""
        try:
            return (
                self._contents.read(index * PAGE_SIZE, count * PAGE_SIZE),
                self._pcmds.read(self._pcmds_at + index * PCMD_SIZE, count * PCMD_SIZE),
            )
        except OSError as error:
            raise BackingFault(
                f"page {index:#x} of the backing cannot be read: {error.strerror}"
            ) from error

    def load_now(self, index: int, count: int) -> tuple[bytes, bytes] | None:
        """Return contents and PCMDs of neighbours if nothing has to be waited for, else None."""
        contents = self._contents.read_now(index * PAGE_SIZE, count * PAGE_SIZE)
        if contents is None:
            return None
        pcmds_at = self._pcmds_at + index * PCMD_SIZE
        pcmds = self._pcmds.read_now(pcmds_at, count * PCMD_SIZE)
        return None if pcmds is None else (contents, pcmds)

    def discard(self, index: int) -> None:
        """Make the PCMD zero and, where the store punches, a hole of the contents."""
        if index not in self._held:
            return
        last = self._held.remove(index)
        try:
            if self._contents.punches:
                self._contents.punch(index * PAGE_SIZE, PAGE_SIZE)
            if last and self._pcmds.punches:
                group = index >> PCMD_SHIFT
                self._pcmds.punch(self._pcmds_at + group * PAGE_SIZE, PAGE_SIZE)
            if not last or not self._pcmds.punches:
                self._pcmds.write(self._pcmds_at + index * PCMD_SIZE, [NO_PCMD])
        except OSError:
            # The page is in the EPC again; what a broken store keeps of it is ciphertext.
            return

    def discard_run(self, index: int, count: int) -> None:
        """Discard neighbours."""
        for at in range(index, index + count):
            self.discard(at)

    def tidy(self) -> None:
        """Do nothing: what is discarded is so at once, for the store's owner sees it."""

    def close(self) -> None:
        """Give the extents back, once."""
        if self._closed:
            return
        self._closed = True
        self._held.clear()
        self._contents.close()
        if self._pcmds is not self._contents:
            self._pcmds.close()
        self._released()


class BoundedBacking:
    """A store whose methods may wait, made one whose methods do not: see worker.py."""

    kills = False

    def __init__(self, store: ExtentBacking, worker: Worker) -> None:
        self._store = store
        self._worker = worker
        self.kill_on_error = store.kill_on_error
        self.stalls = 0
        # What was read when nobody waited for it any more, for who comes for it.
        self._late: dict[int, Job[tuple[bytes, bytes]]] = {}
        self._closed = False

    @property
    def gone(self) -> bool:
        """Whether the memory's process has ended."""
        return self._store.gone

    @property
    def pages_held(self) -> int:
        """The pages whose contents are in the store now."""
        return self._store.pages_held

    @property
    def bytes_held(self) -> int:
        """What they and their pages of PCMDs occupy."""
        return self._store.bytes_held

    @property
    def stalled(self) -> bool:
        """Whether the store has not answered yet."""
        return self._worker.stalled

    def pin(self, indices: list[int]) -> list[int]:
        """Return those of the pages whose two places can be written now; none of a store that stalls."""
        try:
            return self._ask(partial(self._store.pin, indices))
        except (BackingStalled, BackingFault):
            return []

    def _ask(
        self, work: Callable[[], _Answer], late: Callable[[Job[_Answer]], None] | None = None
    ) -> _Answer:
        if self._closed:
            raise BackingFault("the store is closed")
        try:
            return self._worker.ask(work, late)
        except BackingStalled:
            self.stalls += 1
            raise

    def store(self, pages: list[Evicted]) -> int:
        """Write contents and PCMDs; return how many pages, from the first, are in the store.

        None where the store stalls: a write cannot be called back, but it ends some time, and then
        what it has stored is discarded.
        """

        def forget(_: Job[int]) -> None:
            self._store.forget(pages)

        try:
            return self._ask(partial(self._store.store, pages), forget)
        except (BackingStalled, BackingFault):
            return 0

    def load(self, index: int) -> tuple[bytes, bytes]:
        """Return a page's contents and PCMD; BackingFault, BackingStalled."""
        if not self._closed and not self._worker.stalled:
            late = self._late.pop(index, None)
            if late is not None:
                return late.outcome()
            now = self._store.load_now(index, 1)
            if now is not None:
                return now

        # Asked again, a store that is always late would be late again.
        def keep(job: Job[tuple[bytes, bytes]]) -> None:
            self._late[index] = job

        return self._ask(partial(self._store.load, index), keep)

    def load_run(self, index: int, count: int) -> tuple[bytes, bytes]:
        """Return contents and PCMDs of neighbours; BackingStalled where they have to be waited for."""
        if not self._closed and not self._worker.stalled:
            now = self._store.load_now(index, count)
            if now is not None:
                return now
        raise BackingStalled("nobody waits for what is not asked for")

    def discard(self, index: int) -> None:
        """Make the PCMD zero and, where the store punches, a hole of the contents; later, if the store stalls."""
        if not self._closed:
            self._worker.post(partial(self._discard, index))

    def _discard(self, index: int) -> None:
        self._late.pop(index, None)
        self._store.discard(index)

    def discard_run(self, index: int, count: int) -> None:
        """Discard neighbours."""
        for at in range(index, index + count):
            self.discard(at)

    def tidy(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Give the store up, when it has answered."""
        if not self._closed:
            self._closed = True
            self._worker.end(self._store.close)


def bounded(store: ExtentBacking, ready: Callable[[], None]) -> Backing:
    """Return a store that keeps nobody waiting; OSError if it needs a thread and there is none."""
    return BoundedBacking(store, Worker(ready)) if store.waits else store
