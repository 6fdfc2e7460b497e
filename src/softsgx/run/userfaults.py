# SPDX-License-Identifier: Apache-2.0
"""What the userfaultfds tell: a thread sleeps at a page of an enclave that is not there, or not writable.

Owns which address space each descriptor is of. A page that was evicted is brought in, and the thread
goes on without a stop: that costs a fifth of one. Whatever else may come of the touch is for a stop,
so the thread is interrupted, and stands at the instruction then. Nothing here waits for a program.

Source: ioctl_userfaultfd(2), fs/userfaultfd.c (handle_userfault).
"""

import os
import struct
from contextlib import suppress

from softsgx.run import page_faults, ptrace
from softsgx.run.ptrace import TraceeGone

TYPE_CHECKING = False
if TYPE_CHECKING:
    from softsgx.run.elrange_map import EnclaveMap
    from softsgx.run.tracee import Tracee
    from softsgx.run.waiting import Waiter

# struct uffd_msg of UFFD_EVENT_PAGEFAULT: event, flags, address, ptid.
_MESSAGE = struct.Struct("<B7xQQI4x")
_AT_ONCE = 16
_PAGEFAULT = 0x12


class Userfaults:
    """Answers the userfaultfds of a run; `tracees` is the supervisor's own table."""

    def __init__(self, waiter: "Waiter", tracees: "dict[int, Tracee]") -> None:
        self._waiter = waiter
        self._tracees = tracees
        self._maps: dict[int, EnclaveMap] = {}

    def watch(self, uffd: int, enclaves: "EnclaveMap") -> None:
        """Answer a userfaultfd from now on."""
        self._maps[uffd] = enclaves
        self._waiter.watch(uffd)

    def forget(self, uffd: int) -> None:
        """Answer it no more, before it is closed: its duplicate keeps it alive in a poll set."""
        if self._maps.pop(uffd, None) is not None:
            self._waiter.forget(uffd)

    def __contains__(self, fd: int) -> bool:
        return fd in self._maps

    def answer(self, uffd: int) -> None:
        """Take what a userfaultfd tells, and let those go on who can."""
        enclaves = self._maps[uffd]
        try:
            told = os.read(uffd, _AT_ONCE * _MESSAGE.size)
        except OSError:
            # Whoever slept there has been woken; or the address space has ended.
            return
        for event, flags, address, tid in _MESSAGE.iter_unpack(told):
            if event != _PAGEFAULT:
                continue
            # It waits at a stop of its own, where others have their turns; and what fails does so there,
            # where one thread's misfortune is not the others'.
            with suppress(Exception):
                if page_faults.answered(enclaves, address, flags):
                    continue
            self._stop(enclaves, address, tid)

    def _stop(self, enclaves: "EnclaveMap", address: int, tid: int) -> None:
        tracee = self._tracees.get(tid)
        if tracee is None or tracee.mm.enclaves is not enclaves:
            tracee = self._by_own_number(enclaves, tid)
        if tracee is None:
            # It has ended. Somebody else may sleep at the same page.
            enclaves.wake(address)
            return
        tracee.fault = address
        try:
            ptrace.interrupt(tracee.tid)
        except TraceeGone:
            tracee.fault = None

    def _by_own_number(self, enclaves: "EnclaveMap", tid: int) -> "Tracee | None":
        # The message tells the number in the thread's own pid namespace.
        for tracee in self._tracees.values():
            if tracee.mm.enclaves is enclaves and _own_number(tracee.tid) == tid:
                return tracee
        return None


def _own_number(tid: int) -> int:
    try:
        with open(f"/proc/{tid}/status", "rb") as status:
            for line in status:
                if line.startswith(b"NSpid:"):
                    return int(line.split()[-1])
    except OSError:
        pass
    return 0
