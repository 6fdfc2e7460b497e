# SPDX-License-Identifier: Apache-2.0
"""Changing the pages of an enclave that runs: the three ioctls of SGX2, and the fault that adds a page."""

import errno
from typing import Any

import pytest

from softsgx.arch.codes import LeafCode
from softsgx.arch.ioctl import (
    SGX_IOC_ENCLAVE_MODIFY_TYPES,
    SGX_IOC_ENCLAVE_REMOVE_PAGES,
    SGX_IOC_ENCLAVE_RESTRICT_PERMISSIONS,
    EnclaveModifyTypes,
    EnclaveRemovePages,
    EnclaveRestrictPermissions,
)
from softsgx.arch.secinfo import (
    PT_REG,
    PT_SECS,
    PT_TCS,
    PT_TRIM,
    PT_VA,
    SECINFO_MODIFIED,
    SECINFO_PENDING,
    SECINFO_PR,
    SECINFO_R,
    SECINFO_REG,
    SECINFO_TCS,
    SECINFO_TRIM,
    SECINFO_W,
    SECINFO_X,
    VA_SLOTS,
)
from softsgx.arch.structures import Tcs
from softsgx.cpu.processor import LogicalProcessor
from softsgx.cpu.registers import Registers
from softsgx.cpu.transition import enclu
from softsgx.driver.driver import Driver
from softsgx.driver.page_array import PageKind
from softsgx.driver.reclaim import EpcExhausted
from softsgx.driver.sgx2 import sgx_encl_eaug_page
from softsgx.driver.vma import PROT_EXEC, PROT_READ, PROT_WRITE
from softsgx.errors import DriverError, Fault

RESTRICT = SGX_IOC_ENCLAVE_RESTRICT_PERMISSIONS
MODIFY = SGX_IOC_ENCLAVE_MODIFY_TYPES
REMOVE = SGX_IOC_ENCLAVE_REMOVE_PAGES
RECORDS = {
    RESTRICT: EnclaveRestrictPermissions,
    MODIFY: EnclaveModifyTypes,
    REMOVE: EnclaveRemovePages,
}
EENTER, EEXIT, EACCEPT, EMODPE = 2, 4, 5, 6
PAGE = 4096
RW = SECINFO_R | SECINFO_W
# The small enclave of the bench, and a hole of it.
TCS, CODE, SSA, DATA, HOLE = 0, 0x1000, 0x3000, 0x5000, 0x8000


