# SPDX-License-Identifier: Apache-2.0
"""The operands in user memory that several ENCLS leaves share, read with the checks that belong to them."""

from softsgx.arch.secinfo import SECINFO_RESERVED
from softsgx.arch.structures import Pageinfo, Secinfo
from softsgx.cpu.memory import Window
from softsgx.errors import Fault


def pageinfo_at(window: Window, rbx: int) -> Pageinfo:
    """Read a PAGEINFO."""
    return Pageinfo.decode(window.read(rbx, Pageinfo.SIZE))


def secinfo_at(window: Window, address: int) -> int:
    """Read a SECINFO; #GP if what is reserved is not zero."""
    data = window.read(address, Secinfo.SIZE)
    flags = Secinfo.decode(data).flags
    if flags & SECINFO_RESERVED or not Secinfo.reserved_is_zero(data):
        raise Fault.gp(f"SECINFO {flags:#x} has reserved bits")
    return flags
