# SPDX-License-Identifier: Apache-2.0
"""Sign an enclave file: measure it and write its SIGSTRUCT, by a key in a file, in a token, or in two steps elsewhere.

In two steps: --digest-out writes what is to be signed (RSASSA-PKCS1-v1_5, SHA-256), and where the signature
has been made --signature, --public-key and --digest put the SIGSTRUCT together.
"""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

from softsgx.errors import SoftsgxError

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Sequence

    from softsgx.arch.structures import Sigstruct
    from softsgx.image.enclave import Enclave

_WARNING = "Signed by software with a key in a file: for testing only."
_ELSEWHERE = "Signed elsewhere; the signature was verified."
_LARGEST_CONFIG = 1 << 20
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
    parser.add_argument(
        "--key",
        metavar="KEY",
        help="RSA-3072 private key with exponent 3: a PEM file, or a PKCS#11 URI (pkcs11:object=...)",
    )
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
        help="make the PEM file first, if there is no such file yet",
    )
    parser.add_argument(
        "--out", metavar="FILE", help="where to write (default: the enclave's name + .sigstruct)"
    )
    parser.add_argument(
        "--embed",
        metavar="OUT",
        help="write FILE with the SIGSTRUCT in it (Intel SDK, Open Enclave), by another name or its own, "
        "instead of a SIGSTRUCT alone",
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
    """Write the SIGSTRUCT, or what is to be signed, and say what it holds; returns 0."""
    from softsgx.arch.structures import Sigstruct  # noqa: PLC0415
    from softsgx.cli.measure import describe, read  # noqa: PLC0415
    from softsgx.image import sigstruct, stream  # noqa: PLC0415
    from softsgx.image.inspection import debug_of  # noqa: PLC0415

    _require_one_way(args)
    _complete(args)
    enclaves = read(args.file, args)
    if args.embed is None:
        # The newest metadata is what a loader prefers, and one file holds one SIGSTRUCT.
        enclaves = enclaves[:1]
    image, mrenclave = enclaves[0].image, stream.measure(enclaves[0].image)
    if args.digest_out is not None:
        css = _fields(args, mrenclave)
        _write(args.digest_out, sigstruct.signed_bytes(css.encode()), "what is to be signed")
        facts = {"digest_file": args.digest_out}
        note = "To be signed by RSASSA-PKCS1-v1_5 with SHA-256."
    else:
        signed = _signed(args, enclaves)
        css = Sigstruct.decode(signed[0])
        facts = {"mrsigner": sigstruct.mrsigner(css.modulus).hex()}
        if args.embed is not None:
            facts["embedded"] = args.embed
            _embed(args, enclaves, signed)
        if args.embed is None or args.out is not None:
            facts["sigstruct"] = args.out or args.file + ".sigstruct"
            _write(facts["sigstruct"], signed[0], "the SIGSTRUCT")
        note = _ELSEWHERE if args.key is None or _in_token(args.key) else _WARNING
    if args.json:
        import json  # noqa: PLC0415

        said = {
            "file": args.file,
            **facts,
            "mrenclave": mrenclave.hex(),
            "isvprodid": css.isvprodid,
            "isvsvn": css.isvsvn,
            "date": f"{css.date:08x}",
            "note": note,
        }
        print(json.dumps(said))
        return 0
    print(f"enclave    {args.file}: {describe(image)}")
    print(f"MRENCLAVE  {mrenclave.hex()}")
    if "mrsigner" in facts:
        # Of a URI only what names the key: behind the question mark there may be a PIN.
        key = args.public_key if args.key is None else args.key
        name = key.partition("?")[0] if _in_token(key) else key
        print(f"MRSIGNER   {facts['mrsigner']}  ({name})")
    print(f"product    ISVPRODID {css.isvprodid}, ISVSVN {css.isvsvn}; starts {debug_of(css)}")
    if "digest_file" in facts:
        print(f"written    {args.digest_out}: 256 bytes, dated {css.date:08x}")
    if "embedded" in facts:
        inside = (
            "its SIGSTRUCT"
            if len(enclaves) == 1
            else f"the SIGSTRUCTs of its {len(enclaves)} metadata"
        )
        print(
            f"written    {facts['embedded']}: {args.file} with {inside} inside, dated {css.date:08x}"
        )
    if "sigstruct" in facts:
        print(f"written    {facts['sigstruct']}: {css.SIZE} bytes, dated {css.date:08x}")
    print(note)
    return 0


# What is left aside in silence would be taken for done.
def _require_one_way(args: Namespace) -> None:
    ways = ("key", "digest_out", "signature")
    given = [_option(name) for name in ways if getattr(args, name) is not None]
    if len(given) != 1:
        raise SoftsgxError(
            f"{' and '.join(given) or 'no key'} given; wanted is one of --key, --digest-out and "
            "--signature"
        )
    if args.signature is not None and (args.public_key is None or args.digest is None):
        raise SoftsgxError("--signature needs --public-key and --digest")
    if args.generate_key and (args.key is None or _in_token(args.key)):
        raise SoftsgxError("--generate-key makes a file, which --key KEY.pem names")
    if args.digest_out is not None and args.out is not None:
        raise SoftsgxError("--out names the SIGSTRUCT, but --digest-out writes none yet")
    if args.digest_out is not None and args.embed is not None:
        raise SoftsgxError("--embed needs a SIGSTRUCT, but --digest-out makes none yet")
    if args.signature is None:
        unused = [name for name in ("public_key", "digest") if getattr(args, name) is not None]
        if unused:
            raise SoftsgxError(f"{_option(unused[0])} is for --signature, the second step")
        return
    fields = ("config", "date", "debug", "production", *(name for name, *_ in _NUMBERS), *_IDS)
    for name in fields:
        value = getattr(args, name.replace("-", "_"))
        # 0 was given.
        if value is not None and value is not False:
            raise SoftsgxError(
                f"{_option(name)} given with --signature; the fields were signed in the first step"
            )


def _signed(args: Namespace, enclaves: Sequence[Enclave]) -> list[bytes]:
    """Return the SIGSTRUCT of each enclave."""
    from softsgx.image import stream  # noqa: PLC0415

    measured = [stream.measure(enclave.image) for enclave in enclaves]
    if args.signature is None:
        return [_by_key(args, _fields(args, mrenclave)) for mrenclave in measured]
    if len(measured) > 1:
        raise SoftsgxError(
            f"--embed: {args.file} has {len(measured)} metadata to be signed, and --signature is of one"
        )
    return [_second_step(args, measured[0])]


def _embed(args: Namespace, enclaves: Sequence[Enclave], signed: list[bytes]) -> None:
    from softsgx.image import embedding  # noqa: PLC0415
    from softsgx.image.output import require_readable, written  # noqa: PLC0415

    require_readable(args.embed)
    with written(args.embed, "the signed enclave", like=args.file) as out:
        embedding.write(args.file, enclaves, signed, out)


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _in_token(key: str) -> bool:
    return key.startswith("pkcs11:")


def _by_key(args: Namespace, css: Sigstruct) -> bytes:
    from pathlib import Path  # noqa: PLC0415

    from softsgx.image import sigstruct  # noqa: PLC0415

    if _in_token(args.key):
        from softsgx.image import pkcs11  # noqa: PLC0415

        return pkcs11.sign(css, pkcs11.KeyUri(args.key))
    if args.generate_key and not Path(args.key).exists():
        sigstruct.generate_key(args.key)
    return sigstruct.sign(css, sigstruct.load_key(args.key))


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

    from softsgx.arch.attributes import ATTRIBUTE_DEBUG  # noqa: PLC0415
    from softsgx.image.file import File  # noqa: PLC0415

    file = File.open(path)
    if file.size > _LARGEST_CONFIG:
        file.damaged(_LARGEST_CONFIG, f"{file.size} bytes, too many for the fields of a SIGSTRUCT")
    try:
        given = tomllib.loads(file.read(0, file.size, "configuration").decode())
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
            digits = value.strftime("%Y%m%d") if type(value) is date else value
            given[name] = digits
            good = isinstance(digits, str) and _is_date(digits)
            wanted = 'a date, as 2024-01-31 or "20240131"'
        elif name in ("debug", "production"):
            good, wanted = isinstance(value, bool), "true or false"
        else:
            good, wanted = False, "one of the options that name fields"
        if not good:
            file.damaged(0, f"{name}: {wanted} is wanted")
    if given.get("debug") and given.get("production"):
        file.damaged(0, "debug and production exclude each other")
    if given.get("production") and given.get("attributes", 0) & ATTRIBUTE_DEBUG:
        file.damaged(0, f"production, but attributes {given['attributes']:#x} have DEBUG")
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
    from softsgx.arch.structures import SIGSTRUCT_EXPONENT  # noqa: PLC0415
    from softsgx.image import sigstruct  # noqa: PLC0415
    from softsgx.image.file import File  # noqa: PLC0415

    digest = File.open(args.digest)
    if digest.size != 256:
        digest.damaged(0, f"{digest.size} bytes, but --digest-out writes 256")
    content = digest.read(0, 256, "what was signed")
    css = sigstruct.to_be_signed(content)
    foreign = sigstruct.format_error(css.replace(exponent=SIGSTRUCT_EXPONENT).encode())
    # A record has no reserved bytes: those of the file would be lost in it.
    if foreign is None and sigstruct.signed_bytes(css.encode()) != content:
        foreign = "reserved bytes are not zero"
    if foreign is not None:
        digest.damaged(0, f"not what --digest-out wrote: {foreign}")
    if css.enclavehash != mrenclave:
        digest.damaged(
            0, f"of MRENCLAVE {css.enclavehash.hex()}, but that of {args.file} is {mrenclave.hex()}"
        )
    key = sigstruct.load_public_key(args.public_key)
    signature = File.open(args.signature)
    try:
        # One byte more than there may be: what is longer is not read.
        made = signature.read(0, min(signature.size, sigstruct.KEY_SIZE + 1), "signature")
        return sigstruct.assemble(css, key, made)
    except SoftsgxError as error:
        signature.damaged(0, str(error))


def _write(path: str, content: bytes, what: str) -> None:
    from softsgx.image.output import written  # noqa: PLC0415

    with written(path, what) as out:
        out.write(content)


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

    if given is not None:
        if not _is_date(given):
            raise SoftsgxError(f"--date {given}: not a date as YYYYMMDD")
        return int(given, 16)
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    if epoch is None:
        return int(datetime.now(UTC).strftime("%Y%m%d"), 16)
    try:
        return int(datetime.fromtimestamp(int(epoch), UTC).strftime("%Y%m%d"), 16)
    except (ValueError, OverflowError, OSError) as error:
        raise SoftsgxError(f"SOURCE_DATE_EPOCH={epoch}: not a number of seconds") from error


def _is_date(text: str) -> bool:
    try:
        # strptime also takes shorter dates, such as 202611.
        return datetime.strptime(text, "%Y%m%d").replace(tzinfo=UTC).strftime("%Y%m%d") == text
    except ValueError:
        return False
