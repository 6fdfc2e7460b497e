# SPDX-License-Identifier: Apache-2.0
"""Small real SGX programs, one a feature, under `softsgx run`: see tests/programs.

Each is compiled by the system's compiler, linked against nothing of ours, and says itself what it
found: a line "ok NAME" or "not ok NAME: REASON" for each thing.
"""

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import pytest

pytestmark = pytest.mark.live

SOURCES = Path(__file__).parents[1] / "programs"
REFUSE = Path(__file__).parent / "refuse.c"
TIMEOUT = 60
SKIPPED = 77
NOBODY = 65534

_ENCLAVE_FLAGS = [
    *("-O2", "-ffreestanding", "-fPIE", "-mgeneral-regs-only", "-fno-stack-protector"),
    *("-fcf-protection=none", "-fno-asynchronous-unwind-tables", "-Wall", "-Wextra", "-Werror"),
    *("-nostdlib", "-static", "-no-pie", "-Wl,-z,max-page-size=4096", "-Wl,-z,noexecstack"),
    *("-Wl,--build-id=none", f"-Wl,-T,{SOURCES / 'enclave.lds'}"),
]
_PROGRAM_FLAGS = ["-O2", "-Wall", "-Wextra", "-Werror", "-pthread"]
# Offset of the first page in ELRANGE: 64 KiB for the enclave whose ELRANGE starts at address 0.
_ENCLAVES = {"enclave": 0, "low": 0x10000}
# Which enclave, and what its SIGSTRUCT allows beyond the usual.
_SIGNATURES = {
    "enclave": ("enclave", ["--production"]),
    "low": ("low", ["--production"]),
    "debug": ("enclave", ["--debug"]),
    "provision": ("enclave", ["--production", "--attributes", "0x14"]),
    "kss": (
        "enclave",
        [
            *("--production", "--attributes", "0x84", "--isvfamilyid", "fa" * 16),
            *("--isvextprodid", "e4" * 16),
        ],
    ),
}
# Who is linked against vdso_stub.c, how that is made to count, and what the stub is built with.
_VDSO_STUBS = {
    "vdso_discovery": (
        "-Wl,--no-as-needed",
        [f"-Wl,--version-script={SOURCES / 'vdso_stub.map'}"],
    ),
    "edp_loader": ("-Wl,--as-needed", []),
}


class Program(NamedTuple):
    """How one program is run; `more` stands behind the usual two arguments.

    In it the name of a SIGSTRUCT stands for its file, and that of a library for one built here.
    """

    name: str
    enclave: str = "enclave"
    signature: str = "enclave"
    more: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


