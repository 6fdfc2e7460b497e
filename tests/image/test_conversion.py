# SPDX-License-Identifier: Apache-2.0
"""From one format to another and back: the same enclave, or a refusal that names what cannot be said."""

from __future__ import annotations

import hashlib
import json
import re
import struct
import tempfile
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softsgx.cli import main
from softsgx.errors import SoftsgxError
from softsgx.image import elf, formats, pages, sgxs, stream
from softsgx.image.elf_tables import Elf
from softsgx.image.file import File
from softsgx.image.stream import Chunks, Fill, Image, PageRun

PAGE = 4096
TCS = 0x100


@st.composite
def images(draw: st.DrawFn) -> Image:
    """Pages by ascending offset, measured as a whole, in part or not at all."""
    records: list[PageRun | Chunks] = []
    for at in sorted(draw(st.sets(st.integers(0, 30), min_size=1, max_size=6))):
        flags = draw(st.sampled_from((0x201, 0x203, 0x205, 0x207)))
        fill = draw(st.sampled_from((None, 0, 0xCCCCCCCC, 0x01020304)))
        data = None if fill is None else Fill(fill, PAGE)
        whole = draw(st.booleans())
        records.append(PageRun(at * PAGE, PAGE, flags, data, measured=whole))
        if not whole and data is not None:
            for chunk in draw(st.lists(st.integers(0, 15), unique=True, max_size=4)):
                within = chunk * 256
                records.append(Chunks(at * PAGE + within, data[within : within + 256]))
    return Image(0x20000, draw(st.integers(1, 4)), tuple(records))


def thread(**fields: int) -> memoryview:
    """Return a TCS page."""
    given = {"ossa": 0x3000, "nssa": 1, "oentry": 0x1000, **fields}
    head = struct.pack("<QQQII", 0, 0, given["ossa"], 0, given["nssa"])
    return memoryview((head + struct.pack("<Q", given["oentry"])).ljust(PAGE, b"\0"))


# What a plain ELF file cannot say, and by which words that is refused.
SPOILED = {
    "": "",
    "order": "is no TCS, but the first|is below 0x[0-9a-f]+, where",
    "thread": "is a TCS that does not follow the others",
    "measured": "is not measured, but a loader",
    "chunks": "is EEXTEND apart from its page",
    "nssa": r"is a TCS that no ELF file may have: TCS\.NSSA is 0",
    "ossa": r"is a TCS that no ELF file may have: TCS\.OSSA is 0x3001",
    "permissions": "is writable but not readable",
    "size": r"^SIZE is 0x[0-9a-f]+, but a loader",
}


@st.composite
def nearly_elf(draw: st.DrawFn) -> tuple[Image, str]:
    """Make what a plain ELF file can be, but for one thing at times; and say what."""
    threads, at = draw(st.integers(1, 3)), draw(st.integers(0, 2)) * PAGE
    spoiled = draw(st.sampled_from(("", "", *SPOILED)))
    first = thread(**{"nssa": {"nssa": 0}, "ossa": {"ossa": 0x3001}}.get(spoiled, {}))
    records: list[PageRun | Chunks] = [
        PageRun(at + number * PAGE, PAGE, TCS, thread() if number else first, measured=True)
        for number in range(threads)
    ]
    at += threads * PAGE
    for _ in range(draw(st.integers(1, 4))):
        at += draw(st.integers(0, 2)) * PAGE
        count = draw(st.integers(1, 3))
        flags = draw(st.sampled_from((0x200, 0x201, 0x203, 0x204, 0x205, 0x207)))
        data = Fill(draw(st.integers(1, 2**32 - 1)), count * PAGE) if draw(st.booleans()) else None
        records.append(PageRun(at, count * PAGE, flags, data, measured=True))
        at += count * PAGE
    if spoiled == "order":
        one = draw(st.integers(1, len(records) - 1))
        records = records[one:] + records[:one]
    elif spoiled == "chunks":
        records.append(Chunks(records[0].offset, first[:256]))
    elif spoiled in ("thread", "measured", "permissions"):
        flags = {"thread": TCS, "measured": 0x203, "permissions": 0x202}[spoiled]
        records.append(PageRun(at, PAGE, flags, thread(), measured=spoiled != "measured"))
        at += PAGE
    size = stream.enclave_size(at) * (2 if spoiled == "size" else 1)
    return Image(size, draw(st.integers(1, 2)), tuple(records)), spoiled


def read(path: Path) -> Image:
    (enclave,) = formats.read(str(path))
    return enclave.image


def contents(image: Image) -> dict[int, tuple[int, bool, bytes]]:
    """Give FLAGS, whether it is measured, and contents of each page, in the order in which they are added."""
    return {
        run.offset + at: (run.secinfo_flags, run.measured, bytes(run.content(at, PAGE)))
        for run in image.runs
        for at in range(0, run.length, PAGE)
    }


