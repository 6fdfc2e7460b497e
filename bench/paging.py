# SPDX-License-Identifier: Apache-2.0
"""The benchmarks of the EPC under pressure: pages that go out and come in again.

A stretch of 64 touches is timed at once, in which as many pages go out: on a busy machine a longer one would be
seldom undisturbed. Of a run the lower quartile of its stretches counts.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from measure import (
    HERE,
    OUT,
    PAGE,
    Failed,
    Result,
    Skipped,
    enclave,
    environment,
    fastest,
    output,
    placements,
    program,
    result,
    under_run,
)

from softsgx.arch.attributes import ATTRIBUTE_MODE64BIT
from softsgx.arch.ioctl import BACKING_KERNEL, BACKING_NONE
from softsgx.arch.secinfo import PT_VA, SECINFO_R, SECINFO_REG, SECINFO_W
from softsgx.arch.structures import Pageinfo, Secs
from softsgx.cpu import encls, paging
from softsgx.cpu.epc import Epc, PageIndex
from softsgx.cpu.identity import Identity
from softsgx.cpu.memory import HeldMemory
from softsgx.cpu.model import Model
from softsgx.cpu.processor import Processor
from softsgx.driver.platform import Platform
from softsgx.driver.state import State

PAGED_PAGES = 256
PAGED_AT_ONCE = 16
# As in host.c and faults.c.
STRETCH = 64
# The walks: all of an enclave, four times the EPC, so that every touch is of an evicted page.
WALKED = 16 << 20
WALK_EPC = "4M"
SMALL = 16 << 20
LARGE = 4 << 30
GROWTH_EPC = "64M"
# What the machine needs for LARGE beside what else runs: its store, and the EPC.
LARGE_NEEDS = 8 << 30
BYTES_A_PAGE = 200


def ewb_eldu() -> Result:
    cpu, memory = (
        Processor(Model(2 * PAGED_PAGES * PAGE), Identity.fresh(), 2 * PAGED_PAGES),
        HeldMemory(),
    )
    secs, va, first = (PageIndex(number) for number in (0, 1, 2))
    base, size = 1 << 40, PAGED_PAGES * PAGE
    contents = random.Random(3).randbytes(size)  # noqa: S311 - any bytes will do
    fields = {
        "size": size,
        "baseaddr": base,
        "ssaframesize": 1,
        "attributes": ATTRIBUTE_MODE64BIT,
        "xfrm": 3,
    }
    pageinfo = Pageinfo(
        linaddr=0,
        srcpge=memory.place(Secs.blank().replace(**fields).encode()),
        secinfo=memory.place(bytes(64)),
        secs=0,
    )
    encls.ecreate(cpu, memory, memory.place(pageinfo.encode()), Epc.address(secs))
    encls.epa(cpu, PT_VA, Epc.address(va))
    pages = range(first, first + PAGED_PAGES)
    flags = SECINFO_REG | SECINFO_R | SECINFO_W
    encls.eadd_pages(cpu, memory, secs, pages, base, memory.place(contents), flags, measure=False)
    batches = [pages[at : at + PAGED_AT_ONCE] for at in range(0, PAGED_PAGES, PAGED_AT_ONCE)]

    def leaves() -> float:
        spent = 0
        for batch in batches:
            for page in batch:
                paging.eblock(cpu, Epc.address(PageIndex(page)))
            paging.etrack(cpu, Epc.address(secs))
            begin = time.perf_counter_ns()
            code, store = paging.ewb_pages(cpu, batch, va, range(PAGED_AT_ONCE))
            slot = 0
            for page, (linaddr, sealed, pcmd) in zip(batch, store, strict=True):
                code = code or paging.eldu_page(cpu, page, va, slot, secs, linaddr, sealed, pcmd)
                slot += 8
            spent += time.perf_counter_ns() - begin
            assert not code
        return spent

    cipher, header = AESGCM(os.urandom(16)), os.urandom(128)
    plain = [contents[at : at + PAGE] for at in range(0, size, PAGE)]
    ivs = [number.to_bytes(12, "little") for number in range(PAGED_PAGES)]

    def bare() -> float:
        spent = 0
        encrypt, decrypt = cipher.encrypt, cipher.decrypt
        for at in range(0, PAGED_PAGES, PAGED_AT_ONCE):
            pairs = list(
                zip(ivs[at : at + PAGED_AT_ONCE], plain[at : at + PAGED_AT_ONCE], strict=True)
            )
            begin = time.perf_counter_ns()
            sealed = [(iv, encrypt(iv, page, header)) for iv, page in pairs]
            for iv, page in sealed:
                decrypt(iv, page, header)
            spent += time.perf_counter_ns() - begin
        return spent

    # A turn takes 2 ms: on a busy machine few are undisturbed.
    ours, reference = fastest(200, leaves, bare)
    assert cpu.enclaves[secs].elrange.read(base, size) == contents
    what = (
        "EWB and ELDU of a page, in batches of 16, with all checks and the store in memory, "
        "against AES-GCM encrypt and decrypt of the same bytes and as long a header by cryptography"
    )
    return result(
        "ewb-eldu", ours / PAGED_PAGES / 1e3, reference / PAGED_PAGES / 1e3, "us", what, 3.0
    )


def room(mode: int) -> float:
    """Return the processor's nanoseconds to make room for an enclave of 16 MiB where another one is."""
    secs = Secs.blank().replace(size=SMALL, ssaframesize=1, attributes=ATTRIBUTE_MODE64BIT, xfrm=3)
    with (
        tempfile.TemporaryDirectory() as state,
        Platform(epc=SMALL + (4 << 20), state=State(Path(state) / "state")) as platform,
    ):
        victim, other = platform.open_enclave(), platform.open_enclave()
        victim.create(secs.replace(baseaddr=1 << 40).encode())
        victim.set_backing(mode)
        flags = SECINFO_REG | SECINFO_R | SECINFO_W
        victim.add_pages(0, bytes(SMALL), flags, measure=False)
        other.create(secs.replace(baseaddr=1 << 41).encode())
        begin = time.process_time_ns()
        assert platform.driver.reclaimer.make_room(SMALL // PAGE, other.file.encl)
        return time.process_time_ns() - begin


def kill_or_swap() -> Result:
    ours, reference = fastest(5, partial(room, BACKING_NONE), partial(room, BACKING_KERNEL))
    what = (
        "room for 4096 pages in an EPC of 20 MiB: an enclave of 16 MiB killed against swapped out"
    )
    return result("kill-or-swap", ours / 1e6, reference / 1e6, "ms", what, None)


# --- real programs -------------------------------------------------------------------------------


def typical(costs: Iterable[float | str]) -> float:
    """Return the lower quartile of the costs, in nanoseconds."""
    return statistics.quantiles(map(float, costs), n=4)[0]


def walk(
    store: str, *options: str, cpu: int | None = None, cwd: str | None = None, order: str = ""
) -> float:
    """Return the nanoseconds of a touch that brings a page in and, in its turn, takes one out.

    In order, or with ``order`` "back" so that nothing can be read ahead.
    """
    stats = OUT / "walk.json"
    words = ("--epc", WALK_EPC, "--stats-json", str(stats), *options)
    image, signature = enclave(WALKED)
    command = under_run(
        program("host"), "walk", image, signature, str(WALKED), store, order, options=words
    )
    stretches = output(command, cpu, cwd).split()
    # Were a page still there when it was touched, that touch would cost nothing.
    touches = 2 * STRETCH * len(stretches)
    reloads = json.loads(stats.read_text())["reloads"]
    if reloads < 0.95 * touches:
        raise Failed(f"{reloads} pages were brought in by {touches} touches")
    return typical(stretches)


def answered(command: list[str], cpu: int | None) -> float:
    """Return the nanoseconds of a touch that another process answers."""
    return typical(output(command, cpu).split())


def reload_on_touch() -> Result:
    pages = str(WALKED // PAGE)
    answer = [sys.executable, str(HERE / "answer.py"), program("faults"), pages]
    costs: dict[str, tuple[float, float, float]] = {}
    for placement, cpu in placements().items():
        ours, reference = fastest(
            5, partial(walk, "kernel", cpu=cpu), partial(answered, answer, cpu)
        )
        alone = min(walk("kernel", cpu=cpu, order="back") for _ in range(3))
        costs[placement] = ours, reference, alone
    worst = max(costs, key=lambda placement: costs[placement][0] / costs[placement][1])
    said = ", ".join(
        f"{ours / reference:.2f} {placement} ({ours / 1e3:.0f} us against {reference / 1e3:.0f}; "
        f"{alone / 1e3:.0f} us, {alone / reference:.2f}, where each page comes alone)"
        for placement, (ours, reference, alone) in costs.items()
    )
    what = (
        "a touch inside of a page that is out, in the order of the pages and with the EPC full, against the "
        f"same fault answered by UFFDIO_COPY in a Python process, the worse of {said}"
    )
    ours, reference, _ = costs[worst]
    return result("reload-on-touch", ours / 1e3, reference / 1e3, "us", what, 2.5)


def page_cycle() -> Result:
    with tempfile.TemporaryDirectory(dir=OUT) as scratch:
        stores = {
            "kernel": partial(walk, "kernel"),
            "a run's file": partial(walk, "kernel", "--backing", f"file:{scratch}/store"),
            "one buffer": partial(walk, "one"),
            "two buffers": partial(walk, "two"),
            "one file": partial(walk, "file", cwd=scratch),
            "two files": partial(walk, "files", cwd=scratch),
        }
        rounds = [{name: cycle() for name, cycle in stores.items()} for _ in range(3)]
    costs = {name: min(turn[name] for turn in rounds) / 1e3 for name in stores}
    what = (
        "a page in and a page out, from the touch to the next instruction, with the kernel's store "
        "against two buffers of the program; "
        + ", ".join(f"{name} {cost:.0f} us" for name, cost in costs.items())
    )
    return result("page-cycle", costs["kernel"], costs["two buffers"], "us", what, None)


def large_or_skip() -> None:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if memory < LARGE_NEEDS:
        raise Skipped(f"{memory >> 20} MiB of memory, {LARGE_NEEDS >> 20} are needed")


def page_cost_growth() -> Result:
    large_or_skip()
    image, large_signature = enclave(LARGE)
    _, small_signature = enclave(SMALL)
    host = (program("host"), "grow", image, large_signature, str(LARGE), small_signature)
    lines = output(under_run(*host, options=("--epc", GROWTH_EPC))).splitlines()
    added, small_added, touched, small_touched = (typical(line.split()) / 1e3 for line in lines)
    what = (
        f"a page of a 4 GiB enclave against one of 16 MiB, by turns in one run with {GROWTH_EPC} of EPC, "
        f"the worse of {added / small_added:.2f} added ({added:.1f} us against {small_added:.1f}), "
        f"{touched / small_touched:.2f} out and in ({touched:.0f} us against {small_touched:.0f}); lower quartiles"
    )
    ours, reference = max((added, small_added), (touched, small_touched), key=lambda c: c[0] / c[1])
    return result("page-cost-growth", ours, reference, "us", what, 1.2)


def supervisor_pss(size: int) -> int:
    """Return the bytes of the supervisor while an enclave of `size` is held, by far most of the large one out.

    EPC and store are files that it does not map. The large one has 8 MiB of VA pages alone.
    """
    image, signature = enclave(size)
    command = under_run(
        program("host"), "hold", image, signature, str(size), options=("--epc", GROWTH_EPC)
    )
    with subprocess.Popen(
        command, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as run:
        assert run.stdout is not None
        if run.stdout.readline() != b"held\n":
            raise Failed(f"{' '.join(command)}: it does not hold its enclave")
        lines = Path(f"/proc/{run.pid}/smaps_rollup").read_text().splitlines()
        run.communicate()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))


def driver_bytes_per_page() -> Result:
    large_or_skip()
    small, large = supervisor_pss(SMALL), supervisor_pss(LARGE)
    what = (
        f"the supervisor's memory with a 4 GiB enclave ({large >> 20} MiB) beyond that with one of "
        f"16 MiB ({small >> 20} MiB), by page, against {BYTES_A_PAGE} bytes"
    )
    pages = (LARGE - SMALL) // PAGE
    return result("driver-bytes-per-page", (large - small) / pages, BYTES_A_PAGE, "B", what, 1.0)
