# SPDX-License-Identifier: Apache-2.0
"""The ledger of a measurement: what each run of pages is, and MRENCLAVE as it would be behind it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from softsgx.arch.secinfo import PAGE_SIZE
from softsgx.cli.measure import page_kind
from softsgx.image.measurement import Measurement
from softsgx.image.names import Names
from softsgx.image.stream import Chunks, measure_record

if TYPE_CHECKING:
    from collections.abc import Iterator

    from softsgx.image.enclave import Enclave


def entries(path: str, enclave: Enclave) -> Iterator[dict[str, Any]]:
    """Yield the ledger's lines; the running hash of the last is MRENCLAVE."""
    names = Names(path, enclave)
    image = enclave.image
    measurement = Measurement()
    measurement.ecreate(image.ssaframesize, image.size)
    yield {
        "leaf": "ECREATE",
        "size": image.size,
        "ssaframesize": image.ssaframesize,
        "hash": measurement.digest().hex(),
    }
    for record in image.records:
        measure_record(measurement, record)
        if isinstance(record, Chunks):
            yield {
                "leaf": "EEXTEND",
                "offset": record.offset,
                "length": len(record.data),
                "what": names.place(record.offset),
                "hash": measurement.digest().hex(),
            }
            continue
        yield {
            "leaf": "EADD and EEXTEND" if record.measured else "EADD",
            "offset": record.offset,
            "length": record.length,
            "pages": record.length // PAGE_SIZE,
            "page": page_kind(record.secinfo_flags).strip(),
            "secinfo_flags": record.secinfo_flags,
            "measured": record.measured,
            "zeros": record.data is None,
            "what": record.name or ", ".join(names.sections(record.offset, record.length)),
            "hash": measurement.digest().hex(),
        }


def ledger(path: str, enclave: Enclave) -> bytes:
    """Print the ledger and return MRENCLAVE."""
    title = f"{path}: {enclave.format}"
    print(f"{title}, {enclave.variant}" if enclave.variant else title)
    print(f"{'from':>12} {'to':>12} {'pages':>7}  page     measured  hash so far       what")
    last = ""
    for entry in entries(path, enclave):
        last = entry["hash"]
        if entry["leaf"] == "ECREATE":
            text = f"ECREATE: SIZE {entry['size']:#x}, SSAFRAMESIZE {entry['ssaframesize']}"
            print(f"{'':12} {'':12} {'':7}  {'':7}  {'':8}  {last[:16]}  {text}")
            continue
        measured = "no"
        if entry["leaf"] == "EEXTEND":
            measured = "in part"
        elif entry["measured"]:
            measured = "yes"
        end = entry["offset"] + entry["length"]
        what = entry["what"] + (" (zeros)" if entry.get("zeros") and entry["what"] else "")
        print(
            f"{entry['offset']:#12x} {end:#12x} {entry.get('pages', ''):>7}  "
            f"{entry.get('page', ''):7}  {measured:8}  {last[:16]}  {what or 'zeros'}".rstrip()
        )
    print()
    return bytes.fromhex(last)
