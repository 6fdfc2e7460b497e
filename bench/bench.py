# SPDX-License-Identifier: Apache-2.0
"""Measure softsgx against what its work costs at least, as ratios taken in one run.

Prints a table and writes bench/results.json: a list of {"name", "ours", "reference", "unit",
"ratio", "note"}. The ratio is the cost of ours over the cost of the reference, less is better. Ours
and the reference take turns, and of each the fastest turn counts: noise only ever adds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from softsgx.arch.attributes import ATTRIBUTE_MODE64BIT
from softsgx.arch.secinfo import PT_VA, SECINFO_R, SECINFO_REG, SECINFO_TCS, SECINFO_W, SECINFO_X
from softsgx.arch.structures import Pageinfo, Secs
from softsgx.cpu import encls, paging
from softsgx.cpu.epc import Epc, PageIndex
from softsgx.cpu.identity import Identity
from softsgx.cpu.memory import HeldMemory
from softsgx.cpu.model import Model
from softsgx.cpu.processor import Processor
from softsgx.image import sigstruct
from softsgx.image.measurement import Measurement

HERE = Path(__file__).resolve().parent
OUT = HERE.parent / "build" / "bench"
RESULTS = HERE / "results.json"
PROGRAMS = ("host", "tracer", "bystander")
CFLAGS = ("-O2", "-Wall", "-Wextra", "-Werror", "-Wshadow", "-Wconversion")

PAGE = 4096
BLOCK_SIZE = 16 << 20
BUILD_SIZE = 256 << 20
ENCLAVE_SIZE = 8 * PAGE
PAGED_PAGES = 256
PAGED_AT_ONCE = 16
SECONDS = 600


class Failed(Exception):
    """A benchmark could not be measured; the message says why."""


class Result(NamedTuple):
    """One row: costs of ours and of the reference in `unit`, None when there is no figure."""

    name: str
    ours: float | None
    reference: float | None
    unit: str
    ratio: float | None
    note: str


def result(
    name: str, ours: float, reference: float, unit: str, what: str, target: float | None
) -> Result:
    ratio = ours / reference
    goal = "no target"
    if target is not None:
        goal = f"target <= {target}: {'met' if ratio <= target else 'MISSED'}"
    return Result(
        name, round(ours, 3), round(reference, 3), unit, round(ratio, 3), f"{goal}; {what}"
    )


# --- run programs ----------------------------------------------------------------------------


def output(command: Sequence[str], cpu: int | None = None) -> str:
    """Run `command`, on one CPU if `cpu` is given; return what it printed."""
    environ = dict(os.environ, SOFTSGX_STATE=str(OUT / "state"))
    if cpu is not None:
        command = ["taskset", "-c", str(cpu), *command]
    try:
        done = subprocess.run(
            command,
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    except FileNotFoundError as missing:
        raise Failed(f"{missing.filename} is missing") from None
    except subprocess.TimeoutExpired:
        raise Failed(f"{command[0]} did not end within {SECONDS} s") from None
    if done.returncode != 0:
        said = " / ".join(done.stderr.strip().splitlines()[-3:])
        raise Failed(f"{' '.join(command)}: exit status {done.returncode}: {said}")
    return done.stdout


def program(name: str) -> str:
    return str(OUT / name)


def seconds(command: Sequence[str]) -> float:
    """Return the wall time of `command`."""
    begin = time.perf_counter()
    output(command)
    return time.perf_counter() - begin


def printed(command: Sequence[str], cpu: int | None = None) -> float:
    """Return the nanoseconds that `command` prints."""
    return float(output(command, cpu))


def under_run(*command: str) -> list[str]:
    softsgx = shutil.which("softsgx")
    if softsgx is None:
        raise Failed("the command softsgx is not on PATH: run `make bench`")
    return [softsgx, "run", "--epc", "512M", "--", *command]


def fastest(
    rounds: int, ours: Callable[[], float], reference: Callable[[], float]
) -> tuple[float, float]:
    """Take turns after one that does not count; return the smallest of ours and of the reference.

    The first turn pays for what is cold: files, byte code, the cache of CPUID sites, memory.
    """
    ours()
    reference()
    turns = [(ours(), reference()) for _ in range(rounds)]
    return min(turn[0] for turn in turns), min(turn[1] for turn in turns)


# --- make what they run on -------------------------------------------------------------------


def compile_programs() -> None:
    """Compile the C programs and the enclave of this folder into build/bench."""
    for tool, package in (("gcc", "gcc"), ("objcopy", "binutils"), ("taskset", "util-linux")):
        if shutil.which(tool) is None:
            raise Failed(f"{tool} is missing: install {package}")
    OUT.mkdir(parents=True, exist_ok=True)
    for name in PROGRAMS:
        output(["gcc", *CFLAGS, str(HERE / f"{name}.c"), "-o", program(name)])
    object_file = str(OUT / "enclave.o")
    output(["gcc", "-c", str(HERE / "enclave.S"), "-o", object_file])
    output(["objcopy", "-O", "binary", "-j", ".text", object_file, str(OUT / "enclave.bin")])


def enclave() -> tuple[str, str]:
    """Return the paths of the small enclave's image and SIGSTRUCT; host.c adds it the same way."""
    image = OUT / "enclave.bin"
    pages = image.read_bytes()
    measurement = Measurement()
    measurement.ecreate(1, ENCLAVE_SIZE)
    for offset in range(0, len(pages), PAGE):
        flags = SECINFO_REG | SECINFO_R | SECINFO_W
        if offset == 0:
            flags = SECINFO_TCS
        elif offset == PAGE:
            flags = SECINFO_REG | SECINFO_R | SECINFO_X
        measurement.add_pages(offset, flags, pages[offset : offset + PAGE], measured=True)
    return str(image), str(sign(measurement.digest(), OUT / "enclave.sigstruct"))