@given(images())
def test_an_image_written_as_a_stream_is_read_back(image: Image) -> None:
    out = BytesIO()
    sgxs.write(image, out)
    (again,) = sgxs.read(File.of(out.getvalue(), "written.sgxs"))
    assert stream.measure(again.image) == stream.measure(image)
    assert again.fields["canonical"] == "yes"
    second = BytesIO()
    sgxs.write(again.image, second)
    assert second.getvalue() == out.getvalue()
    assert contents(again.image) == contents(image)


# Readers refuse permissions that EADD refuses.
legal = nearly_elf().filter(lambda made: made[1] != "permissions").map(lambda made: made[0])


@given(st.one_of(images(), legal))
def test_an_image_written_as_pages_is_read_back(image: Image) -> None:
    ledger, memory = BytesIO(), BytesIO()
    pages.write(image, ledger, memory, "memory")
    (again,) = pages.read(
        File.of(ledger.getvalue(), "ledger"), File.of(memory.getvalue(), "memory")
    )
    assert stream.measure(again.image) == stream.measure(image)
    assert contents(again.image) == contents(image)


def test_a_tcs_that_is_measured_in_part_is_measured_as_eadd_stores_it(tmp_path: Path) -> None:
    given_page = bytearray(thread(oentry=0x123))
    given_page[8:12], given_page[24:28] = b"\x03\0\0\0", b"\x07\0\0\0"  # FLAGS, CSSA
    path, ledger = tmp_path / "e.sgxs", tmp_path / "e.pages"
    pages_of = {
        way: struct.pack("<8sIQ44x", b"ECREATE", 1, 0x10000)
        + struct.pack("<8sQQ40x", b"EADD", 0x1000, TCS)
        + b"".join(
            struct.pack("<8sQ48x", b"EEXTEND", 0x1000 + chunk) + given_page[chunk : chunk + 256]
            for chunk in order
        )
        for way, order in (
            ("whole", range(0, PAGE, 256)),
            ("last first", range(PAGE - 256, -1, -256)),
        )
    }
    for way, content in pages_of.items():
        path.write_bytes(content)
        image = read(path)
        measured = hashlib.sha256(content[:128])
        stored = bytearray(thread(oentry=0x123))
        stored[8] = 2
        for at in range(128, len(content), 320):
            chunk = int.from_bytes(content[at + 8 : at + 16], "little") - 0x1000
            measured.update(content[at : at + 64] + stored[chunk : chunk + 256])
        assert stream.measure(image) == measured.digest(), way
        converted(path, ledger, "--to", "pages")
        assert stream.measure(read(ledger)) == measured.digest(), way


@given(nearly_elf())
def test_an_image_written_as_elf_is_read_back_or_refused_by_name(made: tuple[Image, str]) -> None:
    image, spoiled = made
    with tempfile.TemporaryFile() as out:
        if spoiled:
            with pytest.raises(SoftsgxError, match=SPOILED[spoiled]):
                elf.write(image, out)
            return
        elf.write(image, out)
        again = elf.image(Elf(File.again("written.elf", out)), image.ssaframesize)
        assert stream.measure(again) == stream.measure(image)
        assert contents(again) == contents(image)


