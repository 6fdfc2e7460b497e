# SPDX-License-Identifier: Apache-2.0
"""`softsgx run`: run a program that uses SGX, on a machine without it."""

import gc
import sys

from softsgx.errors import SoftsgxError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from typing import IO

    from softsgx.run.extraction import Extraction

HELP = "run a program that uses SGX, on a machine without it"
_UNITS = {"K": 10, "M": 20, "G": 30, "T": 40}
_PAGE = 4096
_DEFAULT_EPC = "128M"
_DEFAULT_CPU = "default"
_DEFAULT_POLICY = "2q"
_DEFAULT_BACKING = "kernel"
_DEFAULT_DRIVER = "mainline"


def size(text: str) -> int:
    """Read a size; SoftsgxError says what is wrong with it."""
    digits, unit = (text[:-1], text[-1].upper()) if text[-1:].upper() in _UNITS else (text, "")
    # Python reads no more than 4300 digits, and no size has twenty.
    if not digits.isdecimal() or len(digits) > 20:
        raise SoftsgxError(f"--epc {text}: not a size; wanted is one such as 128M")
    number = int(digits) << _UNITS.get(unit, 0)
    if not number or number % _PAGE:
        raise SoftsgxError(f"--epc {text}: not a multiple of {_PAGE} bytes above 0")
    return number


def _port(text: str) -> int:
    if not text.isdecimal() or len(text) > 5 or int(text) > 65535:
        raise SoftsgxError(
            f"--gdb {text}: not a port; wanted is 0 to 65535, where 0 takes a free one"
        )
    return int(text)


class Given:
    """What was given on the command line, by the names of add_arguments."""

    def __init__(self) -> None:
        self.epc = _DEFAULT_EPC
        self.cpu = _DEFAULT_CPU
        self.backing = _DEFAULT_BACKING
        self.driver = _DEFAULT_DRIVER
        self.epc_policy = _DEFAULT_POLICY
        self.state: str | None = None
        self.aex_every: str | None = None
        self.trace: str | None = None
        self.stats = False
        self.stats_json: str | None = None
        self.kill_on_exit = False
        self.leave_text = False
        self.no_fast_path = False
        self.gdb: str | None = None
        self.isolation = "none"
        self.program = ""
        self.args: list[str] = []


_FLAGS = {
    "--stats": "stats",
    "--kill-on-exit": "kill_on_exit",
    "--leave-text": "leave_text",
    "--no-fast-path": "no_fast_path",
}
VALUES = {
    "--aex-every": "aex_every",
    "--epc": "epc",
    "--cpu": "cpu",
    "--backing": "backing",
    "--driver": "driver",
    "--epc-policy": "epc_policy",
    "--gdb": "gdb",
    "--isolation": "isolation",
    "--state": "state",
    "--stats-json": "stats_json",
    "--trace": "trace",
}


def parse(arguments: "Sequence[str]") -> Given | None:
    """Read a command line that is right; None for any other, --help among them.

    Those are argparse's to explain, which takes as long to start as the interpreter itself.
    """
    given = Given()
    return given if read(arguments, given, VALUES) else None


def read(arguments: "Sequence[str]", given: Given, values: dict[str, str]) -> bool:
    """Read into ``given`` as `parse` does, and tell whether all is right; ``values`` are the options with a value."""
    words = iter(arguments)
    for word in words:
        if not word.startswith("-") or word == "--":
            rest = list(words)
            if word == "--" and not rest:
                return False
            given.program, *given.args = rest if word == "--" else [word, *rest]
            return True
        name, equals, value = word.partition("=")
        if word in _FLAGS:
            setattr(given, _FLAGS[word], True)
        elif name in values and (equals or not (value := next(words, "-")).startswith("-")):
            setattr(given, values[name], value)
        else:
            return False
    return False


