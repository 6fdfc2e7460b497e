# SPDX-License-Identifier: Apache-2.0
"""Every reader: what it reads measures as the manual says, and what it cannot read ends in one line."""

from __future__ import annotations

import os
import struct
import tracemalloc
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from softsgx.errors import SoftsgxError
from softsgx.image import formats, sgxs, stream
from softsgx.image.enclave import Enclave
from softsgx.image.file import File

PAGE = 4096


def measured(tmp_path: Path, content: bytes) -> bytes:
    path = tmp_path / "enclave"
    path.write_bytes(content)
    (enclave,) = formats.read(str(path))
    return stream.measure(enclave.image)


def test_a_file_measures_as_the_manual_says(made: Any, tmp_path: Path) -> None:
    assert measured(tmp_path, made.content) == made.mrenclave


def test_the_format_is_recognized(make: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "enclave"
    for name, maker in make.items():
        path.write_bytes(maker().content)
        (enclave,) = formats.read(str(path))
        assert name.startswith(enclave.format)


def refusal_of(read: Callable[[], tuple[Enclave, ...]]) -> str | None:
    """Return why a file was refused, None if it was not; then it can also be measured."""
    try:
        (enclave,) = read()
        if enclave.image.pages < 1 << 14:
            stream.measure(enclave.image)
    except SoftsgxError as refusal:
        message = str(refusal)
        assert "\n" not in message
        return message
    return None


@given(st.binary(max_size=400))
@settings(deadline=None, max_examples=200)
def test_whatever_follows_a_magic_ends_in_one_line(content: bytes) -> None:
    for magic in (
        b"",
        b"\x7fELF\x02\x01\x01",
        b"ECREATE\0\x01\0\0\0\0\x20\0\0\0\0\0\0" + bytes(44),
    ):
        file = File.of(magic + content, "some.file")
        message = refusal_of(partial(formats.read_file, file))
        assert message is None or message.startswith("some.file: ")


def test_a_group_that_never_ends_is_refused(make: dict[str, Any], tmp_path: Path) -> None:
    content = make["intel-sdk"]().content
    group = content.rindex((9 | 1 << 12).to_bytes(2, "little") + b"\x05\0\x01\0\0\0")
    endless = content[: group + 4] + b"\xff\xff\xff\xff" + bytes(8) + content[group + 16 :]
    path = tmp_path / "endless"
    path.write_bytes(endless)
    with pytest.raises(SoftsgxError, match="a group 4294967295 times, each 0x0 further"):
        formats.read(str(path))


def test_a_small_file_does_not_make_us_hash_for_minutes(
    make: dict[str, Any], tmp_path: Path
) -> None:
    content = make["open-enclave"]().content
    stack = content.index(struct.pack("<QQQ", 3, 2, 2)) + 8
    path = tmp_path / "huge"
    path.write_bytes(content[:stack] + struct.pack("<Q", 1 << 21) + content[stack + 8 :])
    with pytest.raises(SoftsgxError, match="20 GiB are to be hashed of what is not in the file"):
        formats.read(str(path))
    (enclave,) = formats.read(str(path), large=True)
    assert enclave.image.pages > 2 << 21


def test_free_memory_of_a_terabyte_is_not_hashed_unasked(
    make: dict[str, Any], tmp_path: Path
) -> None:
    manifest, libpal = tmp_path / "app.manifest.sgx", tmp_path / "libpal.so"
    # Any file with segments.
    libpal.write_bytes(make["open-enclave"]().content)
    read = partial(formats.read, str(manifest), libpal=str(libpal))
    for size, told in (("1024G", "16 GiB are to be hashed"), ("256G", None)):
        manifest.write_text(f"[sgx]\nenclave_size = '{size}'\nmax_threads = 1\n")
        if told is None:
            assert read()[0].image.size == 256 << 30
            continue
        with pytest.raises(SoftsgxError, match=told):
            read()
        assert read(large=True)[0].image.size == 1 << 40


def test_permissions_of_a_tcs_are_none_to_eadd(make: dict[str, Any], tmp_path: Path) -> None:
    """So they are not in the measurement; and other types of pages are refused."""
    content = make["intel-sdk"]().content
    entry = struct.pack("<HHIQ", 10, 0, 1, 0xE000).ljust(32, b"\0")
    path = tmp_path / "enclave"
    for flags, measured in ((0x107, 0x100), (0x203, 0x203)):
        changed = struct.pack("<HHIQIIQ", 10, 3, 1, 0xE000, 0, 0, flags)
        path.write_bytes(content.replace(entry, changed))
        (enclave,) = formats.read(str(path))
        (run,) = (run for run in enclave.image.runs if run.offset == 0xE000)
        assert run.secinfo_flags == measured
    for flags in (0x202, 0x300, 0x003, 0x20B):
        changed = struct.pack("<HHIQIIQ", 10, 3, 1, 0xE000, 0, 0, flags)
        path.write_bytes(content.replace(entry, changed))
        with pytest.raises(SoftsgxError, match=f"FLAGS is {flags:#x}, which EADD refuses"):
            formats.read(str(path))


def test_a_file_that_lacks_what_the_loader_writes_is_refused(
    make: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "payload"
    for name in (b"_enclave_rva", b"_reloc_rva", b"_reloc_size"):
        path.write_bytes(make["open-enclave"]().content.replace(name, b"x" * len(name)))
        with pytest.raises(SoftsgxError, match=f"no dynamic symbol {name.decode()}, which the lo"):
            formats.read(str(path))


def test_what_is_no_regular_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/zero"), tmp_path):
        with pytest.raises(SoftsgxError, match="not a regular file"):
            formats.read(str(path))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s: b"UNSIZED\0" + s[8:], "an unsized stream"),
        (lambda s: s + s[:64], "a second ECREATE"),
        (lambda s: s[:80] + b"\x02" + s[81:], "SECINFO with FLAGS 0x202: EADD refuses it"),
        (lambda s: s + s[64:5248], "the page at 0x0 is added twice"),
        (lambda s: s + b"NOTHING\0" + bytes(56), "no block of SGXS"),
        (lambda s: s[:12] + b"\0\x30" + s[14:], "not a power of two"),
        (lambda s: s + b"EEXTEND\0\0\x70" + bytes(310), "of a page that is not there yet"),
        (lambda s: s + b"EEXTEND\0" + bytes(56) + b"z" * 256, "another content than before"),
        (lambda s: s[:-1], "a block of 63 bytes at the end"),
    ],
)
def test_a_stream_that_no_processor_could_load_is_refused(
    make: dict[str, Any], tmp_path: Path, change: Any, reason: str
) -> None:
    path = tmp_path / "bad.sgxs"
    path.write_bytes(change(make["sgxs"]().content))
    with pytest.raises(SoftsgxError, match=reason):
        formats.read(str(path))