@given(images())
def test_what_elf_cannot_say_is_never_written(image: Image) -> None:
    with (
        tempfile.TemporaryFile() as out,
        pytest.raises(SoftsgxError, match=r"is (no TCS|not measured), but"),
    ):
        elf.write(image, out)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Make an enclave of every kind of record as SGXS, and one that a plain ELF file can be."""
    whole = PageRun(0x1000, PAGE, 0x205, Fill(0x90909090, PAGE), measured=True, name="code")
    tcs = PageRun(0, PAGE, TCS, thread(), measured=True)
    partly = PageRun(0x3000, PAGE, 0x203, Fill(7, PAGE), measured=False)
    made = {
        "any": Image(
            0x8000,
            2,
            (
                whole,
                tcs,
                partly,
                PageRun(0x4000, 2 * PAGE, 0x203, None, measured=False),
                Chunks(0x3100, Fill(7, 512)),
                Chunks(0x4100, Fill(0, 256)),
            ),
        ),
        "plain": Image(0x2000, 2, (tcs, whole)),
    }
    for name, image in made.items():
        with (tmp_path / f"{name}.sgxs").open("wb") as out:
            sgxs.write(image, out)
    return {name: tmp_path / f"{name}.sgxs" for name in made}


def converted(source: Path, out: Path, *options: str) -> bytes:
    assert main(["convert", str(source), str(out), *options]) == 0
    return out.read_bytes()


def test_convert_there_and_back_gives_the_same_enclave(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there, back = tmp_path / "there", tmp_path / "back.sgxs"
    for name, source in files.items():
        for kind in ("pages", "elf", "sgxs"):
            if (name, kind) == ("any", "elf"):
                continue
            options = ["--ssaframesize", "2"] if kind == "elf" else []
            converted(source, there, "--to", kind)
            said = capsys.readouterr().out
            assert (" to be read with --ssaframesize 2\n" in said) == (kind == "elf")
            converted(there, back, *options)
            one, other = read(source), read(back)
            assert stream.measure(one) == stream.measure(other), (name, kind)
            assert list(contents(one).items()) == list(contents(other).items()), (name, kind)


def test_an_elf_file_has_its_pages_where_they_are_in_the_enclave(
    files: dict[str, Path], tmp_path: Path
) -> None:
    content = converted(files["plain"], tmp_path / "out.elf", "--to", "elf")
    first, second = Elf(File.of(content, "out.elf")).load_segments()
    offsets = [segment.header.p_offset for segment in (first, second)]
    assert offsets[1] - offsets[0] == second.header.p_vaddr - first.header.p_vaddr
    assert content[offsets[1] :] == b"\x90" * PAGE


def test_the_memory_of_pages_can_be_changed(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger, memory = tmp_path / "it.pages", tmp_path / "it.pages.bin"
    converted(files["any"], ledger, "--to", "pages")
    content = bytearray(memory.read_bytes())
    assert content[0x1000:0x2000] == b"\x90" * PAGE
    content[0x1234] = 0xCC
    memory.write_bytes(content)
    capsys.readouterr()
    assert main(["diff", str(files["any"]), str(ledger)]) == 1
    assert "first difference: EEXTEND at 0x1200: content, but another" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ("--to", "elf"),
            "{any}: no plain ELF file can be this enclave: record 1, at 0x1000, is no TCS",
        ),
        (("--to", "elf", "--canonical"), "--canonical is of SGXS, but --to elf is given"),
        (("--canonical",), "{any}: has not its pages by ascending offset; a canonical stream"),
    ],
)
def test_convert_refuses_by_name_and_leaves_nothing(
    files: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    said: str,
) -> None:
    out = tmp_path / "out"
    assert main(["convert", str(files["any"]), str(out), *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("softsgx: " + said.format(any=files["any"]))
    assert error.count("\n") == 1
    assert not out.exists()


GOOD = [
    {"softsgx": "pages", "version": 1, "size": 0x8000, "ssaframesize": 1, "memory": "memory.bin"},
    {
        "offset": 0,
        "length": PAGE,
        "secinfo_flags": 0x203,
        "measured": True,
        "zeros": False,
        "name": "",
    },
    {"offset": 256, "length": 256},
]


@pytest.mark.parametrize(
    ("line", "change", "reason"),
    [
        (0, {"version": 2}, "ledger: offset 0x0: a ledger of version 2, not 1"),
        (0, {"size": 0x6000}, "ledger: offset 0x0: SIZE is 0x6000, not a power of two"),
        (0, {"ssaframesize": 0}, "ledger: offset 0x0: SSAFRAMESIZE is 0"),
        (
            0,
            {"memory": "../memory.bin"},
            "ledger: offset 0x0: memory is '../memory.bin', not the name of a file beside it",
        ),
        (0, {"memory": "a\nb"}, "ledger: offset 0x0: memory is not a printable text"),
        (1, {"offset": 1}, "ledger: offset {1}: pages at 0x1, 0x1000 bytes: not whole"),
        (1, {"offset": True}, "ledger: offset {1}: offset is not a number of 64 bits"),
        (
            1,
            {"length": 1 << 40},
            "ledger: offset {1}: pages at 0x0, 0x10000000000 bytes: not whole",
        ),
        (1, {"length": 2 * PAGE}, "memory.bin: offset 0x0: pages, 0x2000 bytes, are cut off"),
        (1, {"secinfo_flags": 0x303}, "ledger: offset {1}: SECINFO with FLAGS 0x303"),
        (1, {"more": 1}, "ledger: offset {1}: the keys are not offset, length, secinfo_flags"),
        (1, {"name": "\x1b[31m"}, "ledger: offset {1}: name is not a printable text"),
        (2, {"offset": PAGE}, "ledger: offset {2}: chunk at 0x1000 of a page that is not there"),
        (2, {"length": PAGE}, "ledger: offset {2}: chunks at 0x100, 0x1000 bytes: not whole"),
    ],
)
def test_a_ledger_that_no_processor_could_load_is_refused(
    tmp_path: Path, line: int, change: dict[str, int | str], reason: str
) -> None:
    (tmp_path / "memory.bin").write_bytes(bytes(PAGE))
    lines = [
        json.dumps(one if n != line else {**one, **change}) + "\n" for n, one in enumerate(GOOD)
    ]
    path = tmp_path / "ledger"
    path.write_text("".join(lines))
    places = [f"{len(''.join(lines[:number])):#x}" for number in range(3)]
    with pytest.raises(SoftsgxError, match=re.escape(f"{tmp_path}/{reason.format(*places)}")):
        formats.read(str(path))
