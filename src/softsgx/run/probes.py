# SPDX-License-Identifier: Apache-2.0
"""What this host offers, found by trying it.

Owns nothing: a probe that changes a process does so in a child that it makes and reaps. What a
container's sandbox refuses looks like a missing feature here, which is what it is for a run.

Sources: prctl(2), ptrace(2), process_vm_readv(2), seccomp(2), seccomp_unotify(2),
userfaultfd(2), memfd_create(2), arch_prctl(2), pkeys(7), Documentation/admin-guide/sysctl/vm.rst,
Documentation/arch/x86/elf_auxvec.rst.
"""

import ctypes
import errno
import os
import struct
from collections.abc import Callable
from fcntl import ioctl

from softsgx.errors import SoftsgxError
from softsgx.run import numbers as n
from softsgx.run.host import ESSENTIAL, INFORMATION, USEFUL, Probe

_SYS_PRCTL = 157
_SYS_SIGNALFD4 = 289
_SYS_INOTIFY_INIT1 = 294
_SYS_PROCESS_VM_READV = 310
_SYS_PROCESS_VM_WRITEV = 311
_SYS_MEMFD_CREATE = 319
_SYS_PKEY_ALLOC = 330
_SYS_PKEY_FREE = 331

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_SYSCALL_USER_DISPATCH = 59
_PTRACE_SEIZE = 0x4206
_PTRACE_O_EXITKILL = 1 << 20
_SIGKILL = 9

_SECCOMP_SET_MODE_FILTER = 1
_FILTER_FLAG_NEW_LISTENER = 1 << 3
_FILTER_FLAG_WAIT_KILLABLE_RECV = 1 << 5
_NOTIF_SET_FLAGS = 0x40082104
_NOTIF_FD_SYNC_WAKE_UP = 1
_RET_ALLOW = 0x7FFF0000

_UFFD_USER_MODE_ONLY = 1
_UFFDIO_API = 0xC018AA3F
_UFFDIO_REGISTER = 0xC020AA00
_UFFD_MODE_MISSING = 1
_UFFD_API = 0xAA
_UFFD_FEATURES = {
    "EVENT_FORK": 1 << 1,
    "EVENT_REMAP": 1 << 2,
    "EVENT_REMOVE": 1 << 3,
    "MISSING_SHMEM": 1 << 5,
    "EVENT_UNMAP": 1 << 6,
    "SIGBUS": 1 << 7,
    "THREAD_ID": 1 << 8,
    "MINOR_SHMEM": 1 << 10,
    "EXACT_ADDRESS": 1 << 11,
    "WP_HUGETLBFS_SHMEM": 1 << 12,
    "WP_UNPOPULATED": 1 << 13,
    "POISON": 1 << 14,
    "WP_ASYNC": 1 << 15,
    "MOVE": 1 << 16,
}
# What elrange_map.py asks for.
_UFFD_WANTED = sum(_UFFD_FEATURES[f] for f in ("THREAD_ID", "EXACT_ADDRESS", "WP_HUGETLBFS_SHMEM"))

_MFD_CLOEXEC = 1
_MFD_EXEC = 0x10
_AT_HWCAP2 = 26
_HWCAP2_FSGSBASE = 1 << 1
_MAX_MAP_COUNT_DEFAULT = 65530

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_getauxval = _libc.getauxval
_getauxval.restype = ctypes.c_ulong
_getauxval.argtypes = (ctypes.c_ulong,)
_ptrace = _libc.ptrace
_ptrace.restype = ctypes.c_long
_ptrace.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
_word = ctypes.create_string_buffer(8)


def ptrace() -> Probe:
    """Seize a child of our own and open its memory, as a run does."""
    error = _with_child(_seize)
    value = _answer(error) if error else "a child can be seized"
    fix = _attach_fix("in a container, allow ptrace (docker run --cap-add SYS_PTRACE)")
    purpose = "follows the program, takes the traps of ENCLU"
    return Probe("ptrace", ESSENTIAL, not error, value, purpose, fix)


def _seize(child: int) -> None:
    if _ptrace(_PTRACE_SEIZE, child, None, _PTRACE_O_EXITKILL) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    os.close(os.open(f"/proc/{child}/mem", os.O_RDWR | os.O_CLOEXEC))


def _wait_to_be_killed(parent: int) -> int:
    # A sandbox may kill who is to kill this one.
    _call(_SYS_PRCTL, _PR_SET_PDEATHSIG, _SIGKILL)
    while os.getppid() == parent:
        _libc.pause()
    return 0


