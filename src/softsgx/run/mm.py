# SPDX-License-Identifier: Apache-2.0
"""An address space of the run, and places in it that are lent to injected calls.

Owns: the descriptor of /proc/PID/mem (opened at each exec and fork stop and kept, because a
program that makes itself non-dumpable closes every other way; its child is made dumpable for
that moment), and which of its pages hold what softsgx put there.
"""

import os

from softsgx.run import numbers as n

TYPE_CHECKING = False
if TYPE_CHECKING:
    from softsgx.run.elrange_map import EnclaveMap
    from softsgx.run.fast_path import Space
    from softsgx.run.rooms import Room
    from softsgx.run.tracee import Injector
    from softsgx.run.transition_sites import Site

SCRATCH_SLOT = 512
# Every thread of a program may stand in a call of ours at the same time; what is not used has no page.
SCRATCH_SIZE = 1 << 20
_PR_GET_DUMPABLE = 3
_PR_SET_DUMPABLE = 4


class Refused(Exception):
    """What the supervisor needs for a program is refused; the message is the user's."""


class Mm:
    """An address space (the kernel's mm_struct), shared by threads and by a vfork's child."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.mem = -1
        self.open()
        self._pagemap = -1
        self.users = 0
        self.image = 0  # where our vDSO stands
        self.gadget = 0  # where the image's stub for injected calls stands; 0 until the exec stop has placed it
        self.scratch = 0  # readable memory beside it for what an injected call reads
        self.scratch_used = 0  # of it, so much has been lent at a time
        self.slots: list[int] = []  # what of that is free
        # Memory for instructions that touch an enclave from outside: what no thread uses just now.
        self.abort_pages: list[int] = []
        self.records = 0  # where the record table is mapped
        self.aep = 0  # the ENCLU of our vDSO
        self.handle_exception = 0
        self.path_flag = 0  # the byte that makes the image ask about descriptors and maps too
        self.path_load = 0  # the one load of the image that may fault, and where it goes on then
        self.path_ask = 0
        self.cpuid_sites: set[int] = set()
        self.cpuid_faults = False  # every CPUID is a #GP here, and no text is changed for it
        self.slots_used = 0
        self.path_sites_left: set[int] = set()  # sites of path calls that stay as they are
        self.changed_pages: set[int] = set()  # pages of text that we have written to
        self.text: list[tuple[int, int]] = []  # private executable mappings of files, as last seen
        self.source_vma: tuple[int, int, bool | None] | None = None  # where pages were added from
        self.enclaves: EnclaveMap | None = None  # from the first mapping of an enclave on
        # Transitions that do not trap (fast_path, transition_sites): the table of their records, where the
        # image is told of it, the program's own ENCLUs, and where there is room for slots that stand for ENCLUs.
        self.space: Space | None = None
        # A thread may stop in the midst of one: there is a table, or are slots.
        self.transitions = False
        self._table_at = 0
        self.entry_sites: dict[int, Site] = {}
        self.rooms: list[Room] = []

    def open(self) -> None:
        """Open the memory, if that is allowed now."""
        # A binary that its user may execute but not read keeps its memory closed, and a child
        # that could not execute is gone already.
        try:
            self.mem = os.open(f"/proc/{self._pid}/mem", os.O_RDWR | os.O_CLOEXEC)
        except (PermissionError, FileNotFoundError, ProcessLookupError):
            self.mem = -1
        except OSError as error:
            raise Refused(
                f"no more programs can be followed ({error.strerror}): raise `ulimit -n`"
            ) from error

    def open_within(self, injector: "Injector") -> None:
        """Open the memory of the copy of a program that has made itself non-dumpable."""
        was = injector.call(n.SYS_PRCTL, _PR_GET_DUMPABLE)
        injector.call(n.SYS_PRCTL, _PR_SET_DUMPABLE, 1)
        self.open()
        injector.call(n.SYS_PRCTL, _PR_SET_DUMPABLE, was)
        self._forget_records()

    def fork(self, pid: int) -> "Mm":
        """Make the child's copy at its first stop."""
        child = Mm(pid)
        child.place(self.gadget, self.scratch)
        child.image = self.image
        child.path_flag = self.path_flag
        child.path_load = self.path_load
        child.path_ask = self.path_ask
        child.slots_used = self.slots_used
        child.path_sites_left = set(self.path_sites_left)
        child.changed_pages = set(self.changed_pages)
        child.text = list(self.text)
        child.abort_pages = list(self.abort_pages)
        child.records = self.records
        child.aep = self.aep
        child.handle_exception = self.handle_exception
        child.cpuid_sites = set(self.cpuid_sites)
        child.cpuid_faults = self.cpuid_faults
        child.entry_sites = {at: site.copy() for at, site in self.entry_sites.items()}
        child.rooms = [room.copy() for room in self.rooms]
        child.transitions = self.transitions
        child._table_at = self._table_at
        child._forget_records()
        return child

    def find_records(self, pointer: int, table: int) -> None:
        """Let the image find the records of threads and TCSs by a table, through a pointer of its own."""
        self._table_at = pointer
        self.transitions = True
        self.write(pointer, table.to_bytes(8, "little"))

    def _forget_records(self) -> None:
        # A forked child's threads are not those of the parent's table.
        if self._table_at and self.reachable:
            self.write(self._table_at, bytes(8))

    def watch_descriptors(self) -> None:
        """Let the image ask about stat calls without a path and maps: there is a node's file now."""
        if self.path_flag:
            self.write(self.path_flag, b"\1")

    def drop(self) -> None:
        """Give up one user; the last one closes."""
        self.users -= 1
        if not self.users:
            if self.space is not None:
                self.space.close()
            if self.enclaves is not None:
                self.enclaves.close()
            if self.reachable:
                os.close(self.mem)
            if self._pagemap >= 0:
                os.close(self._pagemap)

    @property
    def reachable(self) -> bool:
        """Whether the program's memory can be read and written."""
        return self.mem >= 0

    @property
    def gone(self) -> bool:
        """Whether no thread is left in it: mem_rw() of fs/proc/base.c then reads nothing."""
        try:
            return self.reachable and not os.pread(self.mem, 1, 0)
        except OSError:
            return False  # nothing is mapped there, which is usual

    def pagemap(self, offset: int, length: int) -> bytes:
        """Read /proc/PID/pagemap; shorter, or empty, where it cannot be had."""
        try:
            if self._pagemap < 0:
                self._pagemap = os.open(f"/proc/{self._pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
            return os.pread(self._pagemap, length, offset)
        except OSError:
            return b""

    def scratch_for(self, data: bytes) -> "Scratch":
        """Lend a place in the program that holds `data`, for an injected call to read."""
        if len(data) > SCRATCH_SLOT or not self.scratch:
            raise RuntimeError(f"no scratch slot for {len(data)} bytes")
        if not self.slots:
            if self.scratch_used == SCRATCH_SIZE:
                raise RuntimeError("no scratch slot left")
            self.slots.append(self.scratch + self.scratch_used)
            self.scratch_used += SCRATCH_SLOT
        return Scratch(self, data)

    def place(self, gadget: int, scratch: int) -> None:
        """Record where the gadget and the scratch memory beside it stand."""
        self.gadget = gadget
        self.scratch = scratch

    def read(self, address: int, length: int) -> bytes:
        """Read memory of the program; shorter, or empty, where it is not mapped."""
        if not 0 <= address < 1 << 63:
            return b""
        try:
            return os.pread(self.mem, length, address)
        except OSError:
            return b""

    def write(self, address: int, data: bytes) -> bool:
        """Write memory of the program, whatever its protection; False where it is not mapped."""
        if not 0 <= address < 1 << 63:
            return False
        try:
            return os.pwrite(self.mem, data, address) == len(data)
        except OSError:
            return False


class Scratch:
    """A slot of the scratch memory, lent as a context."""

    def __init__(self, mm: Mm, data: bytes) -> None:
        self._mm = mm
        self._at = mm.slots.pop()
        mm.write(self._at, data)

    def __enter__(self) -> int:
        return self._at

    def __exit__(self, *_: object) -> None:
        self._mm.slots.append(self._at)
