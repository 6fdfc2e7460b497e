# SPDX-License-Identifier: Apache-2.0
"""Measuring enclaves at rest, against hashing what is measured.

The reference is hashlib over the very stream of the measurement, 5,184 bytes for a page, as one buffer that is there
already. Ours begins with opening the file. A reference of gigabytes needs that much memory, and is left out without it.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from measure import OUT, PAGE, Failed, Result, Skipped, fastest, result, seconds, under_run

from softsgx.arch.secinfo import SECINFO_R, SECINFO_REG, SECINFO_W
from softsgx.arch.structures import Tcs
from softsgx.image import elf_tables, formats, stream
from softsgx.image.stream import Fill, Image, PageRun

_MEASURED_PAGE = 64 + 16 * (64 + 256)
_M, _G = 1 << 20, 1 << 30


def _enclave(size: int) -> str:
    """Make an ELF enclave of `size` bytes, all measured: a TCS page, and data that are a hole of the file."""
    path = OUT / f"at-rest-{size >> 20}M.elf"
    tcs = Tcs.blank().replace(ossa=PAGE, nssa=1, fslimit=0xFFF, gslimit=0xFFF)
    header = elf_tables.Ehdr.blank().replace(
        e_ident=b"\x7fELF\x02\x01\x01".ljust(16, b"\0"),
        e_type=elf_tables.ET_EXEC,
        e_machine=elf_tables.EM_X86_64,
        e_phoff=elf_tables.Ehdr.SIZE,
        e_phentsize=elf_tables.Phdr.SIZE,
        e_phnum=2,
    )
    segments = b"".join(
        elf_tables.Phdr.blank()
        .replace(
            p_type=elf_tables.PT_LOAD,
            p_flags=elf_tables.PF_R | elf_tables.PF_W,
            p_offset=PAGE + start,
            p_vaddr=start,
            p_filesz=length,
            p_memsz=length,
        )
        .encode()
        for start, length in ((0, PAGE), (PAGE, size - PAGE))
    )
    with path.open("wb") as out:
        out.write((header.encode() + segments).ljust(PAGE, b"\0") + tcs.encode())
        out.truncate(PAGE + size)
    return str(path)


def _hashing(length: int) -> Callable[[], float]:
    """Return what hashes a buffer of so many bytes and tells how long it took."""
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if available < length + _G:
        raise Skipped(f"the stream has {length >> 20} MiB, {available >> 20} are free")
    buffer = np.ones(length, dtype=np.uint8)

    def hash_all() -> float:
        begin = time.perf_counter()
        hashlib.sha256(buffer).digest()
        return time.perf_counter() - begin

    return hash_all


def _measured(name: str, size: int, rounds: int) -> Result:
    reference = _hashing(size // PAGE * _MEASURED_PAGE)
    path = _enclave(size)

    def measure_file() -> float:
        begin = time.perf_counter()
        (enclave,) = formats.read(path)
        stream.measure(enclave.image)
        return time.perf_counter() - begin

    ours, hashed = fastest(rounds, measure_file, reference)
    Path(path).unlink()
    what = (
        "reading and measuring an ELF enclave, all of it measured, against hashlib over its stream"
    )
    return result(name, ours * 1e3, hashed * 1e3, "ms", what, 1.18)


def measure_16m() -> Result:
    return _measured("measure-16M", 16 * _M, 25)


def measure_4g() -> Result:
    return _measured("measure-4G", 4 * _G, 2)


def measure_heap() -> Result:
    flags = SECINFO_REG | SECINFO_R | SECINFO_W
    code = 1000 * PAGE
    image = Image(
        2 * _G,
        1,
        (
            PageRun(0, code, flags, Fill(0x1234_5678, code), measured=True),
            PageRun(code, _G - code, flags, None, measured=False),
        ),
    )
    reference = _hashing(_G // PAGE * 64 + 1000 * (_MEASURED_PAGE - 64))

    def measure_image() -> float:
        begin = time.perf_counter()
        stream.measure(image)
        return time.perf_counter() - begin

    ours, hashed = fastest(15, measure_image, reference)
    what = "an image of 1 GiB of which 1,000 pages are measured, against hashlib over its stream"
    return result("measure-heap", ours * 1e3, hashed * 1e3, "ms", what, 1.5)


def _peak(path: str) -> float:
    command = [under_run()[0], "measure", path]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as started:
        _, status, used = os.wait4(started.pid, 0)
        started.returncode = os.waitstatus_to_exitcode(status)
    if started.returncode:
        raise Failed(f"{' '.join(command)}: exit status {started.returncode}")
    return used.ru_maxrss / 1024


def measure_memory() -> Result:
    large, small = _enclave(4 * _G), _enclave(16 * _M)
    ours, reference = _peak(large), _peak(small)
    for path in (large, small):
        Path(path).unlink()
    what = "peak memory of softsgx measure of an enclave of 4 GiB, against one of 16 MiB"
    return result("measure-memory", ours, reference, "MiB", what, 1.3)


def measure_start() -> Result:
    path = _enclave(_M)
    command = [under_run()[0], "measure", path]
    ours, reference = fastest(
        15, lambda: seconds(command), lambda: seconds([sys.executable, "-c", "pass"])
    )
    Path(path).unlink()
    what = "softsgx measure of an enclave of 1 MiB, against python3 -c pass by the same interpreter"
    return result("measure-start", ours * 1e3, reference * 1e3, "ms", what, 6)
