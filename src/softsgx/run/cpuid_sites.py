# SPDX-License-Identifier: Apache-2.0
"""Where a program file executes CPUID: the bytes 0F A2 at proven instruction boundaries.

User-mode CPUID cannot be trapped on many hosts; there the supervisor replaces the instruction, by the
equally long UD2 or by a jump, where a file is mapped executable. Patching two bytes that are no CPUID
would break the program, so a site is given only when it is proven: control flow that starts where
the file itself says a function starts (an FDE found through .eh_frame_hdr, a function symbol, the entry
point) reaches it, and no reached instruction overlaps it. Everything else is left alone; what is not
plainly the operand of another instruction is reported as unproven.

Owns the memory of what was found, by file and by content; `site_cache` owns the disk. The file is read,
never mapped: a program may truncate its file while it is looked at, and a mapping would
then kill the supervisor. Nothing in the file is trusted: sizes and work are bounded.

Sources: System V ABI (ELF, AMD64 supplement), LSB 5.0 "Exception Frames", `SDM` vol. 2 CPUID.
"""

import os
import time
from stat import S_ISREG
from struct import Struct, error, unpack_from

from softsgx.run import site_cache
from softsgx.run.gp_instructions import CPUID

_EHDR = Struct("<16sHHIQQQIHHHHHH")
_PHDR = Struct("<IIQQQQQQ")
_PT_LOAD = 1
_PT_NOTE = 4
_PF_X = 1
_NT_GNU_BUILD_ID = 3
_EM_X86_64 = 62
_ELF64_LSB = b"\x7fELF\x02\x01"

# The small code model ends at 2 GiB; a longer "text" is a hostile or damaged file.
_TEXT_LIMIT = 2 << 30
# fs/binfmt_elf.c, load_elf_phdrs: 64 KiB of program headers.
_SEGMENTS_LIMIT = 65536 // _PHDR.size
_CHUNK = 1 << 20
_HITS_LIMIT = 1 << 16
_REMEMBERED_LIMIT = 4096
# Two periods of the slowest clock that stamps files (CONFIG_HZ=100).
_TICK_NS = 20_000_000
# Searching less than this again is cheaper than an entry on disk.
_WORTH_KEEPING = 1 << 16


class Sites:
    """The CPUID byte pairs of one file, as file offsets in rising order.

    `detours` tells for each of the proven `offsets` how it can be answered in the program
    (cpuid_detours.encode), or 0.
    """

    __slots__ = ("detours", "offsets", "unproven")

    def __init__(
        self, offsets: tuple[int, ...], unproven: tuple[int, ...], detours: tuple[int, ...]
    ) -> None:
        self.offsets = offsets
        self.unproven = unproven
        self.detours = detours

    def __repr__(self) -> str:
        return f"Sites(offsets={self.offsets}, unproven={self.unproven})"


NO_SITES = Sites((), (), ())
_remembered: dict[tuple[int, int, int, int, int], Sites] = {}


def cpuid_sites(fd: int) -> Sites:
    """Find the CPUID instructions of the file behind a readable descriptor.

    `offsets` are proven at the time of the call; `unproven` are byte pairs that could be CPUID or not.
    Whoever patches compares the two bytes once more: the file may have changed since.
    A file that is no x86-64 ELF, or a damaged one, has no sites. Raises OSError from reading only.
    """
    status = os.fstat(fd)
    if not S_ISREG(status.st_mode):
        return NO_SITES
    # ctime, because a program may set mtime back.
    stamp = (
        status.st_dev,
        status.st_ino,
        status.st_mtime_ns,
        status.st_ctime_ns,
        status.st_size,
    )
    sites = _remembered.get(stamp)
    if sites is None:
        sites = _look_up(fd, status.st_size)
        if len(_remembered) >= _REMEMBERED_LIMIT:
            _remembered.clear()
        # What is written within a tick of a look at it may have the same time stamp afterwards.
        if abs(time.time_ns() - status.st_ctime_ns) > _TICK_NS:
            _remembered[stamp] = sites
    return sites


