# SPDX-License-Identifier: Apache-2.0
"""Small enclave files of each format, made here field by field, and what their measurement is by the manual alone."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256

PAGE = 4096
R, W, X = 4, 2, 1  # of p_flags
REG_R, REG_RW, REG_RX, REG_RWX, TCS = 0x201, 0x203, 0x205, 0x207, 0x100
PT_LOAD, PT_DYNAMIC = 1, 2


@dataclass
class Ledger:
    """MRENCLAVE of pages that are given one by one."""

    size: int
    ssaframesize: int = 1
    stream: bytes = b""
    hash: bytes = field(default=b"")

    def __post_init__(self) -> None:
        self.stream = struct.pack("<8sIQ44x", b"ECREATE", self.ssaframesize, self.size)

    def page(self, offset: int, flags: int, content: bytes | None) -> None:
        """Add a page; None is not measured."""
        self.stream += struct.pack("<8sQQ40x", b"EADD", offset, flags)
        if content is None:
            return
        content = content.ljust(PAGE, b"\0")
        for chunk in range(0, PAGE, 256):
            self.chunk(offset + chunk, content[chunk : chunk + 256])

    def chunk(self, offset: int, content: bytes) -> None:
        self.stream += struct.pack("<8sQ48x", b"EEXTEND", offset) + content

    @property
    def mrenclave(self) -> bytes:
        return sha256(self.stream).digest()


@dataclass
class Made:
    """An enclave file, and its MRENCLAVE and records as the ledger has them."""

    content: bytes
    mrenclave: bytes


def elf(
    segments: list[tuple[int, int, int, bytes, int]],
    sections: list[tuple[bytes, int, int, bytes]],
    entry: int = 0,
) -> bytes:
    """Make a shared object of (type, flags, address, content, size in memory) and (name, type, address, content).

    A segment's content lies in the file at its address, so sections inside segments are given without content.
    """
    image = bytearray(b"\0" * 0x40)
    for kind, _, address, content, _ in segments:
        if kind == PT_LOAD:
            image[len(image) :] = bytes(max(0, address + len(content) - len(image)))
            image[address : address + len(content)] = content
    names = b"\0" + b"".join(name + b"\0" for name, *_ in sections) + b".shstrtab\0"
    headers = [bytes(64)]
    for name, kind, address, content in sections:
        where = address
        if content and not any(
            start <= address < start + len(inside) for _, _, start, inside, _ in segments if address
        ):
            where = len(image)
            image += content
        number = names.index(b"\0" + name + b"\0") + 1
        link = 1 + next((i for i, s in enumerate(sections) if s[0] == b".dynstr"), 0)
        headers.append(
            struct.pack(
                "<IIQQQQIIQQ", number, kind, 2, address, where, len(content), link, 0, 8, 24
            )
        )
    strings_at = len(image)
    image += names
    headers.append(
        struct.pack(
            "<IIQQQQIIQQ", names.index(b".shstrtab"), 3, 0, 0, strings_at, len(names), 0, 0, 1, 0
        )
    )
    phoff = len(image)
    for kind, flags, address, content, memory in segments:
        image += struct.pack(
            "<IIQQQQQQ", kind, flags, address, address, address, len(content), memory, PAGE
        )
    shoff = len(image)
    image += b"".join(headers)
    image[:64] = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01",
        3,
        62,
        1,
        entry,
        phoff,
        shoff,
        0,
        64,
        56,
        len(segments),
        64,
        len(headers),
        len(headers) - 1,
    )
    return bytes(image)


def layout_entry(  # one line of the table
    kind: int, attributes: int, pages: int, rva: int, content: tuple[int, int], flags: int
) -> bytes:
    return struct.pack("<HHIQIIQ", kind, attributes, pages, rva, *content, flags)


def intel_file(*, version: tuple[int, int] = (3, 3), elrange: int = 0) -> Made:
    """Make an enclave of the Intel SDK: text relocations, a patch, a heap, two threads by a group."""
    code = bytes(range(256)) * 8
    relocation = struct.pack("<QQq", 0x1FFC, 8, 7)  # it reaches into the next page
    data = b"data" * 64
    dynamic = struct.pack("<12Q", 22, 0, 7, 0x1800, 8, len(relocation), 0, 0, 0, 0, 0, 0)
    text = code.ljust(0x2100 - 0x1040, b"c")  # from 0x1040 to 0x2100
    segments = [
        (PT_LOAD, R, 0, bytes(0x40) + b"head", 0x200),
        (PT_LOAD, R | X, 0x1040, text, len(text)),
        (PT_LOAD, R | W, 0x3010, data + dynamic, 0x2500),
        (PT_DYNAMIC, R | W, 0x3010 + len(data), dynamic, len(dynamic)),
    ]
    head_at, patch = 0x40, b"patched!"
    tables = 1904
    entries = [
        layout_entry(1, 3, 2, 0x8000, (0, 0), REG_RW),  # heap, measured
        layout_entry(11, 8, 4, 0xA000, (0, 0), REG_RW),  # heap that EAUG brings
        layout_entry(10, 0, 1, 0xE000, (0, 0), 0),  # guard
        layout_entry(8, 3, 1, 0xF000, (0xCCCCCCCC, 0), REG_RW),
        layout_entry(4, 3, 1, 0x10000, (72, tables), TCS),
        layout_entry(6, 1, 2, 0x11000, (0, 0), REG_RW),  # SSA, not measured
        layout_entry(5, 3, 1, 0x13000, (8, tables + 72), REG_RW),
        struct.pack("<HHIQ16x", 9 | 1 << 12, 5, 1, 0x8000),
    ]
    layout = b"".join(entries)
    patches = struct.pack("<QII16x", head_at, tables + 72, len(patch))
    tcs = struct.pack("<QQQIIQQQQII", 0, 0, 0x1000, 0, 2, 0x1050, 0, 0x3000, 0x3000, 0xFFF, 0xFFF)
    extra = struct.pack("<QQQ", elrange + 0x10000, elrange, 0x100000) if elrange else b""
    body = tcs + patch + patches + layout + extra
    head = struct.pack(
        "<QQIIIIIIQQQ",
        0x86A80294635D0E4C,
        version[0] << 32 | version[1],
        tables + len(body),
        0,
        1,
        0,
        0,
        0,
        0x20000,
        4,
        3,
    )
    at = tables + 80
    directories = [at, len(patches), at + len(patches), len(layout), 0, 0, 0, 0]
    if elrange:
        directories[4:6] = [at + len(patches) + len(layout), len(extra)]
    metadata = head + bytes(1808) + struct.pack("<8I", *directories) + body
    note = struct.pack("<III", 13, len(metadata), 1) + b"sgx_metadata\0" + metadata
    content = elf(segments, [(b".rela.dyn", 4, 0x1800, relocation), (b".note.sgxmeta", 7, 0, note)])
    # The relocations' content is what the code segment has there.
    content = content[:0x1800] + relocation + content[0x1800 + len(relocation) :]

    shift = 0x10000 if elrange else 0
    ledger = Ledger(0x100000 if elrange else 0x20000)
    mapped = bytearray(content)
    mapped[head_at : head_at + 8] = patch
    ledger.page(shift, REG_R, bytes(mapped[:0x44]))
    ledger.page(shift + 0x1000, REG_RWX, bytes(0x40) + bytes(mapped[0x1040:0x2000]))
    ledger.page(shift + 0x2000, REG_RWX, bytes(mapped[0x2000:0x2100]))
    end = 0x3010 + len(data + dynamic)
    ledger.page(shift + 0x3000, REG_RW, bytes(0x10) + bytes(mapped[0x3010:end]))
    ledger.page(shift + 0x4000, REG_RW, b"")
    ledger.page(shift + 0x5000, REG_RW, b"")
    for page in (0x8000, 0x9000):
        ledger.page(shift + page, REG_RW, b"")
    for delta in (0, 0x8000):
        rva = delta + 0x10000
        ledger.page(shift + delta + 0xF000, REG_RW, b"\xcc" * PAGE)
        words = (0, 0, 0x1000 + rva, 0, 2, 0x1050, 0, 0x3000 + rva, 0x3000 + rva, 0xFFF, 0xFFF)
        ledger.page(shift + rva, TCS, struct.pack("<QQQIIQQQQII", *words))
        ledger.page(shift + delta + 0x11000, REG_RW, None)
        ledger.page(shift + delta + 0x12000, REG_RW, None)
        ledger.page(shift + delta + 0x13000, REG_RW, patch)
    return Made(content, ledger.mrenclave)


def with_older_metadata(content: bytes) -> bytes:
    """Return an Intel SDK file that is for loaders of two generations: its metadata, and behind it one of 1.4."""
    note = content.index(b"sgx_metadata\0") - 12
    metadata = note + 12 + len(b"sgx_metadata\0")
    (size,) = struct.unpack_from("<I", content, metadata + 16)
    both = bytearray(2 * content[metadata : metadata + size])
    struct.pack_into("<Q", both, size + 8, 1 << 32 | 4)
    section = struct.pack("<III", 13, len(both), 1) + b"sgx_metadata\0" + both
    changed = bytearray(content + section)
    (headers,), (count,) = (
        struct.unpack_from("<Q", content, 40),
        struct.unpack_from("<H", content, 60),
    )
    for header in range(headers, headers + 64 * count, 64):
        if struct.unpack_from("<Q", content, header + 24) == (note,):
            struct.pack_into("<QQ", changed, header + 24, len(content), len(section))
    return bytes(changed)


def open_enclave_file(*, start: int = 0) -> Made:
    """Make an enclave of Open Enclave: relocations, variables that the loader sets, thread-local storage."""
    strings = b"\0_reloc_rva\0_reloc_size\0_enclave_rva\0_td_from_tcs_offset\0tls\0_tdata_rva\0"
    variables = {
        b"_reloc_rva": 0x2100,
        b"_reloc_size": 0x2108,
        b"_enclave_rva": 0x3F00,  # not in the file, but in memory
        b"_td_from_tcs_offset": 0x2118,
        b"_tdata_rva": 0x2120,
    }
    symbols = bytes(24) + b"".join(
        struct.pack("<IBBHQQ", strings.index(b"\0" + name + b"\0") + 1, 0x11, 0, 1, value, 8)
        for name, value in variables.items()
    )
    symbols += struct.pack("<IBBHQQ", strings.index(b"\0tls\0") + 1, 0x16, 0, 1, 0x30, 8)
    relocations = struct.pack("<QQq", 0x2008, 8, 0x1234) + struct.pack(
        "<QQq", 0x2010, 6 << 32 | 18, 0
    )
    properties = struct.pack("<IIQQQ", 1960, 1, 3, 2, 2)
    flags = 2 if start else 0
    properties += struct.pack("<HHI16s16sQQQ", 7, 8, flags, b"f", b"x", 4, 0, start)
    properties += bytes(48) + bytes(1808) + struct.pack("<Q", 0xECECECEC)
    data = bytearray(b"d" * 0x180)
    segments = [
        (PT_LOAD, R | X, 0, bytes(0x40) + b"code".ljust(0x900 - 0x40, b"x"), 0x900),
        (PT_LOAD, R | W, 0x2000, bytes(data) + properties, 0x1FF0),
    ]
    sections = [
        (b".dynsym", 11, 0, symbols),
        (b".dynstr", 3, 0, strings),
        (b".rela.dyn", 4, 0, relocations),
        (b".oeinfo", 1, 0x2180, properties),
        (b".tdata", 1, 0x2050, b"t" * 0x10),
    ]
    content = elf(segments, sections, entry=0x100)

    size, heap = 0x20000 if not start else 0x40000, 0x5000
    ledger = Ledger(size)
    ledger.page(start, REG_RX, content[:0x900])
    mapped = bytearray(content[0x2000 : 0x2180 + len(properties)].ljust(2 * PAGE, b"\0"))
    info = struct.pack("<6Q", 0x2180, 1960, 0x4000, PAGE, heap, 0x20000)
    mapped[0x180 + 96 : 0x180 + 144] = info
    for name, value in (
        (b"_reloc_rva", 0x4000),
        (b"_reloc_size", PAGE),
        (b"_enclave_rva", 0x3F00),
        (b"_td_from_tcs_offset", 5 * PAGE),
        (b"_tdata_rva", 0x2050),
    ):
        where = variables[name] - 0x2000
        mapped[where : where + 8] = struct.pack("<Q", value)
    ledger.page(start + 0x2000, REG_RW, bytes(mapped[:PAGE]))
    ledger.page(start + 0x3000, REG_RW, bytes(mapped[PAGE:]))
    linked = relocations[:40] + struct.pack("<q", 0x30)
    ledger.page(start + 0x4000, REG_R, linked)
    for page in range(3):
        ledger.page(start + heap + page * PAGE, REG_RW, None)
    at = start + heap + 3 * PAGE
    for _ in range(2):
        at += PAGE
        ledger.page(at, REG_RW, b"\xcc" * PAGE)
        ledger.page(at + PAGE, REG_RW, b"\xcc" * PAGE)
        at += 3 * PAGE
        words = (0, 0, at + PAGE, 0, 2, start + 0x100, 0, at + 5 * PAGE, at + 5 * PAGE)
        ledger.page(at, TCS, struct.pack("<QQQIIQQQQII", *words, 0xFFFFFFFF, 0xFFFFFFFF))
        for page in (1, 2, 4, 5):
            ledger.page(at + page * PAGE, REG_RW, b"")
        at += 6 * PAGE
    return Made(content, ledger.mrenclave)


def sgxs_file() -> Made:
    """Make a canonical stream: whole pages, a page measured in part, one loaded but not measured, a bare one."""
    ledger = Ledger(0x10000)
    ledger.page(0, REG_RX, b"code" * 1024)
    ledger.page(0x1000, REG_RX, b"more" * 1024)
    ledger.page(0x2000, TCS, struct.pack("<QQQII", 0, 0, 0x4000, 0, 1))
    ledger.page(0x4000, REG_RW, None)
    ledger.chunk(0x4100, b"a" * 256)
    ledger.chunk(0x4000, b"b" * 256)
    ledger.page(0x5000, REG_RW, None)
    unmeasured = b"".join(
        struct.pack("<8sQ48x", b"UNMEASRD", 0x5000 + chunk) + b"u" * 256
        for chunk in range(0, PAGE, 256)
    )
    before = len(ledger.stream)
    ledger.page(0x6000, REG_RW, None)
    content = ledger.stream[:before] + unmeasured + ledger.stream[before:]
    return Made(content, ledger.mrenclave)


MAKERS: dict[str, Callable[[], Made]] = {
    "intel-sdk": intel_file,
    "intel-sdk-elrange": lambda: intel_file(version=(13, 3), elrange=0x200000),
    "open-enclave": open_enclave_file,
    "open-enclave-zero-base": lambda: open_enclave_file(start=0x10000),
    "sgxs": sgxs_file,
}
