# SPDX-License-Identifier: Apache-2.0
"""The benchmarks of entering and leaving an enclave, with a trap and without.

Of what takes nanoseconds a run prints the median of its batches; the fastest of the runs counts, as everywhere.
"""

from __future__ import annotations

import os
from functools import partial

from measure import (
    Result,
    enclave,
    fastest,
    output,
    placements,
    printed,
    program,
    result,
    threads_enclave,
    under_run,
)

EPC = ("--epc", "512M")
TURNS = 20_000
TRAPPED_TURNS = 2_000
MOST_THREADS = 8
TRAPPING = "--no-fast-path"
THREADS_ROUNDS = 50
# Intel publishes 8,000 to 12,000 cycles for EENTER, and the same for EEXIT.
HARDWARE = 16_000, 24_000


def median(command: list[str], cpu: int) -> tuple[float, float]:
    """Return nanoseconds and cycles of a turn, as transitions.h prints them."""
    _, nanoseconds, cycles = map(float, output(command, cpu).split())
    return nanoseconds, cycles


def against_model(name: str, what: str, target: float) -> Result:
    cpu = min(os.sched_getaffinity(0))
    program_and_enclave = (program("transitions"), name, *enclave())
    ours = under_run(*program_and_enclave, str(TURNS), options=EPC)
    trapped = under_run(*program_and_enclave, str(TRAPPED_TURNS), options=(*EPC, TRAPPING))
    model = [program("model"), name, str(10 * TURNS)]
    turns = [(median(ours, cpu), median(model, cpu)) for _ in range(6)][1:]
    (nanoseconds, cycles), (bare, bare_cycles) = (
        min(column) for column in zip(*turns, strict=True)
    )
    by_trap, trap_cycles = min(median(trapped, cpu) for _ in range(3))
    pairs = 2 if name == "ocall" else 1
    fewest, most = (pairs * number for number in HARDWARE)
    said = (
        f"{what}, against a bare model of the path in C, the median on one CPU: "
        f"{nanoseconds:,.0f} ns or {cycles:,.0f} cycles against {bare:,.0f} ns or {bare_cycles:,.0f}; "
        f"by traps {by_trap:,.0f} ns or {trap_cycles:,.0f}; published for SGX hardware {fewest:,} to {most:,} cycles"
    )
    return result(name, nanoseconds, bare, "ns", said, target)


def ecall() -> Result:
    return against_model("ecall", "an empty ecall through the vDSO", 2.0)


def ocall() -> Result:
    return against_model("ocall", "an ecall with an empty ocall in it, by the user handler", 2.5)


def ecall_threads() -> Result:
    threads = min(len(os.sched_getaffinity(0)), MOST_THREADS)
    words = (*threads_enclave(threads), str(TURNS), str(threads), str(THREADS_ROUNDS))
    lines = output(under_run(program("transitions"), "threads", *words, options=EPC)).splitlines()
    alone, together = (
        min(column) for column in zip(*(map(float, line.split()) for line in lines), strict=True)
    )
    what = (
        f"an empty ecall of each of {threads} threads at once, on as many TCSs of one enclave and as many CPUs, "
        f"against that of one thread: {threads * 1e9 / together:,.0f} ecalls a second together, "
        f"{1e9 / alone:,.0f} alone"
    )
    return result("ecall-threads", together, alone, "ns", what, 1.2)


def ecall_trapped() -> Result:
    words = (program("transitions"), "ecall", *enclave(), str(TRAPPED_TURNS))
    ecalls = under_run(*words, options=(*EPC, TRAPPING))
    stops = [program("tracer"), str(2 * TRAPPED_TURNS)]

    def all_ecalls(cpu: int | None) -> float:
        return float(output(ecalls, cpu).split()[0])

    costs: dict[str, tuple[float, float]] = {}
    for placement, cpu in placements().items():
        ours, reference = fastest(5, partial(all_ecalls, cpu), partial(printed, stops, cpu))
        costs[placement] = ours / TRAPPED_TURNS / 1e3, reference / TRAPPED_TURNS / 1e3
    worst = max(costs, key=lambda placement: costs[placement][0] / costs[placement][1])
    said = ", ".join(
        f"{ours / reference:.2f} {placement} ({ours:.0f} us against {reference:.0f})"
        for placement, (ours, reference) in costs.items()
    )
    what = f"an empty ecall that traps, against two bare ptrace stops of a C tracer, the worse of {said}"
    return result("ecall-trapped", *costs[worst], "us", what, 2.5)
