# SPDX-License-Identifier: Apache-2.0
"""What the stat calls and /proc/PID/maps say of a device node, by its path and by a descriptor.

Owns the numbers of the nodes. Most are character devices of the misc driver, with a minor number that
is dynamic with the kernel; v16 has a major number of its own, dynamic too. Any that differ will do.

Sources: drivers/char/misc.c, arch/x86/include/uapi/asm/stat.h, include/uapi/linux/stat.h,
fs/proc/task_mmu.c (show_map_vma).
"""

import os
import stat
import struct
import time

from softsgx.driver.nodes import DCAP_1_5, ENCLAVE, ISGX, PROVISION, V16

_MISC_MAJOR = 10
_SGX_MAJOR = 236
_DEVICES = {
    ENCLAVE: (_MISC_MAJOR, 125),
    PROVISION: (_MISC_MAJOR, 126),
    ISGX: (_MISC_MAJOR, 124),
    V16: (_SGX_MAJOR, 0),
    DCAP_1_5: (_SGX_MAJOR, 0),
}
_DEVTMPFS = 5  # the minor number of the file system's own, anonymous device
_MODE = stat.S_IFCHR | 0o777
_LINK_MODE = stat.S_IFLNK | 0o777
_BLOCK = 4096
_STATX_BASIC_STATS = 0x7FF
_STATX_SIZE = 256
_STATX_TIMES = (64, 96, 112)  # atime, ctime, mtime
_STATX_DEVICES = 128  # rdev, then dev: major and minor of each
_STATX_HEAD = struct.Struct("<IIQIIIHxxQQQQ")
_STAT = struct.Struct("<QQQIIIIQqqq6Q24x")  # struct stat, 144 bytes

_PATH_COLUMN = 73


class NodeStat:
    """The records of the stat calls; `link` is the target where the node's link itself is meant."""

    def __init__(self) -> None:
        self._since = int(time.time())

    def stat(self, kind: str, link: str | None = None) -> bytes:
        """Give the struct stat of a node (144 bytes)."""
        mode, size = (_MODE, 0) if link is None else (_LINK_MODE, len(link))
        major, minor = _DEVICES[kind]
        device = os.makedev(major, minor) if link is None else 0
        times = (self._since, 0) * 3
        return _STAT.pack(_DEVTMPFS, minor, 1, mode, 0, 0, 0, device, size, _BLOCK, 0, *times)

    def statx(self, kind: str, link: str | None = None) -> bytes:
        """Give the struct statx of a node (256 bytes)."""
        mode, size = (_MODE, 0) if link is None else (_LINK_MODE, len(link))
        major, minor = _DEVICES[kind]
        record = bytearray(_STATX_SIZE)
        head = (_STATX_BASIC_STATS, _BLOCK, 0, 1, 0, 0, mode, minor, size, 0, 0)
        _STATX_HEAD.pack_into(record, 0, *head)
        for offset in _STATX_TIMES:
            struct.pack_into("<q", record, offset, self._since)
        device = (major, minor) if link is None else (0, 0)
        struct.pack_into("<4I", record, _STATX_DEVICES, *device, 0, _DEVTMPFS)
        return bytes(record)


def describe_maps(maps: bytes, names: dict[str, str]) -> bytes:
    """Say in a /proc/PID/maps what the kernel's driver would: the node, at the offset that was given.

    `names` are the nodes' paths by kind. The offset is 0, which is what every known loader gives;
    the driver does not look at it.
    """
    # The pathname of a mapping of the memfd that driver/elrange.py makes.
    memfds = {b"/memfd:sgx_%s (deleted)" % kind.encode(): kind for kind in names}
    return b"".join(
        _device_line(line, memfds, names) if b"/memfd:sgx_" in line else line
        for line in maps.splitlines(keepends=True)
    )


def _device_line(line: bytes, memfds: dict[bytes, str], names: dict[str, str]) -> bytes:
    kind = memfds.get(line[line.index(b"/memfd:sgx_") :].rstrip())
    if kind is None:
        return line
    span, permissions, _ = line.split(None, 2)
    head = b"%s %s 00000000 00:%02x %d " % (span, permissions, _DEVTMPFS, _DEVICES[kind][1])
    return head.ljust(_PATH_COLUMN) + names[kind].encode() + b"\n"
