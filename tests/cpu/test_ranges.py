# SPDX-License-Identifier: Apache-2.0
"""EADD of a range is the scalar leaves in a loop; any sequence of leaves keeps the EPCM sound."""

import ctypes
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from softsgx.arch.codes import LeafCode
from softsgx.arch.secinfo import PT_VA, SECINFO_PENDING, SECINFO_R, SECINFO_REG, SECINFO_TCS
from softsgx.arch.structures import Pageinfo, Secinfo, Secs, Tcs
from softsgx.cpu import encls
from softsgx.cpu.epc import EPC_BASE, Epc, PageIndex
from softsgx.cpu.hasher import Hasher
from softsgx.cpu.identity import Identity
from softsgx.cpu.memory import HeldElrange, HeldMemory
from softsgx.cpu.model import Model
from softsgx.cpu.processor import Processor
from softsgx.errors import Fault
from softsgx.image.measurement import Measurement

EPC_PAGES = 24
BASE = 1 << 40
SIZE = 16 * 4096
SOURCE = 0x10_0000


class Side:
    """A processor with one enclave and a source of pages, made the same way twice."""

    def __init__(self, source: bytes, hole: int | None, epc_pages: int = EPC_PAGES) -> None:
        self.cpu = Processor(Model(epc_pages * 4096), Identity.fresh(), epc_pages)
        self.memory = HeldMemory(0x100_0000)
        self.memory.map(SOURCE, len(source))
        self.memory.write(SOURCE, source)
        if hole is not None:
            self.memory.unmap(SOURCE + hole * 4096, 4096)
        secs = Secs.blank().replace(
            size=max(SIZE, 1 << (epc_pages * 4096 - 1).bit_length()),
            baseaddr=BASE, ssaframesize=1, attributes=4, xfrm=3,
        )  # fmt: skip
        pageinfo = Pageinfo(
            linaddr=0,
            srcpge=self.memory.place(secs.encode()),
            secinfo=self.memory.place(bytes(64)),
            secs=0,
        )
        rbx = self.memory.place(pageinfo.encode())
        encls.ecreate(self.cpu, self.memory, rbx, EPC_BASE, elrange=Scattered())

    def one_by_one(
        self, pages: range, linaddr: int, source: int, flags: int, measure: bool
    ) -> int | Fault:
        cpu, memory = self.cpu, self.memory
        done = 0
        try:
            for page in pages:
                pageinfo = Pageinfo(
                    linaddr=linaddr + done * 4096,
                    srcpge=source + done * 4096,
                    secinfo=memory.place(Secinfo(flags=flags).encode()),
                    secs=EPC_BASE,
                )
                rcx = EPC_BASE + page * 4096
                encls.eadd(cpu, memory, memory.place(pageinfo.encode()), rcx)
                if measure:
                    for chunk in range(0, 4096, 256):
                        encls.eextend(cpu, EPC_BASE, rcx + chunk)
                done += 1
        except Fault as fault:
            return done or fault
        return done

    def as_range(
        self, pages: range, linaddr: int, source: int, flags: int, measure: bool
    ) -> int | Fault:
        try:
            return encls.eadd_pages(
                self.cpu, self.memory, PageIndex(0), pages, linaddr, source, flags, measure
            )
        except Fault as fault:
            return fault

    def state(self) -> Any:
        secs, epc = self.cpu.enclaves[0], self.cpu.epc
        return (
            secs.hasher.digest(),
            secs.children,
            epc.words.tolist(),
            epc.owners.tolist(),
            epc.addresses.tolist(),
            {page: bytes(data) for page, data in epc.contents.items()},
            sorted(secs.threads),
            secs.elrange.read(BASE, secs.size),
            epc.busy,
        )


def outcome(result: int | Fault) -> Any:
    if isinstance(result, Fault):
        return result.vector, result.address
    return result


GOOD_FLAGS = (0x201, 0x203, 0x205, 0x207, SECINFO_TCS, SECINFO_TCS | 3)
BAD_FLAGS = (0, 0x200, 0x202, 0x206, 0x300, SECINFO_REG | SECINFO_R | SECINFO_PENDING, 0x10203)
FLAGS = st.sampled_from((*GOOD_FLAGS, *BAD_FLAGS))


