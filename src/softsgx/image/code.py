# SPDX-License-Identifier: Apache-2.0
"""The code of an enclave file: its executable bytes, where functions begin in them, how many pages it has.

Two formats: ELF, linked as it may be (the Intel SDK's and Open Enclave's shared objects, signed or not,
and plain files), of which the sections and symbols are used where it has some; and SGXS, a stream of what is
measured, which has neither. What is not in the file, as the heap of an SDK's enclave, is not known here.

Sources: System V ABI (ELF); the SGXS format of fortanix/rust-sgx.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

from softsgx.arch.secinfo import PAGE_SIZE, SECINFO_X
from softsgx.errors import SoftsgxError

_ECREATE, _EADD = b"ECREATE\0", b"EADD\0\0\0\0"
_EEXTEND, _UNMEASURED = b"EEXTEND\0", b"UNMEASRD"
_BLOCK, _CHUNK = 64, 256
_SHF_ALLOC, _SHF_EXECINSTR = 2, 4
_FUNCTIONS = ("STT_FUNC", "STT_LOOS")  # the latter is STT_GNU_IFUNC
_PF_X = 1


@dataclass(slots=True)
class Code:
    """What of an enclave can be executed, by its offsets from the enclave's base.

    ``parts`` are (offset, bytes). ``functions`` begin at these offsets and have these names. ``pages`` is how many
    pages the file alone adds, None where its loader adds others besides.
    """

    kind: str
    parts: list[tuple[int, bytes]] = field(default_factory=list)
    functions: dict[int, str] = field(default_factory=dict)
    pages: int | None = None

    def name(self, offset: int) -> str:
        """Return an offset as a symbol and what comes behind it, "" where there is no symbol."""
        start = max((at for at in self.functions if at <= offset), default=None)
        if start is None:
            return ""
        return self.functions[start] + (f"+{offset - start:#x}" if offset > start else "")


def read(path: str) -> Code:
    """Read the code of an enclave file; SoftsgxError says what is wrong with it."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise SoftsgxError(f"{path}: cannot read it: {error.strerror}") from error
    if content.startswith(b"\x7fELF"):
        return _decode_elf(content, path)
    if content.startswith(_ECREATE):
        return _decode_sgxs(content, path)
    raise SoftsgxError(f"{path}: neither an ELF file nor SGXS")


def _decode_elf(content: bytes, path: str) -> Code:
    from elftools.common.exceptions import ELFError  # noqa: PLC0415
    from elftools.construct.core import ConstructError  # noqa: PLC0415
    from elftools.elf.elffile import ELFFile  # noqa: PLC0415

    try:
        elf = ELFFile(BytesIO(content))
        if elf.elfclass != 64 or elf["e_machine"] != "EM_X86_64":
            raise SoftsgxError(f"{path}: not for 64-bit x86")
        code = Code("ELF")
        sections = [
            (s["sh_addr"], s.data())
            for s in elf.iter_sections()
            if s["sh_type"] == "SHT_PROGBITS"
            and s["sh_flags"] & _SHF_ALLOC
            and s["sh_flags"] & _SHF_EXECINSTR
        ]
        segments = [s for s in elf.iter_segments() if s["p_type"] == "PT_LOAD"]
        code.parts = sections or [
            (s["p_vaddr"], s.data()) for s in segments if s["p_flags"] & _PF_X
        ]
        _add_symbols(code, elf)
        if elf["e_type"] == "ET_EXEC":
            code.pages = sum(
                -(-(s["p_vaddr"] % PAGE_SIZE + s["p_memsz"]) // PAGE_SIZE) for s in segments
            )
    except (ELFError, ConstructError, UnicodeDecodeError, ValueError, OverflowError) as error:
        raise SoftsgxError(f"{path}: a damaged ELF file: {error}") from error
    return code


def _add_symbols(code: Code, elf: Any) -> None:
    for section in elf.iter_sections():
        if section["sh_type"] not in ("SHT_SYMTAB", "SHT_DYNSYM"):
            continue
        for symbol in section.iter_symbols():
            kind, defined = symbol["st_info"]["type"], symbol["st_shndx"] != "SHN_UNDEF"
            # What is written in assembly often has no type.
            entry = kind in _FUNCTIONS or (
                kind == "STT_NOTYPE" and symbol["st_info"]["bind"] == "STB_GLOBAL"
            )
            at = symbol["st_value"]
            if entry and defined and symbol.name and _holds(code, at):
                code.functions.setdefault(at, symbol.name)


def _holds(code: Code, offset: int) -> bool:
    return any(start <= offset < start + len(data) for start, data in code.parts)


def _decode_sgxs(content: bytes, path: str) -> Code:
    pages: dict[int, tuple[int, bytearray]] = {}
    at = 0
    while at < len(content):
        block = content[at : at + _BLOCK]
        tag, offset = block[:8], int.from_bytes(block[8:16], "little")
        if len(block) < _BLOCK or tag not in (_ECREATE, _EADD, _EEXTEND, _UNMEASURED):
            raise SoftsgxError(f"{path}: offset {at:#x}: no record of SGXS")
        at += _BLOCK
        if tag == _EADD:
            pages[offset] = int.from_bytes(block[16:24], "little"), bytearray(PAGE_SIZE)
        elif tag in (_EEXTEND, _UNMEASURED):
            page, within = offset & -PAGE_SIZE, offset % PAGE_SIZE
            data = content[at : at + _CHUNK]
            if page not in pages or len(data) < _CHUNK or within % _CHUNK:
                raise SoftsgxError(f"{path}: offset {at - _BLOCK:#x}: a chunk of no page")
            pages[page][1][within : within + _CHUNK] = data
            at += _CHUNK
    code = Code("SGXS", pages=len(pages))
    for offset, (flags, contents) in sorted(pages.items()):
        if not flags & SECINFO_X:
            continue
        if code.parts and code.parts[-1][0] + len(code.parts[-1][1]) == offset:
            start, before = code.parts.pop()
            code.parts.append((start, before + bytes(contents)))
        else:
            code.parts.append((offset, bytes(contents)))
    return code
