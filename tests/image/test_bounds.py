# SPDX-License-Identifier: Apache-2.0
"""Files that ask for far more than they have: what is made of them takes no more memory than a few times the file."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from softsgx.errors import SoftsgxError
from softsgx.image import formats, stream
from softsgx.image.elf_tables import MOST_SEGMENTS
from softsgx.image.file import File

PAGE = 4096
# What is there for any file, however small.
SMALL = 1 << 20


def read(path: Path, **options: Any) -> Any:
    """Read a file in little memory, and measure its enclave unless that is gigabytes."""
    tracemalloc.start()
    try:
        (enclave,) = formats.read(str(path), **options)
        if enclave.image.pages < 1 << 18:
            stream.measure(enclave.image)
        return enclave
    finally:
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert used < SMALL + 4 * path.stat().st_size, used


def test_an_enclave_may_be_larger_than_64_gib(make: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "large"
    content = make["open-enclave"]().content
    pages = 31324288  # as a service has that many people use
    heap = content.index(struct.pack("<QQQ", 3, 2, 2))
    path.write_bytes(content[:heap] + struct.pack("<Q", pages) + content[heap + 8 :])
    assert read(path).image.size == 128 << 30
    content = make["intel-sdk"]().content
    size = content.index(struct.pack("<QQQ", 0x20000, 4, 3))
    path.write_bytes(content[:size] + struct.pack("<Q", 1 << 40) + content[size + 8 :])
    assert read(path).image.size == 1 << 40
    path.write_bytes(content[:size] + struct.pack("<Q", 1 << 48) + content[size + 8 :])
    with pytest.raises(SoftsgxError, match="SIZE is 0x1000000000000, not a power of two"):
        formats.read(str(path))


def changed_entry(make: dict[str, Any], before: bytes, after: bytes) -> bytes:
    content = make["intel-sdk"]().content
    assert content.count(before) == 1
    size = content.index(struct.pack("<QQQ", 0x20000, 4, 3))
    content = content[:size] + struct.pack("<Q", 1 << 40) + content[size + 8 :]
    return content.replace(before, after)


def test_a_million_threads_are_not_in_memory(make: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "threads"
    tcs = struct.pack("<HHIQII", 4, 3, 1, 0x10000, 72, 1904)
    path.write_bytes(
        changed_entry(make, tcs, struct.pack("<HHIQII", 4, 3, 1 << 20, 1 << 30, 72, 1904))
    )
    with pytest.raises(SoftsgxError, match="GiB are to be hashed of what is not in the file"):
        formats.read(str(path))
    assert read(path, large=True).image.threads == 2 << 20
    group = struct.pack("<HHIQ", 9 | 1 << 12, 5, 1, 0x8000)
    for times, told in ((10, None), (1 << 15, "a group 32768 times, each 0x8000 further")):
        path.write_bytes(
            changed_entry(make, group, struct.pack("<HHIQ", 9 | 1 << 12, 5, times, 0x8000))
        )
        if told is None:
            assert read(path).image.threads == 11
            continue
        with pytest.raises(SoftsgxError, match=told):
            read(path)


def test_threads_of_gramine_are_not_in_memory(make: dict[str, Any], tmp_path: Path) -> None:
    manifest, libpal = tmp_path / "app.manifest.sgx", tmp_path / "libpal.so"
    libpal.write_bytes(make["open-enclave"]().content)
    manifest.write_text("[sgx]\nenclave_size = '64G'\nmax_threads = 12000\nedmm_enable = true\n")
    with pytest.raises(SoftsgxError, match="GiB are to be hashed"):
        formats.read(str(manifest), libpal=str(libpal))
    # Each is two records, for its stacks, and no pages.
    tracemalloc.start()
    (enclave,) = formats.read(str(manifest), libpal=str(libpal), large=True)
    assert tracemalloc.get_traced_memory()[1] < 12000 * PAGE // 8
    tracemalloc.stop()
    assert enclave.image.threads == 12000
    (threads,) = (run for run in enclave.image.runs if run.is_tcs)
    last, whole = threads.content(11999 * PAGE, PAGE), threads.content(0, threads.length)
    assert whole[11999 * PAGE :] == last


def test_patches_that_repeat_the_metadata_are_refused(make: dict[str, Any], tmp_path: Path) -> None:
    content = make["intel-sdk"]().content
    path = tmp_path / "patches"
    patch = struct.pack("<QII16x", 0x40, 1904 + 72, 8)
    assert content.count(patch) == 1
    size = struct.unpack_from("<I", content, content.index(b"sgx_metadata\0") + 13 + 16)[0]
    path.write_bytes(content.replace(patch, struct.pack("<QII16x", 0, 0, size + 1)))
    with pytest.raises(SoftsgxError, match="is cut off"):
        formats.read(str(path))
    directory = content.index(struct.pack("<II", 1904 + 80, 32))
    doubled = content[:directory] + struct.pack("<II", 1904 + 80, 64) + content[directory + 8 :]
    at = doubled.index(patch)
    twice = 2 * struct.pack("<QII16x", 0, 0, size - 8)
    path.write_bytes(doubled[:at] + twice + doubled[at + 64 :])
    with pytest.raises(SoftsgxError, match="the patches have more bytes than the metadata"):
        formats.read(str(path))


def test_more_metadata_than_any_file_has_are_refused(
    make: dict[str, Any], older: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    content = older(make["intel-sdk"]().content)
    note = content.rindex(b"sgx_metadata\0") - 12
    (size,) = struct.unpack_from("<I", content, note + 25 + 16)
    many = content[note + 25 : note + 25 + size] * 20
    section = content[note : note + 4] + struct.pack("<II", len(many), 1) + b"sgx_metadata\0" + many
    path = tmp_path / "many"
    before = struct.pack("<QQ", note, len(content) - note)
    path.write_bytes(
        (content[:note] + section).replace(before, struct.pack("<QQ", note, len(section)))
    )
    with pytest.raises(SoftsgxError, match="more than 16 metadata"):
        formats.read(str(path))


def test_names_that_are_parts_of_each_other_are_refused(
    make: dict[str, Any], tmp_path: Path
) -> None:
    content = make["open-enclave"]().content
    path = tmp_path / "names"
    names, symbols = b"n" * 65536 + b"\0", struct.pack("<IBBHQQ", 0, 0x11, 0, 1, 0, 8) * 2000
    (headers,), (count,) = (
        struct.unpack_from("<Q", content, 40),
        struct.unpack_from("<H", content, 60),
    )
    changed = bytearray(content + names + symbols)
    for header in range(headers, headers + 64 * count, 64):
        kind = struct.unpack_from("<I", content, header + 4)[0]
        if kind == 11:
            struct.pack_into("<QQ", changed, header + 24, len(content) + len(names), len(symbols))
        elif kind == 3 and struct.unpack_from("<Q", content, header + 32)[0] > 60:
            struct.pack_into("<QQ", changed, header + 24, len(content), len(names))
    path.write_bytes(changed)
    with pytest.raises(SoftsgxError, match="names that are parts of each other, and too many"):
        read(path)


def test_symbols_and_relocations_are_not_in_memory_as_records(
    make: dict[str, Any], tmp_path: Path
) -> None:
    content = make["open-enclave"]().content
    path = tmp_path / "relocations"
    (headers,), (count,) = (
        struct.unpack_from("<Q", content, 40),
        struct.unpack_from("<H", content, 60),
    )
    found = {
        struct.unpack_from("<I", content, header + 4)[0]: header
        for header in range(headers, headers + 64 * count, 64)
    }
    where, length = struct.unpack_from("<QQ", content, found[11] + 24)
    symbols = content[where : where + length] + bytes(24) * 60000
    relocations = struct.pack("<QQq", 0x2008, 8, 0x1234) * 40000
    changed = bytearray(content + symbols + relocations)
    struct.pack_into("<QQ", changed, found[11] + 24, len(content), len(symbols))
    struct.pack_into("<QQ", changed, found[4] + 24, len(content) + len(symbols), len(relocations))
    path.write_bytes(changed)
    assert read(path).image.runs[3].length == 960000 // PAGE * PAGE + PAGE


@pytest.mark.parametrize(("at", "told"), [(56, "program headers"), (60, "section headers")])
def test_more_headers_than_anything_loads_are_refused(
    make: dict[str, Any], tmp_path: Path, at: int, told: str
) -> None:
    path = tmp_path / "headers"
    content = bytearray(make["intel-sdk"]().content)
    struct.pack_into("<H", content, at, 0xFFFF)
    path.write_bytes(content)
    with pytest.raises(SoftsgxError, match=f"65535 {told}, more than"):
        formats.read(str(path))
    assert MOST_SEGMENTS == 1170


def test_patches_are_written_over_each_other_in_their_order() -> None:
    content = bytes(3 * PAGE)
    patches = [(4000, b"a" * 200), (4090, b"b" * 5000), (4096, b"c"), (0, b"")]
    file = File.of(content, "it").patched(patches[:1]).patched(patches[1:])
    expected = bytearray(content)
    for at, part in patches:
        expected[at : at + len(part)] = part
    for start, length in ((0, len(content)), (4050, 60), (4096, 1), (4095, 1), (9089, 3), (5, 0)):
        assert file.read(start, length, "") == expected[start : start + length]
