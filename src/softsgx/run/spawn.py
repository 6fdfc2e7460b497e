# SPDX-License-Identifier: Apache-2.0
"""Starts the first program: forked, seized, filtered, then executed.

The child does between fork and exec only what cannot be done for it. From the moment its filter
is in place every open would wait for an answer, so nothing is imported or opened after that. It
is the program already to whoever sends it a signal: those wait until the exec, and the two that
cannot be blocked stop or end it as they would the program.
"""

import ctypes
import os
import resource
import select
import struct

from softsgx.errors import SoftsgxError
from softsgx.run import bpf, descriptors, executable, ptrace, signals
from softsgx.run import numbers as n
from softsgx.run.host import forbidden

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from typing import NoReturn

TERMINAL = (signals.SIGINT, signals.SIGQUIT)
_PR_SET_NO_NEW_PRIVS = 38
_SYS_SECCOMP = 317
_SECCOMP_SET_MODE_FILTER = 1
_NEW_LISTENER = 1 << 3
_WAIT_KILLABLE_RECV = 1 << 5
_COERCED_LOCALES = (b"C.UTF-8", b"C.utf8", b"UTF-8")
_ERRNO = 4  # bytes of what the child says: 0 with its listener, or an errno
_NOTIFICATION = "seccomp user notification"
_LOOK = 0.02  # seconds between looks whether the child has been stopped and cannot answer
_SIGSYS = 31
_ALL = (1 << 64) - 1
_IGNORED_CHILD = signals.bits(n.SIGCHLD)

_libc = ctypes.CDLL(None, use_errno=True)


class ProgramNotFound(SoftsgxError):
    """The program to run does not exist, or cannot be executed here."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class EndedEarly(Exception):
    """Somebody has killed the first program before it was one."""

    def __init__(self, status: int) -> None:
        super().__init__(f"wait status {status:#x}")
        self.status = status


def find_program(name: str) -> str:
    """Find a program as a shell would; ProgramNotFound with the shell's status 127 or 126."""
    if "/" in name:
        candidates = [name]
    else:
        path = os.environ.get("PATH", os.defpath)
        candidates = [os.path.join(folder or ".", name) for folder in path.split(os.pathsep)]
    found = [candidate for candidate in candidates if os.path.isfile(candidate)]
    for candidate in found:
        if os.access(candidate, os.X_OK):
            return candidate
    if found:
        raise ProgramNotFound(f"{found[0]}: not executable", 126)
    if os.path.isdir(name):
        raise ProgramNotFound(f"{name}: is a directory", 126)
    raise ProgramNotFound(f"{name}: program not found", 127)


def require_servable(program: str) -> None:
    """Refuse a PROGRAM that could only run without SGX, or without what makes it worth running.

    Raises ProgramNotFound with status 126. Deeper in the tree such a program runs, with a warning.
    """
    final = executable.final_program(program)
    via = "" if final == program else f", which {program} is run by"
    if executable.is_32_bit(final):
        raise ProgramNotFound(
            f"{final}{via}: is a 32-bit program, and SGX is served to 64-bit ones only: "
            "build it for x86-64",
            126,
        )
    raised = executable.privilege(final)
    if raised:
        raise ProgramNotFound(
            f"{final}{via}: is {raised}, which has no effect under softsgx (no_new_privs): start "
            "softsgx itself with that privilege, or run a copy of the file without it",
            126,
        )


class Inherited:
    """What the supervisor was started with and has changed for itself; the program gets it back.

    `mask` is the blocked signals and `ignored` the ignored ones (bit n - 1 is signal n), `limits`
    the soft and hard resource limits by their number.
    """

    __slots__ = ("ignored", "limits", "mask")

    def __init__(self, mask: int, ignored: int, limits: dict[int, tuple[int, int]]) -> None:
        self.mask = mask
        self.ignored = ignored
        self.limits = limits


def spawn(program: str, argv: list[str], inherited: Inherited) -> tuple[int, int]:
    """Start `program` under the first filter, seized; give its pid and the filter's listener.

    Raises EndedEarly where it is killed before its exec.
    """
    instructions = ctypes.create_string_buffer(bpf.first_filter())
    length = (len(instructions) - 1) // 8
    header = struct.pack("<HxxxxxxQ", length, ctypes.addressof(instructions))
    fprog = ctypes.create_string_buffer(header, len(header))
    # Our end tells the child that it is seized; its end brings the listener or a complaint.
    try:
        ours, theirs = descriptors.pair()
    except OSError as error:
        raise forbidden("pairs of sockets", error.strerror) from error
    # What is sent to the child meanwhile would stop it where nobody waits for its stops.
    mask = signals.block(_ALL)
    pid = os.fork()
    if pid == 0:
        ours.close()
        _child(program, argv, inherited, theirs, fprog)
    signals.set_mask(mask)
    theirs.close()
    try:
        return pid, _seize(pid, ours)
    except SoftsgxError:
        os.kill(pid, signals.SIGKILL)
        os.waitpid(pid, ptrace.WALL)
        raise
    except (BrokenPipeError, ptrace.TraceeGone):
        raise _early_end(os.waitpid(pid, ptrace.WALL)[1]) from None
    except EndedEarly as ended:
        raise _early_end(ended.status) from None
    finally:
        ours.close()


