# SPDX-License-Identifier: Apache-2.0
"""An enclave that the Python process builds itself through the ABI of v16, isgx or DCAP 1.5."""

from types import TracebackType
from typing import TYPE_CHECKING, Self

from softsgx.arch.ioctl import SGX_IOC_ENCLAVE_CREATE, EnclaveCreate
from softsgx.arch.legacy_ioctl import (
    SGX_IOC_ENCLAVE_ADD_PAGE,
    SGX_IOC_ENCLAVE_INIT_AT,
    SGX_IOC_ENCLAVE_INIT_BY_TOKEN,
    SGX_IOC_ENCLAVE_SET_ATTRIBUTE_AT,
    EnclaveAddPage,
    EnclaveInitAt,
    EnclaveInitByToken,
    EnclaveSetAttributeAt,
)
from softsgx.arch.secinfo import PAGE_SIZE
from softsgx.arch.structures import Secinfo
from softsgx.driver.launch import NO_TOKEN
from softsgx.driver.legacy_encl import ALL_CHUNKS
from softsgx.driver.local import ChoosesBacking
from softsgx.driver.nodes import ISGX
from softsgx.driver.task import LocalTask

if TYPE_CHECKING:
    from softsgx.arch.layout import Record
    from softsgx.driver.driver import Driver
    from softsgx.driver.legacy import LegacyMapping


class MappedEnclave(ChoosesBacking):
    """One mapping of the node, ``size`` bytes from ``base`` on, and its caller; ``mapping`` is what it holds.

    Every method returns what the ioctl does, 0 or a positive number, and raises DriverError for an errno.
    A context manager: the enclave ends with it.
    """

    def __init__(
        self, driver: "Driver", size: int, base: int | None = None, task: LocalTask | None = None
    ) -> None:
        self.task = LocalTask() if task is None else task
        self.file = driver.open_legacy()
        self._driver = driver
        self.base = self._of_several = self.task.mmap(self.file, size, base)
        self.size = size

    @property
    def mapping(self) -> "LegacyMapping":
        """The mapping at ``base``; ValueError if it is unmapped."""
        found = self.task.legacy_vma(self.base)
        if found is None:
            raise ValueError(f"nothing is mapped at {self.base:#x}")
        return found[2]

    def create(self, secs: bytes) -> int:
        """SGX_IOC_ENCLAVE_CREATE from the 4096 bytes of a SECS, whose BASEADDR is ``base``."""
        with self.task.placed(secs) as src:
            return self.ioctl(SGX_IOC_ENCLAVE_CREATE, EnclaveCreate(src=src))

    def add_page(
        self, offset: int, page: bytes, secinfo_flags: int, mrmask: int = ALL_CHUNKS
    ) -> int:
        """SGX_IOC_ENCLAVE_ADD_PAGE of one page at an offset from ``base``."""
        secinfo = Secinfo(flags=secinfo_flags).encode()
        with self.task.placed(page) as src, self.task.placed(secinfo) as secinfo_at:
            return self.ioctl(
                SGX_IOC_ENCLAVE_ADD_PAGE,
                EnclaveAddPage(addr=self.base + offset, src=src, secinfo=secinfo_at, mrmask=mrmask),
            )

    def add_pages(
        self, offset: int, data: bytes, secinfo_flags: int, *, measure: bool = True
    ) -> int:
        """Add whole pages one by one; return the first result that is not 0, else 0."""
        for at in range(0, len(data), PAGE_SIZE):
            page = data[at : at + PAGE_SIZE]
            result = self.add_page(offset + at, page, secinfo_flags, ALL_CHUNKS if measure else 0)
            if result:
                return result
        return 0

    def init(self, sigstruct: bytes, einittoken: bytes = NO_TOKEN) -> int:
        """SGX_IOC_ENCLAVE_INIT with the 1808 bytes of a SIGSTRUCT; isgx takes a launch token too."""
        with self.task.placed(sigstruct) as at, self.task.placed(einittoken) as token_at:
            if self.file.kind == ISGX:
                by_token = EnclaveInitByToken(addr=self.base, sigstruct=at, einittoken=token_at)
                return self.ioctl(SGX_IOC_ENCLAVE_INIT_BY_TOKEN, by_token)
            return self.ioctl(SGX_IOC_ENCLAVE_INIT_AT, EnclaveInitAt(addr=self.base, sigstruct=at))

    def provision(self) -> int:
        """SGX_IOC_ENCLAVE_SET_ATTRIBUTE of DCAP 1.5, with an open /dev/sgx_prv."""
        fd = self.task.install(self._driver.open_provision())
        try:
            argument = EnclaveSetAttributeAt(addr=self.base, attribute_fd=fd)
            return self.ioctl(SGX_IOC_ENCLAVE_SET_ATTRIBUTE_AT, argument)
        finally:
            self.task.close(fd)

    def ioctl(self, request: int, argument: "Record") -> int:
        """Carry out an ioctl and return its result."""
        with self.task.placed(argument.encode()) as arg:
            return self.file.ioctl(request, arg, self.task)

    def munmap(self, offset: int = 0, length: int | None = None) -> None:
        """Unmap a part, or all: either ends the enclave."""
        self.task.munmap(self.base + offset, self.size if length is None else length)

    def close(self) -> None:
        """Unmap all of it."""
        self.munmap()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
