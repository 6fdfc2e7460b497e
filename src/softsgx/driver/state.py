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
from struct import Struct

from softsgx.errors import SoftsgxError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from softsgx.cpu.identity import Identity

_MAGIC = b"softsgx state\0\0\0"
_VERSION = 1
# What precedes the identity in its file: magic, version, length of the identity, its CRC-32.
_HEADER = Struct("<16sIII4x")


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

    def identity(self) -> "Identity":
        """Return the processor's identity, made and stored at first use."""
        from softsgx.cpu.identity import Identity  # noqa: PLC0415  (`prepare` needs none of it)

        return Identity.from_bytes(self.prepare())

    def prepare(self) -> bytes:
        """Find or make the identity, and return its file form: what is wrong shows here."""
        file = os.path.join(self.path, "identity")
        directory = self._directory()
        try:
            data = self._read(file)
            if data is None:
                fcntl.flock(directory, fcntl.LOCK_EX)
                data = self._read(file)
            if data is None:
                from softsgx.cpu.identity import Identity  # noqa: PLC0415  (once a state)

                fresh = Identity.fresh().to_bytes()
                self._write(file, fresh, directory)
                return fresh
        finally:
            os.close(directory)
        return _unwrap(file, data)

    def close(self) -> None:
        """Delete a temporary state; any other stays."""
        if self._throw_away:
            import shutil  # noqa: PLC0415

            shutil.rmtree(self.path, ignore_errors=True)

    def _directory(self) -> int:
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
        except SoftsgxError:
            os.close(directory)
            raise
        return directory

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
        header = _HEADER.pack(_MAGIC, _VERSION, len(payload), binascii.crc32(payload))
        # One name for all, who hold the lock: what a killed one has left is overwritten.
        fresh = f"{file}.new"
        try:
            with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as stream:
                os.fchmod(stream.fileno(), 0o600)
                stream.write(header + payload)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(fresh, file)
            os.fsync(directory)
        except OSError as error:
            _discard(fresh)
            raise SoftsgxError(f"state file {file} cannot be written: {error.strerror}") from error


def _discard(file: str) -> None:
    try:
        os.unlink(file)
    except OSError:
        # It was never made.
        return


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
    if len(data) >= _HEADER.size:
        magic, version, length, crc32 = _HEADER.unpack_from(data)
        payload = data[_HEADER.size :]
        if magic != _MAGIC:
            problem = "it does not begin as one"
        elif version != _VERSION:
            problem = f"its version is {version}, this softsgx knows {_VERSION}"
        elif length != len(payload) or crc32 != binascii.crc32(payload):
            problem = "its checksum is wrong"
        else:
            return payload
    raise SoftsgxError(
        f"state file {file} is no identity: {problem}; restore it, or delete it for a new "
        "identity (sealed data are then lost)"
    )
