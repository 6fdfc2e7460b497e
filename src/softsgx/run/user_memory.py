# SPDX-License-Identifier: Apache-2.0
"""The memory of a program as a leaf or an ioctl on its behalf sees it.

Owns nothing. A page that is present is read from outside; any other is touched by the calling
thread itself, through an injected pread or pwrite on the enclave's own descriptor, so that
EFAULT and stalls (a page served by FUSE or by the program's userfaultfd) are that thread's own.
"""

import ctypes
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from softsgx.errors import Fault
from softsgx.run import numbers as n
from softsgx.run.tracee import Injector, Tracee, failed

if TYPE_CHECKING:
    from softsgx.cpu.memory import Elrange
    from softsgx.driver.driver import EnclaveFile

_libc = ctypes.CDLL(None, use_errno=True)
_READV = 310  # process_vm_readv
_WRITEV = 311
_IOVEC = struct.Struct("<QQ")
_PRESENT = 1 << 63
_TOP = 1 << 47
# No user mapping reaches the last page below 2^47, so no enclave page has this file offset.
_STAGING = _TOP - 4096
_SMALL = 16 * 4096


class ProgramMemory:
    """cpu's Memory port for the thread that stands in an ioctl on `file` (descriptor `fd`)."""

    def __init__(self, tracee: Tracee, file: "EnclaveFile", fd: int) -> None:
        self._tracee = tracee
        self._elrange = file.elrange
        self._fd = fd

    @contextmanager
    def user_access(self) -> "Iterator[ProgramMemory]":
        """Open the window; what is inside may suspend the caller."""
        yield self

    def read(self, address: int, length: int) -> bytes:
        """Read user memory; a bad pointer is a page fault at the first byte that is not there."""
        data = self._read_present(address, length)
        if data is not None:
            return data
        out = bytearray()
        with self._tracee.injecting() as injector:
            while len(out) < length:
                step = min(4096, length - len(out))
                done = self._injected(injector, n.SYS_PWRITE64, address + len(out), step)
                out += self._elrange.read(_STAGING, done)
                if done < step:
                    break
        self._elrange.discard(_STAGING, 4096)
        if len(out) < length:
            raise Fault.pf(address + len(out), "user memory is not readable")
        return bytes(out)

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Write user memory; a bad pointer is a page fault."""
        if self._present(address, len(data)) and _transfer(
            _WRITEV, self._tracee.process.pid, address, bytearray(data)
        ):
            return
        written = 0
        with self._tracee.injecting() as injector:
            while written < len(data):
                piece = data[written : written + 4096]
                self._elrange.write(_STAGING, piece)
                done = self._injected(injector, n.SYS_PREAD64, address + written, len(piece))
                written += done
                if done < len(piece):
                    break
        self._elrange.discard(_STAGING, 4096)
        if written < len(data):
            raise Fault.pf(address + written, "user memory is not writable")

    def fill(self, elrange: "Elrange", destination: int, source: int, length: int) -> int:
        """Copy user memory into the enclave's pages; give the bytes copied before a bad one."""
        mm = self._tracee.mm
        if mm.enclaves is not None and mm.enclaves.overlapping(source, source + length):
            # VM_IO memory cannot be pinned: get_user_pages refuses it.
            return 0
        if length <= _SMALL:
            data = self._read_present(source, length)
            if data is not None:
                elrange.write(destination, data)
                return length
        done = 0
        with self._tracee.injecting() as injector:
            while done < length:
                result = injector.call(
                    n.SYS_PWRITE64, self._fd, source + done, length - done, destination + done
                )
                if failed(result) or not result:
                    break
                done += result
        if done < length:
            done += self._fill_from_outside(
                elrange, destination + done, source + done, length - done
            )
        return done

    def _fill_from_outside(
        self, elrange: "Elrange", destination: int, source: int, length: int
    ) -> int:
        # The descriptor may be read-only, or RLIMIT_FSIZE in the way: neither hinders an ADD.
        done = 0
        while done < length:
            step = min(4096 - (source + done) % 4096, length - done)
            data = self._read_present(source + done, step)
            if data is None:
                break
            elrange.write(destination + done, data)
            done += step
        return done

    def _injected(self, injector: Injector, number: int, address: int, length: int) -> int:
        result = injector.call(number, self._fd, address, length, _STAGING)
        return 0 if failed(result) else result

    def _read_present(self, address: int, length: int) -> bytes | None:
        if not self._present(address, length):
            return None
        buffer = bytearray(length)
        if _transfer(_READV, self._tracee.process.pid, address, buffer):
            return bytes(buffer)
        return None

    def _present(self, address: int, length: int) -> bool:
        # Touching an absent page from outside could wait for the very program that is stopped.
        if length <= 0 or not 0 <= address <= _TOP - length:
            return False
        first, last = address >> 12, (address + length - 1) >> 12
        entries = self._tracee.mm.pagemap(8 * first, 8 * (last - first + 1))
        if len(entries) != 8 * (last - first + 1):
            return False
        return all(entry & _PRESENT for (entry,) in struct.iter_unpack("<Q", entries))


def _transfer(number: int, pid: int, address: int, buffer: bytearray) -> bool:
    length = len(buffer)
    mine = (ctypes.c_char * length).from_buffer(buffer)
    local = ctypes.create_string_buffer(_IOVEC.pack(ctypes.addressof(mine), length), 16)
    remote = ctypes.create_string_buffer(_IOVEC.pack(address, length), 16)
    done = _libc.syscall(
        number,
        pid,
        local,
        ctypes.c_ulong(1),
        remote,
        ctypes.c_ulong(1),
        ctypes.c_ulong(0),
    )
    return bool(done == length)
