# SPDX-License-Identifier: Apache-2.0
"""CPUID faulting: what follows where arch_prctl(ARCH_SET_CPUID, 0) works.

Where the host has none, a stand-in shows the rest: CPUIDs replaced by HLT, which is the same #GP.
"""

import errno
import subprocess
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from softsgx.run import numbers, probes
from softsgx.run.gp_instructions import cpuid_length, illegal_inside
from softsgx.run.program import Programs
from softsgx.run.traps import Traps

if TYPE_CHECKING:
    from conftest import Ended, Harness

SI_KERNEL = 0x80
RIP = 0x401000
CPUID = b"\x0f\xa2"
MODEL = (1, 2, 3, 4)


@pytest.mark.parametrize(
    ("code", "length"),
    [
        (CPUID + b"\x90" * 13, 2),
        (CPUID, 2),
        (b"\x66" + CPUID + b"\x90", 3),
        (b"\xf3\x48" + CPUID, 4),
        (b"\xf0" + CPUID, 0),  # LOCK: #UD
        (b"\x0f\x33" + CPUID, 0),
        (b"\xf4" + CPUID, 0),
        (b"\x0f", 0),
        (b"", 0),
    ],
)
def test_a_cpuid_is_told_with_its_prefixes(code: bytes, length: int) -> None:
    assert cpuid_length(code) == length


@pytest.mark.parametrize(
    ("code", "illegal"),
    [(CPUID, True), (b"\x66" + CPUID, True), (b"\x0f\x33", True), (b"\xf4", False)],
)
def test_a_faulting_cpuid_is_ud_inside(code: bytes, illegal: bool) -> None:
    assert illegal_inside(code.ljust(15, b"\x90")) is illegal


# -- whether it is there ------------------------------------------------------------------------


class Injector:
    def __init__(self, *errors: int) -> None:
        self.errors = list(errors)
        self.calls: list[tuple[int, ...]] = []

    def call(self, *args: int) -> int:
        self.calls.append(args)
        return -self.errors.pop(0) & (1 << 64) - 1


@pytest.mark.parametrize("error", [errno.ENODEV, errno.EINVAL])
def test_a_host_without_is_asked_once(error: int) -> None:
    injector: Any = Injector(error)
    programs = Programs(None, None)  # type: ignore[arg-type]
    assert not programs._make_cpuid_fault(injector)
    assert not programs._make_cpuid_fault(injector)
    assert injector.calls == [(numbers.SYS_ARCH_PRCTL, numbers.ARCH_SET_CPUID, 0)]


def test_each_program_is_given_it_and_may_refuse() -> None:
    injector: Any = Injector(0, errno.EPERM, 0)
    programs = Programs(None, None)  # type: ignore[arg-type]
    assert [programs._make_cpuid_fault(injector) for _ in range(3)] == [True, False, True]


# -- what a stop is taken for --------------------------------------------------------------------


def stop(
    monkeypatch: pytest.MonkeyPatch,
    code: bytes,
    *,
    faults: bool = True,
    si_code: int = SI_KERNEL,
    signal: int = numbers.SIGSEGV,
    address: int = 0,
) -> tuple[str, int]:
    """Give what a stop outside is taken for, and RIP then."""
    regs = SimpleNamespace(rip=RIP, rax=7, rbx=0, rcx=0, rdx=0)
    mm = SimpleNamespace(
        cpuid_sites=set(),
        cpuid_faults=faults,
        reachable=True,
        path_load=0,
        enclaves=None,
        read=lambda at, length: code[at - RIP :][:length],
    )
    tracee: Any = SimpleNamespace(
        regs=regs, load_regs=lambda: regs, mm=mm, inside=False, trapped=False, borrowed=False
    )
    taken: list[str] = []
    monkeypatch.setattr("softsgx.run.traps.unforce", lambda *_: None)
    monkeypatch.setattr("softsgx.run.traps.resume", lambda *_: taken.append("answered"))
    monkeypatch.setattr("softsgx.run.traps.pass_on", lambda *_: taken.append("passed on"))
    vdso: Any = SimpleNamespace(native_cpuid=lambda *_: (0, 0, 0, 0))
    model: Any = SimpleNamespace(cpuid=lambda *_: MODEL)
    observer: Any = SimpleNamespace(cpuid=lambda *_: None)
    traps = Traps(model, vdso, observer, lambda: pytest.fail("no enclave is here"))
    traps._on_fault(tracee, signal, si_code, address)
    (only,) = taken
    if only == "answered":
        assert (regs.rax, regs.rbx, regs.rcx, regs.rdx) == MODEL
    return only, regs.rip - RIP


def test_a_faulting_cpuid_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    assert stop(monkeypatch, CPUID + b"\xc3") == ("answered", 2)
    assert stop(monkeypatch, b"\x66" + CPUID + b"\xc3") == ("answered", 3)


def test_any_other_fault_is_the_programs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    passed_on = ("passed on", 0)
    assert stop(monkeypatch, b"\xf4" + CPUID) == passed_on
    assert stop(monkeypatch, CPUID, faults=False) == passed_on
    assert stop(monkeypatch, CPUID, si_code=1) == passed_on  # a page that is not there
    assert stop(monkeypatch, CPUID, si_code=2, address=RIP) == passed_on
    assert stop(monkeypatch, CPUID, signal=numbers.SIGFPE) == passed_on


# -- programs -----------------------------------------------------------------------------------

STAND_IN = """
import sys
from softsgx.run import gp_instructions, program

HLT = b"\\xf4\\x90"  # and NOP

def make_cpuid_fault(self, injector):
    self._patch_mapped(injector._tracee)
    return True

gp_instructions.CPUID = program.UD2 = HLT
program.Programs._make_cpuid_fault = make_cpuid_fault
from softsgx.cli import main
sys.exit(main())
"""


def with_faults(softsgx: "Harness", *argv: str, options: tuple[str, ...] = ()) -> "Ended":
    command = softsgx.command(*argv, options=options)
    if not probes.cpuid_faulting().ok:
        assert command[1:3] == ["-m", "softsgx"]
        command[1:3] = ["-c", STAND_IN]
    return softsgx.complete(command)


@pytest.mark.live
def test_a_handler_of_sigsegv_sees_no_cpuid(softsgx: "Harness") -> None:
    program = str(softsgx.program("gp_handler"))
    wanted = "program 1 0 1 1\nthread 1 0 1 1\nchild 1 0 1 1\n"
    # Without a stand-in, its CPUIDs are UD2: the same is seen.
    assert tuple(softsgx.run(program)) == (0, wanted, "")
    ended = with_faults(softsgx, program, options=("--stats",))
    assert (ended.status, ended.out) == (0, wanted)
    assert "CPUID answered " in ended.err
    native = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    assert [line.split()[2:4] for line in native.splitlines()] == [["0", "1"]] * 3


@pytest.mark.live
def test_cpuid_that_faults_leaves_an_ignored_sigsegv_ignored(softsgx: "Harness") -> None:
    program = str(softsgx.program("fault_signal_state.segv", "-DSIGNAL=SIGSEGV"))
    bit = 1 << (numbers.SIGSEGV - 1)
    for argv in ([program, "ignoring"], [program, "ignore", program, "look"]):
        ended = with_faults(softsgx, *argv)
        seen = [
            (name, int(mask, 16) & bit)
            for _, name, mask in (line.split() for line in ended.out.splitlines())
        ]
        assert seen == [("SigBlk:", 0), ("SigIgn:", bit)] * 4, ended
        assert (ended.status, ended.err) == (0, "")
