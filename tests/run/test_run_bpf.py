# SPDX-License-Identifier: Apache-2.0
"""The two seccomp filters, run instruction by instruction over calls."""

import struct
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from softsgx.run import bpf
from softsgx.run import numbers as n

X86_64 = 0xC000003E
I386 = 0x40000003
X32_BIT = 0x40000000
CLONE_UNTRACED = 0x00800000
HIGHEST_CALL = 470
DATA = struct.Struct("<IIQ6Q")  # struct seccomp_data
EXECUTABLE_PRIVATE = (0, 4096, n.PROT_READ | n.PROT_EXEC, n.MAP_PRIVATE, 3, 0)


class Filter:
    """An array of struct sock_filter, and the part of the BPF machine that it may use."""

    def __init__(self, program: bytes) -> None:
        assert len(program) % 8 == 0
        self.code = list(struct.iter_unpack("<HBBI", program))

    def verdict(self, number: int, args: tuple[int, ...] = (), arch: int = X86_64) -> int:
        data = DATA.pack(number, arch, 0x401000, *(*args, 0, 0, 0, 0, 0, 0)[:6])
        accumulator = at = 0
        while True:
            code, yes, no, k = self.code[at]
            at += 1
            match code:
                case 0x20:  # BPF_LD | BPF_W | BPF_ABS
                    assert k % 4 == 0
                    accumulator = struct.unpack_from("<I", data, k)[0]
                case 0x54:  # BPF_ALU | BPF_AND | BPF_K
                    accumulator &= k
                case 0x15:  # BPF_JMP | BPF_JEQ | BPF_K
                    at += yes if accumulator == k else no
                case 0x35:  # BPF_JMP | BPF_JGE | BPF_K
                    at += yes if accumulator >= k else no
                case 0x45:  # BPF_JMP | BPF_JSET | BPF_K
                    at += yes if accumulator & k else no
                case 0x06:  # BPF_RET | BPF_K
                    return k
                case _:
                    pytest.fail(f"instruction {at - 1}: code {code:#x} is none that is expected")


FIRST = Filter(bpf.first_filter())
SECOND = Filter(bpf.second_filter())
MEMORY = Filter(bpf.memory_filter(7))

calls = st.integers(0, HIGHEST_CALL)
words = st.one_of(
    st.integers(0, 64),
    st.integers(0, (1 << 64) - 1),
    st.sampled_from(
        [0xA400, 0xC030A401, 0x4008A402, 0xFFFFFFFF0000A4FF, 0x5401, bpf.INJECTION_DONE]
    ),
)
arguments = st.tuples(words, words, words, words, words, words)


def wanted_of_first(number: int, args: tuple[int, ...]) -> int:
    traced = False
    match number:
        case _ if number in bpf.PATH_CALLS:
            return bpf.RET_ALLOW if args[5] == bpf.PATH_DONE else bpf.RET_USER_NOTIF
        case n.SYS_MMAP:
            prot, flags = args[2], args[3]
            executable_or_shared = flags & n.MAP_SHARED or prot & n.PROT_EXEC
            traced = not flags & n.MAP_ANONYMOUS and bool(executable_or_shared)
        case n.SYS_IOCTL:
            traced = args[1] >> 8 & 0xFF == 0xA4
        case n.SYS_RT_SIGACTION:
            # int sig: the kernel looks at the low half of the register only.
            traced = args[1] != 0 and args[0] & 0xFFFFFFFF in n.FAULT_SIGNALS
        case n.SYS_CLONE:
            # Its child would be followed by nobody.
            traced = bool(args[0] & CLONE_UNTRACED)
        case n.SYS_PTRACE:
            traced = args[0] & 0xFFFFFFFF in {0, 16, 0x4206}  # TRACEME, ATTACH, SEIZE
        case n.SYS_PROCESS_VM_READV | n.SYS_PROCESS_VM_WRITEV:
            traced = True
        case n.SYS_RT_SIGRETURN:
            traced = args[0] == bpf.INJECTION_DONE
    return bpf.RET_TRACE if traced else bpf.RET_ALLOW