def add_arguments(parser: "argparse.ArgumentParser") -> None:
    """Declare what `softsgx run` takes."""
    from argparse import REMAINDER  # noqa: PLC0415  (not needed where `parse` was enough)

    parser.usage = "softsgx run [options] -- PROGRAM [ARG ...]"
    parser.add_argument(
        "--epc", default=_DEFAULT_EPC, metavar="SIZE", help="EPC size (default 128M)"
    )
    parser.add_argument(
        "--cpu",
        default=_DEFAULT_CPU,
        metavar="MODEL",
        help="the processor that programs find: default, sgx1 or sgx2, and changes of its features, "
        "as in sgx1,+kss (`softsgx info` names them)",
    )
    parser.add_argument(
        "--backing",
        default=_DEFAULT_BACKING,
        metavar="WHERE",
        help="where evicted pages go: kernel (default), file:PATH, dir:PATH, or none, which kills",
    )
    parser.add_argument(
        "--driver",
        default=_DEFAULT_DRIVER,
        metavar="NAME",
        help="whose nodes and ioctls the programs find: mainline (default), dcap, dcap-1.5, v16 or isgx",
    )
    parser.add_argument(
        "--epc-policy",
        default=_DEFAULT_POLICY,
        metavar="NAME",
        help="which page gives way when the EPC is full: 2q (default), which keeps pages that are "
        "soon wanted again, or fifo",
    )
    parser.add_argument("--state", metavar="DIR", help="keep the platform's identity here")
    parser.add_argument(
        "--stats", action="store_true", help="tell at the end, on standard error, what happened"
    )
    parser.add_argument(
        "--stats-json", metavar="FILE", help="write the same at the end as one JSON object"
    )
    parser.add_argument(
        "--trace", metavar="FILE", help="write a JSON line for each ioctl, leaf and exit"
    )
    parser.add_argument(
        "--kill-on-exit",
        action="store_true",
        help="when PROGRAM has ended, kill what it has started instead of waiting for it",
    )
    parser.add_argument(
        "--leave-text",
        action="store_true",
        help="change no program's text: for programs that check it, at the cost of CPUID",
    )
    parser.add_argument(
        "--no-fast-path",
        action="store_true",
        help="let every EENTER and EEXIT trap, instead of only those that are not the common case",
    )
    parser.add_argument(
        "--aex-every",
        metavar="N",
        help="let threads that are inside an enclave leave it by an AEX: every 250us, 10ms or 1s, or "
        "after 1000i (instructions)",
    )
    parser.add_argument(
        "--gdb",
        metavar="PORT",
        help="let PROGRAM wait for gdb, which debugs it and its debug enclaves: target remote :PORT",
    )
    parser.add_argument(
        "--isolation",
        default="none",
        metavar="MODE",
        help="strict: while no thread is inside, enclave memory reads as all ones from outside and what is "
        "written to it is dropped; none (default): it is ordinary memory",
    )
    parser.add_argument("program", metavar="PROGRAM", help="the program to run")
    parser.add_argument(
        "args", nargs=REMAINDER, metavar="ARG", help="its arguments, passed on untouched"
    )


def opened(option: str, path: str) -> "IO[str]":
    """Open a file that a run writes; SoftsgxError names the option."""
    # Not by pathlib, which would cost every start 5 ms.
    try:
        return open(path, "w", buffering=1, encoding="utf-8")  # noqa: PTH123
    except OSError as error:
        raise SoftsgxError(f"{option} {path}: {error.strerror}") from None


def main(args: "Given | argparse.Namespace", extraction: "Extraction | None" = None) -> int:
    """Run the program; the exit status, or the signal, is the program's."""
    # A program waits for us to start: nothing of what is imported now becomes garbage.
    gc.disable()
    from softsgx.driver.state import State  # noqa: PLC0415  (`softsgx run --help` needs none of it)
    from softsgx.run.session import exit_like, run_program  # noqa: PLC0415
    from softsgx.run.spawn import ProgramNotFound  # noqa: PLC0415

    epc = size(args.epc)
    gdb = None if args.gdb is None else _port(args.gdb)
    trace = opened("--trace", args.trace) if args.trace else None
    stats_json = opened("--stats-json", args.stats_json) if args.stats_json else None
    try:
        status = run_program(
            [args.program, *args.args],
            epc=epc,
            cpu=args.cpu,
            backing=args.backing,
            policy=args.epc_policy,
            state=State(args.state),
            driver=args.driver,
            trace=trace,
            stats=args.stats,
            stats_json=stats_json,
            kill_on_exit=args.kill_on_exit,
            leave_text=args.leave_text,
            fast_path=not args.no_fast_path,
            aex_every=args.aex_every,
            gdb=gdb,
            isolation=args.isolation,
            extraction=extraction,
        )
    except ProgramNotFound as missing:
        sys.stderr.write(f"softsgx: {missing}\n")
        return missing.status
    finally:
        for file in (trace, stats_json, extraction):
            if file is not None:
                file.close()
    if extraction is not None:
        extraction.tell()
    return exit_like(status)
