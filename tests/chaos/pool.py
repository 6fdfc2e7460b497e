# SPDX-License-Identifier: Apache-2.0
"""What the chaos test runs: the programs of the suite and plain commands, with their right outcome.

Everything is built when it is first wanted, so that a short run builds little.
"""

import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from shlex import join
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "run"))
from test_programs import PROGRAMS, SKIPPED, Bench, Program  # noqa: E402

from conftest import Harness  # noqa: E402

EXAMPLE = HERE.parents[1] / "examples" / "hello"
CALLER_BASE = 0x10000

# Programs that are right to notice when others stop and continue them: they watch the stops of a
# child, or what is pending (a blocked SIGCONT), or how long something takes; or they enter by a TCS
# that another thread has left by an AEX.
NOT_STEADY = {"stop_and_end", "stopped", "signal_state", "signal_storm", "threads"}


class Piece(NamedTuple):
    """One thing to run. `argv` builds it and gives its command line; `good` judges a quiet run."""

    name: str
    argv: Callable[[], list[str]]
    good: Callable[[int, str], bool]
    options: tuple[str, ...] = ()
    steady: bool = True  # being stopped and continued, or woken for nothing, changes no outcome


def finished(status: int, out: str) -> bool:
    """Judge a program of the kind of tests/programs/host.h."""
    if status == SKIPPED:
        return "\nskip " in f"\n{out}"
    return not status and out.endswith("finished\n") and "not ok" not in out


