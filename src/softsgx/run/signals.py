# SPDX-License-Identifier: Apache-2.0
"""Signal calls by number.

Owns nothing. Python's signal module makes enumerations of every constant, which costs each start as
much as a third of the interpreter's own; these are the few calls that a run needs. Every one acts on the
process or the calling thread at once; no Python code runs at a signal.

Sources: sigaction(2), sigprocmask(2), signalfd(2).
"""

import ctypes
import os
import struct

from softsgx.run.host import forbidden

SIG_DFL = 0
SIG_IGN = 1
SIGHUP = 1
SIGINT = 2
SIGQUIT = 3
SIGKILL = 9
SIGPIPE = 13
SIGTERM = 15
SIGTSTP = 20
SIGTTIN = 21
SIGTTOU = 22
SIGURG = 23
SIGXFSZ = 25

_SYS_SIGNALFD4 = 289
_SIG_BLOCK, _SIG_UNBLOCK, _SIG_SETMASK = 0, 1, 2
_SIGSET = (
    8  # what the kernel takes; the C library's sigset_t has 128 bytes, of which these come first
)
_SIGINFO = 128  # struct signalfd_siginfo
_ACTION = struct.Struct("<Q128si4xQ")  # the C library's struct sigaction

_libc = ctypes.CDLL(None, use_errno=True)


def bits(*numbers: int) -> int:
    """Give the mask of signals; bit n - 1 is signal n."""
    return sum(1 << (number - 1) for number in numbers)


def block(mask: int) -> int:
    """Block signals of the calling thread; give the mask of before."""
    return _change(_SIG_BLOCK, mask)


def unblock(mask: int) -> int:
    """Unblock signals of the calling thread; give the mask of before."""
    return _change(_SIG_UNBLOCK, mask)


def set_mask(mask: int) -> int:
    """Set which signals the calling thread blocks; give the mask of before."""
    return _change(_SIG_SETMASK, mask)


def _change(how: int, mask: int) -> int:
    # The C library's own two signals, 32 and 33, are its own business.
    before = ctypes.create_string_buffer(128)
    _libc.pthread_sigmask(how, mask.to_bytes(_SIGSET, "little").ljust(128, b"\0"), before)
    return int.from_bytes(before.raw[:_SIGSET], "little")


def ignore(*numbers: int) -> None:
    """Ignore signals."""
    for number in numbers:
        _act(number, SIG_IGN)


def set_default(*numbers: int) -> None:
    """Let signals have their default actions."""
    for number in numbers:
        _act(number, SIG_DFL)


def interrupt_calls_by(number: int) -> None:
    """Let a signal end the system call that it finds this process in (EINTR), and do nothing else."""
    # Any function will do that takes an int and changes nothing.
    handler = ctypes.cast(_libc.abs, ctypes.c_void_p).value or SIG_IGN
    _act(number, handler)


def _act(number: int, handler: int) -> None:
    _libc.sigaction(number, _ACTION.pack(handler, b"", 0, 0), None)


def descriptor(mask: int) -> int:
    """Make a signalfd(2) of signals that are blocked."""
    flags = os.O_CLOEXEC | os.O_NONBLOCK
    encoded = mask.to_bytes(_SIGSET, "little")
    fd: int = _libc.syscall(_SYS_SIGNALFD4, -1, encoded, ctypes.c_ulong(_SIGSET), flags)
    if fd < 0:
        raise forbidden("signalfd", os.strerror(ctypes.get_errno()))
    return fd


def read(fd: int) -> int:
    """Take the next signal from a signalfd; 0 for none."""
    try:
        number: int = struct.unpack_from("<I", os.read(fd, _SIGINFO))[0]
    except BlockingIOError:
        return 0
    return number
