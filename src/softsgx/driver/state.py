# SPDX-License-Identifier: Apache-2.0
"""The state directory: the processor's identity, which outlives a run.

Owns the file ``identity`` in it.  Written under a flock of the directory and replaced whole, so a reader
needs no lock and two first runs at once agree on one identity.
"""

# Every run comes through here, and pathlib would cost it start-up time.
# ruff: noqa: PTH100, PTH103, PTH105, PTH108, PTH111, PTH117, PTH118, PTH123
import binascii
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from softsgx.arch.layout import U32, Record, at, layout, raw
from softsgx.cpu.identity import Identity
from softsgx.errors import SoftsgxError

_MAGIC = b"softsgx state\0\0\0"
_VERSION = 1


@layout(size=32)
class _Header(Record):
    """What precedes the identity in its file; ``crc32`` is the identity's, of ``length`` bytes."""

    magic: bytes = at(0, raw(16))
    version: int = at(16, U32)
    length: int = at(20, U32)
    crc32: int = at(24, U32)


class State:
    """A state directory of mode 0700, made at first use; SoftsgxError says what is wrong with it."""

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self.path = default_path() if path is None else os.path.abspath(path)
        self._throw_away = False

    @classmethod
    def temporary(cls) -> "State":
        """Return a fresh state that ``close`` deletes."""
        import tempfile  # noqa: PLC0415  # heavy, and a lasting state needs none of it

        state = cls(tempfile.mkdtemp(prefix="softsgx-state-"))
        state._throw_away = True
        return state

    def identity(self) -> Identity:
        """Return the processor's identity, made and stored at first use."""
        file = os.path.join(self.path, "identity")
        with self._directory() as directory:
            data = self._read(file)
            if data is None:
                fcntl.flock(directory, fcntl.LOCK_EX)
                data = self._read(file)
            if data is None:
                identity = Identity.fresh()
                self._write(file, identity.to_bytes(), directory)
                return identity
        return Identity.from_bytes(_unwrap(file, data))

    def close(self) -> None:
        """Delete a temporary state; any other stays."""
        if self._throw_away:
            import shutil  # noqa: PLC0415

            shutil.rmtree(self.path, ignore_errors=True)

    @contextmanager
    def _directory(self) -> Iterator[int]:
        try:
            os.makedirs(self.path, mode=0o700, exist_ok=True)
            directory = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise SoftsgxError(
                f"state directory {self.path}: {error.strerror}; name a usable one "
                "by --state or $SOFTSGX_STATE"
            ) from error
        try:
            _check_owner(self.path, os.fstat(directory), stat.S_IWGRP | stat.S_IWOTH)
            yield directory
        finally:
            os.close(directory)

    @staticmethod
    def _read(file: str) -> bytes | None:
        try:
            with open(file, "rb") as stream:
                _check_owner(file, os.fstat(stream.fileno()), stat.S_IRWXG | stat.S_IRWXO)
                return stream.read(4096)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise SoftsgxError(f"state file {file}: {error.strerror}") from error

    @staticmethod
    def _write(file: str, payload: bytes, directory: int) -> None:
        header = _Header(
            magic=_MAGIC,
            version=_VERSION,
            length=len(payload),
            crc32=binascii.crc32(payload),
        )
        fresh = f"{file}.{os.getpid()}"
        try:
            with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as stream:
                os.fchmod(stream.fileno(), 0o600)
                stream.write(header.encode() + payload)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(fresh, file)
            os.fsync(directory)
        except OSError as error:
            with suppress(OSError):
                os.unlink(fresh)
            raise SoftsgxError(f"state file {file} cannot be written: {error.strerror}") from error


def default_path() -> str:
    """Return $SOFTSGX_STATE, else softsgx below $XDG_STATE_HOME, which is ~/.local/state by default."""
    chosen = os.environ.get("SOFTSGX_STATE")
    if chosen:
        return os.path.abspath(chosen)
    home = os.environ.get("XDG_STATE_HOME", "")
    # A relative one is to be ignored (XDG base directory specification).
    if not os.path.isabs(home):
        home = os.path.expanduser("~/.local/state")
    return os.path.join(home, "softsgx")


def _check_owner(path: str, status: os.stat_result, unwanted: int) -> None:
    user = os.geteuid()
    if user not in (0, status.st_uid):
        raise SoftsgxError(f"{path} belongs to user {status.st_uid}, not to {user}")
    mode = stat.S_IMODE(status.st_mode)
    if mode & unwanted:
        raise SoftsgxError(
            f"{path} has mode {mode:04o}: others could use it; chmod {mode & ~0o077:04o} it"
        )


def _unwrap(file: str, data: bytes) -> bytes:
    problem = "it is too short"
    if len(data) >= _Header.SIZE:
        header = _Header.decode(data)
        payload = data[_Header.SIZE :]
        if header.magic != _MAGIC:
            problem = "it does not begin as one"
        elif header.version != _VERSION:
            problem = f"its version is {header.version}, this softsgx knows {_VERSION}"
        elif header.length != len(payload) or header.crc32 != binascii.crc32(payload):
            problem = "its checksum is wrong"
        else:
            return payload
    raise SoftsgxError(
        f"state file {file} is no identity: {problem}; restore it, or delete it for a new "
        "identity (sealed data are then lost)"
    )
