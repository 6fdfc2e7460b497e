# SPDX-License-Identifier: Apache-2.0
r"""MRENCLAVE: the SHA-256 stream that ECREATE, EADD and EEXTEND update and EINIT ends.

Every update is a 64-byte block, little-endian (SDM vol. 3D, the Operation sections of the leaves):

    ECREATE   "ECREATE\0"     SSAFRAMESIZE u32 @8    SIZE u64 @12
    EADD      "EADD\0\0\0\0" page offset u64 @8     SECINFO[0:48) @16
    EEXTEND   "EEXTEND\0"     chunk offset u64 @8    and then the 256 bytes of the chunk

A Measurement belongs to one thread at a time; the caller orders the updates. Long ranges are hashed
without the interpreter's lock, so another thread may copy the next range meanwhile.
"""

from __future__ import annotations

import sys
from struct import Struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Buffer = bytes | bytearray | memoryview

PAGE = 4096
CHUNK = 256
CHUNKS_OF_PAGE = PAGE // CHUNK

_BLOCK = 64
# What one measured page adds: its EADD block, then an EEXTEND block and its data for each chunk.
_MEASURED_PAGE = _BLOCK + CHUNKS_OF_PAGE * (_BLOCK + CHUNK)

_ECREATE = Struct("<8sIQ44x")
_EADD = Struct("<8sQQ40x")
_EEXTEND = Struct("<8sQ48x")
_PAGE_STREAM = Struct("<8sQQ40x" + CHUNKS_OF_PAGE * "8sQ48x256s")
_PAGE_CHUNKS = Struct(CHUNKS_OF_PAGE * "256s")

_TAG_ECREATE = b"ECREATE\0"
_TAG_EADD = b"EADD\0\0\0\0"
_TAG_EEXTEND = b"EEXTEND\0"

# numpy makes the stream of a long range several times faster, but loading it costs as much as some
# 40,000 pages made without it; an enclave that sends one call of this size usually sends more.
_LOAD_NUMPY_FROM = 1024
_USE_NUMPY_FROM = 16
# An EADD alone is 0.3 us without it.
_LOAD_NUMPY_FOR_EADDS = 1 << 19
_EADDS_AT_ONCE = 2048
# The interleaved stream of so many pages (332 KiB) stays in a core's second-level cache.
_PAGES_AT_ONCE = 64


class Measurement:
    """The running measurement of one enclave; offsets are bytes from its base, page aligned."""

    __slots__ = ("_sha",)

    def __init__(self) -> None:
        # hashlib loads libcrypto, which a program that never creates an enclave need not pay for.
        from hashlib import sha256  # noqa: PLC0415

        self._sha = sha256()

    def ecreate(self, ssaframesize: int, size: int) -> None:
        """Update by ECREATE: SSAFRAMESIZE in pages, SIZE in bytes."""
        self._sha.update(_ECREATE.pack(_TAG_ECREATE, ssaframesize, size))

    def eadd(self, offset: int, secinfo_flags: int) -> None:
        """Update by EADD; the flags are as EADD leaves them (R, W and X cleared for a TCS)."""
        self._sha.update(_EADD.pack(_TAG_EADD, offset, secinfo_flags))

    def eextend(self, offset: int, data: Buffer) -> None:
        """Update by EEXTEND of the 256 bytes at `offset` (a multiple of 256)."""
        if len(data) != CHUNK:
            raise ValueError(f"EEXTEND takes {CHUNK} bytes, {len(data)} were given")
        self._sha.update(_EEXTEND.pack(_TAG_EEXTEND, offset))
        self._sha.update(data)

    def add_pages(
        self,
        offset: int,
        secinfo_flags: int,
        data: Buffer,
        measured: bool,
    ) -> None:
        """Update by EADD of each page in `data`, and if `measured` by its 16 EEXTENDs.

        The result is that of the same eadd() and eextend() calls. `data` is a whole number of pages.
        """
        view = memoryview(data).cast("B")
        count, rest = divmod(len(view), PAGE)
        if rest:
            raise ValueError(f"{len(view):#x} bytes are not a whole number of pages")
        if not measured:
            self.add_unmeasured(offset, secinfo_flags, count)
        elif _numpy_pays(count):
            _stream_by_numpy(self._sha.update, offset, secinfo_flags, view)
        else:
            _stream_by_struct(self._sha.update, offset, secinfo_flags, view)

    def add_unmeasured(self, offset: int, secinfo_flags: int, count: int) -> None:
        """Update by EADD of `count` pages from `offset` on, whose contents are not measured."""
        update, pack = self._sha.update, _EADD.pack
        if count >= _LOAD_NUMPY_FOR_EADDS or (count >= _EADDS_AT_ONCE and "numpy" in sys.modules):
            _eadds_by_numpy(update, offset, secinfo_flags, count)
            return
        end = offset + count * PAGE
        for start in range(offset, end, 256 * PAGE):
            stop = min(start + 256 * PAGE, end)
            update(
                b"".join([pack(_TAG_EADD, at, secinfo_flags) for at in range(start, stop, PAGE)])
            )

    def add_stream(self, stream: Buffer) -> None:
        """Update by what such calls would have put into the stream, laid out by the caller."""
        self._sha.update(stream)

    def digest(self) -> bytes:
        """Return MRENCLAVE of what was added so far (32 bytes); the measurement can go on."""
        return self._sha.digest()


