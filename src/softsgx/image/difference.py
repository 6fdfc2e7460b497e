# SPDX-License-Identifier: Apache-2.0
"""Why two enclaves differ: the first record of the measurement that does, and every page that does."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

from softsgx.arch.secinfo import EEXTEND_SIZE, PAGE_SIZE
from softsgx.arch.structures import Sigstruct
from softsgx.image.sigstruct import mrsigner
from softsgx.image.stream import Chunks, PageRun

if TYPE_CHECKING:
    from collections.abc import Iterator

    from softsgx.image.enclave import Enclave
    from softsgx.image.stream import Image

_AT_ONCE = 256 * PAGE_SIZE
# What tells a signature apart and not an enclave.
_OF_SIGNING = frozenset(("signature", "q1", "q2", "modulus", "enclavehash"))


@dataclass(frozen=True, slots=True)
class First:
    """The first record that differs: its leaf, its offset if it has one, and what each enclave has there.

    ``byte`` is the offset of the first byte that differs, of content.
    """

    leaf: str
    offset: int | None
    one: str
    other: str
    byte: int | None = None


@dataclass(slots=True)
class Pages:
    """Pages that follow each other and differ alike.

    ``kind`` is "only in the first", "only in the second", "page" (type and permissions), "measured", or "content": of
    that ``chunks`` are the offsets of the first and the last byte that
    differ in each chunk of 256 bytes.
    """

    kind: str
    offset: int
    length: int
    one: str = ""
    other: str = ""
    chunks: list[tuple[int, int]] = field(default_factory=list)


def first(one: Image, other: Image) -> First | None:
    """Return the first record of two measurements that differs; None where they are the same."""
    for name in ("ssaframesize", "size"):
        a, b = getattr(one, name), getattr(other, name)
        if a != b:
            return First("ECREATE", None, f"{name.upper()} {a:#x}", f"{name.upper()} {b:#x}")
    left, right = _steps(one), _steps(other)
    a, b = next(left, None), next(right, None)
    while a is not None and b is not None:
        found = _compare(a, b)
        if found is not None:
            return found
        a_rest, b_rest = _without(a, b), _without(b, a)
        a = a_rest if a_rest is not None else next(left, None)
        b = b_rest if b_rest is not None else next(right, None)
    if a is None and b is None:
        return None
    rest = a if a is not None else b
    assert rest is not None  # noqa: S101 (for the type checker)
    text = _page(rest.record) if isinstance(rest.record, PageRun) else "EEXTEND"
    leaf = "EADD" if isinstance(rest.record, PageRun) else "EEXTEND"
    one_has, other_has = (text, "nothing more") if b is None else ("nothing more", text)
    return First(leaf, rest.offset, one_has, other_has)


@dataclass(frozen=True, slots=True)
class _Step:
    """What is left of a record: its bytes from ``start`` on."""

    record: PageRun | Chunks
    start: int

    @property
    def offset(self) -> int:
        return self.record.offset + self.start

    @property
    def length(self) -> int:
        whole = self.record.length if isinstance(self.record, PageRun) else len(self.record.data)
        return whole - self.start


def _steps(image: Image) -> Iterator[_Step]:
    for record in image.records:
        yield _Step(record, 0)


def _without(step: _Step, other: _Step) -> _Step | None:
    taken = min(step.length, other.length)
    return _Step(step.record, step.start + taken) if step.length > taken else None


def _compare(a: _Step, b: _Step) -> First | None:
    one, other = a.record, b.record
    if isinstance(one, Chunks) or isinstance(other, Chunks):
        if isinstance(one, Chunks) and isinstance(other, Chunks):
            length = min(a.length, b.length)
            if a.offset != b.offset:
                return First("EEXTEND", a.offset, f"of {a.offset:#x}", f"of {b.offset:#x}")
            for at in range(0, length, EEXTEND_SIZE):
                left = one.data[a.start + at : a.start + at + EEXTEND_SIZE]
                if left != other.data[b.start + at : b.start + at + EEXTEND_SIZE]:
                    return First("EEXTEND", a.offset + at, "content", "another content")
            return None
        kinds = ["EEXTEND" if isinstance(record, Chunks) else "EADD" for record in (one, other)]
        return First(kinds[0], a.offset, kinds[0], kinds[1])
    if a.offset != b.offset:
        return First("EADD", a.offset, f"page at {a.offset:#x}", f"page at {b.offset:#x}")
    if one.secinfo_flags != other.secinfo_flags:
        return First("EADD", a.offset, _page(one), _page(other))
    if one.measured != other.measured:
        return First("EEXTEND", a.offset, _measured(one), _measured(other))
    if one.measured:
        for byte, _ in _chunks(a, b, min(a.length, b.length)):
            return First("EEXTEND", byte & -EEXTEND_SIZE, "content", "another content", byte)
    return None


def _chunks(a: _Step, b: _Step, length: int) -> Iterator[tuple[int, int]]:
    """Yield the offsets of the first and the last byte of each chunk of two page runs that differ."""
    one, other = a.record, b.record
    assert isinstance(one, PageRun)  # noqa: S101 (for the type checker)
    assert isinstance(other, PageRun)  # noqa: S101
    if one.data is None and other.data is None:
        return
    for start in range(0, length, _AT_ONCE):
        count = min(_AT_ONCE, length - start)
        left = one.content(a.start + start, count)
        right = other.content(b.start + start, count)
        if left == right:
            continue
        for page in range(0, count, PAGE_SIZE):
            if left[page : page + PAGE_SIZE] == right[page : page + PAGE_SIZE]:
                continue
            for at in range(page, page + PAGE_SIZE, EEXTEND_SIZE):
                bits = int.from_bytes(left[at : at + EEXTEND_SIZE], "little") ^ int.from_bytes(
                    right[at : at + EEXTEND_SIZE], "little"
                )
                if bits:
                    chunk = a.offset + start + at
                    lowest = (bits & -bits).bit_length() - 1
                    yield chunk + lowest // 8, chunk + (bits.bit_length() - 1) // 8


def pages(one: Image, other: Image) -> list[Pages]:
    """Return every page that is not the same in both, by offset; the order in which they are added is not looked at."""
    found: list[Pages] = []
    left = sorted(one.runs, key=lambda run: run.offset)
    right = sorted(other.runs, key=lambda run: run.offset)
    edges = sorted(
        {edge for run in (*left, *right) for edge in (run.offset, run.offset + run.length)}
    )
    i = j = 0
    for start, end in pairwise(edges):
        while i < len(left) and left[i].offset + left[i].length <= start:
            i += 1
        while j < len(right) and right[j].offset + right[j].length <= start:
            j += 1
        a = left[i] if i < len(left) and left[i].offset <= start else None
        b = right[j] if j < len(right) and right[j].offset <= start else None
        if a is None or b is None:
            run = a or b
            if run is not None:
                kind = "only in the first" if b is None else "only in the second"
                _note(found, Pages(kind, start, end - start, _page(run)))
            continue
        if a.secinfo_flags != b.secinfo_flags:
            _note(found, Pages("page", start, end - start, _page(a), _page(b)))
        if a.measured != b.measured:
            _note(found, Pages("measured", start, end - start, _measured(a), _measured(b)))
        steps = _Step(a, start - a.offset), _Step(b, start - b.offset)
        for chunk in _chunks(*steps, end - start):
            measured = "" if a.measured else "not measured"
            page = chunk[0] & -PAGE_SIZE
            _note(found, Pages("content", page, PAGE_SIZE, measured, measured, [chunk]))
    return found


def _note(found: list[Pages], new: Pages) -> None:
    last = found[-1] if found else None
    if (
        last is not None
        and (last.kind, last.one, last.other) == (new.kind, new.one, new.other)
        and last.offset + last.length - (PAGE_SIZE if new.chunks else 0) <= new.offset
        and new.offset <= last.offset + last.length
    ):
        last.length = new.offset + new.length - last.offset
        last.chunks += new.chunks
        return
    found.append(new)


def fields(one: Enclave, other: Enclave) -> list[tuple[str, str, str]]:
    """Return the fields of the SIGSTRUCTs that differ, MRSIGNER among them; signatures differ always."""
    if one.sigstruct is None or other.sigstruct is None:
        if one.sigstruct is other.sigstruct:
            return []
        has = ["none" if enclave.sigstruct is None else "there" for enclave in (one, other)]
        return [("sigstruct", has[0], has[1])]
    a, b = Sigstruct.decode(one.sigstruct), Sigstruct.decode(other.sigstruct)
    different = [
        (name, _text(getattr(a, name)), _text(getattr(b, name)))
        for name in Sigstruct.OFFSETS
        if name not in _OF_SIGNING and getattr(a, name) != getattr(b, name)
    ]
    if a.modulus != b.modulus:
        different.append(("mrsigner", mrsigner(a.modulus).hex(), mrsigner(b.modulus).hex()))
    return different


def _text(value: int | bytes) -> str:
    return value.hex() if isinstance(value, bytes) else f"{value:#x}"


def _measured(run: PageRun) -> str:
    return "measured" if run.measured else "not measured"


def _page(run: PageRun) -> str:
    if run.is_tcs:
        return "TCS"
    letters = "".join(
        letter if run.secinfo_flags & bit else "-" for bit, letter in ((1, "R"), (2, "W"), (4, "X"))
    )
    return f"REG {letters}"
