# SPDX-License-Identifier: Apache-2.0
"""What a place in a program's file is called."""

import io
import subprocess
from pathlib import Path

import pytest

from softsgx.image.symbols import Symbols

SOURCE = """
.text
.type first,@function
first: nop
ret
.size first, . - first
between: ret
.globl second
.type second,@function
second: ret
"""


@pytest.fixture
def library(tmp_path: Path) -> Path:
    source, path = tmp_path / "s.s", tmp_path / "s.so"
    source.write_text(SOURCE)
    # The text stands elsewhere in memory than in the file.
    place = "-Wl,--section-start=.text=0x7000000"
    subprocess.run(["cc", "-shared", "-nostdlib", place, "-o", path, source], check=True)
    return path


def test_only_what_lies_in_a_function_has_its_name(library: Path) -> None:
    content = library.read_bytes()
    offset = content.find(b"\x90\xc3\xc3\xc3")
    symbols = Symbols(io.BytesIO(content))
    assert [symbols.locate(offset + at) for at in range(4)] == [
        (0x7000000, "first"),
        (0x7000001, "first+0x1"),
        (0x7000002, ""),
        (0x7000003, "second"),
    ]


def test_what_was_stripped_has_exported_names_only(library: Path) -> None:
    subprocess.run(["strip", library], check=True)
    content = library.read_bytes()
    offset = content.find(b"\x90\xc3\xc3\xc3")
    symbols = Symbols(io.BytesIO(content))
    assert [symbols.locate(offset + at)[1] for at in range(4)] == ["", "", "", "second"]


@pytest.mark.parametrize("length", [0, 3, 64, 200])
def test_a_damaged_file_has_no_names(library: Path, length: int) -> None:
    symbols = Symbols(io.BytesIO(library.read_bytes()[:length]))
    assert symbols.locate(0x20)[1] == ""


def test_another_file_has_offsets_alone() -> None:
    assert Symbols(io.BytesIO(b"#!/bin/sh\n")).locate(5) == (5, "")