def _numpy_pays(count: int) -> bool:
    if count < _USE_NUMPY_FROM:
        return False
    return count >= _LOAD_NUMPY_FROM or "numpy" in sys.modules


# One pack() a page: it is faster than to join 33 pieces.
def _stream_by_struct(
    update: Callable[[Any], None], offset: int, secinfo_flags: int, view: memoryview
) -> None:
    pack, chunks_of = _PAGE_STREAM.pack, _PAGE_CHUNKS.unpack_from
    fields: list[Any] = [_TAG_EEXTEND] * (3 * CHUNKS_OF_PAGE)
    for page in range(0, len(view), PAGE):
        at = offset + page
        fields[1::3] = range(at, at + PAGE, CHUNK)
        fields[2::3] = chunks_of(view, page)
        update(pack(_TAG_EADD, at, secinfo_flags, *fields))


def _stream_by_numpy(
    update: Callable[[Any], None], offset: int, secinfo_flags: int, view: memoryview
) -> None:
    stream = PageStream(_PAGES_AT_ONCE, secinfo_flags)
    for first in range(0, len(view), _PAGES_AT_ONCE * PAGE):
        update(stream.fill(offset + first, view[first : first + _PAGES_AT_ONCE * PAGE]))


class PageStream:
    """The stream of a few measured pages, laid out once; then only offsets and contents are rewritten."""

    __slots__ = ("_chunk_of_page", "_contents", "_eadd", "_eextend", "_flat", "_pages")

    def __init__(self, pages: int, secinfo_flags: int) -> None:
        import numpy as np  # noqa: PLC0415

        stream = np.zeros((pages, _MEASURED_PAGE), dtype=np.uint8)
        eadd_words = stream[:, :_BLOCK].view("<u8")
        chunks = stream[:, _BLOCK:].reshape(pages, CHUNKS_OF_PAGE, _BLOCK + CHUNK)
        eextend_words = chunks[:, :, :_BLOCK].view("<u8")
        # One 256-byte item a chunk: copied as a block rather than byte by byte.
        self._contents = chunks[:, :, _BLOCK:].view(f"V{CHUNK}")[:, :, 0]
        eadd_words[:, 0] = int.from_bytes(_TAG_EADD, "little")
        eadd_words[:, 2] = secinfo_flags
        eextend_words[:, :, 0] = int.from_bytes(_TAG_EEXTEND, "little")
        self._eadd = eadd_words[:, 1]
        self._eextend = eextend_words[:, :, 1]
        self._pages = np.arange(pages, dtype=np.uint64) * np.uint64(PAGE)
        self._chunk_of_page = np.arange(CHUNKS_OF_PAGE, dtype=np.uint64) * np.uint64(CHUNK)
        self._flat = stream.reshape(-1)

    def fill(self, offset: int, view: Buffer) -> Any:
        """Return the stream of the pages in `view`, a whole number that is not more than there is room for."""
        import numpy as np  # noqa: PLC0415

        source = np.frombuffer(view, dtype=f"V{CHUNK}").reshape(-1, CHUNKS_OF_PAGE)
        self._contents[: len(source)] = source
        return self.move(offset, len(source))

    def move(self, offset: int, count: int) -> Any:
        """Return the stream of so many pages with the contents that are there: at first, zeros."""
        import numpy as np  # noqa: PLC0415

        self._eadd[:] = self._pages + np.uint64(offset)
        self._eextend[:] = self._eadd[:, None] + self._chunk_of_page
        return self._flat[: count * _MEASURED_PAGE]


def _eadds_by_numpy(
    update: Callable[[Any], None], offset: int, secinfo_flags: int, count: int
) -> None:
    import numpy as np  # noqa: PLC0415

    blocks = np.zeros((_EADDS_AT_ONCE, _BLOCK // 8), dtype="<u8")
    blocks[:, 0] = int.from_bytes(_TAG_EADD, "little")
    blocks[:, 2] = secinfo_flags
    offsets = np.arange(_EADDS_AT_ONCE, dtype=np.uint64) * np.uint64(PAGE)
    for first in range(0, count, _EADDS_AT_ONCE):
        blocks[:, 1] = offsets + np.uint64(offset + first * PAGE)
        update(blocks[: count - first].reshape(-1).view(np.uint8))
