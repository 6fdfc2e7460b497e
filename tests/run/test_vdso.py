# SPDX-License-Identifier: Apache-2.0
"""The vDSO image: found as programs find it, entered as the kernel's contract says, read by run/vdso.py.

Nothing here needs SGX or tracing: the C program vdso_enter plays the processor at the ENCLU.
"""

import ctypes
import errno
import mmap
import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from elftools.dwarf.callframe import FDE
from elftools.elf.constants import P_FLAGS, SH_FLAGS
from elftools.elf.elffile import ELFFile

from softsgx.errors import SoftsgxError
from softsgx.run import vdso
from softsgx.run.vdso import HOST_FUNCTIONS, VdsoImage

HERE = Path(__file__).parent
SOURCES = HERE.parents[1] / "csrc" / "vdso"
ENTER = "__vdso_sgx_enter_enclave"
EXPORTS = {ENTER, *(name.decode() for name in HOST_FUNCTIONS)}


@pytest.fixture(scope="module")
def image() -> VdsoImage:
    return VdsoImage.load()


@pytest.fixture(scope="module")
def elf(image: VdsoImage) -> Iterator[ELFFile]:
    with Path(image.path).open("rb") as file:
        yield ELFFile(file)


@pytest.fixture(scope="module")
def offsets(elf: ELFFile) -> dict[str, int]:
    return {s.name: s["st_value"] for s in section(elf, ".dynsym").iter_symbols()}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    def compile_(name: str) -> str:
        program = tmp_path_factory.getbasetemp() / name
        if not program.exists():
            source = HERE / f"{name}.c"
            subprocess.run(["cc", "-O1", "-Wall", "-Werror", "-o", program, source], check=True)
        return str(program)

    return compile_


def section(elf: ELFFile, name: str) -> Any:
    found = elf.get_section_by_name(name)
    assert found is not None, name
    return found


# The ELF


def test_sections_are_found_by_name_type_and_entry_size(elf: ELFFile) -> None:
    symbols = section(elf, ".dynsym")
    assert symbols["sh_type"] == "SHT_DYNSYM"
    assert symbols["sh_entsize"] == 24
    assert elf.get_section(symbols["sh_link"]).name == ".dynstr"
    assert section(elf, ".dynstr")["sh_type"] == "SHT_STRTAB"
    assert section(elf, ".text")["sh_flags"] & SH_FLAGS.SHF_EXECINSTR


def test_section_headers_lie_in_the_mapped_image(elf: ELFFile, image: VdsoImage) -> None:
    assert elf["e_shoff"] + elf["e_shnum"] * elf["e_shentsize"] <= image.size <= 16384
    assert all(s["sh_offset"] + s["sh_size"] <= image.size for s in elf.iter_sections())


def test_one_segment_is_loaded_and_nothing_is_writable(elf: ELFFile) -> None:
    loads = [s for s in elf.iter_segments() if s["p_type"] == "PT_LOAD"]
    assert [(s["p_offset"], s["p_vaddr"], s["p_flags"]) for s in loads] == [
        (0, 0, P_FLAGS.PF_R | P_FLAGS.PF_X)
    ]
    assert not any(s["p_flags"] & P_FLAGS.PF_W for s in elf.iter_segments())
    assert all(
        s["sh_addr"] == s["sh_offset"]
        for s in elf.iter_sections()
        if s["sh_flags"] & SH_FLAGS.SHF_ALLOC
    )


def test_no_relocation_and_no_library_is_needed(elf: ELFFile) -> None:
    assert not [s.name for s in elf.iter_sections() if s["sh_type"] in {"SHT_REL", "SHT_RELA"}]
    tags = {t.entry.d_tag for t in section(elf, ".dynamic").iter_tags()}
    assert not tags & {"DT_REL", "DT_RELA", "DT_RELR", "DT_JMPREL", "DT_NEEDED", "DT_TEXTREL"}


def test_its_soname_is_that_of_the_kernel(elf: ELFFile) -> None:
    dynamic = section(elf, ".dynamic")
    assert [t.soname for t in dynamic.iter_tags("DT_SONAME")] == ["linux-vdso.so.1"]


