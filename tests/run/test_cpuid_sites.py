# SPDX-License-Identifier: Apache-2.0
"""CPUID is found where it is executed, and nowhere else: in immediates, displacements and data."""

import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from softsgx.run import cpuid_detours, cpuid_proof, site_cache
from softsgx.run import cpuid_sites as module
from softsgx.run.cpuid_sites import Sites, cpuid_sites
from softsgx.run.gp_instructions import CPUID

CC = shutil.which("cc")
needs_cc = pytest.mark.skipif(CC is None, reason="there is no C compiler (cc)")
LOADER = Path("/lib64/ld-linux-x86-64.so.2")

TEXT_AT = 0x1000
BASE = 0x400000


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    module._remembered.clear()
    return tmp_path / "cache" / "softsgx" / "cpuid"


def sites_of(path: Path) -> Sites:
    fd = os.open(path, os.O_RDONLY)
    try:
        return cpuid_sites(fd)
    finally:
        os.close(fd)


def found(path: Path) -> tuple[tuple[int, ...], tuple[int, ...]]:
    sites = sites_of(path)
    return sites.offsets, sites.unproven


def pairs(path: Path) -> list[int]:
    content = path.read_bytes()
    return [at for at in range(len(content)) if content.startswith(CPUID, at)]


def build(
    tmp_path: Path, text: str, *options: str, name: str = "program", end: Path | None = None
) -> Path:
    """Assemble functions; each `name:` that begins a line of its own is one with an FDE.

    `end` is linked behind them.
    """
    source = tmp_path / f"{name}.S"
    source.write_text(text + '\n.section .note.GNU-stack,"",@progbits\n', encoding="ascii")
    output = tmp_path / name
    command = ["cc", "-nostdlib", "-static", "-Wl,--build-id", "-Wl,-e,start", *options]
    subprocess.run([*command, "-o", output, source, *([end] if end else [])], check=True)
    return output


def function(body: str, name: str = "start") -> str:
    return (
        f".text\n.globl {name}\n.type {name}, @function\n{name}:\n.cfi_startproc\n"
        f"{body}\n.cfi_endproc\n.size {name}, . - {name}\n"
    )


def at_label(path: Path, label: str) -> int:
    output = subprocess.run(["nm", path], check=True, capture_output=True, text=True).stdout
    address = next(int(line.split()[0], 16) for line in output.splitlines() if line.endswith(label))
    header = path.read_bytes()
    phoff, phnum = struct.unpack_from("<Q", header, 32)[0], struct.unpack_from("<H", header, 56)[0]
    for index in range(phnum):
        kind, _, offset, vaddr, _, size = struct.unpack_from("<IIQQQQ", header, phoff + 56 * index)
        if kind == 1 and vaddr <= address < vaddr + size:
            return int(offset + address - vaddr)
    raise AssertionError(label)


def elf(text: bytes, *, entry: int = BASE + TEXT_AT, machine: int = 62) -> bytes:
    """Give the smallest program: one executable segment, no section, no frame."""
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01" + bytes(9),
        *(2, machine, 1, entry, 64, 0, 0, 64, 56, 1, 0, 0, 0),
    )
    at = BASE + TEXT_AT
    segment = struct.pack("<IIQQQQQQ", 1, 5, TEXT_AT, at, at, len(text), len(text), 4096)
    return (header + segment).ljust(TEXT_AT, b"\0") + text


def write(tmp_path: Path, content: bytes, name: str = "file") -> Path:
    path = tmp_path / name
    path.write_bytes(content)
    return path


# -- what is code, and what is not ------------------------------------------------------------

MOV_EAX = b"\xb8\x0f\xa2\x00\x00"
RET = b"\xc3"


def test_the_entry_point_proves_what_it_reaches(tmp_path: Path) -> None:
    path = write(tmp_path, elf(b"\x31\xc0" + CPUID + RET))
    assert found(path) == ((TEXT_AT + 2,), ())


@pytest.mark.parametrize(
    ("name", "text", "hit"),
    [
        ("immediate", MOV_EAX + RET, 1),
        ("displacement", b"\x8b\x80\x0f\xa2\x00\x00" + RET, 2),
        ("relative call", b"\xe8\x0f\xa2\x00\x00" + RET, 1),
        ("end of one and start of the next", b"\x6a\x0f\xa2" + bytes(8) + RET, 1),
    ],
)
def test_an_operand_is_told_from_what_is_not_certain(
    tmp_path: Path, name: str, text: bytes, hit: int
) -> None:
    assert text[hit : hit + 2] == CPUID, name
    assert found(write(tmp_path, elf(text))) == ((), ())
    # Where nothing reaches the instruction, it might be any.
    assert found(write(tmp_path, elf(RET + text))) == ((), (TEXT_AT + 1 + hit,))


