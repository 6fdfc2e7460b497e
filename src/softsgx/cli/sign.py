# SPDX-License-Identifier: Apache-2.0
"""Sign an enclave file: measure it and write its SIGSTRUCT, by a key in a file or in two steps by one elsewhere.

In two steps: --digest-out writes what is to be signed (RSASSA-PKCS1-v1_5, SHA-256), and where the signature has been made
--signature, --public-key and --digest put the SIGSTRUCT together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from softsgx.errors import SoftsgxError

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from softsgx.arch.structures import Sigstruct

_WARNING = "Signed by software with a key in a file: for testing only."
_NUMBERS = (
    ("isvprodid", 16, 0, "product of this signer"),
    ("isvsvn", 16, 0, "security version of the product"),
    ("attributes", 64, 0x4, "ATTRIBUTES without DEBUG (default: MODE64BIT)"),
    ("attribute-mask", 64, 2**64 - 1 - 0x2, "which of them must match (default: all others)"),
    ("xfrm", 64, 0x3, "XFRM (default: x87 and SSE)"),
    ("xfrm-mask", 64, 0x3, "which of it must match (default: x87 and SSE)"),
    ("miscselect", 32, 0, "MISCSELECT"),
    ("misc-mask", 32, 2**32 - 1, "which of it must match (default: all)"),
    ("swdefined", 32, 0, "the signer's own number"),
)
_IDS = ("isvfamilyid", "isvextprodid")


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    from softsgx.cli.measure import add_reading  # noqa: PLC0415

    parser.add_argument("file", metavar="FILE", help="enclave, as `softsgx measure` reads it")
    parser.add_argument("--key", metavar="KEY.pem", help="RSA-3072 private key with exponent 3")
    parser.add_argument(
        "--digest-out", metavar="FILE", help="first step: write the 256 bytes that are to be signed"
    )
    parser.add_argument(
        "--signature", metavar="FILE", help="second step: their signature, 384 bytes, big-endian"
    )
    parser.add_argument("--public-key", metavar="PEM", help="whose signature it is")
    parser.add_argument("--digest", metavar="FILE", help="what --digest-out wrote")
    parser.add_argument(
        "--config",
        metavar="FILE.toml",
        help="fields by the names of the options; an option that is given counts more",
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
    for option, bits, _, text in _NUMBERS:
        number.add_argument(f"--{option}", type=_unsigned(bits), metavar="N", help=text)
    for option in _IDS:
        number.add_argument(
            f"--{option}",
            type=_sixteen_bytes,
            metavar="HEX",
            help="16 bytes, for an enclave with KSS",
        )
    add_reading(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def main(args: Namespace) -> int:
    """Write the SIGSTRUCT and say what it holds; returns 0."""
    from pathlib import Path  # noqa: PLC0415

    from softsgx.arch.structures import Sigstruct  # noqa: PLC0415
    from softsgx.cli.measure import describe, read  # noqa: PLC0415
    from softsgx.image import sigstruct, stream  # noqa: PLC0415
    from softsgx.image.inspection import debug_of  # noqa: PLC0415

    ways = [args.key is not None, args.digest_out is not None, args.signature is not None]
    if sum(ways) != 1:
        raise SoftsgxError("one of --key, --digest-out and --signature says how to sign")
    _complete(args)
    image = read(args.file, args)[0].image
    mrenclave = stream.measure(image)
    if args.signature is not None:
        signed = _second_step(args, mrenclave)
        css = Sigstruct.decode(signed)
    else:
        css = _fields(args, mrenclave)
    if args.digest_out is not None:
        _write(args.digest_out, sigstruct.signed_bytes(css.encode()), "what is to be signed")
        print(f"MRENCLAVE  {mrenclave.hex()}")
        print(
            f"written    {args.digest_out}: 256 bytes, to be signed by RSASSA-PKCS1-v1_5 with SHA-256"
        )
        return 0
    if args.key is not None:
        if args.generate_key and not Path(args.key).exists():
            sigstruct.generate_key(args.key)
        signed = sigstruct.sign(css, sigstruct.load_key(args.key))
    out = args.out or args.file + ".sigstruct"
    _write(out, signed, "the SIGSTRUCT")
    mrsigner = sigstruct.mrsigner(signed[128:512]).hex()
    note = _WARNING if args.key is not None else "Signed elsewhere."
    if args.json:
        import json  # noqa: PLC0415

        print(
            json.dumps(
                {
                    "file": args.file,
                    "sigstruct": out,
                    "mrenclave": mrenclave.hex(),
                    "mrsigner": mrsigner,
                    "isvprodid": css.isvprodid,
                    "isvsvn": css.isvsvn,
                    "date": f"{css.date:08x}",
                    "note": note,
                }
            )
        )
        return 0
    print(f"enclave    {args.file}: {describe(image)}")
    print(f"MRENCLAVE  {mrenclave.hex()}")
    print(f"MRSIGNER   {mrsigner}  ({args.key or args.public_key})")
    print(f"product    ISVPRODID {css.isvprodid}, ISVSVN {css.isvsvn}; starts {debug_of(css)}")
    print(f"written    {out}: {len(signed)} bytes, dated {css.date:08x}")
    print(note)
    return 0


def _complete(args: Namespace) -> None:
    """Take from --config what no option gave, and the defaults for what is left."""
    given = {} if args.config is None else _config(args.config)
    for name, _, default, _ in _NUMBERS:
        _default(args, name, given.get(name, default))
    for name in _IDS:
        _default(args, name, given.get(name, bytes(16)))
    _default(args, "date", given.get("date"))
    if not args.debug and not args.production:
        args.debug, args.production = given.get("debug", False), given.get("production", False)


def _default(args: Namespace, name: str, value: Any) -> None:
    name = name.replace("-", "_")
    if getattr(args, name) is None:
        setattr(args, name, value)


def _config(path: str) -> dict[str, Any]:
    import tomllib  # noqa: PLC0415

    from softsgx.image.file import File  # noqa: PLC0415

    file = File.open(path)
    try:
        given = tomllib.loads(file.read(0, min(file.size, 1 << 20), "configuration").decode())
    except (ValueError, RecursionError) as error:
        file.damaged(0, f"not TOML: {error}")
    bits = {name: width for name, width, _, _ in _NUMBERS}
    for name, value in given.items():
        if name in bits:
            good = type(value) is int and 0 <= value < 1 << bits[name]
            wanted = f"a number of {bits[name]} bits"
        elif name in _IDS:
            try:
                given[name] = _sixteen_bytes(str(value))
                good = True
            except ValueError:
                good = False
            wanted = "16 bytes in hexadecimal, as a string"
        elif name == "date":
            good, wanted = isinstance(value, str), 'a date, as "20240101"'
        elif name in ("debug", "production"):
            good, wanted = isinstance(value, bool), "true or false"
        else:
            good, wanted = False, "one of the options that name fields"
        if not good:
            file.damaged(0, f"{name}: {wanted} is wanted")
    if given.get("debug") and given.get("production"):
        file.damaged(0, "debug and production exclude each other")
    return given


def _fields(args: Namespace, mrenclave: bytes) -> Sigstruct:
    from softsgx.arch.attributes import ATTRIBUTE_DEBUG  # noqa: PLC0415
    from softsgx.image import sigstruct  # noqa: PLC0415

    attributes, attributemask = args.attributes, args.attribute_mask
    if args.debug:
        attributes |= ATTRIBUTE_DEBUG
    if args.debug or args.production:
        attributemask |= ATTRIBUTE_DEBUG
    if args.production and attributes & ATTRIBUTE_DEBUG:
        raise SoftsgxError(f"--production, but --attributes {attributes:#x} has DEBUG")
    return sigstruct.unsigned(
        enclavehash=mrenclave,
        date=_date(args.date),
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


def _second_step(args: Namespace, mrenclave: bytes) -> bytes:
    from softsgx.image import sigstruct  # noqa: PLC0415
    from softsgx.image.file import File  # noqa: PLC0415

    if args.public_key is None or args.digest is None:
        raise SoftsgxError("--signature needs --public-key and --digest")
    digest = File.open(args.digest)
    if digest.size != 256:
        digest.damaged(0, f"{digest.size} bytes, but --digest-out writes 256")
    css = sigstruct.to_be_signed(digest.read(0, 256, "what was signed"))
    if css.enclavehash != mrenclave:
        digest.damaged(
            0, f"of MRENCLAVE {css.enclavehash.hex()}, but that of {args.file} is {mrenclave.hex()}"
        )
    signature = File.open(args.signature)
    signed = sigstruct.assemble(
        css,
        sigstruct.load_public_key(args.public_key),
        signature.read(0, min(signature.size, 385), "signature"),
    )
    refused = sigstruct.verify(signed)
    if refused is not None:
        signature.damaged(0, refused)
    return signed


def _write(path: str, content: bytes, what: str) -> None:
    try:
        with open(path, "wb") as out:  # noqa: PTH123
            out.write(content)
    except OSError as error:
        raise SoftsgxError(f"{path}: cannot write {what}: {error.strerror}") from error


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
