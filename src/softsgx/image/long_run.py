# SPDX-License-Identifier: Apache-2.0
"""Many measured pages: read into the stream and hashed, of the long runs at the same time.

For those a thread reads the next pages while what was laid out is hashed; both give up the interpreter's lock for their
work. Owns that thread and the buffers, of which there is a fixed number: memory does not grow with the enclave.
"""

from __future__ import annotations

from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any

from softsgx.arch.secinfo import PAGE_SIZE
from softsgx.image.file import Part
from softsgx.image.measurement import PageStream

if TYPE_CHECKING:
    from collections.abc import Iterator

    from softsgx.image.measurement import Measurement
    from softsgx.image.stream import PageRun

# 332 KiB of stream: what is fresh costs a page fault for each page of it, and a core's cache holds this.
_PAGES = 64
_AT_ONCE = _PAGES * PAGE_SIZE
_STREAMS = 2
# On a processor of its own the hashing hides the reading; to hand a shorter run over costs as much.
_THREAD_FROM = 8 << 20


def measure_long(measurement: Measurement, run: PageRun) -> None:
    """Update a measurement by a run of measured pages; none of them is a TCS."""
    if run.length < _THREAD_FROM:
        stream = PageStream(_PAGES, run.secinfo_flags)
        for start, content in _contents(run):
            measurement.add_stream(_laid_out(stream, run, start, content))
        return
    free: SimpleQueue[PageStream | None] = SimpleQueue()
    filled: SimpleQueue[tuple[PageStream, Any] | BaseException | None] = SimpleQueue()
    for _ in range(_STREAMS):
        free.put(PageStream(_PAGES, run.secinfo_flags))

    def read() -> None:
        try:
            for start, content in _contents(run):
                stream = free.get()
                if stream is None:
                    return
                filled.put((stream, _laid_out(stream, run, start, content)))
        except BaseException as error:  # noqa: BLE001 - it is raised where the run is measured
            filled.put(error)
        else:
            filled.put(None)

    thread = Thread(target=read, name="softsgx-read", daemon=True)
    thread.start()
    try:
        while (item := filled.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            stream, content = item
            measurement.add_stream(content)
            free.put(stream)
    finally:
        free.put(None)
        thread.join()


def _contents(run: PageRun) -> Iterator[tuple[int, memoryview | None]]:
    """Yield where in the run a batch of pages begins, and its bytes, which last until the next; None for zeros."""
    buffer = memoryview(bytearray(_AT_ONCE if isinstance(run.data, Part) else 0))
    for start in range(0, run.length, _AT_ONCE):
        length = min(_AT_ONCE, run.length - start)
        if isinstance(run.data, Part):
            run.data.read_into(start, buffer[:length])
            yield start, buffer[:length]
        else:
            yield start, None if run.data is None else run.data[start : start + length]


def _laid_out(stream: PageStream, run: PageRun, start: int, content: memoryview | None) -> Any:
    if content is None:
        return stream.move(run.offset + start, min(_AT_ONCE, run.length - start) // PAGE_SIZE)
    return stream.fill(run.offset + start, content)
