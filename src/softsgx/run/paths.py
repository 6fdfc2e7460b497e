# SPDX-License-Identifier: Apache-2.0
"""The path calls: a device node answers, every other path goes on to the kernel.

Owns nothing but the answers. BPF sees no paths, so an open, stat, access or readlink of a traced
program asks here, at least once from each place that makes it (path_sites.py).
"""

import errno
import os
import struct

from softsgx.run import numbers as n
from softsgx.run.node_stat import NodeStat, describe_maps
from softsgx.run.tracee import LENT_PATH

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from softsgx.driver.nodes import Nodes
    from softsgx.run.notification import Listener, Notification
    from softsgx.run.path_sites import PathSites
    from softsgx.run.tracee import Process, Tracee

_PATH_MAX = 4096
_FIRST_LOOK = 256
_HINT = b"sgx"
_MEMORY = b"/mem"  # csrc/vdso/paths.S asks about these as well
_DIR_CALLS = frozenset(
    (
        n.SYS_OPENAT,
        n.SYS_OPENAT2,
        n.SYS_NEWFSTATAT,
        n.SYS_READLINKAT,
        n.SYS_FACCESSAT,
        n.SYS_FACCESSAT2,
        n.SYS_STATX,
    )
)
_AT_SYMLINK_NOFOLLOW = 0x100
_O_CREAT_EXCL = 0o300
_AT_EMPTY_PATH = 0x1000
_STAT_AT = {n.SYS_NEWFSTATAT: 3, n.SYS_STATX: 2}  # which argument has the flags


