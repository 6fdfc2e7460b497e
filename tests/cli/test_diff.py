# SPDX-License-Identifier: Apache-2.0
"""`softsgx diff`, on enclaves as the C compiler makes them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from softsgx.cli import main

EXAMPLE = Path(__file__).parents[2] / "examples" / "hello"


def compiled(out: Path, *options: str) -> str:
    subprocess.run(
        [
            "cc",
            *("-O2", "-ffreestanding", "-fpie", "-mgeneral-regs-only", "-fno-stack-protector"),
            *("-fcf-protection=none", "-fno-tree-loop-distribute-patterns", "-nostdlib", "-static"),
            *("-no-pie", f"-Wl,-T,{EXAMPLE / 'enclave.lds'}", "-Wl,--build-id=none"),
            *("-Wl,-z,noexecstack", "-Wl,-z,max-page-size=4096", *options, "-o", out),
            *(EXAMPLE / "enclave.S", EXAMPLE / "enclave.c"),
        ],
        check=True,
    )
    return str(out)


def test_the_difference_is_named_by_section_and_symbol(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = compiled(tmp_path / "one.elf")
    same = compiled(tmp_path / "same.elf")
    assert main(["diff", one, same]) == 0
    assert "MRENCLAVE is the same, record by record\n" in capsys.readouterr().out
    symbols = subprocess.run(["nm", one], check=True, capture_output=True, text=True).stdout
    entry = next(
        (int(line.split()[0], 16), line.split()[2])
        for line in symbols.splitlines()
        if line.split()[1] in "tT"
    )
    content = bytearray(Path(one).read_bytes())
    headers = subprocess.run(["readelf", "-lW", one], check=True, capture_output=True, text=True)
    offset, vaddr = next(
        (int(line.split()[1], 16), int(line.split()[2], 16))
        for line in headers.stdout.splitlines()
        if "LOAD" in line and "R E" in line
    )
    content[offset + entry[0] - vaddr] ^= 0xFF
    other = tmp_path / "other.elf"
    other.write_bytes(content)
    assert main(["diff", one, str(other)]) == 1
    out = capsys.readouterr().out
    place = f"first difference: EEXTEND at {entry[0] & -256:#x} in .text <{entry[1]}>: content"
    assert place in out
    assert main(["diff", "--json", one, str(other)]) == 1
    said = json.loads(capsys.readouterr().out)
    assert said["first"]["offset"] == entry[0] & -256
    (found,) = said["pages"]
    assert (found["kind"], found["pages"]) == ("content", 1)
    assert found["chunks"] == [[entry[0], entry[0]]]
    assert ".text" in found["sections"]
    assert entry[1] in found["symbols"]
