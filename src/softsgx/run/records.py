# SPDX-License-Identifier: Apache-2.0
"""The table of ThreadRecords and TcsRecords that every enclave-mapping process of a run shares.

Owns one memfd: slots for threads, then slots for TCSs. It is mapped into a program when that
maps its first enclave, so that code inside the program can find what the trap path writes, and
write the same. The layout is arch.thread's; a slot is lent until it is given back.
"""

import mmap
import os

from softsgx.arch.thread import TcsRecord, ThreadRecord

_SLOTS = 1 << 16
_TCS_AT = _SLOTS * ThreadRecord.SIZE
TABLE_SIZE = _TCS_AT + _SLOTS * TcsRecord.SIZE


class RecordTable:
    """Lends records of the shared table."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("softsgx_records", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, TABLE_SIZE)
        self._map = mmap.mmap(self.fd, TABLE_SIZE)
        self._view = memoryview(self._map)
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

    def give_back_enclave(self, eid: int) -> None:
        """Take back the TcsRecords of an enclave that is gone."""
        self._tcs_free += self._tcs_of.pop(eid, {}).values()
