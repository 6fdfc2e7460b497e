# SPDX-License-Identifier: Apache-2.0
import pytest
from hypothesis import given
from hypothesis import strategies as st

from softsgx.driver.epc_allocator import EpcAllocator

STEPS = st.lists(
    st.tuples(st.sampled_from(["page", "run", "free"]), st.integers(0, 63)), max_size=80
)


@given(STEPS)
def test_no_page_is_given_twice_and_none_is_lost(steps: list[tuple[str, int]]) -> None:
    allocator = EpcAllocator(64)
    held: list[tuple[int, int]] = []
    peak = 0
    for what, number in steps:
        free = 64 - sum(count for _, count in held)
        assert allocator.free_pages == free
        if what == "free":
            if held:
                first, count = held.pop(number % len(held))
                # In two halves, as ADD_PAGES gives back the rest of a run.
                allocator.free(first, count // 2)
                allocator.free(first + count // 2, count - count // 2)
        elif not free:
            with pytest.raises(ValueError, match="none of 64"):
                allocator.allocate_page() if what == "page" else allocator.allocate_run(1)
        elif what == "page":
            held.append((allocator.allocate_page(), 1))
        else:
            first, count = allocator.allocate_run(number + 1)
            assert 1 <= count <= number + 1
            held.append((first, count))
        pages = [page for first, count in held for page in range(first, first + count)]
        peak = max(peak, len(pages))
        assert allocator.total - allocator.fewest_free == peak
        assert len(set(pages)) == len(pages)
        assert all(0 <= page < 64 for page in pages)
    for first, count in held:
        allocator.free(first, count)
    assert allocator.allocate_run(64) == (0, 64)


def test_single_pages_do_not_cut_the_runs() -> None:
    allocator = EpcAllocator(16)
    assert allocator.allocate_page() == 15
    assert allocator.allocate_run(8) == (0, 8)
    assert allocator.allocate_page() == 14
    assert allocator.allocate_run(8) == (8, 6)
    assert allocator.free_pages == 0


def test_a_run_is_the_first_range_that_suffices_else_the_largest() -> None:
    allocator = EpcAllocator(16)
    allocator.allocate_run(16)
    allocator.free(1, 2)
    allocator.free(5, 4)
    allocator.free(12, 3)
    assert allocator.allocate_run(3) == (5, 3)
    assert allocator.allocate_run(9) == (12, 3)


@pytest.mark.parametrize(("first", "count"), [(0, 1), (3, 2), (7, 4), (15, 2), (-1, 1)])
def test_a_page_that_is_free_cannot_be_given_back(first: int, count: int) -> None:
    allocator = EpcAllocator(16)
    allocator.allocate_run(16)
    allocator.free(0, 4)
    allocator.free(8, 1)
    with pytest.raises(ValueError, match="not all allocated"):
        allocator.free(first, count)
    assert allocator.free_pages == 5
