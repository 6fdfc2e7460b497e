# SPDX-License-Identifier: Apache-2.0
"""Starts `softsgx run` for the tests of run/, and sees that nothing of it stays behind."""

import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import pytest

# For helpers that are no tests: gdb_client.
sys.path.insert(0, str(Path(__file__).parent))

# A storm takes as long as it is told to.
TIMEOUT = 120 + int(os.environ.get("SOFTSGX_STORM_SECONDS", "0"))
NOBODY = 65534
SOURCES = Path(__file__).parent / "programs"
ENCLAVE_SOURCES = Path(__file__).parents[1] / "programs"
REFUSE = Path(__file__).parent / "refuse.c"
_ENCLAVE_FLAGS = [
    *("-O2", "-ffreestanding", "-fPIE", "-mgeneral-regs-only", "-fno-stack-protector"),
    *("-fcf-protection=none", "-fno-asynchronous-unwind-tables", "-nostdlib", "-static"),
    *("-no-pie", "-Wl,-z,max-page-size=4096", "-Wl,-z,noexecstack", "-Wl,--build-id=none"),
    f"-Wl,-T,{ENCLAVE_SOURCES / 'enclave.lds'}",
]
# `make test RUN_OPTIONS=--no-fast-path`: the same, every run with these options too.
RUN_OPTIONS = os.environ.get("RUN_OPTIONS", "").split()
_PROGRAM_FLAGS = ["-O2", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter", "-pthread"]


class Ended(NamedTuple):
    """How a command ended; a negative status is the signal that killed it."""

    status: int
    out: str
    err: str


class Harness:
    """A directory that everybody may read, and the commands that are run in it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.state = directory / "state"

    # -- what is run ------------------------------------------------------------------------

    def program(self, name: str, *flags: str) -> Path:
        """Compile programs/NAME.c, once."""
        path = self.directory / name
        if not path.exists():
            source = SOURCES / Path(name).with_suffix(".c").name
            command = ["cc", *_PROGRAM_FLAGS, f"-I{ENCLAVE_SOURCES}", *flags, "-o", path, source]
            subprocess.run(command, check=True)
        return path

    def enclave(self, base: int = 0, heap: int = 0, *, debug: bool = False) -> list[str | Path]:
        """Give the two arguments that tests/programs/host.h takes: enclave and SIGSTRUCT.

        `base` is where in ELRANGE its first page stands, `heap` the bytes at `heap_begin`: each is another
        enclave, of another signer. With `debug` it starts only as a debug enclave, else only as none.
        """
        kind = ("--debug",) if debug else ()
        name = (
            "debug-" * debug
            + "enclave"
            + f"-{base:x}" * bool(base)
            + f"-heap-{heap:x}" * bool(heap)
        )
        sources = [ENCLAVE_SOURCES / "enclave.S", ENCLAVE_SOURCES / "enclave.c"]
        return self._signed(name, sources, base, heap, *kind)

    def enclave_of(self, name: str, *options: str) -> list[str | Path]:
        """Give the two arguments for the enclave of programs/NAME.S, signed with these options too."""
        return self._signed(name, [SOURCES / f"{name}.S"], 0, 0, *options)

    def _signed(
        self, name: str, sources: list[Path], base: int, heap: int, *options: str
    ) -> list[str | Path]:
        elf, css = (self.directory / f"{name}.{kind}" for kind in ("elf", "sigstruct"))
        if not css.exists():
            place = [f"-Wl,--defsym=BASE={base:#x}", f"-Wl,--defsym=HEAP={heap:#x}"]
            subprocess.run(["cc", *_ENCLAVE_FLAGS, *place, "-o", elf, *sources], check=True)
            key = ["--key", self.directory / f"{name}.pem", "--generate-key"]
            sign = [sys.executable, "-m", "softsgx", "sign", elf, "--out", css, *key]
            usual = [*(() if "--debug" in options else ("--production",)), "--miscselect", "1"]
            subprocess.run([*sign, *usual, *options], check=True, stdout=subprocess.DEVNULL)
        return [elf, css]

    def refusing(self, action: str, numbers: Iterable[int]) -> list[str]:
        """Give the words before a command that refuse system calls to it: see refuse.c."""
        path = self.directory / "refuse"
        if not path.exists():
            subprocess.run(["cc", *_PROGRAM_FLAGS, "-o", path, REFUSE], check=True)
        return [str(path), action, ",".join(map(str, numbers))]

    # -- running it -------------------------------------------------------------------------

    def command(self, *argv: str | Path, options: tuple[str | Path, ...] = ()) -> list[str]:
        """Give the command line that runs `argv` under softsgx."""
        run = [
            sys.executable,
            "-m",
            "softsgx",
            "run",
            "--state",
            self.state,
            *RUN_OPTIONS,
            *options,
        ]
        return [str(word) for word in (*run, "--", *argv)]

    @contextmanager
    def started(
        self,
        command: list[str],
        *,
        cwd: Path | None = None,
        stdout: int | IO[str] = subprocess.PIPE,
        uid: int | None = None,
    ) -> Iterator[subprocess.Popen[str]]:
        """Start a command in a session of its own; on the way out nothing of it may be left."""
        mark = f"SOFTSGX_TEST={uuid.uuid4()}"
        environment = {**os.environ, **dict([mark.split("=")])}
        if uid is not None:
            user = [f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--"]
            command = ["setpriv", *user, *command]
            environment["XDG_CACHE_HOME"] = "/nonexistent"
        process = subprocess.Popen(
            command,
            cwd=cwd or self.directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            left = self.marked(mark) if process.poll() is None else self._left(mark)
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            process.wait(TIMEOUT)
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
        assert not left, f"still running: {list(left.values())}"

    def run(
        self,
        *argv: str | Path,
        options: tuple[str | Path, ...] = (),
        cwd: Path | None = None,
        uid: int | None = None,
    ) -> Ended:
        """Run `argv` under softsgx and wait for its end."""
        return self.complete(self.command(*argv, options=options), cwd=cwd, uid=uid)

    def complete(
        self, command: list[str], *, cwd: Path | None = None, uid: int | None = None
    ) -> Ended:
        """Run a command and wait for its end."""
        with self.started(command, cwd=cwd, uid=uid) as process:
            return self.end_of(process)

    def end_of(self, process: subprocess.Popen[str]) -> Ended:
        """Wait for the end of a started command."""
        try:
            out, err = process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            pytest.fail(f"no end after {TIMEOUT} s: {process.args}")
        assert "internal error" not in err, err
        assert "Traceback" not in err, err
        return Ended(process.returncode, out, err)

    def checked(
        self,
        name: str,
        *more: str,
        options: tuple[str | Path, ...] = (),
        uid: int | None = None,
        sandbox: Iterable[str] = (),
    ) -> str:
        """Run a program of the kind of tests/programs/host.h and give what it printed."""
        command = self.command(self.program(name), *self.enclave(), *more, options=options)
        ended = self.complete([*sandbox, *command], uid=uid)
        bad = [line for line in ended.out.splitlines() if line.startswith("not ok")]
        assert not bad, "\n".join([*bad, ended.err])
        assert ended.out.endswith("finished\n"), ended
        assert ended.status == 0, ended
        return ended.out

    # -- what is left -----------------------------------------------------------------------

    def marked(self, mark: str) -> dict[int, str]:
        """Give the processes that have this word in their environment, with their names."""
        found = {}
        for path in Path("/proc").glob("[0-9]*"):
            try:
                words = (path / "environ").read_bytes().split(b"\0")
                name = (path / "cmdline").read_bytes().replace(b"\0", b" ")
            except OSError:
                continue
            if mark.encode() in words:
                found[int(path.name)] = name.decode(errors="replace")
        return found

    def _left(self, mark: str) -> dict[int, str]:
        deadline = time.monotonic() + 2
        while (left := self.marked(mark)) and time.monotonic() < deadline:
            time.sleep(0.02)
        return left


@pytest.fixture(scope="session")
def softsgx() -> Iterator[Harness]:
    # Not pytest's own directory: that one is closed to the ordinary user of some tests.
    with tempfile.TemporaryDirectory(prefix="softsgx-run-") as directory:
        Path(directory).chmod(0o755)
        yield Harness(Path(directory))


@pytest.fixture
def ordinary_user(softsgx: Harness) -> Iterator[int | None]:
    """Give a user id to run as, with the harness's state made writable; None for one's own."""
    if os.geteuid() != 0:
        yield None
        return
    user = [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--"]
    probe = ["setpriv", *user, sys.executable, "-c", "import softsgx.cli.run"]
    tried = subprocess.run(probe, capture_output=True, text=True, check=False, cwd="/")
    if tried.returncode:
        pytest.skip(f"uid {NOBODY} cannot use this installation: {tried.stderr.strip()[-200:]}")
    own, softsgx.state = softsgx.state, softsgx.directory / "state-of-nobody"
    softsgx.state.mkdir(mode=0o700, exist_ok=True)
    os.chown(softsgx.state, NOBODY, NOBODY)
    yield NOBODY
    softsgx.state = own