@pytest.mark.parametrize(
    ("name", "text", "hit"),
    [
        ("data after a return", RET + CPUID + RET, 1),
        ("data jumped over", b"\xeb\x02" + CPUID + RET, 2),
        ("data after a call that fetches its address", b"\xe8\x02\0\0\0" + CPUID + b"\x58\xc3", 5),
        ("after an indirect jump", b"\xff\xe0" + CPUID + RET, 2),
        ("after UD2", b"\x0f\x0b" + CPUID + RET, 2),
        ("after INT3", b"\xcc" + CPUID + RET, 1),
        ("behind a prefix", b"\x66" + CPUID + RET, 1),
        ("two decodings of the same bytes", b"\x74\x01\xb8" + CPUID + b"\x90\x90" + RET, 3),
        ("after bytes that are no instruction", b"\x06" + CPUID + RET, 1),
        ("a branch reaches what is no instruction", b"\x74\x03" + CPUID + RET + b"\x06", 2),
    ],
)
def test_bytes_that_are_no_certain_instruction_stay(
    tmp_path: Path, name: str, text: bytes, hit: int
) -> None:
    assert text[hit : hit + 2] == CPUID, name
    path = write(tmp_path, elf(text))
    assert found(path) == ((), (TEXT_AT + hit,))


@pytest.mark.parametrize(
    ("name", "text", "hit"),
    [
        ("branch not taken", b"\x74\x02" + CPUID + RET, 2),
        ("branch taken", b"\x74\x01\xc3" + CPUID + RET, 3),
        ("jump over data", b"\xeb\x02\x0f\xff" + CPUID + RET, 4),
        ("jump backwards", b"\xeb\x03" + CPUID + RET + b"\xeb\xfb", 2),
        ("after a call", b"\xe8\x00\x10\0\0" + CPUID + RET, 5),
        ("after an indirect call", b"\xff\xd0" + CPUID + RET, 2),
        ("target of a call", b"\xe8\x01\0\0\0\xc3" + CPUID + RET, 6),
        ("after a system call", b"\x0f\x05" + CPUID + RET, 2),
        ("after INT 80H", b"\xcd\x80" + CPUID + RET, 2),
        ("at the last two bytes", b"\x90" + CPUID, 1),
    ],
)
def test_control_flow_is_followed(tmp_path: Path, name: str, text: bytes, hit: int) -> None:
    assert text[hit : hit + 2] == CPUID, name
    path = write(tmp_path, elf(text))
    assert found(path) == ((TEXT_AT + hit,), ())


def test_the_start_of_a_segment_alone_proves_nothing(tmp_path: Path) -> None:
    path = write(tmp_path, elf(CPUID + RET, entry=0))
    assert found(path) == ((), (TEXT_AT,))


def test_the_entry_point_serves_a_long_text_too(tmp_path: Path) -> None:
    path = write(tmp_path, elf(CPUID + RET + bytes(3 << 20) + CPUID))
    assert found(path) == ((TEXT_AT,), (TEXT_AT + 3 + (3 << 20),))


def test_decoding_stops_when_its_budget_is_spent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpuid_proof, "_INSTRUCTIONS_LIMIT", 10)
    path = write(tmp_path, elf(b"\x90" * 10 + CPUID + RET))
    assert found(path) == ((), (TEXT_AT + 10,))


@pytest.mark.parametrize("limit", ["_INSTRUCTIONS_LIMIT", "_LOOKED_AT_LIMIT"])
def test_looking_for_room_stops_when_its_budget_is_spent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    path = write(tmp_path, elf((CPUID + b"\x90" * 62) * 8 + RET))
    assert all(sites_of(path).detours)
    module._remembered.clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    monkeypatch.setattr(cpuid_detours, limit, 1)
    sites = sites_of(path)
    assert len(sites.offsets) == 8
    assert [bool(detour) for detour in sites.detours] == [True] + [False] * 7


