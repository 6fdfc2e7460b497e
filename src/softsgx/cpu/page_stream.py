# SPDX-License-Identifier: Apache-2.0
"""What EADD and 16 EEXTENDs of each of many pages add to the measurement, laid out in one buffer.

The form is that of image/measurement.py, which makes the same bytes from pages that are in memory. Here
the contents are read to their places straight away, by scattered reads, and only the offsets in the
blocks are rewritten for the next pages: a third of the time, and without numpy, whose import takes as
long as the hashing of 200 MiB.
"""

from array import array

from softsgx.arch.secinfo import EEXTEND_SIZE, PAGE_SIZE
from softsgx.cpu.memory import ScatteredReads
from softsgx.image.measurement import Measurement

# Long enough that the thread that hashes seldom has to be woken, short enough for a core's cache.
PAGES = 256
# A scattered read takes so many pieces (IOV_MAX).
_PIECES = 1024

_BLOCK = 64
_CHUNKS = PAGE_SIZE // EEXTEND_SIZE
_PAGE = _BLOCK + _CHUNKS * (_BLOCK + EEXTEND_SIZE)
# In 8-byte words: a page, and where in it the blocks begin.
_WORDS = _PAGE // 8
_EEXTENDS = tuple((_BLOCK + chunk * (_BLOCK + EEXTEND_SIZE)) // 8 for chunk in range(_CHUNKS))
_EADD_TAG = int.from_bytes(b"EADD\0\0\0\0", "little")
_EEXTEND_TAG = int.from_bytes(b"EEXTEND\0", "little")


class PageStream:
    """The stream of up to 256 pages."""

    __slots__ = ("_bytes", "_chunks", "_words")

    def __init__(self) -> None:
        self._bytes = memoryview(bytearray(_PAGE * PAGES))
        self._words = words = self._bytes.cast("Q")
        words[0::_WORDS] = array("Q", [_EADD_TAG]) * PAGES
        for block in _EEXTENDS:
            words[block::_WORDS] = array("Q", [_EEXTEND_TAG]) * PAGES
        self._chunks = [
            self._bytes[start : start + EEXTEND_SIZE]
            for page in range(0, _PAGE * PAGES, _PAGE)
            for start in (page + 8 * block + _BLOCK for block in _EEXTENDS)
        ]

    def of(
        self, elrange: ScatteredReads, base: int, offset: int, secinfo_flags: int, count: int
    ) -> memoryview:
        """Return the stream of ``count`` pages that lie at ``base + offset`` in the Elrange."""
        for first in range(0, count * _CHUNKS, _PIECES):
            chunks = self._chunks[first : min(first + _PIECES, count * _CHUNKS)]
            elrange.readv(base + offset + first * EEXTEND_SIZE, chunks)
        words, end = self._words, count * _WORDS
        offsets = array("Q", range(offset, offset + count * PAGE_SIZE, EEXTEND_SIZE))
        words[1:end:_WORDS] = offsets[::_CHUNKS]
        words[2:end:_WORDS] = array("Q", [secinfo_flags]) * count
        for chunk, block in enumerate(_EEXTENDS):
            words[block + 1 : end : _WORDS] = offsets[chunk::_CHUNKS]
        return self._bytes[: count * _PAGE]


class StreamMeasurement(Measurement):
    """A measurement that takes such streams too."""

    __slots__ = ()

    def add_blocks(self, blocks: memoryview) -> None:
        """Update by what ``PageStream.of`` returned."""
        self._sha.update(blocks)