class Pool:
    """All the pieces, built in one directory; those of one name are built once."""

    def __init__(self, directory: Path) -> None:
        self._harness = Harness(directory / "run")
        self._bench = Bench(directory / "programs")
        for built in (self._harness, self._bench):
            built.directory.mkdir()
        self._lock = threading.RLock()
        self._expected: dict[str, str] = {}
        self.pieces = [
            *(self._program(program) for program in PROGRAMS),
            *self._run_programs(),
            *self._commands(),
            Piece("hello", self._locked(self._hello), finished_hello),
            Piece("attestation", self._locked(self._attestation), attested),
        ]

    # -- the kinds of pieces ----------------------------------------------------------------------

    def _locked(self, build: Callable[[], list[str]]) -> Callable[[], list[str]]:
        def argv() -> list[str]:
            with self._lock:
                return build()

        return argv

    def _program(self, program: Program) -> Piece:
        def build() -> list[str]:
            bench = self._bench
            words = [
                bench.program(program.name),
                bench.enclave(program.enclave),
                bench.signature(program.signature),
                *(bench.argument(word) for word in program.more),
            ]
            return [str(word) for word in words]

        steady = program.name not in NOT_STEADY
        return Piece(program.name, self._locked(build), finished, program.options, steady)

    def _checked(self, name: str, *more: str) -> list[str]:
        words = (self._harness.program(name), *self._harness.enclave(), *more)
        return [str(word) for word in words]

    def _run_programs(self) -> list[Piece]:
        calls = [
            ("exec_beside", "add"),
            ("exec_beside", "map"),
            ("first_mappings",),
            ("mapping_calls",),
            ("not_dumpable",),
            ("reopened",),
            ("sent_inside", "values"),
            ("sent_inside", "blocked"),
            ("stopped", "exec"),
            ("stopped", "ioctl"),
            ("stopped", "continue"),
            ("threads_of_device", "at-once"),
            ("threads_of_device", "leader"),
            ("threads_of_device", "filter"),
            ("traced",),
        ]
        pieces = [
            Piece(
                " ".join(call),
                self._locked(partial(self._checked, *call)),
                finished,
                steady=call[0] not in NOT_STEADY,
            )
            for call in calls
        ]
        full = self._locked(partial(self._checked, "full_again", "256", "20"))
        return [
            *pieces,
            Piece("full_again", full, finished, ("--epc", "1M")),
            *self._storms(),
        ]

    def _storms(self) -> list[Piece]:
        """Give the programs that leave their enclaves all the time."""
        spread = self._locked(partial(self._checked, "spread"))
        few = self._locked(partial(self._checked, "spread", "3"))
        notified = self._locked(self._notified)
        return [
            Piece("spread at ticks", spread, finished, ("--aex-every", "300us")),
            Piece("spread by steps", few, finished, ("--aex-every", "40i")),
            Piece("told of ticks", notified, finished, ("--aex-every", "500us")),
        ]

    def _notified(self) -> list[str]:
        signed = ("--attributes", "0x404", "--attribute-mask", f"{(1 << 64) - 1 - 0x402:#x}")
        enclave = self._harness.enclave_of("aex_notify_enclave", *signed)
        words = (self._harness.program("aex_notify"), *enclave, "interrupted", "100000", "50")
        return [str(word) for word in words]

    def _commands(self) -> list[Piece]:
        include = "/usr/include/asm-generic"
        commands = {
            "sh forks": [
                "sh",
                "-c",
                "i=0; while [ $i -lt 100 ]; do /bin/true; i=$((i+1)); done; echo $i",
            ],
            "sh waits": [
                "sh",
                "-c",
                "for i in 1 2 3 4; do (sleep 0.2; exit $i) & done; wait; echo $?",
            ],
            "sort": ["sh", "-c", "seq 30000 | sort -rn | tail -n 3"],
            "tar": ["sh", "-c", f"tar -c {include} 2>&- | sha256sum"],
            "find": ["sh", "-c", "find /usr/include /usr/lib/python3* -name '*.[ch]*' | wc -l"],
            "xz": ["sh", "-c", "seq 90000 | xz -T2 -1 | xz -dc | sha256sum"],
            "openssl": ["openssl", "sha256", "/bin/sh"],
            "perl": [
                "perl",
                "-e",
                "for (1..20) { fork or exit $_; } $s += $? >> 8 while wait > 0; print qq($s\\n)",
            ],
            "status": ["sh", "-c", "sleep 0.1; exit 7"],
            "signal": ["sh", "-c", "sleep 0.1; kill -USR1 $$"],
        }
        return [
            Piece(name, partial(list, argv), partial(self._as_without, argv))
            for name, argv in commands.items()
        ]

    def _as_without(self, argv: list[str], status: int, out: str) -> bool:
        """Judge by what the same command does without softsgx."""
        with self._lock:
            if argv[-1] not in self._expected:
                native = subprocess.run(argv, capture_output=True, text=True, check=False)
                self._expected[argv[-1]] = f"{native.returncode}\n{native.stdout}"
            return self._expected[argv[-1]] == f"{status}\n{out}"

    # -- what is built in other ways --------------------------------------------------------------

    def _hello(self) -> list[str]:
        directory = self._harness.directory
        program, elf, css = (directory / f"hello{kind}" for kind in ("", ".elf", ".sigstruct"))
        if not css.exists():
            flags = [
                *("-std=gnu11", "-O2", "-ffreestanding", "-fpie", "-fvisibility=hidden"),
                *("-mgeneral-regs-only", "-fno-stack-protector", "-fcf-protection=none"),
                *("-fno-asynchronous-unwind-tables", "-fno-tree-loop-distribute-patterns"),
                *("-nostdlib", "-static", "-no-pie", f"-Wl,-T,{EXAMPLE / 'enclave.lds'}"),
                *("-Wl,--build-id=none", "-Wl,-z,noexecstack", "-Wl,-z,max-page-size=4096"),
            ]
            subprocess.run(["cc", "-O2", "-o", program, EXAMPLE / "host.c"], check=True)
            sources = [EXAMPLE / "enclave.S", EXAMPLE / "enclave.c"]
            subprocess.run(["cc", *flags, "-o", elf, *sources], check=True)
            key = ["--key", directory / "hello.pem", "--generate-key"]
            sign = [sys.executable, "-m", "softsgx", "sign", elf, *key, "--out", css]
            subprocess.run(sign, check=True, stdout=subprocess.DEVNULL)
        return [str(program), str(elf), str(css)]

    def _attestation(self) -> list[str]:
        program = str(self._harness.program("attestation"))
        daemon, caller = self._harness.enclave(), self._harness.enclave(CALLER_BASE)
        serve = join([program, *map(str, daemon), "serve", "socket", str(caller[1]), "2"])
        call = join([program, *map(str, caller), "call", "socket", str(daemon[1])])
        return ["sh", "-c", f"{serve} & {call} && {call} && wait $!"]

    def epc_free(self) -> list[str]:
        """Give the command that tells how much of the EPC is free."""
        with self._lock:
            path = self._harness.directory / "epc_free"
            if not path.exists():
                include = f"-I{HERE.parent / 'programs'}"
                source = HERE / "epc_free.c"
                subprocess.run(["cc", "-O2", include, "-o", path, source], check=True)
            return [str(path)]


def finished_hello(status: int, out: str) -> bool:
    """Judge examples/hello."""
    return not status and "reports MRENCLAVE" in out


def attested(status: int, out: str) -> bool:
    """Judge two calls of attestation.c and the daemon that served them."""
    lines = sorted(out.splitlines())
    wanted = ["called: genuine", "finished", "served: genuine"]
    return not status and lines == sorted([*wanted, *wanted, "finished"])
