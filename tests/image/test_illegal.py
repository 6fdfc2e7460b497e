# SPDX-License-Identifier: Apache-2.0
"""Illegal instructions of an enclave's code: each of the manual's, and where data is taken for none."""

import subprocess
from pathlib import Path

import pytest

from softsgx.arch.secinfo import SECINFO_R, SECINFO_REG, SECINFO_W, SECINFO_X
from softsgx.errors import SoftsgxError
from softsgx.image.code import Code, read
from softsgx.image.illegal import find

RET = b"\xc3"
ILLEGAL = {
    "cpuid": b"\x0f\xa2",
    "rep cpuid": b"\xf3\x0f\xa2",
    "syscall": b"\x0f\x05",
    "sysenter": b"\x0f\x34",
    "int 80": b"\xcd\x80",
    "int3": b"\xcc",
    "in": b"\xe4\x70",
    "in dx": b"\xed",
    "out": b"\xe7\x70",
    "insb": b"\x6c",
    "rep outsd": b"\xf3\x6f",
    "rdpmc": b"\x0f\x33",
    "sgdt": b"\x0f\x01\x00",
    "sidt": b"\x0f\x01\x08",
    "sldt": b"\x0f\x00\xc0",
    "str": b"\x0f\x00\xc8",
    "smsw": b"\x0f\x01\xe0",
    "getsec": b"\x0f\x37",
    "vmcall": b"\x0f\x01\xc1",
    "vmfunc": b"\x0f\x01\xd4",
    "encls": b"\x0f\x01\xcf",
    "enclv": b"\x0f\x01\xc0",
    "iretq": b"\x48\xcf",
    "lret": b"\xcb",
    "mov ss": b"\x8e\xd0",
    "mov fs": b"\x8e\xe0",
    "pop gs": b"\x0f\xa9",
    "lss": b"\x48\x0f\xb2\x00",
    "far call": b"\xff\x18",
    "far jmp": b"\x48\xff\x28",
}
LEGAL = {
    "enclu": b"\x0f\x01\xd7",
    "rdtsc": b"\x0f\x31",
    "rdtscp": b"\x0f\x01\xf9",
    "xgetbv": b"\x0f\x01\xd0",
    "rdfsbase": b"\xf3\x48\x0f\xae\xc0",
    "rdrand": b"\x48\x0f\xc7\xf0",
    "ud2": b"\x0f\x0b",
    "mov from ss": b"\x8c\xd0",
    "mov rax": b"\x48\x8b\x00",
    "push fs": b"\x0f\xa0",
    "call": b"\xff\x10",
    "jmp": b"\xff\x20",
}


def one(data: bytes, **functions: int) -> Code:
    return Code("ELF", [(0x1000, data)], {0x1000 + at: name for name, at in functions.items()})


@pytest.mark.parametrize("name", ILLEGAL)
def test_what_is_illegal_is_found_where_control_flow_reaches_it(name: str) -> None:
    (found,) = find(one(b"\x90" + ILLEGAL[name] + RET, start=0))
    assert (found.offset, found.symbol, found.certain) == (0x1001, "start+0x1", True)
    assert found.reason
    assert found.here


@pytest.mark.parametrize("name", LEGAL)
def test_what_is_legal_is_not(name: str) -> None:
    assert find(one(LEGAL[name] + RET, start=0)) == []


@pytest.mark.parametrize("name", ["rdtsc", "rdtscp"])
def test_before_sgx2_the_time_stamp_is_illegal(name: str) -> None:
    (found,) = find(one(LEGAL[name] + RET, start=0), sgx2=False)
    assert found.certain


def test_branches_are_followed_and_operands_are_no_instructions() -> None:
    # jne +2; ret; hole; cpuid; mov $0xa20f, %eax; ret
    code = b"\x75\x03" + RET + b"\xe8\x0f" + b"\x0f\xa2" + b"\xb8\x0f\xa2\x00\x00" + RET
    found = find(one(code, start=0))
    assert [(f.offset, f.certain) for f in found] == [(0x1005, True)]
    # Another function's call leads to one that has no name.
    called = b"\xe8\x01\x00\x00\x00" + RET + b"\x0f\x05" + RET
    assert [(f.offset, f.certain) for f in find(one(called, start=0))] == [(0x1006, True)]