def test_exports_are_these_functions_and_no_name_of_a_program(elf: ELFFile) -> None:
    symbols = [s for s in section(elf, ".dynsym").iter_symbols() if s.name]
    functions = [s for s in symbols if s["st_info"]["type"] == "STT_FUNC"]
    assert {s.name for s in functions} == EXPORTS
    assert {s.name for s in symbols} - EXPORTS == {"LINUX_2.6"}
    assert {s["st_info"]["bind"] for s in functions} == {"STB_GLOBAL"}


def test_every_function_has_version_linux_2_6(elf: ELFFile) -> None:
    names = {
        version["vd_ndx"]: next(iter(auxiliaries)).name
        for version, auxiliaries in section(elf, ".gnu.version_d").iter_versions()
    }
    indices = [v["ndx"] for v in section(elf, ".gnu.version").iter_symbols()]
    symbols = section(elf, ".dynsym")
    found = {
        s.name: names[i] for s, i in zip(symbols.iter_symbols(), indices, strict=True) if s.name
    }
    assert all(found[name] == "LINUX_2.6" for name in EXPORTS)


@pytest.mark.parametrize("table", [".hash", ".gnu.hash"])
def test_both_hash_tables_find_every_function(elf: ELFFile, table: str) -> None:
    found = section(elf, table)
    assert {name for name in EXPORTS if found.get_symbol(name)} == EXPORTS
    assert found.get_symbol("clock_gettime") is None


def test_an_unwinder_gets_out_of_the_entry_function_at_the_enclu(
    elf: ELFFile, image: VdsoImage, offsets: dict[str, int]
) -> None:
    entries = [e for e in elf.get_dwarf_info().EH_CFI_entries() if isinstance(e, FDE)]
    covered = {e["initial_location"]: e for e in entries}
    assert set(covered) >= {offsets[name] for name in EXPORTS}
    rows = covered[offsets[ENTER]].get_decoded().table
    rbx, rbp, return_address = 3, 6, 16
    for place in (image.enclu, image.handle_exception):
        row = [r for r in rows if r["pc"] <= place][-1]
        assert (row["cfa"].reg, row["cfa"].offset) == (rbp, 16)
        assert {r: row[r].arg for r in (rbx, rbp, return_address)} == {
            rbx: -24,
            rbp: -16,
            return_address: -8,
        }


def test_the_image_is_that_of_the_sources(image: VdsoImage, tmp_path: Path) -> None:
    built = tmp_path / "image"
    subprocess.run(["sh", SOURCES / "build.sh", built], check=True)
    assert built.read_bytes().ljust(image.size, b"\0") == image.data


def test_a_program_finds_the_entry_function_in_memory_by_the_system_v_hash(
    image: VdsoImage, offsets: dict[str, int], compiled: Callable[[str], str]
) -> None:
    lookup = compiled("vdso_lookup")
    found = subprocess.check_output([lookup, image.path, ENTER, "LINUX_2.6"], text=True)
    assert int(found, 0) == offsets[ENTER]
    for name, version in ((ENTER, "LINUX_2.7"), ("time", "LINUX_2.6")):
        assert subprocess.run([lookup, image.path, name, version], check=False).returncode == 1


DLOPEN = """
import ctypes, sys
library = ctypes.CDLL(sys.argv[1])
dlvsym = ctypes.CDLL(None).dlvsym
dlvsym.restype, dlvsym.argtypes = ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p)
right, wrong = (dlvsym(library._handle, sys.argv[2].encode(), v) for v in (b"LINUX_2.6", b"LINUX_2.5"))
assert right and wrong is None, (right, wrong)
assert library.__vdso_time(None) > 0
"""


def test_the_dynamic_linker_loads_it_and_resolves_by_version(image: VdsoImage) -> None:
    subprocess.run([sys.executable, "-c", DLOPEN, image.path, ENTER], check=True)


# The hidden parts


def test_the_descriptor_points_at_the_instructions(image: VdsoImage) -> None:
    assert image.data[image.enclu :].startswith(b"\x0f\x01\xd7")
    assert image.data[image.syscall :].startswith(b"\x89\xd8\x0f\x05")
    assert image.data.count(b"\x0f\x01\xd7") == 1
    assert image.data[image.host_table :].startswith(bytes(8 * len(HOST_FUNCTIONS)))


