# SPDX-License-Identifier: Apache-2.0
"""An enclave of Open Enclave and the module that its loader links to it, by the loader's rules."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from softsgx.errors import SoftsgxError
from softsgx.image import formats

PAGE = 4096
LOAD, DYNAMIC = 1, 2
RX, RW = 5, 6
RELATIVE, GLOB_DAT, JUMP_SLOT, R_64 = 8, 6, 7, 1
OBJECT, WEAK = 0x11, 0x21
MODULE = 0x4000  # behind the main file
VARIABLES = {
    b"_reloc_rva": 0x2100,
    b"_reloc_size": 0x2108,
    b"_enclave_rva": 0x2110,
    b"_td_from_tcs_offset": 0x2118,
    b"_module_info": 0x2020,
    b"shared": 0x2040,
}


def symbols(strings: bytes, *given: tuple[bytes, int, int, int]) -> bytes:
    return bytes(24) + b"".join(
        struct.pack("<IBBHQQ", strings.index(b"\0" + name + b"\0") + 1, info, 0, section, value, 8)
        for name, value, section, info in given
    )


def relocations(*given: tuple[int, int, int]) -> bytes:
    return b"".join(struct.pack("<QQq", *one) for one in given)


def write(
    folder: Path, shared_object: Callable[..., bytes], lost: int = WEAK, name: bytes = b"module.so"
) -> Path:
    strings = b"\0" + b"\0".join((*VARIABLES, b"lost", name)) + b"\0"
    properties = struct.pack("<IIQQQ", 1960, 1, 3, 2, 2)
    properties += struct.pack("<HHI16s16sQQQ", 7, 8, 0, b"f", b"x", 4, 0, 0)
    properties += bytes(48 + 1808 + 8)
    dynamic = struct.pack("<4Q", 1, strings.index(name + b"\0"), 0, 0)
    content = b"d" * 0x180 + properties + dynamic
    main = shared_object(
        [
            (LOAD, RX, 0, bytes(0x40) + b"code", 0x900),
            (LOAD, RW, 0x2000, content, 0x1FF0),
            (DYNAMIC, RW, 0x2180 + len(properties), dynamic, len(dynamic)),
        ],
        [
            (
                b".dynsym",
                11,
                0,
                symbols(
                    strings,
                    *((one, value, 1, OBJECT) for one, value in VARIABLES.items()),
                    (b"lost", 0, 0, lost),
                ),
            ),
            (b".dynstr", 3, 0, strings),
            (
                b".rela.dyn",
                4,
                0,
                relocations(
                    (0x2008, RELATIVE, 0x1234),
                    (0x2010, 6 << 32 | GLOB_DAT, 0),
                    (0x2018, 7 << 32 | JUMP_SLOT, 0),
                ),
            ),
            (b".oeinfo", 1, 0x2180, properties),
        ],
        entry=0x100,
    )
    strings = b"\0shared\0own\0"
    dynamic = struct.pack("<6Q", 3, 0x500, 5, 0x600, 0, 0)
    module = shared_object(
        [
            (LOAD, RX, 0, bytes(0x40) + b"module", 0x200),
            (LOAD, RW, 0x1000, b"m" * 0x80 + dynamic, 0x800),
        ],
        [
            (
                b".dynsym",
                11,
                0,
                symbols(strings, (b"shared", 0, 0, OBJECT), (b"own", 0x1010, 1, OBJECT)),
            ),
            (b".dynstr", 3, 0, strings),
            (
                b".rela.dyn",
                4,
                0,
                relocations(
                    (0x1000, RELATIVE, 0x1111),
                    (0x1008, 1 << 32 | GLOB_DAT, 0),
                    (0x1018, 2 << 32 | R_64, 5),
                ),
            ),
            (b".dynamic", 6, 0x1080, dynamic),
            (b".init_array", 14, 0x1040, b""),
        ],
    )
    (folder / "module.so").write_bytes(module)
    path = folder / "main.so"
    path.write_bytes(main)
    return path


def test_the_module_is_linked_as_the_loader_does(
    shared_object: Callable[..., bytes], tmp_path: Path
) -> None:
    (enclave,) = formats.read(str(write(tmp_path, shared_object)))
    runs = enclave.image.runs
    (table,) = (run for run in runs if run.name == "relocations")
    assert table.offset == MODULE + 2 * PAGE
    expected = relocations(
        (0x2008, RELATIVE, 0x1234),
        (0x2010, 6 << 32 | RELATIVE, 0x2040),
        (0x2018, 7 << 32 | RELATIVE, 0),  # nobody has it, and it is weak
        (MODULE + 0x1000, RELATIVE, MODULE + 0x1111),
        (MODULE + 0x1008, 1 << 32 | RELATIVE, 0x2040),
        (MODULE + 0x1018, 2 << 32 | RELATIVE, MODULE + 0x1010 + 5),
        (MODULE + 0x1088, RELATIVE, MODULE + 0x500),
        (MODULE + 0x1098, RELATIVE, MODULE + 0x600),
    )
    assert bytes(table.content(0, PAGE)) == expected.ljust(PAGE, b"\0")
    (data,) = (run for run in runs if run.offset == 0x2000)
    assert bytes(data.content(0, PAGE)[0x20:0x48]) == struct.pack(
        "<5Q", MODULE, MODULE + 0x1040, 0, 0, 0
    )
    (code,) = (run for run in runs if run.offset == MODULE)
    assert bytes(code.content(0x40, 6)) == b"module"


def test_what_cannot_be_linked_is_named(
    shared_object: Callable[..., bytes], tmp_path: Path
) -> None:
    path = write(tmp_path, shared_object, lost=OBJECT)
    with pytest.raises(SoftsgxError, match="symbol 'lost' is defined nowhere"):
        formats.read(str(path))
    path = write(tmp_path, shared_object)
    (tmp_path / "module.so").unlink()
    with pytest.raises(SoftsgxError, match=f"^{tmp_path}/module.so: cannot read it: No such file"):
        formats.read(str(path))
    path = write(tmp_path, shared_object, name=b"\x1b[31m.so")
    with pytest.raises(SoftsgxError, match="the module that is needed has no name of a file"):
        formats.read(str(path))
