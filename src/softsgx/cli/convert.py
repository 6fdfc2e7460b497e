# SPDX-License-Identifier: Apache-2.0
"""Convert an enclave file to SGXS; what is written is read back and must measure the same."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from softsgx.errors import SoftsgxError

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    from softsgx.cli.measure import add_reading  # noqa: PLC0415

    parser.add_argument("file", metavar="FILE", help="enclave, as `softsgx measure` reads it")
    parser.add_argument("out", metavar="OUT.sgxs", help="where to write the stream")
    parser.add_argument(
        "--variant",
        metavar="NAME",
        help="which enclave of a file that has several (default: the first that `measure` shows)",
    )
    parser.add_argument(
        "--canonical",
        action="store_true",
        help="pages by ascending offset, each with its chunks: refused if that is another enclave",
    )
    parser.add_argument(
        "--sigstruct-out", metavar="FILE", help="also write the SIGSTRUCT that came with FILE"
    )
    add_reading(parser)


def main(args: Namespace) -> int:
    """Write the stream; returns 0."""
    from softsgx.cli.measure import read  # noqa: PLC0415
    from softsgx.image import sgxs, stream  # noqa: PLC0415
    from softsgx.image.file import File  # noqa: PLC0415

    enclaves = read(args.file, args)
    names = [enclave.variant for enclave in enclaves]
    if args.variant is not None and args.variant not in names:
        raise SoftsgxError(f"--variant {args.variant}: {args.file} has {', '.join(names) or 'one'}")
    enclave = enclaves[0 if args.variant is None else names.index(args.variant)]
    if os.path.exists(args.out) and os.path.samefile(args.file, args.out):  # noqa: PTH110, PTH121
        raise SoftsgxError(f"{args.out}: is the file that is read")
    if args.sigstruct_out is not None and enclave.sigstruct is None:
        raise SoftsgxError(f"--sigstruct-out: no SIGSTRUCT came with {args.file}")
    image = sgxs.canonical(enclave.image) if args.canonical else enclave.image
    mrenclave = stream.measure(enclave.image)
    if stream.measure(image) != mrenclave:
        raise SoftsgxError(
            f"{args.file}: has not its pages by ascending offset; a canonical stream of it is another enclave"
        )
    try:
        with open(args.out, "wb") as out:  # noqa: PTH123
            sgxs.write(image, out)
        if args.sigstruct_out is not None and enclave.sigstruct is not None:
            with open(args.sigstruct_out, "wb") as out:  # noqa: PTH123
                out.write(enclave.sigstruct)
    except OSError as error:
        raise SoftsgxError(f"{error.filename}: cannot write it: {error.strerror}") from error
    (again,) = sgxs.read(File.open(args.out))
    if stream.measure(again.image) != mrenclave:
        raise SoftsgxError(f"{args.out}: does not measure as {args.file} does; do not use it")
    print(f"MRENCLAVE  {mrenclave.hex()}")
    print(
        f"written    {args.out}: SGXS, {'canonical' if again.fields['canonical'] == 'yes' else 'not canonical'}"
    )
    return 0
