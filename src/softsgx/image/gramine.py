# SPDX-License-Identifier: Apache-2.0
"""Enclaves of Gramine: a manifest, and Gramine's own libpal.so of the installation that runs it.

Gramine loads its library and the manifest; what the manifest names comes later, from inside, and is trusted by the
hashes that the manifest holds. From the top of the enclave downwards:

    manifest, SSA frames, TCS pages, thread data, stacks, signal stacks, libpal.so, free memory

in which order they are also added; all are measured but the free memory, which with EDMM is not added. Neither file
says of which version it is: the thread data are laid out as Gramine 1.9 does it, and only the SIGSTRUCT tells
whether that was right.

Sources: gramineproject/gramine 1.9, python/graminelibos/sgx_sign.py, pal/src/host/linux-sgx/pal_tcb.h.
"""

from __future__ import annotations

import tomllib
from dataclasses import replace
from typing import Any

from softsgx.arch.layout import U64, Record, at, layout
from softsgx.arch.secinfo import (
    PAGE_SIZE,
    SECINFO_R,
    SECINFO_REG,
    SECINFO_RWX,
    SECINFO_TCS,
    SECINFO_W,
    SECINFO_X,
)
from softsgx.arch.structures import Gprsgx, Tcs
from softsgx.errors import SoftsgxError
from softsgx.image import elf_tables
from softsgx.image.elf_tables import Elf
from softsgx.image.enclave import Enclave
from softsgx.image.file import File
from softsgx.image.stream import (
    MAXIMUM_SIZE,
    Computed,
    Content,
    Image,
    PageRun,
    page_up,
    segment_runs,
)

FORMAT = "gramine"

_SSA_FRAME_PAGES, _SSA_FRAMES = 4, 2
_STACK, _SIGNAL_STACK = 0x4_0000, 0x1_0000
_HEAP_MIN = 0x1_0000
_CANARY = 0xBADBADBADBAD
_UNITS = {"K": 10, "M": 20, "G": 30}
_MOST_THREADS = 1 << 14
_RW = SECINFO_REG | SECINFO_R | SECINFO_W


@layout(size=4096)
class EnclaveTcb(Record):
    """struct pal_enclave_tcb of Gramine 1.9: the page where GS points inside."""

    self_address: int = at(0, U64)
    stack_protector_canary: int = at(8, U64)
    enclave_size: int = at(0x110, U64)
    tcs_offset: int = at(0x118, U64)
    initial_stack_addr: int = at(0x120, U64)
    sig_stack_low: int = at(0x130, U64)
    sig_stack_high: int = at(0x138, U64)
    ssa: int = at(0x148, U64)
    gpr: int = at(0x150, U64)
    manifest_size: int = at(0x1A0, U64)
    heap_min: int = at(0x1A8, U64)
    heap_max: int = at(0x1B0, U64)


def read(file: File, libpal: str | None) -> tuple[Enclave, ...]:
    """Read the enclave of a manifest, the finished one (.manifest.sgx)."""
    content = file.read(0, file.size, "manifest")
    sgx = _sgx(file, content)
    size, threads = _size(file, sgx), sgx.get("max_threads")
    if not isinstance(threads, int) or not 1 <= threads <= _MOST_THREADS:
        file.damaged(
            0, f"sgx.max_threads is {threads!r:.40}, not a number from 1 to {_MOST_THREADS}"
        )
    if libpal is None:
        raise SoftsgxError(
            f"{file.name}: a manifest is measured with Gramine's own library: give it by --libpal "
            "(lib/x86_64-linux-gnu/gramine/sgx/libpal.so of its installation)"
        )
    pal = Elf(File.open(libpal))
    manifest = content + b"\0"
    lengths = {
        "manifest": page_up(len(manifest)),
        "SSA": threads * _SSA_FRAME_PAGES * _SSA_FRAMES * PAGE_SIZE,
        "TCS": threads * PAGE_SIZE,
        "thread data": threads * PAGE_SIZE,
        "stacks": threads * _STACK,
        "signal stacks": threads * _SIGNAL_STACK,
        "libpal": page_up(max(s.header.p_vaddr + s.header.p_memsz for s in pal.load_segments())),
    }
    if sum(lengths.values()) + _HEAP_MIN > size:
        file.damaged(
            0, f"sgx.enclave_size {size:#x} does not hold {sum(lengths.values()):#x} bytes"
        )
    places, top = {}, size
    for name, length in lengths.items():
        top -= length
        places[name] = top

    def run(name: str, flags: int, data: Content | None = None) -> PageRun:
        return PageRun(places[name], lengths[name], flags, data, measured=True, name=name)

    tcs, tcbs = _threads(places, threads, size, len(manifest), pal.header.e_entry)
    runs = [
        run(
            "manifest",
            SECINFO_REG | SECINFO_R,
            memoryview(manifest.ljust(lengths["manifest"], b"\0")),
        ),
        run("SSA", _RW),
        run("TCS", SECINFO_TCS, tcs),
        run("thread data", _RW, tcbs),
        # Each is an area of its own, and the first thread has the highest.
        *_areas("stack", places["stacks"], _STACK, threads),
        *_areas("signal stack", places["signal stacks"], _SIGNAL_STACK, threads),
    ]
    for segment in pal.load_segments():
        header = segment.header
        flags = SECINFO_REG
        for bit, permission in (
            (elf_tables.PF_R, SECINFO_R),
            (elf_tables.PF_W, SECINFO_W),
            (elf_tables.PF_X, SECINFO_X),
        ):
            flags |= permission if header.p_flags & bit else 0
        part = pal.file.part(header.p_offset, header.p_filesz)
        runs += [
            replace(one, offset=one.offset + places["libpal"])
            for one in segment_runs(part, header.p_vaddr, header.p_memsz, flags)
        ]
    if not sgx.get("edmm_enable", False):
        free = places["libpal"] - _HEAP_MIN
        if free:
            flags = SECINFO_REG | SECINFO_RWX
            runs.append(PageRun(_HEAP_MIN, free, flags, None, measured=False, name="free memory"))
    fields = {
        "enclave_size": size,
        "max_threads": threads,
        "edmm_enable": "yes" if sgx.get("edmm_enable", False) else "no",
        "libpal": libpal,
    }
    image = Image(size, _SSA_FRAME_PAGES, tuple(runs))
    return (Enclave(FORMAT, image, "laid out as by Gramine 1.9", fields=fields),)


