# SPDX-License-Identifier: Apache-2.0
"""Quotes, as they lie in a file: every field, nothing verified.

    version 1, 2   EPID: header, report body, an encrypted signature
    version 3      ECDSA: header, report body, then signature, key, the quoting enclave's report and certificates
    version 4      the same, or with the body of a TD; what follows the key is one more certification datum
    version 5      likewise, and before the body its type and length

Source: intel/SGXDataCenterAttestationPrimitives, QuoteGeneration/quote_wrapper/common/inc/sgx_quote_3.h, _4.h, _5.h.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from softsgx.arch.layout import U16, U32, U64, Record, at, layout, raw
from softsgx.arch.structures import REPORT_MACED, Report

if TYPE_CHECKING:
    from softsgx.image.file import File

_TEE_TDX = 0x81
_CERTIFICATION_OF_QE_REPORT = 6


@layout(size=48)
class EpidHeader(Record):
    """Head of a quote of version 1 or 2."""

    version: int = at(0, U16)
    sign_type: int = at(2, U16)
    epid_group_id: int = at(4, U32)
    qe_svn: int = at(8, U16)
    pce_svn: int = at(10, U16)
    extended_epid_group_id: int = at(12, U32)
    basename: bytes = at(16, raw(32))


@layout(size=48)
class EcdsaHeader(Record):
    """Head of a quote of version 3 or 4."""

    version: int = at(0, U16)
    att_key_type: int = at(2, U16)
    tee_type: int = at(4, U32)
    qe_svn: int = at(8, U16)
    pce_svn: int = at(10, U16)
    vendor_id: bytes = at(12, raw(16))
    user_data: bytes = at(28, raw(20))


@layout(size=584)
class TdBody(Record):
    """What a TDX module says of a TD (version 1.0)."""

    tee_tcb_svn: bytes = at(0, raw(16))
    mrseam: bytes = at(16, raw(48))
    mrsignerseam: bytes = at(64, raw(48))
    seam_attributes: int = at(112, U64)
    td_attributes: int = at(120, U64)
    xfam: int = at(128, U64)
    mrtd: bytes = at(136, raw(48))
    mrconfigid: bytes = at(184, raw(48))
    mrowner: bytes = at(232, raw(48))
    mrownerconfig: bytes = at(280, raw(48))
    rtmr0: bytes = at(328, raw(48))
    rtmr1: bytes = at(376, raw(48))
    rtmr2: bytes = at(424, raw(48))
    rtmr3: bytes = at(472, raw(48))
    reportdata: bytes = at(520, raw(64))


@layout(size=6)
class BodyHead(Record):
    """What precedes the body in version 5."""

    body_type: int = at(0, U16)
    size: int = at(2, U32)


@layout(size=64)
class TdBodyMore(Record):
    """What follows the body of a TD of version 1.5."""

    tee_tcb_svn2: bytes = at(0, raw(16))
    mrservicetd: bytes = at(16, raw(48))


_BODIES = {1: REPORT_MACED, 2: TdBody.SIZE, 3: TdBody.SIZE + TdBodyMore.SIZE}


def _body(begin: bytes) -> tuple[int, int, int] | None:
    """Return the body's type, where it begins and its length, by a quote's first bytes; None if they are of none."""
    version = begin[0] | begin[1] << 8
    if version in (1, 2, 3, 4):
        kind = 2 if version == 4 and EcdsaHeader.decode(begin).tee_type == _TEE_TDX else 1
        return kind, EcdsaHeader.SIZE, _BODIES[kind]
    if version == 5:
        head = BodyHead.decode(begin, EcdsaHeader.SIZE)
        if _BODIES.get(head.body_type) == head.size:
            return head.body_type, EcdsaHeader.SIZE + BodyHead.SIZE, head.size
    return None


def is_quote(file: File) -> bool:
    """Tell whether a file may be a quote: by its version, and the lengths that it has inside."""
    if file.size < EcdsaHeader.SIZE + REPORT_MACED + 4:
        return False
    body = _body(file.read(0, EcdsaHeader.SIZE + BodyHead.SIZE, "quote"))
    if body is None:
        return False
    end = body[1] + body[2] + 4
    if file.size < end:
        return False
    return (
        end + int.from_bytes(file.read(end - 4, 4, "length of the signature"), "little")
        <= file.size
    )


def fields(file: File) -> dict[str, Any]:
    """Return a quote's fields; SoftsgxError says which is cut off."""
    begin = file.read(0, EcdsaHeader.SIZE + BodyHead.SIZE, "head of the quote")
    version, body = begin[0] | begin[1] << 8, _body(begin)
    if body is None:
        file.damaged(0, f"a quote of version {version} or with a body that is not known here")
    if version <= 2:
        header: Record = EpidHeader.decode(begin)
    else:
        header = EcdsaHeader.decode(begin)
    found: dict[str, Any] = {"header": as_fields(header)}
    kind, at_body, length = body
    at_signature = at_body + length
    content = file.read(at_body, length, "body of the quote")
    if kind == 1:
        found["report"] = report(content)
    else:
        found["td"] = as_fields(TdBody.decode(content))
        if kind == 3:
            found["td"].update(as_fields(TdBodyMore.decode(content, TdBody.SIZE)))
    length = int.from_bytes(file.read(at_signature, 4, "length of the signature"), "little")
    reader = _Reader(file, at_signature + 4, length)
    if version <= 2:
        found["signature"] = reader.take(length, "signature").hex()
        return found
    found["signature"] = reader.take(64, "ECDSA signature").hex()
    found["attestation_key"] = reader.take(64, "attestation key").hex()
    if version >= 4:
        kind, size = reader.number(2), reader.number(4)
        if kind != _CERTIFICATION_OF_QE_REPORT:
            found["certification_data"] = {
                "type": kind,
                "data": _text(reader.take(size, "certification data")),
            }
            return found
    found["qe_report"] = report(reader.take(REPORT_MACED, "report of the quoting enclave"))
    found["qe_report_signature"] = reader.take(64, "signature of that report").hex()
    found["qe_authentication_data"] = reader.take(reader.number(2), "authentication data").hex()
    kind, size = reader.number(2), reader.number(4)
    found["certification_data"] = {
        "type": kind,
        "data": _text(reader.take(size, "certification data")),
    }
    return found


def report(body: bytes) -> dict[str, Any]:
    """Return the fields of a REPORT, or of its body without KEYID and MAC."""
    whole = as_fields(Report.decode(body.ljust(Report.SIZE, b"\0")))
    if len(body) < Report.SIZE:
        del whole["keyid"], whole["mac"]
    return whole


def as_fields(record: Record) -> dict[str, Any]:
    """Return a record's fields, bytes in hexadecimal."""
    return {
        name: value.hex() if isinstance(value := getattr(record, name), bytes) else value
        for name in record.OFFSETS
    }


def _text(data: bytes) -> str:
    # Certificates are PEM.
    if data.startswith(b"-----"):
        text = data.rstrip(b"\0").decode("ascii", "backslashreplace").replace("\r", "")
        return "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in text)
    return data.hex()


class _Reader:
    def __init__(self, file: File, start: int, length: int) -> None:
        self._file = file
        self._at = start
        self._end = start + length

    def take(self, length: int, what: str) -> bytes:
        if self._at + length > self._end:
            self._file.damaged(
                self._at, f"{what}, {length:#x} bytes, is beyond the signature's end {self._end:#x}"
            )
        self._at += length
        return self._file.read(self._at - length, length, what)

    def number(self, length: int) -> int:
        return int.from_bytes(self.take(length, "a length"), "little")
