# SPDX-License-Identifier: Apache-2.0
"""Descriptors that go from one process to another, through a pair of sockets (SCM_RIGHTS).

Owns nothing. pidfd_getfd(2) would do it without the sender's help, but Docker's default profile
refuses it, and the kernel does for a program that has made itself non-dumpable. The module
_socket, because socket itself takes 20 ms to import.

Sources: unix(7), cmsg(3), include/linux/socket.h.
"""

import _socket
import os
import struct

from softsgx.run import numbers as n
from softsgx.run.ptrace import failed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from softsgx.run.tracee import Injector, Tracee

_SCM_RIGHTS = 1
_FD = struct.Struct("<i")
_IOVEC = struct.Struct("<QQ")
_MSGHDR = struct.Struct("<QI4xQQQQi4x")  # struct user_msghdr
_CMSGHDR = struct.Struct("<Qii")
_CMSG_LEN = _CMSGHDR.size + _FD.size
_CMSG_SPACE = (_CMSG_LEN + 7) & ~7
_MOST = 64  # bytes of what is said beside the descriptor


def pair() -> tuple[_socket.socket, _socket.socket]:
    """Make two connected sockets that keep messages apart; both are close-on-exec."""
    return _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)


def send(channel: _socket.socket, said: bytes, fd: int = -1) -> None:
    """Send a message, and a descriptor with it."""
    rights = [(_socket.SOL_SOCKET, _SCM_RIGHTS, _FD.pack(fd))] if fd >= 0 else []
    channel.sendmsg([said], rights)


def receive(channel: _socket.socket) -> tuple[bytes, int]:
    """Wait for a message: what it says, nothing where the other end is closed, and the descriptor, or -1."""
    try:
        said, rights, _, _ = channel.recvmsg(_MOST, _CMSG_SPACE, _socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        return b"", -1  # it has ended without reading what it was sent
    for level, kind, data in rights:
        if (level, kind) == (_socket.SOL_SOCKET, _SCM_RIGHTS) and len(data) >= _FD.size:
            fd: int = _FD.unpack_from(data)[0]
            return said, fd
    return said, -1


def take(tracee: "Tracee", injector: "Injector", fd: int) -> int:
    """Take a copy of the program's descriptor, which its thread sends itself; OSError if it cannot.

    The socket is new each time: what the program writes to it meanwhile can only harm itself. What
    was sent is there by then; for what another thread has taken out of the way nobody waits.
    """
    ours, theirs = pair()
    try:
        lent = injector.lend(theirs.fileno())
        theirs.close()
        _check(lent)
        result = _sendmsg(tracee, injector, lent, fd)
        injector.call(n.SYS_CLOSE, lent)
        _check(result)
        ours.setblocking(False)
        _, taken = receive(ours)
    finally:
        ours.close()
        theirs.close()
    return taken


def _sendmsg(tracee: "Tracee", injector: "Injector", channel: int, fd: int) -> int:
    mm = tracee.mm
    control = _CMSGHDR.pack(_CMSG_LEN, _socket.SOL_SOCKET, _SCM_RIGHTS) + _FD.pack(fd)
    with mm.scratch_for(control.ljust(_CMSG_SPACE, b"\0")) as rights:
        # All in one slot, for each thread of a program may be here at the same time.
        iovec = rights + _CMSG_SPACE
        message = iovec + _IOVEC.size
        mm.write(iovec, _IOVEC.pack(rights, 1))
        mm.write(message, _MSGHDR.pack(0, 0, iovec, 1, rights, _CMSG_SPACE, 0))
        return injector.call(n.SYS_SENDMSG, channel, message, _socket.MSG_NOSIGNAL)


def _check(result: int) -> None:
    if failed(result):
        raise OSError(failed(result), os.strerror(failed(result)))
