# SPDX-License-Identifier: Apache-2.0
"""The measurement stream, against a naive writing-down of the manual's blocks."""

from __future__ import annotations

import hashlib
import os
import random
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from softsgx.errors import SoftsgxError
from softsgx.image import long_run, measurement
from softsgx.image.file import File
from softsgx.image.measurement import CHUNK, PAGE, Measurement
from softsgx.image.stream import Fill, PageRun

pytest.importorskip("numpy")


def block(*parts: tuple[int, bytes]) -> bytes:
    content = bytearray(64)
    for offset, value in parts:
        content[offset : offset + len(value)] = value
    return bytes(content)


def u64(value: int) -> bytes:
    return value.to_bytes(8, "little")


def eadd_block(offset: int, flags: int) -> bytes:
    return block((0, b"EADD"), (8, u64(offset)), (16, u64(flags)))


def eextend_block(offset: int) -> bytes:
    return block((0, b"EEXTEND"), (8, u64(offset)))


def naive(offset: int, flags: int, data: bytes, *, measured: bool) -> bytes:
    stream = b""
    for page in range(0, len(data), PAGE):
        stream += eadd_block(offset + page, flags)
        if measured:
            for chunk in range(page, page + PAGE, CHUNK):
                stream += eextend_block(offset + chunk) + data[chunk : chunk + CHUNK]
    return stream


def pages(count: int, seed: int) -> bytes:
    return hashlib.shake_256(seed.to_bytes(8, "little")).digest(count * PAGE)


def test_the_stream_begins_with_the_block_of_ecreate() -> None:
    measured = Measurement()
    measured.ecreate(2, 0x10000)
    expected = block((0, b"ECREATE\0"), (8, b"\2\0\0\0"), (12, u64(0x10000)))
    assert measured.digest() == hashlib.sha256(expected).digest()


def test_eadd_and_eextend_append_the_blocks_of_the_manual() -> None:
    data = bytes(range(256))
    measured = Measurement()
    measured.eadd(0x3000, 0x100)
    measured.eextend(0x3F00, data)
    expected = eadd_block(0x3000, 0x100) + eextend_block(0x3F00) + data
    assert measured.digest() == hashlib.sha256(expected).digest()


def test_a_digest_does_not_end_the_measurement() -> None:
    measured = Measurement()
    measured.eadd(0, 0x201)
    first = measured.digest()
    assert measured.digest() == first
    measured.eadd(PAGE, 0x201)
    assert measured.digest() != first


@settings(max_examples=60, deadline=None)
@given(
    ranges=st.lists(
        st.tuples(
            st.integers(0, 2**40).map(lambda page: page * PAGE),
            st.sampled_from([0x100, 0x201, 0x203, 0x205, 0x207]),
            st.integers(1, 40),
            st.booleans(),
            st.integers(0, 2**16),
        ),
        max_size=4,
    ),
    numpy_from=st.sampled_from([1, 16, 10**9]),
)
def test_a_range_measures_as_its_pages_one_by_one(
    ranges: list[tuple[int, int, int, bool, int]], numpy_from: int
) -> None:
    whole, expected = Measurement(), hashlib.sha256()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measurement, "_USE_NUMPY_FROM", numpy_from)
        patch.setattr(measurement, "_LOAD_NUMPY_FROM", numpy_from)
        for offset, flags, count, measured, seed in ranges:
            data = pages(count, seed)
            whole.add_pages(offset, flags, data, measured)
            expected.update(naive(offset, flags, data, measured=measured))
    assert whole.digest() == expected.digest()


@pytest.mark.parametrize("count", [63, 64, 65, 128, 200, 1025])
def test_a_long_range_crosses_the_reused_buffer_without_a_trace(count: int) -> None:
    data = pages(count, count)
    by_range, by_leaf = Measurement(), Measurement()
    by_range.add_pages(0x5000, 0x203, memoryview(bytearray(data)), True)
    for page in range(0, len(data), PAGE):
        by_leaf.eadd(0x5000 + page, 0x203)
        for chunk in range(page, page + PAGE, CHUNK):
            by_leaf.eextend(0x5000 + chunk, data[chunk : chunk + CHUNK])
    assert by_range.digest() == by_leaf.digest()


@pytest.mark.parametrize("count", [0, 1, 255, 256, 257, 700])
def test_unmeasured_pages_add_their_eadd_blocks_alone(count: int) -> None:
    measured = Measurement()
    measured.add_unmeasured(0x7000, 0x203, count)
    expected = b"".join(eadd_block(0x7000 + page * PAGE, 0x203) for page in range(count))
    assert measured.digest() == hashlib.sha256(expected).digest()


def test_a_part_of_a_page_or_chunk_is_refused() -> None:
    with pytest.raises(ValueError, match="whole number of pages"):
        Measurement().add_pages(0, 0x201, bytes(100), True)
    with pytest.raises(ValueError, match="256 bytes"):
        Measurement().eextend(0, bytes(255))


@pytest.mark.parametrize("threaded", [False, True])
@pytest.mark.parametrize("content", ["file", "fill", "zeros"])
def test_a_long_run_measures_as_its_pages_do(
    content: str, threaded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    length = 1100 * 4096
    data: Any = None
    plain = bytes(length)
    if content == "fill":
        data, plain = Fill(0x01020304, length), b"\x04\x03\x02\x01" * (length // 4)
    elif content == "file":
        plain = random.Random(4).randbytes(length)  # noqa: S311
        path = tmp_path / "file"
        path.write_bytes(b"head" + plain)
        data = File.open(str(path)).part(4, length)
    monkeypatch.setattr(long_run, "_THREAD_FROM", 0 if threaded else 1 << 40)
    measured, expected = measurement.Measurement(), measurement.Measurement()
    run = PageRun(0x5000, length, 0x203, data, measured=True)
    long_run.measure_long(measured, run)
    for page in range(0, length, 4096):
        expected.add_pages(0x5000 + page, 0x203, plain[page : page + 4096], measured=True)
    assert measured.digest() == expected.digest()


def test_a_file_that_becomes_shorter_ends_the_measuring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(1100 * 4096))
    run = PageRun(0, 1100 * 4096, 0x203, File.open(str(path)).part(0, 1100 * 4096), measured=True)
    os.truncate(path, 600 * 4096)
    for threaded in (0, 1 << 40):
        monkeypatch.setattr(long_run, "_THREAD_FROM", threaded)
        with pytest.raises(SoftsgxError, match="the file became shorter while it was read"):
            long_run.measure_long(measurement.Measurement(), run)
    assert "softsgx-hash" not in [thread.name for thread in threading.enumerate()]
