# SPDX-License-Identifier: Apache-2.0
"""What a program file is to exec(2), as far as it decides whether softsgx can serve it.

Owns nothing. Sources: execve(2), fs/binfmt_elf.c, fs/binfmt_script.c, capabilities(7).
"""

import os
import stat

_HEAD = 256  # BINPRM_BUF_SIZE: what the kernel looks at
_INTERPRETERS = 5  # fs/exec.c, exec_binprm: no longer chain of scripts is executed
_ELF = b"\x7fELF"
_ELFCLASS32 = 1
_CAPABILITIES = "security.capability"


def final_program(path: str) -> str:
    """Follow the first lines of scripts to the file that the kernel executes in the end."""
    for _ in range(_INTERPRETERS):
        head = _head(path)
        if not head.startswith(b"#!"):
            break
        words = head[2:].partition(b"\n")[0].split(None, 1)
        if not words:
            break
        path = os.fsdecode(words[0])
    return path


def is_32_bit(path: str) -> bool:
    """Tell whether a file is a 32-bit ELF (x32 included)."""
    head = _head(path)
    return head.startswith(_ELF) and head[4:5] == bytes([_ELFCLASS32])


def privilege(path: str) -> str:
    """Say in words what an exec of this file would raise; empty where it raises nothing.

    Under no_new_privs, which an ordinary user's filter needs, it raises nothing.
    """
    try:
        status = os.stat(path)
    except OSError:
        return ""
    if not stat.S_ISREG(status.st_mode):
        return ""
    if status.st_mode & stat.S_ISUID and status.st_uid != os.geteuid():
        return f"setuid to uid {status.st_uid}"
    # Without the group's x bit, setgid marks a file for mandatory locking.
    executable_setgid = stat.S_ISGID | stat.S_IXGRP
    if status.st_mode & executable_setgid == executable_setgid and status.st_gid != os.getegid():
        return f"setgid to gid {status.st_gid}"
    if os.geteuid() != 0 and _has_capabilities(path):
        return "given file capabilities"
    return ""


def _has_capabilities(path: str) -> bool:
    try:
        return bool(os.getxattr(path, _CAPABILITIES))
    except OSError:
        return False


def _head(path: str) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return b""
    try:
        return os.read(fd, _HEAD)
    except OSError:
        return b""
    finally:
        os.close(fd)
