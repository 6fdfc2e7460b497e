# SPDX-License-Identifier: Apache-2.0
"""CPUID of real programs, however they are linked and stripped: they see SGX, and nothing breaks."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from softsgx.run import probes

if TYPE_CHECKING:
    from conftest import Harness

pytestmark = pytest.mark.live

SOURCES = Path(__file__).parent / "programs"
FAULTS = probes.cpuid_faulting().ok
SEES_SGX = (0, "1 1\n", "")


def without_section_headers(path: Path) -> None:
    """Take the section headers of a program away, as `strip --strip-section-headers` does."""
    content = bytearray(path.read_bytes())
    content[40:48] = bytes(8)  # e_shoff
    content[58:64] = bytes(6)  # e_shentsize, e_shnum, e_shstrndx
    path.write_bytes(content)


LINKED = {
    "dynamic": ("cc",),
    "dynamic, no pie": ("cc", "-no-pie"),
    "static": ("cc", "-static"),
    "static-pie": ("cc", "-static-pie"),
    "musl": ("musl-gcc",),
    "musl, static": ("musl-gcc", "-static"),
}


@pytest.mark.parametrize("stripped", ["no", "symbols", "section headers"])
@pytest.mark.parametrize("linked", LINKED)
def test_a_program_sees_sgx_however_it_is_linked(
    softsgx: "Harness", tmp_path: Path, linked: str, stripped: str
) -> None:
    compiler, *options = LINKED[linked]
    if shutil.which(compiler) is None or shutil.which("strip") is None:
        pytest.skip(f"there is no {compiler}, or no strip")
    program = tmp_path / "sgx_seen"
    command = [compiler, "-O2", *options, "-o", program, SOURCES / "sgx_seen.c"]
    made = subprocess.run(command, check=False, capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"{compiler} cannot link this way: {made.stderr.strip()[-200:]}")
    if stripped != "no":
        subprocess.run(["strip", "--strip-all", program], check=True)
    if stripped == "section headers":
        without_section_headers(program)
    assert tuple(softsgx.run(program)) == SEES_SGX


def test_a_library_that_is_replaced_on_disk_is_looked_at_anew(
    softsgx: "Harness", tmp_path: Path
) -> None:
    program = softsgx.program("late_library", "-ldl")
    flags = ("-shared", "-fPIC")
    one = softsgx.program("late_library_text.one", *flags)
    other = softsgx.program("late_library_text.other", *flags, "-DSWAP")

    def places(pattern: bytes) -> list[int]:
        return [one.read_bytes().find(pattern), other.read_bytes().find(pattern)]

    # CPUID of each is where the other has an operand.
    at, operand = places(b"\x31\xc9\x0f\xa2"), places(b"\x90\xb8\x0f\xa2")
    assert at == operand[::-1]
    assert min(at) > 0
    for turn in range(5):
        path, second = tmp_path / f"{turn}.so", tmp_path / "second.so"
        shutil.copy(one, path)
        shutil.copy(other, second)
        ended = softsgx.run(program, path, second, one)
        wanted = ["first 1 0xa20f", "renamed 1 0xa20f", "written over 1 0xa20f", ""]
        assert tuple(ended) == (0, "\n".join(wanted), "")


IN_A_MEMFD = """
import os, sys
fd = os.memfd_create("program")
with open(sys.argv[1], "rb") as program:
    os.write(fd, program.read())
os.execve(fd, ["program"], os.environ)
"""


def test_a_program_without_a_name_sees_sgx(softsgx: "Harness", ordinary_user: int | None) -> None:
    program = softsgx.program("sgx_seen")
    ended = softsgx.run(sys.executable, "-c", IN_A_MEMFD, program, uid=ordinary_user)
    assert tuple(ended) == SEES_SGX


def test_a_program_may_keep_its_text(softsgx: "Harness") -> None:
    program = softsgx.program("own_text")
    library = softsgx.program("cpuid_text.so", "-shared", "-fPIC")
    left = softsgx.run(program, library, options=("--leave-text",))
    native = subprocess.run([program, library], capture_output=True, text=True, check=True).stdout
    assert tuple(left) == (0, "SGX 1\n" if FAULTS else native, "")
    assert "changed" not in native
    # The control: else CPUID and the places of path calls are changed, and the program sees it.
    changed = softsgx.run(program, library)
    lines = changed.out.splitlines()
    assert FAULTS or {"changed own_text", "changed cpuid_text.so"} <= set(lines), changed
    assert any(line.startswith("changed libc.so") for line in lines), changed
    assert lines[-1] == "SGX 1"


def test_pairs_that_are_no_cpuid_stay_as_they_are(softsgx: "Harness") -> None:
    program = softsgx.program("pairs", "-no-pie")
    native = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    *results, pairs, _ = native.splitlines()
    assert (len(results), pairs) == (22, "pairs 26")
    assert tuple(softsgx.run(program)) == (0, "\n".join([*results, pairs, "SGX 1\n"]), "")


def test_pairs_that_may_be_cpuid_are_told(softsgx: "Harness", tmp_path: Path) -> None:
    program = softsgx.program("pairs", "-no-pie")
    trace = tmp_path / "trace"
    ended = softsgx.run("sh", "-c", f"{program}; {program}", options=("--stats", "--trace", trace))
    lines = [json.loads(line) for line in trace.read_text().splitlines()]
    told = {line["file"]: line["cpuid_unproven"] for line in lines if "cpuid_unproven" in line}
    # Of the 26 pairs, 18 are plainly operands.
    assert FAULTS or told[str(program)] == 8
    assert sum(line.get("file") == str(program) for line in lines) == len({str(program)} & {*told})
    assert FAULTS or f"{program} (8)" in ended.err
    left = softsgx.run(program, options=("--stats", "--leave-text"))
    assert re.search(r"CPUID unproven +none\n", left.err), left