PROGRAMS = [
    Program("aex_registers"),
    Program("core_dump"),
    Program("cpuid", more=(str(64 << 20), "cpuid_library.so"), options=("--epc", "64M")),
    Program("debug_optin", signature="debug"),
    Program("descriptor"),
    Program("edp_loader", signature="debug"),
    Program("entry_registers"),
    Program("eresume_rewritten_ssa"),
    Program("exec"),
    Program("fork"),
    Program("handler_enters"),
    Program("illegal_inside"),
    Program("ioctl_hostile"),
    Program("ioctl_race"),
    Program("killed_inside", options=("--epc", "8M")),
    Program("kss", signature="kss", more=("enclave",)),
    Program("low_elrange", enclave="low", signature="low"),
    Program("mapping_rules"),
    Program("passed_descriptor"),
    Program("provision", signature="provision"),
    Program("refusals", more=("debug",)),
    Program("report_key"),
    Program("signal_state"),
    Program("signal_storm"),
    Program("ssa_user_stack"),
    Program("stop_and_end"),
    Program("threads"),
    Program("vdso_discovery"),
    Program("vdso_einval"),
    Program("vdso_exceptions"),
    Program("vdso_handler"),
]
BY_NAME = {program.name: program for program in PROGRAMS}
AS_ORDINARY_USER = [
    *("core_dump", "cpuid", "edp_loader", "entry_registers", "exec", "fork", "killed_inside"),
    *("low_elrange", "refusals", "signal_state", "stop_and_end", "vdso_discovery"),
]
# Those with holes, faults, changed mappings, processes and threads; by system call number.
WITHOUT_USERFAULTFD = [
    *("core_dump", "edp_loader", "fork", "low_elrange", "mapping_rules", "threads"),
    *("vdso_exceptions", "vdso_handler"),
]
USERFAULTFD = 323
# What somebody who knows the hardware would try first: the program that shows it, and its lines. What a program
# cannot see is in tests/cpu: a slot that is occupied (test_paging.py), the order of EINIT (test_einit.py). The MAC of a REPORT is checked below.
PROBES = {
    "EENTER gives RAX and RCX": (
        "entry_registers",
        ("bare: RAX is CSSA", "bare: RCX is the next instruction", "vdso RCX follows an ENCLU"),
    ),
    "URSP and URBP are in the SSA frame": (
        "ssa_user_stack",
        ("URSP is the host's RSP", "URBP is the host's RBP", "nested URSP", "nested URBP"),
    ),
    "an AEX leaves the manual's registers": (
        "aex_registers",
        (
            *(f"{where} register {number}" for where in ("frame", "AEP") for number in range(16)),
            *("frame MXCSR", "AEP MXCSR", "frame FCW", "AEP FCW", "AEP FS base", "AEP xmm15"),
        ),
    ),
    "ERESUME takes the bases of the SSA frame": (
        "eresume_rewritten_ssa",
        ("FS base comes from the SSA", "GS base comes from the SSA"),
    ),
    "EEXIT gives the AEP in RCX": (
        "entry_registers",
        ("bare: RCX after EEXIT is the AEP", "exit: RCX is the AEP"),
    ),
    "CSSA stays below NSSA": (
        "vdso_exceptions",
        ("CSSA == NSSA: vector", "both frames used: vector"),
    ),
    "INT3 is #UD, and a fault": (
        "illegal_inside",
        ("illegal_int3: vector", "illegal_int3: SSA.RIP"),
    ),
    "CPUID, IN and SYSCALL are #UD": (
        "illegal_inside",
        ("illegal_cpuid: vector", "illegal_in: vector", "illegal_syscall: vector"),
    ),
    "a policy of KSS without KSS is #GP": (
        "kss",
        ("a policy of KSS is #GP without KSS", "so is CONFIGSVN"),
    ),
    "the vDSO refuses what is reserved and not zero": (
        "vdso_einval",
        ("reserved[0]", "reserved[215]", "reserved is checked at each re-entry"),
    ),
    "the vDSO returns 0 at an exception": (
        "vdso_exceptions",
        ("#UD: returns", "#PF host read: returns", "TCS address 0: returns"),
    ),
    "a handler finds the registers that the enclave left": (
        "vdso_handler",
        tuple(f"{name} as the enclave left it" for name in ("RDI", "RSI", "RDX", "R8", "R9")),
    ),
    "an enclave may be mapped before CREATE": ("low_elrange", ("mapped before CREATE", "it runs")),
    "ELRANGE may begin at 0": ("low_elrange", ("BASEADDR", "OENTRY is an address from 0")),
}


