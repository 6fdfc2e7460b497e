# SPDX-License-Identifier: Apache-2.0
"""SIGSTRUCTs put into the file of their enclave, where its format has a place for them: Intel SDK and Open Enclave.

Neither measures what is in that place: of the one it is in no segment, the other's loader writes zeros over it. Nothing else
of the file is changed, so what its loader takes from the metadata must be what the SIGSTRUCT lets start.
"""

from __future__ import annotations

from typing import IO, TYPE_CHECKING

from softsgx.arch.attributes import ATTRIBUTE_DEBUG
from softsgx.arch.structures import Sigstruct
from softsgx.errors import SoftsgxError
from softsgx.image import formats, intel
from softsgx.image.file import File
from softsgx.image.stream import measure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from softsgx.image.enclave import Enclave

_AT_ONCE = 1 << 20


def write(
    path: str, enclaves: Sequence[Enclave], sigstructs: Sequence[bytes], out: IO[bytes]
) -> None:
    """Write the file with its SIGSTRUCTs, one for each of its enclaves, read it back and measure it."""
    file = File.open(path)
    patches = []
    for enclave, css in zip(enclaves, sigstructs, strict=True):
        if enclave.place is None:
            raise SoftsgxError(f"{path}: {enclave.format} has no place for a SIGSTRUCT inside")
        _require_start(path, enclave, Sigstruct.decode(css))
        patches.append((enclave.place, css))
    signed = file.patched(patches)
    for start in range(0, file.size, _AT_ONCE):
        out.write(signed.read(start, min(_AT_ONCE, file.size - start), "the file"))
    # By the name of the one that was read, beside which its modules are.
    again = formats.read_file(File.again(path, out))
    for before, after, css in zip(enclaves, again, sigstructs, strict=True):
        if after.sigstruct != css or measure(after.image) != measure(before.image):
            raise SoftsgxError(f"{path}: with a SIGSTRUCT inside it would be another enclave")


def _require_start(path: str, enclave: Enclave, css: Sigstruct) -> None:
    """Refuse a SIGSTRUCT with which EINIT refuses what the loader makes of the metadata."""
    # Open Enclave's loader decides by itself.
    if enclave.format != intel.FORMAT:
        return
    for metadata, value, mask, option, free in (
        # The host decides about DEBUG.
        ("attributes", css.attributes, css.attributemask, "attributes", ATTRIBUTE_DEBUG),
        ("xfrm", css.xfrm, css.xfrmmask, "xfrm", 0),
        ("desired_misc_select", css.miscselect, css.miscmask, "miscselect", 0),
    ):
        asked = int(enclave.fields[metadata]) & ~free
        if (asked ^ value) & mask & ~free:
            raise SoftsgxError(
                f"{path}: {enclave.variant} has {metadata} {asked:#x}, but of {mask:#x} the SIGSTRUCT "
                f"lets only {value & mask:#x} start; --{option} {asked:#x} fits"
            )