@settings(max_examples=300)
@given(
    first=st.integers(1, EPC_PAGES - 1),
    count=st.integers(1, 12),
    page=st.integers(-1, 17),
    start=st.integers(0, 12),
    hole=st.none() | st.integers(0, 12),
    taken=st.none() | st.integers(1, EPC_PAGES - 1),
    flags=FLAGS,
    measure=st.booleans(),
    dirty=st.booleans(),
)
def test_a_range_is_its_pages(
    first: int, count: int, page: int, start: int, hole: int | None, taken: int | None,
    flags: int, measure: bool, dirty: bool,
) -> None:  # fmt: skip
    tcs = Tcs.blank().replace(ossa=0x1000, nssa=1, cssa=3, fslimit=0xFFF, gslimit=0xFFF)
    source = tcs.encode() * 12
    if dirty:
        source = bytes(b ^ 0x55 for b in source[:4096]) + source[4096:]
    sides = Side(source, hole), Side(source, hole)
    for side in sides:
        if taken is not None:
            encls.epa(side.cpu, PT_VA, EPC_BASE + taken * 4096)
    pages = range(first, min(first + count, EPC_PAGES))
    operands = (pages, BASE + page * 4096, SOURCE + start * 4096, flags, measure)
    expected = sides[0].one_by_one(*operands)
    got = sides[1].as_range(*operands)
    assert outcome(got) == outcome(expected)
    assert sides[0].state() == sides[1].state()
    sides[1].cpu.epc.check()


def test_a_long_range_hashed_in_the_background_is_its_pages() -> None:
    count = 1500
    source = b"".join(i.to_bytes(4, "little") * 1024 for i in range(count))
    sides = Side(source, None, count + 10), Side(source, None, count + 10)
    for pages, measure in (
        (range(1, 1101), True),
        (range(1101, 1301), False),
        (range(1301, 1501), True),
    ):
        offset = (pages.start - 1) * 4096
        operands = (pages, BASE + offset, SOURCE + offset, 0x203, measure)
        for side in sides:
            assert side.as_range(*operands) == len(pages)
    expected = Measurement()
    expected.ecreate(1, sides[0].cpu.enclaves[0].size)
    expected.add_pages(0, 0x203, source[: 1100 * 4096], measured=True)
    expected.add_pages(1100 * 4096, 0x203, source[: 200 * 4096], measured=False)
    expected.add_pages(1300 * 4096, 0x203, source[1300 * 4096 :], measured=True)
    assert [side.cpu.enclaves[0].hasher.digest() for side in sides] == [expected.digest()] * 2
    assert sides[0].state() == sides[1].state()


def test_what_happens_to_a_page_later_is_not_in_the_measurement() -> None:
    count = 256
    side = Side(bytes(count * 4096), None, count + 1)
    assert side.as_range(range(1, 257), BASE, SOURCE, 0x203, True) == count
    side.cpu.enclaves[0].elrange.write(BASE, b"\xff" * 4096)
    expected = Measurement()
    expected.ecreate(1, side.cpu.enclaves[0].size)
    expected.add_pages(0, 0x203, bytes(count * 4096), measured=True)
    assert side.cpu.enclaves[0].hasher.digest() == expected.digest()


def test_a_range_that_is_killed_in_the_middle_leaves_no_half_page() -> None:
    side = Side(bytes(600 * 4096), None, 700)
    fill = side.memory.fill
    calls = []

    def killed(*operands: Any) -> int:
        calls.append(side.cpu.epc.busy.copy())
        if len(calls) == 2:
            raise KeyboardInterrupt
        return fill(*operands)

    side.memory.fill = killed  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        side.as_range(range(1, 601), BASE, SOURCE, 0x203, True)
    assert calls == [set(range(601))] * 2
    assert not side.cpu.epc.busy
    assert side.cpu.enclaves[0].children == 512
    side.cpu.epc.check()