def test_a_chunk_may_be_measured_long_after_its_page(ledger: Any, tmp_path: Path) -> None:
    book = ledger(0x4000)
    book.page(0x1000, 0x203, b"x" * PAGE)
    book.page(0, 0x205, b"y" * PAGE)
    book.chunk(0x1100, b"x" * 256)
    assert measured(tmp_path, book.stream) == book.mrenclave
    (enclave,) = formats.read(str(tmp_path / "enclave"))
    assert enclave.fields["canonical"] == "no"


@st.composite
def blocks(draw: st.DrawFn) -> list[bytes]:
    """Blocks in any order, of which many are what no processor would do."""
    made = []
    for _ in range(draw(st.integers(1, 12))):
        offset = draw(st.integers(0, 3)) * PAGE
        if draw(st.booleans()):
            made.append(
                struct.pack("<8sQQ40x", b"EADD", offset, draw(st.sampled_from((0x203, 0x205))))
            )
        tag = draw(st.sampled_from((b"EEXTEND", b"UNMEASRD")))
        first, count = draw(st.sampled_from(((0, 16), (0, 3), (5, 2), (15, 1), (3, 0))))
        content = bytes([draw(st.sampled_from((1, 1, 1, 2)))]) * 256
        made += [
            struct.pack("<8sQ48x", tag, offset + chunk * 256) + content
            for chunk in range(first, first + count)
        ]
    return made


