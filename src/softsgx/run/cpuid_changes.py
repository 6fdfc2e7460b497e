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
from softsgx.run.slots import (
    JUMP_SIZE,
    MOVED_MOST,
    cpuid_slot,
    free_slot,
    jump,
    moved_to,
    path_slot,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from softsgx.run.mm import Mm
    from softsgx.run.tracee import Tracee
    from softsgx.run.vdso import VdsoImage

_NEIGHBOURS = 4 * n.PAGE_SIZE
_LONGEST = 64  # bytes from a CPUID on that are looked at
_BEFORE = 0xFF  # as in cpuid_detours, which brings the decoder
_DISPLACEMENT = struct.Struct("<i")
_DISPLACEMENTS = range(-(1 << 31), 1 << 31)


def _before(detour: int) -> bool:
    return detour >> 8 & 0xFF == _BEFORE


class CpuidChanges:
    """Changes sites; `detours` lets jumps be used, which nobody counts or traces."""

    def __init__(self, vdso: "VdsoImage", *, detours: bool) -> None:
        self._vdso = vdso
        self._detours = detours

    def change(self, tracee: "Tracee", sites: list[tuple[int, int]], start: int) -> None:
        """Change sites of a mapping, each an address and its encoded detour (cpuid_detours.encode)."""
        near: list[tuple[int, int]] = []
        for site in sites:
            if near and site[0] - near[0][0] > _NEIGHBOURS:
                self._change_near(tracee.mm, near, start)
                near = []
            near.append(site)
        if near:
            self._change_near(tracee.mm, near, start)

    def _change_near(self, mm: "Mm", sites: list[tuple[int, int]], start: int) -> None:
        # Not below the mapping: what is there is another's.
        low = max(sites[0][0] - (JUMP_SIZE if _before(sites[0][1]) else 0), start)
        text = bytearray(mm.read(low, sites[-1][0] - low + _LONGEST))
        slots_at, slots, end = 0, b"", 0
        for address, detour in sites:
            at = address - low
            # The bytes are looked at once more: the file may have changed since it was looked into.
            if text[at : at + 2] != CPUID:
                continue
            first = at - (JUMP_SIZE if _before(detour) else 0)
            # What is before a CPUID may have moved with the CPUID before that.
            wanted = detour and self._detours and first >= max(end, 0)
            slot = free_slot(mm, self._vdso, low + first) if wanted else 0
            code = self._slot(mm, slot, address, detour, bytes(text[first:])) if slot else b""
            if code:
                mm.slots_used += 1
                slots_at = slots_at or slot
                slots += code
                text[first : first + JUMP_SIZE] = jump(low + first, slot)
                end = first + JUMP_SIZE if first < at else at + (detour & 0xFF)
            if not code or first < at:
                text[at : at + len(UD2)] = UD2
                end = at + len(UD2)
                mm.cpuid_sites.add(address)
            mm.changed_pages.update(((low + first) // n.PAGE_SIZE, (address + 4) // n.PAGE_SIZE))
        if slots:
            mm.write(slots_at, slots)
        mm.write(low, bytes(text[:end]))

    def _slot(self, mm: "Mm", slot: int, address: int, detour: int, text: bytes) -> bytes:
        length, displacement, checksum = detour & 0xFF, detour >> 8 & 0xFF, detour >> 32
        call = mm.image + self._vdso.answer_cpuid
        if _before(detour):
            size = JUMP_SIZE + len(CPUID)
            mov, back = text[:JUMP_SIZE], address + len(CPUID)
            return path_slot(slot, mov, call, back) if crc32(text[:size]) == checksum else b""
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
        return cpuid_slot(slot, call, bytes(moved), address + length)