def test_a_short_copy_leaves_no_part_of_the_page() -> None:
    side = Side(b"\xaa" * (4 * 4096), None)
    fill = side.memory.fill
    side.memory.fill = lambda el, dst, src, length: fill(el, dst, src, length - 100)  # type: ignore[method-assign]
    assert side.as_range(range(1, 4), BASE, SOURCE, 0x203, True) == 2
    assert side.cpu.enclaves[0].elrange.read(BASE + 8192, 4096) == bytes(4096)


class Scattered(HeldElrange):
    """An Elrange that offers scattered reads, as one over a file does."""

    def readv(self, address: int, iovec: int, count: int, /) -> int:
        assert count <= 1024
        done = 0
        for place, length in struct.iter_unpack("<QQ", ctypes.string_at(iovec, 16 * count)):
            ctypes.memmove(place, self.read(address + done, length), length)
            done += length
        return done


@settings(max_examples=25)
@given(runs=st.lists(st.tuples(st.integers(1, 600), st.booleans()), min_size=1, max_size=5))
def test_scattered_reads_measure_the_same(runs: list[tuple[int, bool]]) -> None:
    elrange, hasher, expected = Scattered(), Hasher(), Measurement()
    offset = 0
    for count, once_more in runs:
        data = b"".join((offset + page).to_bytes(8, "little") * 512 for page in range(count))
        elrange.write(BASE + offset, data)
        hasher.add_pages(elrange, BASE, offset, 0x203, count)
        expected.add_pages(offset, 0x203, data, measured=True)
        elrange.write(BASE + offset, bytes(4096))
        if once_more:
            hasher.eadd(offset, 0x205)
            expected.eadd(offset, 0x205)
            assert hasher.digest() == expected.digest()
        offset += count * 4096
    assert hasher.digest() == expected.digest()


class Bad(Scattered):
    """Its second scattered read fails as the test says."""

    def __init__(self, outcome: int | OSError) -> None:
        super().__init__()
        self.outcome = outcome
        self.reads = 0

    def readv(self, address: int, iovec: int, count: int, /) -> int:
        self.reads += 1
        if self.reads != 2:
            return super().readv(address, iovec, count)
        if isinstance(self.outcome, OSError):
            raise self.outcome
        return self.outcome


@pytest.mark.parametrize("outcome", [OSError("no such page"), 4096])
def test_a_failure_while_reading_ends_the_measurement(outcome: int | OSError) -> None:
    hasher = Hasher()
    expected = "no such page" if isinstance(outcome, OSError) else "4096 bytes of"
    with pytest.raises(OSError, match=expected):
        hasher.add_pages(Bad(outcome), BASE, 0, 0x203, 4096)
    with pytest.raises(OSError, match=expected):
        hasher.digest()
    with pytest.raises(OSError, match=expected):
        hasher.add_pages(Scattered(), BASE, 0, 0x203, 4096)


