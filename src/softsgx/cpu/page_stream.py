# SPDX-License-Identifier: Apache-2.0
"""What EADD and 16 EEXTENDs of each of many pages add to the measurement, laid out in one buffer.

The form is that of image/measurement.py, which makes the same bytes from pages that are in memory. Here
the contents are read to their places straight away, by scattered reads, and only the offsets in the
blocks are rewritten for the next pages: a third of the time, and without numpy, whose import takes as
long as the hashing of 200 MiB.
"""

from array import array
from ctypes import addressof, c_char
from struct import Struct

from softsgx.arch.secinfo import EEXTEND_SIZE, PAGE_SIZE
from softsgx.cpu.memory import ScatteredReads

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

# The offsets of all chunks, and ones, as the 64-bit digits of a long integer: adding a number to every
# offset is then two operations.
_DIGITS = Struct(f"<{PAGES * _CHUNKS}Q")
_OFFSETS = int.from_bytes(_DIGITS.pack(*range(0, PAGES * PAGE_SIZE, EEXTEND_SIZE)), "little")
_ONES = int.from_bytes(_DIGITS.pack(*[1] * (PAGES * _CHUNKS)), "little")


class PageStream:
    """The stream of up to 256 pages."""

    __slots__ = ("_bytes", "_places", "_words")

    def __init__(self) -> None:
        self._bytes = memoryview(bytearray(_PAGE * PAGES))
        self._words = words = self._bytes.cast("Q")
        words[0::_WORDS] = array("Q", [_EADD_TAG]) * PAGES
        for block in _EEXTENDS:
            words[block::_WORDS] = array("Q", [_EEXTEND_TAG]) * PAGES
        # struct iovec of each chunk's place: address and length.
        self._places = array("Q", [EEXTEND_SIZE]) * (2 * PAGES * _CHUNKS)
        first = addressof(c_char.from_buffer(self._bytes)) + _BLOCK
        for chunk, block in enumerate(_EEXTENDS):
            start = first + 8 * block
            self._places[2 * chunk :: 2 * _CHUNKS] = array(
                "Q", range(start, start + PAGES * _PAGE, _PAGE)
            )

    def read(self, elrange: ScatteredReads, address: int, count: int) -> None:
        """Read the contents of ``count`` pages to their places."""
        iovecs = self._places.buffer_info()[0]
        end = count * _CHUNKS
        for first in range(0, end, _PIECES):
            pieces = min(_PIECES, end - first)
            start = address + first * EEXTEND_SIZE
            done = elrange.readv(start, iovecs + 16 * first, pieces)
            if done != pieces * EEXTEND_SIZE:
                raise OSError(f"{done} bytes of {pieces} chunks at {start:#x} could be read")

    def labelled(self, offset: int, secinfo_flags: int, count: int) -> memoryview:
        """Write the blocks of the ``count`` pages that were read, and return their stream."""
        digits = (_OFFSETS + offset * _ONES).to_bytes(_DIGITS.size, "little")
        offsets = memoryview(digits).cast("Q")
        words = self._words
        words[1::_WORDS] = offsets[::_CHUNKS]
        words[2::_WORDS] = array("Q", [secinfo_flags]) * PAGES
        for chunk, block in enumerate(_EEXTENDS):
            words[block + 1 :: _WORDS] = offsets[chunk::_CHUNKS]
        return self._bytes[: count * _PAGE]
