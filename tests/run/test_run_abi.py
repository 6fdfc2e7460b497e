# SPDX-License-Identifier: Apache-2.0
"""Numbers and layouts of the kernel that run/ knows, against the kernel's own headers."""

import subprocess
from pathlib import Path

import pytest

from softsgx.run import (
    bpf,
    elrange_map,
    node_stat,
    notification,
    numbers,
    page_faults,
    probes,
    ptrace,
    userfaults,
)

_HEADERS = [
    "stddef.h",
    "stdio.h",
    "sched.h",
    "fcntl.h",
    "signal.h",
    "sys/ioctl.h",
    "sys/mman.h",
    "sys/stat.h",
    "sys/syscall.h",
    "sys/ptrace.h",
    "sys/wait.h",
    "elf.h",
    "linux/audit.h",
    "linux/filter.h",
    "linux/seccomp.h",
    "linux/userfaultfd.h",
]


def constants() -> dict[str, int]:
    """Collect what numbers.py and ptrace.py call as the headers do."""
    found = {}
    for name, value in vars(numbers).items():
        if name.startswith("SYS_"):
            # glibc's SYS_ names are the kernel's __NR_ names in lower case.
            found[f"__NR_{name[4:].lower()}"] = value
        elif name.startswith(("PROT_", "MAP_", "MADV_", "MREMAP_", "CLONE_", "SIG", "O_", "AT_")):
            found[name] = value
    for name, value in vars(ptrace).items():
        if name.startswith("PTRACE_O_"):
            found[name] = value
        elif name.startswith("PTRACE_"):
            found[f"(int){name}"] = value
        elif name.startswith("EVENT_"):
            found[f"PTRACE_{name}"] = value
    found |= {
        "NT_X86_XSTATE": ptrace.NT_X86_XSTATE,
        "__WALL": ptrace.WALL,
        "sizeof(siginfo_t)": ptrace.SIGINFO_SIZE,
        "SECCOMP_RET_USER_NOTIF": bpf.RET_USER_NOTIF,
        "SECCOMP_RET_TRACE": bpf.RET_TRACE,
        "SECCOMP_RET_ALLOW": bpf.RET_ALLOW,
        "AUDIT_ARCH_X86_64": bpf._AUDIT_ARCH_X86_64,
        "BPF_LD | BPF_W | BPF_ABS": bpf._LD_W_ABS,
        "BPF_JMP | BPF_JEQ | BPF_K": bpf._JEQ,
        "BPF_JMP | BPF_JSET | BPF_K": bpf._JSET,
        "BPF_ALU | BPF_AND | BPF_K": bpf._AND,
        "BPF_RET | BPF_K": bpf._RET,
        "offsetof(struct seccomp_data, nr)": bpf._NR,
        "offsetof(struct seccomp_data, arch)": bpf._ARCH,
        "offsetof(struct seccomp_data, args[3])": bpf._low(3),
        "sizeof(struct seccomp_notif)": notification._NOTIF.size,
        "sizeof(struct seccomp_notif_resp)": notification._RESPONSE.size,
        "sizeof(struct seccomp_notif_addfd)": notification._FD.size,
        "SECCOMP_IOCTL_NOTIF_RECV": notification._RECV,
        "SECCOMP_IOCTL_NOTIF_SEND": notification._SEND,
        "SECCOMP_IOCTL_NOTIF_ADDFD": notification._ADDFD,
        "SECCOMP_USER_NOTIF_FLAG_CONTINUE": notification._CONTINUE,
        "_IOW(SECCOMP_IOC_MAGIC, 4, unsigned long long)": notification._SET_FLAGS,
        "sizeof(struct stat)": node_stat._STAT.size,
        "UFFDIO_API": elrange_map._UFFDIO_API,
        "UFFDIO_REGISTER": elrange_map._UFFDIO_REGISTER,
        "UFFD_API": elrange_map._UFFD_API,
        "UFFD_FEATURE_THREAD_ID | UFFD_FEATURE_EXACT_ADDRESS"
        " | UFFD_FEATURE_WP_HUGETLBFS_SHMEM": elrange_map._FEATURES,
        "UFFD_FEATURE_THREAD_ID+UFFD_FEATURE_EXACT_ADDRESS"
        "+UFFD_FEATURE_WP_HUGETLBFS_SHMEM": probes._UFFD_WANTED,
        "UFFDIO_WAKE": elrange_map._UFFDIO_WAKE,
        "sizeof(struct uffd_msg)": userfaults._MESSAGE.size,
        "UFFD_EVENT_PAGEFAULT": userfaults._PAGEFAULT,
        "UFFD_PAGEFAULT_FLAG_WP": page_faults._FLAG_WP,
        "UFFDIO_REGISTER_MODE_MISSING": elrange_map._MODE_MISSING,
        "UFFD_USER_MODE_ONLY": elrange_map.USER_MODE_ONLY,
    }
    return found


def test_numbers_are_the_headers(tmp_path: Path) -> None:
    wanted = constants()
    lines = ["#define _GNU_SOURCE", *(f"#include <{name}>" for name in _HEADERS)]
    # Older headers lack it.
    lines += ["#ifndef PTRACE_EVENT_STOP", "#define PTRACE_EVENT_STOP 128", "#endif"]
    lines += ["int main(void) {"]
    # Parenthesised, for some are expressions; a negative one is an int, an ioctl is not.
    for name, value in wanted.items():
        kind = "unsigned int" if value >= 0 else "int"
        lines.append(f'printf("%lld\\n", (long long)({kind})({name}));')
    source = tmp_path / "abi.c"
    source.write_text("\n".join([*lines, "return 0; }", ""]))
    program = tmp_path / "abi"
    subprocess.run(["cc", "-w", "-o", program, source], check=True)
    output = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    assert dict(zip(wanted, map(int, output.split()), strict=True)) == wanted


def test_a_notification_is_read_field_by_field() -> None:
    # struct seccomp_notif: id, pid, flags, then struct seccomp_data: nr, arch, ip, args.
    args = tuple(range(0x1000, 0x1006))
    raw = notification._NOTIF.pack(0xFEDCBA9876543210, 77, 0, 257, 0xC000003E, 0x401000, *args)
    assert raw[:8] == 0xFEDCBA9876543210.to_bytes(8, "little")
    assert raw[8:12] == (77).to_bytes(4, "little")
    assert raw[16:20] == (257).to_bytes(4, "little")
    assert raw[32:40] == (0x1000).to_bytes(8, "little")
    assert len(raw) == 80


def test_a_refused_call_answers_with_its_errno(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[bytes] = []
    listener = notification.Listener.__new__(notification.Listener)
    monkeypatch.setattr(listener, "_send", sent.append, raising=False)
    call = notification.Notification(5, 77, 257, 0x401000, (0,) * 6)
    listener.answer(call, -13)
    listener.answer(call, 20)
    listener.let(call)
    answers = [notification._RESPONSE.unpack(raw) for raw in sent]
    assert answers == [(5, 0, -13, 0), (5, 20, 0, 0), (5, 0, 0, 1)]