def test_a_failure_while_hashing_is_raised_where_the_digest_is_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(_measurement: Measurement, _stream: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(Measurement, "add_stream", fail)
    hasher = Hasher()
    # It may still be reading when the hashing fails.
    with suppress(MemoryError):
        hasher.add_pages(Scattered(), BASE, 0, 0x203, 1024)
    with pytest.raises(MemoryError, match="no room"):
        hasher.digest()
    with pytest.raises(MemoryError, match="no room"):
        hasher.eadd(0, 0x203)


class Leaves(RuleBasedStateMachine):
    """Any leaves with any operands, against a set of what must be there."""

    def __init__(self) -> None:
        super().__init__()
        self.cpu = Processor(Model(12 * 4096), Identity.fresh(), 12)
        self.memory = HeldMemory()
        self.source = self.memory.place(bytes(4096))
        secs = Secs.blank().replace(size=SIZE, baseaddr=BASE, ssaframesize=1, attributes=6, xfrm=3)
        self.secs_source = self.memory.place(secs.encode())
        # EPC page -> what it is, the enclave it is of.
        self.model: dict[int, tuple[str, int | None]] = {}

    page = st.integers(0, 11)

    def _try(self, leaf: Callable[[], Any]) -> Any:
        try:
            return leaf() or LeafCode.NO_ERROR
        except Fault:
            return None

    def _pageinfo(self, source: int, flags: int, linaddr: int, secs: int) -> int:
        secinfo = self.memory.place(Secinfo(flags=flags).encode())
        pageinfo = Pageinfo(linaddr=linaddr, srcpge=source, secinfo=secinfo, secs=secs)
        return self.memory.place(pageinfo.encode())

    @rule(page=page)
    def ecreate(self, page: int) -> None:
        rbx = self._pageinfo(self.secs_source, 0, 0, 0)
        rcx = Epc.address(PageIndex(page))
        done = self._try(lambda: encls.ecreate(self.cpu, self.memory, rbx, rcx))
        assert (done is not None) == (page not in self.model)
        if done is not None:
            self.model[page] = ("SECS", None)

    @rule(page=page, secs=page, offset=st.integers(0, 16), flags=st.sampled_from([0x203, 0x100]))
    def eadd(self, page: int, secs: int, offset: int, flags: int) -> None:
        rbx = self._pageinfo(self.source, flags, BASE + offset * 4096, Epc.address(PageIndex(secs)))
        rcx = Epc.address(PageIndex(page))
        done = self._try(lambda: encls.eadd(self.cpu, self.memory, rbx, rcx))
        legal = page not in self.model and self.model.get(secs, ("", None))[0] == "SECS"
        assert (done is not None) == (legal and offset < 16)
        if done is not None:
            self.model[page] = ("TCS" if flags == 0x100 else "REG", secs)

    @rule(page=page, count=st.integers(1, 5), secs=page)
    def eadd_pages(self, page: int, count: int, secs: int) -> None:
        pages = range(page, page + count)
        done = self._try(
            lambda: encls.eadd_pages(
                self.cpu, self.memory, PageIndex(secs), pages, BASE, self.source, 0x203, False
            )
        )
        if done is not None:
            assert done == 1
            assert page not in self.model
            assert self.model[secs][0] == "SECS"
            self.model[page] = ("REG", secs)

    @rule(page=page)
    def epa(self, page: int) -> None:
        done = self._try(lambda: encls.epa(self.cpu, PT_VA, Epc.address(PageIndex(page))))
        assert (done is not None) == (page not in self.model)
        if done is not None:
            self.model[page] = ("VA", None)

    @rule(page=page)
    def eremove(self, page: int) -> None:
        code = encls.eremove(self.cpu, Epc.address(PageIndex(page)))
        parent = any(owner == page for _, owner in self.model.values())
        assert code == (LeafCode.CHILD_PRESENT if parent else LeafCode.NO_ERROR)
        if not code:
            self.model.pop(page, None)

    @rule(page=page, count=st.integers(1, 12))
    def eremove_pages(self, page: int, count: int) -> None:
        code, done = encls.eremove_pages(self.cpu, PageIndex(page), count)
        for gone in range(page, page + done):
            self.model.pop(gone, None)
        if code:
            assert any(owner == page + done for _, owner in self.model.values())
        else:
            assert done == min(count, 12 - page)

    @invariant()
    def sound(self) -> None:
        epc = self.cpu.epc
        epc.check()
        assert not epc.busy
        kinds = ["SECS", "TCS", "REG", "VA"]
        found = {
            page: (kinds[epc.page_type(page)], self._owner(page))
            for page in range(12)
            if epc.valid(page)
        }
        assert found == self.model
        assert set(self.cpu.enclaves) == {p for p, (k, _) in found.items() if k == "SECS"}
        assert set(self.cpu.threads) == {p for p, (k, _) in found.items() if k == "TCS"}
        for page, secs in self.cpu.enclaves.items():
            assert secs.children == sum(owner == page for _, owner in found.values())
            assert self.cpu.secs_of(page) is secs
        assert set(epc.contents) == {p for p, (k, _) in found.items() if k in {"TCS", "VA"}}

    def _owner(self, page: int) -> int | None:
        secs = self.cpu.secs_of(page)
        return None if secs is None or secs.page == page else secs.page


TestLeaves = Leaves.TestCase
TestLeaves.settings = settings(
    max_examples=60, stateful_step_count=30, suppress_health_check=list(HealthCheck), deadline=None
)
