# SPDX-License-Identifier: Apache-2.0
"""What differs between two images is found where it was changed, and the first record first."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softsgx.image import difference, stream
from softsgx.image.stream import Image, PageRun

PAGE = 4096


def image(content: bytes, flags: int = 0x203) -> Image:
    heap = PageRun(0x8000, 4 * PAGE, 0x203, None, measured=False)
    return Image(
        0x10000, 1, (PageRun(0, len(content), flags, memoryview(content), measured=True), heap)
    )


BASE = image(bytes(4 * PAGE))


def test_an_image_does_not_differ_from_itself() -> None:
    assert difference.first(BASE, BASE) is None
    assert difference.pages(BASE, BASE) == []


@given(st.sets(st.integers(0, 4 * PAGE - 1), min_size=1, max_size=8))
def test_changed_bytes_are_found(places: set[int]) -> None:
    content = bytearray(4 * PAGE)
    for place in places:
        content[place] ^= 0x41
    other = image(bytes(content))
    first = difference.first(BASE, other)
    assert first is not None
    assert (first.leaf, first.offset, first.byte) == ("EEXTEND", min(places) & -256, min(places))
    found = [chunk for pages in difference.pages(BASE, other) for chunk in pages.chunks]
    assert {low for low, _ in found} | {high for _, high in found} <= places
    assert {low & -256 for low, _ in found} == {place & -256 for place in places}


@pytest.mark.parametrize(
    ("other", "leaf", "offset"),
    [
        (replace(BASE, ssaframesize=2), "ECREATE", None),
        (replace(BASE, size=0x20000), "ECREATE", None),
        (image(bytes(4 * PAGE), flags=0x201), "EADD", 0),
        (image(bytes(3 * PAGE)), "EADD", 0x3000),
        (replace(BASE, records=BASE.records[:1]), "EADD", 0x8000),
        (replace(BASE, records=BASE.records[::-1]), "EADD", 0),
    ],
)
def test_the_first_record_that_differs_is_named(
    other: Image, leaf: str, offset: int | None
) -> None:
    first = difference.first(BASE, other)
    assert first is not None
    assert (first.leaf, first.offset) == (leaf, offset)
    assert stream.measure(BASE) != stream.measure(other)


def test_pages_that_only_one_has_and_their_attributes_are_told() -> None:
    more = PageRun(0xE000, PAGE, 0x205, None, measured=True)
    other = replace(image(bytes(4 * PAGE), flags=0x207), records=(*BASE.records, more))
    assert [
        (found.kind, found.offset, found.length, found.one)
        for found in difference.pages(BASE, other)
    ] == [("only in the second", 0xE000, PAGE, "REG R-X")]
    (found,) = difference.pages(BASE, image(bytes(4 * PAGE), flags=0x207))
    assert (found.kind, found.one, found.other) == ("page", "REG RW-", "REG RWX")
    assert found.length == 4 * PAGE
