# SPDX-License-Identifier: Apache-2.0
"""A stop in the middle of a transition that the program makes itself: it is before or behind, never between.

Owns nothing; works on the stopped thread. The store to the record's mode is the transition. Who has
stopped before it stands at the ENCLU that the code stands for, as if nothing had happened, and
executes it, a trap, when it goes on. Who has stopped behind it is through.

The places are the labels of csrc/vdso/transitions.S, which says what lies between them.
"""

import struct

from softsgx.arch.thread import MODE_OUTSIDE, STATE_OPEN, ThreadRecord
from softsgx.cpu.registers import (
    RFLAGS_AF,
    RFLAGS_CF,
    RFLAGS_OF,
    RFLAGS_PF,
    RFLAGS_SF,
    RFLAGS_ZF,
)
from softsgx.cpu.secs import STATE, THREAD
from softsgx.run.fast_path import ENTERED, LEFT
from softsgx.run.mm import Refused
from softsgx.run.rooms import slot_at
from softsgx.run.transition_sites import ENCLU_LENGTH

TYPE_CHECKING = False
if TYPE_CHECKING:
    from softsgx.run.fast_path import FastPath
    from softsgx.run.ptrace import UserRegs
    from softsgx.run.rooms import Slot
    from softsgx.run.tracee import Tracee
    from softsgx.run.vdso import VdsoImage

_EENTER, _EEXIT = 2, 4
_STACK = struct.Struct("<6Q")  # TARGET, FLAGS, RDI, RDX, AEP, BEHIND
_STACK_AT = 176
_BYTE_FLAGS = RFLAGS_SF | RFLAGS_ZF | RFLAGS_AF | RFLAGS_PF | RFLAGS_CF

_SELECTOR = ThreadRecord.OFFSETS["selector"]
_MODE = ThreadRecord.OFFSETS["mode"] // 4
_FLAGS = ThreadRecord.OFFSETS["flags"] // 8
_RBX = ThreadRecord.OFFSETS["rbx"] // 8
_SITE = ThreadRecord.OFFSETS["site"] // 8
_AEP = ThreadRecord.OFFSETS["aep"] // 8
_HOST_FSBASE = ThreadRecord.OFFSETS["host_fsbase"] // 8
_HOST_GSBASE = ThreadRecord.OFFSETS["host_gsbase"] // 8


def _set_flags(regs: "UserRegs", saved: int) -> None:
    # LAHF has put the low byte in AH, SETO the rest in AL.
    regs.rflags &= ~(_BYTE_FLAGS | RFLAGS_OF)
    regs.rflags |= saved >> 8 & _BYTE_FLAGS | (RFLAGS_OF if saved & 1 else 0)


class FastStops:
    """Puts a thread that has stopped within a transition before it or behind it."""

    def __init__(self, vdso: "VdsoImage", fast: "FastPath") -> None:
        self._vdso = vdso
        self._fast = fast

    def steady(self, tracee: "Tracee") -> bool:
        """Move a stopped thread out of a transition; tell whether it stood in one. Its registers are loaded."""
        mm, rip, vdso = tracee.mm, tracee.regs.rip, self._vdso
        at = rip - mm.image
        if vdso.eenter <= at < vdso.eenter_end:
            self._in_eenter(tracee, at)
        elif vdso.eexit <= at < vdso.eexit_end:
            self._in_eexit(tracee, at)
        elif (slot := slot_at(mm, rip)) is not None:
            self._at_slot(tracee, *slot)
        else:
            return False
        tracee.store_regs()
        return True

    # -- EENTER -----------------------------------------------------------------------------

    def _in_eenter(self, tracee: "Tracee", at: int) -> None:
        regs, vdso, lp = tracee.regs, self._vdso, tracee.lp
        # Word by word: where the stack ends, the store of one has faulted, and the others are there.
        places = range(regs.rsp - _STACK_AT, regs.rsp - _STACK_AT + _STACK.size, 8)
        stack = b"".join(tracee.mm.read(place, 8).ljust(8, b"\0") for place in places)
        _, flags, rdi, rdx, aep, behind = _STACK.unpack(stack)
        if vdso.eenter_inside <= at < vdso.eenter_trap:
            thread = lp.thread if lp is not None else None
            if thread is None:
                raise self._refused(tracee)
            regs.rdx = rdx
            regs.rip = thread.oentry
            return
        if at == vdso.eenter:
            behind = regs.rax
        if at >= vdso.eenter_saved:
            regs.rcx, regs.rdx, regs.rdi = aep, rdx, rdi
            _set_flags(regs, flags)
        regs.rax = _EENTER
        regs.rip = behind - ENCLU_LENGTH
        if lp is None:
            return
        if vdso.eenter_counted <= at < vdso.eenter_inside:
            lp.quads[ENTERED] = max(lp.quads[ENTERED] - 1, 0)
            regs.fsbase, regs.gsbase = lp.quads[_HOST_FSBASE], lp.quads[_HOST_GSBASE]
        self.give_back(tracee)

    def give_back(self, tracee: "Tracee") -> None:
        """Release the TCS that a thread which is outside has taken."""
        lp = tracee.lp
        if lp is None or lp.inside:
            return
        lp.record[_SELECTOR] = 0
        thread = self._fast.taken(tracee, lp)
        if thread is not None:
            thread.quads[THREAD] = 0
            thread.words[STATE] &= STATE_OPEN

    # -- EEXIT ------------------------------------------------------------------------------

    def _in_eexit(self, tracee: "Tracee", at: int) -> None:
        regs, vdso, lp = tracee.regs, self._vdso, tracee.lp
        if lp is None:
            raise self._refused(tracee)
        quads = lp.quads
        if at >= vdso.eexit_saved:
            regs.rbx = quads[_RBX]
            _set_flags(regs, quads[_FLAGS])
        if lp.words[_MODE] != MODE_OUTSIDE:
            if at == vdso.eexit_counted:
                quads[LEFT] = max(quads[LEFT] - 1, 0)
            self._before_eexit(tracee, quads[_SITE])
            return
        regs.rax = _EEXIT
        regs.rcx = quads[_AEP]
        regs.rip = regs.rbx
        regs.fsbase, regs.gsbase = quads[_HOST_FSBASE], quads[_HOST_GSBASE]
        self.give_back(tracee)

    def _before_eexit(self, tracee: "Tracee", trap: int) -> None:
        slot = slot_at(tracee.mm, trap)
        if slot is None:
            raise self._refused(tracee)
        tracee.regs.rax = _EEXIT
        tracee.regs.rip = slot[0].enclu

    # -- the slots --------------------------------------------------------------------------

    @staticmethod
    def _at_slot(tracee: "Tracee", slot: "Slot", offset: int) -> None:
        regs = tracee.regs
        leaf = _EEXIT if tracee.inside else _EENTER
        if not offset:
            # Behind the MOV: before it is the jump, and who steps would come here for ever.
            regs.rax = leaf
            regs.rip = slot.move + slot.move_length
        elif offset < slot.moved:
            # The same instruction of its own code.
            regs.rip = slot.move + offset
        else:
            regs.rax = leaf
            regs.rip = slot.enclu

    @staticmethod
    def _refused(tracee: "Tracee") -> Refused:
        return Refused(
            f"process {tracee.process.pid} has changed what softsgx keeps of its threads: thread "
            f"{tracee.tid} stands in a transition that it has not begun"
        )