@pytest.mark.parametrize(("limit", "room"), [(1 << 20, True), (5000, False)])
def test_the_entries_of_jump_tables_are_in_the_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, room: bool
) -> None:
    monkeypatch.setattr(cpuid_detours, "_INSTRUCTIONS_LIMIT", limit)
    behind = CPUID + b"\x90" * 8 + RET
    # lea table(%rip), %rdi; cmp $10000, %esi; ja over; jmp *%rsi; over:
    switch = b"\x81\xfe\x10\x27\0\0" + b"\x77\x02" + b"\xff\xe6"
    lea = b"\x48\x8d\x3d" + struct.pack("<i", len(switch + behind))
    path = write(tmp_path, elf(lea + switch + behind + bytes(40_004)))
    sites = sites_of(path)
    assert sites.offsets == (TEXT_AT + len(lea + switch),)
    assert bool(sites.detours[0]) is room


def test_a_pair_across_two_steps_of_the_search_is_found_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CHUNK", 8)
    path = write(tmp_path, elf(b"\x90" * 7 + CPUID + b"\x90" * 5 + CPUID + RET))
    assert found(path) == ((TEXT_AT + 7, TEXT_AT + 14), ())


# Instructions of known length whose operands are made of the pair, and CPUID itself.
OPERAND = st.lists(st.sampled_from([0x0F, 0xA2, 0x00, 0x90]), min_size=8, max_size=8).map(bytes)
INSTRUCTIONS = st.one_of(
    st.just(CPUID),
    st.builds(lambda register, n: bytes([0xB8 + register]) + n[:4], st.integers(0, 7), OPERAND),
    OPERAND.map(lambda n: b"\x48\xb8" + n),  # movabs $imm64, %rax
    OPERAND.map(lambda n: b"\x8d\x80" + n[:4]),  # lea disp32(%rax), %eax
    OPERAND.map(lambda n: b"\x48\x8d\x05" + n[:4]),  # lea disp32(%rip), %rax
    OPERAND.map(lambda n: b"\xc7\x04\x0f" + n[:4]),  # movl $imm32, (%rdi, %rcx)
    OPERAND.map(lambda n: b"\x80\x0f" + n[:1]),  # orb $imm8, (%rdi)
    OPERAND.map(lambda n: b"\x6a" + n[:1]),  # push $imm8
    OPERAND.map(lambda n: b"\xa2" + n),  # movabs %al, address
    OPERAND.map(lambda n: b"\xe8" + n[:3] + b"\x7f"),  # call far away
    st.just(b"\x01\x0f"),  # add %ecx, (%rdi)
    st.just(b"\x90"),
    OPERAND.map(lambda n: b"\xeb\x08" + n),  # jmp over data
)


@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(INSTRUCTIONS, st.integers(0, 6)), max_size=40))
def test_of_any_code_exactly_the_cpuids_are_proven(
    tmp_path: Path, code: list[tuple[bytes, int]]
) -> None:
    text, expected = b"", []
    for at, (instruction, skipped) in enumerate(code):
        if instruction == CPUID:
            expected.append(TEXT_AT + len(text))
        text += instruction
        over = sum(len(each) + 2 for each, _ in code[at + 1 : at + 1 + skipped])
        text += bytes([0x74, over])  # jz over the next ones, or to the next one
    module._remembered.clear()
    proven, unproven = found(write(tmp_path, elf(text + RET)))
    assert proven == tuple(expected)
    assert not set(proven) & set(unproven)


MIXED = (
    function(
        """
        mov $0xa20f, %eax
        lea 0xa20f(%rax), %rax
        jmp over
        .ascii "\\017\\242 text \\017\\242"
over:   xor %eax, %eax
one:    cpuid
        cmp $7, %eax
        jb small
two:    cpuid
small:  ret
        .byte 0x0f, 0xa2
        """
    )
    + function("three: cpuid\nret", "other")
    + ".byte 0x0f, 0xa2, 0xc3\n"
)


