# SPDX-License-Identifier: Apache-2.0
"""The enclave object (kernel: encl.c and the allocation parts of ioctl.c).

Owns an enclave's EPC pages: its SECS, its VA pages, the pages of its page array; and its backing store,
where those are that were evicted.  Used by the driver's thread only.  A call that follows user pointers may
suspend the caller in the middle; meanwhile other threads may map, fault and enter, but ``ioctl_in_flight``
keeps the enclave's other ioctls out.
"""

import errno
from typing import TYPE_CHECKING

from softsgx.arch.attributes import ATTRIBUTES_UNPRIVILEGED
from softsgx.arch.secinfo import PAGE_SIZE, PT_REG, SECINFO_PENDING
from softsgx.arch.structures import Pageinfo, Secinfo, Secs
from softsgx.cpu.encls import eadd_pages, ecreate
from softsgx.cpu.epc import Epc, PageIndex
from softsgx.cpu.memory import Elrange, HeldMemory
from softsgx.cpu.transition import abandon
from softsgx.driver.backing import Backing, NoBacking, store_size
from softsgx.driver.elrange import ELRANGE_SIZE, MemfdElrange
from softsgx.driver.encl_epc import EnclEpc
from softsgx.driver.page_array import (
    PageArray,
    PageRun,
    added_kind,
    neighbours,
    permissions,
)
from softsgx.driver.stores import Stores
from softsgx.driver.task import add_failed, executable_pages
from softsgx.driver.vma import PROT_EXEC, PROT_RWX, PROT_WRITE
from softsgx.errors import DriverError, Fault

if TYPE_CHECKING:
    from softsgx.cpu.processor import Processor
    from softsgx.driver.encl_stats import BuildEvents, EnclEvents
    from softsgx.driver.reclaim import Reclaimer
    from softsgx.driver.task import EnclMm, Task


# Pages that one EADD run takes at most: between runs, some 15 ms, a signal can end the call.
_RUN_PAGES = 4096
# For so many pages room is made at a time.
_ROOM_PAGES = 512
# Beyond this a file has no offsets (MAX_LFS_FILESIZE): shmem_file_setup refuses.
_FILE_SIZE_MAX = (1 << 63) - 1


