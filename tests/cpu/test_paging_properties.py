# SPDX-License-Identifier: Apache-2.0
"""Any sequence of leaves keeps EPCM, VA slots and contents what a plain model says they are.

The model has no cycles and no versions: of a blocked page it knows which threads have yet to leave, of a slot
which evicted page it belongs to.
"""

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any

from hypothesis import given, note, settings
from hypothesis import strategies as st

from softsgx.arch.attributes import ATTRIBUTE_INIT
from softsgx.arch.codes import LeafCode
from softsgx.arch.secinfo import PT_VA, SECINFO_R, SECINFO_REG, SECINFO_TCS, SECINFO_W
from softsgx.arch.structures import Pageinfo, Secinfo, Secs, Tcs
from softsgx.cpu import encls, paging
from softsgx.cpu.epc import EPCM_BLOCKED, Epc, PageIndex
from softsgx.cpu.identity import Identity
from softsgx.cpu.memory import HeldMemory
from softsgx.cpu.model import Model
from softsgx.cpu.processor import LogicalProcessor, Processor
from softsgx.cpu.registers import Registers
from softsgx.cpu.secs import CSSA, STATE
from softsgx.cpu.transition import Event, aex, enclu
from softsgx.errors import Fault

EPC_PAGES = 24
SLOTS = 12
SIZE = 16 * 4096
BASES = (1 << 40, 1 << 41)
READ_WRITE = SECINFO_REG | SECINFO_R | SECINFO_W
EENTER, ERESUME, EEXIT = 2, 3, 4
GP, PF = 13, 14
# An enclave: two TCSs, for each two SSA frames, two pages of data.
TCSS = (0x0000, 0x1000)
FRAMES = {0x0000: 0x2000, 0x1000: 0x4000}
DATA = (0x6000, 0x7000)
NSSA = 2


@dataclass(eq=False)
class Thread:
    """A TCS and who is inside by it: an object that is new with each entry."""

    tcs: int
    cssa: int = 0
    entry: object | None = None


@dataclass(eq=False)
class Enclave:
    base: int
    eid: int
    threads: dict[int, Thread] = field(default_factory=dict)
    # Who was inside as the last cycle began.
    waited: set[object] = field(default_factory=set)

    def inside(self) -> set[object]:
        return {thread.entry for thread in self.threads.values() if thread.entry is not None}

    def holds(self) -> set[int]:
        """Return the pages by offset that threads inside cannot do without."""
        kept = set()
        for thread in self.threads.values():
            if thread.entry is not None:
                kept |= {thread.tcs, FRAMES[thread.tcs] + 4096 * thread.cssa}
        return kept


@dataclass(eq=False)
class Page:
    """A page of the EPC, or one that is out of it."""

    kind: str
    enclave: Enclave | None = None
    offset: int = 0
    content: bytes = b""
    blocked: bool = False
    # Of a blocked page: who has to leave, None before a cycle has begun.
    waits: set[object] | None = None
    # Of a VA page.
    slots: "dict[int, Page]" = field(default_factory=dict)
    # Of a page that is out: linear address, sealed contents, PCMD.
    sealed: tuple[int, bytes, bytes] | None = None

    @property
    def child(self) -> bool:
        return self.kind in {"REG", "TCS"}


Outcome = LeafCode | int


