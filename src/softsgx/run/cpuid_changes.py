# SPDX-License-Identifier: Apache-2.0
"""Changes the proven CPUID instructions of a mapping: a jump where it has room, else UD2.

Owns nothing; what was changed is recorded in the Mm. It is done before the mapping is known to the
program, so that no thread can be in the middle of it, and in two system calls a neighbourhood: a
dynamic linker has 37 CPUIDs, and every start of a program waits for this.
"""

import struct
from binascii import crc32

from softsgx.run import numbers as n
from softsgx.run.gp_instructions import CPUID, UD2
from softsgx.run.slots import JUMP_SIZE, MOVED_MOST, cpuid_slot, free_slot, jump, moved_to

TYPE_CHECKING = False
if TYPE_CHECKING:
    from softsgx.run.tracee import Mm, Tracee
    from softsgx.run.vdso import VdsoImage

_NEIGHBOURS = 4 * n.PAGE_SIZE
_LONGEST = 64  # bytes from a CPUID on that are looked at
_DISPLACEMENT = struct.Struct("<i")
_DISPLACEMENTS = range(-(1 << 31), 1 << 31)


class CpuidChanges:
    """Changes sites; `detours` lets jumps be used, which nobody counts or traces."""

    def __init__(self, vdso: "VdsoImage", *, detours: bool) -> None:
        self._vdso = vdso
        self._detours = detours

    def change(self, tracee: "Tracee", sites: list[tuple[int, int]]) -> None:
        """Change sites, each an address and its encoded detour (cpuid_detours.encode)."""
        near: list[tuple[int, int]] = []
        for site in sites:
            if near and site[0] - near[0][0] > _NEIGHBOURS:
                self._change_near(tracee.mm, near)
                near = []
            near.append(site)
        if near:
            self._change_near(tracee.mm, near)

    def _change_near(self, mm: "Mm", sites: list[tuple[int, int]]) -> None:
        low = sites[0][0]
        text = bytearray(mm.read(low, sites[-1][0] - low + _LONGEST))
        slots_at, slots = 0, b""
        end = 0  # what lies behind is another mapping's perhaps, and in use
        for address, detour in sites:
            at = address - low
            # The bytes are looked at once more: the file may have changed since it was looked into.
            if text[at : at + 2] != CPUID:
                continue
            slot = free_slot(mm, self._vdso, address) if detour and self._detours else 0
            code = self._slot(mm, slot, address, detour, bytes(text[at:])) if slot else b""
            if code:
                mm.slots_used += 1
                slots_at = slots_at or slot
                slots += code
                end = at + JUMP_SIZE
                text[at:end] = jump(address, slot)
            else:
                end = at + len(UD2)
                text[at:end] = UD2
                mm.cpuid_sites.add(address)
            mm.changed_pages.update((address // n.PAGE_SIZE, (address + 4) // n.PAGE_SIZE))
        if slots:
            mm.write(slots_at, slots)
        mm.write(low, bytes(text[:end]))

    def _slot(self, mm: "Mm", slot: int, address: int, detour: int, text: bytes) -> bytes:
        length, displacement, checksum = detour & 0xFF, detour >> 8 & 0xFF, detour >> 32
        moved = bytearray(text[len(CPUID) : length])
        # Another file may have had the same build id.
        if len(moved) > MOVED_MOST or crc32(text[:length]) != checksum:
            return b""
        if displacement:
            at = displacement - len(CPUID)
            by = moved_to(slot) - (address + len(CPUID))
            value = _DISPLACEMENT.unpack_from(moved, at)[0] - by
            if value not in _DISPLACEMENTS:
                return b""
            _DISPLACEMENT.pack_into(moved, at, value)
        call = mm.image + self._vdso.answer_cpuid
        return cpuid_slot(slot, call, bytes(moved), address + length)
