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
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import at_rest
import paging
import transitions
from measure import (
    HERE,
    INCLUDE,
    OUT,
    Failed,
    Result,
    Skipped,
    compile_programs,
    enclave,
    fastest,
    output,
    printed,
    program,
    result,
    seconds,
    sign,
    under_run,
)

from softsgx.arch.secinfo import SECINFO_R, SECINFO_REG, SECINFO_W
from softsgx.image.measurement import Measurement

RESULTS = HERE / "results.json"
BLOCK_SIZE = 16 << 20
BUILD_SIZE = 256 << 20


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
        to = str(Path(scratch) / "host.o")
        command = ["gcc", "-O2", f"-I{INCLUDE}", "-c", str(HERE / "host.c"), "-o", to]
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


BENCHMARKS: dict[str, Callable[[], Result]] = {
    "build-measured": build_measured,
    "native-compute": native_compute,
    "bystander-compute": bystander_compute,
    "bystander-syscalls": bystander_syscalls,
    "bystander-compile": bystander_compile,
    "bystander-script": bystander_script,
    "bystander-python": bystander_python,
    "start": start,
    "ecall": transitions.ecall,
    "ocall": transitions.ocall,
    "ecall-threads": transitions.ecall_threads,
    "ecall-trapped": transitions.ecall_trapped,
    "ewb-eldu": paging.ewb_eldu,
    "page-cycle": paging.page_cycle,
    "kill-or-swap": paging.kill_or_swap,
    "reload-on-touch": paging.reload_on_touch,
    "page-cost-growth": paging.page_cost_growth,
    "driver-bytes-per-page": paging.driver_bytes_per_page,
    "measure-16M": at_rest.measure_16m,
    "measure-4G": at_rest.measure_4g,
    "measure-heap": at_rest.measure_heap,
    "measure-memory": at_rest.measure_memory,
    "measure-start": at_rest.measure_start,
}


# --- report ----------------------------------------------------------------------------------


def row(line: Result) -> str:
    def number(value: float | None, digits: int) -> str:
        return "-" if value is None else f"{value:,.{digits}f}"

    return (
        f"{line.name:<22}{number(line.ours, 2):>12}{number(line.reference, 2):>12} {line.unit:<3}"
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
    print(f"{'name':<22}{'ours':>12}{'reference':>12} {'':<3}{'ratio':>8}  note", flush=True)
    results = []
    failed = False
    for name, benchmark in BENCHMARKS.items():
        if chosen in (None, name):
            try:
                results.append(benchmark())
            except Skipped as skipped:
                results.append(Result(name, None, None, "", None, f"skipped: {skipped}"))
            except Failed as failure:
                failed = True
                results.append(Result(name, None, None, "", None, f"not measured: {failure}"))
            print(row(results[-1]), flush=True)
    RESULTS.write_text(json.dumps([line._asdict() for line in results], indent=2) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
