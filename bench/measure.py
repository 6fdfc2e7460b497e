# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks have in common: their results, the programs that they run, and the turns they take.

Owns build/bench, where all that is made for them lies.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from softsgx.arch.attributes import ATTRIBUTE_MODE64BIT
from softsgx.arch.secinfo import SECINFO_R, SECINFO_REG, SECINFO_TCS, SECINFO_W, SECINFO_X
from softsgx.image import sigstruct
from softsgx.image.measurement import Measurement

HERE = Path(__file__).resolve().parent
OUT = HERE.parent / "build" / "bench"
# set_backing.h is the tests' too.
INCLUDE = HERE.parent / "tests" / "programs"
PROGRAMS = ("host", "transitions", "model", "tracer", "bystander", "faults")
CFLAGS = (
    "-O2",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wshadow",
    "-Wconversion",
    "-pthread",
    f"-I{INCLUDE}",
)

PAGE = 4096
ENCLAVE_SIZE = 8 * PAGE
# As in loading.h: a TCS, its SSA frames, its data.
PAGES_A_TCS = 4
SECONDS = 600


class Failed(Exception):
    """A benchmark could not be measured; the message says why."""


class Skipped(Exception):
    """A benchmark is too large for this machine; the message says by how much."""


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


def environment() -> dict[str, str]:
    """Return the environment of everything that is run."""
    return dict(os.environ, SOFTSGX_STATE=str(OUT / "state"))


def output(command: Sequence[str], cpu: int | None = None, cwd: str | None = None) -> str:
    """Run `command`, on one CPU if `cpu` is given; return what it printed."""
    if cpu is not None:
        command = ["taskset", "-c", str(cpu), *command]
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env=environment(),
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


def under_run(*command: str, options: Sequence[str] = ("--epc", "512M")) -> list[str]:
    softsgx = shutil.which("softsgx")
    if softsgx is None:
        raise Failed("the command softsgx is not on PATH: run `make bench`")
    return [softsgx, "run", *options, "--", *command]


def placements() -> dict[str, int | None]:
    """Return where a program and what answers its traps may run: the CPU of each placement."""
    return {"on one CPU": min(os.sched_getaffinity(0)), "unpinned": None}


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
    _assemble("enclave", 1)


def _assemble(name: str, threads: int) -> Path:
    """Assemble the enclave with so many TCSs; return the path of the image."""
    object_file, image = OUT / f"{name}.o", OUT / f"{name}.bin"
    count = f"-Wa,--defsym,THREADS={threads}"
    output(["gcc", "-c", count, str(HERE / "enclave.S"), "-o", str(object_file)])
    output(["objcopy", "-O", "binary", "-j", ".text", str(object_file), str(image)])
    return image


def enclave(size: int = ENCLAVE_SIZE) -> tuple[str, str]:
    """Return the paths of the small enclave's image and SIGSTRUCT; loading.h adds it the same way.

    In an enclave of `size` bytes, data pages follow that are not measured.
    """
    name = "enclave" if size == ENCLAVE_SIZE else f"enclave-{size >> 20}M"
    return _signed(OUT / "enclave.bin", name, size, size - ENCLAVE_SIZE)


def threads_enclave(threads: int) -> tuple[str, str]:
    """Return the paths of image and SIGSTRUCT of the same enclave with so many TCSs."""
    image = _assemble("threads", threads)
    size = ENCLAVE_SIZE
    while size < image.stat().st_size:
        size *= 2
    return _signed(image, "threads", size, 0)


def _signed(image: Path, name: str, size: int, unmeasured: int) -> tuple[str, str]:
    pages = image.read_bytes()
    measurement = Measurement()
    measurement.ecreate(1, size)
    code = len(pages) // PAGE // PAGES_A_TCS * PAGE
    for offset in range(0, len(pages), PAGE):
        flags = SECINFO_REG | SECINFO_R | SECINFO_W
        if offset < code:
            flags = SECINFO_TCS
        elif offset == code:
            flags = SECINFO_REG | SECINFO_R | SECINFO_X
        measurement.add_pages(offset, flags, pages[offset : offset + PAGE], measured=True)
    measurement.add_unmeasured(
        ENCLAVE_SIZE, SECINFO_REG | SECINFO_R | SECINFO_W, unmeasured // PAGE
    )
    return str(image), str(sign(measurement.digest(), OUT / f"{name}.sigstruct"))


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
