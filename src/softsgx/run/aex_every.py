# SPDX-License-Identifier: Apache-2.0
"""Exits that no event of the program causes (`--aex-every`): as often as a timer interrupts, or after so many instructions.

Owns the period and the timer. On silicon each interrupt of the machine is an AEX; here only signals are, so
that code which must survive an AEX anywhere would hardly ever meet one.

By time, whoever is inside is stopped (PTRACE_INTERRUPT) and makes its exit at that stop. By instructions, a thread
inside goes on in single steps.

Sources: timerfd_create(2), ptrace(2).
"""

import ctypes
import os
import struct

from softsgx.errors import SoftsgxError
from softsgx.run import ptrace
from softsgx.run.host import forbidden
from softsgx.run.ptrace import TraceeGone

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from softsgx.run.tracee import Tracee

_CLOCK_MONOTONIC = 1
_UNITS = {"us": 1, "ms": 1000, "s": 1_000_000}
# Ten years, and so many that no run gets there.
_MOST = 1 << 48
_ITIMERSPEC = struct.Struct("<qqqq")

_libc = ctypes.CDLL(None, use_errno=True)


class AexEvery:
    """How often a thread inside is made to leave: after `instructions`, or every so many `microseconds`."""

    def __init__(self, *, microseconds: int = 0, instructions: int = 0) -> None:
        self.microseconds = microseconds
        self.instructions = instructions

    def timer(self) -> int:
        """Make the timer, and give its descriptor; -1 where instructions are counted."""
        if not self.microseconds:
            return -1
        fd: int = _libc.timerfd_create(_CLOCK_MONOTONIC, os.O_CLOEXEC | os.O_NONBLOCK)
        seconds, rest = divmod(self.microseconds, 1_000_000)
        period = _ITIMERSPEC.pack(seconds, rest * 1000, seconds, rest * 1000)
        if fd < 0 or _libc.timerfd_settime(fd, 0, period, None):
            raise forbidden("timerfd", os.strerror(ctypes.get_errno()))
        return fd


def aex_every(text: str) -> AexEvery:
    """Read what `--aex-every` was given: 250, 250us, 10ms, 1s or 1000i; SoftsgxError."""
    digits = text.rstrip("abcdefghijklmnopqrstuvwxyz")
    unit = text[len(digits) :] or "us"
    if digits.isascii() and digits.isdecimal() and len(digits) < 20:
        count = int(digits) * _UNITS.get(unit, 1)
        if 0 < count < _MOST and unit == "i":
            return AexEvery(instructions=count)
        if 0 < count < _MOST and unit in _UNITS:
            return AexEvery(microseconds=count)
    raise SoftsgxError(
        f"--aex-every {text}: wanted is a time such as 250us, 10ms or 1s, or a number of "
        "instructions such as 1000i, above 0"
    )


def tick(timer: int, tracees: "Iterable[Tracee]") -> None:
    """Answer the timer: stop every thread that is inside."""
    try:
        os.read(timer, 8)
    except BlockingIOError:
        return
    for tracee in tracees:
        # Who has stopped for us already would leave where it goes on, each time at the same instruction.
        if tracee.inside and not ptrace.has_stopped(tracee.tid):
            # Again at each tick: the stop may get lost in a call that the thread carries out for us.
            tracee.must_exit = True
            try:
                ptrace.interrupt(tracee.tid)
            except TraceeGone:
                continue
