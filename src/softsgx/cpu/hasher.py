# SPDX-License-Identifier: Apache-2.0
"""A running measurement whose long ranges are hashed in the background.

Owns one lock, which nobody holds while calling anything else, and a thread while there is work. The
caller reads the contents back to where the stream wants them, the thread hashes, and reads too where it
would soon have nothing to hash. Both spend their time outside the interpreter's lock, and so does
whoever copies the next pages meanwhile. What was read is a copy, and ``add_pages`` returns when all is
read: what happens to the pages afterwards cannot change the measurement.
"""

from collections import deque

from softsgx.arch.secinfo import PAGE_SIZE
from softsgx.cpu.memory import Elrange, ScatteredReads
from softsgx.cpu.page_stream import PAGES, PageStream
from softsgx.image.measurement import Measurement

# From so many pages on, the background pays.
_BACKGROUND = 64
# Streams (1.3 MB each) that may be in flight.
_STREAMS = 6
# So many are hashed while the next pages (2 MiB) are copied.
_AHEAD = 2
# The next pages are a copy away: the thread waits so long for them (seconds) before it ends.
_IDLE = 0.01


class _Batch:
    """Pages on their way into the measurement; once they are read, ``stream`` holds the contents."""

    __slots__ = ("address", "count", "elrange", "flags", "offset", "stream")

    def __init__(
        self, elrange: ScatteredReads, address: int, offset: int, flags: int, count: int
    ) -> None:
        self.elrange = elrange
        self.address = address
        self.offset = offset
        self.flags = flags
        self.count = count
        self.stream: PageStream | None = None


class Hasher:
    """The measurement of one enclave, in the order of the calls; one caller at a time."""

    __slots__ = (
        *("_ahead", "_changed", "_failure", "_free", "_made", "_measurement", "_reading"),
        *("_running", "_unhashed", "_unread"),
    )

    def __init__(self) -> None:
        import threading  # noqa: PLC0415  # a program that creates no enclave need not pay for it

        self._changed = threading.Condition()
        self._measurement = Measurement()
        # Batches that nobody has begun to read; those that somebody has and that are not hashed yet.
        self._unread: deque[_Batch] = deque()
        self._unhashed: deque[_Batch] = deque()
        # How many are being read, and how many are read.
        self._reading = 0
        self._ahead = 0
        # Streams to be used again, and how many there are in all.
        self._free: list[PageStream] = []
        self._made = 0
        self._running = False
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

        Their contents have been read when it returns. What fails ends the measurement: it is raised
        here, and by every later call that needs what is in it.
        """
        if count < _BACKGROUND or not isinstance(elrange, ScatteredReads):
            self.finish()
            data = elrange.read(base + offset, count * PAGE_SIZE)
            self._measurement.add_pages(offset, secinfo_flags, data, measured=True)
            return
        with self._changed:
            self._keep_running()
            for start in range(offset, offset + count * PAGE_SIZE, PAGES * PAGE_SIZE):
                pages = min(PAGES, count - (start - offset) // PAGE_SIZE)
                self._unread.append(_Batch(elrange, base + start, start, secinfo_flags, pages))
            while self._unread:
                if self._has_stream():
                    self._read()
                else:
                    self._changed.wait()
            self._changed.wait_for(lambda: not self._reading)
        self._raise_failure()

    def finish(self) -> None:
        """Wait until everything that was read is in the measurement."""
        with self._changed:
            self._changed.wait_for(lambda: not self._unhashed)
        self._raise_failure()

    def digest(self) -> bytes:
        """Return MRENCLAVE of what was added so far."""
        self.finish()
        # EINIT asks: no more is to be expected.
        self._free.clear()
        self._made = 0
        return self._measurement.digest()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    # What follows is called with the lock held.

    def _keep_running(self) -> None:
        self._raise_failure()
        self._changed.notify_all()
        if not self._running:
            import threading  # noqa: PLC0415  # loaded already

            threading.Thread(target=self._run, name="softsgx-hasher", daemon=True).start()
            self._running = True

    def _run(self) -> None:
        with self._changed:
            while True:
                stream = self._unhashed[0].stream if self._unhashed else None
                if self._unread and self._ahead < _AHEAD and self._has_stream():
                    self._read()
                elif stream is not None:
                    self._hash(self._unhashed[0], stream)
                elif not (self._changed.wait(_IDLE) or self._unread or self._unhashed):
                    self._running = False
                    return

    def _has_stream(self) -> bool:
        return bool(self._free) or self._made < _STREAMS

    def _read(self) -> None:
        """Read the next batch; the lock is free meanwhile."""
        batch = self._unread.popleft()
        self._unhashed.append(batch)
        stream = self._free.pop() if self._free else None
        self._made += stream is None
        self._reading += 1
        self._changed.release()
        failure = None
        try:
            stream = stream or PageStream()
            stream.read(batch.elrange, batch.address, batch.count)
        except BaseException as raised:  # noqa: BLE001  # it is raised where somebody waits
            failure = raised
        self._changed.acquire()
        batch.stream = stream
        self._reading -= 1
        self._ahead += 1
        self._done(failure)

    def _hash(self, batch: _Batch, stream: PageStream) -> None:
        """Hash the first batch; the lock is free meanwhile."""
        self._changed.release()
        failure = None
        try:
            self._measurement.add_stream(stream.labelled(batch.offset, batch.flags, batch.count))
        except BaseException as raised:  # noqa: BLE001  # it is raised where somebody waits
            failure = raised
        self._changed.acquire()
        if self._failure is None:
            self._unhashed.popleft()
        self._ahead -= 1
        self._free.append(stream)
        self._done(failure)

    def _done(self, failure: BaseException | None) -> None:
        if failure is not None:
            self._failure = failure
            self._unread.clear()
            self._unhashed.clear()
        self._changed.notify_all()
