# SPDX-License-Identifier: Apache-2.0
"""The command `softsgx`: one module a verb, imported only when that verb is given.

A verb's module softsgx.cli.VERB has two functions:

    add_arguments(parser: argparse.ArgumentParser) -> None
    main(args: argparse.Namespace) -> int       the exit status

and may have a third, for what argparse need not be started for:

    parse(arguments: Sequence[str]) -> object with the same attributes, or None

A SoftsgxError is the user's mistake: one line on standard error, exit status 2, as for a wrong option.
"""

from __future__ import annotations

import errno
import os
import sys

from softsgx.errors import SoftsgxError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from types import ModuleType

VERBS = {
    "run": "run a program that uses SGX, on a machine without it",
    "info": "show what this machine offers and what the platform claims",
    "top": "show what the platforms of running programs are doing",
    "measure": "compute the MRENCLAVE of an enclave file",
    "diff": "say why two enclave files differ",
    "inspect": "show every field of an enclave file, a SIGSTRUCT, a report or a quote",
    "verify": "verify an enclave file: its signature, its measurement and a policy",
    "convert": "convert an enclave file to SGXS, to plain ELF or to pages",
    "extract": "write the enclaves that a program builds, as SGXS, while it runs",
    "sign": "sign an enclave file: write its SIGSTRUCT",
    "lint": "say what a processor with SGX would punish, of an enclave file, a program or a run",
}

# The others are for enclaves at rest, and work wherever Python does.
_LINUX = ("run", "info", "top", "extract")

_RUNS = ("run", "extract")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)

_USAGE = "usage: softsgx VERB [OPTION...]"
_ABOUT = """\
The Intel SGX driver and processor in software: for development and tests, never for secrets.
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit status; `argv` is without the program's name."""
    arguments = sys.argv[1:] if argv is None else argv
    # Started with a closed descriptor, Python has None where it should write.
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
    try:
        status = _dispatch(arguments)
        sys.stdout.flush()
    except SoftsgxError as error:
        print(f"softsgx: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output has left (`softsgx info | head`): nothing is left to say, and the
        # interpreter's own flush at exit must not say it either.
        _silence()
        return 1
    except OSError as error:
        # A full disk behind standard output, which has no name; a file that a verb opens has, and a run
        # has more to write to than that.
        if error.filename is not None or error.errno not in _FULL or arguments[0] in _RUNS:
            raise
        _silence()
        print(f"softsgx: standard output: {error.strerror}", file=sys.stderr)
        return 2
    return status


def _silence() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _dispatch(arguments: list[str]) -> int:
    verb = arguments[0] if arguments else ""
    if verb in ("-h", "--help"):
        print(_help())
        return 0
    if verb == "--version":
        from softsgx import __version__  # noqa: PLC0415

        print(f"softsgx {__version__}")
        return 0
    if verb not in VERBS:
        given = f"there is no verb {verb!r}" if verb else "a verb is missing"
        raise SoftsgxError(f"{given}; the verbs are {', '.join(VERBS)} (softsgx --help)")
    if verb in _LINUX and sys.platform != "linux":
        others = ", ".join(other for other in VERBS if other not in _LINUX)
        raise SoftsgxError(
            f"{verb} needs x86-64 Linux, this is {sys.platform}; here work: {others}"
        )

    # Not by importlib, which brings more than a start needs.
    module = __import__(f"softsgx.cli.{verb}", fromlist=["main"])
    # argparse takes as long to start as the interpreter, and a run starts before every program.
    quick = getattr(module, "parse", None)
    parsed = quick(arguments[1:]) if quick is not None else None
    if parsed is None:
        parsed = _parse(verb, module, arguments[1:])
    return int(module.main(parsed))


def _parse(verb: str, module: ModuleType, arguments: list[str]) -> Namespace:
    # Not a subparser each: that would import every verb to parse one.
    from argparse import ArgumentParser, HelpFormatter  # noqa: PLC0415

    columns = os.environ.get("COLUMNS", "")

    # Left to itself it asks shutil for the width, at every start and for 5 ms.
    class Formatter(HelpFormatter):
        def __init__(self, prog: str) -> None:
            super().__init__(prog, width=int(columns) - 2 if columns.isdecimal() else 78)

    parser = ArgumentParser(
        prog=f"softsgx {verb}",
        description=module.__doc__,
        allow_abbrev=False,
        formatter_class=Formatter,
    )
    module.add_arguments(parser)
    return parser.parse_args(arguments)


def _help() -> str:
    lines = [_USAGE, "", _ABOUT]
    lines += [f"  {verb:<8} {summary}" for verb, summary in VERBS.items()]
    lines += ["", "softsgx VERB --help    its options", "softsgx --version"]
    return "\n".join(lines)
