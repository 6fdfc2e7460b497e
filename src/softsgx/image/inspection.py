# SPDX-License-Identifier: Apache-2.0
"""What a file says of itself: every field of a SIGSTRUCT, an enclave's metadata, a report, a quote, a token."""

from __future__ import annotations

from typing import Any

from softsgx.arch import attributes
from softsgx.arch.structures import Einittoken, Report, Sigstruct
from softsgx.image import formats, quote, sigstruct
from softsgx.image.file import File

_FLAGS = {
    name.removeprefix("ATTRIBUTE_"): getattr(attributes, name)
    for name in dir(attributes)
    if name.startswith("ATTRIBUTE_")
}
_XFRM = {
    name.removeprefix("XFRM_"): getattr(attributes, name)
    for name in dir(attributes)
    if name.startswith("XFRM_")
    if getattr(attributes, name).bit_count() == 1
}
_MISC = {"EXINFO": attributes.MISC_EXINFO, "CPINFO": attributes.MISC_CPINFO}


def inspect(path: str, *, ssaframesize: int = 1, libpal: str | None = None) -> dict[str, Any]:
    """Return a file's kind and its fields; nothing is measured, and of signatures only a SIGSTRUCT's is checked."""
    file = File.open(path)
    if formats.is_sigstruct(file):
        content = file.read(0, Sigstruct.SIZE, "SIGSTRUCT")
        return {"file": path, "kind": "sigstruct", "sigstruct": of_sigstruct(content)}
    if file.size == Report.SIZE:
        return {"file": path, "kind": "report", "report": quote.report(file.read(0, 432, "report"))}
    if file.size == Einittoken.SIZE:
        token = Einittoken.decode(file.read(0, Einittoken.SIZE, "token"))
        return {"file": path, "kind": "einittoken", "einittoken": quote.as_fields(token)}
    if quote.is_quote(file):
        return {"file": path, "kind": "quote", "quote": quote.fields(file)}
    enclaves = formats.read(path, ssaframesize=ssaframesize, libpal=libpal, large=True)
    return {
        "file": path,
        "kind": "enclave",
        "enclaves": [
            {
                "format": enclave.format,
                "variant": enclave.variant,
                "size": enclave.image.size,
                "ssaframesize": enclave.image.ssaframesize,
                "pages": enclave.image.pages,
                "threads": enclave.image.threads,
                "fields": enclave.fields,
                "sigstruct_file": enclave.sigstruct_file,
                "sigstruct_offset": enclave.sigstruct_at,
                "sigstruct": None if enclave.sigstruct is None else of_sigstruct(enclave.sigstruct),
            }
            for enclave in enclaves
        ],
    }


def of_sigstruct(content: bytes) -> dict[str, Any]:
    """Return every field of a SIGSTRUCT, MRSIGNER, and what EINIT would say of it alone."""
    css = Sigstruct.decode(content)
    return {
        **quote.as_fields(css),
        "mrsigner": sigstruct.mrsigner(css.modulus).hex(),
        "starts": debug_of(css),
        "refused": sigstruct.verify(content),
    }


def debug_of(css: Sigstruct) -> str:
    """Tell which enclaves a SIGSTRUCT lets start: "only as debug", "never as debug" or "either way"."""
    if not css.attributemask & attributes.ATTRIBUTE_DEBUG:
        return "either way"
    return "only as debug" if css.attributes & attributes.ATTRIBUTE_DEBUG else "never as debug"


def words(name: str, value: int) -> str:
    """Return a number as a person reads it: in hexadecimal, and with the names of its bits where it has some."""
    names = {
        "attributes": _FLAGS,
        "attributemask": _FLAGS,
        "xfrm": _XFRM,
        "xfrmmask": _XFRM,
        "miscselect": _MISC,
        "miscmask": _MISC,
    }.get(name, {})
    if name == "date":
        return f"{value:08x}"
    if not names:
        return str(value) if value <= 9 else f"{value} ({value:#x})"
    found = sorted((mask, bit) for bit, mask in names.items() if value & mask)
    return f"{value:#x} ({' '.join(bit for _, bit in found)})" if found else f"{value:#x}"
