# SPDX-License-Identifier: Apache-2.0
"""Room in a program for the slots that stand for its ENCLUs, within reach of a jump of five bytes.

A Room owns which of its slots stand for what. Each program has one beside its image; what is farther away
than two GiB, as the text of most programs is and an enclave may be, gets one of its own near by.
"""

from softsgx.run import numbers as n
from softsgx.run.ptrace import failed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from softsgx.run.mm import Mm
    from softsgx.run.tracee import Tracee

TRANSITION_SLOT_SIZE = 256
# What is not used has no page.
ROOM_SIZE = 1 << 15
_REACH = (1 << 31) - ROOM_SIZE - n.PAGE_SIZE
# Nobody's heap or stack shall meet it: so far from the place, and from whatever is mapped.
_DISTANCES = [sign * step << 26 for step in (1, 2, 4, 8, 15, 23, 30) for sign in (-1, 1)]
_MARGIN = 1 << 24
_LOWEST, _HIGHEST = 1 << 20, (1 << 47) - (1 << 32)


class Slot:
    """Where an ENCLU is that a slot stands for, where and how long the MOV before it, and how much was moved."""

    __slots__ = ("enclu", "move", "move_length", "moved")

    def __init__(self, enclu: int, move: int, move_length: int, moved: int) -> None:
        self.enclu = enclu
        self.move = move
        self.move_length = move_length
        self.moved = moved


class Room:
    """Slots from an address on."""

    __slots__ = ("slots", "start")

    def __init__(self, start: int) -> None:
        self.start = start
        self.slots: list[Slot | None] = []  # None is free again

    def copy(self) -> "Room":
        """Give that of a forked child."""
        child = Room(self.start)
        child.slots = list(self.slots)
        return child

    def next(self) -> int:
        """Give the address of the next free slot; 0 for none."""
        number = self.slots.index(None) if None in self.slots else len(self.slots)
        at = number * TRANSITION_SLOT_SIZE
        return self.start + at if at < ROOM_SIZE else 0

    def lend(self, slot: Slot) -> int:
        """Lend the next free slot, of which there is one; give its address."""
        at = self.next()
        number = (at - self.start) // TRANSITION_SLOT_SIZE
        self.slots[number : number + 1] = [slot]
        return at

    def give_back(self, at: int) -> None:
        """Take back the slot at an address, whose enclave is gone."""
        self.slots[(at - self.start) // TRANSITION_SLOT_SIZE] = None

    def reaches(self, address: int) -> bool:
        """Tell whether a jump at an address reaches every slot, and one of theirs that address."""
        return abs(address - self.start) < _REACH


def slot_at(mm: "Mm", address: int) -> tuple[Slot, int] | None:
    """Give the slot that an address lies in, and the offset there."""
    for room in mm.rooms:
        number, offset = divmod(address - room.start, TRANSITION_SLOT_SIZE)
        if 0 <= number < len(room.slots):
            slot = room.slots[number]
            return None if slot is None else (slot, offset)
    return None


def room_near(tracee: "Tracee", address: int) -> Room | None:
    """Give room that a jump at an address reaches, by a mapping of the thread's if there is none yet."""
    mm = tracee.mm
    for room in mm.rooms:
        if room.next() and room.reaches(address):
            return room
    start = _hole(tracee, address)
    if not start:
        return None
    flags = n.MAP_PRIVATE | n.MAP_ANONYMOUS | n.MAP_FIXED_NOREPLACE
    with tracee.injecting() as injector:
        prot = n.PROT_READ | n.PROT_EXEC
        at = injector.call(n.SYS_MMAP, start, ROOM_SIZE, prot, flags, -1, 0)
    if failed(at) or at != start:
        return None
    room = Room(at)
    mm.rooms.append(room)
    return room


def _hole(tracee: "Tracee", address: int) -> int:
    taken: list[tuple[int, int]] = []
    try:
        with open(f"/proc/{tracee.tid}/maps", "rb") as maps:
            for line in maps:
                low, _, high = line.split(None, 1)[0].partition(b"-")
                taken.append((int(low, 16), int(high, 16)))
    except OSError:
        return 0
    enclaves = tracee.mm.enclaves
    encls = {file.encl for file in enclaves.files()} if enclaves is not None else set()
    taken += [(encl.base, encl.base + encl.size) for encl in encls if encl.created]
    for distance in _DISTANCES:
        start = (address + distance) & -n.PAGE_SIZE
        free = all(
            start + ROOM_SIZE + _MARGIN <= low or high <= start - _MARGIN for low, high in taken
        )
        if _LOWEST <= start < _HIGHEST and free:
            return start
    return 0
