# SPDX-License-Identifier: Apache-2.0
"""A running measurement whose long ranges are read back and hashed in the background.

Owns one lock, which nobody holds while calling anything else, and two threads while there is work: one
lays out the stream of a piece, the other hashes the piece before. Both spend their time outside the
interpreter's lock, so that they overlap the copying of the next piece. The layout is a copy: once
``settle`` has returned, what happens to the pages cannot change the measurement.
"""

from collections import deque
from collections.abc import Callable

from softsgx.arch.secinfo import PAGE_SIZE
from softsgx.cpu.memory import Elrange, ScatteredReads
from softsgx.cpu.page_stream import PAGES, PageStream, StreamMeasurement

# From so many pages on, the background pays.
_BACKGROUND = 64
# Streams (1.3 MB each) that may be in flight.
_STREAMS = 6
# The next piece is a copy away: a thread waits so long for it (seconds) before it ends.
_IDLE = 0.005

_Piece = tuple[ScatteredReads, int, int, int, int]


class Hasher:
    """The measurement of one enclave, in the order of the calls; one caller at a time."""

    __slots__ = (
        *("_changed", "_failure", "_free", "_hashing", "_laid_out", "_made", "_measurement"),
        *("_pieces", "_reading", "_unread"),
    )

    def __init__(self) -> None:
        import threading  # noqa: PLC0415  # a program that creates no enclave need not pay for it

        self._changed = threading.Condition()
        self._measurement = StreamMeasurement()
        # Pieces to be read, streams to be hashed, streams to be used again.
        self._pieces: deque[_Piece] = deque()
        self._laid_out: deque[tuple[PageStream, memoryview]] = deque()
        self._free: list[PageStream] = []
        self._made = 0
        # Pieces handed over and not yet copied; whether the two threads run.
        self._unread = 0
        self._reading = False
        self._hashing = False
        self._failure: BaseException | None = None

    def ecreate(self, ssaframesize: int, size: int) -> None:
        """Update as ECREATE does."""
        self._measurement.ecreate(ssaframesize, size)

    def eadd(self, offset: int, secinfo_flags: int) -> None:
        """Update as EADD does."""
        self.finish()
        self._measurement.eadd(offset, secinfo_flags)

    def eextend(self, offset: int, data: bytes) -> None:
        """Update as EEXTEND of 256 bytes does."""
        self.finish()
        self._measurement.eextend(offset, data)

    def add_unmeasured(self, offset: int, secinfo_flags: int, count: int) -> None:
        """Update as EADD of so many pages does."""
        self.finish()
        self._measurement.add_unmeasured(offset, secinfo_flags, count)

    def add_pages(
        self, elrange: Elrange, base: int, offset: int, secinfo_flags: int, count: int
    ) -> None:
        """Update as EADD and 16 EEXTENDs do of each of ``count`` pages at ``base + offset``.

        Until ``settle`` returns, nobody may change the pages.
        """
        if count < _BACKGROUND or not isinstance(elrange, ScatteredReads):
            self.finish()
            data = elrange.read(base + offset, count * PAGE_SIZE)
            self._measurement.add_pages(offset, secinfo_flags, data, measured=True)
            return
        with self._changed:
            for first in range(0, count, PAGES):
                pages = min(PAGES, count - first)
                self._pieces.append(
                    (elrange, base, offset + first * PAGE_SIZE, secinfo_flags, pages)
                )
                self._unread += 1
            if self._reading:
                self._changed.notify_all()
                return
            self._reading = True
        _start(self._read)

    def settle(self) -> None:
        """Wait until the contents of all pages that were handed over have been copied."""
        with self._changed:
            self._changed.wait_for(lambda: not self._unread)

    def finish(self) -> None:
        """Wait until everything that was handed over is in the measurement."""
        with self._changed:
            self._changed.wait_for(lambda: not self._unread and len(self._free) == self._made)
        if self._failure is not None:
            raise self._failure

    def digest(self) -> bytes:
        """Return MRENCLAVE of what was added so far."""
        self.finish()
        # No more is to be expected: EINIT asks.
        with self._changed:
            self._free.clear()
            self._made = 0
        return self._measurement.digest()

    def _read(self) -> None:
        while True:
            with self._changed:
                if not self._changed.wait_for(lambda: self._pieces, _IDLE):
                    self._reading = False
                    return
                elrange, base, offset, secinfo_flags, count = self._pieces.popleft()
                if not self._free and self._made == _STREAMS:
                    self._changed.wait_for(lambda: self._free)
                stream = self._free.pop() if self._free else None
                if stream is None:
                    self._made += 1
            if stream is None:
                stream = PageStream()
            blocks = memoryview(b"")
            try:
                blocks = stream.of(elrange, base, offset, secinfo_flags, count)
            except BaseException as failure:  # noqa: BLE001  # it is raised where somebody waits
                self._failure = failure
            with self._changed:
                self._laid_out.append((stream, blocks))
                self._unread -= 1
                self._changed.notify_all()
                if self._hashing:
                    continue
                self._hashing = True
            _start(self._hash)

    def _hash(self) -> None:
        while True:
            with self._changed:
                if not self._changed.wait_for(lambda: self._laid_out, _IDLE):
                    self._hashing = False
                    return
                stream, blocks = self._laid_out.popleft()
            self._measurement.add_blocks(blocks)
            with self._changed:
                self._free.append(stream)
                self._changed.notify_all()


def _start(target: Callable[[], None]) -> None:
    import threading  # noqa: PLC0415  # loaded already

    threading.Thread(target=target, name="softsgx-hasher", daemon=True).start()
