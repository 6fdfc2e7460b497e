# SPDX-License-Identifier: Apache-2.0
"""The seccomp filters of a traced program.

BPF sees numbers, neither paths nor ranges. The first filter is there from the start and costs
a program that never touches SGX its path calls and nothing else; the second is added to a
process when it first opens a device node, and brings the calls that can change that mapping.
A third one is for a process that opens the memory of one with enclaves.

Sources: seccomp(2), include/uapi/linux/{filter,seccomp,audit}.h.
"""

import struct

from softsgx.run import numbers as n

RET_USER_NOTIF = 0x7FC00000
RET_TRACE = 0x7FF00000
RET_ALLOW = 0x7FFF0000

# What an injected call ends with: rt_sigreturn, which every sandbox allows, with this argument.
INJECTION_DONE = 0x53475821_444F4E45
# The sixth argument of a path call whose path the image has looked at (csrc/vdso/paths.S).
PATH_DONE = 0x53475821_50415448

_AUDIT_ARCH_X86_64 = 0xC000003E
_LD_W_ABS = 0x20
_JEQ = 0x15
_JGE = 0x35
_JSET = 0x45
_AND = 0x54
_RET = 0x06
_NR = 0
_ARCH = 4
_SGX_MAGIC = 0xA4

PATH_CALLS = (
    n.SYS_OPEN,
    n.SYS_STAT,
    n.SYS_LSTAT,
    n.SYS_ACCESS,
    n.SYS_READLINK,
    n.SYS_OPENAT,
    n.SYS_NEWFSTATAT,
    n.SYS_READLINKAT,
    n.SYS_FACCESSAT,
    n.SYS_STATX,
    n.SYS_OPENAT2,
    n.SYS_FACCESSAT2,
)


# What a character device answers otherwise than the memfd behind it.
DESCRIPTOR_CALLS = (n.SYS_FSTAT, n.SYS_FTRUNCATE, n.SYS_FALLOCATE)
MEMORY_CALLS = (
    n.SYS_READ,
    n.SYS_WRITE,
    n.SYS_PREAD64,
    n.SYS_PWRITE64,
    n.SYS_READV,
    n.SYS_WRITEV,
    n.SYS_PREADV,
    n.SYS_PWRITEV,
    n.SYS_PREADV2,
    n.SYS_PWRITEV2,
)
MAPPING_CALLS = (
    n.SYS_MUNMAP,
    n.SYS_MPROTECT,
    n.SYS_PKEY_MPROTECT,
    n.SYS_MREMAP,
    n.SYS_MADVISE,
    n.SYS_REMAP_FILE_PAGES,
)


def _low(argument: int) -> int:
    return 16 + 8 * argument


def _high(argument: int) -> int:
    return 20 + 8 * argument


class _Program:
    """A filter in the making; jumps name labels, so that no offset is counted by hand."""

    def __init__(self) -> None:
        self._code: list[tuple[int, int, str, str]] = []
        self._labels: dict[str, int] = {}

    def label(self, name: str) -> None:
        self._labels[name] = len(self._code)

    def load(self, offset: int) -> None:
        self._code.append((_LD_W_ABS, offset, "", ""))

    def mask(self, bits: int) -> None:
        self._code.append((_AND, bits, "", ""))

    def jump(self, test: int, value: int, yes: str, no: str = "") -> None:
        self._code.append((test, value, yes, no))

    def ret(self, action: int) -> None:
        self._code.append((_RET, action, "", ""))

    def encode(self) -> bytes:
        out = []
        for here, (code, k, yes, no) in enumerate(self._code):
            jumps = [self._labels[to] - here - 1 if to else 0 for to in (yes, no)]
            out.append(struct.pack("<HBBI", code, *jumps, k))
        return b"".join(out)


def _native_only(p: _Program) -> None:
    # A 32-bit call has numbers of its own: it runs untouched.
    p.load(_ARCH)
    p.jump(_JEQ, _AUDIT_ARCH_X86_64, "native", "allow")
    p.label("native")
    p.load(_NR)


