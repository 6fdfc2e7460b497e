# SPDX-License-Identifier: Apache-2.0
"""A file that somebody else made: read in parts, every part checked against the file's end.

Owns the open file. What is read is never trusted to be there: a part beyond the end is a SoftsgxError of one
line with the file's name, the offset and what was wanted. A file of gigabytes is never in memory as a whole, so
what a reader hands on as a page's content is a Part, which is read when it is measured.
"""

from __future__ import annotations

import os
import stat
from io import FileIO
from typing import IO, TYPE_CHECKING, NoReturn

from softsgx.errors import SoftsgxError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from io import BytesIO


_BLOCK = 4096


# Open as long as a part of the file may be wanted, so nobody else knows when to close it.
class _Opened(FileIO):
    def __del__(self) -> None:
        self.close()


class File:
    """A file's bytes under its name; ``patches`` are (offset, bytes) that a loader writes over them."""

    __slots__ = ("_opened", "_patches", "name", "size")

    def __init__(
        self,
        name: str,
        opened: FileIO | BytesIO,
        size: int,
        patches: Iterable[tuple[int, bytes]] = (),
    ) -> None:
        self.name = name
        self.size = size
        self._opened = opened
        # By the blocks of the file in which they are, so that a part is not held against all of them.
        self._patches: dict[int, list[tuple[int, bytes]]] = {}
        for at, content in patches:
            for block in range(at // _BLOCK, (at + len(content) - 1) // _BLOCK + 1):
                start = max(0, block * _BLOCK - at)
                part = content[start : (block + 1) * _BLOCK - at]
                self._patches.setdefault(block, []).append((at + start, part))

    @classmethod
    def open(cls, path: str) -> File:
        """Open a regular file; SoftsgxError says why it cannot be read."""
        try:
            # A FIFO would keep open() waiting for a writer.
            if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116 (the rest is os, too)
                raise SoftsgxError(f"{path}: not a regular file")
            opened = _Opened(path, "rb")
            return cls(path, opened, os.fstat(opened.fileno()).st_size)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise SoftsgxError(f"{path}: cannot read it: {reason}") from error

    @classmethod
    def of(cls, content: bytes, name: str) -> File:
        """Return bytes as a file; `name` is for messages."""
        from io import BytesIO  # noqa: PLC0415

        return cls(name, BytesIO(content), len(content))

    @classmethod
    def again(cls, path: str, out: IO[bytes]) -> File:
        """Return as a file what was just written, before anything else is done with it."""
        out.flush()
        descriptor = out.fileno()
        opened = _Opened(descriptor, "rb", closefd=False)
        return cls(path, opened, os.fstat(descriptor).st_size)

    def patched(self, patches: Iterable[tuple[int, bytes]]) -> File:
        """Return the file as it is once these bytes are written over it."""
        before = (patch for parts in self._patches.values() for patch in parts)
        return File(self.name, self._opened, self.size, (*before, *patches))

    def damaged(self, offset: int, reason: str) -> NoReturn:
        """Refuse the file: raise a SoftsgxError that names it and where in it."""
        raise SoftsgxError(f"{self.name}: offset {offset:#x}: {reason}")

    def read(self, offset: int, length: int, what: str) -> bytes:
        """Return bytes of the file; what is not there is named by `what`."""
        if offset < 0 or length < 0 or offset + length > self.size:
            self.damaged(
                offset, f"{what}, {length:#x} bytes, is cut off: the file has {self.size:#x} bytes"
            )
        buffer = bytearray(length)
        self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill a buffer from the file, with what is written over it."""
        opened = self._opened
        opened.seek(offset)
        done = 0
        while done < len(buffer):
            count = opened.readinto(buffer[done:])
            if not count:
                self.damaged(offset + done, "the file became shorter while it was read")
            done += count
        if not self._patches:
            return
        end = offset + len(buffer)
        for block in range(offset // _BLOCK, -(-end // _BLOCK)):
            for at, content in self._patches.get(block, ()):
                start, stop = max(at, offset), min(at + len(content), end)
                if start < stop:
                    buffer[start - offset : stop - offset] = content[start - at : stop - at]

    def part(self, offset: int, length: int) -> Part:
        """Return a part of the file, which the caller knows to be inside it, to be read later."""
        return Part(self, offset, length)


class Part:
    """Bytes of a file that are read when they are sliced; a slice is a memoryview."""

    __slots__ = ("_file", "_length", "offset")

    def __init__(self, file: File, offset: int, length: int) -> None:
        self._file = file
        self.offset = offset
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: slice) -> memoryview:
        start, stop, _ = index.indices(self._length)
        buffer = memoryview(bytearray(max(0, stop - start)))
        self._file.read_into(self.offset + start, buffer)
        return buffer

    def read_into(self, start: int, buffer: memoryview) -> None:
        """Fill a buffer from `start` on."""
        self._file.read_into(self.offset + start, buffer)

    def part(self, start: int, length: int) -> Part:
        """Return a part of this part."""
        return Part(self._file, self.offset + start, length)
