# SPDX-License-Identifier: Apache-2.0
"""What a debugger's access to enclave memory gives (kernel: sgx_vma_access of encl.c).

Owns nothing.  PTRACE_PEEK*, PTRACE_POKE* and ``/proc/PID/mem`` come here, because a mapping of EPC is
VM_IO: word by word through EDBGRD and EDBGWR, so that only a debug enclave shows anything.
"""

import errno
from typing import TYPE_CHECKING

from softsgx.arch.attributes import ATTRIBUTE_DEBUG
from softsgx.arch.secinfo import PAGE_SIZE
from softsgx.cpu.debug import edbgrd, edbgwr
from softsgx.cpu.epc import Epc
from softsgx.errors import DriverError, Fault

if TYPE_CHECKING:
    from softsgx.driver.encl import Encl

_WORD = 8  # sizeof(unsigned long): what one EDBGRD reads


def vma_read(encl: "Encl", address: int, length: int, vma_prot: int = 0) -> bytes:
    """Read a debug enclave's memory in a VMA of protection ``vma_prot``, all of it or DriverError.

    EFAULT for an enclave that is no debug enclave and for a page that is not there, EIO where EDBGRD
    refuses, as beyond the fields of a TCS.  EpcExhausted, BackingStalled: to be tried again.
    """
    _require_debug(encl)
    out = bytearray()
    at = address & -_WORD
    while at < address + length:
        out += _debug_read(encl, _reserve_page(encl, at, vma_prot), at)
        at += _WORD
    skipped = address % _WORD
    return bytes(out[skipped : skipped + length])


def vma_write(encl: "Encl", address: int, data: bytes, vma_prot: int = 0) -> None:
    """Write a debug enclave's memory; what lies before the first word that is refused is written.

    DriverError as ``vma_read``; of a TCS only FLAGS can be written, which is how DBGOPTIN is set.
    """
    _require_debug(encl)
    done = 0
    while done < len(data):
        at = (address + done) & -_WORD
        offset = address + done - at
        count = min(_WORD - offset, len(data) - done)
        page = _reserve_page(encl, at, vma_prot)
        word = bytearray(_debug_read(encl, page, at))
        word[offset : offset + count] = data[done : done + count]
        _debug_write(encl, page, at, bytes(word))
        done += count


def _require_debug(encl: "Encl") -> None:
    # SGX_ENCL_DEBUG, from CREATE on.
    if not encl.created or not encl.attributes & ATTRIBUTE_DEBUG:
        raise DriverError(errno.EFAULT, "the enclave is no debug enclave")


def _reserve_page(encl: "Encl", address: int, vma_prot: int) -> int:
    page = address & -PAGE_SIZE
    # It is in use: a page on its way out would be sealed without what is written here.
    encl.touched(page)
    refusal = encl.load_page_in_vma(page, vma_prot)
    index = encl.translate(page)
    if refusal is not None or index is None:
        raise DriverError(errno.EFAULT, refusal or f"the enclave has no page at {page:#x}")
    return Epc.address(index)


def _debug_read(encl: "Encl", page: int, address: int) -> bytes:
    try:
        code, value = edbgrd(encl.cpu, page + address % PAGE_SIZE)
    except Fault as fault:
        raise DriverError(errno.EIO, f"EDBGRD: {fault}") from fault
    if code:
        raise DriverError(errno.EIO, f"EDBGRD returned {code.name} ({code:d})")
    return value.to_bytes(_WORD, "little")


def _debug_write(encl: "Encl", page: int, address: int, word: bytes) -> None:
    try:
        code = edbgwr(encl.cpu, page + address % PAGE_SIZE, int.from_bytes(word, "little"))
    except Fault as fault:
        raise DriverError(errno.EIO, f"EDBGWR: {fault}") from fault
    if code:
        raise DriverError(errno.EIO, f"EDBGWR returned {code.name} ({code:d})")
