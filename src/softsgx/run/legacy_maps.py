# SPDX-License-Identifier: Apache-2.0
"""mmap of the nodes of v16, isgx and DCAP 1.5: each mapping has a memfd of its own.

Owns nothing. A descriptor of such a node holds no enclave, so what the program maps is not its
descriptor's file: it is a fresh memfd, at the offset that is the address, whose descriptor the program
has for that call only.
"""

import errno
import os

from softsgx.driver.legacy import LegacyFile
from softsgx.errors import DriverError, Misaligned
from softsgx.run import numbers as n
from softsgx.run.elrange_map import EnclaveVma
from softsgx.run.ptrace import failed
from softsgx.run.tracee import Injector, Tracee

TYPE_CHECKING = False
if TYPE_CHECKING:
    from softsgx.driver.driver import DeviceFile
    from softsgx.driver.legacy import LegacyMapping
    from softsgx.run.mapping_calls import MappingCalls

_RESERVED = n.MAP_PRIVATE | n.MAP_ANONYMOUS | n.MAP_NORESERVE


def map_legacy(
    tracee: Tracee, file: "DeviceFile", mappings: "MappingCalls", *, may_write: bool
) -> EnclaveVma | None:
    """Carry out an mmap of the node; gives the mapping, still out of reach, or None with an errno in RAX."""
    if not isinstance(file, LegacyFile):
        raise TypeError(f"a node of kind {file.kind} holds no mappings")
    regs = tracee.regs
    hint, prot, flags, offset = regs.rdi, regs.rdx & 7, regs.r10, regs.r9
    if offset % n.PAGE_SIZE:
        raise Misaligned(errno.EINVAL, f"offset {offset:#x} is not page aligned")
    length = file.get_unmapped_area(regs.rsi, flags)
    if prot & n.PROT_WRITE and not may_write:
        raise DriverError(errno.EACCES, "the descriptor is open for reading only")
    fixed = flags & (n.MAP_FIXED | n.MAP_FIXED_NOREPLACE)
    with tracee.injecting() as injector:
        if fixed:
            start = file.align(hint, length)
        else:
            start = _reserve(injector, file, hint, length)
            fixed = n.MAP_FIXED
        mapping = file.mmap(start, offset // n.PAGE_SIZE)
        result = _map(injector, mapping, start, length, fixed, may_write=may_write)
        if not failed(result):
            # VM_DONTCOPY.
            injector.call(n.SYS_MADVISE, start, length, n.MADV_DONTFORK)
    regs.rax = result
    if failed(result):
        mapping.release()
        return None
    mappings.unmapped(tracee, start, start + length)
    vma = EnclaveVma(start, start + length, prot, mapping)
    vma.may_write = may_write
    vma.dontfork = True
    return vma


def _reserve(injector: Injector, file: LegacyFile, hint: int, length: int) -> int:
    """Find room for twice the length, and keep the half that is aligned (sgx_get_unmapped_area)."""
    area = injector.call(n.SYS_MMAP, hint, 2 * length, 0, _RESERVED, -1, 0)
    if failed(area):
        raise DriverError(failed(area), "no room for the mapping")
    start, end = file.align(area, length), area + 2 * length
    for low, high in ((area, start), (start + length, end)):
        if low < high:
            injector.call(n.SYS_MUNMAP, low, high - low)
    return start


def _map(
    injector: Injector,
    mapping: "LegacyMapping",
    start: int,
    length: int,
    fixed: int,
    *,
    may_write: bool,
) -> int:
    """Map the mapping's memfd without protection; gives what mmap returned."""
    fd = mapping.elrange.reopen(os.O_RDWR if may_write else os.O_RDONLY)
    try:
        lent = injector.lend(fd)
        if failed(lent):
            return lent
        result = injector.call(n.SYS_MMAP, start, length, 0, n.MAP_SHARED | fixed, lent, start)
        injector.call(n.SYS_CLOSE, lent)
        return result
    finally:
        os.close(fd)