def first_filter() -> bytes:
    """Assemble the filter that is there from the start (an array of struct sock_filter)."""
    p = _Program()
    _native_only(p)
    p.jump(_JEQ, n.SYS_MMAP, "mmap")
    p.jump(_JEQ, n.SYS_IOCTL, "ioctl")
    p.jump(_JEQ, n.SYS_CLONE, "clone")
    p.jump(_JEQ, n.SYS_RT_SIGACTION, "sigaction")
    p.jump(_JEQ, n.SYS_RT_SIGRETURN, "sigreturn")
    p.jump(_JEQ, n.SYS_PTRACE, "ptrace")
    # To whom the memory of a process with enclaves is not shown.
    p.jump(_JEQ, n.SYS_PROCESS_VM_READV, "trace")
    p.jump(_JEQ, n.SYS_PROCESS_VM_WRITEV, "trace")
    for number in PATH_CALLS:
        p.jump(_JEQ, number, "path")
    p.ret(RET_ALLOW)
    # mmap of a file: executable (it may hold CPUID), or shared (it may be an enclave).
    p.label("mmap")
    p.load(_low(3))
    p.jump(_JSET, n.MAP_ANONYMOUS, "allow")
    p.jump(_JSET, n.MAP_SHARED, "trace")
    p.load(_low(2))
    p.jump(_JSET, n.PROT_EXEC, "trace", "allow")
    p.label("ioctl")
    p.load(_low(1))
    p.mask(0xFF00)
    p.jump(_JEQ, _SGX_MAGIC << 8, "trace", "allow")
    # A child that no tracer follows would have nobody to answer it.
    p.label("clone")
    p.load(_low(0))
    p.jump(_JSET, n.CLONE_UNTRACED, "trace", "allow")
    # rt_sigaction that sets the action of a signal by which a processor fault is told.
    p.label("sigaction")
    p.load(_low(1))
    p.jump(_JEQ, 0, "act_high", "which")
    p.label("act_high")
    p.load(_high(1))
    p.jump(_JEQ, 0, "allow")
    p.label("which")
    p.load(_low(0))
    for signal in n.FAULT_SIGNALS:
        p.jump(_JEQ, signal, "trace")
    p.ret(RET_ALLOW)
    # Who wants to trace is told why it cannot.
    p.label("ptrace")
    p.load(_low(0))
    for request in (n.PTRACE_TRACEME, n.PTRACE_ATTACH, n.PTRACE_SEIZE):
        p.jump(_JEQ, request, "trace")
    p.ret(RET_ALLOW)
    p.label("sigreturn")
    p.load(_low(0))
    p.jump(_JEQ, INJECTION_DONE & 0xFFFFFFFF, "done_high", "allow")
    p.label("done_high")
    p.load(_high(0))
    p.jump(_JEQ, INJECTION_DONE >> 32, "trace", "allow")
    p.label("path")
    p.load(_low(5))
    p.jump(_JEQ, PATH_DONE & 0xFFFFFFFF, "path_high", "notify")
    p.label("path_high")
    p.load(_high(5))
    p.jump(_JEQ, PATH_DONE >> 32, "allow", "notify")
    # BPF jumps forward only, so what all of them end in stands last.
    p.label("notify")
    p.ret(RET_USER_NOTIF)
    p.label("trace")
    p.ret(RET_TRACE)
    p.label("allow")
    p.ret(RET_ALLOW)
    return p.encode()


def memory_filter(fd: int) -> bytes:
    """Assemble the filter of a process to which descriptor `fd` shows the memory of one with enclaves."""
    p = _Program()
    _native_only(p)
    for number in MEMORY_CALLS:
        p.jump(_JEQ, number, "which")
    p.ret(RET_ALLOW)
    p.label("which")
    p.load(_low(0))
    p.jump(_JEQ, fd, "trace", "allow")
    p.label("trace")
    p.ret(RET_TRACE)
    p.label("allow")
    p.ret(RET_ALLOW)
    return p.encode()


def second_filter() -> bytes:
    """Assemble the filter of a process that has opened a device node."""
    p = _Program()
    _native_only(p)
    for number in (*MAPPING_CALLS, *DESCRIPTOR_CALLS):
        p.jump(_JEQ, number, "trace")
    p.jump(_JEQ, n.SYS_MMAP, "mmap", "allow")
    # Any mapping of a file may be an enclave's, and anything over an enclave range is a munmap.
    p.label("mmap")
    p.load(_low(3))
    p.jump(_JSET, n.MAP_FIXED, "trace")
    p.jump(_JSET, n.MAP_ANONYMOUS, "allow")
    p.label("trace")
    p.ret(RET_TRACE)
    p.label("allow")
    p.ret(RET_ALLOW)
    return p.encode()
