# SPDX-License-Identifier: Apache-2.0
"""Many measured pages: one thread reads the next of them into the stream while another hashes the last.

Both give up the interpreter's lock for their work. Owns the hashing thread and the buffers, of which there is a
fixed number: memory does not grow with the enclave.
"""

from __future__ import annotations

from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any

from softsgx.arch.secinfo import PAGE_SIZE
from softsgx.image.file import Part
from softsgx.image.measurement import PageStream

if TYPE_CHECKING:
    from softsgx.image.measurement import Measurement
    from softsgx.image.stream import PageRun

# So large that handing a stream over does not count, so small that it stays in the cache (664 KiB each).
_PAGES = 128
_STREAMS = 3


def measure_long(measurement: Measurement, run: PageRun) -> None:
    """Update a measurement by a run of measured pages; none of them is a TCS."""
    free: SimpleQueue[PageStream] = SimpleQueue()
    filled: SimpleQueue[tuple[PageStream, Any] | None] = SimpleQueue()
    for _ in range(_STREAMS):
        free.put(PageStream(_PAGES, run.secinfo_flags))

    def hash_filled() -> None:
        while (item := filled.get()) is not None:
            stream, content = item
            measurement.add_stream(content)
            free.put(stream)

    thread = Thread(target=hash_filled, name="softsgx-hash", daemon=True)
    thread.start()
    try:
        source = memoryview(bytearray(_PAGES * PAGE_SIZE))
        for start in range(0, run.length, _PAGES * PAGE_SIZE):
            length = min(_PAGES * PAGE_SIZE, run.length - start)
            stream = free.get()
            if run.data is None:
                content = stream.move(run.offset + start, length // PAGE_SIZE)
            elif isinstance(run.data, Part):
                run.data.read_into(start, source[:length])
                content = stream.fill(run.offset + start, source[:length])
            else:
                content = stream.fill(run.offset + start, run.data[start : start + length])
            filled.put((stream, content))
    finally:
        filled.put(None)
        thread.join()