def _sgx(file: File, content: bytes) -> dict[str, Any]:
    try:
        manifest = tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:
        file.damaged(0, f"not a Gramine manifest: {error}")
    sgx = manifest.get("sgx")
    if not isinstance(sgx, dict):
        file.damaged(0, "not a Gramine manifest: it has no table sgx")
    return sgx


def _size(file: File, sgx: dict[str, Any]) -> int:
    text = str(sgx.get("enclave_size", ""))
    unit = _UNITS.get(text[-1:], 0)
    try:
        size = int(text[:-1] if unit else text, 0) << unit
    except ValueError:
        file.damaged(0, f"sgx.enclave_size is {text!r:.40}")
    if size.bit_count() != 1 or not 2 * PAGE_SIZE <= size <= MAXIMUM_SIZE:
        file.damaged(
            0, f"sgx.enclave_size is {text:.40}, not a power of two that a processor takes"
        )
    return size


def _areas(name: str, lowest: int, length: int, threads: int) -> list[PageRun]:
    return [
        PageRun(
            lowest + (threads - number) * length,
            length,
            _RW,
            None,
            measured=True,
            name=f"{name}, thread {number}",
        )
        for number in range(1, threads + 1)
    ]


def _threads(
    places: dict[str, int], threads: int, size: int, manifest: int, entry: int
) -> tuple[Computed, Computed]:
    """Return the TCS pages and the thread data."""
    frame = _SSA_FRAME_PAGES * PAGE_SIZE

    def ssa(number: int) -> int:
        return places["SSA"] + number * _SSA_FRAMES * frame

    def tcb_at(number: int) -> int:
        return places["thread data"] + number * PAGE_SIZE

    def tcs(number: int) -> bytes:
        return (
            Tcs.blank()
            .replace(
                ossa=ssa(number),
                nssa=_SSA_FRAMES,
                oentry=places["libpal"] + entry,
                ogsbasgx=tcb_at(number),
                fslimit=0xFFF,
                gslimit=0xFFF,
            )
            .encode()
        )

    def tcb(number: int) -> bytes:
        stack = places["stacks"] + (threads - 1 - number) * _STACK
        signal_stack = places["signal stacks"] + (threads - 1 - number) * _SIGNAL_STACK
        return EnclaveTcb(
            self_address=tcb_at(number),
            stack_protector_canary=_CANARY,
            enclave_size=size,
            tcs_offset=places["TCS"] + number * PAGE_SIZE,
            initial_stack_addr=stack + _STACK,
            sig_stack_low=signal_stack,
            sig_stack_high=signal_stack + _SIGNAL_STACK,
            ssa=ssa(number),
            gpr=ssa(number) + frame - Gprsgx.SIZE,
            manifest_size=manifest,
            heap_min=_HEAP_MIN,
            heap_max=places["libpal"],
        ).encode()

    return Computed(threads, tcs), Computed(threads, tcb)
