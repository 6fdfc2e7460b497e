# SPDX-License-Identifier: Apache-2.0
"""The EPC under pressure: who gives way, how pages go out and come back (kernel: main.c, encl.c).

Owns the order in which pages give way, and the batch that is on its way out, one at a time.  Used by the
driver's thread only.  ``block`` of an address space may suspend the caller where the host has no userfaultfd:
what was chosen before is looked at again after it, and whoever needs room meanwhile waits.

As in mainline pages go out in batches of 16, their places in the store pinned before EBLOCK, the SECS when
its last child is out.  Unlike mainline a batch that cannot be stored comes back, for what EWB has sealed is
still in memory: nothing is lost, and no enclave dies of a full disk.
"""

import errno
from collections.abc import Sequence
from typing import TYPE_CHECKING

from softsgx.arch.secinfo import PAGE_SIZE, VA_SLOTS
from softsgx.cpu.epc import Epc, PageIndex
from softsgx.cpu.paging import eblock_page, eldu_page, etrack, ewb_pages, held, tlb_shootdown
from softsgx.driver.backing import BackingFault, BackingStalled
from softsgx.driver.page_array import neighbours
from softsgx.driver.read_ahead import ReadAhead
from softsgx.errors import DriverError, Fault

if TYPE_CHECKING:
    from softsgx.cpu.processor import Processor
    from softsgx.driver.encl import Encl
    from softsgx.driver.encl_epc import EnclEpc
    from softsgx.driver.epc_allocator import EpcAllocator
    from softsgx.driver.policy import Policy

# SGX_NR_TO_SCAN, SGX_NR_LOW_PAGES, SGX_NR_HIGH_PAGES.
NR_TO_SCAN = 16
NR_LOW_PAGES = 32
NR_HIGH_PAGES = 64


class EpcExhausted(Exception):
    """No EPC page can be had now: nothing gives way (kernel: -EBUSY, the fault is taken again)."""


# What makes the access wait that is to bring a page in.
AGAIN = (EpcExhausted, BackingStalled)


