# SPDX-License-Identifier: Apache-2.0
"""Which format a file has, and its enclaves by the reader of that format."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from softsgx.arch.secinfo import EEXTEND_SIZE, PAGE_SIZE
from softsgx.arch.structures import SIGSTRUCT_HEADER, Sigstruct
from softsgx.errors import SoftsgxError
from softsgx.image.elf_tables import ET_EXEC, MAGIC, Elf
from softsgx.image.file import File
from softsgx.image.stream import Computed, Fill, PageRun

if TYPE_CHECKING:
    from softsgx.image.enclave import Enclave

# A second for each GiB; it is a stack or heap of 4 GiB that is measured, or of 320 GiB that is not.
_MOST_HASHED = 5 << 30
_EADD, _MEASURED_PAGE = 64, 64 + PAGE_SIZE // EEXTEND_SIZE * (64 + EEXTEND_SIZE)
# What tools call the SIGSTRUCT that they put beside an enclave, or instead of its last suffix.
_BESIDE = (".sigstruct", ".sig", ".css")


def is_sigstruct(file: File) -> bool:
    """Tell whether a file is a SIGSTRUCT alone."""
    return file.size == Sigstruct.SIZE and file.read(0, 8, "SIGSTRUCT") == SIGSTRUCT_HEADER[:8]


def read(
    path: str,
    *,
    ssaframesize: int = 1,
    libpal: str | None = None,
    sigstruct: str | None = None,
    large: bool = False,
) -> tuple[Enclave, ...]:
    """Read the enclaves that a file describes, of several the one first that the newest loader takes.

    SSAFRAMESIZE is of formats that leave it to the host; `libpal` is Gramine's, for its manifests. A SIGSTRUCT that
    lies beside the file belongs to it, unless `sigstruct` names another. SoftsgxError says file, offset and reason;
    without `large` also that a small file has gigabytes hashed, which would take minutes.
    """
    file = File.open(path)
    enclaves = read_file(file, ssaframesize, libpal)
    for enclave in enclaves:
        absent = sum(_hashed(run) for run in enclave.image.runs)
        if absent > _MOST_HASHED and not large:
            raise SoftsgxError(
                f"{path}: {absent >> 30} GiB are to be hashed of what is not in the file, a stack or heap "
                "of gigabytes; --large does it"
            )
    if sigstruct is not None:
        given = File.open(sigstruct)
        if given.size != Sigstruct.SIZE:
            given.damaged(0, f"a SIGSTRUCT is {Sigstruct.SIZE} bytes, this is {given.size}")
        content = given.read(0, Sigstruct.SIZE, "SIGSTRUCT")
        return tuple(
            replace(one, sigstruct=content, sigstruct_at=0, sigstruct_file=sigstruct)
            for one in enclaves
        )
    if len(enclaves) == 1 and enclaves[0].sigstruct is None:
        return (_with_sigstruct_beside(path, enclaves[0]),)
    return enclaves


def _hashed(run: PageRun) -> int:
    if not run.measured:
        return run.length // PAGE_SIZE * _EADD
    absent = run.data is None or isinstance(run.data, (Fill, Computed))
    return run.length // PAGE_SIZE * _MEASURED_PAGE if absent else 0


def read_file(file: File, ssaframesize: int = 1, libpal: str | None = None) -> tuple[Enclave, ...]:
    """Read the enclaves of a file, without a SIGSTRUCT that lies beside it."""
    begin = file.read(0, min(64, file.size), "its begin")
    if begin.startswith(MAGIC):
        from softsgx.image import elf, intel, open_enclave  # noqa: PLC0415

        tables = Elf(file)
        if tables.header.e_type == ET_EXEC:
            return elf.enclaves(tables, ssaframesize)
        names = {section.name for section in tables.sections()}
        if intel.SECTION in names:
            return intel.read(tables)
        if open_enclave.SECTION in names:
            return open_enclave.read(tables)
        return elf.enclaves(tables, ssaframesize)
    if begin.startswith((b"ECREATE\0", b"UNSIZED\0")):
        from softsgx.image import sgxs  # noqa: PLC0415

        return sgxs.read(file)
    if begin.startswith(b'{"softsgx"'):
        from softsgx.image import pages  # noqa: PLC0415

        return pages.read(file)
    if is_sigstruct(file):
        raise SoftsgxError(
            f"{file.name}: a SIGSTRUCT alone has no pages to measure (softsgx inspect shows it)"
        )
    if _is_manifest(file):
        from softsgx.image import gramine  # noqa: PLC0415

        return gramine.read(file, libpal)
    if begin.startswith(b"version https://git-lfs"):
        file.damaged(0, "a pointer of Git LFS, not the file: git lfs pull brings it")
    return file.damaged(
        0, "neither ELF, SGXS, a ledger of pages, a Gramine manifest nor a SIGSTRUCT"
    )


def _is_manifest(file: File) -> bool:
    if not 0 < file.size <= 1 << 24:
        return False
    content = file.read(0, file.size, "manifest")
    return b"enclave_size" in content and b"\0" not in content


def _with_sigstruct_beside(path: str, enclave: Enclave) -> Enclave:
    for beside in (*(path + suffix for suffix in _BESIDE), *_instead(path)):
        if not os.path.isfile(beside):  # noqa: PTH113 (pathlib takes 4 ms of every start)
            continue
        file = File.open(beside)
        if is_sigstruct(file):
            content = file.read(0, Sigstruct.SIZE, "SIGSTRUCT")
            return replace(enclave, sigstruct=content, sigstruct_at=0, sigstruct_file=beside)
    return enclave


def _instead(path: str) -> list[str]:
    # Gramine's helloworld.manifest.sgx has helloworld.sig.
    stem = path.removesuffix(".manifest.sgx")
    if stem == path:
        stem = os.path.splitext(path)[0]  # noqa: PTH122 (likewise)
    return [stem + suffix for suffix in _BESIDE]
