# SPDX-License-Identifier: Apache-2.0
"""The listener of a seccomp user notification: a path call asks, the supervisor answers.

Owns the listener's descriptor. Sources: seccomp_unotify(2), include/uapi/linux/seccomp.h.
"""

import errno
import fcntl
import os
import struct

_RECV = 0xC0502100
_SEND = 0xC0182101
_ADDFD = 0x40182103
_SET_FLAGS = 0x40082104
_CONTINUE = 1
_SYNC_WAKE_UP = 1

_NOTIF = struct.Struct("<QIIiIQ6Q")  # struct seccomp_notif
_RESPONSE = struct.Struct("<QqiI")  # struct seccomp_notif_resp
_FD = struct.Struct("<QIIII")  # struct seccomp_notif_addfd


class Notification:
    """A call that waits for an answer; `ip` is behind its SYSCALL."""

    __slots__ = ("args", "id", "ip", "number", "tid")

    def __init__(self, id: int, tid: int, number: int, ip: int, args: "tuple[int, ...]") -> None:  # noqa: A002  (the kernel's word)
        self.id = id
        self.tid = tid
        self.number = number
        self.ip = ip
        self.args = args


class Listener:
    """The supervisor's end of a filter that notifies."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._buffer = bytearray(_NOTIF.size)
        self._zero = bytes(_NOTIF.size)
        os.set_blocking(fd, False)
        # Linux 6.6: the answerer is woken on the asker's processor, which is ten times faster.
        try:
            fcntl.ioctl(fd, _SET_FLAGS, _SYNC_WAKE_UP)
        except OSError:
            # An older kernel: `softsgx info` says what it costs.
            return

    def receive(self) -> Notification | None:
        """Take the next waiting call, or None where its thread has been killed meanwhile."""
        self._buffer[:] = self._zero
        try:
            fcntl.ioctl(self.fd, _RECV, self._buffer, True)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINTR, errno.EAGAIN):
                return None
            raise
        identity, tid, _, number, _, ip, *args = _NOTIF.unpack(self._buffer)
        return Notification(identity, tid, number, ip, tuple(args))

    def let(self, notification: Notification) -> None:
        """Let the kernel carry out the call as it stands."""
        self._send(_RESPONSE.pack(notification.id, 0, 0, _CONTINUE))

    def answer(self, notification: Notification, value: int) -> None:
        """Return `value` from the call; a negative one is an errno."""
        error = min(0, value)
        self._send(_RESPONSE.pack(notification.id, max(value, 0), error, 0))

    def give(self, notification: Notification, fd: int, flags: int) -> int:
        """Put a copy of our descriptor into the program and return its number from the call; -1 if that fails.

        In two steps. SECCOMP_ADDFD_FLAG_SEND would do it in one, but it marks the call as answered
        before the thread has taken the descriptor; when a stop of ours interrupts the wait for
        that (kernel/seccomp.c, seccomp_notify_addfd), the call returns 0, which is standard input.
        """
        argument = bytearray(_FD.pack(notification.id, 0, fd, 0, flags))
        try:
            number = self._ioctl(_ADDFD, argument)
        except OSError as error:
            if error.errno != errno.ENOENT:
                self.answer(notification, -(error.errno or errno.EIO))
            return -1
        self.answer(notification, number)
        return number

    def _send(self, response: bytes) -> None:
        # ENOENT: the thread was killed, or a signal took it out of the call.
        try:
            self._ioctl(_SEND, bytearray(response))
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise

    def _ioctl(self, request: int, argument: bytearray) -> int:
        # The bell (run/waiting.py), or anybody's SIGURG: the request was not carried out.
        while True:
            try:
                result: int = fcntl.ioctl(self.fd, request, argument, True)
            except InterruptedError:
                continue
            return result
