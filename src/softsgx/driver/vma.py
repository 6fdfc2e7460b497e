# SPDX-License-Identifier: Apache-2.0
"""What memory calls do to a VMA of an enclave file (kernel: mm/madvise.c, mm/mremap.c of 6.1).

Such a VMA is VM_PFNMAP | VM_IO | VM_DONTEXPAND | VM_DONTDUMP and not VM_DONTCOPY: fork copies it, a core
dump leaves it out, it never grows, and what frees or reclaims ordinary pages is refused.  munmap is
always granted and destroys nothing.  The VMA that stands in for it maps a memfd, so run/ asks here
before it lets such a call through.
"""

import errno

from softsgx.errors import DriverError

PROT_READ = 0x1
PROT_WRITE = 0x2
PROT_EXEC = 0x4
PROT_RWX = PROT_READ | PROT_WRITE | PROT_EXEC

MAP_SHARED = 0x01
MAP_TYPE = 0x0F
MAP_PRIVATE = 0x02
MAP_FIXED = 0x10
MAP_FIXED_NOREPLACE = 0x100000

# User addresses end here: the last page below 2^47 is nobody's.
TASK_SIZE = (1 << 47) - 4096

MREMAP_FIXED = 2
MREMAP_DONTUNMAP = 4

MADV_NORMAL = 0
MADV_RANDOM = 1
MADV_SEQUENTIAL = 2
MADV_WILLNEED = 3
MADV_DONTNEED = 4
MADV_FREE = 8
MADV_REMOVE = 9
MADV_DONTFORK = 10
MADV_DOFORK = 11
MADV_MERGEABLE = 12
MADV_UNMERGEABLE = 13
MADV_HUGEPAGE = 14
MADV_NOHUGEPAGE = 15
MADV_DONTDUMP = 16
MADV_DODUMP = 17
MADV_WIPEONFORK = 18
MADV_KEEPONFORK = 19
MADV_COLD = 20
MADV_PAGEOUT = 21
MADV_POPULATE_READ = 22
MADV_POPULATE_WRITE = 23
MADV_DONTNEED_LOCKED = 24
MADV_COLLAPSE = 25
MADV_HWPOISON = 100
MADV_SOFT_OFFLINE = 101

# What run/ applies to every new mapping, since the memfd's own VMA would be dumped.
MADVISE_AT_MMAP = MADV_DONTDUMP

# Granted, and the stand-in VMA takes it too.
_PASSED_ON = frozenset(
    (MADV_NORMAL, MADV_RANDOM, MADV_SEQUENTIAL, MADV_DONTFORK, MADV_DONTDUMP, MADV_NOHUGEPAGE)
)
# Granted without effect: on the memfd these would read ahead, merge or enlarge pages.
_IGNORED = frozenset(
    (MADV_WILLNEED, MADV_MERGEABLE, MADV_UNMERGEABLE, MADV_HUGEPAGE, MADV_KEEPONFORK)
)
_REFUSED = {
    MADV_DONTNEED: "VM_PFNMAP pages are not the caller's to free",
    MADV_DONTNEED_LOCKED: "VM_PFNMAP pages are not the caller's to free",
    MADV_FREE: "VM_PFNMAP pages are not the caller's to free",
    MADV_DOFORK: "the VMA is VM_IO",
    MADV_DODUMP: "enclave memory is never dumped",
    MADV_WIPEONFORK: "the VMA is shared",
    MADV_COLD: "VM_PFNMAP pages are on no LRU list",
    MADV_PAGEOUT: "VM_PFNMAP pages are on no LRU list",
    MADV_POPULATE_READ: "a VM_PFNMAP VMA cannot be populated",
    MADV_POPULATE_WRITE: "a VM_PFNMAP VMA cannot be populated",
    MADV_COLLAPSE: "VM_PFNMAP pages cannot be made huge",
}


def check_madvise(advice: int, prot: int) -> bool:
    """Judge madvise on an enclave VMA of protection ``prot``; DriverError with the kernel's errno if refused.

    True: granted, apply it to the VMA.  False: granted without any effect, answer 0.
    """
    if advice in _PASSED_ON:
        return True
    if advice in _IGNORED:
        return False
    if advice == MADV_REMOVE:
        # madvise_remove wants a shared writable VMA before it asks the file, which is no regular one.
        if not prot & PROT_WRITE:
            raise DriverError(errno.EACCES, "MADV_REMOVE: the VMA is not writable")
        raise DriverError(errno.ENODEV, "MADV_REMOVE: a device node has no pages to punch out")
    if advice in (MADV_HWPOISON, MADV_SOFT_OFFLINE):
        raise DriverError(errno.EPERM, "poisoning enclave pages is not modelled")
    reason = _REFUSED.get(advice, "unknown advice")
    raise DriverError(errno.EINVAL, f"madvise {advice} on enclave memory: {reason}")


def check_mremap(old_length: int, new_length: int, flags: int) -> None:
    """Judge mremap of an enclave VMA, lengths rounded up to pages; DriverError if refused.

    Shrinking is granted.  The kernel also grants a move, after which the pages are out of the enclave's
    reach; that is not modelled and refused with EINVAL.
    """
    if flags & MREMAP_DONTUNMAP:
        raise DriverError(errno.EINVAL, "MREMAP_DONTUNMAP on a VM_PFNMAP VMA")
    if new_length > old_length:
        raise DriverError(errno.EFAULT, "an enclave VMA is VM_DONTEXPAND: it cannot grow")
    if flags & MREMAP_FIXED:
        raise DriverError(errno.EINVAL, "moving enclave memory with mremap is not modelled")
