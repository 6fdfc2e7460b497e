# SPDX-License-Identifier: Apache-2.0
"""The vDSO image of a traced program, and the host's own vDSO behind it.

Owns the reading of linux-vdso.so.1 (built by csrc/vdso), whose ELF note says where the things are that no
symbol names, and the one mapping of it through which this process executes CPUID and XGETBV.
No lock: an image is read once and never changed; the mapping is made once and never undone.
"""

import ctypes
import os
import struct

from softsgx.errors import SoftsgxError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from softsgx.cpu.model import CpuidRow

    _Cpuid = Callable[[int, int, ctypes.Array[ctypes.c_uint32]], None]
    _Xgetbv = Callable[[int], int]

# In the order of softsgx_host_table in csrc/vdso/clock.S.
HOST_FUNCTIONS = (
    b"__vdso_clock_gettime",
    b"__vdso_gettimeofday",
    b"__vdso_time",
    b"__vdso_clock_getres",
    b"__vdso_getcpu",
)

# Not "vdso.so": Python would take that for this very module, as an extension.
_NAME = "linux-vdso.so.1"
_IMAGE = f"{__file__.rpartition('/')[0]}/{_NAME}"

_PAGE = 4096
_AT_SYSINFO_EHDR = 33
_PROT_READ, _PROT_EXEC, _MAP_PRIVATE = 1, 4, 2

_SHN_LORESERVE = 0xFF00
_PT_LOAD, _PT_DYNAMIC, _PT_NOTE = 1, 2, 4
_DT_HASH, _DT_STRTAB, _DT_SYMTAB, _DT_GNU_HASH = 4, 5, 6, 0x6FFFFEF5

_PHDR = struct.Struct("<2I6Q")  # type flags offset vaddr paddr filesz memsz align
_SYM = struct.Struct("<IBBHQQ")  # name info other shndx value size
_DYN = struct.Struct("<qQ")
_NOTE = struct.Struct("<3I8s28I")  # the note of csrc/vdso/vdso.lds, whole
_NOTE_HEAD = (8, 112, 4, b"softsgx\0")
_ROW = struct.Struct("<12I")  # detours.S
_NATIVE_ROW = (0, 0, 0, 0, (0xFFFF_FFFF,) * 4, (0,) * 4)
_HOST_TABLE = struct.Struct(f"<{len(HOST_FUNCTIONS)}Q")

_ECX_OSXSAVE = 1 << 27  # CPUID.1


