# SPDX-License-Identifier: Apache-2.0
"""Places of a program or an enclave that execute EENTER or EEXIT, led to the code that does it without a trap.

Owns what is known of each place, and the tables by which an EEXIT finds its TCS. Most ENCLUs stand behind
the MOV that loads the leaf, or not far. That MOV becomes a jump, as rr does it with system calls: it is one
instruction, so nobody stands in the midst of it, and the ENCLU stays for whoever comes to it otherwise. What
stands between the two is executed in the slot. What looks like a MOV may be the end of another instruction.
So it is changed only when a thread has been seen to execute it there: a debug register stops it before. All
other threads of the address space stand while it is written.

An enclave's TCS is found by the GS base that the enclave has, or the FS base, if no two of its TCSs have the
same; one that changes them inside is not found, and traps.

The processor's copy of a page never has the jump: what reads an enclave's memory for EWB, EDBGRD or an
extract is given the bytes that were there (MemfdElrange.change).
"""

import struct
import time

from softsgx.run import numbers as n
from softsgx.run import ptrace
from softsgx.run.path_sites import executable_files
from softsgx.run.ptrace import TraceeGone
from softsgx.run.rooms import Slot, room_near
from softsgx.run.slots import (
    EXIT_ENTRIES,
    JUMP_SIZE,
    MOVED_WITH_ENCLU_MOST,
    entry_slot,
    exit_slot,
    jump,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from softsgx.cpu.secs import SecsPage, Thread
    from softsgx.driver.elrange import MemfdElrange
    from softsgx.driver.task import EnclMm
    from softsgx.run.elrange_map import Mapped
    from softsgx.run.mm import Mm
    from softsgx.run.observe import Observer
    from softsgx.run.records import RecordTable
    from softsgx.run.rooms import Room
    from softsgx.run.tracee import Tracee
    from softsgx.run.vdso import VdsoImage

ENCLU_LENGTH = 3
_EENTER, _EEXIT = 2, 4
_SHIFTS = range(12, 40)
_WORD = (1 << 64) - 1
_HELD_WITHIN = 0.02  # seconds until threads that do not stop are left alone
_TRIES = 8
_SITES_MOST = 256  # of an enclave, or of a program; the rest trap
_PATIENCE = 16  # traps at one while a thread is to be seen at another

_CANDIDATE, _PROVEN, _CHANGED, _LEFT = range(4)


def leaf_move(code: bytes, leaf: int) -> int:
    """Give where in some bytes, which end at an ENCLU, the last MOV of a leaf's number to EAX or RAX is; -1 for none."""
    number = struct.pack("<I", leaf)
    long, short = code.rfind(b"\x48\xc7\xc0" + number), code.rfind(b"\xb8" + number)
    # With a REX prefix it is another register.
    while short > 0 and 0x40 <= code[short - 1] < 0x50:
        short = code.rfind(b"\xb8" + number, 0, short)
    return max(long, short)


def _move_length(code: bytes) -> int:
    return 7 if code[0] == 0x48 else 5


def moved_code(code: bytes, start: int, at: int) -> bytes:
    """Make of instructions that stand at `start` what does the same at `at`, byte for byte as long.

    Empty where they are not plain: one after the other, the first loads RAX and no other touches it.
    """
    if len(code) == _move_length(code):
        return code
    # The decoder costs 20 ms.
    from iced_x86 import (  # noqa: PLC0415
        Decoder,
        FlowControl,
        InstructionInfoFactory,
        OpAccess,
        Register,
        RegisterExt,
    )

    moved = bytearray(code)
    decoder = Decoder(64, code, ip=start)
    factory = InstructionInfoFactory()
    reads = OpAccess.READ, OpAccess.COND_READ, OpAccess.NONE, OpAccess.NO_MEM_ACCESS
    for number, instruction in enumerate(decoder):
        if not instruction or instruction.flow_control != FlowControl.NEXT:
            return b""
        offset = instruction.ip - start
        for used in factory.info(instruction).used_registers() if number else ():
            if (
                RegisterExt.full_register(used.register) == Register.RAX
                and used.access not in reads
            ):
                return b""
        if instruction.is_ip_rel_memory_operand:
            places = decoder.get_constant_offsets(instruction)
            if places.displacement_size != 4:
                return b""
            where = offset + places.displacement_offset
            displacement = struct.unpack_from("<i", code, where)[0] + start - at
            if not -(1 << 31) <= displacement < 1 << 31:
                return b""
            struct.pack_into("<i", moved, where, displacement)
    return bytes(moved) if decoder.position == len(code) else b""


def _code(mm: "Mm", address: int, length: int) -> bytes:
    """Read code, an enclave's as it holds it: a page of it may be a hole, which nobody touches by a mapping."""
    vma = mm.enclaves.find(address) if mm.enclaves is not None else None
    return mm.read(address, length) if vma is None else vma.file.elrange.read(address, length)


def _is_text(tracee: "Tracee", address: int) -> bool:
    """Tell whether an address lies in private text of a file: what is written there is this program's alone, and stays."""
    try:
        with open(f"/proc/{tracee.tid}/maps", "rb") as maps:
            return any(low <= address < high for low, high in executable_files(maps))
    except OSError:
        return False


class Site:
    """One ENCLU: where the MOV before it is, the bytes from there on, and what has become of it."""

    __slots__ = ("code", "move", "passed", "room", "slot", "state", "tries")

    def __init__(self, move: int, code: bytes, state: int) -> None:
        self.move = move
        self.code = code
        self.state = state
        self.slot = 0
        self.room: Room | None = None
        self.passed = 0
        self.tries = 0

    def copy(self) -> "Site":
        """Give that of a forked child, whose text and slots are its own from now on."""
        child = Site(self.move, self.code, self.state)
        child.slot = self.slot
        return child


class Exits:
    """The places of one enclave's EEXITs, and the table by which its TCSs are found."""

    def __init__(self, records: "RecordTable", secs: "SecsPage") -> None:
        self.sites: dict[int, Site] = {}
        self.home: EnclMm | None = None  # whose slots they lead to
        self.why = ""  # none of them can be changed
        self._records = records
        self.offset = -1
        self.by_fs = False
        self.shift = 0
        keys = self._keys(secs)
        if len(set(keys)) != len(keys):
            self.by_fs = True
            keys = self._keys(secs)
        if len(set(keys)) != len(keys):
            self.why = "two TCSs of the enclave have the same FS and GS base"
            return
        self.shift = max(_SHIFTS, key=lambda s: len({k >> s & EXIT_ENTRIES - 1 for k in keys}))
        self.offset = records.exits()
        if self.offset < 0:
            self.why = "there are more enclaves than tables"
            return
        self._quads = records.quads[self.offset // 8 :]

    def _keys(self, secs: "SecsPage") -> list[int]:
        return [self._key(thread) for thread in secs.threads.values()]

    def _key(self, thread: "Thread") -> int:
        return thread.fsbase if self.by_fs else thread.gsbase

    def enter(self, thread: "Thread", record: int) -> None:
        """Let a TCS be found, whose record is at this address in the program."""
        if self.offset < 0:
            return
        key = self._key(thread)
        at = key >> self.shift & EXIT_ENTRIES - 1
        negated = -key & _WORD
        if sum(self._key(other) == key for other in thread.secs.threads.values()) > 1:
            # One of the two was added later.
            if self._quads[at] == negated:
                self._quads[at] = self._quads[at + EXIT_ENTRIES] = 0
        elif not self._quads[at + EXIT_ENTRIES]:
            self._quads[at + EXIT_ENTRIES] = record
            self._quads[at] = negated

    def close(self) -> None:
        """Give the table back: the enclave is gone."""
        if self.offset >= 0:
            self._records.give_back_exits(self.offset)
            self.offset = -1
        for known in self.sites.values():
            if known.room is not None:
                known.room.give_back(known.slot)


class TransitionSites:
    """Finds the places, and changes them."""

    def __init__(
        self,
        vdso: "VdsoImage",
        records: "RecordTable",
        observer: "Observer",
        tracees: "dict[int, Tracee]",
        *,
        leave_text: bool,
    ) -> None:
        self._vdso = vdso
        self._records = records
        self._observer = observer
        self._tracees = tracees
        self._leave_text = leave_text
        self._exits: dict[int, Exits] = {}  # by EID

    # -- what has trapped --------------------------------------------------------------------

    def on_eenter(self, tracee: "Tracee", site: int) -> None:
        """Hear that an EENTER of the program's own was carried out at an ENCLU."""
        mm = tracee.mm
        if site == mm.aep or not mm.space:
            return
        known = mm.entry_sites.get(site)
        if known is None and len(mm.entry_sites) < _SITES_MOST:
            why = "" if _is_text(tracee, site) else "its ENCLU is not in the text of a file"
            if self._leave_text:
                why = "the program's text is to be left as it is"
            known = mm.entry_sites[site] = self._look_at(tracee, site, _EENTER, why)
        if known is not None:
            self._go_on_with(tracee, site, known, None)

    def on_eexit(self, tracee: "Tracee", site: int, thread: "Thread") -> None:
        """Hear that an EEXIT was carried out at an ENCLU, by whoever was inside by a TCS."""
        exits = self.exits_of(tracee, thread)
        known = exits.sites.get(site)
        if known is None and len(exits.sites) < _SITES_MOST:
            why = exits.why
            if self._leave_text:
                why = "the enclave's text is to be left as it is"
            known = exits.sites[site] = self._look_at(tracee, site, _EEXIT, why)
        if known is not None:
            self._go_on_with(tracee, site, known, thread.secs)

    def on_entered(self, tracee: "Tracee", thread: "Thread") -> None:
        """Hear that an enclave was entered by a leaf: a TCS of it that was not known yet may be like another."""
        if thread.secs.eid in self._exits:
            self.exits_of(tracee, thread)

    def exits_of(self, tracee: "Tracee", thread: "Thread") -> Exits:
        """Give what is known of an enclave, with this TCS among what can be found."""
        secs = thread.secs
        exits = self._exits.get(secs.eid)
        if exits is None:
            exits = self._exits[secs.eid] = Exits(self._records, secs)
        offset = self._records.tcs_offset(secs.eid, thread.linaddr)
        if offset and tracee.mm.records:
            exits.enter(thread, tracee.mm.records + offset)
        return exits

    def forget_enclave(self, eid: int) -> None:
        """Forget an enclave that is gone."""
        exits = self._exits.pop(eid, None)
        if exits is not None:
            exits.close()

    def _look_at(self, tracee: "Tracee", site: int, leaf: int, why: str) -> Site:
        code = b""
        if not why:
            length = min(MOVED_WITH_ENCLU_MOST, site % n.PAGE_SIZE)
            code = _code(tracee.mm, site - length, length)
            found = leaf_move(code, leaf)
            code = code[found:] if found >= 0 else b""
            if not code or not moved_code(code, site - len(code), site - len(code)):
                why = "no MOV of the leaf stands before its ENCLU, in a straight line"
        if why:
            self._observer.slow(why)
            return Site(0, b"", _LEFT)
        return Site(site - len(code), code, _CANDIDATE)

    def _go_on_with(
        self, tracee: "Tracee", site: int, known: Site, secs: "SecsPage | None"
    ) -> None:
        # `secs` is the enclave of an EEXIT; without it the place is the program's own, an EENTER.
        leaf = _EENTER if secs is None else _EEXIT
        if known.state == _CANDIDATE:
            watched = tracee.site_watched.get(leaf)
            if watched is not None and known.passed < _PATIENCE:
                # Where two take turns, neither would be seen if each took the other's register.
                known.passed += 1
            elif watched != (known.move, site):
                known.passed = 0
                self._watch(tracee, site, known, leaf)
        elif known.state == _PROVEN:
            self._change(tracee, site, known, secs)

    # -- the proof ----------------------------------------------------------------------------

    def _watch(self, tracee: "Tracee", site: int, known: Site, leaf: int) -> None:
        free = ptrace.WATCHABLE - len(tracee.hardware) - len(tracee.cpuid_watched)
        if not free:
            self._leave(known, "no debug register is free to see its MOV executed")
            return
        watched = tracee.site_watched
        if len(watched) == free and leaf not in watched:
            # The other one comes first.
            return
        watched[leaf] = known.move, site
        if not tracee.watch():
            del watched[leaf]
            self._leave(known, "this host has no debug registers to see its MOV executed")

    def on_breakpoint(self, tracee: "Tracee") -> bool:
        """Handle a thread that has come to a MOV that was watched; tell whether it was one."""
        rip = tracee.regs.rip
        leaf = next((x for x, (move, _) in tracee.site_watched.items() if move == rip), 0)
        if not leaf:
            return False
        move, site = tracee.site_watched.pop(leaf)
        tracee.watch()
        thread = tracee.lp.thread if tracee.lp is not None else None
        secs = thread.secs if thread is not None else None
        if (secs is None) != (leaf == _EENTER):
            return True
        exits = self._exits.get(secs.eid) if secs is not None else None
        sites = exits.sites if exits is not None else tracee.mm.entry_sites
        known = sites.get(site)
        if known is not None and known.move == move and known.state == _CANDIDATE:
            known.state = _PROVEN
            self._change(tracee, site, known, secs)
        return True

    def _leave(self, known: Site, why: str) -> None:
        known.state = _LEFT
        self._observer.slow(why)

    # -- the change ---------------------------------------------------------------------------

    def _change(self, tracee: "Tracee", site: int, known: Site, secs: "SecsPage | None") -> None:
        if _code(tracee.mm, known.move, len(known.code)) != known.code:
            self._leave(known, "its code has changed")
            return
        if known.move % n.PAGE_SIZE > n.PAGE_SIZE - JUMP_SIZE:
            self._leave(known, "its MOV lies across two pages")
            return
        if known.room not in tracee.mm.rooms:
            # There is no slot yet, or it is in a program that has made this one, or was made by it.
            room = room_near(tracee, known.move)
            if room is None:
                self._leave(known, "no room for a slot is within its reach")
                return
            if known.state != _PROVEN:
                # Another thread was faster, while this one made room.
                return
            moved = moved_code(known.code, known.move, room.next())
            if not moved:
                self._leave(known, "what stands before its ENCLU cannot be executed in a slot")
                return
            slot = Slot(site, known.move, _move_length(moved), len(moved))
            known.room, known.slot = room, room.lend(slot)
            tracee.mm.write(known.slot, self._slot(tracee.mm, site, known, moved, secs))
        known.tries += 1
        if not self._hold(tracee):
            if known.tries == _TRIES:
                self._leave(known, "other threads could not be held to change its code")
        elif secs is None:
            # The thread has carried out calls since it was looked at, and others have run.
            if _code(tracee.mm, known.move, len(known.code)) == known.code:
                tracee.mm.write(known.move, jump(known.move, known.slot))
                known.state = _CHANGED
        else:
            self._change_eexit(tracee.mm, known, self._exits[secs.eid])

    def _slot(
        self, mm: "Mm", site: int, known: Site, moved: bytes, secs: "SecsPage | None"
    ) -> bytes:
        if secs is None:
            eenter = mm.image + self._vdso.eenter
            return entry_slot(known.slot, moved, site + ENCLU_LENGTH, eenter)
        exits = self._exits[secs.eid]
        table, eexit = mm.records + exits.offset, mm.image + self._vdso.eexit
        fs, shift = exits.by_fs, exits.shift
        return exit_slot(known.slot, moved, site, table, eexit, by_fs=fs, shift=shift)

    def _change_eexit(self, mm: "Mm", known: Site, exits: Exits) -> None:
        vma = mm.enclaves.find(known.move) if mm.enclaves is not None else None
        if vma is None:
            return
        if vma.file.encl.mm_list != [mm.enclaves]:
            # A forked child may be about to execute something else.
            if known.tries >= _TRIES:
                self._leave(known, "several programs have mapped the enclave")
            return
        elrange: MemfdElrange = vma.file.elrange
        # Meanwhile the page may have gone, and what is written to a hole would make it one of zeros.
        if vma.file.encl.translate(known.move & -n.PAGE_SIZE) is None:
            return
        if _code(mm, known.move, len(known.code)) != known.code:
            return
        elrange.change(known.move, jump(known.move, known.slot), lambda: self._evicted(known))
        known.state = _CHANGED
        exits.home = mm.enclaves

    @staticmethod
    def _evicted(known: Site) -> None:
        # The page comes back as it was.
        if known.state == _CHANGED:
            known.state = _PROVEN
            known.tries = 0

    def on_mapped(self, file: "Mapped", tracee: "Tracee") -> None:
        """Hear that a thread has mapped an enclave: what was changed in it leads to slots, which are one program's."""
        encl = file.encl
        if len(encl.mm_list) > 1:
            self.withdraw(file, tracee)
            return
        exits = self._exits.get(encl.eid) if encl.created else None
        if exits is not None and exits.home is not None and exits.home is not tracee.mm.enclaves:
            # Who had it before is gone, or executes.
            while not self._hold(tracee):
                tracee.pause()
            file.elrange.take_back()
            self.forget_enclave(encl.eid)

    def withdraw(self, file: "Mapped", tracee: "Tracee") -> None:
        """Take back what was changed in an enclave that another program has mapped, where no slots are."""
        encl = file.encl
        for known in [k for e in self._exits.values() for k in e.sites.values()]:
            if known.state != _LEFT and encl.base <= known.move < encl.base + encl.size:
                self._leave(known, "several programs have mapped the enclave")
        if file.elrange.changed:
            while not all(self._hold(tracee, enclaves) for enclaves in list(encl.mm_list)):
                tracee.pause()
            file.elrange.take_back()

    def _hold(self, tracee: "Tracee", enclaves: "EnclMm | None" = None) -> bool:
        """Let every other thread of an address space stand; tell whether they do.

        They go on when the supervisor waits next.
        """
        wanted = tracee.mm.enclaves if enclaves is None else enclaves
        # Who waits in vfork stands, and cannot be stopped.
        awaiting = {other.awaited_by for other in self._tracees.values() if not other.ended}
        others = [
            other
            for other in self._tracees.values()
            if other.mm.enclaves is wanted and not other.ended and other not in awaiting
        ]
        moving = [o for o in others if o is not tracee and not ptrace.stands(o.tid)]
        for other in moving:
            try:
                ptrace.interrupt(other.tid)
            except TraceeGone:
                continue
        deadline = time.monotonic() + _HELD_WITHIN
        while moving:
            moving = [t for t in moving if not (ptrace.has_stopped(t.tid) or ptrace.stands(t.tid))]
            if time.monotonic() > deadline:
                return not moving
        return True