def test_native_cpuid_is_what_the_kernel_saw(image: VdsoImage) -> None:
    _, b, c, d = image.native_cpuid(0)
    vendor = struct.pack("<3I", b, d, c).decode()
    assert f"vendor_id\t: {vendor}\n" in Path("/proc/cpuinfo").read_text()


def test_native_cpuid_passes_the_subleaf(image: VdsoImage) -> None:
    # Leaf 0xD: subleaf 2 is AVX's 256 bytes at 576, subleaf 0 is the whole area.
    if not image.native_xgetbv(0) & 4:
        pytest.skip("this processor has no AVX")
    assert image.native_cpuid(0xD, 2)[:2] == (256, 576)
    assert image.native_cpuid(0xD, 0)[:2] != (256, 576)


def test_native_xgetbv_is_xcr0(image: VdsoImage) -> None:
    xcr0 = image.native_xgetbv(0)
    low, _, _, high = image.native_cpuid(0xD, 0)
    assert xcr0 & 3 == 3
    assert xcr0 & ~(high << 32 | low) == 0


# run/vdso.py


def test_symbols_are_those_that_an_elf_library_reads(
    image: VdsoImage, offsets: dict[str, int]
) -> None:
    assert vdso.symbols(image.data) == {n.encode(): offsets[n] for n in EXPORTS}


@pytest.mark.parametrize("tag", [4, 0x6FFFFEF5])  # DT_HASH, DT_GNU_HASH
def test_symbols_are_found_with_either_hash_table_alone(
    elf: ELFFile, image: VdsoImage, tag: int
) -> None:
    dynamic = section(elf, ".dynamic")
    start, size = dynamic["sh_offset"], dynamic["sh_size"]
    entries = image.data[start : start + size]
    at = [t for t in range(0, size, 16) if entries[t : t + 8] == struct.pack("<q", tag)]
    assert len(at) == 1
    without = bytearray(image.data)
    struct.pack_into("<q", without, start + at[0], 0x7000_0000)
    assert vdso.symbols(bytes(without)) == vdso.symbols(image.data)


def test_host_symbols_are_the_kernels() -> None:
    found = vdso.host_symbols()
    if not found:
        pytest.skip("this process has no vDSO (vdso=0)")
    assert set(HOST_FUNCTIONS) <= set(found)


def test_a_missing_image_is_refused_with_the_command_that_builds_it(tmp_path: Path) -> None:
    with pytest.raises(SoftsgxError, match=r"sh csrc/vdso/build\.sh .*/nothing"):
        VdsoImage.load(str(tmp_path / "nothing"))