def test_what_nothing_reaches_is_said_to_be_doubtful() -> None:
    code = RET + b"\x0f\xa2" + RET + b"\xec\xcc\xcb"
    found = find(one(code, start=0))
    assert [(f.offset, f.certain) for f in found] == [(0x1001, False)]
    # Without symbols nothing is certain.
    assert [f.certain for f in find(one(b"\x0f\xa2" + RET))] == [False]


def test_an_elf_file_with_sections_without_and_damaged(tmp_path: Path) -> None:
    source = tmp_path / "e.s"
    source.write_text(
        ".globl enter\n.type enter,@function\nenter: cpuid\nret\n.size enter,.-enter\n"
        '.section .rodata\n.ascii "\\x0f\\xa2"\n'
    )
    shared = tmp_path / "e.so"
    subprocess.run(["cc", "-shared", "-nostdlib", "-o", shared, source], check=True)
    code = read(str(shared))
    assert (code.kind, code.pages) == ("ELF", None)
    (found,) = find(code)
    assert (found.symbol, found.certain) == ("enter", True)
    stripped = tmp_path / "stripped.so"
    subprocess.run(["strip", "-s", "-o", stripped, shared], check=True)
    # The dynamic symbols are still there.
    assert [f.symbol for f in find(read(str(stripped)))] == ["enter"]
    content = bytearray(shared.read_bytes())
    static = tmp_path / "static"
    subprocess.run(["cc", "-static", "-nostdlib", "-no-pie", "-o", static, source], check=True)
    assert read(str(static)).pages == sum(
        1
        for line in subprocess.run(
            ["readelf", "-lW", static], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        if line.split()[:1] == ["LOAD"]
    )
    broken = tmp_path / "broken"
    for length in (5, 64, 300, len(content) // 2):
        broken.write_bytes(content[:length])
        with pytest.raises(SoftsgxError, match="broken"):
            read(str(broken))
    broken.write_bytes(b"MZ")
    with pytest.raises(SoftsgxError, match="neither an ELF file nor SGXS"):
        read(str(broken))
    with pytest.raises(SoftsgxError, match="cannot read"):
        read(str(tmp_path))


def sgxs(*pages: tuple[int, int, bytes], measured: bool = True) -> bytes:
    out = b"ECREATE\0".ljust(64, b"\0")
    for offset, flags, contents in pages:
        where = offset.to_bytes(8, "little") + flags.to_bytes(8, "little")
        out += (b"EADD\0\0\0\0" + where).ljust(64, b"\0")
        for at in range(0, len(contents), 256):
            tag = b"EEXTEND\0" if measured else b"UNMEASRD"
            out += (tag + (offset + at).to_bytes(8, "little")).ljust(64, b"\0")
            out += contents[at : at + 256].ljust(256, b"\0")
    return out


@pytest.mark.parametrize("measured", [True, False])
def test_sgxs(tmp_path: Path, measured: bool) -> None:
    path = tmp_path / "e.sgxs"
    executable = SECINFO_REG | SECINFO_R | SECINFO_X
    path.write_bytes(
        sgxs(
            (0x3000, SECINFO_REG | SECINFO_R | SECINFO_W, b"\x0f\xa2"),
            (0x1000, executable, b"\xc3" * 0xFFF + b"\x0f"),
            (0x2000, executable, b"\x05" + b"\xc3" * 600),
            measured=measured,
        )
    )
    code = read(str(path))
    assert (code.kind, code.pages) == ("SGXS", 3)
    assert [(start, len(data)) for start, data in code.parts] == [(0x1000, 0x2000)]
    assert [(f.offset, f.certain) for f in find(code)] == [(0x1FFF, False)]
    whole = path.read_bytes()
    for cut in (32, 64 * 2 + 10, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(SoftsgxError, match="offset"):
            read(str(path))
