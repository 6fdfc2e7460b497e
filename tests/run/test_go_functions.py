# SPDX-License-Identifier: Apache-2.0
"""CPUID of Go programs: where functions start is known to their own table (pclntab) alone."""

import os
import shutil
import struct
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from softsgx.run import cpuid_sites as module
from softsgx.run import segment_search, site_cache
from softsgx.run.cpuid_sites import cpuid_sites
from softsgx.run.gp_instructions import CPUID

if TYPE_CHECKING:
    from conftest import Harness

GO = shutil.which("go")
SOURCES = Path(__file__).parent / "programs" / "go"

TEXT_AT, DATA_AT, MODULE_AT = 0x1000, 0x2000, 0x2800
BASE = 0x400000
TEXT, TABLE, MODULE = BASE + TEXT_AT, BASE + DATA_AT, BASE + MODULE_AT
# Three functions; between them what Go's linker puts there.
CODE = (b"\xc3" + CPUID).ljust(16, b"\xcc") + (b"\x90" + CPUID + b"\xc3").ljust(32, b"\xcc")
STARTS = (0, 16, 32)
END = len(CODE)
PROVEN, DATA = TEXT_AT + 17, TEXT_AT + 1


@pytest.fixture(autouse=True)
def no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site_cache, "directory", lambda: None)
    module._remembered.clear()


def table(version: str, *, text: int = TEXT, shift: int = 0, count: int = 3) -> bytes:
    """Give a pclntab of three functions; `shift` is what their own records start later by."""
    magic = {"1.2": 0xFB, "1.16": 0xFA, "1.18": 0xF0, "1.20": 0xF1}[version]
    head = struct.pack("<IHBB", 0xFFFFFF00 | magic, 0, 1, 8)
    wide = version in {"1.2", "1.16"}
    base, field = (TEXT, "Q") if wide else (0, "I")
    size = struct.calcsize(field)
    words = {
        "1.2": (count,),
        "1.16": (count, 1, 0x400, 0x410, 0x420, 0x430, 0x100),
    }.get(version, (count, 1, text, 0x400, 0x410, 0x420, 0x430, 0x100))
    head += struct.pack(f"<{len(words)}Q", *words)
    if version != "1.2":
        head = head.ljust(0x100, b"\0")
    # Records are counted from where the table of functions is, in 1.2 from the header.
    first = 7 * size + (len(head) if version == "1.2" else 0)
    fields = [each for at, start in enumerate(STARTS) for each in (base + start, first + at * size)]
    records = [base + start + shift for start in STARTS]
    return head + struct.pack(f"<10{field}", *fields, base + END, *records)


def program(functions: bytes, module_data: bytes = b"") -> bytes:
    """Give a program of two segments, text and data, without section headers or symbols."""
    data = functions.ljust(MODULE_AT - DATA_AT, b"\0") + module_data
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01" + bytes(9),
        *(2, 62, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0),
    )
    text = struct.pack("<IIQQQQQQ", 1, 5, TEXT_AT, TEXT, TEXT, END, END, 4096)
    size = len(data)
    rest = struct.pack("<IIQQQQQQ", 1, 4, DATA_AT, TABLE, TABLE, size, size, 4096)
    return ((header + text + rest).ljust(TEXT_AT, b"\0") + CODE).ljust(DATA_AT, b"\0") + data


def module_data(low: int = TEXT, high: int = TEXT + END, text: int = TEXT) -> bytes:
    """Give the fields of a struct moduledata up to text."""
    return struct.pack("<QQ144xQQQ", TABLE, TABLE + 0x400, low, high, text)


def found(tmp_path: Path, content: bytes) -> tuple[tuple[int, ...], tuple[int, ...]]:
    path = tmp_path / "program"
    path.write_bytes(content)
    module._remembered.clear()
    fd = os.open(path, os.O_RDONLY)
    try:
        sites = cpuid_sites(fd)
    finally:
        os.close(fd)
    return sites.offsets, sites.unproven


@pytest.mark.parametrize("version", ["1.2", "1.16", "1.18", "1.20"])
def test_the_table_proves_what_its_functions_execute(tmp_path: Path, version: str) -> None:
    assert found(tmp_path, program(table(version))) == ((PROVEN,), (DATA,))


def test_a_text_start_that_only_the_module_data_state(tmp_path: Path) -> None:
    content = program(table("1.20", text=0), module_data())
    assert found(tmp_path, content) == ((PROVEN,), (DATA,))


