# SPDX-License-Identifier: Apache-2.0
"""Sign an enclave file: measure it and write its SIGSTRUCT. With a key in a file: for testing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from softsgx.errors import SoftsgxError

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

_WARNING = "Signed by software with a key in a file: for testing only."


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    from softsgx.cli.measure import add_reading  # noqa: PLC0415

    parser.add_argument("file", metavar="FILE", help="enclave, as `softsgx measure` reads it")
    parser.add_argument(
        "--key", required=True, metavar="KEY.pem", help="RSA-3072 private key with exponent 3"
    )
    parser.add_argument(
        "--generate-key",
        action="store_true",
        help="make KEY.pem first, if there is no such file yet",
    )
    parser.add_argument(
        "--out", metavar="FILE", help="where to write (default: the enclave's name + .sigstruct)"
    )
    parser.add_argument(
        "--date", metavar="YYYYMMDD", help="date of signing (default: SOURCE_DATE_EPOCH, or today)"
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--debug", action="store_true", help="let only a debug enclave start")
    mode.add_argument("--production", action="store_true", help="let no debug enclave start")

    number = parser.add_argument_group(
        "fields of the SIGSTRUCT", "Numbers are decimal or 0x hexadecimal."
    )
    for option, bits, default, text in (
        ("--isvprodid", 16, 0, "product of this signer"),
        ("--isvsvn", 16, 0, "security version of the product"),
        ("--attributes", 64, 0x4, "ATTRIBUTES without DEBUG (default: MODE64BIT)"),
        ("--attribute-mask", 64, 2**64 - 1 - 0x2, "which of them must match (default: all others)"),
        ("--xfrm", 64, 0x3, "XFRM (default: x87 and SSE)"),
        ("--xfrm-mask", 64, 0x3, "which of it must match (default: x87 and SSE)"),
        ("--miscselect", 32, 0, "MISCSELECT"),
        ("--misc-mask", 32, 2**32 - 1, "which of it must match (default: all)"),
        ("--swdefined", 32, 0, "the signer's own number"),
    ):
        number.add_argument(option, type=_unsigned(bits), default=default, metavar="N", help=text)
    for option in ("--isvfamilyid", "--isvextprodid"):
        number.add_argument(
            option,
            type=_sixteen_bytes,
            default=bytes(16),
            metavar="HEX",
            help="16 bytes, for an enclave with KSS",
        )
    add_reading(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def main(args: Namespace) -> int:
    """Write the SIGSTRUCT and say what it holds; returns 0."""
    from pathlib import Path  # noqa: PLC0415

    from softsgx.arch.attributes import ATTRIBUTE_DEBUG  # noqa: PLC0415
    from softsgx.cli.measure import describe, read  # noqa: PLC0415
    from softsgx.image import sigstruct, stream  # noqa: PLC0415

    date = _date(args.date)
    image = read(args.file, args)[0].image
    if args.generate_key and not Path(args.key).exists():
        sigstruct.generate_key(args.key)
    key = sigstruct.load_key(args.key)

    attributes, attributemask = args.attributes, args.attribute_mask
    if args.debug:
        attributes |= ATTRIBUTE_DEBUG
    if args.debug or args.production:
        attributemask |= ATTRIBUTE_DEBUG
    if args.production and attributes & ATTRIBUTE_DEBUG:
        raise SoftsgxError(f"--production, but --attributes {attributes:#x} has DEBUG")
    css = sigstruct.unsigned(
        enclavehash=stream.measure(image),
        date=date,
        attributes=attributes,
        attributemask=attributemask,
        xfrm=args.xfrm,
        xfrmmask=args.xfrm_mask,
        miscselect=args.miscselect,
        miscmask=args.misc_mask,
        isvprodid=args.isvprodid,
        isvsvn=args.isvsvn,
        isvfamilyid=args.isvfamilyid,
        isvextprodid=args.isvextprodid,
        swdefined=args.swdefined,
    )
    signed = sigstruct.sign(css, key)
    out = args.out or args.file + ".sigstruct"
    try:
        Path(out).write_bytes(signed)
    except OSError as error:
        raise SoftsgxError(f"{out}: cannot write the SIGSTRUCT: {error.strerror}") from error

    mrenclave = css.enclavehash.hex()
    mrsigner = sigstruct.mrsigner(signed[128:512]).hex()
    if args.json:
        import json  # noqa: PLC0415

        print(
            json.dumps(
                {
                    "file": args.file,
                    "sigstruct": out,
                    "mrenclave": mrenclave,
                    "mrsigner": mrsigner,
                    "isvprodid": args.isvprodid,
                    "isvsvn": args.isvsvn,
                    "date": f"{date:08x}",
                    "note": _WARNING,
                }
            )
        )
        return 0
    starts = (
        "only as debug" if args.debug else "never as debug" if args.production else "either way"
    )
    print(f"enclave    {args.file}: {describe(image)}")
    print(f"MRENCLAVE  {mrenclave}")
    print(f"MRSIGNER   {mrsigner}  ({args.key})")
    print(f"product    ISVPRODID {args.isvprodid}, ISVSVN {args.isvsvn}; starts {starts}")
    print(f"written    {out}: {len(signed)} bytes, dated {date:08x}")
    print(_WARNING)
    return 0


class _unsigned:  # noqa: N801  (argparse names the type in its message)
    """Parse a number of so many bits."""

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self.__name__ = f"{bits}-bit number"

    def __call__(self, text: str) -> int:
        number = int(text, 0)
        if not 0 <= number < 1 << self.bits:
            raise ValueError(text)
        return number


def _sixteen_bytes(text: str) -> bytes:
    value = bytes.fromhex(text)
    if len(value) != 16:
        raise ValueError(text)
    return value


_sixteen_bytes.__name__ = "16 bytes in hexadecimal"


# SIGSTRUCT.DATE is BCD: the digits that a reader sees in hexadecimal.
def _date(given: str | None) -> int:
    import os  # noqa: PLC0415
    from datetime import UTC, datetime  # noqa: PLC0415

    if given is not None:
        try:
            text = datetime.strptime(given, "%Y%m%d").replace(tzinfo=UTC).strftime("%Y%m%d")
        except ValueError:
            text = ""
        # strptime also takes shorter dates, such as 202611.
        if text != given:
            raise SoftsgxError(f"--date {given}: not a date as YYYYMMDD")
        return int(text, 16)
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    if epoch is None:
        return int(datetime.now(UTC).strftime("%Y%m%d"), 16)
    try:
        return int(datetime.fromtimestamp(int(epoch), UTC).strftime("%Y%m%d"), 16)
    except (ValueError, OverflowError, OSError) as error:
        raise SoftsgxError(f"SOURCE_DATE_EPOCH={epoch}: not a number of seconds") from error