@given(blocks())
def test_a_stream_is_read_as_a_processor_would(made: list[bytes]) -> None:
    """Its MRENCLAVE is the hash of the file without what is not measured; and what is refused is what must be."""
    head = struct.pack("<8sIQ44x", b"ECREATE", 1, 0x10000)
    file = File.of(head + b"".join(made), "made.sgxs")
    there: dict[int, dict[int, bytes]] = {}
    good = True
    for block in made:
        offset = int.from_bytes(block[8:16], "little")
        chunks = there.get(offset & -PAGE)
        if block.startswith(b"EADD"):
            good &= chunks is None
            there[offset] = {}
        else:
            good &= chunks is not None and chunks.setdefault(offset, block[64:]) == block[64:]
    if not good:
        with pytest.raises(SoftsgxError, match=r"^made\.sgxs: offset 0x"):
            sgxs.read(file)
        return
    (enclave,) = sgxs.read(file)
    measured = [block for block in made if not block.startswith(b"UNMEASRD")]
    assert stream.measure(enclave.image) == sha256(head + b"".join(measured)).digest()
    for run in enclave.image.runs:
        for page in range(run.offset, run.offset + run.length, PAGE):
            content = bytearray(PAGE)
            for offset, chunk in there[page].items():
                content[offset - page : offset - page + 256] = chunk
            assert run.content(page - run.offset, PAGE) == content
    pages = [int.from_bytes(block[8:16], "little") & -PAGE for block in made]
    assert enclave.fields["canonical"] == ("yes" if pages == sorted(pages) else "no")


def test_a_long_run_of_pages_without_contents_is_read_as_its_pages(tmp_path: Path) -> None:
    head = struct.pack("<8sIQ44x", b"ECREATE", 1, 1 << 30)

    def bare(first: int, count: int, flags: int = 0x203) -> bytes:
        return b"".join(
            struct.pack("<8sQQ40x", b"EADD", page * PAGE, flags)
            for page in range(first, first + count)
        )

    chunk = struct.pack("<8sQ48x", b"EEXTEND", 1023 * PAGE) + b"c" * 256
    path = tmp_path / "bare.sgxs"
    for between, runs in (
        (b"", [(0, 1024), (1024, 700)]),
        (chunk, [(0, 1023), (1023, 1), (1024, 700)]),
        (bare(2000, 1), [(0, 1024), (2000, 1), (1024, 700)]),
        (bare(1024, 1, 0x201), [(0, 1024), (1024, 1), (1025, 699)]),
    ):
        first = 1025 if runs[-1][0] == 1025 else 1024
        content = head + bare(0, 1024) + between + bare(first, runs[-1][1])
        path.write_bytes(content)
        (enclave,) = formats.read(str(path))
        found = [(run.offset // PAGE, run.length // PAGE) for run in enclave.image.runs]
        assert found == ([(0, 1724)] if not between else runs)
        assert stream.measure(enclave.image) == sha256(content).digest()
        assert enclave.fields["canonical"] == ("no" if runs[1][0] == 2000 else "yes")
    path.write_bytes(head + bare(0, 1024) + bare(512, 1))
    with pytest.raises(SoftsgxError, match="the page at 0x200000 is added twice"):
        formats.read(str(path))


def test_many_pages_that_are_measured_in_part_are_not_in_memory(tmp_path: Path) -> None:
    count = 20000
    path = tmp_path / "partly.sgxs"
    head = struct.pack("<8sIQ44x", b"ECREATE", 1, 1 << 30)
    pages = b"".join(
        struct.pack("<8sQQ40x", b"EADD", offset, 0x203)
        + struct.pack("<8sQ48x", b"EEXTEND", offset + 0x300)
        + offset.to_bytes(256, "little")
        for offset in range(0, count * 2 * PAGE, 2 * PAGE)
    )
    path.write_bytes(head + pages)
    tracemalloc.start()
    try:
        (enclave,) = formats.read(str(path))
        assert stream.measure(enclave.image) == sha256(head + pages).digest()
        assert tracemalloc.get_traced_memory()[1] < 3 * path.stat().st_size
    finally:
        tracemalloc.stop()
    assert enclave.image.pages == count


@pytest.mark.skipif("SOFTSGX_ENCLAVES" not in os.environ, reason="SOFTSGX_ENCLAVES names no folder")
def test_enclaves_that_others_signed_measure_to_what_they_signed() -> None:
    folder = Path(os.environ["SOFTSGX_ENCLAVES"])
    compared = 0
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.suffix in (".sig", ".css", ".sigstruct"):
            continue
        for enclave in formats.read(str(path)):
            if enclave.expected is not None:
                assert stream.measure(enclave.image) == enclave.expected, (path, enclave.variant)
                compared += 1
    assert compared, f"{folder}: no signed enclave"
