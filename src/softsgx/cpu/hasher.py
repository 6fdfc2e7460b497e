# SPDX-License-Identifier: Apache-2.0
"""A running measurement whose long ranges are hashed in the background.

Owns one lock, which nobody holds while calling anything else; a thread exists only while there is work.
Hashing releases the interpreter's lock, so that it overlaps the copying of the next piece. The data
handed over are the caller's copy: what happens to the page afterwards cannot change the measurement.
"""

from collections import deque

from softsgx.image.measurement import Measurement

# What may wait to be hashed, in bytes: enough to keep the thread busy, little enough to stay cheap.
_QUEUED = 16 << 20


class Hasher:
    """The measurement of one enclave, in the order of the calls; one caller at a time."""

    __slots__ = ("_changed", "_failure", "_measurement", "_queue", "_queued", "_running")

    def __init__(self) -> None:
        import threading  # noqa: PLC0415  # a program that creates no enclave need not pay for it

        self._failure: BaseException | None = None
        self._measurement = Measurement()
        self._queue: deque[tuple[int, int, bytes]] = deque()
        self._queued = 0
        self._running = False
        self._changed = threading.Condition()

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

    def add_pages(self, offset: int, secinfo_flags: int, data: bytes) -> None:
        """Update as EADD and 16 EEXTENDs of each page do, here and now."""
        self.finish()
        self._measurement.add_pages(offset, secinfo_flags, data, measured=True)

    def add_unmeasured(self, offset: int, secinfo_flags: int, count: int) -> None:
        """Update as EADD of so many pages does."""
        self.finish()
        self._measurement.add_unmeasured(offset, secinfo_flags, count)

    def add_pages_later(self, offset: int, secinfo_flags: int, data: bytes) -> None:
        """Update as ``add_pages`` does, in the background; waits only while much is queued."""
        with self._changed:
            self._changed.wait_for(lambda: self._queued < _QUEUED)
            self._queue.append((offset, secinfo_flags, data))
            self._queued += len(data)
            if not self._running:
                self._running = True
                import threading  # noqa: PLC0415

                threading.Thread(target=self._run, name="softsgx-hasher", daemon=True).start()

    def finish(self) -> None:
        """Wait until everything that was handed over is in the measurement."""
        if self._running:
            with self._changed:
                self._changed.wait_for(lambda: not self._running)
        if self._failure is not None:
            raise self._failure

    def digest(self) -> bytes:
        """Return MRENCLAVE of what was added so far."""
        self.finish()
        return self._measurement.digest()

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._queue:
                    self._running = False
                    self._changed.notify_all()
                    return
                offset, secinfo_flags, data = self._queue.popleft()
            try:
                self._measurement.add_pages(offset, secinfo_flags, data, measured=True)
            except BaseException as failure:  # noqa: BLE001  # it is raised where somebody waits
                self._failure = failure
            with self._changed:
                self._queued -= len(data)
                self._changed.notify_all()