def _seize(pid: int, channel: "socket") -> int:
    try:
        ptrace.seize(pid)
    except OSError as error:
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            raise ptrace.TraceeGone from None
        raise forbidden("ptrace", os.strerror(error.errno or 0)) from error
    try:
        descriptors.send(channel, b"!")
        while not select.select([channel], [], [], _LOOK)[0]:
            _pass_stop(pid)
        said, listener = descriptors.receive(channel)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise forbidden("messages between sockets", error.strerror) from error
    if not said:
        raise ptrace.TraceeGone
    if listener < 0:
        raise forbidden(_NOTIFICATION, os.strerror(int.from_bytes(said, "little")))
    descriptors.send(channel, b"!")
    return listener


def _pass_stop(pid: int) -> None:
    """Let the child go on from its stop if it stands in one, or stay in it until SIGCONT."""
    stopped, status = os.waitpid(pid, os.WNOHANG | ptrace.WALL)
    if not stopped:
        return
    if not os.WIFSTOPPED(status):
        raise EndedEarly(status)
    number, event = (status >> 8) & 0xFF, status >> 16
    if event and number == n.SIGSTOP:
        ptrace.listen(pid)
    else:
        ptrace.cont(pid, 0 if event else number)


def _early_end(status: int) -> Exception:
    # A sandbox that kills for a call which it forbids.
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == _SIGSYS:
        return forbidden(_NOTIFICATION, "it kills for it")
    return EndedEarly(status)


def given_environment() -> dict[bytes, bytes]:
    """Give the environment without the LC_CTYPE that Python's start may have put into it (PEP 538).

    The kernel's record shows what this process was started with; what was set since then stays.
    """
    environment = dict(os.environb)
    if environment.get(b"LC_CTYPE") in _COERCED_LOCALES:
        with open("/proc/self/environ", "rb") as file:
            words = [word for word in file.read().split(b"\0") if word.startswith(b"LC_CTYPE=")]
        if words:
            environment[b"LC_CTYPE"] = words[0].partition(b"=")[2]
        else:
            del environment[b"LC_CTYPE"]
    return environment


def _child(
    program: str,
    argv: list[str],
    inherited: Inherited,
    channel: "socket",
    fprog: ctypes.Array[ctypes.c_char],
) -> "NoReturn":
    try:
        # Python ignores these two, and what is ignored stays so over an exec.
        signals.set_default(signals.SIGPIPE, signals.SIGXFSZ)
        # Those the supervisor ignores.
        for number in TERMINAL:
            if not inherited.ignored & signals.bits(number):
                signals.set_default(number)
        if inherited.ignored & _IGNORED_CHILD:
            signals.ignore(n.SIGCHLD)
        for limit, values in inherited.limits.items():
            resource.setrlimit(limit, values)
        environment = given_environment()
        descriptors.receive(channel)
        if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
            descriptors.send(channel, ctypes.get_errno().to_bytes(_ERRNO, "little"))
            os._exit(125)
        listener = -1
        for flags in (_NEW_LISTENER | _WAIT_KILLABLE_RECV, _NEW_LISTENER):
            listener = _libc.syscall(_SYS_SECCOMP, _SECCOMP_SET_MODE_FILTER, flags, fprog)
            if listener >= 0:
                break
        error = ctypes.get_errno() if listener < 0 else 0
        descriptors.send(channel, error.to_bytes(_ERRNO, "little"), listener)
        if not descriptors.receive(channel)[0]:
            os._exit(125)
        signals.set_mask(inherited.mask)
        os.execve(program, argv, environment)
    except OSError as error:
        # The message goes where the program's own complaint would have gone.
        os.write(2, f"softsgx: {program}: {error.strerror}\n".encode())
        os._exit(126)
    except BaseException:  # noqa: BLE001  (the child must never run on in the supervisor's code)
        os._exit(125)
    os._exit(125)