class Running:
    """An initialised enclave, a thread of it, and the ioctls by their fields."""

    def __init__(self, bench: Any) -> None:
        self.bench = bench
        self.enclave = bench.build()
        self.enclave.init(bench.good_sigstruct())
        self.file = self.enclave.file
        self.encl = self.file.encl
        self.cpu = bench.platform.processor
        self.base = self.encl.base
        self.lp = LogicalProcessor(self.encl.translate, xcr0=3)
        self.regs = Registers()

    def close(self) -> None:
        if self.lp.inside:
            self.leave()
        self.enclave.close()

    # -- the ioctls ---------------------------------------------------------------------------

    def ioctl(self, request: int, **fields: int) -> tuple[str, int, int]:
        """Carry one out; its errno's name or "", ``count`` and, where there is one, ``result``."""
        record = RECORDS[request]
        whole = {"offset": DATA, "length": PAGE} | fields
        memory = self.enclave.task.memory
        arg = memory.place(record.blank().replace(**whole).encode())
        name = ""
        try:
            assert self.file.ioctl(request, arg, self.enclave.task) == 0
        except DriverError as error:
            name = errno.errorcode[error.errno]
        answer = record.decode(memory.read(arg, record.SIZE))
        for field in ("offset", "length", "permissions", "page_type"):
            assert getattr(answer, field, None) == whole.get(field, getattr(answer, field, None))
        return name, answer.count, getattr(answer, "result", 0)

    # -- the enclave's own part ---------------------------------------------------------------

    def enter(self) -> None:
        regs = self.regs
        regs.rax, regs.rbx, regs.rcx = EENTER, self.base + TCS, 0x40_1000
        enclu(self.cpu, self.lp, regs)

    def leave(self) -> None:
        self.regs.rax, self.regs.rbx = EEXIT, 0x40_2000
        enclu(self.cpu, self.lp, self.regs)

    def leaf(self, number: int, offset: int, flags: int) -> int:
        """Execute EACCEPT or EMODPE inside, with the SECINFO on the SSA's second page."""
        was_inside = self.lp.inside
        if not was_inside:
            self.enter()
        self.encl.elrange.write(self.base + SSA + PAGE, flags.to_bytes(64, "little"))
        regs = self.regs
        regs.rax, regs.rbx, regs.rcx = number, self.base + SSA + PAGE, self.base + offset
        try:
            enclu(self.cpu, self.lp, regs)
            code = regs.rax if number == EACCEPT else 0
            if not code:
                self.encl.epcm_changed(self.base + offset)
        finally:
            if not was_inside:
                self.leave()
        return code

    def accept(self, offset: int, flags: int) -> None:
        assert self.leaf(EACCEPT, offset, flags) == 0

    def bring_in(self, offset: int) -> None:
        """Have a page, and what a thread needs to accept it, in the EPC all at once."""
        needed = [self.base + each for each in (TCS, SSA, SSA + PAGE, offset)]
        while any(self.encl.translate(address) is None for address in needed):
            for address in needed:
                assert self.encl.load_page_in_vma(address, 0) is None

    def augment(self, offset: int = HOLE) -> str | None:
        return sgx_encl_eaug_page(self.encl, self.base + offset)

    def kind(self, offset: int) -> Any:
        run = self.encl.page_array.find((self.base + offset) // PAGE)
        return run and run.kind

    def word(self, offset: int) -> int:
        page = self.encl.translate(self.base + offset)
        return self.cpu.epc.words[page] & ~0x80


@pytest.fixture
def running(bench: Any) -> Any:
    running = Running(bench)
    yield running
    running.close()


# -- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("request_number", [RESTRICT, MODIFY, REMOVE])
def test_an_enclave_that_does_not_run_yet_is_refused_before_the_argument_is_read(
    bench: Any, request_number: int
) -> None:
    with bench.open() as file:
        assert bench.refused(file, request_number, 0xDEAD_0000) == "EINVAL"
    with bench.build() as enclave:
        assert bench.refused(enclave.file, request_number, 0xDEAD_0000) == "EINVAL"


@pytest.mark.parametrize("request_number", [RESTRICT, MODIFY, REMOVE])
def test_the_argument_is_judged_before_a_page_is_looked_at(
    running: Running, request_number: int
) -> None:
    size = running.encl.size
    kind = {"page_type": PT_TRIM} if request_number == MODIFY else {}
    for wrong in (
        {"offset": DATA + 8},
        {"length": 0},
        {"length": 8},
        {"offset": size},
        {"offset": HOLE, "length": size},
        {"offset": (1 << 64) - PAGE, "length": 2 * PAGE},
        {"count": 1},
    ):
        name, count, result = running.ioctl(request_number, **kind | wrong)
        assert (name, count, result) == ("EINVAL", wrong.get("count", 0), 0)
    if request_number != REMOVE:
        name, count, result = running.ioctl(request_number, **kind, result=1)
        assert (name, count, result) == ("EINVAL", 0, 1)
    assert running.bench.refused(running.file, request_number, 0xDEAD_0000) == "EFAULT"
    # A place without a page.
    assert running.ioctl(request_number, **kind, offset=HOLE) == ("EFAULT", 0, 0)


def test_probes_for_edmm_are_answered_as_a_kernel_with_sgx2_does(running: Running) -> None:
    # The Intel SDK asks with zeros, and takes anything but ENOTTY for support; Gramine wants EINVAL.
    with running.bench.open() as file:
        for request in (RESTRICT, MODIFY, REMOVE):
            zeros = RECORDS[request].blank()
            assert running.bench.refused(file, request, zeros) == "EINVAL"
            assert running.bench.refused(running.file, request, zeros) == "EINVAL"


def test_another_ioctl_in_flight_is_ebusy(running: Running) -> None:
    running.encl.ioctl_in_flight = True
    for request in (RESTRICT, MODIFY, REMOVE):
        assert running.bench.refused(running.file, request, 0) == "EBUSY"
    running.encl.ioctl_in_flight = False


# -- RESTRICT_PERMISSIONS ------------------------------------------------------------------------


def test_restrict_judges_the_permissions(running: Running) -> None:
    for wrong in (8, SECINFO_W, SECINFO_W | SECINFO_X, 1 << 63):
        assert running.ioctl(RESTRICT, permissions=wrong) == ("EINVAL", 0, 0)
    assert running.ioctl(RESTRICT, permissions=0, offset=TCS) == ("EINVAL", 0, 0)
    assert running.word(DATA) == SECINFO_REG | RW


def test_restrict_takes_away_what_mappings_give_and_the_enclave_accepts_it(
    running: Running,
) -> None:
    encl, base = running.encl, running.base
    given = (base + DATA, base + DATA + PAGE, PROT_READ | PROT_WRITE)
    assert encl.touchable(*given) == [given]
    assert running.ioctl(RESTRICT, permissions=SECINFO_R) == ("", PAGE, 0)
    assert running.word(DATA) == SECINFO_REG | SECINFO_R | SECINFO_PR
    assert running.kind(DATA) == PageKind(PROT_READ | PROT_WRITE, PT_REG, PROT_READ)
    assert encl.touchable(*given) == [(*given[:2], PROT_READ)]
    # Where the page itself can be kept from being written, the mapping stays as it is.
    assert encl.narrowed(*given) == []
    assert encl.unwritable(base, base + encl.size) == [given[:2]]
    # mmap asks for what it was added with, not for what it has.
    encl.may_map(*given)
    running.accept(DATA, SECINFO_REG | SECINFO_R | SECINFO_PR)
    running.leaf(EMODPE, DATA, SECINFO_W | SECINFO_R)
    assert encl.touchable(*given) == [given]
    assert encl.unwritable(base, base + encl.size) == []


def test_restrict_tracks_also_where_a_thread_is_inside(running: Running) -> None:
    running.enter()
    assert running.ioctl(RESTRICT, permissions=SECINFO_R) == ("", PAGE, 0)
    running.accept(DATA, SECINFO_REG | SECINFO_R | SECINFO_PR)


def test_restrict_stops_at_the_page_that_fails_and_tells_how_far_it_came(
    running: Running,
) -> None:
    assert running.ioctl(RESTRICT, offset=SSA, length=4 * PAGE, permissions=SECINFO_R) == (
        "EFAULT",
        3 * PAGE,
        0,
    )
    assert running.augment() is None
    assert running.ioctl(RESTRICT, offset=HOLE, permissions=SECINFO_R) == (
        "EFAULT",
        0,
        LeafCode.PAGE_NOT_MODIFIABLE,
    )


# -- MODIFY_TYPES --------------------------------------------------------------------------------


def test_modify_judges_the_type_and_the_transition(running: Running) -> None:
    for wrong in (PT_SECS, PT_REG, PT_VA, 5, 0xFF, 0x100, 0x101):
        assert running.ioctl(MODIFY, page_type=wrong) == ("EINVAL", 0, 0)
    # A TCS stays one, or goes.
    assert running.ioctl(MODIFY, offset=TCS, page_type=PT_TCS) == ("EINVAL", 0, 0)
    # What was added without W cannot be what mappings may write.
    assert running.ioctl(MODIFY, offset=CODE, page_type=PT_TCS) == ("EPERM", 0, 0)
    assert running.ioctl(MODIFY, page_type=PT_TRIM) == ("", PAGE, 0)
    for kind in (PT_TCS, PT_TRIM):
        assert running.ioctl(MODIFY, page_type=kind) == ("EINVAL", 0, 0)
    assert running.word(TCS) == SECINFO_TCS


def test_modify_tells_the_code_of_emodt_and_leaves_the_page(running: Running) -> None:
    assert running.augment() is None
    pending = running.kind(HOLE)
    for kind in (PT_TCS, PT_TRIM):
        code = LeafCode.PAGE_NOT_MODIFIABLE
        assert running.ioctl(MODIFY, offset=HOLE, page_type=kind) == ("EFAULT", 0, code)
    assert running.kind(HOLE) == pending
    # The thread inside keeps its TCS and its SSA frame.
    running.enter()
    for offset in (TCS, SSA):
        code = LeafCode.EPC_PAGE_CONFLICT
        assert running.ioctl(MODIFY, offset=offset, page_type=PT_TRIM) == ("EFAULT", 0, code)
    assert running.encl.modifying == set()


def test_a_regular_page_becomes_a_tcs_by_which_a_thread_enters(running: Running) -> None:
    tcs = Tcs.blank().replace(ossa=SSA, nssa=1, oentry=CODE)
    running.encl.elrange.write(running.base + DATA, tcs.encode())
    assert running.ioctl(MODIFY, page_type=PT_TCS) == ("", PAGE, 0)
    assert running.kind(DATA) == PageKind(PROT_READ | PROT_WRITE, PT_TCS, 0)
    span = running.base + DATA, running.base + DATA + PAGE
    assert running.encl.touchable(*span, PROT_READ) == []
    with pytest.raises(DriverError):
        running.encl.may_map(*span, PROT_EXEC)
    running.accept(DATA, SECINFO_TCS | SECINFO_MODIFIED)
    lp = LogicalProcessor(running.encl.translate, xcr0=3)
    regs = Registers(rax=EENTER, rbx=running.base + DATA, rcx=0x40_1000)
    enclu(running.cpu, lp, regs)
    assert lp.inside
    regs.rax, regs.rbx = EEXIT, 0x40_2000
    enclu(running.cpu, lp, regs)
    # And then it is removed.
    assert running.ioctl(MODIFY, page_type=PT_TRIM) == ("", PAGE, 0)
    running.accept(DATA, SECINFO_TRIM | SECINFO_MODIFIED)
    assert running.ioctl(REMOVE) == ("", PAGE, 0)


def test_a_page_with_less_than_rw_by_the_epcm_may_become_a_tcs(running: Running) -> None:
    # The kernel asks for what the page was added with.
    assert running.ioctl(RESTRICT, permissions=SECINFO_R) == ("", PAGE, 0)
    assert running.ioctl(MODIFY, page_type=PT_TCS) == ("", PAGE, 0)


# -- REMOVE_PAGES --------------------------------------------------------------------------------


def test_remove_wants_trim_pages_that_were_accepted(running: Running) -> None:
    for offset in (TCS, CODE, DATA):
        assert running.ioctl(REMOVE, offset=offset) == ("EPERM", 0, 0)
    assert running.ioctl(MODIFY, page_type=PT_TRIM) == ("", PAGE, 0)
    assert running.ioctl(REMOVE) == ("EPERM", 0, 0)
    free, children = running.bench.free, len(running.encl.page_array)
    running.accept(DATA, SECINFO_TRIM | SECINFO_MODIFIED)
    running.enter()
    assert running.ioctl(REMOVE) == ("", PAGE, 0)
    assert running.bench.free == free + 1
    assert len(running.encl.page_array) == children - 1
    assert running.ioctl(REMOVE) == ("EFAULT", 0, 0)
    assert running.encl.translate(running.base + DATA) is None
    running.cpu.epc.check()


def test_a_range_is_removed_up_to_the_first_that_is_not_accepted(running: Running) -> None:
    assert running.augment() is None
    assert running.augment(HOLE + PAGE) is None
    for offset in (HOLE, HOLE + PAGE):
        running.accept(offset, SECINFO_REG | RW | SECINFO_PENDING)
    both = {"offset": HOLE, "length": 2 * PAGE}
    assert running.ioctl(MODIFY, **both, page_type=PT_TRIM) == ("", 2 * PAGE, 0)
    running.accept(HOLE, SECINFO_TRIM | SECINFO_MODIFIED)
    assert running.ioctl(REMOVE, **both) == ("EPERM", PAGE, 0)
    running.accept(HOLE + PAGE, SECINFO_TRIM | SECINFO_MODIFIED)
    assert running.ioctl(REMOVE, offset=HOLE + PAGE) == ("", PAGE, 0)


def test_a_place_whose_page_was_removed_can_have_another(running: Running) -> None:
    running.encl.elrange.write(running.base + DATA, b"\xa5" * PAGE)
    assert running.ioctl(MODIFY, page_type=PT_TRIM)[0] == ""
    running.accept(DATA, SECINFO_TRIM | SECINFO_MODIFIED)
    assert running.ioctl(REMOVE)[0] == ""
    assert running.augment(DATA) is None
    running.accept(DATA, SECINFO_REG | RW | SECINFO_PENDING)
    assert running.encl.read(running.base + DATA, PAGE) == bytes(PAGE)


# -- EAUG by a fault -----------------------------------------------------------------------------


def test_a_fault_at_a_hole_adds_a_pending_page(running: Running) -> None:
    encl, base = running.encl, running.base
    everything = PROT_READ | PROT_WRITE | PROT_EXEC
    span = base + HOLE, base + HOLE + PAGE
    free = running.bench.free
    assert running.augment() is None
    assert running.bench.free == free - 1
    assert running.word(HOLE) == SECINFO_REG | RW | SECINFO_PENDING
    assert running.kind(HOLE) == PageKind(everything, PT_REG, PROT_READ | PROT_WRITE, pending=True)
    assert (encl.stats.augmented, encl.stats.added) == (1, 6)
    assert encl.touchable(*span, everything) == []
    # Another thread that had faulted there as well.
    assert running.augment() is None
    assert running.bench.free == free - 1
    encl.may_map(*span, everything)
    assert encl.load_page_in_vma(base + HOLE, everything) is None
    running.accept(HOLE, SECINFO_REG | RW | SECINFO_PENDING)
    assert encl.touchable(*span, everything) == [(*span, PROT_READ | PROT_WRITE)]
    # What it may not execute the mapping must take away: no page does that by itself.
    assert encl.narrowed(*span, everything) == [(*span, PROT_READ | PROT_WRITE)]
    running.leaf(EMODPE, HOLE, SECINFO_X)
    assert encl.touchable(*span, everything) == [(*span, everything)]


def test_no_page_is_added_before_init_nor_outside_elrange(bench: Any) -> None:
    with bench.build() as enclave:
        encl = enclave.file.encl
        assert "none can be added" in sgx_encl_eaug_page(encl, encl.base + HOLE)
        enclave.init(bench.good_sigstruct())
        free = bench.free
        for address in (encl.base - PAGE, encl.base + encl.size):
            assert "outside ELRANGE" in sgx_encl_eaug_page(encl, address)
        assert bench.free == free
        assert len(encl.page_array) == 6


def test_a_full_epc_in_which_nothing_gives_way_adds_no_page(running: Running) -> None:
    encl = running.encl
    # All that is left is in somebody's hands.
    epc = running.bench.driver.epc
    first, count = epc.allocate_run(epc.free_pages)
    rest = [epc.allocate_page() for _ in range(epc.free_pages)]
    encl.reclaimer.policy.removed(range(epc.total))
    assert "nothing gives way" in running.augment()
    # Another's batch is on its way out, and will leave room.
    encl.reclaimer._batch_under_way = True
    with pytest.raises(EpcExhausted):
        running.augment()
    encl.reclaimer._batch_under_way = False
    epc.free(first, count)
    for page in rest:
        epc.free(page)


def test_va_pages_of_removed_pages_are_no_room_for_another(running: Running) -> None:
    encl = running.encl
    # As it is when so many pages have come and gone: their VA page stays.
    encl.grow(VA_SLOTS)
    encl.page_cnt -= VA_SLOTS
    epc = running.bench.driver.epc
    first, count = epc.allocate_run(epc.free_pages)
    rest = [epc.allocate_page() for _ in range(epc.free_pages)]
    resident = encl.stats.resident
    # The enclave's own pages give way.
    assert running.augment() is None
    assert encl.stats.resident < resident
    epc.free(first, count)
    for page in rest:
        epc.free(page)


def test_drivers_before_sgx2_add_no_page(bench: Any) -> None:
    driver = Driver(bench.platform.processor, name="dcap")
    with driver.open_enclave() as file:
        file.encl.initialized = True
        assert "none can be added" in sgx_encl_eaug_page(file.encl, 0)


# -- under pressure ------------------------------------------------------------------------------


def evict_all(running: Running) -> None:
    """Take everything out that gives way."""
    reclaimer = running.encl.reclaimer
    while reclaimer.reclaim_pages():
        pass


def test_pages_that_are_out_are_changed_too(running: Running) -> None:
    encl = running.encl
    assert running.augment() is None
    evict_all(running)
    assert encl.secs_page is None
    assert running.ioctl(RESTRICT, permissions=SECINFO_R) == ("", PAGE, 0)
    evict_all(running)
    # The state is remembered though the EPCM has no entry, and the EPCM gets its bits back.
    assert running.kind(DATA).allowed == PROT_READ
    assert running.kind(HOLE).pending
    for offset, flags in (
        (DATA, SECINFO_REG | SECINFO_R | SECINFO_PR),
        (HOLE, SECINFO_REG | RW | SECINFO_PENDING),
    ):
        running.bring_in(offset)
        running.accept(offset, flags)
    evict_all(running)
    assert running.ioctl(MODIFY, page_type=PT_TRIM) == ("", PAGE, 0)
    evict_all(running)
    running.bring_in(DATA)
    running.accept(DATA, SECINFO_TRIM | SECINFO_MODIFIED)
    evict_all(running)
    assert running.ioctl(REMOVE) == ("", PAGE, 0)
    running.cpu.epc.check()


def test_a_page_that_cannot_come_in_now_is_eagain(running: Running) -> None:
    evict_all(running)
    epc = running.bench.driver.epc
    held = [epc.allocate_page() for _ in range(epc.free_pages)]
    for request, fields in ((RESTRICT, {}), (MODIFY, {"page_type": PT_TRIM}), (REMOVE, {})):
        assert running.ioctl(request, **fields) == ("EAGAIN", 0, 0)
    for page in held:
        epc.free(page)


def test_a_page_that_the_store_has_lost_is_efault(running: Running) -> None:
    encl = running.encl
    evict_all(running)
    index = encl.index(running.base + DATA)
    contents, pcmd = encl.backing.load(index)
    encl.backing.store([(index, bytes(PAGE), pcmd)])
    assert running.ioctl(RESTRICT, permissions=SECINFO_R) == ("EFAULT", 0, 0)
    encl.backing.store([(index, contents, pcmd)])
    assert running.ioctl(RESTRICT, permissions=SECINFO_R) == ("", PAGE, 0)


def test_many_pages_come_and_go_and_none_is_lost(running: Running) -> None:
    encl, bench = running.encl, running.bench
    pages = bench.driver.epc.total + 20
    offsets = [HOLE + PAGE * number for number in range(min(pages, (encl.size - HOLE) // PAGE))]
    flags = SECINFO_REG | RW | SECINFO_PENDING
    for offset in offsets:
        assert running.augment(offset) is None
        running.bring_in(offset)
        running.accept(offset, flags)
        encl.elrange.write(running.base + offset, offset.to_bytes(8, "little"))
    for offset in offsets:
        assert encl.read(running.base + offset, 8) == offset.to_bytes(8, "little")
    length = len(offsets) * PAGE
    assert running.ioctl(MODIFY, offset=HOLE, length=length, page_type=PT_TRIM) == ("", length, 0)
    for offset in offsets:
        running.bring_in(offset)
        running.accept(offset, SECINFO_TRIM | SECINFO_MODIFIED)
    assert running.ioctl(REMOVE, offset=HOLE, length=length) == ("", length, 0)
    assert len(encl.page_array) == 6
    assert encl.page_cnt == 7
    running.cpu.epc.check()


# -- the address spaces --------------------------------------------------------------------------


class Mm:
    """An address space that records what it is asked, and may take its time."""

    def __init__(self, running: Running, late: int = 0) -> None:
        self.running = running
        self.late = late
        self.seen: list[tuple[list[tuple[int, int]], list[Any], list[int]]] = []
        running.encl.mm_list.append(self)

    def narrow(self, encl: Any, spans: list[tuple[int, int]]) -> bool:
        touchable = [encl.touchable(*span, PROT_READ | PROT_WRITE) for span in spans]
        words = [self.running.word(DATA)]
        self.seen.append((spans, touchable, words))
        self.late -= 1
        return self.late < 0

    def block(self, *_: Any) -> bool:
        return True

    zap = block


def test_a_page_is_out_of_reach_before_emodt_takes_its_contents(running: Running) -> None:
    mm = Mm(running)
    span = (running.base + DATA, running.base + DATA + PAGE)
    assert running.ioctl(MODIFY, page_type=PT_TRIM) == ("", PAGE, 0)
    # Still REG to the EPCM, and nothing of it may be touched any more.
    assert mm.seen == [([span], [[]], [SECINFO_REG | RW])]


def test_permissions_are_out_of_every_address_space_before_they_are_tracked(
    running: Running,
) -> None:
    turns: list[int] = []

    class Waits(Mm):
        def narrow(self, encl: Any, spans: list[tuple[int, int]]) -> bool:
            # Whoever asks now is told to wait.
            running.enter()
            accepted = SECINFO_REG | SECINFO_R | SECINFO_PR
            turns.append(running.leaf(EACCEPT, DATA, accepted))
            running.leave()
            return super().narrow(encl, spans)

    mm = Waits(running, late=2)
    running.enclave.task.pause = lambda: True
    assert running.ioctl(RESTRICT, permissions=SECINFO_R) == ("", PAGE, 0)
    assert turns == [LeafCode.NOT_TRACKED] * 3
    assert [words for _, _, words in mm.seen] == [[SECINFO_REG | SECINFO_R | SECINFO_PR]] * 3
    running.accept(DATA, SECINFO_REG | SECINFO_R | SECINFO_PR)


def test_a_page_that_is_evicted_while_the_ioctl_waits_is_changed_all_the_same(
    running: Running,
) -> None:
    class Evicts(Mm):
        def narrow(self, *_: Any) -> bool:
            evict_all(running)
            return True

    Evicts(running)
    assert running.ioctl(MODIFY, page_type=PT_TRIM) == ("", PAGE, 0)
    assert running.word(DATA) == SECINFO_TRIM | SECINFO_MODIFIED
    assert running.ioctl(RESTRICT, offset=SSA, permissions=SECINFO_R) == ("", PAGE, 0)
    assert running.encl.secs_page is None
    assert running.kind(SSA).allowed == PROT_READ


def test_the_leaf_faults_where_nothing_is_and_the_driver_answers(running: Running) -> None:
    flags = SECINFO_REG | RW | SECINFO_PENDING
    with pytest.raises(Fault) as caught:
        running.leaf(EACCEPT, HOLE, flags)
    assert caught.value.address == running.base + HOLE
    assert running.augment() is None
    running.accept(HOLE, flags)
