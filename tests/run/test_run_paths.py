# SPDX-License-Identifier: Apache-2.0
"""Path calls that are looked at in the program itself: as the bare call, and without asking."""

import re
import subprocess
from typing import TYPE_CHECKING

import pytest

from softsgx.run.path_sites import executable_files, site_of
from softsgx.run.slots import SLOT_SIZE, cpuid_slot, moved_to, path_slot
from softsgx.run.vdso import VdsoImage

if TYPE_CHECKING:
    from conftest import Harness

OPENAT = 257
AT_FDCWD = -100
SITE = b"\xb8\x01\x01\0\0\x0f\x05"


def asked(err: str) -> int:
    found = re.search(r"path calls +(\d+) asked", err)
    assert found, err
    return int(found[1])


@pytest.mark.live
def test_a_site_that_is_looked_at_in_the_process_is_the_bare_call(softsgx: "Harness") -> None:
    program = softsgx.program("path_site", "-ldl")
    library = softsgx.program("path_site_library.so", "-shared", "-fPIC")
    native = subprocess.run(
        [program, library, "100"], capture_output=True, text=True, check=True, cwd=softsgx.directory
    )
    ended = softsgx.run(program, library, "100", "node", options=("--stats",))
    lines = ended.out.splitlines()
    assert native.stdout.splitlines()[:-1] == lines[: native.stdout.count("\n") - 1]
    assert all(line.startswith("ok ") for line in lines[:-1]), ended.out
    assert lines[-1] == "finished"


@pytest.mark.live
def test_a_site_asks_once(softsgx: "Harness") -> None:
    program = softsgx.program("path_site", "-ldl")
    library = softsgx.program("path_site_library.so", "-shared", "-fPIC")
    counts = []
    for turns in ("2", "2002"):
        ended = softsgx.run(program, library, turns, options=("--stats",))
        assert ended.status == 0, ended
        counts.append(asked(ended.err))
    # Every second turn, in the parent and in its child, names "sgx": these do ask.
    # A call that a signal interrupts may ask again.
    assert abs(counts[1] - counts[0] - 2000) < 20


ARGS = (AT_FDCWD & (1 << 64) - 1, 0x7000, 0x80000, 0, 0, 0)


@pytest.mark.parametrize(
    ("code", "number", "wanted"),
    [
        (b"\x90" + SITE, OPENAT, True),
        (b"\xc0" + SITE, OPENAT, True),
        (b"\x90\xbf\x9c\xff\xff\xff\x0f\x05", OPENAT, True),  # mov $AT_FDCWD, %edi
        (b"\x90\xba\0\0\x08\0\x0f\x05", OPENAT, True),  # mov $O_CLOEXEC, %edx
        (b"\x90\xba\0\0\x09\0\x0f\x05", OPENAT, False),  # RDX came from elsewhere
        (b"\x90" + SITE, 2, False),  # another number was executed: RAX came from elsewhere
        (b"\x41" + SITE, OPENAT, False),  # mov $257, %r8d
        (b"\x48" + SITE, OPENAT, False),
        (b"\x8d" + SITE, OPENAT, False),  # lea 257(%rax), %edi
        (b"\x90\xb8\x01\x01\0\0\x0f\x34", OPENAT, False),  # SYSENTER
        (b"\x90\xb9\x01\x01\0\0\x0f\x05", OPENAT, False),  # mov to ECX
        (SITE, OPENAT, False),
    ],
)
def test_only_the_whole_pattern_is_a_site(code: bytes, number: int, wanted: bool) -> None:
    assert site_of(code, number, ARGS) is wanted


def disassembled(code: bytes, at: int) -> list[str]:
    from iced_x86 import Decoder, Formatter, FormatterSyntax  # noqa: PLC0415

    formatter = Formatter(FormatterSyntax.INTEL)
    lines = [formatter.format(instruction) for instruction in Decoder(64, code, ip=at)]
    return [line for line in lines if line != "nop"]


def test_a_slot_is_what_the_image_describes() -> None:
    at, call, back = 0x7F00_0000_1000, 0x7F00_0000_0400, 0x7F00_0123_4567
    path = path_slot(at, SITE[:5], call, back)
    cpuid = cpuid_slot(at, call, b"\x89\xc2", back)
    assert len(path) == len(cpuid) == SLOT_SIZE
    around = [f"call {call:016X}h", "lea rsp,[rsp+80h]"], [f"jmp {back:016X}h"]
    first, last = around
    assert disassembled(path, at) == ["lea rsp,[rsp-80h]", "mov eax,101h", *first, *last]
    filler = "nop [rax+rax]"
    assert disassembled(cpuid, at) == ["lea rsp,[rsp-80h]", filler, *first, "mov edx,eax", *last]
    assert cpuid[moved_to(at) - at :].startswith(b"\x89\xc2")
    # Where the image's unwinding information expects the jump: detours.S.
    assert path[-5] == cpuid[-5] == 0xE9
    image = VdsoImage.load()
    assert not image.slots % SLOT_SIZE
    assert not (image.slots_end - image.slots) % SLOT_SIZE
    assert image.path_call < image.path_load < image.path_ask


def test_only_private_text_of_files_counts() -> None:
    maps = b"""\
55d000000000-55d000001000 r-xp 00001000 fe:00 11 /usr/bin/a file
55d000001000-55d000002000 rwxp 00001000 fe:00 11 /usr/bin/written to
7f0000000000-7f0000001000 r-xs 00000000 fe:00 12 /usr/lib/shared
7f0000002000-7f0000003000 r-xp 00000000 00:00 0
7f0000004000-7f0000005000 r-xp 00000000 00:00 0                          [vdso]
7f0000006000-7f0000009000 r-xp 00028000 fe:00 13 /usr/lib/libc.so.6
"""
    assert executable_files(maps.splitlines(keepends=True)) == [
        (0x55D000000000, 0x55D000001000),
        (0x7F0000006000, 0x7F0000009000),
    ]
