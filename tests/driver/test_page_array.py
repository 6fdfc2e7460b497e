# SPDX-License-Identifier: Apache-2.0
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from softsgx.arch.secinfo import PT_REG, PT_TCS
from softsgx.driver.page_array import PageArray, PageKind, neighbours

RW = PageKind(3, PT_REG, 3)
KINDS = [
    PageKind(1, PT_REG, 1),
    RW,
    PageKind(3, PT_TCS, 0),
    PageKind(7, PT_REG, 3),
    PageKind(7, PT_REG, 3, pending=True),
]
INSERTS = st.lists(
    st.tuples(
        st.integers(0, 60),
        st.integers(1, 12),
        st.sampled_from(KINDS),
    ),
    max_size=20,
)


@given(INSERTS, st.integers(0, 80), st.integers(1, 40))
def test_the_runs_say_what_a_table_of_pages_says(
    inserts: list[tuple[int, int, PageKind]], first: int, count: int
) -> None:
    pages = PageArray()
    table: dict[int, tuple[int, PageKind]] = {}
    epc = 1000
    for start, length, kind in inserts:
        absent = pages.absent_from(start, length)
        wanted = [page for page in range(start, start + length) if page in table]
        assert absent == (wanted[0] - start if wanted else length)
        if absent:
            pages.insert(start, epc, absent, kind)
            table |= {start + i: (epc + i, kind) for i in range(absent)}
            epc += 100
    assert len(pages) == len(table)
    for page in range(90):
        run = pages.find(page)
        assert pages.epc_page(page) == (table[page][0] if page in table else None)
        assert (run and run.kind) == table.get(page, (0, None))[1]
    seen = {
        page
        for run in pages.overlapping(first, first + count)
        for page in range(max(run.first, first), min(run.end, first + count))
    }
    assert seen == {page for page in table if first <= page < first + count}
    firsts = [run.first for run in pages.runs()]
    assert firsts == sorted(firsts)


CHANGES = st.lists(
    st.tuples(st.integers(0, 60), st.integers(1, 12), st.sampled_from([*KINDS, None])), max_size=30
)


@given(CHANGES)
def test_runs_are_cut_and_joined_as_their_pages_change(
    changes: list[tuple[int, int, PageKind | None]],
) -> None:
    pages = PageArray()
    pages.insert(0, 1000, 64, RW)
    table = dict.fromkeys(range(64), RW)
    for first, wanted, kind in changes:
        count = min(wanted, 64 - first)
        if any(page not in table for page in range(first, first + count)):
            # A hole is filled, from the side.
            missing = [page for page in range(first, first + count) if page not in table]
            for page in missing:
                pages.insert(page, 1000 + page, 1, kind or RW)
                table[page] = kind or RW
        elif kind is None:
            pages.remove(first, count)
            for page in range(first, first + count):
                del table[page]
        else:
            pages.change(first, count, kind)
            table |= dict.fromkeys(range(first, first + count), kind)
        runs = list(pages.runs())
        found = {page: run.kind for run in runs for page in range(run.first, run.end)}
        assert found == table
        assert len(pages) == len(table)
        assert all(pages.epc_page(page) == 1000 + page for page in table)
        assert all(len(run.epc) == run.end - run.first for run in runs)
        # What could be one run is one.
        assert not any(a.end == b.first and a.kind == b.kind for a, b in pairwise(runs))


def test_pages_added_one_by_one_are_one_run() -> None:
    pages = PageArray()
    for page in range(512):
        pages.insert(page, 1000 - page, 1, RW)
    (run,) = pages.runs()
    assert (run.first, run.end) == (0, 512)
    assert pages.epc_page(511) == 489


def test_cleared_it_has_no_pages() -> None:
    pages = PageArray()
    pages.insert(5, 0, 4, RW)
    pages.clear()
    assert len(pages) == 0
    assert pages.find(5) is None
    assert pages.absent_from(0, 16) == 16


@given(st.lists(st.integers(0, 12), unique=True))
def test_neighbours_are_grouped_in_their_order(pages: list[int]) -> None:
    groups = list(neighbours(pages))
    assert [page for first, count in groups for page in range(first, first + count)] == pages
    assert all(first + count != after for (first, count), (after, _) in pairwise(groups))
