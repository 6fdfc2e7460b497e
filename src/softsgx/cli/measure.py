# SPDX-License-Identifier: Apache-2.0
"""Compute the MRENCLAVE of an enclave file, as a processor would while the file is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from softsgx.image.stream import Image


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("file", metavar="FILE", help="enclave: a static ELF file, TCS pages first")
    add_ssaframesize(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def add_ssaframesize(parser: ArgumentParser) -> None:
    """Declare the option that every verb that measures has: the file does not say this one."""
    parser.add_argument(
        "--ssaframesize",
        type=int,
        default=1,
        metavar="PAGES",
        help="SECS.SSAFRAMESIZE that the host will give, in pages (default: 1)",
    )


def main(args: Namespace) -> int:
    """Print the measurement; returns 0."""
    from softsgx.image import elf, stream  # noqa: PLC0415

    image = elf.read(args.file, args.ssaframesize)
    mrenclave = stream.measure(image).hex()
    if args.json:
        import json  # noqa: PLC0415

        print(
            json.dumps(
                {
                    "file": args.file,
                    "mrenclave": mrenclave,
                    "size": image.size,
                    "ssaframesize": image.ssaframesize,
                    "pages": image.pages,
                    "threads": image.threads,
                    "runs": [
                        {
                            "offset": run.offset,
                            "length": run.length,
                            "secinfo_flags": run.secinfo_flags,
                            "measured": run.measured,
                        }
                        for run in image.runs
                    ],
                }
            )
        )
        return 0
    print(f"MRENCLAVE  {mrenclave}")
    print(f"enclave    {args.file}: {describe(image)}")
    for run in image.runs:
        print(
            f"           {run.offset:#8x} .. {run.offset + run.length:#8x}  "
            f"{_page_kind(run.secinfo_flags)}  {'measured' if run.measured else 'not measured'}"
        )
    return 0


def describe(image: Image) -> str:
    """Say in words how large an enclave is."""
    return (
        f"{_count(image.pages, 'page')}, {_count(image.threads, 'thread')}, SIZE {image.size:#x}, "
        f"SSAFRAMESIZE {image.ssaframesize}"
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _page_kind(secinfo_flags: int) -> str:
    from softsgx.arch.secinfo import (  # noqa: PLC0415
        SECINFO_PAGE_TYPE,
        SECINFO_R,
        SECINFO_TCS,
        SECINFO_W,
        SECINFO_X,
    )

    if secinfo_flags & SECINFO_PAGE_TYPE == SECINFO_TCS:
        return "TCS    "
    letters = ((SECINFO_R, "R"), (SECINFO_W, "W"), (SECINFO_X, "X"))
    return "REG " + "".join(letter if secinfo_flags & bit else "-" for bit, letter in letters)
