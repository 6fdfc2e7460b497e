# SPDX-License-Identifier: Apache-2.0
"""Compute the MRENCLAVE of an enclave file, as a processor would while the file is loaded.

Exit status 1 if the SIGSTRUCT that came with the file signs another MRENCLAVE.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from softsgx.image.enclave import Enclave
    from softsgx.image.stream import Image

_FORMATS = "ELF (Intel SDK, Open Enclave, or static with its TCS pages first), SGXS, pages, Gramine manifest"


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("file", metavar="FILE", help=f"enclave: {_FORMATS}")
    add_reading(parser)
    parser.add_argument(
        "--explain",
        action="store_true",
        help="print the ledger: page by page, with the running hash",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def add_reading(parser: ArgumentParser) -> None:
    """Declare the options of every verb that reads an enclave: what its file does not say."""
    parser.add_argument(
        "--ssaframesize",
        type=int,
        default=1,
        metavar="PAGES",
        help="SECS.SSAFRAMESIZE that the host will give, in pages, where the format does not say "
        "(default: 1)",
    )
    parser.add_argument(
        "--libpal", metavar="FILE", help="Gramine's libpal.so, for a Gramine manifest"
    )
    parser.add_argument(
        "--sigstruct",
        metavar="FILE",
        help="the SIGSTRUCT that belongs to FILE (default: the one in it, or FILE.sigstruct, .sig, .css)",
    )
    add_large(parser)


def add_large(parser: ArgumentParser) -> None:
    """Declare the option that lifts the limit on what is measured without being in the file."""
    parser.add_argument(
        "--large",
        action="store_true",
        help="hash also more than 5 GiB of what is not in the file: stack and heap",
    )


def read(path: str, args: Namespace) -> tuple[Enclave, ...]:
    """Read the enclaves of a file by the options of add_reading()."""
    from softsgx.image import formats  # noqa: PLC0415

    return formats.read(
        path,
        ssaframesize=args.ssaframesize,
        libpal=args.libpal,
        sigstruct=args.sigstruct,
        large=args.large,
    )


def main(args: Namespace) -> int:
    """Print the measurements; returns 1 where one is not what its SIGSTRUCT signs."""
    from softsgx.image import stream  # noqa: PLC0415

    enclaves = read(args.file, args)
    if args.explain and not args.json:
        from softsgx.cli.explain import ledger  # noqa: PLC0415

        measured = [(enclave, ledger(args.file, enclave)) for enclave in enclaves]
    else:
        measured = [(enclave, stream.measure(enclave.image)) for enclave in enclaves]
    if args.json:
        import json  # noqa: PLC0415

        first, *others = (_facts(args, *one) for one in measured)
        print(json.dumps({"file": args.file, **first, "others": others}))
    else:
        for enclave, mrenclave in measured:
            _print(args.file, enclave, mrenclave, runs=not args.explain)
    return 1 if any(_agreement(*one) == "differs" for one in measured) else 0


def _agreement(enclave: Enclave, mrenclave: bytes) -> str:
    if enclave.expected is None:
        return "none"
    return "agrees" if enclave.expected == mrenclave else "differs"


def _mrsigner(enclave: Enclave) -> str | None:
    if enclave.sigstruct is None:
        return None
    from softsgx.arch.structures import Sigstruct  # noqa: PLC0415
    from softsgx.image.sigstruct import mrsigner  # noqa: PLC0415

    return mrsigner(Sigstruct.decode(enclave.sigstruct).modulus).hex()


def _facts(args: Namespace, enclave: Enclave, mrenclave: bytes) -> dict[str, Any]:
    image = enclave.image
    facts = {
        "format": enclave.format,
        "variant": enclave.variant,
        "mrenclave": mrenclave.hex(),
        "mrsigner": _mrsigner(enclave),
        "sigstruct": _agreement(enclave, mrenclave),
        "sigstruct_mrenclave": None if enclave.expected is None else enclave.expected.hex(),
        "sigstruct_file": enclave.sigstruct_file or None,
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
                "name": run.name,
            }
            for run in image.runs
        ],
    }
    if args.explain:
        from softsgx.cli.explain import entries  # noqa: PLC0415

        facts["ledger"] = list(entries(args.file, enclave))
    return facts


def _print(path: str, enclave: Enclave, mrenclave: bytes, *, runs: bool) -> None:
    print(f"MRENCLAVE  {mrenclave.hex()}")
    mrsigner = _mrsigner(enclave)
    if mrsigner is not None:
        print(f"MRSIGNER   {mrsigner}")
    if enclave.expected is not None:
        where = f"{enclave.sigstruct_file}: offset {enclave.sigstruct_at:#x}"
        if enclave.expected == mrenclave:
            print(f"SIGSTRUCT  signs this MRENCLAVE ({where})")
        else:
            print(f"SIGSTRUCT  DOES NOT sign this MRENCLAVE but {enclave.expected.hex()} ({where})")
    kind = f"{enclave.format}, {enclave.variant}" if enclave.variant else enclave.format
    print(f"enclave    {path}: {kind}: {describe(enclave.image)}")
    for run in enclave.image.runs if runs else ():
        print(
            f"           {run.offset:#8x} .. {run.offset + run.length:#8x}  "
            f"{page_kind(run.secinfo_flags)}  {'measured' if run.measured else 'not measured'}"
            f"{'  ' + run.name if run.name else ''}"
        )


def describe(image: Image) -> str:
    """Say in words how large an enclave is."""
    return (
        f"{_count(image.pages, 'page')}, {_count(image.threads, 'thread')}, SIZE {image.size:#x}, "
        f"SSAFRAMESIZE {image.ssaframesize}"
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def page_kind(secinfo_flags: int) -> str:
    """Return page type and permissions in words of constant width."""
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