class Bench:
    """A directory that everybody may read, with what has been compiled and signed so far."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def _cc(self, *arguments: str | Path) -> None:
        subprocess.run(["cc", *arguments], check=True)

    def enclave(self, name: str) -> Path:
        path = self.directory / f"{name}.elf"
        if not path.exists():
            base = f"-Wl,--defsym=BASE={_ENCLAVES[name]:#x},--defsym=HEAP=0"
            sources = [SOURCES / "enclave.S", SOURCES / "enclave.c"]
            self._cc(*_ENCLAVE_FLAGS, base, "-o", path, *sources)
        return path

    def signature(self, name: str) -> Path:
        path = self.directory / f"{name}.sigstruct"
        if not path.exists():
            enclave, options = _SIGNATURES[name]
            key = self.directory / "key.pem"
            sign = [sys.executable, "-m", "softsgx", "sign", self.enclave(enclave), "--out", path]
            fields = ["--isvprodid", "7", "--isvsvn", "3", "--miscselect", "1"]
            subprocess.run(
                [*sign, "--key", key, "--generate-key", *fields, *options],
                check=True,
                stdout=subprocess.DEVNULL,
            )
        return path

    def program(self, name: str) -> Path:
        path = self.directory / name
        if not path.exists():
            libraries = self._vdso_stub(name) if name in _VDSO_STUBS else []
            self._cc(*_PROGRAM_FLAGS, "-o", path, SOURCES / f"{name}.c", *libraries)
        return path

    def _vdso_stub(self, name: str) -> list[str | Path]:
        """Build what stands for linux-vdso.so.1 while a program is linked."""
        needed, flags = _VDSO_STUBS[name]
        path = self.directory / f"{name}.vdso.so"
        stub = ["-shared", "-fPIC", "-Wl,-soname,linux-vdso.so.1", *flags]
        self._cc(*stub, "-o", path, SOURCES / "vdso_stub.c")
        return [needed, path]

    def library(self, name: str) -> Path:
        path = self.directory / name
        if not path.exists():
            source = SOURCES / Path(name).with_suffix(".c")
            self._cc("-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o", path, source)
        return path

    def argument(self, word: str) -> str:
        if word in _SIGNATURES:
            return str(self.signature(word))
        return str(self.library(word)) if word.endswith(".so") else word

    def refusing(self, number: int) -> list[str]:
        """Give the words before a command that refuse a system call to it: see refuse.c."""
        path = self.directory / "refuse"
        if not path.exists():
            self._cc(*_PROGRAM_FLAGS, "-o", path, REFUSE)
        return [str(path), str(errno.EPERM), str(number)]

    def run(
        self, program: Program, state: Path, *, uid: int | None = None, sandbox: Iterable[str] = ()
    ) -> str:
        """Run it under softsgx in a directory of its own; returns its output if nothing failed."""
        more = [self.argument(word) for word in program.more]
        command = [
            *sandbox,
            *([] if uid is None else _as_user(uid)),
            *(sys.executable, "-m", "softsgx", "run", "--state", str(state)),
            *(*os.environ.get("RUN_OPTIONS", "").split(), *program.options),
            *("--", str(self.program(program.name)), str(self.enclave(program.enclave))),
            *(str(self.signature(program.signature)), *more),
        ]
        with tempfile.TemporaryDirectory(dir=self.directory) as cwd:
            if uid is not None:
                os.chown(cwd, uid, uid)
            status, output, errors = _communicate(command, cwd)
        left = self._left_behind()
        assert not left, f"still running: {left}"
        bad = [line for line in output.splitlines() if line.startswith("not ok")]
        if bad:
            pytest.fail("\n".join([program.name, *bad, errors[-4000:]]), pytrace=False)
        if status == SKIPPED:
            pytest.skip(next(line for line in output.splitlines() if line.startswith("skip ")))
        assert status == 0, f"exit status {status}; last lines:\n{output[-600:]}\n{errors[-4000:]}"
        # A program that ended early would otherwise look as one that found nothing wrong.
        assert output.rstrip().endswith("finished"), output[-600:]
        return output

    def _left_behind(self) -> list[str]:
        """Return the command lines of processes that name this directory and do not end."""
        deadline = time.monotonic() + 2
        while True:
            found = []
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
                except OSError:
                    continue
                if str(self.directory) in line:
                    found.append(f"{path.parent.name}: {line}")
            if not found or time.monotonic() > deadline:
                return found
            time.sleep(0.02)


def _as_user(uid: int) -> list[str]:
    return ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--"]


def _communicate(command: list[str], cwd: str) -> tuple[int, str, str]:
    with subprocess.Popen(
        command,
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, errors = process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, errors = process.communicate()
            pytest.fail(f"no end after {TIMEOUT} s; last lines:\n{output[-600:]}\n{errors[-4000:]}")
        return process.returncode, output, errors


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    # Not pytest's own directory: that one is closed to the ordinary user of some tests.
    with tempfile.TemporaryDirectory(prefix="softsgx-programs-") as directory:
        Path(directory).chmod(0o755)
        yield Bench(Path(directory))


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_program(bench: Bench, program: Program, tmp_path: Path) -> None:
    bench.run(program, tmp_path / "state")


@pytest.fixture(scope="module")
def shown(bench: Bench) -> Callable[[str], set[str]]:
    """Give the lines that a program shows, which is run once."""

    @cache
    def show(name: str) -> set[str]:
        with tempfile.TemporaryDirectory(dir=bench.directory) as directory:
            output = bench.run(BY_NAME[name], Path(directory) / "state")
        return {line[3:] for line in output.splitlines() if line.startswith("ok ")}

    return show


@pytest.mark.parametrize("probe", PROBES)
def test_probe(shown: Callable[[str], set[str]], probe: str) -> None:
    name, lines = PROBES[probe]
    assert set(lines) <= shown(name)


@pytest.mark.parametrize("name", WITHOUT_USERFAULTFD)
def test_program_without_userfaultfd(bench: Bench, name: str, tmp_path: Path) -> None:
    bench.run(BY_NAME[name], tmp_path / "state", sandbox=bench.refusing(USERFAULTFD))


def test_every_program_is_run() -> None:
    found = {path.stem for path in SOURCES.glob("*.c")} - {"enclave", "vdso_stub", "cpuid_library"}
    assert found == set(BY_NAME)


@pytest.fixture(scope="module")
def ordinary_user() -> int:
    if os.geteuid() != 0:
        pytest.skip("all the programs were run as an ordinary user already")
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv is missing: install util-linux")
    probe = [*_as_user(NOBODY), sys.executable, "-c", "import softsgx.cli.run"]
    tried = subprocess.run(probe, capture_output=True, text=True, check=False, cwd="/")
    if tried.returncode:
        pytest.skip(f"uid {NOBODY} cannot use this installation: {tried.stderr.strip()[-200:]}")
    return NOBODY


@pytest.mark.parametrize("name", AS_ORDINARY_USER)
def test_program_as_an_ordinary_user(bench: Bench, ordinary_user: int, name: str) -> None:
    with tempfile.TemporaryDirectory(dir=bench.directory) as home:
        os.chown(home, ordinary_user, ordinary_user)
        bench.run(BY_NAME[name], Path(home) / "state", uid=ordinary_user)


def test_maps_name_the_device(bench: Bench, tmp_path: Path) -> None:
    output = bench.run(BY_NAME["descriptor"], tmp_path / "state")
    maps = [line.removeprefix("maps ") for line in output.splitlines() if line[:5] == "maps "]
    device = [line for line in maps if "/dev/sgx_enclave" in line]
    # The four segments of the enclave, each as fs/proc/task_mmu.c prints a mapping.
    shape = r"[0-9a-f]+-[0-9a-f]+ [r-][w-][x-]s 00000000 00:[0-9a-f]{2} [0-9]+ +/dev/sgx_enclave"
    assert len(device) >= 3, maps
    assert all(re.fullmatch(shape, line) for line in device), device
    assert {line.index("/dev") for line in device} == {73}
    assert not [line for line in maps if "memfd:sgx_enclave" in line]
    assert any("libc.so" in line for line in maps)


def _values(output: str) -> dict[str, bytes]:
    """Read the lines "NAME HEX" of report_key."""
    names = ("report", "modulus", "key", "sealing", "sealing-signer")
    lines = [line.split() for line in output.splitlines()]
    return {line[0]: bytes.fromhex(line[1]) for line in lines if line and line[0] in names}


def test_the_report_key_authenticates_the_report(bench: Bench, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.ciphers.algorithms import AES  # noqa: PLC0415
    from cryptography.hazmat.primitives.cmac import CMAC  # noqa: PLC0415

    values = _values(bench.run(BY_NAME["report_key"], tmp_path / "state"))
    report = values["report"]
    cmac = CMAC(AES(values["key"]))
    cmac.update(report[:384])
    cmac.verify(report[416:])
    assert report[128:160] == sha256(values["modulus"]).digest()


def test_a_state_keeps_its_sealing_keys_and_another_has_others(
    bench: Bench, tmp_path: Path
) -> None:
    program = BY_NAME["report_key"]
    first = _values(bench.run(program, tmp_path / "state"))
    again = _values(bench.run(program, tmp_path / "state"))
    fresh = _values(bench.run(program, tmp_path / "fresh"))
    for name in ("sealing", "sealing-signer"):
        assert first[name] == again[name]
        assert first[name] != fresh[name]
