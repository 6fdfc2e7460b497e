# SPDX-License-Identifier: Apache-2.0
"""The table of ThreadRecords and TcsRecords that every enclave-mapping process of a run shares.

Owns one memfd: slots for threads, then slots for TCSs, then the tables by which code inside a program
finds them: one for each address space that enters enclaves, one for each enclave. It is mapped into a
program when that maps its first enclave. The layout is arch.thread's; a slot is lent until it is given back.
"""

import ctypes
import mmap
import os

from softsgx.arch.thread import TcsRecord, ThreadRecord

_SLOTS = 1 << 16
_TCS_AT = _SLOTS * ThreadRecord.SIZE
_SPACES_AT = _TCS_AT + _SLOTS * TcsRecord.SIZE
_SPACES = 1 << 10
SPACE_SIZE = 32 << 10
_EXITS_AT = _SPACES_AT + _SPACES * SPACE_SIZE
_EXITS = 1 << 11
EXITS_SIZE = 4096
TABLE_SIZE = _EXITS_AT + _EXITS * EXITS_SIZE


class _Slots:
    """Lends places of one size, lowest first."""

    def __init__(self, start: int, size: int, count: int) -> None:
        self._next, self._size, self._end = start, size, start + size * count
        self._free: list[int] = []

    def lend(self) -> int:
        if self._free:
            return self._free.pop()
        at = self._next
        if at == self._end:
            return -1
        self._next += self._size
        return at

    def give_back(self, at: int) -> None:
        self._free.append(at)


class RecordTable:
    """Lends records of the shared table."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("softsgx_records", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, TABLE_SIZE)
        self._map = mmap.mmap(self.fd, TABLE_SIZE)
        self._view = memoryview(self._map)
        # Whole quadwords, each written by one store: code in a program reads them meanwhile.
        self.quads = self._view.cast("Q")
        self._start = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self._spaces = _Slots(_SPACES_AT, SPACE_SIZE, _SPACES)
        self._exits = _Slots(_EXITS_AT, EXITS_SIZE, _EXITS)
        self._threads: list[int] = []
        self._thread_count = 0
        self._tcs_free: list[int] = []
        self._tcs_count = 0
        self._tcs_of: dict[int, dict[int, int]] = {}

    def thread(self) -> tuple[int, memoryview]:
        """Lend a ThreadRecord, all zero; give its slot too, by which it is given back."""
        if self._threads:
            slot = self._threads.pop()
        else:
            slot = self._thread_count
            self._thread_count += 1
            if slot >= _SLOTS:
                raise RuntimeError(f"more than {_SLOTS} threads use enclaves at once")
        at = slot * ThreadRecord.SIZE
        self._map[at : at + ThreadRecord.SIZE] = bytes(ThreadRecord.SIZE)
        return slot, self._view[at : at + ThreadRecord.SIZE]

    def give_back_thread(self, slot: int) -> None:
        """Take back the record of a thread that has ended."""
        self._threads.append(slot)

    def tcs(self, eid: int, linaddr: int) -> memoryview:
        """Lend a TcsRecord, all zero: the processor's port for a new TCS."""
        known = self._tcs_of.get(eid, {}).get(linaddr, 0)
        if known:
            # The TCS was evicted, or removed and added again.
            at = known
        elif self._tcs_free:
            at = self._tcs_free.pop()
        else:
            at = _TCS_AT + self._tcs_count * TcsRecord.SIZE
            self._tcs_count += 1
            if self._tcs_count > _SLOTS:
                # The processor holds the record itself: only the trap path serves such a TCS.
                return memoryview(bytearray(TcsRecord.SIZE))
        self._map[at : at + TcsRecord.SIZE] = bytes(TcsRecord.SIZE)
        self._tcs_of.setdefault(eid, {})[linaddr] = at
        return self._view[at : at + TcsRecord.SIZE]

    def tcs_offset(self, eid: int, linaddr: int) -> int:
        """Give where in the table a TCS's record is; 0 for one that the processor holds."""
        return self._tcs_of.get(eid, {}).get(linaddr, 0)

    def address(self, offset: int) -> int:
        """Give where a place of the table is in this process."""
        return self._start + offset

    def space(self) -> int:
        """Lend the table of an address space, all zero; its offset, or -1 where none is left."""
        return self._zeroed(self._spaces.lend(), SPACE_SIZE)

    def give_back_space(self, offset: int) -> None:
        """Take back the table of an address space that is gone."""
        self._spaces.give_back(offset)

    def exits(self) -> int:
        """Lend the table of an enclave, all zero; its offset, or -1 where none is left."""
        return self._zeroed(self._exits.lend(), EXITS_SIZE)

    def give_back_exits(self, offset: int) -> None:
        """Take back the table of an enclave that is gone."""
        self._exits.give_back(offset)

    def _zeroed(self, at: int, size: int) -> int:
        if at >= 0:
            self._map[at : at + size] = bytes(size)
        return at

    def give_back_enclave(self, eid: int) -> None:
        """Take back the TcsRecords of an enclave that is gone."""
        self._tcs_free += self._tcs_of.pop(eid, {}).values()