@needs_cc
@pytest.mark.parametrize(
    "options",
    [
        ("-Wl,--eh-frame-hdr",),
        ("-Wl,--eh-frame-hdr", "-s"),
        ("-Wl,--no-eh-frame-hdr",),
        ("-Wl,--no-eh-frame-hdr", "-s"),
        ("-Wl,--eh-frame-hdr", "-Wl,--build-id=none"),
    ],
    ids=" ".join,
)
def test_frames_of_assembled_functions_prove_exactly_the_instructions(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    labelled = build(tmp_path, MIXED, *(each for each in options if each != "-s"), name="labelled")
    expected = tuple(at_label(labelled, f" {label}") for label in ("one", "two", "three"))
    proven, unproven = found(build(tmp_path, MIXED, *options))
    assert proven == expected
    assert len(unproven) == 4


@needs_cc
def test_symbols_prove_where_there_are_no_frames(tmp_path: Path) -> None:
    path = build(tmp_path, MIXED.replace(".cfi_startproc", "").replace(".cfi_endproc", ""))
    assert found(path)[0] == tuple(at_label(path, f" {label}") for label in ("one", "two", "three"))


@needs_cc
def test_without_frames_and_symbols_only_what_the_entry_reaches_is_proven(tmp_path: Path) -> None:
    bare = MIXED.replace(".cfi_startproc", "").replace(".cfi_endproc", "")
    expected = found(build(tmp_path, bare, name="labelled"))
    proven, unproven = found(build(tmp_path, bare, "-s"))
    assert proven == expected[0][:2]
    assert expected[0][2] in unproven


def without_section_headers(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[40:48], content[58:64] = bytes(8), bytes(6)
    path.write_bytes(content)


# What the start files of the C library end the section with.
END_OF_FRAMES = """.section .eh_frame,"a",@progbits
.long 0
.section .note.GNU-stack,"",@progbits
"""
# Like the first CIE, with an FDE of it: for a function that is nowhere, and without an end.
NO_FRAMES = """.section .rodata
.long 20, 0
.asciz "\\001zR"
.byte 1, 0x78, 16, 1, 0x1b, 0, 0, 0, 0, 0, 0, 0
.long 20, 28
"""


@needs_cc
@pytest.mark.parametrize(
    ("before", "proven"),
    [
        ("", 3),
        (NO_FRAMES + ".long 0, 5, 0, 0, 0\n", 3),
        (NO_FRAMES + ".long start - ., 0x100000, 0, 0, 99999\n", 3),
        (NO_FRAMES + ".long start - ., 0x100000, 0, 0, 3, 0\n", 3),
        (NO_FRAMES * 9, 2),
    ],
    ids=["alone", "after others", "after one with no end", "after damage", "after too many"],
)
def test_frames_are_found_where_there_are_no_section_headers(
    tmp_path: Path, before: str, proven: int
) -> None:
    expected = found(build(tmp_path, MIXED, "-Wl,--eh-frame-hdr", name="labelled"))[0]
    assert len(expected) == 3
    end = write(tmp_path, END_OF_FRAMES.encode(), "end.S")
    path = build(tmp_path, before + MIXED, "-Wl,--no-eh-frame-hdr", "-s", end=end)
    without_section_headers(path)
    # Without frames the entry point still proves the first two.
    assert len(found(path)[0]) == proven


@needs_cc
def test_a_table_that_disagrees_with_its_fde_proves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site_cache, "directory", lambda: None)
    text = function("one: cpuid\nret") + function("two: cpuid\nret", "other")
    path = build(tmp_path, text, "-s", "-Wl,--eh-frame-hdr")
    proven, _ = found(path)
    assert len(proven) == 2
    content = bytearray(path.read_bytes())
    phoff, phnum = (
        struct.unpack_from("<Q", content, 32)[0],
        struct.unpack_from("<H", content, 56)[0],
    )
    for index in range(phnum):
        kind, _, offset = struct.unpack_from("<IIQ", content, phoff + 56 * index)
        if kind == 0x6474E550:
            # The second function is said to start a byte later.
            (start,) = struct.unpack_from("<i", content, offset + 20)
            struct.pack_into("<i", content, offset + 20, start + 1)
    sites = sites_of(write(tmp_path, bytes(content), "changed"))
    assert sites.offsets == proven[:1]
    assert sites.unproven == proven[1:]


@pytest.mark.skipif(not LOADER.exists(), reason="the loader is not at the usual path")
def test_the_real_loader_has_proven_sites_and_each_is_cpuid() -> None:
    sites = sites_of(LOADER)
    content = LOADER.read_bytes()
    assert sites.offsets
    assert all(content[offset : offset + 2] == CPUID for offset in sites.offsets)


@needs_cc
def test_a_static_stripped_c_program_is_proven_as_far_as_the_disassembler_sees_it(
    tmp_path: Path,
) -> None:
    source = tmp_path / "program.c"
    source.write_text("int main(void) { return 0; }\n", encoding="ascii")
    output = tmp_path / "program"
    made = subprocess.run(["cc", "-O2", "-static", "-s", "-o", output, source], check=False)
    if made.returncode or not shutil.which("objdump"):
        pytest.skip("there is no static libc, or no objdump")
    listing = subprocess.run(["objdump", "-d", output], check=True, capture_output=True, text=True)
    seen = [line for line in listing.stdout.splitlines() if line.rstrip().endswith("\tcpuid")]
    assert len(sites_of(output).offsets) == len(seen) > 0


# -- hostile files ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x7fELF",
        b"#!/bin/sh\n\x0f\xa2\n",
        elf(CPUID + RET, machine=3),
        elf(CPUID + RET)[:100],
        b"\x7fELF\x01" + elf(CPUID + RET)[5:],
        elf(MOV_EAX + RET)[:TEXT_AT],
        b"\x7fELF\x02\x01" + b"\xff" * 4096,
    ],
    ids=range(8),
)
def test_what_is_no_whole_x86_64_elf_has_no_sites(tmp_path: Path, content: bytes) -> None:
    assert found(write(tmp_path, content)) == ((), ())


