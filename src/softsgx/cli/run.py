# SPDX-License-Identifier: Apache-2.0
"""`softsgx run`: run a program that uses SGX, on a machine without it."""

import argparse
import gc
import sys
from contextlib import ExitStack
from typing import IO

from softsgx.errors import SoftsgxError

HELP = "run a program that uses SGX, on a machine without it"
_UNITS = {"K": 10, "M": 20, "G": 30, "T": 40}
_PAGE = 4096


def _size(text: str) -> int:
    digits, unit = (text[:-1], text[-1].upper()) if text[-1:].upper() in _UNITS else (text, "")
    if not digits.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; wanted e.g. 128M")
    size = int(digits) << _UNITS.get(unit, 0)
    if not size or size % _PAGE:
        raise argparse.ArgumentTypeError(f"{text!r} is not a multiple of {_PAGE} bytes above 0")
    return size


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `softsgx run` takes."""
    parser.usage = "softsgx run [options] -- PROGRAM [ARG ...]"
    parser.add_argument(
        "--epc", type=_size, default=128 << 20, metavar="SIZE", help="EPC size (default 128M)"
    )
    parser.add_argument("--state", metavar="DIR", help="keep the platform's identity here")
    parser.add_argument(
        "--stats", action="store_true", help="tell at the end, on standard error, what happened"
    )
    parser.add_argument(
        "--trace", metavar="FILE", help="write a JSON line for each ioctl, leaf and exit"
    )
    parser.add_argument(
        "--kill-on-exit",
        action="store_true",
        help="when PROGRAM has ended, kill what it has started instead of waiting for it",
    )
    parser.add_argument("program", metavar="PROGRAM", help="the program to run")
    parser.add_argument(
        "args", nargs=argparse.REMAINDER, metavar="ARG", help="its arguments, passed on untouched"
    )


def _trace_file(path: str) -> IO[str]:
    # Not by pathlib, which would cost every start 5 ms.
    try:
        return open(path, "w", buffering=1, encoding="utf-8")  # noqa: PTH123
    except OSError as error:
        raise SoftsgxError(f"--trace {path}: {error.strerror}") from None


def main(args: argparse.Namespace) -> int:
    """Run the program; the exit status, or the signal, is the program's."""
    # A program waits for us to start: nothing of what is imported now becomes garbage.
    gc.disable()
    from softsgx.driver.state import State  # noqa: PLC0415  (`softsgx run --help` needs none of it)
    from softsgx.run.session import exit_like, run_program  # noqa: PLC0415
    from softsgx.run.spawn import ProgramNotFound  # noqa: PLC0415

    with ExitStack() as stack:
        trace = None
        if args.trace:
            trace = stack.enter_context(_trace_file(args.trace))
        try:
            status = run_program(
                [args.program, *args.args],
                epc=args.epc,
                state=State(args.state),
                trace=trace,
                stats=args.stats,
                kill_on_exit=args.kill_on_exit,
            )
        except ProgramNotFound as missing:
            sys.stderr.write(f"softsgx: {missing}\n")
            return missing.status
    return exit_like(status)
