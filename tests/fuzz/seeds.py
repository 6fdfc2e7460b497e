# SPDX-License-Identifier: Apache-2.0
"""Whole files of every format that the verbs for enclaves at rest read, made by the tests and by softsgx itself.

Nothing here is anybody else's, and nothing is kept: all of it is made anew in a moment.
"""

from __future__ import annotations

import struct
import sys
import tempfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "image"))
from made_files import MAKERS, PT_LOAD, REG_RW, REG_RX, TCS, R, W, X, with_older_metadata
from made_files import elf as shared_object

from softsgx.arch.structures import Einittoken, Report, Sigstruct
from softsgx.image import elf, pages, sgxs, sigstruct
from softsgx.image.file import File
from softsgx.image.stream import Chunks, Fill, Image, PageRun

PAGE = 4096
ENCLAVE = (
    ("measure", "{0}"),
    ("measure", "--json", "{0}"),
    ("measure", "--explain", "{0}"),
    ("inspect", "{0}"),
    ("verify", "{0}"),
    ("diff", "{0}", "{good}"),
    ("convert", "{0}", "{out}"),
    ("convert", "--canonical", "{0}", "{out}"),
    ("convert", "--to", "elf", "{0}", "{out}"),
    ("convert", "--to", "pages", "{0}", "{out}"),
)


@dataclass(frozen=True)
class Seed:
    """Files by their names, and the commands that are given them: {0} is the first, {good} and {out} are others."""

    files: dict[str, bytes]
    commands: tuple[tuple[str, ...], ...] = ENCLAVE


def seeds() -> dict[str, Seed]:
    """Make them."""
    image = _image()
    made = {name: Seed({"enclave": maker().content}) for name, maker in MAKERS.items()}
    made["intel-sdk-two"] = Seed({"enclave": with_older_metadata(MAKERS["intel-sdk"]().content)})
    made["sgxs-any-order"] = Seed({"enclave.sgxs": _stream(image)})
    with tempfile.TemporaryFile() as out:
        elf.write(Image(0x4000, 1, image.records[:2]), out)
        made["elf"] = Seed({"enclave.elf": File.again("", out).read(0, out.seek(0, 2), "")})
    ledger, memory = BytesIO(), BytesIO()
    pages.write(image, ledger, memory, "memory.bin")
    made["pages"] = Seed({"ledger": ledger.getvalue(), "memory.bin": memory.getvalue()})
    made["gramine"] = Seed(
        {"app.manifest.sgx": MANIFEST, "libpal.so": _libpal()},
        tuple((*command, "--libpal", "{1}") for command in ENCLAVE[:2]),
    )
    css = _sigstruct()
    looks = (("inspect", "{0}"), ("inspect", "--json", "{0}"))
    made["sigstruct"] = Seed({"it.sig": css}, (*looks, ("verify", "{0}")))
    made["sigstruct-given"] = Seed(
        {"it.sig": css, "enclave": _stream(image)},
        (("verify", "{1}", "--sigstruct", "{0}"), ("measure", "{1}", "--sigstruct", "{0}")),
    )
    made["report"] = Seed({"it.report": Report.blank().encode()}, looks)
    made["token"] = Seed({"it.token": Einittoken.blank().encode()}, looks)
    for name, quote in _quotes().items():
        made[f"quote-{name}"] = Seed({"it.quote": quote}, looks)
    made["policy"] = Seed({"policy.toml": POLICY}, (("verify", "{good}", "--policy", "{0}"),))
    made["sign-config"] = Seed(
        {"sign.toml": CONFIG}, (("sign", "{good}", "--digest-out", "{out}", "--config", "{0}"),)
    )
    return made


def good() -> bytes:
    """Return an enclave that is not damaged."""
    return _stream(_image())


def _image() -> Image:
    tcs = memoryview(struct.pack("<QQQII", 0, 0, 0x3000, 0, 1).ljust(PAGE, b"\0"))
    return Image(
        0x10000,
        1,
        (
            PageRun(0, PAGE, TCS, tcs, measured=True, name="TCS"),
            PageRun(0x1000, 2 * PAGE, REG_RX, Fill(0x90909090, 2 * PAGE), measured=True),
            PageRun(0x8000, PAGE, REG_RW, Fill(7, PAGE), measured=False),
            PageRun(0x4000, 2 * PAGE, REG_RW, None, measured=False, name="heap"),
            Chunks(0x8100, Fill(7, 512)),
            Chunks(0x4100, Fill(0, 256)),
        ),
    )


def _stream(image: Image) -> bytes:
    out = BytesIO()
    sgxs.write(image, out)
    return out.getvalue()


def _libpal() -> bytes:
    segments = [
        (PT_LOAD, R | X, 0, bytes(0x40) + b"pal" * 500, 0x700),
        (PT_LOAD, R | W, 0x2000, b"data" * 20, 0x1800),
    ]
    return shared_object(segments, [], entry=0x100)


def _sigstruct() -> bytes:
    css = sigstruct.unsigned(
        enclavehash=bytes(32), date=0x20240101, attributes=4, attributemask=4, xfrm=3, xfrmmask=3
    )
    key = bytes(range(256)) + bytes(range(128))
    css = css.replace(modulus=key[::-1], exponent=3, signature=key, q1=key, q2=key)
    assert css.SIZE == Sigstruct.SIZE
    return css.encode()


def _quotes() -> dict[str, bytes]:
    body = bytes(64) + b"m" * 32 + bytes(288)
    certificates = b"-----BEGIN CERTIFICATE-----\nMII\n-----END CERTIFICATE-----\n"
    behind = body + b"q" * 64 + struct.pack("<H", 2) + b"ad"
    behind += struct.pack("<HI", 5, len(certificates)) + certificates
    keys = b"s" * 64 + b"k" * 64
    wrapped = keys + struct.pack("<HI", 6, len(behind)) + behind

    def quote(version: int, tee: int, body: bytes, signature: bytes) -> bytes:
        head = struct.pack("<HHI40x", version, 2, tee)
        return head + body + struct.pack("<I", len(signature)) + signature

    return {
        "epid": quote(2, 0, body, b"e" * 680),
        "3": quote(3, 0, body, keys + behind),
        "4": quote(4, 0, body, wrapped),
        "4-td": quote(4, 0x81, bytes(584), wrapped),
        "5": quote(5, 0, struct.pack("<HI", 1, 384) + body, wrapped),
        "5-td": quote(5, 0x81, struct.pack("<HI", 3, 648) + bytes(648), wrapped),
    }


MANIFEST = b"""\
loader.entrypoint.uri = "file:libpal.so"
[sgx]
enclave_size = "4M"
max_threads = 2
edmm_enable = false
trusted_files = [ { uri = "file:app", sha256 = "00" } ]
"""
POLICY = b"""\
mrsigner = ["c54a62f2be9ef76efb1f3930ad81ea7f60defc1f5f25e09b7c067a815ae0c6cb"]
isvprodid = [1]
isvsvn = 16
debug = false
date = "20240101"
"""
CONFIG = b"""\
isvprodid = 9
isvsvn = 2
attributes = 0x84
production = true
date = 2024-01-31
isvfamilyid = "abababababababababababababababab"
"""
