# SPDX-License-Identifier: Apache-2.0
"""What /proc tells of a run: its processes, how its first program ended, what its supervisor holds."""

import ctypes
import fcntl
import os
import re
import signal
import struct
import threading
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")
# include/uapi/linux/pidfd.h; the exit status is there since Linux 6.15.
PIDFD_GET_INFO = 0xC040FF0B
PIDFD_INFO_EXIT = 1 << 3
_INFO = struct.Struct("<QQ11Ii")


class Member(NamedTuple):
    """A process of a session that has not ended."""

    pid: int
    parent: int
    started: int
    group: int
    session: int


def member(pid: int) -> Member | None:
    """Read /proc/PID/stat; None for one that has ended, waited for or not."""
    try:
        text = (PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    if fields[0] in "ZX":
        return None
    return Member(pid, int(fields[1]), int(fields[19]), int(fields[2]), int(fields[3]))


def members(session: int) -> list[Member]:
    """Give the processes of a session, the oldest first."""
    found = (member(int(path.name)) for path in PROC.glob("[0-9]*"))
    mine = [one for one in found if one is not None and one.session == session]
    return sorted(mine, key=lambda one: (one.started, one.pid))


def children(pid: int) -> list[int]:
    """Give the children that the first thread of a process has made."""
    with suppress(OSError):
        return [int(word) for word in (PROC / f"{pid}/task/{pid}/children").read_text().split()]
    return []


def marked(mark: str) -> dict[int, str]:
    """Give the processes that have this word in their environment, with their command lines."""
    found = {}
    for path in PROC.glob("[0-9]*"):
        with suppress(OSError):
            if mark.encode() in (path / "environ").read_bytes().split(b"\0"):
                line = (path / "cmdline").read_bytes().replace(b"\0", b" ")
                found[int(path.name)] = line.decode(errors="replace")
    return found


def condition(pid: int) -> str:
    """Describe the threads of a process: what they wait in, and which signals wait for them."""
    lines = [f"{pid}:"]
    with suppress(OSError):
        lines[0] += (PROC / str(pid) / "cmdline").read_text().replace("\0", " ")[-160:]
        for path in (PROC / str(pid) / "task").iterdir():
            status = (path / "status").read_text()
            kept = re.findall(r"^(?:State|SigPnd|ShdPnd|SigBlk|SigCgt):\t.*", status, re.MULTILINE)
            wait, call = ((path / name).read_text().strip() for name in ("wchan", "syscall"))
            lines.append(f"    {path.name} {wait} {call} {' '.join(kept)}".replace("\t", ""))
    return "\n".join(lines)


def tracer_of(pid: int) -> int:
    """Give the process that traces this one, or 0."""
    with suppress(OSError):
        found = re.search(
            r"^TracerPid:\s*(\d+)", (PROC / str(pid) / "status").read_text(), re.MULTILINE
        )
        return int(found[1]) if found else 0
    return 0


def send(pid: int, number: int, session: int) -> bool:
    """Send a signal to a living process of a session, and to no other that has got its number."""
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        one = member(pid)
        if one is None or one.session != session:
            return False
        signal.pidfd_send_signal(fd, number)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


class ExitWatch:
    """Tells how a process ended that is somebody else's child."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._fd = os.pidfd_open(pid)

    def close(self) -> None:
        """Stop watching."""
        os.close(self._fd)

    def status(self) -> int | None:
        """Give the exit status, negative for a signal; None where it lives or the kernel is older."""
        info = bytearray(_INFO.size)
        struct.pack_into("<Q", info, 0, PIDFD_INFO_EXIT)
        try:
            fcntl.ioctl(self._fd, PIDFD_GET_INFO, info)
        except OSError:
            return None
        mask, *_, status = _INFO.unpack(info)
        return os.waitstatus_to_exitcode(status & ~0x80) if mask & PIDFD_INFO_EXIT else None


def holdings(pid: int) -> Counter[str]:
    """Count what a process holds: descriptors, and mappings of files, by what they are of."""
    found: Counter[str] = Counter()
    for path in (PROC / str(pid) / "fd").iterdir():
        with suppress(OSError):
            found["descriptor " + re.sub(r"\d+", "N", str(path.readlink()))] += 1
    for line in (PROC / str(pid) / "maps").read_text().splitlines():
        name = line.split(None, 5)[5:]
        if name and name[0].startswith(("/memfd:", "/dev/", "anon_inode")):
            found["mapping " + name[0]] += 1
    return found


def resident(pid: int) -> int:
    """Give the resident memory of a process in KiB."""
    found = re.search(r"^VmRSS:\s*(\d+)", (PROC / str(pid) / "status").read_text(), re.MULTILINE)
    return int(found[1]) if found else 0


_PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends, so that none becomes a stranger's."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def reap_orphans(known: set[int], children: threading.Lock) -> None:
    """Wait for adopted children that have ended; for those that are known somebody else waits."""
    mine = os.getpid()
    for path in PROC.glob("[0-9]*"):
        with suppress(OSError):
            fields = (path / "stat").read_text().rpartition(")")[2].split()
            if fields[0] == "Z" and int(fields[1]) == mine:
                with children:
                    if int(path.name) not in known:
                        os.waitpid(int(path.name), os.WNOHANG)
