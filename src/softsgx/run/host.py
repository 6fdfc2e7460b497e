# SPDX-License-Identifier: Apache-2.0
"""Whether a run can work on this host: what is asked at every start, and the list of all probes.

Owns nothing. It is imported at every start, so what is tried by system calls is in probes.py.
"""

import os

from softsgx.errors import SoftsgxError

# Linux 5.19 write-protects shared memory by userfaultfd.
KERNEL_FLOOR = (5, 19)

ESSENTIAL = "essential"  # `softsgx run` cannot work without it
USEFUL = "useful"  # something is slower, or a feature of enclaves is missing
INFORMATION = "information"


class Probe:
    """One thing that was tried: whether it is there, what for, and what to do when it is not.

    `need` is ESSENTIAL, USEFUL or INFORMATION; `value` says in a few words what was found.
    """

    __slots__ = ("fix", "name", "need", "ok", "purpose", "value")

    def __init__(self, name: str, need: str, ok: bool, value: str, purpose: str, fix: str) -> None:
        self.name = name
        self.need = need
        self.ok = ok
        self.value = value
        self.purpose = purpose
        self.fix = fix

    def __repr__(self) -> str:
        return f"Probe({self.name!r}, {self.need!r}, ok={self.ok}, value={self.value!r})"


def forbidden(what: str, why: str | None) -> SoftsgxError:
    """Refuse a host that lacks what a run has just asked for."""
    return SoftsgxError(f"this host forbids {what} ({why}): `softsgx info` tells the fix")


def require_host() -> None:
    """Refuse a host on which no run can work, by what costs nothing to ask.

    Raises SoftsgxError. What is costly to find out shows when the run first needs it.
    """
    for probe in (architecture(), kernel(), procfs()):
        if not probe.ok:
            raise SoftsgxError(f"this host has {probe.name} {probe.value}: {probe.fix}")


def probe_host() -> list[Probe]:
    """Try everything that a run may need; takes some milliseconds and leaves nothing behind."""
    from softsgx.run import probes  # noqa: PLC0415 (a run has no need)

    return [
        architecture(),
        kernel(),
        procfs(),
        probes.ptrace(),
        probes.process_vm(),
        *probes.descriptors(),
        *probes.seccomp(),
        *probes.userfaultfd(),
        probes.executable_memfd(),
        probes.xcr0(),
        probes.fsgsbase(),
        probes.cpuid_faulting(),
        probes.syscall_user_dispatch(),
        probes.protection_keys(),
        probes.mmap_min_addr(),
        probes.max_map_count(),
        probes.host_sgx(),
    ]


def architecture() -> Probe:
    """Tell the machine: enclave code runs natively, so it has to be x86-64."""
    uname = os.uname()
    return Probe(
        "architecture",
        ESSENTIAL,
        uname.sysname == "Linux" and uname.machine == "x86_64",
        f"{uname.sysname} {uname.machine}",
        "enclave code runs natively",
        "use an x86-64 machine with Linux, and a 64-bit Python on it",
    )


def kernel() -> Probe:
    """Tell the kernel's release."""
    release = os.uname().release
    return Probe(
        "kernel",
        ESSENTIAL,
        _release(release) >= KERNEL_FLOOR,
        release,
        "userfaultfd write-protection of shared memory",
        f"use Linux {KERNEL_FLOOR[0]}.{KERNEL_FLOOR[1]} or newer",
    )


def procfs() -> Probe:
    """Tell whether /proc is that of this process's PID namespace."""
    ok = os.path.exists("/proc/self/mem")
    return Probe(
        "/proc",
        ESSENTIAL,
        ok,
        "mounted" if ok else "not mounted",
        "shows a program's memory, mappings and descriptors",
        "mount it: mount -t proc proc /proc (unshare --mount-proc)",
    )


def _release(release: str) -> tuple[int, int]:
    numbers = []
    for part in release.split(".", 2)[:2]:
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        numbers.append(int(digits) if digits else 0)
    return numbers[0], numbers[1] if len(numbers) > 1 else 0