def _attach_fix(sandbox: str) -> str:
    scope = _sysctl("kernel/yama/ptrace_scope")
    if scope in {None, 0, 1}:
        return sandbox
    return f"sysctl kernel.yama.ptrace_scope=1 (it is {scope}), or give CAP_SYS_PTRACE"


def process_vm() -> Probe:
    """Read and write the memory of a child of our own from outside."""
    error = _with_child(_copy_across)
    return Probe(
        "process_vm_readv",
        ESSENTIAL if error < 0 else USEFUL,
        not error,
        _answer(error),
        "reads and writes small arguments; without it the program makes slower calls itself",
        _attach_fix("in a container, allow process_vm_readv and process_vm_writev"),
    )


def _copy_across(child: int) -> None:
    # A child that was forked from here has these bytes at the same address.
    iovec = ctypes.create_string_buffer(struct.pack("<QQ", ctypes.addressof(_word), len(_word)))
    at = ctypes.addressof(iovec)
    for number in (_SYS_PROCESS_VM_READV, _SYS_PROCESS_VM_WRITEV):
        _call(number, child, at, 1, at, 1, 0)


# How an action on a child of a child ends: see _in_child.
def _with_child(action: Callable[[int], None]) -> int:
    def act() -> int:
        parent = os.getpid()
        child = _fork(lambda: _wait_to_be_killed(parent))
        try:
            action(child)
        finally:
            os.kill(child, _SIGKILL)
            _reap(child)
        return 0

    return _in_child(act)


def descriptors() -> list[Probe]:
    """Make what the supervisor waits on, and pass a descriptor."""
    found = []
    for name, purpose, action in (
        ("SCM_RIGHTS", "hands over the seccomp listener and the userfaultfds", _pass_descriptor),
        ("signalfd", "tells of ended programs", _make_signalfd),
        ("inotify", "tells when an enclave is let go", lambda: _call(_SYS_INOTIFY_INIT1, 0)),
    ):
        error = _in_child(action)
        fix = "in a container, allow socketpair, sendmsg and recvmsg, signalfd4, inotify_init1"
        if error == errno.EMFILE:
            fix = "raise fs.inotify.max_user_instances"
        found.append(Probe(name, ESSENTIAL, not error, _answer(error), purpose, fix))
    return found


# In a child. Gives an errno, or 0.
def _pass_descriptor() -> int:
    from softsgx.run.descriptors import pair, receive, send  # noqa: PLC0415 (it imports more)

    ours, theirs = pair()
    send(theirs, b"!", ours.fileno())
    return 0 if receive(ours)[1] >= 0 else errno.EIO


# In a child. Gives an errno, or 0.
def _make_signalfd() -> int:
    mask = ctypes.c_uint64()
    return _call(_SYS_SIGNALFD4, -1, ctypes.addressof(mask), ctypes.sizeof(mask), 0)


def seccomp() -> list[Probe]:
    """Install a filter with a listener in a child, and ask for the newer modes of it."""
    sandbox = "in a container, allow seccomp with SECCOMP_FILTER_FLAG_NEW_LISTENER"
    error = _in_child(lambda: _listen(_FILTER_FLAG_NEW_LISTENER, synchronous=False))
    if error == errno.EBUSY:
        sandbox = "run it outside of the other program that answers seccomp notifications"
    notification = Probe(
        "seccomp notification",
        ESSENTIAL,
        not error,
        _answer(error),
        "answers the opening of /dev/sgx_enclave",
        sandbox,
    )
    killable = _in_child(
        lambda: _listen(
            _FILTER_FLAG_NEW_LISTENER | _FILTER_FLAG_WAIT_KILLABLE_RECV, synchronous=False
        )
    )
    synchronous = _in_child(lambda: _listen(_FILTER_FLAG_NEW_LISTENER, synchronous=True))
    return [
        notification,
        Probe(
            "seccomp killable wait",
            USEFUL,
            not killable,
            _answer(killable),
            "signals do not interrupt a call that is being answered",
            "use Linux 5.19 or newer",
        ),
        Probe(
            "seccomp synchronous wake-up",
            USEFUL,
            not synchronous,
            _answer(synchronous),
            "path calls cost a tenth",
            "use Linux 6.6 or newer",
        ),
    ]