class Paging:
    """A processor and what it must be, under leaves whose operands are right more often than not."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.cpu = Processor(Model(EPC_PAGES * 4096), Identity.fresh(), EPC_PAGES)
        self.memory = HeldMemory()
        self.epc: dict[int, Page] = {}
        self.out: list[Page] = []
        self.enclaves: list[Enclave] = []
        self.xsave = bytearray(576)
        self.lps: dict[Thread, tuple[LogicalProcessor, Registers]] = {}
        self.written = 0

    # -- what both sides know -----------------------------------------------------------------

    def resident(self, enclave: Enclave, offset: int) -> int | None:
        for number, page in self.epc.items():
            if page.child and page.enclave is enclave and page.offset == offset:
                return number
        return None

    def secs_of(self, enclave: Enclave) -> int | None:
        for number, page in self.epc.items():
            if page.kind == "SECS" and page.enclave is enclave:
                return number
        return None

    def free(self) -> list[int]:
        return [number for number in range(EPC_PAGES) if number not in self.epc]

    def pick(self, good: Iterable[int]) -> int:
        """Draw an EPC page: of eight seven are good ones."""
        good = list(good)
        if good and self.random.random() < 0.875:
            return self.random.choice(good)
        return self.random.randrange(EPC_PAGES)

    def of_kind(self, *kinds: str) -> list[int]:
        return [number for number, page in self.epc.items() if page.kind in kinds]

    @staticmethod
    def real(leaf: Callable[[], Any]) -> Any:
        try:
            return leaf()
        except Fault as fault:
            return fault.vector

    # -- building -----------------------------------------------------------------------------

    def _pageinfo(self, data: bytes, flags: int, linaddr: int, secs: int) -> int:
        pageinfo = Pageinfo(
            linaddr=linaddr,
            srcpge=self.memory.place(data),
            secinfo=self.memory.place(Secinfo(flags=flags).encode()),
            secs=secs,
        )
        return self.memory.place(pageinfo.encode())

    def _add(self, enclave: Enclave, offset: int, data: bytes, flags: int) -> None:
        page = self.free()[0]
        secs = self.secs_of(enclave)
        assert secs is not None
        rbx = self._pageinfo(data, flags, enclave.base + offset, address(secs))
        encls.eadd(self.cpu, self.memory, rbx, address(page))
        kind = "TCS" if flags == SECINFO_TCS else "REG"
        self.epc[page] = Page(kind, enclave, offset, content=data)

    def build(self) -> None:
        base, free = self.random.choice(BASES), self.free()
        if len(free) < 9 or any(enclave.base == base for enclave in self.enclaves):
            return
        secs = Secs.blank().replace(size=SIZE, baseaddr=base, ssaframesize=1, attributes=6, xfrm=3)
        rbx = self._pageinfo(secs.encode(), 0, 0, 0)
        encls.ecreate(self.cpu, self.memory, rbx, address(free[0]))
        made = self.cpu.enclaves[free[0]]
        enclave = Enclave(base, made.eid)
        self.enclaves.append(enclave)
        self.epc[free[0]] = Page("SECS", enclave)
        for tcs, frame in FRAMES.items():
            fields = {"ossa": frame, "nssa": NSSA, "fslimit": 0xFFF, "gslimit": 0xFFF}
            self._add(enclave, tcs, Tcs.blank().replace(**fields).encode(), SECINFO_TCS)
            for offset in range(frame, frame + NSSA * 4096, 4096):
                self._add(enclave, offset, bytes(4096), READ_WRITE)
            enclave.threads[tcs] = Thread(tcs)
        for offset in DATA:
            self._add(enclave, offset, offset.to_bytes(4096, "little"), READ_WRITE)
        made.attributes |= ATTRIBUTE_INIT

    def epa(self) -> None:
        page = self.pick(self.free())
        real = self.real(lambda: encls.epa(self.cpu, PT_VA, address(page)))
        assert real == (PF if page in self.epc else None)
        self.epc.setdefault(page, Page("VA"))

    def eremove(self) -> None:
        number = self.random.randrange(EPC_PAGES)
        page = self.epc.get(number)
        expected = LeafCode.NO_ERROR
        if page is not None and page.enclave is not None:
            if page.kind == "SECS" and self.children(page.enclave):
                expected = LeafCode.CHILD_PRESENT
            elif page.child and page.enclave.inside():
                expected = LeafCode.ENCLAVE_ACT
        assert encls.eremove(self.cpu, address(number)) is expected
        if expected is LeafCode.NO_ERROR:
            self.epc.pop(number, None)
            if page is not None and page.kind == "SECS" and page.enclave is not None:
                # Another enclave may be built there; what is out of this one stays out.
                self.enclaves.remove(page.enclave)

    def children(self, enclave: Enclave) -> int:
        return sum(page.child and page.enclave is enclave for page in self.epc.values())

    # -- threads ------------------------------------------------------------------------------

    def _store_xsave(self, image: bytearray) -> None:
        self.xsave = image

    def _lp(self, enclave: Enclave, thread: Thread) -> tuple[LogicalProcessor, Registers]:
        def translate(linear: int) -> int | None:
            return self.resident(enclave, linear - enclave.base)

        if thread not in self.lps:
            lp = LogicalProcessor(
                translate,
                load_xsave=lambda: bytearray(self.xsave),
                store_xsave=self._store_xsave,
            )
            self.lps[thread] = lp, Registers()
        return self.lps[thread]

    def _usable(self, enclave: Enclave, offset: int) -> bool:
        number = self.resident(enclave, offset)
        return number is not None and not self.epc[number].blocked

    def enter(self) -> None:
        if not self.enclaves:
            return
        enclave = self.random.choice(self.enclaves)
        tcs, leaf = self.random.choice(TCSS), self.random.choice([EENTER, EENTER, ERESUME])
        thread = enclave.threads[tcs]
        lp, regs = self._lp(enclave, thread)
        frame = thread.cssa - (leaf == ERESUME)
        legal = (
            thread.entry is None
            and 0 <= frame < NSSA
            and self._usable(enclave, tcs)
            and self._usable(enclave, FRAMES[tcs] + 4096 * frame)
        )
        regs.rax, regs.rbx, regs.rcx = leaf, enclave.base + tcs, 0x40_1000
        real = self.real(lambda: enclu(self.cpu, lp, regs))
        assert (real == leaf) == legal, real
        if legal:
            thread.cssa = frame
            thread.entry = object()

    def leave(self) -> None:
        threads = [thread for enclave in self.enclaves for thread in enclave.threads.values()]
        threads = [thread for thread in threads if thread.entry is not None]
        if not threads:
            return
        thread = self.random.choice(threads)
        lp, regs = self.lps[thread]
        if self.random.random() < 0.4:
            aex(self.cpu, lp, regs, Event())
            thread.cssa += 1
        else:
            regs.rax, regs.rbx = EEXIT, 0x41_0000
            enclu(self.cpu, lp, regs)
        thread.entry = None

    def shootdown(self) -> None:
        for enclave in self.enclaves:
            secs = self.secs_of(enclave)
            if secs is not None and self.random.random() < 0.5:
                paging.tlb_shootdown(self.cpu.enclaves[secs])
                for thread in enclave.threads.values():
                    thread.entry = thread.entry and object()

    def write(self) -> None:
        """Change a page that is there, as a thread inside does."""
        pages = [
            page
            for page in self.epc.values()
            if page.kind == "REG" and page.offset in DATA and not page.blocked
        ]
        if pages:
            page = self.random.choice(pages)
            self.written += 1
            page.content = self.written.to_bytes(8, "little") * 512
            assert page.enclave is not None
            self._elrange(page.enclave).write(page.enclave.base + page.offset, page.content)

    def _elrange(self, enclave: Enclave) -> Any:
        secs = self.secs_of(enclave)
        assert secs is not None
        return self.cpu.enclaves[secs].elrange

    # -- blocking and tracking ------------------------------------------------------------------

    def eblock(self) -> None:
        number = self.pick(self.of_kind("REG", "TCS"))
        page = self.epc.get(number)
        if page is None:
            expected = LeafCode.PG_INVLD
        elif page.kind == "SECS":
            expected = LeafCode.PG_IS_SECS
        elif page.kind == "VA":
            expected = LeafCode.NOTBLOCKABLE
        else:
            expected = LeafCode.BLKSTATE if page.blocked else LeafCode.NO_ERROR
            page.blocked = True
        assert paging.eblock(self.cpu, address(number)) is expected

    def etrack(self) -> None:
        by_any_page = self.random.random() < 0.5
        number = self.pick(self.of_kind("SECS", "REG") if by_any_page else self.of_kind("SECS"))
        page = self.epc.get(number)
        expected: Outcome
        if page is None:
            expected = LeafCode.PG_INVLD if by_any_page else PF
        elif page.kind == "VA":
            expected = LeafCode.TRACK_NOT_REQUIRED if by_any_page else PF
        elif page.kind != "SECS" and not by_any_page:
            expected = PF
        else:
            assert page.enclave is not None
            expected = self._track(page.enclave)
        leaf = paging.etrackc if by_any_page else paging.etrack
        assert self.real(lambda: leaf(self.cpu, address(number))) == expected

    def _track(self, enclave: Enclave) -> LeafCode:
        inside = enclave.inside()
        if enclave.waited & inside:
            return LeafCode.PREV_TRK_INCMPL
        enclave.waited = inside
        for page in self.epc.values():
            if page.blocked and page.enclave is enclave and page.waits is None:
                page.waits = inside
        return LeafCode.NO_ERROR

    # -- out ----------------------------------------------------------------------------------

    def _ewb(self, number: int, va: int, slot: int) -> Outcome:
        """Say what EWB answers; the page is moved if it goes."""
        if number == va:
            return GP
        page, holder = self.epc.get(number), self.epc.get(va)
        if page is None or holder is None or holder.kind != "VA":
            return PF
        enclave = page.enclave
        if page.child and enclave is not None:
            if not page.blocked:
                return LeafCode.PAGE_NOT_BLOCKED
            waits = page.waits
            if waits is None or waits & enclave.inside() or page.offset in enclave.holds():
                return LeafCode.NOT_TRACKED
        elif page.kind == "SECS" and enclave is not None and self.children(enclave):
            return LeafCode.CHILD_PRESENT
        del self.epc[number]
        self.out.append(page)
        page.blocked, page.waits = False, None
        occupied = slot in holder.slots
        holder.slots[slot] = page
        return LeafCode.VA_SLOT_OCCUPIED if occupied else LeafCode.NO_ERROR

    def ewb(self) -> None:
        wanted = [n for n, page in self.epc.items() if page.blocked or page.kind == "SECS"]
        number, va = self.pick(wanted), self.pick(self.of_kind("VA"))
        slot = self.random.randrange(SLOTS)
        page = self.epc.get(number)
        contents, pcmd = self.memory.place(bytes(4096)), self.memory.place(bytes(128))
        pageinfo = Pageinfo(linaddr=0, srcpge=contents, secinfo=pcmd, secs=0)
        rbx = self.memory.place(pageinfo.encode())
        rdx = address(va) + 8 * slot
        real = self.real(lambda: paging.ewb(self.cpu, self.memory, rbx, address(number), rdx))
        assert real == self._ewb(number, va, slot)
        if real in {LeafCode.NO_ERROR, LeafCode.VA_SLOT_OCCUPIED}:
            assert page is not None
            linaddr = Pageinfo.decode(self.memory.read(rbx, 32)).linaddr
            page.sealed = linaddr, self.memory.read(contents, 4096), self.memory.read(pcmd, 128)

    def drain(self) -> None:
        """Block much of an enclave, and begin a cycle."""
        for _ in range(12):
            self.eblock()
        self.etrack()

    def ewb_pages(self) -> None:
        wanted = [n for n, page in self.epc.items() if page.blocked]
        self.random.shuffle(wanted)
        numbers = [*wanted[: self.random.randrange(8)], *self.of_kind("SECS")]
        if self.random.random() < 0.3:
            numbers.insert(0, self.random.randrange(EPC_PAGES))
        slots = [self.random.randrange(SLOTS) for _ in numbers]
        va = self.pick(self.of_kind("VA"))
        pages = [self.epc.get(number) for number in numbers]
        real = self.real(lambda: paging.ewb_pages(self.cpu, numbers, PageIndex(va), slots))
        gone: list[Page] = []
        expected: Outcome = LeafCode.NO_ERROR
        for number, slot, page in zip(numbers, slots, pages, strict=True):
            outcome = self._ewb(number, va, slot)
            if not isinstance(outcome, LeafCode):
                expected = LeafCode.NO_ERROR if gone else outcome
                break
            if outcome not in {LeafCode.NO_ERROR, LeafCode.VA_SLOT_OCCUPIED}:
                expected = outcome
                break
            assert page is not None
            gone.append(page)
        if not isinstance(expected, LeafCode):
            assert real == expected
            return
        assert real[0] is expected
        assert len(real[1]) == len(gone)
        for page, sealed in zip(gone, real[1], strict=True):
            page.sealed = sealed

    # -- in -----------------------------------------------------------------------------------

    def _eld(self, page: Page, number: int, va: int, slot: int, secs: int | None) -> Outcome:
        holder = self.epc.get(va)
        if number in self.epc or holder is None or holder.kind != "VA":
            return PF
        if page.child:
            parent = self.epc.get(-1 if secs is None else secs)
            if parent is None or parent.kind != "SECS":
                return PF
            if parent.enclave is not page.enclave:
                return LeafCode.MAC_COMPARE_FAIL
        elif secs is not None:
            return GP
        if holder.slots.get(slot) is not page:
            return LeafCode.MAC_COMPARE_FAIL
        del holder.slots[slot]
        self.epc[number] = page
        with suppress(ValueError):
            self.out.remove(page)
        return LeafCode.NO_ERROR

    def eld(self) -> None:
        if not self.out:
            return
        blocked, in_memory = self.random.random() < 0.2, self.random.random() < 0.5
        page = self.random.choice(self.out)
        assert page.sealed is not None
        va, slot = next(
            (
                (number, slot)
                for number, holder in self.epc.items()
                for slot, held in holder.slots.items()
                if held is page
            ),
            (self.pick(self.of_kind("VA")), 0),
        )
        secs = self.secs_of(page.enclave) if page.child and page.enclave else None
        number = self.pick(self.free())
        if self.random.random() < 0.2:
            va, slot = self.pick(self.of_kind("VA")), self.random.randrange(SLOTS)
        if self.random.random() < 0.1:
            secs = self.random.choice([None, *self.of_kind("SECS"), number])
        linaddr, contents, pcmd = page.sealed
        if in_memory:
            real = self.real(
                lambda: paging.eldu_page(
                    self.cpu, PageIndex(number), PageIndex(va), slot * 8,
                    None if secs is None else PageIndex(secs),
                    linaddr, contents, pcmd, blocked=blocked,
                )
            )  # fmt: skip
        else:
            pageinfo = Pageinfo(
                linaddr=linaddr,
                srcpge=self.memory.place(contents),
                secinfo=self.memory.place(pcmd),
                secs=0 if secs is None else address(secs),
            )
            rbx = self.memory.place(pageinfo.encode())
            leaf = paging.eldb if blocked else paging.eldu
            rdx = address(va) + 8 * slot
            real = self.real(lambda: leaf(self.cpu, self.memory, rbx, address(number), rdx))
        assert real == self._eld(page, number, va, slot, secs)
        if real is LeafCode.NO_ERROR:
            page.sealed = None
            page.blocked = blocked and page.child

    # -- what must be true ----------------------------------------------------------------------

    def sound(self) -> None:
        cpu, epc = self.cpu, self.cpu.epc
        epc.check()
        assert not epc.busy
        kinds = ["SECS", "TCS", "REG", "VA"]
        assert {n: kinds[epc.page_type(n)] for n in range(EPC_PAGES) if epc.valid(n)} == {
            number: page.kind for number, page in self.epc.items()
        }
        assert len({(p.enclave, p.offset) for p in self.epc.values() if p.child}) == sum(
            page.child for page in self.epc.values()
        )
        for number, page in self.epc.items():
            assert bool(epc.words[number] & EPCM_BLOCKED) == page.blocked
            if page.enclave is not None:
                self._of_enclave(number, page, page.enclave)
            else:
                versions = memoryview(epc.contents[number]).cast("Q")
                assert {i for i, version in enumerate(versions) if version} == set(page.slots)
        versions = [page for va in (*self.epc.values(), *self.out) for page in va.slots.values()]
        assert sorted(secs.eid for secs in cpu.evicted_secs.values()) == sorted(
            page.enclave.eid for page in versions if page.kind == "SECS" and page.enclave
        )

    def _of_enclave(self, number: int, page: Page, enclave: Enclave) -> None:
        cpu, epc = self.cpu, self.cpu.epc
        if page.kind == "SECS":
            secs = cpu.enclaves[number]
            assert (secs.eid, secs.page, secs.baseaddr) == (enclave.eid, number, enclave.base)
            assert secs.children == self.children(enclave)
            assert set(secs.threads) == {
                n for n, p in self.epc.items() if p.kind == "TCS" and p.enclave is enclave
            }
            for offset in DATA:
                held = self.resident(enclave, offset)
                expected = bytes(4096) if held is None else self.epc[held].content
                assert secs.elrange.read(enclave.base + offset, 4096) == expected
            return
        assert epc.owners[number] == self.secs_of(enclave)
        assert epc.addresses[number] == enclave.base + page.offset
        if page.kind == "TCS":
            thread, words = enclave.threads[page.offset], cpu.threads[number].words
            assert (words[CSSA], words[STATE]) == (thread.cssa, thread.entry is not None)


def address(page: int) -> int:
    return Epc.address(PageIndex(page))


WEIGHTS = {
    Paging.eblock: 4, Paging.etrack: 4, Paging.drain: 1, Paging.ewb: 6, Paging.ewb_pages: 2,
    Paging.eld: 12, Paging.enter: 4, Paging.leave: 4, Paging.shootdown: 1, Paging.write: 2,
    Paging.build: 1, Paging.epa: 1, Paging.eremove: 1,
}  # fmt: skip


@settings(max_examples=40)
@given(seed=st.integers(0, 1 << 32))
def test_any_leaves_keep_the_invariants(seed: int) -> None:
    machine = Paging(Random(seed))  # noqa: S311  # it chooses what is tested
    machine.build()
    machine.epa()
    for step in range(200):
        (leaf,) = machine.random.choices(list(WEIGHTS), list(WEIGHTS.values()))
        note(f"{step}: {leaf.__name__}")
        leaf(machine)
        machine.sound()
