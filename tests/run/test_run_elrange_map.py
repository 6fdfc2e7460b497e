# SPDX-License-Identifier: Apache-2.0
"""The list of enclave mappings against a dictionary with an entry a page."""

import errno
from typing import Any, NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from softsgx.run.elrange_map import EnclaveMap, EnclaveVma
from softsgx.run.numbers import SYS_MPROTECT

PAGE = 4096
PAGES = 24
BASE = 0x7F0000000000


class FakeEnclave:
    """Page `at` of ELRANGE is EPC page `first + at`; every fourth one is not resident.

    Every fifth one must not be writable.
    """

    def __init__(self, first: int) -> None:
        self.first = first
        self.encl = self
        self.mm_list: list[object] = []
        self.dead = False
        self.ends_unmapped = False

    def zapped(self, mm: object) -> None:
        """Hear what an address space tells a killed enclave."""

    def translate(self, address: int) -> int | None:
        at = (address - BASE) // PAGE
        return None if at % 4 == 3 else self.first + at

    def due(self, page: int, prot: int) -> int:
        return 0 if page % 4 == 3 or (page % 5 == 0 and prot & 2) else prot

    def touchable(self, start: int, end: int, prot: int) -> list[tuple[int, int, int]]:
        pages = range((start - BASE) // PAGE, (end - BASE) // PAGE)
        return [(address_of(p), address_of(p + 1), prot) for p in pages if self.due(p, prot)]


FILES = [FakeEnclave(0), FakeEnclave(1000)]


class Mapped(NamedTuple):
    """What is known of one page."""

    prot: int
    file: FakeEnclave
    dontfork: bool = False
    in_force: int = 0


def address_of(page: int) -> int:
    return BASE + page * PAGE


spans = st.tuples(st.integers(0, PAGES - 1), st.integers(1, PAGES)).map(
    lambda pair: (pair[0], min(PAGES, pair[0] + pair[1]))
)
protections = st.integers(0, 7)


class AgainstPages(RuleBasedStateMachine):
    """The same calls on both; after each, every page says the same."""

    def __init__(self) -> None:
        super().__init__()
        self.map = EnclaveMap()
        self.pages: dict[int, Mapped] = {}

    def _change(self, span: tuple[int, int], **changes: Any) -> None:
        for page in range(*span):
            if page in self.pages:
                self.pages[page] = self.pages[page]._replace(**changes)

    @rule(span=spans, prot=protections, file=st.sampled_from(FILES))
    def add(self, span: tuple[int, int], prot: int, file: FakeEnclave) -> None:
        start, end = map(address_of, span)
        self.map.add(EnclaveVma(start, end, prot, file))  # type: ignore[arg-type]
        self.pages |= dict.fromkeys(range(*span), Mapped(prot, file))

    @rule(span=spans)
    def remove(self, span: tuple[int, int]) -> None:
        self.map.remove(*map(address_of, span))
        for page in range(*span):
            self.pages.pop(page, None)

    @rule(span=spans, prot=protections, in_force=protections)
    def protect(self, span: tuple[int, int], prot: int, in_force: int) -> None:
        start, end = map(address_of, span)
        self.map.protect(start, end, prot, in_force)
        self._change(span, prot=prot, in_force=in_force)

    @rule(span=spans)
    def set_dontfork(self, span: tuple[int, int]) -> None:
        self.map.set_dontfork(*map(address_of, span))
        self._change(span, dontfork=True)

    def call(self, number: int, start: int, length: int, prot: int) -> int:
        """Carry out an injected mprotect."""
        assert number == SYS_MPROTECT
        span = (start - BASE) // PAGE, (start + length - BASE) // PAGE
        assert all(self.pages[page].in_force != prot for page in range(*span))
        self._change(span, in_force=prot)
        return 0

    @rule(span=spans)
    def settle(self, span: tuple[int, int]) -> None:
        start, end = map(address_of, span)
        assert self.map.settle(self, start, end) == 0  # type: ignore[arg-type]
        assert self.map.unsettled(start, end) is None
        for page in range(*span):
            if page in self.pages:
                known = self.pages[page]
                assert known.in_force == known.file.due(page, known.prot)

    @rule()
    def go_on_as_the_child(self) -> None:
        child = self.map.fork(alone=True)
        assert not child.watched
        self.map = child
        self.pages = {page: known for page, known in self.pages.items() if not known.dontfork}

    @rule(files=st.lists(st.sampled_from([None, *FILES]), min_size=PAGES, max_size=PAGES))
    def agree(self, files: list[FakeEnclave | None]) -> None:
        mapped = [(address_of(p), address_of(p + 1), f) for p, f in enumerate(files) if f]
        unknown = {
            (address - BASE) // PAGE
            for start, end in self.map.agree(mapped)  # type: ignore[arg-type]
            for address in range(start, end, PAGE)
        }
        self.pages = {
            page: known for page, known in self.pages.items() if files[page] is known.file
        }
        assert unknown == {p for p, file in enumerate(files) if file and p not in self.pages}

    @rule(span=spans)
    def look_at_a_range(self, span: tuple[int, int]) -> None:
        start, end = map(address_of, span)
        seen: dict[int, Mapped] = {}
        for vma in self.map.overlapping(start, end):
            assert start <= vma.start < vma.end <= end
            for address in range(vma.start, vma.end, PAGE):
                page = (address - BASE) // PAGE
                assert page not in seen, "two mappings of one page"
                seen[page] = Mapped(vma.prot, vma.file, vma.dontfork, vma.in_force)  # type: ignore[arg-type]
        assert seen == {page: self.pages[page] for page in range(*span) if page in self.pages}

    @invariant()
    def every_page_says_the_same(self) -> None:
        for page in range(-1, PAGES + 1):
            for address in (address_of(page), address_of(page) + PAGE - 1):
                vma = self.map.find(address)
                known = self.pages.get(page)
                if known is None:
                    assert vma is None
                    assert self.map.translate(address) is None
                    continue
                assert vma is not None
                assert vma.start <= address < vma.end
                assert Mapped(vma.prot, vma.file, vma.dontfork, vma.in_force) == known  # type: ignore[arg-type]
                here = known.file.translate(address_of(page)) if known.prot else None
                assert self.map.translate(address) == here
        assert bool(len(self.map)) == bool(self.pages)


TestAgainstPages = AgainstPages.TestCase
TestAgainstPages.settings = settings(max_examples=60, stateful_step_count=25)


@given(span=spans, cut=spans)
def test_what_is_given_out_is_a_copy(span: tuple[int, int], cut: tuple[int, int]) -> None:
    enclaves = EnclaveMap()
    start, end = map(address_of, span)
    enclaves.add(EnclaveVma(start, end, 3, FILES[0]))  # type: ignore[arg-type]
    for piece in enclaves.overlapping(*map(address_of, cut)):
        piece.prot = 0
        piece.end = piece.start
    vma = enclaves.find(start)
    assert vma is not None
    assert (vma.start, vma.end, vma.prot) == (start, end, 3)


def test_closing_forgets_everything() -> None:
    enclaves = EnclaveMap()
    enclaves.add(EnclaveVma(BASE, BASE + PAGE, 1, FILES[0]))  # type: ignore[arg-type]
    enclaves.close()
    assert len(enclaves) == 0
    assert enclaves.find(BASE) is None
    assert not enclaves.watched


def test_a_failed_mprotect_is_told_and_changes_nothing() -> None:
    class Refusing:
        def call(self, *_: int) -> int:
            return (1 << 64) - errno.ENOMEM

    enclaves = EnclaveMap()
    enclaves.add(EnclaveVma(BASE, BASE + PAGE, 1, FILES[0]))  # type: ignore[arg-type]
    assert enclaves.settle(Refusing(), BASE, BASE + PAGE) == errno.ENOMEM  # type: ignore[arg-type]
    assert enclaves.unsettled(BASE, BASE + PAGE) == (BASE, BASE + PAGE, 1)


def test_a_mapping_that_goes_away_meanwhile_is_no_failure() -> None:
    enclaves = EnclaveMap()

    class Unmapping:
        def call(self, *_: int) -> int:
            enclaves.remove(BASE, BASE + PAGE)
            return (1 << 64) - errno.ENOMEM

    enclaves.add(EnclaveVma(BASE, BASE + PAGE, 1, FILES[0]))  # type: ignore[arg-type]
    assert enclaves.settle(Unmapping(), BASE, BASE + PAGE) == 0  # type: ignore[arg-type]
