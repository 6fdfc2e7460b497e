# SPDX-License-Identifier: Apache-2.0
"""A file whose bytes come when the test says so: a file system of one file, in FUSE's own protocol.

Source: include/uapi/linux/fuse.h, version 7.31.
"""

import contextlib
import ctypes
import errno
import os
import stat
import struct
import threading
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_IN = struct.Struct("<IIQQIIII")
_OUT = struct.Struct("<IiQ")
_INIT_OUT = struct.Struct("<IIIIHHIIHHI28x")
_ATTR = struct.Struct("<QII QQQQQQ IIIIIIIIII")
_GETATTR, _STATFS, _OPEN, _READ, _WRITE, _RELEASE, _INIT = 3, 17, 14, 15, 16, 18, 26
_NO_ANSWER = {2, 36, 42}  # FORGET, INTERRUPT, BATCH_FORGET
_FOPEN_DIRECT_IO = 1
_MNT_DETACH = 2


class SlowFile:
    """The file, mounted over ``path``; while ``gate`` is closed no read and no write is answered."""

    def __init__(self, path: Path, size: int) -> None:
        path.touch()
        self.path = path
        self.data = bytearray(size)
        self.gate = threading.Event()
        self.gate.set()
        # What was asked for, and whether somebody waits for the gate.
        self.asked: list[tuple[str, int, int]] = []
        self.waiting = threading.Event()
        self._fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={self._fuse},rootmode=100000,user_id={os.getuid()},group_id={os.getgid()}"
        if _libc.mount(b"slow", bytes(path), b"fuse", 6, options.encode()):
            number = ctypes.get_errno()
            os.close(self._fuse)
            raise OSError(number, os.strerror(number))
        self._server = threading.Thread(target=self._serve, daemon=True)
        self._server.start()

    def close(self) -> None:
        self.gate.set()
        _libc.umount2(bytes(self.path), _MNT_DETACH)
        self._server.join(10)
        assert not self._server.is_alive(), "the file is still in use"
        os.close(self._fuse)

    def _serve(self) -> None:
        while True:
            try:
                request = os.read(self._fuse, (1 << 20) + 4096)
            except OSError as error:
                if error.errno in {errno.ENODEV, errno.EBADF}:
                    return
                continue
            _, opcode, unique, *_ = _IN.unpack_from(request)
            if opcode in _NO_ANSWER:
                continue
            answer = self._answer(opcode, memoryview(request)[_IN.size :])
            error, data = (-errno.ENOSYS, b"") if answer is None else (0, answer)
            # Whoever asked may have been interrupted, or the file unmounted.
            with contextlib.suppress(FileNotFoundError):
                os.write(self._fuse, _OUT.pack(_OUT.size + len(data), error, unique) + data)

    def _answer(self, opcode: int, body: memoryview) -> bytes | None:
        if opcode == _INIT:
            return _INIT_OUT.pack(7, 31, 0, 0, 0, 0, 1 << 16, 1, 0, 0, 0)
        if opcode == _GETATTR:
            mode = stat.S_IFREG | 0o600
            size = len(self.data)
            times = (0, 0, 0, 0, 0, 0)
            return _ATTR.pack(
                *(1, 0, 0, 1, size, 0), *times, mode, 1, os.getuid(), os.getgid(), 0, 4096, 0
            )
        if opcode == _STATFS:
            return struct.pack("<QQQQQIIII24x", 0, 0, 0, 0, 0, 4096, 255, 4096, 0)
        if opcode == _OPEN:
            return struct.pack("<QII", 1, _FOPEN_DIRECT_IO, 0)
        if opcode == _READ:
            _, offset, size = struct.unpack_from("<QQI", body)
            self._pass("read", offset, size)
            return bytes(self.data[offset : offset + size])
        if opcode == _WRITE:
            _, offset, size = struct.unpack_from("<QQI", body)
            self._pass("write", offset, size)
            self.data[offset : offset + size] = body[40 : 40 + size]
            return struct.pack("<II", size, 0)
        return b"" if opcode == _RELEASE else None

    def _pass(self, what: str, offset: int, size: int) -> None:
        self.asked.append((what, offset, size))
        if not self.gate.is_set():
            self.waiting.set()
            self.gate.wait()