@pytest.mark.parametrize(
    ("name", "functions", "data"),
    [
        ("no table", b"", b""),
        ("an unknown version", b"\xf2" + table("1.20")[1:], b""),
        ("records that state other starts", table("1.20", shift=1), b""),
        ("the same in 1.2", table("1.2", shift=1), b""),
        ("a text start that is stated nowhere", table("1.20", text=0), b""),
        ("module data of another span", table("1.20", text=0), module_data(high=TEXT + END + 1)),
        ("module data of another start", table("1.20", text=0), module_data(text=TEXT - 1)),
        ("more functions than a file can hold", table("1.20", count=1 << 63), b""),
        ("a text start far away", table("1.20", text=(1 << 64) - 1), b""),
        ("a function that ends before it starts", table("1.20", text=TEXT + 8), b""),
    ],
)
def test_a_table_that_is_not_consistent_proves_nothing(
    tmp_path: Path, name: str, functions: bytes, data: bytes
) -> None:
    proven, unproven = found(tmp_path, program(functions, data))
    assert proven == (), name
    assert unproven == (DATA, PROVEN), name


def test_a_file_full_of_heads_ends_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heads = table("1.20", count=0)[:8] * 1000
    assert found(tmp_path, program(b"", heads + table("1.20")))[0] == ()
    monkeypatch.setattr(segment_search, "_FOUND_LIMIT", 2000)
    # The control: what stopped it was the limit.
    tried = found(tmp_path, program(b"", heads + table("1.20")))
    assert tried == ((PROVEN,), (DATA,))


def test_a_table_across_two_steps_of_the_search_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segment_search, "_STEP", 5)
    assert found(tmp_path, program(table("1.18"))) == ((PROVEN,), (DATA,))


def test_any_damage_to_the_table_is_survived(tmp_path: Path) -> None:
    content = program(table("1.20", text=0), module_data())

    @settings(
        max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(
        st.lists(
            st.tuples(
                st.sampled_from(
                    [
                        *range(DATA_AT, DATA_AT + 72),
                        *range(MODULE_AT, len(content)),
                        *range(64, 176),
                    ]
                ),
                st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]),
            ),
            max_size=8,
        ),
        st.integers(0, len(content)),
    )
    def survives(changes: list[tuple[int, int]], length: int) -> None:
        damaged = bytearray(content)
        for at, value in changes:
            damaged[at] = value
        proven, unproven = found(tmp_path, bytes(damaged[:length]))
        assert set(proven) <= {PROVEN}
        assert set(unproven) <= {PROVEN, DATA}

    survives()


# -- real programs ----------------------------------------------------------------------------

BUILDS = {
    "plain": ([], "0"),
    "stripped": (["-ldflags=-s -w"], "0"),
    "position-independent, stripped": (["-buildmode=pie", "-ldflags=-s -w"], "0"),
    "cgo": ([], "1"),
    "cgo, stripped": (["-ldflags=-s -w"], "1"),
    "cgo, position-independent, stripped": (["-buildmode=pie", "-ldflags=-s -w"], "1"),
}


@pytest.mark.live
@pytest.mark.skipif(GO is None, reason="there is no Go toolchain (go)")
@pytest.mark.parametrize("sections", ["with", "without"])
@pytest.mark.parametrize("build", BUILDS)
def test_a_go_program_sees_sgx(
    softsgx: "Harness", tmp_path: Path, build: str, sections: str
) -> None:
    options, cgo = BUILDS[build]
    path = softsgx.directory / f"go {build}".replace(" ", "-")
    if not path.exists():
        environment = {
            **os.environ,
            "CGO_ENABLED": cgo,
            "GOCACHE": str(softsgx.directory / "go-cache"),
            "GOFLAGS": "-mod=mod",
            "GOTOOLCHAIN": "local",
        }
        command = ["go", "build", *options, "-o", path, "."]
        subprocess.run(command, check=True, cwd=SOURCES, env=environment)
    if sections == "without":
        content = bytearray(path.read_bytes())
        content[40:48], content[58:64] = bytes(8), bytes(6)  # e_shoff; e_shentsize and on
        path = tmp_path / "program"
        path.write_bytes(content)
        path.chmod(0o755)
    ended = softsgx.run(path)
    wanted = "1 1 1\n" if cgo == "1" else "1 1 none\n"
    assert tuple(ended) == (0, wanted, "")