class Reclaimer:
    """Makes room in the EPC of one driver.

    ``policy`` is the order of the pages that may be evicted; it may be exchanged while it is empty.
    """

    def __init__(self, cpu: "Processor", allocator: "EpcAllocator", policy: "Policy") -> None:
        self.cpu = cpu
        self.allocator = allocator
        self.policy = policy
        # A small EPC keeps no more than an eighth and a quarter free.
        self.low = min(NR_LOW_PAGES, allocator.total // 8)
        self.high = min(NR_HIGH_PAGES, allocator.total // 4)
        self._encls: dict[int, Encl] = {}
        # Enclaves that die rather than be swapped, the one with the oldest page first.
        self._killable: dict[Encl, None] = {}
        # There is work for ``background``.
        self.woken = False
        self._evicted = 0  # pages, ever
        # Whose backings may have put something off.
        self._untidy: set[Encl] = set()
        self.read_ahead = ReadAhead(self)
        self._batch_under_way = False
        # A batch has stayed because an address space would not let it go, or its store did not answer in
        # time: another time they may.
        self._refused = False
        self._serial = 0

    # -- what there is ----------------------------------------------------------------------------

    def created(self, encl: "Encl", secs: PageIndex) -> None:
        """Enter an enclave by its SECS."""
        self._serial += 1
        encl.serial = self._serial << 52
        self._encls[secs] = encl

    def added(self, encl: "Encl", pages: range) -> None:
        """Enter pages that EADD has made."""
        if encl.backing.kills:
            self._killable.setdefault(encl)
        else:
            self.policy.added(pages)

    def removed(self, pages: range) -> None:
        """Forget pages that are about to leave their enclave for good."""
        self.policy.removed(pages)

    def ended(self, encl: "Encl", secs: PageIndex | None) -> None:
        """Forget an enclave whose pages are gone."""
        self._untidy.discard(encl)
        self.read_ahead.ended(encl)
        self._killable.pop(encl, None)
        if secs is not None:
            self._encls.pop(secs, None)

    # -- room -------------------------------------------------------------------------------------

    def make_room(self, wanted: int, requester: "EnclEpc", *, kill: bool = True) -> bool:
        """Reclaim until so many pages are free; False if nothing more gives way.

        Swappable pages go first.  Then, with ``kill``, an enclave that cannot be swapped is killed, the
        one with the oldest page, but never the one for which the room is made.
        """
        free = self.allocator
        while free.free_pages < wanted:
            evicted = self._evicted
            # Others may have taken what has gone while an address space was waited for.
            if self.reclaim_pages() or self._evicted != evicted:
                continue
            if self._batch_under_way or not kill:
                return False
            victim = next(
                (e for e in self._killable if e is not requester and not e.ioctl_in_flight), None
            )
            if victim is None:
                return False
            victim.kill("it has no backing, and another enclave needs the EPC")
        if free.free_pages < self.low:
            self.woken = True
        return True

    def transient(self, requester: "EnclEpc") -> bool:
        """Tell whether something may give way soon.

        Another ioctl or batch holds it, an address space has not let it go, or its store has not answered.
        """
        return (
            self._batch_under_way
            or self._refused
            or any(
                e.backing.stalled or (e.ioctl_in_flight and e is not requester)
                for e in self._encls.values()
            )
        )

    def background(self) -> bool:
        """Do one batch of ksgxd's work if there is any; tell whether there is more.

        It begins when an allocation has left fewer than ``low`` pages, and ends at ``high``.
        """
        if not self.woken:
            return False
        if self.allocator.free_pages >= self.high or not self._reclaim_batch():
            self.woken = False
        return self.woken

    @property
    def untidy(self) -> bool:
        """Whether ``tidy`` has something to do."""
        return bool(self._untidy)

    def tidy(self) -> None:
        """Make holes in the stores of what has been loaded from them: nobody waits for that."""
        for encl in self._untidy:
            encl.backing.tidy()
        self._untidy.clear()

    def allocated(self) -> None:
        """Look at the watermark after an allocation."""
        if self.allocator.free_pages < self.low:
            self.woken = True

    def reclaim_pages(self) -> int:
        """Evict a batch, whichever pages give way; return how many EPC pages that has freed."""
        self._refused = False
        for _ in range(len(self.policy) // NR_TO_SCAN + 1):
            freed = self._reclaim_batch()
            if freed or self._batch_under_way:
                return freed
        return 0

    def _reclaim_batch(self) -> int:
        if self._batch_under_way:
            return 0
        before = self.allocator.free_pages
        self._batch_under_way = True
        try:
            for encl, victims in self._isolate().items():
                try:
                    self._evict(encl, victims)
                except BaseException:
                    # The caller was killed while it was suspended.
                    self.policy.young(self._still_there(encl, victims))
                    raise
                finally:
                    encl.reclaiming.clear()
        finally:
            self._batch_under_way = False
        return self.allocator.free_pages - before

    def _isolate(self) -> "dict[Encl, dict[int, int]]":
        """Take a batch of victims off the policy's list: by enclave, page and address.

        Those in use go back.
        """
        cpu, epc = self.cpu, self.cpu.epc
        chosen: dict[Encl, dict[int, int]] = {}
        in_use: list[int] = []
        kept: dict[int, set[int]] = {}
        for page in self.policy.victims(NR_TO_SCAN):
            owner = epc.owners[page]
            if page in epc.busy or owner in epc.busy:
                in_use.append(page)
                continue
            # By what gives way nobody enters from now on, or is inside by now.
            if page in epc.open:
                epc.shut(page)
            if owner not in kept:
                kept[owner] = held(cpu.enclaves[owner])
            address = epc.addresses[page]
            if address in kept[owner]:
                in_use.append(page)
            else:
                chosen.setdefault(self._encls[owner], {})[page] = address
        self.policy.young(in_use)
        return chosen

    # -- out --------------------------------------------------------------------------------------

    def _still_there(self, encl: "Encl", victims: dict[int, int]) -> list[int]:
        """Return the victims that are what they were when they were chosen."""
        secs, owners, addresses = encl.secs_page, self.cpu.epc.owners, self.cpu.epc.addresses
        return [p for p, at in victims.items() if owners[p] == secs and addresses[p] == at]

    def _evict(self, encl: "Encl", victims: dict[int, int]) -> None:
        addresses = self.cpu.epc.addresses
        pages = self._still_there(encl, victims)
        # Neighbours in the enclave are neighbours in the store: one write, one hole.
        pages.sort(key=addresses.__getitem__)
        first = encl.base // PAGE_SIZE
        index_of = {addresses[page] // PAGE_SIZE - first: page for page in pages}
        stalls = encl.backing.stalls
        pinned = set(encl.backing.pin(list(index_of)))
        if len(pinned) < len(pages):
            self._not_pinned(encl, [p for i, p in index_of.items() if i not in pinned], stalls)
            if encl.dead:
                return
            pages = [page for index, page in index_of.items() if index in pinned]
        pages = self._block(encl, {page: addresses[page] for page in pages})
        if pages:
            self._write_out(encl, pages)
        secs = encl.secs_page
        if (
            not encl.dead
            and encl.initialized
            and secs is not None
            and secs not in self.cpu.epc.busy
            and not self.cpu.enclaves[secs].children
            and encl.backing.pin([encl.secs_index])
        ):
            self._write_out(encl, [secs])

    def _not_pinned(self, encl: "Encl", pages: list[int], stalls: int) -> None:
        encl.stats.backing_faults += len(pages)
        if encl.events is not None:
            address = self.cpu.epc.addresses[pages[0]]
            encl.events.backing_fault(encl, address, "its place in the backing cannot be written")
        if not self._kill_for(encl, stalls):
            self.policy.young(pages)

    def _kill_for(self, encl: "Encl", stalls: int) -> bool:
        """Kill an enclave whose store has failed, if it is to be; ``stalls`` is its store's number of before."""
        stalled = encl.backing.stalls != stalls
        self._refused |= stalled
        if encl.backing.gone or (encl.backing.kill_on_error and not stalled):
            encl.kill("its backing cannot be written")
            return True
        return False

    def _block(self, encl: "Encl", victims: dict[int, int]) -> list[int]:
        """Take the pages out of every address space, then EBLOCK them; return those that are blocked."""
        cpu, epc = self.cpu, self.cpu.epc
        encl.reclaiming.update(victims.values())
        spans = [
            (start * PAGE_SIZE, (start + count) * PAGE_SIZE)
            for start, count in neighbours(at // PAGE_SIZE for at in victims.values())
        ]
        blocked_everywhere = True
        for mm in list(encl.mm_list):
            # The others, too, where one refuses: a page that is touched is given back anyway.
            blocked_everywhere &= mm.block(encl, spans)
        # The caller may have been suspended: a page that was touched meanwhile is young, and one that
        # is gone is nobody's victim any more.
        pages = self._still_there(encl, victims)
        secs = encl.secs_page
        if secs is None or not blocked_everywhere or secs in epc.busy:
            self._refused = True
            self.policy.young(pages)
            return []
        kept = held(cpu.enclaves[secs])
        blocked: list[int] = []
        young: list[int] = []
        for page in pages:
            at = victims[page]
            stays = at not in encl.reclaiming or at in kept
            if stays or eblock_page(cpu, PageIndex(page)):
                young.append(page)
            else:
                blocked.append(page)
        self.policy.young(young)
        # What was in the page tables is flushed by now, on every core.
        tlb_shootdown(cpu.enclaves[secs])
        if blocked:
            etrack(cpu, Epc.address(secs))
            tlb_shootdown(cpu.enclaves[secs])
        return blocked

    def _write_out(self, encl: "Encl", pages: list[int]) -> None:
        """EWB pages and store them."""
        secs = encl.secs_page
        va = encl.va_pages
        while pages:
            number, slots = va.reserve(len(pages))
            batch, pages = pages[: len(slots)], pages[len(slots) :]
            code, done = ewb_pages(self.cpu, batch, va.pages[number], slots)
            if code or len(done) < len(batch):
                raise RuntimeError(f"EWB of {batch} returned {code.name} after {len(done)}")
            first = encl.base // PAGE_SIZE
            evicted = [
                (encl.secs_index if page == secs else linaddr // PAGE_SIZE - first, contents, pcmd)
                for page, (linaddr, contents, pcmd) in zip(batch, done, strict=True)
            ]
            stalls = encl.backing.stalls
            stored = encl.backing.store(evicted)
            if batch == [secs]:
                encl.set_secs_evicted(number * VA_SLOTS + slots[0])
                del self._encls[batch[0]]
            else:
                encl.page_array.set_evicted(
                    (first + page[0] for page in evicted),
                    [number * VA_SLOTS + slot for slot in slots],
                )
            if stored < len(batch):
                self._take_back(encl, batch[stored:], evicted[stored:], stalls)
                batch, evicted = batch[:stored], evicted[:stored]
            for start, count in neighbours(sorted(batch)):
                self.allocator.free(start, count)
            self.policy.evicted(encl.serial | index for index, _, _ in evicted)
            self._evicted += len(batch)
            stats = encl.stats
            stats.resident -= len(batch)
            stats.evictions += len(batch)
            stats.backing_bytes += len(batch) * (PAGE_SIZE + 128)
            stats.backing_pages = encl.backing.pages_held
            if encl.events is not None and batch:
                encl.events.evicted(encl, len(batch))

    def _take_back(
        self, encl: "Encl", pages: list[int], evicted: list[tuple[int, bytes, bytes]], stalls: int
    ) -> None:
        """ELDU what the store did not take, from memory, to the pages that it came from."""
        encl.stats.backing_faults += len(pages)
        if encl.events is not None:
            address = encl.base + evicted[0][0] * PAGE_SIZE
            encl.events.backing_fault(encl, address, "the backing did not take the page")
        for page, (index, contents, pcmd) in zip(pages, evicted, strict=True):
            slot = encl.slot_of(index)
            code = self._eldu(encl, PageIndex(page), index, slot, contents, pcmd)
            if code:
                raise RuntimeError(f"ELDU of what EWB has just sealed returned {code}")
        self.policy.young(page for page in pages if page != encl.secs_page)
        self._kill_for(encl, stalls)

    # -- in ---------------------------------------------------------------------------------------

    def load(self, encl: "Encl", index: int) -> None:
        """Bring a page back that was evicted, before it the SECS (sgx_encl_load_page).

        DriverError if the store or the page's MAC fails: the page stays evicted, so that a store that is
        mended makes it readable again.  EpcExhausted and BackingStalled: the fault is to be taken again.
        """
        allocator = self.allocator
        if encl.secs_page is None or not allocator.free_pages:
            self._make_ready(encl, index)
        # While the room was made, somebody else may have loaded the page, or ended the enclave.
        slot = encl.slot(index)
        if slot is not None:
            if not allocator.free_pages:
                raise EpcExhausted(f"no EPC page for page {index:#x}")
            self._load(encl, index, slot)
        if allocator.free_pages < self.low:
            self.woken = True

    def _make_ready(self, encl: "Encl", index: int) -> None:
        pages_wanted = 1 if encl.secs_page is not None else 2
        if self.allocator.free_pages < pages_wanted and not self.make_room(pages_wanted, encl):
            raise EpcExhausted(f"no EPC page for page {index:#x}: nothing gives way")
        if encl.secs_page is None and not encl.dead:
            # What made room may have evicted it just now.
            if self.allocator.free_pages < 2:
                raise EpcExhausted("no EPC page for the SECS")
            self._load(encl, encl.secs_index, encl.slot_of(encl.secs_index))

    def loaded_run(self, encl: "Encl", index: int, pages: Sequence[PageIndex]) -> None:
        """Account for neighbours that have been loaded, from ``index`` on, though nobody has touched them."""
        stats, backing, events = encl.stats, encl.backing, encl.events
        count = len(pages)
        backing.discard_run(index, count)
        for at, page in enumerate(pages, index):
            self.policy.loaded(page, encl.serial | at)
            if events is not None:
                events.reloaded(encl, encl.base + at * PAGE_SIZE)
        self._untidy.add(encl)
        stats.resident += count
        stats.reloads += count
        stats.backing_bytes += count * (PAGE_SIZE + 128)
        stats.backing_pages = backing.pages_held
        self.allocated()

    def _load(self, encl: "Encl", index: int, slot: int) -> None:
        try:
            contents, pcmd = encl.backing.load(index)
        except BackingFault as fault:
            self._load_failed(encl, index, str(fault))
            raise DriverError(errno.EFAULT, str(fault)) from fault
        page = PageIndex(self.allocator.allocate_page())
        code = self._eldu(encl, page, index, slot, contents, pcmd)
        if code:
            self.allocator.free(page)
            reason = f"ELDU of page {index:#x} returned {code}: the store has not what was written"
            self._load_failed(encl, index, reason)
            raise DriverError(errno.EFAULT, reason)
        encl.backing.discard(index)
        self._untidy.add(encl)
        stats = encl.stats
        stats.resident += 1
        stats.reloads += 1
        stats.backing_bytes += PAGE_SIZE + 128
        stats.backing_pages = encl.backing.pages_held
        if index != encl.secs_index:
            self.policy.loaded(page, encl.serial | index)
        if encl.events is not None:
            encl.events.reloaded(encl, encl.base + index * PAGE_SIZE)

    def _load_failed(self, encl: "Encl", index: int, reason: str) -> None:
        encl.stats.backing_faults += 1
        if encl.events is not None:
            encl.events.backing_fault(encl, encl.base + index * PAGE_SIZE, reason)
        if encl.backing.gone:
            encl.kill("its backing is gone")

    def _eldu(
        self, encl: "Encl", page: PageIndex, index: int, slot: int, contents: bytes, pcmd: bytes
    ) -> str:
        """ELDU to a free EPC page; the name of what it returned, or of its fault, "" if it is loaded."""
        number, slot = divmod(slot, VA_SLOTS)
        is_secs = index == encl.secs_index
        try:
            code = eldu_page(
                self.cpu,
                page,
                encl.va_pages.pages[number],
                slot * 8,
                None if is_secs else encl.secs_page,
                0 if is_secs else encl.base + index * PAGE_SIZE,
                contents,
                pcmd,
            )
        except Fault as fault:
            # A PCMD with reserved bits, or of another type of page.
            return str(fault)
        if code:
            return code.name
        encl.va_pages.give_back(number, slot)
        encl.set_resident(index, page)
        if is_secs:
            self._encls[page] = encl
        return ""