class Encl(EnclEpc):
    """One enclave, from open() of the node to the last reference's end; ``base`` and ``size`` in bytes."""

    # The touch of a hole adds a page, where the processor has SGX2.
    augmented = True

    def __init__(
        self, cpu: "Processor", reclaimer: "Reclaimer", elrange: Elrange, stores: Stores
    ) -> None:
        super().__init__(cpu, reclaimer)
        self.elrange = elrange
        self.stores = stores
        # Where evicted pages go: the default from CREATE on, until SET_BACKING says otherwise.
        self.backing: Backing = NoBacking()
        self.backing_set = False
        # SGX_ENCL_IOCTL, SGX_ENCL_CREATED, SGX_ENCL_INITIALIZED.
        self.ioctl_in_flight = False
        self.created = False
        self.initialized = False
        # Killed, for lack of EPC or of its backing: no page is left, and none comes (SGX_ENCL_OOM of the
        # EPC cgroup series).
        self.dead = False
        self.eid = 0
        self.base = 0
        self.size = 0
        self.attributes = 0
        self.attributes_mask = 0
        self.secs_page: PageIndex | None = None
        self._secs_slot = -1
        self.page_array = PageArray()
        # What tells its pages from those of other enclaves, in the upper bits.
        self.serial = 0
        self.mm_list: list[EnclMm] = []
        self._unzapped: set[EnclMm] = set()  # that can still reach the pages of a killed enclave
        # Pages that are on their way out, by address; one that is touched before it is blocked is taken out.
        self.reclaiming: set[int] = set()
        # Pages that are about to become holes, by address.
        self.modifying: set[int] = set()
        self.events: EnclEvents | None = None
        self.builds: BuildEvents | None = None

    # -- building ---------------------------------------------------------------------------

    def create(self, secs: bytes, task: "Task", backing: Backing | None = None) -> None:
        """ECREATE from a SECS of 4096 bytes; DriverError leaves the enclave as it was.

        ``backing`` is the enclave's then; without, it gets the default store.
        """
        fields = Secs.decode(secs)
        # ECREATE would see it too; here it keeps the backing's size from overflowing.
        if fields.size.bit_count() != 1:
            raise DriverError(errno.EINVAL, f"SECS.SIZE {fields.size:#x} is not a power of two")
        self.make_room(task, 2, 2)
        if not self.allocator.free_pages:
            raise self.exhausted("the first VA page")
        if store_size(fields.size) > _FILE_SIZE_MAX:
            raise DriverError(
                errno.EINVAL, f"SECS.SIZE {fields.size:#x}: no file is large enough to back it"
            )
        if not self.affordable(1):
            raise self.exhausted("the SECS")
        default = self.stores.default(fields.size) if backing is None else None
        self.grow(1)
        page = self.allocate_page()
        memory = HeldMemory()
        pageinfo = Pageinfo(
            linaddr=0,
            srcpge=memory.place(secs),
            secinfo=memory.place(Secinfo(flags=0).encode()),
            secs=0,
        )
        try:
            ecreate(
                self.cpu,
                memory,
                memory.place(pageinfo.encode()),
                Epc.address(page),
                elrange=self.elrange,
            )
        except Fault as fault:
            self.free_epc_page(page)
            self.shrink(1)
            if default is not None:
                default.close()
            raise DriverError(errno.EIO, f"ECREATE: {fault}") from fault
        self.secs_page = page
        self.eid = self.cpu.enclaves[page].eid
        self.reclaimer.created(self, page)
        self.base = fields.baseaddr
        self.size = fields.size
        self.attributes = fields.attributes
        self.attributes_mask = ATTRIBUTES_UNPRIVILEGED
        self.created = True
        if backing is not None:
            self.give_backing(backing)
        elif default is not None:
            self.backing = default
        self.reclaimer.allocated()

    def give_backing(self, backing: Backing) -> None:
        """Take the store that the program has chosen, for good; no page has been evicted yet."""
        self.backing.close()
        self.backing = backing
        self.backing_set = True

    def add_run(
        self,
        task: "Task",
        offset: int,
        source: int,
        count: int,
        secinfo_flags: int,
        measure: bool,
        *,
        noexec: bool = False,
    ) -> int:
        """EADD (and EEXTEND) a run of pages from user memory and return how many, at least one.

        ``offset`` is in bytes from the base, ``count`` in pages.  Every page is added whole or not at
        all.  With ``noexec`` the source may lie on a noexec mount.  DriverError is about the first page,
        of which nothing is left.
        """
        # So many are on their way in, and cannot give way to anybody.
        count = min(count, _RUN_PAGES, max(self.allocator.total // 8, 1))
        wanted = min(count, _ROOM_PAGES)
        self.make_room(task, wanted + self.va_pages_wanted(wanted), 1 + self.va_pages_wanted(1))
        if self.dead:
            raise DriverError(errno.EIO, "the enclave was killed: its backing cannot be written")
        count = self.affordable(count)
        if count == 0:
            raise self.exhausted(f"page {offset:#x}")
        first = (self.base + offset) // PAGE_SIZE
        count = self.page_array.absent_from(first, count)
        if count == 0:
            raise DriverError(errno.EBUSY, f"page {offset:#x} is present already")
        if not noexec:
            count = executable_pages(task, source, count)
        # An enclave may reach beyond, and the processor would take the page: but nobody could map it.
        count = min(count, ELRANGE_SIZE // PAGE_SIZE - first)
        if count <= 0:
            raise DriverError(
                errno.EIO,
                f"EADD of page {offset:#x}: {first * PAGE_SIZE:#x} is beyond the user address "
                f"space, {ELRANGE_SIZE:#x}; such pages are not modelled",
            )
        epc_first, count = self.allocator.allocate_run(count)
        self.stats.resident += count
        self.grow(count)
        added = 0
        try:
            added = eadd_pages(
                self.cpu,
                task.memory,
                self.created_secs(),
                range(epc_first, epc_first + count),
                first * PAGE_SIZE,
                source,
                secinfo_flags,
                measure,
            )
        except Fault as fault:
            raise add_failed(fault, offset, source) from fault
        finally:
            # Reached also when a suspended caller is killed: no page, nor half of one, may stay behind.
            if added < count:
                self.free_epc_run(epc_first + added, count - added)
                self.shrink(count - added)
                self.elrange.discard((first + added) * PAGE_SIZE, (count - added) * PAGE_SIZE)
        if added:
            self.page_array.insert(first, epc_first, added, added_kind(secinfo_flags))
            if self.builds is not None:
                self.builds.added(self, first * PAGE_SIZE, added, secinfo_flags, measure)
        self.stats.added += added
        self.reclaimer.added(self, range(epc_first, epc_first + added))
        self.reclaimer.allocated()
        return added

    def created_secs(self) -> PageIndex:
        """Return the SECS's EPC page; ValueError before ``create``, and while it is evicted."""
        if self.secs_page is None:
            raise ValueError("the enclave has no resident SECS")
        return self.secs_page

    # -- mapping and faults -----------------------------------------------------------------

    def may_map(self, start: int, end: int, prot: int, read_implies_exec: bool = False) -> None:
        """Judge a mapping or protection change of [start, end) (sgx_encl_may_map); DriverError EACCES if refused."""
        if self.initialized and (start < self.base or end > self.base + self.size):
            raise DriverError(
                errno.EACCES,
                f"{start:#x}..{end:#x} is outside the enclave "
                f"{self.base:#x}..{self.base + self.size:#x}",
            )
        if read_implies_exec:
            raise DriverError(errno.EACCES, "the caller's personality is READ_IMPLIES_EXEC")
        for low, _, run in self.page_array.parts(start, end):
            if prot & PROT_RWX & ~run.vm_max_prot:
                raise DriverError(
                    errno.EACCES, f"protection {prot:#x} exceeds what page {low:#x} was added with"
                )

    @staticmethod
    def page_prot(run: PageRun, prot: int) -> int:
        """Return what a VMA of protection ``prot`` and the EPCM give of a page.

        Nothing, where the VMA exceeds vm_max_prot.  A TCS, or what was one, is a hole whatever it gives.
        """
        if prot & PROT_RWX & ~run.vm_max_prot:
            return 0
        return prot & run.kind.allowed if run.type == PT_REG else prot

    def watched_prot(self, run: PageRun, prot: int) -> int:
        """Return what a VMA must give of a page where writing can be taken from the page itself."""
        given = self.page_prot(run, prot)
        return given | prot & PROT_WRITE if given else 0

    def narrowed(self, start: int, end: int, prot: int) -> list[tuple[int, int, int]]:
        """Return the parts of [start, end) of which a VMA must give less than ``prot``, in order, with how much.

        That is so where holes fault, and so does a write to a page that ``unwritable`` tells of.
        """
        # What is added in a hole may not be executed: that is taken away at once, not page by page.
        grows = self.initialized and self.augments and prot & PROT_EXEC
        of_hole = prot & ~PROT_EXEC if grows else prot
        parts: list[tuple[int, int, int]] = []
        at = start
        for low, high, run in self.page_array.parts(start, end):
            parts += (at, low, of_hole), (low, high, self.watched_prot(run, prot))
            at = high
        parts.append((at, end, of_hole))
        return [part for part in parts if part[0] < part[1] and part[2] != prot]

    def unwritable(self, start: int, end: int) -> list[tuple[int, int]]:
        """Return the parts of [start, end) that are not to be written because the EPCM alone forbids it."""
        return [
            (at, to)
            for at, to, run in self.page_array.parts(start, end)
            if not run.hidden and run.vm_max_prot & PROT_WRITE & ~run.kind.allowed
        ]

    def touchable(self, start: int, end: int, prot: int) -> list[tuple[int, int, int]]:
        """Return the parts of [start, end) of which a VMA of ``prot`` gives its owner anything, in order, with what.

        Its pages are present, and not hidden. Of one that is dead, or about to be, none.
        """
        if self.dead:
            return []
        first, last = start // PAGE_SIZE, -(-end // PAGE_SIZE)
        leaving = self.reclaiming | self.modifying
        return [
            (low * PAGE_SIZE, high * PAGE_SIZE, given)
            for run in self.page_array.overlapping(first, last)
            if not run.hidden and (given := self.page_prot(run, prot))
            for low, high in run.resident(first, last, leaving)
        ]

    # -- paging -----------------------------------------------------------------------------

    @property
    def secs_index(self) -> int:
        """The SECS's place in the backing: behind the last page."""
        return self.size // PAGE_SIZE

    def index(self, linear: int) -> int:
        """Return the place in the backing of the page at a linear address."""
        return (linear - self.base) // PAGE_SIZE

    def is_evicted(self, index: int) -> bool:
        """Tell whether a page, or the SECS, is in the backing."""
        return self.slot(index) is not None

    def slot(self, index: int) -> int | None:
        """Return the number of the VA slot of a page, or the SECS; None if it is not in the backing."""
        if self.dead:
            return None
        if index == self.secs_index:
            return self._secs_slot if self.created and self.secs_page is None else None
        return self.page_array.slot(self.base // PAGE_SIZE + index)

    def slot_of(self, index: int) -> int:
        """Return the number of an evicted page's VA slot."""
        slot = self.slot(index)
        if slot is None:
            raise ValueError(f"page {index:#x} is not evicted")
        return slot

    def set_secs_evicted(self, slot: int) -> None:
        """Record that EWB has taken the SECS out."""
        self.secs_page, self._secs_slot = None, slot

    def set_resident(self, index: int, page: PageIndex) -> None:
        """Record that ELDU has brought a page back."""
        if index == self.secs_index:
            self.secs_page = page
        else:
            self.page_array.set_resident(self.base // PAGE_SIZE + index, page)

    def touched(self, linear: int) -> None:
        """Hear that a page is in use: if it is on its way out it stays."""
        self.reclaiming.discard(linear & -PAGE_SIZE)

    def read(self, address: int, length: int) -> bytes:
        """Read enclave memory, bringing in what was evicted; DriverError if that fails."""
        parts = []
        if not self.stats.evictions:
            return self.elrange.read(address, length)
        while length > 0:
            take = min(length, PAGE_SIZE - address % PAGE_SIZE)
            if self.is_evicted(self.index(address)):
                self.reclaimer.load(self, self.index(address))
            parts.append(self.elrange.read(address, take))
            address += take
            length -= take
        return b"".join(parts)

    def kill(self, reason: str) -> None:
        """End the enclave for good: every EPC page is free at once, and threads inside are driven out.

        They fault at their next fetch, and leave without a saved state. The file stays open: ioctls get
        EIO, touches SIGBUS.
        """
        if self.dead:
            return
        self.stats.kills += 1
        if self.events is not None:
            self.events.killed(self, reason)
        self.destroy()

    def destroy(self) -> None:
        """End the enclave as ``kill`` does, where it has not had to give way (sgx_encl_destroy)."""
        self.dead = True
        if self.secs_page is not None:
            abandon(self.cpu.enclaves[self.secs_page])
        # A mapping that lets a hole be touched gives zeros.
        self._unzapped = {mm for mm in self.mm_list if not mm.zap(self)}
        if self._unzapped and isinstance(self.elrange, MemfdElrange):
            self.elrange.keep()
        self._free_all()

    def zapped(self, mm: "EnclMm") -> None:
        """Hear that the pages are out of an address space's reach; they become holes with the last one."""
        self._unzapped.discard(mm)
        if not self._unzapped and isinstance(self.elrange, MemfdElrange):
            self.elrange.discard_kept()

    def load_page_in_vma(self, address: int, vma_prot: int, end: int = 0) -> str | None:
        """Answer a fault in a VMA of protection ``vma_prot``: None if the page may be mapped, else why it is SIGBUS.

        INITIALIZED does not matter (sgx_encl_load_page_in_vma). A page that was evicted is brought back; with
        ``end``, where the VMA ends, others may come with it. EpcExhausted, BackingStalled: the access is to
        be made again.
        """
        page = address // PAGE_SIZE
        run = self.page_array.find(page)
        if run is None:
            killed = ", for it was killed" if self.dead else ""
            return f"the enclave has no page at {address:#x}{killed}"
        if vma_prot & PROT_RWX & ~run.vm_max_prot:
            return (
                f"the mapping allows {vma_prot:#x}, the page at {address:#x} {run.vm_max_prot:#x}"
            )
        if run.evicted(page):
            if end and self.reclaimer.read_ahead.touched(self, page, end // PAGE_SIZE):
                return None
            try:
                self.reclaimer.load(self, self.index(address))
            except DriverError as error:
                return error.reason
            if self.dead:
                return f"the enclave has no page at {address:#x}, for it was killed"
        return None

    @property
    def augments(self) -> bool:
        """Whether the touch of a place without a page may add one."""
        return self.augmented and not self.dead and "sgx2" in self.cpu.model.features

    def epcm_changed(self, linear: int) -> None:
        """Hear that a leaf of the enclave's has changed a page, which is resident (SGX2)."""
        page = linear // PAGE_SIZE
        run, epc_page = self.page_array.find(page), self.page_array.epc_page(page)
        if run is None or epc_page is None:
            raise ValueError(f"the enclave has no resident page at {linear:#x}")
        word = self.cpu.epc.words[epc_page]
        kind = run.kind._replace(allowed=permissions(word), pending=bool(word & SECINFO_PENDING))
        if kind != run.kind:
            self.page_array.change(page, 1, kind)

    def translate(self, linear: int) -> PageIndex | None:
        """Return the EPC page at a linear address, None if the enclave has none there."""
        page = self.page_array.epc_page(linear // PAGE_SIZE)
        return None if page is None else PageIndex(page)

    # -- the end ----------------------------------------------------------------------------

    def release(self) -> int:
        """EREMOVE the pages, then the SECS, then the VA pages; return how many EREMOVE refused.

        It refuses while a thread is inside, and the SECS while a child is left (sgx_encl_release).
        """
        if self.builds is not None:
            self.builds.released(self)
        return self._free_all()

    def _free_all(self) -> int:
        lost = 0
        for run in self.page_array.runs():
            for first, count in neighbours(run.epc):
                lost += self.free_epc_run(first, count)
        self.page_array.clear()
        self.reclaimer.ended(self, self.secs_page)
        if self.secs_page is not None:
            lost += not self.free_epc_page(self.secs_page)
            self.secs_page = None
        self._secs_slot = -1
        for page in self.va_pages.clear():
            lost += not self.free_epc_page(page)
        self.page_cnt = 0
        self.backing.close()
        return lost