def wanted_of_second(number: int, args: tuple[int, ...]) -> int:
    traced = number in {
        n.SYS_MUNMAP,
        n.SYS_MPROTECT,
        n.SYS_PKEY_MPROTECT,
        n.SYS_MREMAP,
        n.SYS_MADVISE,
        n.SYS_REMAP_FILE_PAGES,
        n.SYS_FSTAT,
        n.SYS_FTRUNCATE,
        n.SYS_FALLOCATE,
    }
    if number == n.SYS_MMAP:
        traced = bool(args[3] & n.MAP_FIXED) or not args[3] & n.MAP_ANONYMOUS
    return bpf.RET_TRACE if traced else bpf.RET_ALLOW


def wanted_of_memory(number: int, args: tuple[int, ...]) -> int:
    moves = {0, 1, 17, 18, 19, 20, 295, 296, 327, 328}  # read, write, their p- and -v, -v2
    traced = number in moves and args[0] & 0xFFFFFFFF == 7
    return bpf.RET_TRACE if traced else bpf.RET_ALLOW


PAIRS = [
    pytest.param(FIRST, wanted_of_first, id="first"),
    pytest.param(SECOND, wanted_of_second, id="second"),
    pytest.param(MEMORY, wanted_of_memory, id="memory"),
]
Wanted = Callable[[int, tuple[int, ...]], int]


@pytest.mark.parametrize(("program", "wanted"), PAIRS)
def test_calls_of_no_interest_cost_nothing(program: Filter, wanted: Wanted) -> None:
    for number in range(HIGHEST_CALL):
        assert program.verdict(number) == wanted(number, (0,) * 6), number
        assert program.verdict(number | X32_BIT) == bpf.RET_ALLOW


@pytest.mark.parametrize(("program", "wanted"), PAIRS)
@pytest.mark.parametrize("number", [n.SYS_MMAP, n.SYS_IOCTL, n.SYS_RT_SIGACTION, n.SYS_MUNMAP])
def test_every_flag_of_a_traced_call(program: Filter, wanted: Wanted, number: int) -> None:
    for second in (0, 1, 0x1000, 0xA400, 0x1_0000_0000, 0xC030A401, 0xA5FF):
        for low in range(64):
            args = (low, second, low & 7, low, 3, 0)
            assert program.verdict(number, args) == wanted(number, args), args


@pytest.mark.parametrize(("program", "wanted"), PAIRS)
@given(number=calls, args=arguments)
@example(n.SYS_RT_SIGACTION, (n.SIGILL, 1 << 32, 0, 8, 0, 0))
@example(n.SYS_RT_SIGACTION, (1 << 32 | n.SIGSEGV, 0x7000, 0, 8, 0, 0))
@example(n.SYS_RT_SIGRETURN, (bpf.INJECTION_DONE & 0xFFFFFFFF, 0, 0, 0, 0, 0))
@example(n.SYS_RT_SIGRETURN, (bpf.INJECTION_DONE, 0, 0, 0, 0, 0))
@example(n.SYS_OPENAT, (0, 0, 0, 0, 0, bpf.PATH_DONE))
@example(n.SYS_OPENAT, (0, 0, 0, 0, 0, bpf.PATH_DONE & 0xFFFFFFFF))
@example(n.SYS_OPENAT, (0, 0, 0, 0, 0, bpf.PATH_DONE ^ 1))
@example(n.SYS_CLONE, (CLONE_UNTRACED | 17, 0, 0, 0, 0, 0))
@example(n.SYS_CLONE, (CLONE_UNTRACED >> 1 | 17, 0, 0, 0, 0, 0))
@example(n.SYS_IOCTL, (3, 1 << 40 | 0xA400, 0, 0, 0, 0))
@example(n.SYS_PTRACE, (0x4206, 1, 0, 0, 0, 0))
@example(n.SYS_PTRACE, (7, 1, 0, 0, 0, 0))
@example(n.SYS_PREAD64, (7, 0, 0, 0, 0, 0))
@example(n.SYS_PREAD64, (1 << 32 | 7, 0, 0, 0, 0, 0))
@example(n.SYS_PREAD64, (6, 0, 0, 0, 0, 0))
@example(n.SYS_MMAP, (0, 4096, 0, 1 << 32 | n.MAP_SHARED, 3, 0))
def test_any_call(program: Filter, wanted: Wanted, number: int, args: tuple[int, ...]) -> None:
    assert program.verdict(number, args) == wanted(number, args)