def sign(mrenclave: bytes, path: Path) -> Path:
    """Write a SIGSTRUCT for a 64-bit production enclave, by a key made for the benchmarks."""
    css = sigstruct.unsigned(
        enclavehash=mrenclave,
        date=0x20260101,
        attributes=ATTRIBUTE_MODE64BIT,
        attributemask=0xFFFF_FFFF_FFFF_FFFF,
        xfrm=3,
        xfrmmask=0xFFFF_FFFF_FFFF_FFFF,
    )
    key_path = OUT / "key.pem"
    if not key_path.exists():
        sigstruct.generate_key(str(key_path))
    path.write_bytes(sigstruct.sign(css, sigstruct.load_key(str(key_path))))
    return path


# --- the benchmarks --------------------------------------------------------------------------


def build_measured() -> Result:
    block = random.Random(2).randbytes(BLOCK_SIZE)  # noqa: S311 - any bytes will do
    block_path = OUT / "block.bin"
    block_path.write_bytes(block)
    everything = block * (BUILD_SIZE // BLOCK_SIZE)
    measurement = Measurement()
    measurement.ecreate(1, BUILD_SIZE)
    flags = SECINFO_REG | SECINFO_R | SECINFO_W
    measurement.add_pages(0, flags, everything, measured=True)
    signature = sign(measurement.digest(), OUT / "build.sigstruct")
    command = under_run(program("host"), "build", str(block_path), str(signature))

    def hashlib_call() -> float:
        begin = time.perf_counter_ns()
        hashlib.sha256(everything).digest()
        return time.perf_counter_ns() - begin

    ours, reference = fastest(5, lambda: printed(command), hashlib_call)
    what = (
        "CREATE, 16 measured ADD_PAGES of 16 MiB, INIT (which compares MRENCLAVE), "
        "against one hashlib.sha256 of the same 256 MiB"
    )
    return result("build-measured", ours / 1e6, reference / 1e6, "ms", what, 2.0)


def native_compute() -> Result:
    command = under_run(program("host"), "compute", *enclave(), "100000000")
    turns = [[float(word) for word in output(command).split()] for _ in range(5)]
    inside, outside = (min(column) for column in zip(*turns, strict=True))
    what = "the same loop inside the enclave and outside it; 1.00 within noise, taken as 5 %"
    return result("native-compute", inside / 1e6, outside / 1e6, "ms", what, 1.05)


def bystander_compute() -> Result:
    command = [program("bystander"), "compute", "200000000"]
    ours, reference = fastest(7, lambda: printed(under_run(*command)), lambda: printed(command))
    what = "a program without SGX, under run and without; timed inside, so without the start"
    return result("bystander-compute", ours / 1e6, reference / 1e6, "ms", what, 1.05)


def bystander_syscalls() -> Result:
    command = [program("bystander"), "syscalls", "20000"]
    ours, reference = fastest(5, lambda: printed(under_run(*command)), lambda: printed(command))
    what = "an open and close of /dev/null, of 20,000, under run and without"
    return result("bystander-syscalls", ours / 2e7, reference / 2e7, "us", what, 8)


def bystander_compile() -> Result:
    with tempfile.TemporaryDirectory() as scratch:
        command = ["gcc", "-O2", "-c", str(HERE / "host.c"), "-o", str(Path(scratch) / "host.o")]
        ours, reference = fastest(5, lambda: seconds(under_run(*command)), lambda: seconds(command))
    what = "gcc -c of bench/host.c, under run and without; the start of run is in it"
    return result("bystander-compile", ours * 1e3, reference * 1e3, "ms", what, 1.5)


def bystander_script() -> Result:
    script = "i=0; while [ $i -lt 100 ]; do /bin/true; i=$((i + 1)); done"
    command = ["sh", "-c", script]
    ours, reference = fastest(5, lambda: seconds(under_run(*command)), lambda: seconds(command))
    what = (
        "a shell that starts /bin/true 100 times, under run and without; the start of run is in it"
    )
    return result("bystander-script", ours * 1e3, reference * 1e3, "ms", what, None)


def bystander_python() -> Result:
    code = "import json, email.message, http.client, unittest, asyncio, decimal, sqlite3"
    command = [sys.executable, "-c", code]
    ours, reference = fastest(5, lambda: seconds(under_run(*command)), lambda: seconds(command))
    what = "python3 that imports large packages, under run and without; the start of run is in it"
    return result("bystander-python", ours * 1e3, reference * 1e3, "ms", what, None)


def start() -> Result:
    softsgx = under_run()[0]
    ours, reference = fastest(
        15,
        lambda: seconds([softsgx, "run", "true"]),
        lambda: seconds([sys.executable, "-c", "pass"]),
    )
    what = "softsgx run true, against python3 -c pass by the same interpreter"
    return result("start", ours * 1e3, reference * 1e3, "ms", what, 6)


def ecall_trapped() -> Result:
    count = 2000
    ecalls = under_run(program("host"), "ecall", *enclave(), str(count))
    stops = [program("tracer"), str(2 * count)]
    placements = {"on one CPU": min(os.sched_getaffinity(0)), "unpinned": None}
    costs: dict[str, tuple[float, float]] = {}
    for placement, cpu in placements.items():
        ours, reference = fastest(5, partial(printed, ecalls, cpu), partial(printed, stops, cpu))
        costs[placement] = ours / count / 1e3, reference / count / 1e3
    worst = max(costs, key=lambda placement: costs[placement][0] / costs[placement][1])
    said = ", ".join(
        f"{ours / reference:.2f} {placement} ({ours:.0f} us against {reference:.0f})"
        for placement, (ours, reference) in costs.items()
    )
    what = f"an empty ecall against two bare ptrace stops of a C tracer, the worse of {said}"
    return result("ecall-trapped", *costs[worst], "us", what, 2.5)


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


BENCHMARKS: dict[str, Callable[[], Result]] = {
    "build-measured": build_measured,
    "native-compute": native_compute,
    "bystander-compute": bystander_compute,
    "bystander-syscalls": bystander_syscalls,
    "bystander-compile": bystander_compile,
    "bystander-script": bystander_script,
    "bystander-python": bystander_python,
    "start": start,
    "ecall-trapped": ecall_trapped,
    "ewb-eldu": ewb_eldu,
}


# --- report ----------------------------------------------------------------------------------


def row(line: Result) -> str:
    def number(value: float | None, digits: int) -> str:
        return "-" if value is None else f"{value:,.{digits}f}"

    return (
        f"{line.name:<20}{number(line.ours, 2):>12}{number(line.reference, 2):>12} {line.unit:<3}"
        f"{number(line.ratio, 2):>8}  {line.note}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure softsgx against what its work costs.")
    parser.add_argument("name", nargs="?", choices=BENCHMARKS, help="run this one only")
    chosen = parser.parse_args().name
    try:
        compile_programs()
    except Failed as failed:
        print(f"bench: {failed}", file=sys.stderr)
        return 1
    print(f"{'name':<20}{'ours':>12}{'reference':>12} {'':<3}{'ratio':>8}  note", flush=True)
    results = []
    for name, benchmark in BENCHMARKS.items():
        if chosen in (None, name):
            try:
                results.append(benchmark())
            except Failed as failed:
                results.append(Result(name, None, None, "", None, f"not measured: {failed}"))
            print(row(results[-1]), flush=True)
    RESULTS.write_text(json.dumps([line._asdict() for line in results], indent=2) + "\n")
    return 1 if any(line.ratio is None for line in results) else 0


if __name__ == "__main__":
    sys.exit(main())