class PathCalls:
    """Answers path calls from the driver's table of nodes."""

    def __init__(
        self,
        nodes: "Nodes",
        open_node: "Callable[[Tracee, str, int], int]",
        sites: "PathSites | None",
        kind_of: "Callable[[Tracee, int], str | None]",
        tracees: "dict[int, Tracee]",
    ) -> None:
        self._tracees = tracees
        self._nodes = nodes.paths
        self._links = nodes.links
        self._absent = nodes.absent
        self._names = nodes.names
        self._open_node = open_node
        self._sites = sites
        self._kind_of = kind_of
        self._records = NodeStat()

    def answer(self, listener: "Listener", call: "Notification", tracee: "Tracee | None") -> None:
        """Answer one call."""
        text = self._text(call, tracee) if tracee is not None else b""
        if tracee is not None and text.endswith(_MEMORY):
            target = self._memory_of(text, tracee)
            if target is not None and self._open_memory(listener, call, tracee, target):
                return
        path = self._path(call, tracee, text) if tracee is not None else None
        if tracee is not None and path is None and tracee.process.filtered:
            kind = self._descriptor(call, tracee)
            if kind is not None:
                self._stat(listener, call, tracee, kind, None)
                return
            maps = self._maps(call, tracee)
            if maps >= 0:
                flags = call.args[1 if call.number == n.SYS_OPEN else 2]
                listener.give(call, maps, flags & n.O_CLOEXEC)
                os.close(maps)
                return
        if tracee is not None and tracee.lent >= 0 and path == LENT_PATH:
            listener.give(call, tracee.lent, n.O_CLOEXEC)
            return
        node = self._nodes.get(path) if path else None
        if path in self._absent:
            listener.answer(call, -self._absent[path])
        elif node is None or path is None or tracee is None:
            if tracee is not None and self._sites is not None:
                self._sites.adopt(tracee, call)
            listener.let(call)
        elif call.number in (n.SYS_OPEN, n.SYS_OPENAT, n.SYS_OPENAT2):
            self._open(listener, call, tracee, node, path in self._links)
        elif call.number in (n.SYS_STAT, n.SYS_LSTAT, n.SYS_NEWFSTATAT, n.SYS_STATX):
            self._stat(listener, call, tracee, node, self._link_of(call, path))
        elif call.number in (n.SYS_READLINK, n.SYS_READLINKAT):
            self._readlink(listener, call, tracee, path)
        else:
            listener.answer(call, 0)  # access: the nodes are open to all

    def _path(self, call: "Notification", tracee: "Tracee", raw: bytes) -> str | None:
        if _HINT not in raw:
            return None
        path = os.fsdecode(raw)
        if not path.startswith("/"):
            path = os.path.join(self._base(call, tracee), path)
        # A node is no directory: a path that says so goes on to the kernel, as it stands.
        return None if path.endswith("/") else os.path.normpath(path)

    @staticmethod
    def _text(call: "Notification", tracee: "Tracee") -> bytes:
        at = call.args[1] if call.number in _DIR_CALLS else call.args[0]
        raw = tracee.mm.read(at, _FIRST_LOOK)
        if b"\0" not in raw and len(raw) == _FIRST_LOOK:
            raw = tracee.mm.read(at, _PATH_MAX)
        text, end, _ = raw.partition(b"\0")
        return text if end else b""

    @staticmethod
    def _base(call: "Notification", tracee: "Tracee") -> str:
        dirfd = call.args[0] & 0xFFFFFFFF
        at_cwd = call.number not in _DIR_CALLS or dirfd == n.AT_FDCWD & 0xFFFFFFFF
        try:
            return os.readlink(f"/proc/{tracee.tid}/{'cwd' if at_cwd else f'fd/{dirfd}'}")
        except OSError:
            return "/nonexistent"

    def _memory_of(self, text: bytes, tracee: "Tracee") -> "Process | None":
        # Loaded by those alone who look into others' memory.
        from softsgx.run.memory_files import target_of  # noqa: PLC0415

        return target_of(text, tracee, self._tracees)

    @staticmethod
    def _open_memory(
        listener: "Listener", call: "Notification", tracee: "Tracee", target: "Process"
    ) -> bool:
        from softsgx.run.memory_files import open_memory  # noqa: PLC0415

        return open_memory(listener, call, tracee, target)

    def _readlink(
        self, listener: "Listener", call: "Notification", tracee: "Tracee", path: str
    ) -> None:
        target = self._links.get(path)
        if target is None:
            listener.answer(call, -errno.EINVAL)
            return
        at, size = call.args[2:4] if call.number == n.SYS_READLINKAT else call.args[1:3]
        data = target.encode()[: min(size, _PATH_MAX)]
        written = tracee.mm.write(at, data)
        listener.answer(call, len(data) if written else -errno.EFAULT)

    def _open(
        self, listener: "Listener", call: "Notification", tracee: "Tracee", node: str, link: bool
    ) -> None:
        if call.number == n.SYS_OPENAT2:
            how = tracee.mm.read(call.args[2], 8)
            if len(how) < 8:
                listener.answer(call, -errno.EFAULT)
                return
            flags = struct.unpack("<Q", how)[0] & 0xFFFFFFFF
        else:
            flags = call.args[1 if call.number == n.SYS_OPEN else 2] & 0xFFFFFFFF
        if flags & _O_CREAT_EXCL == _O_CREAT_EXCL:
            listener.answer(call, -errno.EEXIST)
        elif flags & os.O_NOFOLLOW and link:
            listener.answer(call, -errno.ELOOP)
        elif flags & os.O_DIRECTORY:
            listener.answer(call, -errno.ENOTDIR)
        else:
            try:
                fd = self._open_node(tracee, node, flags & (os.O_ACCMODE | os.O_NONBLOCK))
            except OSError as error:
                listener.answer(call, -(error.errno or errno.EIO))
                return
            listener.give(call, fd, flags & n.O_CLOEXEC)
            os.close(fd)

    def _link_of(self, call: "Notification", path: str) -> str | None:
        # The link's target where the call asks for the link itself.
        itself = call.number == n.SYS_LSTAT
        if call.number in (n.SYS_NEWFSTATAT, n.SYS_STATX):
            flags = call.args[3 if call.number == n.SYS_NEWFSTATAT else 2]
            itself = bool(flags & _AT_SYMLINK_NOFOLLOW)
        return self._links.get(path) if itself else None

    def _stat(
        self,
        listener: "Listener",
        call: "Notification",
        tracee: "Tracee",
        kind: str,
        link: str | None,
    ) -> None:
        if call.number == n.SYS_STATX:
            at, data = call.args[4], self._records.statx(kind, link)
        else:
            at = call.args[2 if call.number == n.SYS_NEWFSTATAT else 1]
            data = self._records.stat(kind, link)
        listener.answer(call, 0 if tracee.mm.write(at, data) else -errno.EFAULT)

    # -- what a program that has opened a node asks besides -------------------------------------

    def _descriptor(self, call: "Notification", tracee: "Tracee") -> str | None:
        """Give the kind of node whose descriptor a stat call with an empty path is about."""
        if call.number not in _STAT_AT or not call.args[_STAT_AT[call.number]] & _AT_EMPTY_PATH:
            return None
        if tracee.mm.read(call.args[1], 1) not in (b"\0", b"") or not tracee.process.filtered:
            return None
        return self._kind_of(tracee, call.args[0] & 0xFFFFFFFF)

    def _maps(self, call: "Notification", tracee: "Tracee") -> int:
        """Give a descriptor with the caller's own maps, told as the kernel would; -1 for no such call."""
        if call.number not in (n.SYS_OPEN, n.SYS_OPENAT) or tracee.mm.enclaves is None:
            return -1
        path = self._text(call, tracee)
        pid, tid = tracee.process.pid, tracee.tid
        own = {b"/proc/%s/maps" % who for who in (b"self", b"thread-self", b"%d" % pid)}
        own |= {b"/proc/%s/task/%d/maps" % (who, tid) for who in (b"self", b"%d" % pid)}
        flags = call.args[1 if call.number == n.SYS_OPEN else 2]
        if path not in own or flags & os.O_ACCMODE:
            return -1
        try:
            with open(f"/proc/{pid}/maps", "rb") as maps:
                text = describe_maps(maps.read(), self._names)
        except OSError:
            return -1
        writable = os.memfd_create("maps", os.MFD_CLOEXEC)
        try:
            os.write(writable, text)
            return os.open(f"/proc/self/fd/{writable}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(writable)
