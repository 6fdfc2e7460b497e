# SPDX-License-Identifier: Apache-2.0
"""ptrace(2) and the signal calls beside it, as the supervisor uses them.

Owns nothing but the bindings. Every call here is made by the one thread that owns ptrace.
Sources: ptrace(2), include/uapi/linux/ptrace.h, arch/x86/include/uapi/asm/ptrace.h.
"""

import ctypes
import errno
import os
import struct

from softsgx.cpu.registers import Registers

PTRACE_PEEKUSER = 3
PTRACE_POKEUSER = 6
PTRACE_GETREGS = 12
PTRACE_SETREGS = 13
PTRACE_CONT = 7
PTRACE_SINGLESTEP = 9
PTRACE_SYSCALL = 24
PTRACE_SYSEMU = 31
PTRACE_SYSEMU_SINGLESTEP = 32
PTRACE_GETEVENTMSG = 0x4201
PTRACE_GETSIGINFO = 0x4202
PTRACE_SETSIGINFO = 0x4203
PTRACE_GETREGSET = 0x4204
PTRACE_SETREGSET = 0x4205
PTRACE_SEIZE = 0x4206
PTRACE_INTERRUPT = 0x4207
PTRACE_LISTEN = 0x4208
PTRACE_PEEKSIGINFO = 0x4209
PTRACE_GETSIGMASK = 0x420A
PTRACE_SETSIGMASK = 0x420B
_GET_DISPATCH = 0x4211  # PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG, younger than many headers

PTRACE_O_TRACESYSGOOD = 1
PTRACE_O_TRACEFORK = 1 << 1
PTRACE_O_TRACEVFORK = 1 << 2
PTRACE_O_TRACECLONE = 1 << 3
PTRACE_O_TRACEEXEC = 1 << 4
PTRACE_O_TRACESECCOMP = 1 << 7
PTRACE_O_EXITKILL = 1 << 20

EVENT_FORK = 1
EVENT_VFORK = 2
EVENT_CLONE = 3
EVENT_EXEC = 4
EVENT_SECCOMP = 7
EVENT_STOP = 128

NT_X86_XSTATE = 0x202
WALL = 0x40000000

SIGINFO_SIZE = 128
_DISPATCH_SIZE = 32  # struct ptrace_sud_config; mode comes first
XSTATE_MAX = 16 * 1024  # AMX raises it to about 11 KiB


class TraceeGone(Exception):
    """The thread was killed, or its exec took it away, while the supervisor worked for it."""


_ERRNO_FLOOR = 0xFFFFFFFFFFFFF000

_libc = ctypes.CDLL(None, use_errno=True)
_ptrace = _libc.ptrace
_ptrace.restype = ctypes.c_long
_ptrace.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long

# struct user_regs_struct
_REGS = struct.Struct("<27Q")
_U64 = struct.Struct("<Q")
# One buffer a kind serves all calls: they are made by one thread and copied out at once.
_regs = ctypes.create_string_buffer(_REGS.size)
_regs_at = ctypes.addressof(_regs)
_word = ctypes.create_string_buffer(8)
_word_at = ctypes.addressof(_word)
_siginfo = ctypes.create_string_buffer(SIGINFO_SIZE)
_siginfo_at = ctypes.addressof(_siginfo)
_xstate = ctypes.create_string_buffer(XSTATE_MAX)
_iovec = ctypes.create_string_buffer(16)
_iovec_at = ctypes.addressof(_iovec)
_PEEK = struct.Struct("<QIi")  # struct ptrace_peeksiginfo_args
_PEEKSIGINFO_SHARED = 1
_IOVEC = struct.Struct("<QQ")


class UserRegs(Registers):
    """The general registers of a stopped thread, with those that only the kernel's view has."""

    __slots__ = ("cs", "ds", "es", "fs", "gs", "orig_rax", "ss")

    cs: int
    ds: int
    es: int
    fs: int
    gs: int
    orig_rax: int
    ss: int

    def copy(self) -> "UserRegs":
        """Give an independent copy."""
        other = UserRegs.__new__(UserRegs)
        other.load(self.pack())
        return other

    def load(self, buffer: bytes | ctypes.Array[ctypes.c_char]) -> None:
        """Take every register from a `struct user_regs_struct`."""
        (
            self.r15,
            self.r14,
            self.r13,
            self.r12,
            self.rbp,
            self.rbx,
            self.r11,
            self.r10,
            self.r9,
            self.r8,
            self.rax,
            self.rcx,
            self.rdx,
            self.rsi,
            self.rdi,
            self.orig_rax,
            self.rip,
            self.cs,
            self.rflags,
            self.rsp,
            self.ss,
            self.fsbase,
            self.gsbase,
            self.ds,
            self.es,
            self.fs,
            self.gs,
        ) = _REGS.unpack_from(buffer)

    def fields(self) -> tuple[int, ...]:
        """Give the registers in the order of `struct user_regs_struct`."""
        return (
            self.r15,
            self.r14,
            self.r13,
            self.r12,
            self.rbp,
            self.rbx,
            self.r11,
            self.r10,
            self.r9,
            self.r8,
            self.rax,
            self.rcx,
            self.rdx,
            self.rsi,
            self.rdi,
            self.orig_rax,
            self.rip,
            self.cs,
            self.rflags,
            self.rsp,
            self.ss,
            self.fsbase,
            self.gsbase,
            self.ds,
            self.es,
            self.fs,
            self.gs,
        )

    def pack(self) -> bytes:
        """Encode as a `struct user_regs_struct`."""
        return _REGS.pack(*self.fields())