class VdsoImage:
    """The image: its bytes, padded to whole pages, and where its hidden parts are.

    ``enclu`` (the AEP too), ``handle_exception``, ``syscall`` (for injected calls), ``cpuid``,
    ``xgetbv``, ``host_table``, the ``path_`` ones (paths.S), ``answer_cpuid``, ``slots`` and
    ``slots_end`` (detours.S), ``table`` and those of ``eenter`` and ``eexit`` (transitions.S)
    are offsets from the start of the image.
    """

    __slots__ = (
        "_cpuid_rows",
        "_cpuid_rows_end",
        "_shut",
        "_start",
        "_stubs",
        "answer_cpuid",
        "cpuid",
        "data",
        "eenter",
        "eenter_counted",
        "eenter_end",
        "eenter_inside",
        "eenter_saved",
        "eenter_trap",
        "eexit",
        "eexit_counted",
        "eexit_end",
        "eexit_outside",
        "eexit_saved",
        "enclu",
        "handle_exception",
        "host_table",
        "path",
        "path_ask",
        "path_call",
        "path_flag",
        "path_load",
        "size",
        "slots",
        "slots_end",
        "syscall",
        "table",
        "xgetbv",
    )

    def __init__(self, path: str, content: bytes) -> None:
        self.path = path
        self.size = -(-len(content) // _PAGE) * _PAGE
        self.data = content.ljust(self.size, b"\0")
        (
            self.enclu,
            self.handle_exception,
            self.syscall,
            self.cpuid,
            self.xgetbv,
            self.host_table,
            self.path_call,
            self.path_load,
            self.path_ask,
            self.path_flag,
            self.answer_cpuid,
            self._cpuid_rows,
            self._cpuid_rows_end,
            self.slots,
            self.slots_end,
            self.table,
            self.eenter,
            self.eenter_saved,
            self.eenter_counted,
            self.eenter_inside,
            self.eenter_trap,
            self.eenter_end,
            self.eexit,
            self.eexit_saved,
            self.eexit_counted,
            self.eexit_outside,
            self.eexit_end,
            self._shut,
        ) = _descriptor(path, content)
        self._stubs: tuple[_Cpuid, _Xgetbv] | None = None
        self._start = 0

    @classmethod
    def load(cls, path: str | None = None) -> "VdsoImage":
        """Read the image, by default the one installed with the package.

        Raises SoftsgxError when there is none, or when it is not of this version.
        """
        wanted = path or _IMAGE
        try:
            if path is None and not os.access(wanted, os.F_OK):
                wanted = _editable() or wanted
            return cls(wanted, _read(wanted))
        except OSError as error:
            raise SoftsgxError(
                f"{wanted}: no vDSO image ({error.strerror}): softsgx was built without a C compiler; install the"
                " wheel for x86-64 Linux, or build it again with one (in the source tree:"
                f" sh csrc/vdso/build.sh {wanted})"
            ) from None

    def answer_cpuid_by(self, rows: "tuple[CpuidRow, ...]") -> None:
        """Let CPUID be answered by these rows in every process that is given the image from now on."""
        encoded = b"".join(_ROW.pack(*row[:4], *row[4], *row[5]) for row in (*rows, _NATIVE_ROW))
        room = self._cpuid_rows_end - self._cpuid_rows
        if len(encoded) > room:
            raise ValueError(f"{len(rows)} rows of CPUID; {room // _ROW.size - 1} have room")
        end = self._cpuid_rows + len(encoded)
        self.data = self.data[: self._cpuid_rows] + encoded + self.data[end:]

    @property
    def gadget(self) -> bytes:
        """The code for injected calls by itself; the next stub follows it."""
        return self.data[self.syscall : self.cpuid]

    def for_process(self, host_vdso_base: int, base: int) -> bytes:
        """Return the bytes to put at ``base`` of a process whose kernel's vDSO is at ``host_vdso_base``.

        The clock functions of the image go on to the kernel's; 0 (a process that was given no vDSO)
        makes each the system call.
        """
        if base % _PAGE or host_vdso_base % _PAGE:
            raise ValueError(
                f"vDSO at {base:#x}, the host's at {host_vdso_base:#x}: not page aligned"
            )
        symbols = host_symbols() if host_vdso_base else {}
        table = [
            host_vdso_base + symbols[name] if name in symbols else 0 for name in HOST_FUNCTIONS
        ]
        end = self.host_table + _HOST_TABLE.size
        return self.data[: self.host_table] + _HOST_TABLE.pack(*table) + self.data[end:]

    def native_cpuid(self, leaf: int, subleaf: int = 0) -> tuple[int, int, int, int]:
        """Execute CPUID in this process: EAX, EBX, ECX, EDX."""
        cpuid, _ = self._stubs or self._map_stubs()
        out = (ctypes.c_uint32 * 4)()
        cpuid(leaf, subleaf, out)
        return out[0], out[1], out[2], out[3]

    def native_xgetbv(self, index: int = 0) -> int:
        """Execute XGETBV in this process: XCR0 for index 0.

        Raises SoftsgxError where the processor or the kernel has no XSAVE.
        """
        if not self.native_cpuid(1)[2] & _ECX_OSXSAVE:
            raise SoftsgxError("this host has no XSAVE (CPUID.1:ECX.OSXSAVE is 0), which SGX needs")
        _, xgetbv = self._stubs or self._map_stubs()
        return xgetbv(index)

    def shut(self) -> "Callable[[int], None]":
        """Give the function that takes STATE_OPEN from the state at an address of this process."""
        if self._stubs is None:
            self._map_stubs()
        return ctypes.CFUNCTYPE(None, ctypes.c_uint64)(self._start + self._shut)

    # Python cannot execute CPUID, so the image's stubs are mapped here as in any program.  From the
    # file and never writable: a host that forbids writable code (SELinux, PaX) allows that.
    def _map_stubs(self) -> "tuple[_Cpuid, _Xgetbv]":
        libc = ctypes.CDLL(None, use_errno=True)
        mmap = libc.mmap
        mmap.restype = ctypes.c_void_p
        mmap.argtypes = (
            ctypes.c_void_p,
            ctypes.c_size_t,
            ctypes.c_int,
            ctypes.c_int,
            ctypes.c_int,
            ctypes.c_long,
        )
        fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            start = mmap(None, self.size, _PROT_READ | _PROT_EXEC, _MAP_PRIVATE, fd, 0)
        finally:
            os.close(fd)
        if start is None or start == ctypes.c_void_p(-1).value:
            reason = os.strerror(ctypes.get_errno())
            raise SoftsgxError(
                f"{self.path}: cannot be mapped executable ({reason}): is its filesystem mounted noexec?"
            )
        self._start = start
        word = ctypes.c_uint32
        self._stubs = (
            ctypes.CFUNCTYPE(None, word, word, ctypes.POINTER(word))(start + self.cpuid),
            ctypes.CFUNCTYPE(ctypes.c_uint64, word)(start + self.xgetbv),
        )
        return self._stubs


# An editable install keeps what is built apart from the sources.
def _editable() -> str | None:
    # 10 ms that an ordinary start does not spend.
    import importlib.resources  # noqa: PLC0415

    image = importlib.resources.files("softsgx.run").joinpath(_NAME)
    return str(image) if image.is_file() else None


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, os.fstat(fd).st_size)
    finally:
        os.close(fd)