def test_the_image_of_an_editable_install_is_found_as_the_packages_resource(
    image: VdsoImage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(vdso, "_IMAGE", str(tmp_path / "nothing"))
    assert VdsoImage.load().path == image.path


def test_a_tree_that_was_never_built_is_told_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(vdso, "_IMAGE", str(tmp_path / "nothing"))
    monkeypatch.setattr(vdso, "_NAME", "nothing")
    with pytest.raises(SoftsgxError, match="No such file or directory"):
        VdsoImage.load()


@pytest.mark.parametrize(
    "content", [b"", b"\x7fELF\x02\x01", Path("/proc/self/exe").read_bytes()[:8192]]
)
def test_another_file_is_refused(tmp_path: Path, content: bytes) -> None:
    other = tmp_path / "other"
    other.write_bytes(content)
    with pytest.raises(SoftsgxError, match="not a vDSO image"):
        VdsoImage.load(str(other))


def test_an_image_of_another_version_is_refused(image: VdsoImage, tmp_path: Path) -> None:
    other = tmp_path / "other"
    note = struct.pack("<3I8s", 8, 112, 4, b"softsgx\0")
    assert image.data.count(note) == 1
    other.write_bytes(image.data.replace(note, struct.pack("<3I8s", 8, 60, 2, b"softsgx\0")))
    with pytest.raises(SoftsgxError, match="not a vDSO image of this version"):
        VdsoImage.load(str(other))


def test_only_the_host_table_differs_between_processes(image: VdsoImage) -> None:
    host = 0x7FFF_1234_5000
    data = image.for_process(host, 0x7000_0000_0000)
    end = image.host_table + 8 * len(HOST_FUNCTIONS)
    assert len(data) == image.size == len(image.data)
    assert (
        data[: image.host_table] + data[end:] == image.data[: image.host_table] + image.data[end:]
    )
    table = struct.unpack_from(f"<{len(HOST_FUNCTIONS)}Q", data, image.host_table)
    symbols = vdso.host_symbols()
    assert table == tuple(host + symbols[n] if n in symbols else 0 for n in HOST_FUNCTIONS)


def test_a_process_without_a_vdso_gets_an_empty_table(image: VdsoImage) -> None:
    assert image.for_process(0, 0x7000_0000_0000) == image.data


@pytest.mark.parametrize(("host", "base"), [(0x1000, 0x1008), (0x1008, 0x1000)])
def test_an_unaligned_place_is_refused(image: VdsoImage, host: int, base: int) -> None:
    with pytest.raises(ValueError, match="not page aligned"):
        image.for_process(host, base)


# The clock functions, mapped into this process


class Mapped:
    """An image in executable memory of this process; ``call(name, *arguments)`` returns RAX."""

    def __init__(self, data: bytes, offsets: dict[str, int]) -> None:
        protection = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
        self.memory = mmap.mmap(-1, len(data), prot=protection)
        self.memory[:] = data
        self.base = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.offsets = offsets

    def call(self, name: str, *arguments: object) -> int:
        function = ctypes.CFUNCTYPE(ctypes.c_long, *[ctypes.c_void_p] * len(arguments))
        return int(function(self.base + self.offsets[name])(*arguments))


@pytest.fixture(params=["host vDSO", "system calls"])
def clocks(request: pytest.FixtureRequest, image: VdsoImage, offsets: dict[str, int]) -> Mapped:
    if request.param == "system calls":
        return Mapped(image.data, offsets)
    getauxval = ctypes.CDLL(None).getauxval
    getauxval.restype = ctypes.c_ulong
    host = getauxval(33)
    if not host:
        pytest.skip("this process has no vDSO (vdso=0)")
    return Mapped(image.for_process(host, 0), offsets)


def test_clock_gettime_reads_the_clock(clocks: Mapped) -> None:
    for clock in (time.CLOCK_REALTIME, time.CLOCK_MONOTONIC, time.CLOCK_PROCESS_CPUTIME_ID):
        value = (ctypes.c_int64 * 2)()
        before = time.clock_gettime_ns(clock)
        assert clocks.call("__vdso_clock_gettime", clock, value) == 0
        assert before <= value[0] * 10**9 + value[1] <= time.clock_gettime_ns(clock)


def test_gettimeofday_and_time_read_the_clock(clocks: Mapped) -> None:
    value = (ctypes.c_int64 * 2)()
    before = time.clock_gettime_ns(time.CLOCK_REALTIME) // 1000
    assert clocks.call("__vdso_gettimeofday", value, None) == 0
    after = time.clock_gettime_ns(time.CLOCK_REALTIME) // 1000
    assert before <= value[0] * 10**6 + value[1] <= after
    # The kernel's seconds are those of the last tick.
    stored = ctypes.c_int64()
    seconds = clocks.call("__vdso_time", ctypes.byref(stored))
    assert before // 10**6 - 1 <= seconds <= time.time()
    assert stored.value == seconds


def test_clock_getres_is_the_kernels(clocks: Mapped) -> None:
    for clock in (time.CLOCK_MONOTONIC, 6):  # 6: CLOCK_MONOTONIC_COARSE
        value = (ctypes.c_int64 * 2)()
        assert clocks.call("__vdso_clock_getres", clock, value) == 0
        assert value[0] + value[1] / 1e9 == pytest.approx(time.clock_getres(clock))


def test_getcpu_is_a_processor_of_this_thread(clocks: Mapped) -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        cpu = ctypes.c_uint32(0xFFFF_FFFF)
        assert clocks.call("__vdso_getcpu", ctypes.byref(cpu), None, None) == 0
    finally:
        os.sched_setaffinity(0, before)
    assert cpu.value == min(before)


def test_an_unknown_clock_is_an_error_number_and_not_errno(clocks: Mapped) -> None:
    value = (ctypes.c_int64 * 2)()
    assert clocks.call("__vdso_clock_gettime", 0x7FFF, value) == -errno.EINVAL


@pytest.mark.parametrize("index", range(len(HOST_FUNCTIONS)))
def test_each_function_goes_on_to_its_own_entry_with_its_arguments(
    image: VdsoImage, offsets: dict[str, int], index: int
) -> None:
    calls: list[tuple[int, int, int]] = []

    def record(a: int, b: int, c: int) -> int:
        calls.append((a, b, c))
        return -1234

    host = ctypes.CFUNCTYPE(*[ctypes.c_long] * 4)(record)
    mapped = Mapped(image.data, offsets)
    address = ctypes.cast(host, ctypes.c_void_p).value
    struct.pack_into("<Q", mapped.memory, image.host_table + 8 * index, address)
    assert mapped.call(HOST_FUNCTIONS[index].decode(), 11, 22, 33) == -1234
    assert calls == [(11, 22, 33)]


# __vdso_sgx_enter_enclave

Turns = list[tuple[str, dict[str, int]]]
Enter = Callable[..., Turns]
UNTOUCHED = {"function": 77, "vector": 78, "error": 79, "address": 80, "data": 81}
GIVEN = {"rdi": 0x101, "rsi": 0x102, "rdx": 0x103, "r8": 0x108, "r9": 0x109}
LEFT = {"rdi": 0x201, "rsi": 0x202, "rdx": 0x203, "r8": 0x208, "r9": 0x209}
ANSWERED = {"rdi": 0x301, "rsi": 0x302, "rdx": 0x303, "r8": 0x308, "r9": 0x309}


@pytest.fixture
def enter(image: VdsoImage, offsets: dict[str, int], compiled: Callable[[str], str]) -> Enter:
    program = compiled("vdso_enter")

    def run(function: int, *events: str, handler: str = "none", poke: int = -1) -> Turns:
        places = (offsets[ENTER], image.enclu, image.handle_exception)
        arguments = [*map(hex, places), str(function), str(poke), handler, ",".join(events)]
        lines = subprocess.check_output([program, image.path, *arguments], text=True).splitlines()
        turns = []
        for what, *pairs in map(str.split, lines):
            fields = dict(pair.split("=") for pair in pairs)
            turns.append((what, {name: int(value, 0) for name, value in fields.items()}))
        return turns

    return run


def subset(wanted: dict[str, int], fields: dict[str, int]) -> bool:
    return {name: fields[name] for name in wanted} == wanted


@pytest.mark.parametrize("function", [0, 1, 4, 5, 0x8000_0002, 0xFFFF_FFFF])
def test_a_function_other_than_eenter_and_eresume_is_einval(enter: Enter, function: int) -> None:
    [(what, fields)] = enter(function, "exit")
    assert what == "return"
    assert fields["eax"] == -errno.EINVAL
    assert subset(UNTOUCHED, fields)


@pytest.mark.parametrize("poke", [40, 47, 48, 128, 248, 255])
def test_a_reserved_byte_that_is_not_zero_is_einval(enter: Enter, poke: int) -> None:
    [(what, fields)] = enter(2, "exit", poke=poke)
    assert what == "return"
    assert fields["eax"] == -errno.EINVAL
    assert subset(UNTOUCHED, fields)


def test_user_data_is_the_callers(enter: Enter) -> None:
    fields = enter(2, "exit", poke=39)[-1][1]
    assert fields["eax"] == 0
    assert fields["data"] == 81 | 1 << 56


@pytest.mark.parametrize("function", [2, 3])
def test_the_enclave_is_entered_with_the_callers_registers(enter: Enter, function: int) -> None:
    (what, at_enclu), (_, fields) = enter(function, "exit")
    assert what == "enclu"
    assert subset({**GIVEN, "rax": function, "rbx": 0x7C5000, "rcx_is_aep": 1}, at_enclu)
    assert subset({"eax": 0, "rbx": 0xB1, "rbp": 0xB2, "rsp_moved": 0}, fields)


def test_eexit_sets_the_function_and_leaves_the_exception_fields(enter: Enter) -> None:
    fields = enter(2, "exit")[-1][1]
    assert subset({**UNTOUCHED, "function": 4, "eax": 0}, fields)


@pytest.mark.parametrize(("leaf", "error"), [(2, 0), (3, 0x8007)])
def test_an_exception_without_a_handler_returns_0_with_its_fields(
    enter: Enter, leaf: int, error: int
) -> None:
    fields = enter(2, f"14/{error}/0x123456789000/{leaf}")[-1][1]
    wanted = {"function": leaf, "vector": 14, "error": error, "address": 0x123456789000}
    assert subset(
        {**wanted, "eax": 0, "data": 81, "rbx": 0xB1, "rbp": 0xB2, "rsp_moved": 0}, fields
    )


def test_the_handler_sees_what_the_enclave_left_on_an_aligned_stack(enter: Enter) -> None:
    (_, at_enclu), (what, call), (_, fields) = enter(2, "exit", handler="0")
    assert what == "handler"
    # RCX is the stack pointer at the exit: 24 bytes further than at the ENCLU.
    wanted = {**LEFT, "rcx_depth": at_enclu["depth"] + 24, "function": 4, "tcs": 0x7C5000}
    assert subset({**wanted, "rsp_mod": 8, "df": 0}, call)
    assert subset({"eax": 0, "rbx": 0xB1, "rbp": 0xB2, "rsp_moved": 0}, fields)


def test_the_handler_sees_an_exception(enter: Enter) -> None:
    (_, _), (_, call), (_, fields) = enter(2, "6/0/0/3", handler="0")
    assert subset({"rdi": 6, "rsi": 0, "rdx": 0, "r8": 0x108, "r9": 0x109, "function": 3}, call)
    assert subset({"eax": 0, "function": 3, "vector": 6}, fields)


@pytest.mark.parametrize("answer", [0, -1, -errno.EFAULT])
def test_a_handlers_answer_up_to_zero_is_the_return_value(enter: Enter, answer: int) -> None:
    assert enter(2, "exit", handler=str(answer))[-1][1]["eax"] == answer


def test_the_handlers_registers_and_the_stack_go_back_in(enter: Enter) -> None:
    turns = enter(2, "exit", "13/0/0/3", "exit", handler="3,2,0")
    assert [what for what, _ in turns] == [*("enclu", "handler") * 3, "return"]
    first, second, third = (fields for what, fields in turns if what == "enclu")
    assert subset({**ANSWERED, "rbx": 0x7C5000, "rcx_is_aep": 1}, second)
    assert [f["rax"] & 0xFFFF_FFFF for f in (first, second, third)] == [2, 3, 2]
    # Each EEXIT of this play leaves 24 bytes on the stack, an exception none.
    assert [f["depth"] - first["depth"] for f in (first, second, third)] == [0, 24, 24]
    assert subset({"eax": 0, "function": 4, "vector": 13, "rsp_moved": 0}, turns[-1][1])


@pytest.mark.parametrize("answer", [1, 4, 100])
def test_a_handlers_answer_that_is_no_entry_is_einval(enter: Enter, answer: int) -> None:
    turns = enter(2, "exit", handler=str(answer))
    assert [what for what, _ in turns] == ["enclu", "handler", "return"]
    assert turns[-1][1]["eax"] == -errno.EINVAL


def test_a_null_run_crashes_as_the_kernels_does(image: VdsoImage, offsets: dict[str, int]) -> None:
    code = (
        "import ctypes, mmap, sys\n"
        "data = open(sys.argv[1], 'rb').read()\n"
        "memory = mmap.mmap(-1, len(data), prot=7)\n"
        "memory[:len(data)] = data\n"
        "base = ctypes.addressof(ctypes.c_char.from_buffer(memory))\n"
        "kind = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_void_p] * 7)\n"
        "print(kind(base + int(sys.argv[2]))(0, 0, 0, int(sys.argv[3]), 0, 0, None))\n"
    )

    def run(function: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, image.path, str(offsets[ENTER]), str(function)]
        return subprocess.run(command, check=False, capture_output=True, text=True)

    # The function is checked before the structure is read.
    assert run(1).stdout == f"{-errno.EINVAL}\n"
    assert run(2).returncode == -11


def test_the_tools_that_show_a_crash_name_the_entry_function(image: VdsoImage) -> None:
    gdb = shutil.which("gdb")
    if gdb is None:
        pytest.skip("gdb is not installed")
    command = [gdb, "-batch", "-nx", "-ex", f"info symbol {image.enclu:#x}", image.path]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert ENTER in shown
