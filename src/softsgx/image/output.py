# SPDX-License-Identifier: Apache-2.0
"""Files that are written: each gets its name when it is whole, and of one that is given up nothing stays.

Owns the open file. On Linux it has no name before (O_TMPFILE), so that it is gone with the process, however that ends;
where the file system or the system has no such files it is named .softsgx- and a number until then.
"""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING

from softsgx.errors import SoftsgxError

if TYPE_CHECKING:
    from collections.abc import Iterator

_BUFFER = 1 << 20


class Output:
    """A file that may get a name in one directory; ``file`` can be read, too."""

    __slots__ = ("_directory", "_name", "file")

    def __init__(self, directory: str) -> None:
        """Begin it; OSError."""
        self._directory = directory
        self._name = ""
        descriptor = _unnamed(directory)
        if descriptor is None:
            self._name = self._temporary()
            binary: int = getattr(os, "O_BINARY", 0)  # of Windows
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | binary
            descriptor = os.open(self._name, flags, 0o666)
        self.file: IO[bytes] = os.fdopen(descriptor, "w+b", buffering=_BUFFER)

    def keep(self, path: str) -> None:
        """Give it its name, in the place of a file that has it; OSError, and then nothing stays."""
        try:
            if self._name:
                # Windows renames no open file.
                self.file.close()
            else:
                self.file.flush()
                if self._link(path):
                    return
                # linkat() replaces nothing.
                temporary = self._temporary()
                self._link(temporary)
                self._name = temporary
            os.replace(self._name, path)  # noqa: PTH105 (pathlib takes 4 ms of every start)
            self._name = ""
        finally:
            self.discard()

    def discard(self) -> None:
        """Leave nothing of what has no name yet."""
        # What is still to be written may not fit.
        with suppress(OSError):
            self.file.close()
        if self._name:
            with suppress(OSError):
                os.unlink(self._name)  # noqa: PTH108
            self._name = ""

    def _link(self, name: str) -> bool:
        descriptor = self.file.fileno()
        try:
            # Only with a directory, which an absolute path makes nothing of, does Python follow the link.
            os.link(f"/proc/self/fd/{descriptor}", name, src_dir_fd=descriptor)
        except FileExistsError:
            return False
        return True

    def _temporary(self) -> str:
        # Processes of several containers may share the directory, and have the same numbers.
        return os.path.join(self._directory, f".softsgx-{os.urandom(8).hex()}")  # noqa: PTH118


def _unnamed(directory: str) -> int | None:
    flag: int = getattr(os, "O_TMPFILE", 0)
    if not flag:
        return None
    try:
        descriptor = os.open(directory, os.O_RDWR | flag, 0o666)
    except OSError:
        # Whatever else is wrong is found again by a name.
        return None
    if os.path.exists(f"/proc/self/fd/{descriptor}"):  # noqa: PTH110
        return descriptor
    os.close(descriptor)
    return None


def require_readable(path: str) -> None:
    """Refuse what cannot be read back when it is written: SoftsgxError."""
    if os.path.exists(path) and not os.path.isfile(path):  # noqa: PTH110, PTH113
        raise SoftsgxError(f"{path}: not a regular file, and what is written is read back")


@contextmanager
def written(path: str, what: str, like: str | None = None) -> Iterator[IO[bytes]]:
    """Give what is written meanwhile the name `path`; if that fails, nothing is changed. SoftsgxError.

    The permissions are those of the file that it replaces, or of the file `like`. What is no file (a pipe, a
    terminal), and a file in whose directory no other can be made, is written to as it is.
    """
    try:
        real = os.path.realpath(path)
        directory = os.path.dirname(real)  # noqa: PTH120
        there = os.path.exists(real)  # noqa: PTH110
        if there and not os.path.isfile(real):  # noqa: PTH113
            with open(path, "wb") as stream:  # noqa: PTH123
                yield stream
            return
        if there and not os.access(directory, os.W_OK):
            with open(path, "w+b") as file:  # noqa: PTH123
                yield file
            return
        output = Output(directory)
        try:
            as_it = real if like is None and there else like
            if as_it is not None and hasattr(os, "fchmod"):
                os.fchmod(output.file.fileno(), os.stat(as_it).st_mode & 0o777)  # noqa: PTH116
            yield output.file
            output.keep(real)
        finally:
            output.discard()
    except OSError as error:
        raise SoftsgxError(f"{path}: cannot write {what}: {error.strerror}") from error