# In a child. Gives an errno, or 0.
def _listen(flags: int, synchronous: bool) -> int:
    code = ctypes.create_string_buffer(struct.pack("<HBBI", 0x06, 0, 0, _RET_ALLOW))
    program = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", 1, ctypes.addressof(code)))
    _call(_SYS_PRCTL, _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    fd = _call(n.SYS_SECCOMP, _SECCOMP_SET_MODE_FILTER, flags, ctypes.addressof(program))
    if synchronous:
        ioctl(fd, _NOTIF_SET_FLAGS, _NOTIF_FD_SYNC_WAKE_UP)
    return 0


def userfaultfd() -> list[Probe]:
    """Watch a hole by a userfaultfd, and ask what else it can do."""
    error = _in_child(_watch_a_hole)
    features = 0
    if error >= 0:
        try:
            fd = _call(n.SYS_USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK | _UFFD_USER_MODE_ONLY)
        except OSError:
            pass
        else:
            _, features = _uffd_features(fd)
    names = [name for name, bit in _UFFD_FEATURES.items() if features & bit]
    fix = "in a container, allow the system call userfaultfd"
    return [
        Probe(
            "userfaultfd",
            # Who is killed for asking cannot do without.
            ESSENTIAL if error < 0 else USEFUL,
            not error,
            " ".join(names)
            if not error
            else _answer(error) + ("; holes are PROT_NONE" if error > 0 else ""),
            "watches the holes of enclaves; without it a mapping has an mprotect for each run of pages",
            fix if error in (errno.EPERM, errno.ENOSYS) or error < 0 else "use Linux 5.19 or newer",
        ),
        _event_fork(fix),
    ]


# In a child. Gives an errno, or 0.
def _watch_a_hole() -> int:
    fd = _call(n.SYS_USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK | _UFFD_USER_MODE_ONLY)
    ioctl(fd, _UFFDIO_API, struct.pack("<QQQ", _UFFD_API, _UFFD_WANTED, 0))
    file = _memfd(_MFD_CLOEXEC)
    os.ftruncate(file, n.PAGE_SIZE)
    at = _call(n.SYS_MMAP, 0, n.PAGE_SIZE, n.PROT_READ | n.PROT_WRITE, n.MAP_SHARED, file, 0)
    ioctl(fd, _UFFDIO_REGISTER, struct.pack("<QQQQ", at, n.PAGE_SIZE, _UFFD_MODE_MISSING, 0))
    return 0


def _uffd_features(fd: int, wanted: int = 0) -> tuple[int, int]:
    argument = bytearray(struct.pack("<QQQ", _UFFD_API, wanted, 0))
    try:
        ioctl(fd, _UFFDIO_API, argument, True)
    except OSError as refused:
        return refused.errno or errno.EINVAL, 0
    finally:
        os.close(fd)
    return 0, int.from_bytes(argument[8:16], "little")


def _event_fork(fix: str) -> Probe:
    def ask() -> int:
        fd = _call(n.SYS_USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK | _UFFD_USER_MODE_ONLY)
        return _uffd_features(fd, _UFFD_FEATURES["EVENT_FORK"])[0]

    error = _in_child(ask)
    if error not in (errno.ENOSYS, errno.EACCES):
        fix = "give CAP_SYS_PTRACE; without it the fork stop does the same"
    return Probe(
        "userfaultfd EVENT_FORK", INFORMATION, not error, _answer(error), "would tell a fork", fix
    )


def executable_memfd() -> Probe:
    """Map a memfd executable, as every enclave is."""
    error = _in_child(_map_executable)
    scope = _sysctl("vm/memfd_noexec")
    fix = "allow executable mappings of shared memory (SELinux: execmem)"
    if scope == 2:
        fix = "sysctl vm.memfd_noexec=1 (it is 2)"
    return Probe(
        "executable memfd", ESSENTIAL, not error, _answer(error), "holds an enclave's pages", fix
    )


# In a child. Gives an errno, or 0.
def _map_executable() -> int:
    try:
        fd = _memfd(_MFD_CLOEXEC | _MFD_EXEC)
    except OSError as refused:
        # Before 6.3 the flag is unknown, and needless.
        if refused.errno != errno.EINVAL:
            raise
        fd = _memfd(_MFD_CLOEXEC)
    os.ftruncate(fd, n.PAGE_SIZE)
    _call(n.SYS_MMAP, 0, n.PAGE_SIZE, n.PROT_READ | n.PROT_EXEC, n.MAP_SHARED, fd, 0)
    return 0


def _memfd(flags: int) -> int:
    name = ctypes.create_string_buffer(b"softsgx-probe")
    return _call(_SYS_MEMFD_CREATE, ctypes.addressof(name), flags)


def xcr0() -> Probe:
    """Tell the components of XSAVE that the kernel has enabled: the most that XFRM can offer."""
    from softsgx.run.vdso import VdsoImage  # noqa: PLC0415 (its stubs are mapped when it is asked)

    fix = "use a processor and a kernel with XSAVE"
    try:
        image = VdsoImage.load()
    except SoftsgxError as refused:
        ok, found, fix = False, "unknown", str(refused)
    else:
        try:
            ok, found = True, f"{image.native_xgetbv():#x}"
        except (SoftsgxError, OSError) as refused:
            ok, found = False, str(refused)
    return Probe("XCR0", ESSENTIAL, ok, found, "bounds an enclave's XFRM", fix)


def fsgsbase() -> Probe:
    """Tell whether programs may use RDFSBASE and WRFSBASE (Linux 5.9)."""
    ok = bool(_getauxval(_AT_HWCAP2) & _HWCAP2_FSGSBASE)
    return Probe(
        "FSGSBASE",
        USEFUL,
        ok,
        "AT_HWCAP2 bit 1" if ok else "absent",
        "runtimes such as Gramine switch their bases by it, and so do transitions without a trap",
        "use a processor that has it, and no nofsgsbase on the kernel's command line",
    )


def cpuid_faulting() -> Probe:
    """Try to make CPUID fault, in a child."""
    error = _in_child(lambda: _call(n.SYS_ARCH_PRCTL, n.ARCH_SET_CPUID, 0))
    return Probe(
        "CPUID faulting",
        INFORMATION,
        not error,
        _answer(error),
        "traps every CPUID; without it those in program files are replaced",
        "none on this processor or hypervisor",
    )


def syscall_user_dispatch() -> Probe:
    """Tell whether the kernel has syscall user dispatch (Linux 5.11)."""
    error = _in_child(lambda: _call(_SYS_PRCTL, _PR_SET_SYSCALL_USER_DISPATCH, 0, 0, 0, 0))
    return Probe(
        "syscall user dispatch",
        INFORMATION,
        not error,
        _answer(error),
        "makes SYSCALL inside an enclave #UD where transitions do not trap; without it they all do",
        "use a kernel with CONFIG_GENERIC_ENTRY, Linux 5.11 or newer",
    )


def protection_keys() -> Probe:
    """Try to allocate a protection key (PKU)."""
    error = _in_child(lambda: _call(_SYS_PKEY_FREE, _call(_SYS_PKEY_ALLOC, 0, 0)))
    fix = "none on this processor or hypervisor"
    purpose = "could keep host code out of enclave memory"
    return Probe("PKU", INFORMATION, not error, _answer(error), purpose, fix)


def mmap_min_addr() -> Probe:
    """Tell the lowest address that an enclave can be mapped at."""
    value = _sysctl("vm/mmap_min_addr")
    found = "unknown" if value is None else f"{value:#x}"
    purpose = "lowest address of an enclave"
    return Probe("vm.mmap_min_addr", INFORMATION, True, found, purpose, "")


def max_map_count() -> Probe:
    """Tell how many mappings a process may have."""
    value = _sysctl("vm/max_map_count")
    return Probe(
        "vm.max_map_count",
        USEFUL,
        value is None or value >= _MAX_MAP_COUNT_DEFAULT,
        "unknown" if value is None else str(value),
        "an enclave whose pages differ in permission has many mappings",
        f"sysctl vm.max_map_count={_MAX_MAP_COUNT_DEFAULT}",
    )


def host_sgx() -> Probe:
    """Tell whether the machine has SGX itself; a run never uses it."""
    present = os.path.exists("/dev/sgx_enclave")
    found = "/dev/sgx_enclave is there" if present else "absent"
    purpose = "never used: a run always shows the software platform"
    return Probe("SGX of the host", INFORMATION, present, found, purpose, "")


def _call(number: int, *arguments: int) -> int:
    result: int = _syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _answer(error: int) -> str:
    if error < 0:
        return f"answered by signal {-error}"
    return f"refused: {os.strerror(error)}" if error else "works"


def _sysctl(name: str) -> int | None:
    try:
        with open(f"/proc/sys/{name}", "rb") as file:
            return int(file.read())
    except (OSError, ValueError):
        return None


# The errno with which an action fails in a child of its own, or 0; a negative signal where the
# child is killed for it, as some sandboxes do.
def _in_child(action: Callable[[], int]) -> int:
    return _reap(_fork(action))


def _fork(action: Callable[[], int]) -> int:
    import warnings  # noqa: PLC0415 (a run has no need)

    with warnings.catch_warnings():
        # Python 3.12 warns where threads exist; the child makes system calls and nothing else.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child:
        return child
    status = 255
    try:
        action()
        status = 0
    except OSError as refused:
        status = refused.errno or status
    finally:
        os._exit(status)


def _reap(child: int) -> int:
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)
