# SPDX-License-Identifier: Apache-2.0
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from softsgx.arch.secinfo import PT_REG, PT_TCS
from softsgx.driver.page_array import PageArray, neighbours

INSERTS = st.lists(
    st.tuples(
        st.integers(0, 60),
        st.integers(1, 12),
        st.sampled_from([(1, PT_REG), (3, PT_REG), (3, PT_TCS), (5, PT_REG)]),
    ),
    max_size=20,
)


@given(INSERTS, st.integers(0, 80), st.integers(1, 40))
def test_the_runs_say_what_a_table_of_pages_says(
    inserts: list[tuple[int, int, tuple[int, int]]], first: int, count: int
) -> None:
    pages = PageArray()
    table: dict[int, tuple[int, tuple[int, int]]] = {}
    epc = 1000
    for start, length, kind in inserts:
        absent = pages.absent_from(start, length)
        wanted = [page for page in range(start, start + length) if page in table]
        assert absent == (wanted[0] - start if wanted else length)
        if absent:
            pages.insert(start, epc, absent, *kind)
            table |= {start + i: (epc + i, kind) for i in range(absent)}
            epc += 100
    assert len(pages) == len(table)
    for page in range(90):
        run = pages.find(page)
        assert pages.epc_page(page) == (table[page][0] if page in table else None)
        assert (run and (run.vm_max_prot, run.type)) == table.get(page, (0, None))[1]
    seen = {
        page
        for run in pages.overlapping(first, first + count)
        for page in range(max(run.first, first), min(run.end, first + count))
    }
    assert seen == {page for page in table if first <= page < first + count}
    firsts = [run.first for run in pages.runs()]
    assert firsts == sorted(firsts)


def test_pages_added_one_by_one_are_one_run() -> None:
    pages = PageArray()
    for page in range(512):
        pages.insert(page, 1000 - page, 1, 3, PT_REG)
    (run,) = pages.runs()
    assert (run.first, run.end) == (0, 512)
    assert pages.epc_page(511) == 489


def test_cleared_it_has_no_pages() -> None:
    pages = PageArray()
    pages.insert(5, 0, 4, 1, PT_REG)
    pages.clear()
    assert len(pages) == 0
    assert pages.find(5) is None
    assert pages.absent_from(0, 16) == 16


@given(st.lists(st.integers(0, 12), unique=True))
def test_neighbours_are_grouped_in_their_order(pages: list[int]) -> None:
    groups = list(neighbours(pages))
    assert [page for first, count in groups for page in range(first, first + count)] == pages
    assert all(first + count != after for (first, count), (after, _) in pairwise(groups))
