# SPDX-License-Identifier: Apache-2.0
"""Path calls that need not ask: a program's own system call sites, sent through the vDSO image.

Owns nothing; what has been replaced is recorded in the Mm. Every path call of a program asks the
supervisor, which costs ten times the call itself, while the answer is nearly always "go on". So a
site that has asked once is changed, as rr does it: the MOV $value, %reg before its SYSCALL, of the
number or of an argument, becomes a jump to a slot of the image (csrc/vdso/paths.S), whose code looks
at the path itself and asks only where a device node could be meant.

Only what is certain is changed. The seven bytes MOV $value, %reg; SYSCALL have just been executed,
and the register had this value; the page is a file's text, not code that a program makes and may
move; and no other thread can be in the middle of the five bytes, for there is none. The SYSCALL
itself stays, so that who stands in it, or jumps to it, finds what was there.
"""

import struct

from softsgx.run import numbers as n
from softsgx.run.slots import JUMP_SIZE, free_slot, jump, path_slot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from softsgx.run.notification import Notification
    from softsgx.run.tracee import Tracee
    from softsgx.run.vdso import VdsoImage

_MOV_EAX = 0xB8
_ARGUMENTS = {0xBF: 0, 0xBE: 1, 0xBA: 2}  # MOV to EDI, ESI, EDX
_SITE = struct.Struct("<BBIH")  # the byte before, MOV's opcode and operand, SYSCALL
_SYSCALL = 0x050F
_SITE_SIZE = 7
# Before the opcode, these make it a part of another instruction: REX prefixes, and LEA (MOV from or to
# memory at such an address would have faulted).
_NOT_BEFORE = frozenset((*range(0x40, 0x50), 0x8D))
_PAGEMAP_FILE = 1 << 61  # Documentation/admin-guide/mm/pagemap.rst
_PAGEMAP_PRESENT = 1 << 63


def site_of(code: bytes, number: int, args: tuple[int, ...]) -> bool:
    """Tell whether 8 bytes end in MOV $value, %reg; SYSCALL, and the call was made with that value."""
    if len(code) != _SITE.size:
        return False
    before, opcode, operand, last = _SITE.unpack(code)
    value = (
        number if opcode == _MOV_EAX else args[_ARGUMENTS[opcode]] if opcode in _ARGUMENTS else -1
    )
    return before not in _NOT_BEFORE and operand == value & 0xFFFFFFFF and last == _SYSCALL


def executable_files(maps: "Iterable[bytes]") -> list[tuple[int, int]]:
    """Give the private executable mappings of files in the lines of a /proc/PID/maps."""
    found = []
    for line in maps:
        fields = line.split(None, 5)
        if len(fields) == 6 and fields[1] == b"r-xp" and fields[5].startswith(b"/"):
            low, _, high = fields[0].partition(b"-")
            found.append((int(low, 16), int(high, 16)))
    return found


class PathSites:
    """Changes the sites of path calls, each at its first notification."""

    def __init__(self, vdso: "VdsoImage") -> None:
        self._vdso = vdso

    def adopt(self, tracee: "Tracee", call: "Notification") -> None:
        """Send the site of a call that stands here through the image from now on, if it can be."""
        mm = tracee.mm
        if call.ip in mm.path_sites_left or not mm.image:
            return
        if mm.users > 1 or tracee.process.threads > 1:
            return  # another thread may execute these bytes now; later there may be none
        start = call.ip - _SITE_SIZE
        at = free_slot(mm, self._vdso, start)
        site = mm.read(start - 1, _SITE.size)
        if (
            not site_of(site, call.number, call.args)
            or not at
            or not self._is_file_text(tracee, start)
        ):
            mm.path_sites_left.add(call.ip)
            return
        code = path_slot(at, site[1 : 1 + JUMP_SIZE], mm.image + self._vdso.path_call, call.ip)
        if not mm.write(at, code):
            return
        mm.slots_used += 1
        mm.write(start, jump(start, at))
        for address in (start, start + JUMP_SIZE - 1):
            mm.changed_pages.add(address // n.PAGE_SIZE)

    @staticmethod
    def _is_file_text(tracee: "Tracee", start: int) -> bool:
        mm = tracee.mm
        if not any(low < start and start + _SITE_SIZE <= high for low, high in mm.text):
            try:
                with open(f"/proc/{tracee.tid}/maps", "rb") as maps:
                    mm.text = executable_files(maps)
            except OSError:
                return False
            if not any(low < start and start + _SITE_SIZE <= high for low, high in mm.text):
                return False
        # The list may be older than what is mapped there now; a page of a file that nobody has
        # written to is not code that the program has made.
        first, last = start // n.PAGE_SIZE, (start + _SITE_SIZE - 1) // n.PAGE_SIZE
        for page in {first, last} - mm.changed_pages:
            entry = int.from_bytes(mm.pagemap(8 * page, 8), "little")
            if not entry & _PAGEMAP_FILE or not entry & _PAGEMAP_PRESENT:
                return False
        return True
