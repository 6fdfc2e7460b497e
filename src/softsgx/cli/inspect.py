# SPDX-License-Identifier: Apache-2.0
"""Show every field of a file: an enclave's metadata and SIGSTRUCT, a SIGSTRUCT, a report, a quote or a launch token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "file", metavar="FILE", help="enclave, SIGSTRUCT, REPORT, quote or EINITTOKEN"
    )
    parser.add_argument(
        "--ssaframesize", type=int, default=1, metavar="PAGES", help="as for `softsgx measure`"
    )
    parser.add_argument("--libpal", metavar="FILE", help="Gramine's libpal.so, for its manifests")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def main(args: Namespace) -> int:
    """Print the fields; returns 0."""
    from softsgx.image.inspection import inspect  # noqa: PLC0415

    found = inspect(args.file, ssaframesize=args.ssaframesize, libpal=args.libpal)
    if args.json:
        import json  # noqa: PLC0415

        print(json.dumps(found))
    else:
        _print(found, "")
    return 0


def _print(fields: dict[str, Any], indent: str) -> None:
    from softsgx.image.inspection import words  # noqa: PLC0415

    for name, value in fields.items():
        label = f"{indent}{name}"
        if isinstance(value, dict):
            print(label)
            _print(value, indent + "  ")
        elif isinstance(value, list):
            for item in value:
                print(label)
                _print(item, indent + "  ")
        elif value is None:
            print(f"{label:24}  none")
        elif isinstance(value, int):
            print(f"{label:24}  {words(name, value)}")
        else:
            print(f"{label:24}  {_lines(value)}")


def _lines(text: str) -> str:
    return text.replace("\n", "\n" + " " * 26)
