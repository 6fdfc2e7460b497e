# SPDX-License-Identifier: Apache-2.0
"""Reading an ELF enclave: its pages, and a clear refusal of everything else."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from softsgx.errors import SoftsgxError
from softsgx.image import elf, stream
from softsgx.image.stream import PageRun

PAGE = 4096
R, W, X = 4, 2, 1
PT_LOAD, PT_DYNAMIC, PT_INTERP, PT_NOTE = 1, 2, 3, 4


@dataclass
class Segment:
    vaddr: int
    content: bytes
    flags: int
    memsz: int | None = None
    kind: int = PT_LOAD


def tcs_page(**fields: int) -> bytes:
    values = {"state": 0, "flags": 0, "ossa": 0x3000, "cssa": 0, "nssa": 1, "oentry": 0x2000}
    values |= {"aep": 0, "ofsbasgx": 0x4000, "ogsbasgx": 0x4000, **fields}
    return struct.pack(
        "<QQQIIQQQQII",
        *(values[name] for name in ("state", "flags", "ossa", "cssa", "nssa", "oentry", "aep")),
        values["ofsbasgx"],
        values["ogsbasgx"],
        0xFFFFFFFF,
        0xFFFFFFFF,
    ).ljust(PAGE, b"\0")


def build(segments: list[Segment], **header: int) -> bytes:
    """Make an ELF file; content is placed behind the program headers, one after the other."""
    fields = {"class": 2, "data": 1, "type": 2, "machine": 62, "phoff": 64, "phentsize": 56}
    fields |= {"phnum": len(segments), **header}
    at = 64 + 56 * len(segments)
    headers, contents = b"", b""
    for segment in segments:
        memsz = len(segment.content) if segment.memsz is None else segment.memsz
        headers += struct.pack(
            "<IIQQQQQQ",
            segment.kind,
            segment.flags,
            at + len(contents),
            segment.vaddr,
            segment.vaddr,
            len(segment.content),
            memsz,
            PAGE,
        )
        contents += segment.content
    ident = b"\x7fELF" + bytes([fields["class"], fields["data"], 1]) + bytes(9)
    rest = struct.pack(
        "<HHIQQQIHHHHHH",
        fields["type"],
        fields["machine"],
        1,
        0,
        fields["phoff"],
        0,
        0,
        64,
        fields["phentsize"],
        fields["phnum"],
        64,
        0,
        0,
    )
    return ident + rest + headers + contents


TCS = Segment(0, tcs_page() + tcs_page(), R | W)
TEXT = Segment(0x2000, b"\x90" * 100, R | X)
DATA = Segment(0x3000, b"data" * 1025, R | W, memsz=0x4001)
GOOD = build([TCS, TEXT, DATA])


def test_the_first_segment_is_tcs_pages_and_the_others_follow_their_flags() -> None:
    image = elf.decode(GOOD, "good", 1)
    shown = [(run.offset, run.length, run.secinfo_flags) for run in image.runs]
    assert shown == [
        (0x0000, 0x2000, 0x100),
        (0x2000, 0x1000, 0x205),
        (0x3000, 0x1000, 0x203),  # a whole page of the file
        (0x4000, 0x1000, 0x203),  # four bytes, then zeros
        (0x5000, 0x3000, 0x203),  # nothing in the file
    ]
    assert all(run.measured for run in image.runs)
    assert (image.size, image.ssaframesize, image.pages, image.threads) == (0x8000, 1, 8, 2)


def test_pages_have_the_bytes_of_the_file_and_zeros_behind_them() -> None:
    image = elf.decode(GOOD, "good")
    memory = bytearray(image.size)
    for run in image.runs:
        for offset, content in run.pieces():
            memory[offset : offset + len(content)] = content
    assert memory[0x0000:0x2000] == tcs_page() + tcs_page()
    assert memory[0x2000:0x3000] == (b"\x90" * 100).ljust(PAGE, b"\0")
    assert memory[0x3000:] == (b"data" * 1025).ljust(0x5000, b"\0")


def test_a_read_only_segment_and_one_without_permissions_are_pages_too() -> None:
    content = build([TCS, Segment(0x2000, b"r", R), Segment(0x3000, b"n", 0)])
    assert [run.secinfo_flags for run in elf.decode(content, "f").runs] == [0x100, 0x201, 0x200]


def test_segments_may_leave_holes_and_other_headers_do_not_matter() -> None:
    note = Segment(0, b"x" * 20, R, kind=PT_NOTE)
    image = elf.decode(build([note, TCS, Segment(0x10000, b"x", R)]), "holes")
    assert [run.offset for run in image.runs] == [0, 0x10000]
    assert image.size == 0x20000


@pytest.mark.parametrize(
    ("end", "size"), [(1, 0x2000), (0x2000, 0x2000), (0x2001, 0x4000), (0x5000, 0x8000)]
)
def test_size_is_the_next_power_of_two_and_at_least_two_pages(end: int, size: int) -> None:
    assert stream.enclave_size(end) == size


# The stream of the manual, written down without any code under test.
def expected_mrenclave(size: int, ssaframesize: int, pages: list[tuple[int, int, bytes]]) -> bytes:
    text = b"ECREATE\0" + struct.pack("<IQ", ssaframesize, size) + bytes(44)
    for offset, flags, content in pages:
        text += b"EADD\0\0\0\0" + struct.pack("<QQ", offset, flags) + bytes(40)
        for chunk in range(0, PAGE, 256):
            text += b"EEXTEND\0" + struct.pack("<Q", offset + chunk) + bytes(48)
            text += content[chunk : chunk + 256]
    return sha256(text).digest()


def test_an_image_measures_as_the_manual_says() -> None:
    data = DATA.content.ljust(0x5000, b"\0")
    expected = expected_mrenclave(
        0x8000,
        2,
        [
            (0, 0x100, tcs_page()),
            (PAGE, 0x100, tcs_page()),
            (0x2000, 0x205, TEXT.content.ljust(PAGE, b"\0")),
            *((0x3000 + page, 0x203, data[page : page + PAGE]) for page in range(0, 0x5000, PAGE)),
        ],
    )
    assert stream.measure(elf.decode(GOOD, "good", 2)) == expected


def test_a_tcs_is_measured_as_eadd_leaves_it() -> None:
    touched = tcs_page(state=1, flags=3, cssa=5, aep=0x1234)
    image = elf.decode(build([Segment(0, touched, R | W)]), "tcs")
    cleared = tcs_page(flags=2)
    assert stream.measure(image) == expected_mrenclave(0x2000, 1, [(0, 0x100, cleared)])


def test_long_runs_of_zeros_and_unmeasured_pages_measure_right() -> None:
    pages = 2050
    zeros = PageRun(0, pages * PAGE, 0x203, None, measured=True)
    heap = PageRun(pages * PAGE, 3 * PAGE, 0x203, None, measured=False)
    image = stream.Image(1 << 24, 1, (zeros, heap))
    text = b"ECREATE\0" + struct.pack("<IQ", 1, 1 << 24) + bytes(44)
    hasher = sha256(text)
    for page in range(pages + 3):
        hasher.update(b"EADD\0\0\0\0" + struct.pack("<QQ", page * PAGE, 0x203) + bytes(40))
        if page < pages:
            for chunk in range(0, PAGE, 256):
                at = page * PAGE + chunk
                hasher.update(b"EEXTEND\0" + struct.pack("<Q", at) + bytes(48 + 256))
    assert stream.measure(image) == hasher.digest()


def test_a_reader_cannot_make_a_run_of_half_a_page() -> None:
    with pytest.raises(ValueError, match="not whole pages"):
        PageRun(0, 100, 0x203, None, measured=True)
    with pytest.raises(ValueError, match="bytes of data"):
        PageRun(0, PAGE, 0x203, memoryview(bytes(100)), measured=True)


REFUSED: list[tuple[bytes, str]] = [
    (b"", "offset 0x0: not an ELF file"),
    (b"#!/bin/sh\n", "offset 0x0: not an ELF file"),
    (GOOD[:40], "offset 0x0: not an ELF file, or one cut off"),
    (build([TCS, TEXT], data=2), "offset 0x4: not a little-endian"),
    (b"\x7fELF\x01" + GOOD[5:], "offset 0x4: not a little-endian 64-bit"),
    (build([TCS], machine=183), "offset 0x12: machine is EM_AARCH64"),
    (build([TCS], type=3), "offset 0x10: type is ET_DYN, not ET_EXEC; link it with -static"),
    (build([TCS], type=1), "offset 0x10: type is ET_REL"),
    (build([TCS], phentsize=32), "offset 0x36: program headers of 32 bytes"),
    (build([]), "offset 0x38: no program headers"),
    (build([TCS], phnum=1000), "offset 0x40: 1000 program headers do not fit"),
    (build([TCS], phoff=2**63), "program headers do not fit"),
    (build([Segment(0, b"x", R, kind=PT_NOTE)]), "offset 0x40: no PT_LOAD segment"),
    (build([TCS, Segment(0, b"x", R, kind=PT_INTERP)]), "offset 0x78: PT_INTERP"),
    (build([TCS, Segment(0, b"x", R, kind=PT_DYNAMIC)]), "offset 0x78: PT_DYNAMIC"),
    (build([TCS, Segment(0x2010, b"x", R)]), "offset 0x78: segment at 0x2010 does not start"),
    (build([TCS, Segment(0x2000, b"", R)]), "offset 0x78: segment at 0x2000 is empty"),
    (build([TCS, Segment(0x2000, b"xx", R, memsz=1)]), "0x2 bytes in the file, 0x1 in memory"),
    (build([TCS, Segment(0x1000, b"x", R)]), "offset 0x78: segment at 0x1000 overlaps"),
    (build([TCS, Segment(0x2000, b"x", W)]), "offset 0x78: segment is writable but not readable"),
    (build([TCS, Segment(0x2000, b"x", R, memsz=2**63)]), "the largest enclave at"),
    (build([TCS, Segment(2**63, b"x", R)]), "the largest enclave at"),
    (GOOD[:-1], "is cut off: the file has"),
    (build([Segment(0, tcs_page(), R | X)]), "offset 0x40: the first segment is executable"),
    (build([Segment(0, b"", R | W, memsz=PAGE)]), "TCS page without content"),
    (build([Segment(0, tcs_page(nssa=0), R | W)]), "offset 0x94: TCS.NSSA is 0"),
    (build([Segment(0, tcs_page(ossa=8), R | W)]), "offset 0x88: TCS.OSSA is 0x8, not page"),
    (build([Segment(0, tcs_page()[:-1] + b"x", R | W)]), "offset 0x78: TCS page: reserved bytes"),
]


@pytest.mark.parametrize(("content", "reason"), REFUSED, ids=[reason for _, reason in REFUSED])
def test_what_is_no_enclave_is_refused_with_file_offset_and_reason(
    content: bytes, reason: str
) -> None:
    with pytest.raises(SoftsgxError) as refusal:
        elf.decode(content, "some.elf")
    message = str(refusal.value)
    assert message.startswith("some.elf: offset 0x")
    assert reason in message
    assert "\n" not in message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SoftsgxError, match="nothere: cannot read it: No such file"):
        elf.read(str(tmp_path / "nothere"))
    with pytest.raises(SoftsgxError, match="not a regular file"):
        elf.read(str(tmp_path))


@pytest.mark.parametrize("ssaframesize", [0, -1, 2**32])
def test_an_impossible_ssaframesize_is_refused(ssaframesize: int) -> None:
    with pytest.raises(SoftsgxError, match="SSAFRAMESIZE"):
        elf.decode(GOOD, "good", ssaframesize)


def read_or_refuse(content: bytes) -> None:
    try:
        image = elf.decode(content, "damaged.elf")
    except SoftsgxError as refusal:
        assert str(refusal).startswith("damaged.elf: offset 0x")  # noqa: PT017
        return
    assert image.size <= elf.MAXIMUM_SIZE
    assert image.pages > 0


@settings(max_examples=300, deadline=None)
@given(cut=st.integers(0, len(GOOD)))
def test_a_truncated_file_is_read_or_refused(cut: int) -> None:
    read_or_refuse(GOOD[:cut])


@settings(max_examples=500, deadline=None)
@given(
    changes=st.lists(
        st.tuples(st.integers(0, 64 + 3 * 56 + 80), st.integers(0, 255)), min_size=1, max_size=6
    )
)
def test_a_damaged_file_is_read_or_refused(changes: list[tuple[int, int]]) -> None:
    damaged = bytearray(GOOD)
    for position, value in changes:
        damaged[position] = value
    read_or_refuse(bytes(damaged))


@settings(max_examples=200, deadline=None)
@given(tail=st.binary(max_size=300))
def test_noise_behind_the_magic_is_refused_or_read(tail: bytes) -> None:
    read_or_refuse(b"\x7fELF\x02\x01\x01" + tail)
