# SPDX-License-Identifier: Apache-2.0
"""Convert an enclave file to SGXS, to a plain ELF file or to pages; what is written is read back and must measure the same."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING

from softsgx.errors import SoftsgxError

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from typing import IO

    from softsgx.image.enclave import Enclave
    from softsgx.image.stream import Image

_MEMORY = ".bin"


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    from softsgx.cli.measure import add_reading  # noqa: PLC0415

    parser.add_argument("file", metavar="FILE", help="enclave, as `softsgx measure` reads it")
    parser.add_argument("out", metavar="OUT", help="where to write it")
    parser.add_argument(
        "--to",
        choices=_WRITERS,
        default="sgxs",
        help="the format of OUT: sgxs (default); elf, a plain ELF file with its TCS pages first; pages, "
        "a ledger of the pages, with the memory that they make in OUT" + _MEMORY,
    )
    parser.add_argument(
        "--variant",
        metavar="NAME",
        help="which enclave of a file that has several (default: the first that `measure` shows)",
    )
    parser.add_argument(
        "--canonical",
        action="store_true",
        help="SGXS with its pages by ascending offset, each with its chunks: refused if that is another "
        "enclave",
    )
    parser.add_argument(
        "--sigstruct-out", metavar="FILE", help="also write the SIGSTRUCT that came with FILE"
    )
    add_reading(parser)


def main(args: Namespace) -> int:
    """Write the enclave; returns 0."""
    from softsgx.image import stream  # noqa: PLC0415
    from softsgx.image.output import require_readable, written  # noqa: PLC0415

    if args.canonical and args.to != "sgxs":
        raise SoftsgxError(f"--canonical is of SGXS, but --to {args.to} is given")
    enclave = _chosen(args)
    if args.sigstruct_out is not None and enclave.sigstruct is None:
        raise SoftsgxError(f"--sigstruct-out: no SIGSTRUCT came with {args.file}")
    paths = [args.out, args.out + _MEMORY] if args.to == "pages" else [args.out]
    for path in (*paths, args.sigstruct_out):
        if path is not None and os.path.exists(path) and os.path.samefile(args.file, path):  # noqa: PTH110, PTH121
            raise SoftsgxError(f"{path}: is the file that is read")
    for path in paths:
        require_readable(path)
    mrenclave = stream.measure(enclave.image)
    with ExitStack() as files:
        outs = [files.enter_context(written(path, "it")) for path in paths]
        again, what = _WRITERS[args.to](args, enclave.image, outs)
        if stream.measure(again) != mrenclave:
            raise SoftsgxError(
                f"{args.out}: does not measure as {args.file} does; it is not written"
            )
        if args.sigstruct_out is not None and enclave.sigstruct is not None:
            files.enter_context(written(args.sigstruct_out, "it")).write(enclave.sigstruct)
    print(f"MRENCLAVE  {mrenclave.hex()}")
    print(f"written    {args.out}: {what}")
    return 0


def _chosen(args: Namespace) -> Enclave:
    from softsgx.cli.measure import read  # noqa: PLC0415

    enclaves = read(args.file, args)
    names = [enclave.variant for enclave in enclaves]
    if args.variant is not None and args.variant not in names:
        raise SoftsgxError(f"--variant {args.variant}: {args.file} has {', '.join(names) or 'one'}")
    return enclaves[0 if args.variant is None else names.index(args.variant)]


def _sgxs(args: Namespace, image: Image, outs: list[IO[bytes]]) -> tuple[Image, str]:
    from softsgx.image import sgxs, stream  # noqa: PLC0415
    from softsgx.image.file import File  # noqa: PLC0415

    if args.canonical:
        ordered = sgxs.canonical(image)
        if stream.measure(ordered) != stream.measure(image):
            raise SoftsgxError(
                f"{args.file}: has not its pages by ascending offset; a canonical stream of it is "
                "another enclave"
            )
        image = ordered
    (out,) = outs
    sgxs.write(image, out)
    (again,) = sgxs.read(File.again(args.out, out))
    canonical = again.fields["canonical"] == "yes"
    return again.image, f"SGXS, {'canonical' if canonical else 'not canonical'}"


def _elf(args: Namespace, image: Image, outs: list[IO[bytes]]) -> tuple[Image, str]:
    from softsgx.image import elf  # noqa: PLC0415
    from softsgx.image.elf_tables import Elf  # noqa: PLC0415
    from softsgx.image.file import File  # noqa: PLC0415

    (out,) = outs
    try:
        elf.write(image, out)
    except SoftsgxError as error:
        raise SoftsgxError(
            f"{args.file}: no plain ELF file can be this enclave: {error}"
        ) from error
    again = elf.image(Elf(File.again(args.out, out)), image.ssaframesize)
    option = f" --ssaframesize {image.ssaframesize}" if image.ssaframesize != 1 else ""
    return again, f"ELF{f', to be read with{option}' if option else ''}"


def _pages(args: Namespace, image: Image, outs: list[IO[bytes]]) -> tuple[Image, str]:
    from softsgx.image import pages  # noqa: PLC0415
    from softsgx.image.file import File  # noqa: PLC0415

    ledger, memory = outs
    name = args.out + _MEMORY
    pages.write(image, ledger, memory, os.path.basename(name))  # noqa: PTH119
    (again,) = pages.read(File.again(args.out, ledger), File.again(name, memory))
    return again.image, f"the ledger; the memory is {name}"


_WRITERS = {"sgxs": _sgxs, "elf": _elf, "pages": _pages}