class Elf:
    """The headers of an x86-64 ELF file; reading is by offset and by virtual address."""

    __slots__ = (
        "build_id",
        "entry",
        "fd",
        "headers",
        "segments",
        "shnum",
        "shoff",
        "shstrndx",
        "size",
    )

    def __init__(self, fd: int, size: int, page: bytes) -> None:
        self.fd = fd
        self.size = size
        header = _EHDR.unpack_from(page)
        (
            ident,
            _,
            machine,
            _,
            self.entry,
            phoff,
            self.shoff,
            _,
            _,
            phentsize,
            phnum,
            _,
            self.shnum,
            self.shstrndx,
        ) = header
        if not ident.startswith(_ELF64_LSB) or machine != _EM_X86_64 or phentsize != _PHDR.size:
            raise error("not an x86-64 ELF file")
        if phnum > _SEGMENTS_LIMIT:
            raise error("more program headers than the kernel takes")
        table = page[phoff : phoff + phnum * _PHDR.size]
        if len(table) < phnum * _PHDR.size:
            table = self.read(phoff, phnum * _PHDR.size)
        self.segments = tuple(_PHDR.iter_unpack(table))
        self.headers = size.to_bytes(8, "little") + page[: _EHDR.size] + table
        self.build_id = b""
        for kind, _, offset, _, _, length, _, align in self.segments:
            if kind == _PT_NOTE and length <= _CHUNK:
                notes = page[offset : offset + length]
                if len(notes) < length:
                    notes = self.read(offset, length)
                self.build_id = self.build_id or _build_id(notes, 8 if align == 8 else 4)

    def read(self, offset: int, length: int) -> bytes:
        """Read at most a length of the file; less where the file ends."""
        length = min(length, self.size - offset)
        if length <= 0 or offset < 0:
            return b""
        return os.pread(self.fd, length, offset)

    def text(self) -> list[tuple[int, int]]:
        """Give the file ranges of the executable segments, (start, end), merged and in rising order."""
        ranges: list[tuple[int, int]] = []
        for kind, flags, offset, _, _, length, _, _ in sorted(self.segments, key=_by_offset):
            end = min(offset + length, self.size)
            if kind != _PT_LOAD or not flags & _PF_X or offset >= end:
                continue
            if ranges and offset <= ranges[-1][1]:
                ranges[-1] = (ranges[-1][0], max(end, ranges[-1][1]))
            else:
                ranges.append((offset, end))
        return ranges

    def address(self, offset: int) -> tuple[int, int] | None:
        """Give the address that an executable byte of the file has, and where its segment ends."""
        for kind, flags, start, address, _, length, _, _ in self.segments:
            if kind == _PT_LOAD and flags & _PF_X and start <= offset < start + length:
                return address + offset - start, address + length
        return None

    def executable(self, address: int) -> bool:
        """Tell whether this address is one of the text."""
        return any(
            kind == _PT_LOAD and flags & _PF_X and start <= address < start + length
            for kind, flags, _, start, _, length, _, _ in self.segments
        )

    def at(self, address: int, length: int) -> bytes:
        """Read the file where a segment maps this address; less where the segment ends."""
        for kind, _, offset, start, _, filesz, _, _ in self.segments:
            if kind == _PT_LOAD and start <= address < start + filesz:
                return self.read(offset + address - start, min(length, start + filesz - address))
        return b""


def _by_offset(segment: tuple[int, ...]) -> int:
    return segment[2]


def _build_id(notes: bytes, align: int) -> bytes:
    at = 0
    while at + 12 <= len(notes):
        namesz, descsz, kind = unpack_from("<III", notes, at)
        name = at + 12
        desc = (name + namesz + align - 1) & -align
        if kind == _NT_GNU_BUILD_ID and notes[name : name + namesz] == b"GNU\0":
            found = notes[desc : desc + descsz]
            # Shorter ones are chosen by hand, and one longer than SHA-512 is no digest at all.
            return found if 8 <= descsz <= 64 and len(found) == descsz else b""
        at = (desc + descsz + align - 1) & -align
    return b""


def _look_up(fd: int, size: int) -> Sites:
    try:
        elf = Elf(fd, size, os.pread(fd, 4096, 0))
    except error:
        return NO_SITES
    key = "build-id-" + elf.build_id.hex() if elf.build_id else ""
    if key and (sites := _load(elf, key)) is not None:
        return sites
    text = elf.text()
    hits = _search(elf, text)
    if hits and not key:
        key = "sha256-" + _digest(elf, text)
        if (sites := _load(elf, key)) is not None:
            return sites
    found = _prove(elf, hits) if 0 < len(hits) <= _HITS_LIMIT else ((), tuple(hits), ())
    if key and (hits or size >= _WORTH_KEEPING):
        site_cache.store(key, elf.headers, found)
    return Sites(*found)


def _load(elf: Elf, key: str) -> Sites | None:
    found = site_cache.load(key, elf.headers)
    # A build id survives an edit of the text; a site that is gone tells.
    if found is None or any(elf.read(offset, 2) != CPUID for offset in found[0]):
        return None
    return Sites(*found)


# The text in steps, each with one byte of the next for a pair that lies across.
def _steps(text: list[tuple[int, int]]) -> list[tuple[int, int]]:
    steps = []
    left = _TEXT_LIMIT
    for start, end in text:
        stop = min(end, start + left)
        steps += [(at, min(_CHUNK + 1, end - at)) for at in range(start, stop, _CHUNK)]
        left -= stop - start
    return steps


def _search(elf: Elf, text: list[tuple[int, int]]) -> list[int]:
    hits: list[int] = []
    for at, length in _steps(text):
        chunk = elf.read(at, length)
        found = chunk.find(CPUID)
        while found >= 0:
            hits.append(at + found)
            found = chunk.find(CPUID, found + 2)
        if len(hits) > _HITS_LIMIT:
            break
    return hits


def _digest(elf: Elf, text: list[tuple[int, int]]) -> str:
    from hashlib import sha256  # noqa: PLC0415 (only files without a build id need it)

    digest = sha256()
    for at, length in _steps(text):
        digest.update(elf.read(at, length))
    return digest.hexdigest()


def _prove(elf: Elf, hits: list[int]) -> site_cache.Found:
    from softsgx.run.cpuid_proof import Proof  # noqa: PLC0415 (the decoder costs 20 ms)

    proof = Proof(elf)
    # What takes a tenth of a second to find is worth it where it can be kept.
    kept = site_cache.usable()
    proven, detours, unproven = [], [], []
    for offset in hits:
        verdict = proof.covers(offset)
        if verdict:
            proven.append(offset)
            detours.append(proof.detour(offset) if kept else 0)
        elif verdict is None:
            unproven.append(offset)
    return tuple(proven), tuple(unproven), tuple(detours)