def test_what_is_no_regular_file_has_no_sites() -> None:
    read, write_end = os.pipe()
    try:
        assert cpuid_sites(read).offsets == ()
    finally:
        os.close(read)
        os.close(write_end)


def test_a_descriptor_that_cannot_be_read_is_an_oserror(tmp_path: Path) -> None:
    path = write(tmp_path, elf(CPUID + RET))
    fd = os.open(path, os.O_WRONLY)
    try:
        with pytest.raises(OSError, match="descriptor"):
            cpuid_sites(fd)
    finally:
        os.close(fd)


def test_a_text_full_of_pairs_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_HITS_LIMIT", 16)
    proven, unproven = found(write(tmp_path, elf(CPUID * 17 + RET)))
    assert proven == ()
    assert len(unproven) == 17


def test_a_sparse_file_of_a_terabyte_ends_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_TEXT_LIMIT", 1 << 22)
    content = bytearray(elf(CPUID + RET))
    struct.pack_into("<QQ", content, 64 + 32, 1 << 40, 1 << 40)
    path = write(tmp_path, bytes(content))
    os.truncate(path, 1 << 40)
    assert len(found(path)[1]) + len(found(path)[0]) == 1


@needs_cc
def test_any_damage_to_the_headers_and_tables_is_survived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site_cache, "directory", lambda: None)
    path = build(tmp_path, MIXED, "-Wl,--eh-frame-hdr")
    content = path.read_bytes()
    fd = os.open(path, os.O_RDONLY)
    text = module.Elf(fd, len(content), content[:4096]).text()
    os.close(fd)
    tables = [at for at in range(len(content)) if not any(low <= at < end for low, end in text)]

    @settings(
        max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(
        st.lists(st.tuples(st.sampled_from(tables), st.integers(0, 255)), max_size=8),
        st.integers(0, len(content)),
    )
    def survives(changes: list[tuple[int, int]], length: int) -> None:
        damaged = bytearray(content)
        for at, value in changes:
            damaged[at] = value
        changed = write(tmp_path, bytes(damaged[: max(length, 1)]), "damaged")
        module._remembered.clear()
        sites = sites_of(changed)
        everything = set(pairs(changed))
        assert set(sites.offsets) | set(sites.unproven) <= everything
        assert not set(sites.offsets) & set(sites.unproven)

    survives()


# -- what is remembered -----------------------------------------------------------------------


@needs_cc
@pytest.mark.parametrize("build_id", ["sha1", "none"])
def test_a_second_run_decodes_nothing(
    tmp_path: Path, cache: Path, build_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = build(tmp_path, MIXED, "-Wl,--eh-frame-hdr", f"-Wl,--build-id={build_id}")
    first = found(path)
    (entry,) = cache.iterdir()
    assert entry.name.startswith("build-id-" if build_id == "sha1" else "sha256-")
    module._remembered.clear()
    monkeypatch.delattr(module, "_prove")
    assert found(path) == first


@needs_cc
def test_a_warm_start_imports_no_decoder(tmp_path: Path) -> None:
    path = build(tmp_path, MIXED, "-Wl,--eh-frame-hdr")
    assert sites_of(path).offsets
    code = (
        "import os, sys\n"
        "from softsgx.run.cpuid_sites import cpuid_sites\n"
        "assert cpuid_sites(os.open(sys.argv[1], os.O_RDONLY)).offsets\n"
        "heavy = {'iced_x86', 'elftools', 'json', 'hashlib', 'typing'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-S", "-c", code, path], check=True, env=environment())


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


@needs_cc
def test_a_file_that_changes_is_looked_at_again(tmp_path: Path) -> None:
    path = write(tmp_path, elf(CPUID + RET))
    assert found(path)[0] == (TEXT_AT,)
    status = path.stat()
    path.write_bytes(elf(RET + CPUID))
    # The program may set the time back; the time of change tells.
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert found(path)[0] == ()


def test_a_file_that_was_just_written_is_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, elf(CPUID + RET))
    status = path.stat()
    # As an older kernel stamps both in the same tick.
    monkeypatch.setattr(module.os, "fstat", lambda _: status)
    monkeypatch.setattr(module.time, "time_ns", lambda: status.st_ctime_ns + 1_000_000)
    assert found(path)[0] == (TEXT_AT,)
    path.write_bytes(elf(RET + CPUID))
    assert found(path)[0] == ()
    assert not module._remembered
    monkeypatch.setattr(module.time, "time_ns", lambda: status.st_ctime_ns + 30_000_000)
    assert found(path)[0] == ()
    assert len(module._remembered) == 1


