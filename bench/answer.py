# SPDX-License-Identifier: Apache-2.0
"""Run `faults PAGES` and answer its page faults by UFFDIO_COPY of a ready page: the reference of reload-on-touch.

Python, as softsgx is, and nothing else: a read, an ioctl.
"""

import array
import ctypes
import fcntl
import os
import socket
import struct
import subprocess
import sys

PAGE = 4096
UFFDIO_COPY = 0xC028AA03
MESSAGE = struct.Struct("<B15xQ8x")  # struct uffd_msg of a page fault
COPY = struct.Struct("<QQQQq")


def main() -> int:
    ours, theirs = socket.socketpair()
    number = theirs.fileno()
    with subprocess.Popen([*sys.argv[1:], str(number)], pass_fds=[number]) as faults:
        theirs.close()
        _, (control, *_), _, _ = ours.recvmsg(1, socket.CMSG_SPACE(4))
        uffd = array.array("i", control[2])[0]
        ready = ctypes.create_string_buffer(b"\1" * PAGE, PAGE)
        source = ctypes.addressof(ready)
        for _ in range(int(sys.argv[2])):
            _, address = MESSAGE.unpack(os.read(uffd, MESSAGE.size))
            fcntl.ioctl(uffd, UFFDIO_COPY, COPY.pack(address & -PAGE, source, PAGE, 0, 0))
    return faults.returncode


if __name__ == "__main__":
    sys.exit(main())