@pytest.mark.parametrize("program", [FIRST, SECOND, MEMORY], ids=["first", "second", "memory"])
@given(number=calls, args=arguments)
def test_a_32_bit_program_runs_untouched(
    program: Filter, number: int, args: tuple[int, ...]
) -> None:
    assert program.verdict(number, args, I386) == bpf.RET_ALLOW


def test_what_is_traced_from_the_start() -> None:
    # The model above could share a mistake with the filter: these are named one by one.
    assert FIRST.verdict(n.SYS_OPENAT) == bpf.RET_USER_NOTIF
    assert FIRST.verdict(n.SYS_READLINK) == bpf.RET_USER_NOTIF
    assert FIRST.verdict(n.SYS_MMAP, EXECUTABLE_PRIVATE) == bpf.RET_TRACE
    assert FIRST.verdict(n.SYS_IOCTL, (3, 0xC030A401, 0x7000)) == bpf.RET_TRACE
    assert FIRST.verdict(n.SYS_IOCTL, (0, 0x5401, 0x7000)) == bpf.RET_ALLOW  # TCGETS
    assert FIRST.verdict(n.SYS_RT_SIGACTION, (11, 0x7000, 0, 8)) == bpf.RET_TRACE
    assert FIRST.verdict(n.SYS_RT_SIGACTION, (11, 0, 0x7000, 8)) == bpf.RET_ALLOW
    assert FIRST.verdict(n.SYS_RT_SIGACTION, (10, 0x7000, 0, 8)) == bpf.RET_ALLOW
    assert FIRST.verdict(n.SYS_MUNMAP, (0x7000, 4096)) == bpf.RET_ALLOW
    assert FIRST.verdict(n.SYS_MPROTECT, (0x7000, 4096, 5)) == bpf.RET_ALLOW


def test_what_is_traced_once_a_node_is_open() -> None:
    private = (0, 4096, n.PROT_READ, n.MAP_PRIVATE, 3, 0)
    memory = (0, 4096, n.PROT_READ, n.MAP_PRIVATE | n.MAP_ANONYMOUS, -1 & (1 << 64) - 1, 0)
    assert SECOND.verdict(n.SYS_MMAP, private) == bpf.RET_TRACE
    assert SECOND.verdict(n.SYS_MMAP, memory) == bpf.RET_ALLOW
    fixed = (*memory[:3], memory[3] | n.MAP_FIXED, *memory[4:])
    assert SECOND.verdict(n.SYS_MMAP, fixed) == bpf.RET_TRACE
    for number in (10, 11, 25, 28, 216, 329):
        assert SECOND.verdict(number, (0x7000, 4096)) == bpf.RET_TRACE
    assert SECOND.verdict(n.SYS_OPENAT) == bpf.RET_ALLOW


@pytest.mark.parametrize("program", [FIRST, SECOND, MEMORY], ids=["first", "second", "memory"])
def test_the_kernel_would_take_the_program(program: Filter) -> None:
    # net/core/filter.c, bpf_check_classic: forward jumps that stay inside, a return at the end.
    assert len(program.code) <= 4096
    assert program.code[-1][0] == 0x06
    for at, (code, yes, no, _) in enumerate(program.code):
        if code & 7 == 5:
            assert at + 1 + max(yes, no) < len(program.code)
