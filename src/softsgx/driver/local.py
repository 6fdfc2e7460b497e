# SPDX-License-Identifier: Apache-2.0
"""An enclave that the Python process builds itself, through the same ioctls as a program."""

from types import TracebackType
from typing import Self

from softsgx.arch.ioctl import (
    SGX_IOC_ENCLAVE_ADD_PAGES,
    SGX_IOC_ENCLAVE_CREATE,
    SGX_IOC_ENCLAVE_INIT,
    SGX_IOC_ENCLAVE_PROVISION,
    SGX_PAGE_MEASURE,
    EnclaveAddPages,
    EnclaveCreate,
    EnclaveInit,
    EnclaveProvision,
)
from softsgx.arch.layout import Record
from softsgx.arch.structures import Secinfo
from softsgx.driver.driver import Driver
from softsgx.driver.task import LocalTask


class LocalEnclave:
    """One open enclave file and its caller; ``file`` and ``task`` serve for every other ioctl.

    Every method raises DriverError as the ioctl does.  A context manager: the enclave ends with it.
    """

    def __init__(self, driver: Driver, task: LocalTask | None = None) -> None:
        self.file = driver.open_enclave()
        self.task = LocalTask() if task is None else task
        self._driver = driver

    def create(self, secs: bytes) -> None:
        """SGX_IOC_ENCLAVE_CREATE from the 4096 bytes of a SECS."""
        with self.task.placed(secs) as src:
            self.ioctl(SGX_IOC_ENCLAVE_CREATE, EnclaveCreate(src=src))

    def add_pages(
        self, offset: int, data: bytes, secinfo_flags: int, *, measure: bool = True
    ) -> int:
        """SGX_IOC_ENCLAVE_ADD_PAGES of whole pages at an offset from the base; return the bytes added."""
        secinfo = Secinfo(flags=secinfo_flags).encode()
        with self.task.placed(data) as src, self.task.placed(secinfo) as secinfo_at:
            result = self.ioctl(
                SGX_IOC_ENCLAVE_ADD_PAGES,
                EnclaveAddPages(
                    src=src,
                    offset=offset,
                    length=len(data),
                    secinfo=secinfo_at,
                    flags=SGX_PAGE_MEASURE if measure else 0,
                    count=0,
                ),
            )
        return EnclaveAddPages.decode(result).count

    def init(self, sigstruct: bytes) -> None:
        """SGX_IOC_ENCLAVE_INIT with the 1808 bytes of a SIGSTRUCT."""
        with self.task.placed(sigstruct) as at:
            self.ioctl(SGX_IOC_ENCLAVE_INIT, EnclaveInit(sigstruct=at))

    def provision(self) -> None:
        """SGX_IOC_ENCLAVE_PROVISION with an open /dev/sgx_provision; after ``create``, else it is lost."""
        fd = self.task.install(self._driver.open_provision())
        try:
            self.ioctl(SGX_IOC_ENCLAVE_PROVISION, EnclaveProvision(fd=fd))
        finally:
            self.task.close(fd)

    def ioctl(self, request: int, argument: Record) -> bytes:
        """Carry out an ioctl and return its argument as it is afterwards."""
        data = argument.encode()
        with self.task.placed(data) as arg:
            self.file.ioctl(request, arg, self.task)
            return self.task.memory.read(arg, len(data))

    def close(self) -> None:
        """Release the file: the enclave ends."""
        self.file.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