def _descriptor(path: str, image: bytes) -> tuple[int, ...]:
    for kind, _, _, address, _, _, size, _ in _program_headers(image):
        if kind == _PT_NOTE and size == _NOTE.size and address + size <= len(image):
            fields = _NOTE.unpack_from(image, address)
            if fields[:4] == _NOTE_HEAD:
                return fields[4:]
    raise SoftsgxError(f"{path}: not a vDSO image of this version of softsgx (no note of type 4)")


def _program_headers(image: bytes) -> list[tuple[int, ...]]:
    if len(image) < 64 or image[:6] != b"\x7fELF\x02\x01":
        return []
    (start,) = struct.unpack_from("<Q", image, 32)
    (size, count) = struct.unpack_from("<2H", image, 54)
    if size != _PHDR.size or start + size * count > len(image):
        return []
    return [_PHDR.unpack_from(image, start + size * i) for i in range(count)]


def host_symbols() -> dict[bytes, int]:
    """Return the dynamic symbols of the vDSO that the kernel gave this process: name -> offset.

    The kernel has one 64-bit vDSO, so the offsets hold for every 64-bit process of the host.
    """
    getauxval = ctypes.CDLL(None).getauxval
    getauxval.restype, getauxval.argtypes = ctypes.c_ulong, (ctypes.c_ulong,)
    base = getauxval(_AT_SYSINFO_EHDR)
    if not base:
        return {}
    # The first page holds the headers; they say how much more there is.
    headers = _program_headers(ctypes.string_at(base, _PAGE))
    end = max(
        (address + size for kind, _, _, address, _, _, size, _ in headers if kind == _PT_LOAD)
    )
    return symbols(ctypes.string_at(base, end))


def symbols(image: bytes) -> dict[bytes, int]:
    """Return the defined dynamic symbols of a vDSO as it lies in memory: name -> offset."""
    dynamic: dict[int, int] = {}
    for kind, _, _, address, _, _, size, _ in _program_headers(image):
        if kind == _PT_DYNAMIC:
            dynamic.update(_DYN.iter_unpack(image[address : address + size - size % _DYN.size]))
    if _DT_SYMTAB not in dynamic or _DT_STRTAB not in dynamic:
        return {}
    found: dict[bytes, int] = {}
    for index in range(_symbol_count(image, dynamic)):
        name, _, _, section, value, _ = _SYM.unpack_from(
            image, dynamic[_DT_SYMTAB] + index * _SYM.size
        )
        if 0 < section < _SHN_LORESERVE:
            start = dynamic[_DT_STRTAB] + name
            found[image[start : image.index(b"\0", start)]] = value
    return found


# Nothing states the number of dynamic symbols; a DT_HASH implies it (one chain entry a symbol), and
# with DT_GNU_HASH alone, as kernels built without the old table have, it is the end of the last chain.
def _symbol_count(image: bytes, dynamic: dict[int, int]) -> int:
    if _DT_HASH in dynamic:
        return int(struct.unpack_from("<2I", image, dynamic[_DT_HASH])[1])
    if _DT_GNU_HASH not in dynamic:
        return 0
    table = dynamic[_DT_GNU_HASH]
    buckets, first, bloom, _ = struct.unpack_from("<4I", image, table)
    chains = table + 16 + 8 * bloom + 4 * buckets
    last = max(struct.unpack_from(f"<{buckets}I", image, table + 16 + 8 * bloom))
    if last < first:
        return int(first)
    while not struct.unpack_from("<I", image, chains + 4 * (last - first))[0] & 1:
        last += 1
    return int(last) + 1