@needs_cc
def test_an_edited_text_with_the_same_build_id_is_looked_at_again(tmp_path: Path) -> None:
    path = build(tmp_path, MIXED, "-Wl,--eh-frame-hdr")
    first, _ = found(path)
    content = bytearray(path.read_bytes())
    content[first[0] : first[0] + 2] = b"\x66\x90"
    path.write_bytes(content)
    assert found(path)[0] == first[1:]


def damages(entry: bytes) -> Iterator[bytes]:
    yield b""
    yield b"x"
    yield entry[:-1]
    yield entry + b"x"
    yield entry[:8] + bytes(len(entry) - 8)
    yield b"\xff" * len(entry)
    for at in range(0, len(entry), 7):
        yield entry[:at] + bytes([entry[at] ^ 1]) + entry[at + 1 :]


@needs_cc
def test_a_damaged_entry_is_made_again(tmp_path: Path, cache: Path) -> None:
    path = build(tmp_path, MIXED, "-Wl,--eh-frame-hdr")
    expected = found(path)
    (entry,) = cache.iterdir()
    content = entry.read_bytes()
    for damaged in damages(content):
        entry.write_bytes(damaged)
        module._remembered.clear()
        assert found(path) == expected
        assert entry.read_bytes() == content


@needs_cc
def test_what_a_killed_one_was_writing_is_overwritten(tmp_path: Path, cache: Path) -> None:
    path = build(tmp_path, MIXED, "-Wl,--eh-frame-hdr")
    expected = found(path)
    (entry,) = cache.iterdir()
    content = entry.read_bytes()
    entry.unlink()
    (cache / f".{entry.name}").write_bytes(content[:40] + b"x" * 1000)
    module._remembered.clear()
    assert found(path) == expected
    assert [left.name for left in cache.iterdir()] == [entry.name]
    assert entry.read_bytes() == content


@needs_cc
def test_an_entry_of_another_file_with_the_same_build_id_is_no_answer(
    tmp_path: Path, cache: Path
) -> None:
    one = build(tmp_path, MIXED, "-Wl,--build-id=0x123456789abcdef0", name="one")
    text = function("nop\nnop\nfirst: cpuid\nret")
    two = build(tmp_path, text, "-Wl,--build-id=0x123456789abcdef0", name="two")
    first, second = found(one), found(two)
    assert len(list(cache.iterdir())) == 1
    assert first != second
    module._remembered.clear()
    assert found(one) == first


@pytest.mark.parametrize("where", ["file", "relative", "absent"])
def test_a_cache_that_cannot_be_written_is_done_without(
    tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, elf(CPUID + RET))
    if where == "file":
        write(tmp_path, b"", "blocked")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "blocked"))
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", "cache" if where == "relative" else "")
        monkeypatch.delenv("HOME", raising=False)
        assert site_cache.directory() is None
    assert found(path)[0] == (TEXT_AT,)
    module._remembered.clear()
    assert found(path)[0] == (TEXT_AT,)


def test_a_store_leaves_one_whole_private_file(cache: Path) -> None:
    site_cache.store("key", b"identity", ((1, 2), (3,), (0, 9)))
    site_cache.store("key", b"identity", ((1,), (2, 3), (7,)))
    assert [each.name for each in cache.iterdir()] == ["key"]
    assert (cache / "key").stat().st_mode & 0o777 == 0o600
    assert site_cache.load("key", b"identity") == ((1,), (2, 3), (7,))
    assert site_cache.load("key", b"another") is None
    assert site_cache.load("other", b"identity") is None
