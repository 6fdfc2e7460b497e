# SPDX-License-Identifier: Apache-2.0
"""`softsgx extract`: run a program as `softsgx run` does, and write the enclaves that it builds as SGXS."""

from softsgx.cli import run

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

_DEFAULT_OUT = "."
_VALUES = {**run.VALUES, "--out": "out", "--json": "json"}


class Given(run.Given):
    """What was given on the command line."""

    def __init__(self) -> None:
        super().__init__()
        self.out = _DEFAULT_OUT
        self.json: str | None = None


def parse(arguments: "Sequence[str]") -> Given | None:
    """Read a command line that is right, as `softsgx run` does: what follows PROGRAM is passed on untouched."""
    given = Given()
    return given if run.read(arguments, given, _VALUES) else None


def add_arguments(parser: "argparse.ArgumentParser") -> None:
    """Declare what `softsgx extract` takes: the options of `softsgx run`, too."""
    parser.add_argument(
        "--out",
        default=_DEFAULT_OUT,
        metavar="DIR",
        help="where MRENCLAVE.sgxs and MRENCLAVE.sigstruct are written (default: here)",
    )
    parser.add_argument(
        "--json", metavar="FILE", help="write at the end, as one JSON object, what was extracted"
    )
    run.add_arguments(parser)
    parser.usage = "softsgx extract [options] -- PROGRAM [ARG ...]"


def main(args: "Given | argparse.Namespace") -> int:
    """Run the program; the exit status, or the signal, is the program's."""
    from softsgx.run.extraction import Extraction  # noqa: PLC0415  (--help needs none of it)

    summary = run.opened("--json", args.json) if args.json else None
    return run.main(args, Extraction(args.out, summary))