def _call(request: int, tid: int, address: int | None, data: int | None) -> int:
    result: int = _ptrace(request, tid, address, data)
    if result == -1:
        code = ctypes.get_errno()
        if code == errno.ESRCH:
            raise TraceeGone
        raise OSError(code, f"ptrace request {request:#x} of thread {tid}: {os.strerror(code)}")
    return result


def failed(result: int) -> int:
    """Give the errno of an injected call's result, or 0."""
    return (1 << 64) - result if result >= _ERRNO_FLOOR else 0


def seize(tid: int) -> None:
    """Attach to a thread with every option that the supervisor lives by."""
    options = (
        PTRACE_O_TRACESYSGOOD
        | PTRACE_O_TRACEFORK
        | PTRACE_O_TRACEVFORK
        | PTRACE_O_TRACECLONE
        | PTRACE_O_TRACEEXEC
        | PTRACE_O_TRACESECCOMP
        | PTRACE_O_EXITKILL
    )
    _call(PTRACE_SEIZE, tid, None, options)


def cont(tid: int, signal: int = 0) -> None:
    """Let a stopped thread run on, with a signal or without."""
    _call(PTRACE_CONT, tid, None, signal)


def cont_to_syscall(tid: int, signal: int = 0) -> None:
    """Let a stopped thread run to its next system call entry or exit."""
    _call(PTRACE_SYSCALL, tid, None, signal)


def cont_without_calls(tid: int, signal: int = 0) -> None:
    """Let a stopped thread run on; a system call that it makes stops it and is not carried out."""
    _call(PTRACE_SYSEMU, tid, None, signal)


def step(tid: int, signal: int = 0) -> None:
    """Let a stopped thread execute one instruction."""
    _call(PTRACE_SINGLESTEP, tid, None, signal)


def step_without_calls(tid: int, signal: int = 0) -> None:
    """Let a stopped thread execute one instruction, and no system call."""
    _call(PTRACE_SYSEMU_SINGLESTEP, tid, None, signal)


def listen(tid: int) -> None:
    """Leave a thread in its group stop, and hear of the end of it."""
    _call(PTRACE_LISTEN, tid, None, None)


def get_regs(tid: int, regs: UserRegs) -> None:
    """Read the registers of a stopped thread into `regs`."""
    _call(PTRACE_GETREGS, tid, None, _regs_at)
    regs.load(_regs)


def set_regs(tid: int, regs: UserRegs) -> None:
    """Write the registers of a stopped thread."""
    _REGS.pack_into(_regs, 0, *regs.fields())
    _call(PTRACE_SETREGS, tid, None, _regs_at)


# offsetof(struct user, u_debugreg); DR7 enables DRn locally by bit 2n, and has its R/W and LEN at bit 16 + 4n.
_DEBUG_REGISTERS = 848
WATCHABLE = 4
ON_EXECUTION = 0  # R/W and LEN


def watch(tid: int, places: "tuple[tuple[int, int], ...]") -> bool:
    """Stop a thread by SIGTRAP at these places, four at most: address, and R/W with LEN as DR7 has them.

    Replaces what was watched before. False where the kernel or the machine has no breakpoint to give.
    """
    try:
        _call(PTRACE_POKEUSER, tid, _DEBUG_REGISTERS + 8 * 7, 0)
        enable = 0
        for number, (address, kind) in enumerate(places):
            _call(PTRACE_POKEUSER, tid, _DEBUG_REGISTERS + 8 * number, address)
            enable |= 1 << 2 * number | kind << 16 + 4 * number
        _call(PTRACE_POKEUSER, tid, _DEBUG_REGISTERS + 8 * 7, enable)
    except OSError:
        return False
    return True


def take_debug_status(tid: int) -> int:
    """Read DR6 and clear it: bit n is that of DRn."""
    # The C library's function returns the word.
    status = _call(PTRACE_PEEKUSER, tid, _DEBUG_REGISTERS + 8 * 6, None)
    _call(PTRACE_POKEUSER, tid, _DEBUG_REGISTERS + 8 * 6, 0)
    return status


