# SPDX-License-Identifier: Apache-2.0
"""The control socket of a run: who connects is told what the platform is doing, in one line of JSON.

Owns the listening socket and its name, PID.sock in the user's directory for such sockets. It is
served between the programs' stops, so a client may cost the time of one answer and no more: the
answer fits into what the kernel buffers for a socket, and what does not is cut off; nothing is
read. Of the programs of other users nobody is told.

Sources: unix(7), the XDG base directory specification.
"""

import _socket
import contextlib
import ctypes
import errno
import os
import stat
import struct

from softsgx.errors import SoftsgxError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

SUFFIX = ".sock"
# For who is not yet answered because a program's stop is.
_BACKLOG = 16
_ANSWER_SIZE = 1 << 18
_UCRED = struct.Struct("<iII")  # struct ucred
_ATTEMPTS = 3

_libc = ctypes.CDLL(None, use_errno=True)


def directory() -> str:
    """Give where the sockets of this user are: below $XDG_RUNTIME_DIR, if that is the user's.

    It is not where a login has not set it, or a change of the user has left another's. Then what a
    login would have set; and where there is none, a directory of our own in /tmp.
    """
    user = os.geteuid()
    for base in (os.environ.get("XDG_RUNTIME_DIR", ""), f"/run/user/{user}"):
        # A relative one is to be ignored.
        if os.path.isabs(base) and os.path.isdir(base) and os.stat(base).st_uid == user:
            return os.path.join(base, "softsgx")
    return f"/tmp/softsgx-{user}"  # noqa: S108  (its owner and mode are checked)


@contextlib.contextmanager
def opened(path: str) -> "Iterator[int]":
    """Open the directory of sockets; SoftsgxError where it is not the user's own.

    FileNotFoundError where there is none.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise SoftsgxError(f"{path}: {error.strerror}") from error
    try:
        status = os.fstat(fd)
        mode = stat.S_IMODE(status.st_mode)
        if status.st_uid != os.geteuid() or mode & 0o077:
            raise SoftsgxError(
                f"{path} belongs to user {status.st_uid} and has mode {mode:04o}: softsgx uses only "
                "one of this user's, of mode 0700"
            )
        yield fd
    finally:
        os.close(fd)


def connected(fd: int, name: str) -> "_socket.socket | None":
    """Connect to a socket in an open directory, without waiting; None where its run has ended.

    Then the name, which a run that is killed leaves behind, is removed.
    """
    client = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    client.setblocking(False)
    try:
        client.connect(f"/proc/self/fd/{fd}/{name}")
    except ConnectionRefusedError:
        client.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=fd)
        return None
    except OSError:
        client.close()
        raise
    return client


def _remove_stale(fd: int) -> None:
    for name in os.listdir(fd):
        pid = name.removesuffix(SUFFIX).removeprefix(".")
        if pid.isdecimal() and not os.path.exists(f"/proc/{pid}"):
            # A container may have another's directory, and know its processes by other numbers.
            with contextlib.suppress(OSError):
                client = connected(fd, name)
                if client is not None:
                    client.close()


def _listen(path: str, name: str) -> "_socket.socket":
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
        os.chmod(path, 0o700)  # whatever the umask is
    server = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        server.setblocking(False)
        with opened(path) as fd:
            _remove_stale(fd)
            # By the descriptor: a socket's address is 107 bytes long at most. By another name: one
            # that refuses a connection is taken for a dead run's.
            fresh = f"/proc/self/fd/{fd}/.{name}"
            with contextlib.suppress(FileNotFoundError):
                os.unlink(fresh)
            server.bind(fresh)
            os.chmod(fresh, 0o600)
            server.listen(_BACKLOG)
            os.rename(fresh, os.path.join(path, name))
    except BaseException:
        server.close()
        raise
    return server


class Control:
    """Answers those who connect by what `snapshot` gives.

    OSError or SoftsgxError where there can be no socket.
    """

    def __init__(self, snapshot: "Callable[[], dict[str, Any]]") -> None:
        self._snapshot = snapshot
        self._directory = directory()
        self._name = f"{os.getpid()}{SUFFIX}"
        for attempt in range(_ATTEMPTS):
            try:
                self._server = _listen(self._directory, self._name)
                break
            except FileNotFoundError:
                # The last run before this one has ended, and taken the directory away.
                if attempt == _ATTEMPTS - 1:
                    raise
        self.fd = self._server.fileno()

    def answer(self) -> bool:
        """Tell the next client, if it is this user's; False where no more can be answered."""
        flags = _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK
        fd: int = _libc.accept4(self.fd, None, None, flags)
        if fd < 0:
            # Without a free descriptor whoever waits would be told of again and again.
            return ctypes.get_errno() not in (errno.EMFILE, errno.ENFILE)
        client = _socket.socket(fileno=fd)
        try:
            credentials = client.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, _UCRED.size)
            if _UCRED.unpack(credentials)[1] == os.geteuid():
                self._tell(client)
        except OSError:
            # It has left.
            return True
        finally:
            client.close()
        return True

    def _tell(self, client: "_socket.socket") -> None:
        import json  # noqa: PLC0415  (few runs are asked)

        answer = json.dumps(self._snapshot(), separators=(",", ":")).encode() + b"\n"
        client.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDBUF, _ANSWER_SIZE)
        client.send(answer, _socket.MSG_DONTWAIT | _socket.MSG_NOSIGNAL)

    def close(self) -> None:
        """Answer no more, and take the name away."""
        self._server.close()
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(self._directory, self._name))
        # Others have theirs there, as a rule.
        with contextlib.suppress(OSError):
            os.rmdir(self._directory)