def event_message(tid: int) -> int:
    """Read what PTRACE_GETEVENTMSG says of the event stop: a thread id, or filter data."""
    _call(PTRACE_GETEVENTMSG, tid, None, _word_at)
    message: int = _U64.unpack_from(_word)[0]
    return message


def get_siginfo(tid: int) -> bytes:
    """Read the siginfo of a signal-delivery stop (128 bytes)."""
    _call(PTRACE_GETSIGINFO, tid, None, _siginfo_at)
    return _siginfo.raw


def set_siginfo(tid: int, siginfo: bytes) -> None:
    """Replace the siginfo of a signal-delivery stop."""
    ctypes.memmove(_siginfo, siginfo, SIGINFO_SIZE)
    _call(PTRACE_SETSIGINFO, tid, None, _siginfo_at)


def get_sigmask(tid: int) -> int:
    """Read the mask of blocked signals; bit n - 1 is signal n."""
    _call(PTRACE_GETSIGMASK, tid, 8, _word_at)
    mask: int = _U64.unpack_from(_word)[0]
    return mask


def set_sigmask(tid: int, mask: int) -> None:
    """Write the mask of blocked signals."""
    _U64.pack_into(_word, 0, mask)
    _call(PTRACE_SETSIGMASK, tid, 8, _word_at)


def get_xstate(tid: int) -> bytearray:
    """Read the XSAVE image (standard format) of a stopped thread."""
    _IOVEC.pack_into(_iovec, 0, ctypes.addressof(_xstate), XSTATE_MAX)
    _call(PTRACE_GETREGSET, tid, NT_X86_XSTATE, _iovec_at)
    length = _IOVEC.unpack_from(_iovec)[1]
    return bytearray(memoryview(_xstate)[:length])


def set_xstate(tid: int, image: bytes | bytearray) -> None:
    """Write the XSAVE image of a stopped thread."""
    if len(image) > XSTATE_MAX:
        raise ValueError(f"an XSAVE image of {len(image)} bytes; {XSTATE_MAX} at most")
    ctypes.memmove(_xstate, bytes(image), len(image))
    _IOVEC.pack_into(_iovec, 0, ctypes.addressof(_xstate), len(image))
    _call(PTRACE_SETREGSET, tid, NT_X86_XSTATE, _iovec_at)


def interrupt(tid: int) -> None:
    """Stop a running thread, at the latest where it returns from a system call."""
    _call(PTRACE_INTERRUPT, tid, None, None)


def has_stopped(tid: int) -> bool:
    """Tell whether a thread has stopped or ended, and nobody has been told yet."""
    what = os.WSTOPPED | os.WEXITED | os.WNOHANG | os.WNOWAIT
    try:
        return os.waitid(os.P_PID, tid, what) is not None
    except ChildProcessError:
        return True


def has_ended(tid: int) -> bool:
    """Tell whether a thread has ended, though nobody has been told yet."""
    try:
        return os.waitid(os.P_PID, tid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


def has_dispatch(tid: int) -> bool:
    """Tell whether a stopped thread has syscall user dispatch (Linux 6.4; before that nobody can tell)."""
    try:
        _call(_GET_DISPATCH, tid, _DISPATCH_SIZE, _siginfo_at)
    except OSError:
        return False
    return bool(int.from_bytes(_siginfo.raw[:8], "little"))


def stands(tid: int) -> bool:
    """Tell whether a thread stands at a stop, whether it was told of or not."""
    try:
        get_sigmask(tid)
    except TraceeGone:
        return False
    return True


def any_pending(tid: int) -> bool:
    """Tell whether any signal is queued for a stopped thread or its process, blocked or not."""
    for flags in (0, _PEEKSIGINFO_SHARED):
        _PEEK.pack_into(_iovec, 0, 0, flags, 1)
        if _call(PTRACE_PEEKSIGINFO, tid, _iovec_at, _siginfo_at):
            return True
    return False


def any_pending_of(tid: int, numbers: tuple[int, ...]) -> bool:
    """Tell whether one of these signals is queued for a stopped thread alone."""
    at = 0
    while True:
        _PEEK.pack_into(_iovec, 0, at, 0, 1)
        if not _call(PTRACE_PEEKSIGINFO, tid, _iovec_at, _siginfo_at):
            return False
        if int.from_bytes(_siginfo.raw[:4], "little") in numbers:
            return True
        at += 1


def tgkill(tgid: int, tid: int, signal: int) -> None:
    """Send a signal to one thread; a thread that is gone is no error."""
    _syscall(234, tgid, tid, signal)
