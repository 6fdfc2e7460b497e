# SPDX-License-Identifier: Apache-2.0
"""An enclave that the Python process builds itself, through the same ioctls as a program."""

from types import TracebackType
from typing import Self

from softsgx.arch.ioctl import (
    BACKING_SEPARATE,
    SGX_IOC_ENCLAVE_ADD_PAGES,
    SGX_IOC_ENCLAVE_CREATE,
    SGX_IOC_ENCLAVE_CREATE_BACKING,
    SGX_IOC_ENCLAVE_INIT,
    SGX_IOC_ENCLAVE_PROVISION,
    SGX_IOC_ENCLAVE_SET_BACKING,
    SGX_PAGE_MEASURE,
    EnclaveAddPages,
    EnclaveCreate,
    EnclaveCreateBacking,
    EnclaveInit,
    EnclaveProvision,
    EnclaveSetBacking,
)
from softsgx.arch.layout import Record
from softsgx.arch.structures import Secinfo
from softsgx.driver.driver import Driver
from softsgx.driver.task import LocalTask


class ChoosesBacking:
    """An enclave of the Python process, as far as its backing store goes: the ioctls are of every driver."""

    task: LocalTask
    # Which of the enclaves of a descriptor that may hold several.
    _of_several = 0

    def ioctl(self, request: int, argument: Record) -> object:
        """Carry out an ioctl."""
        raise NotImplementedError

    def create_with_backing(self, secs: bytes, backing: int) -> None:
        """CREATE as the thread of November 2018 had it: ``backing`` is an address in ``task``, 0 for none."""
        with self.task.placed(secs) as src:
            self.ioctl(
                SGX_IOC_ENCLAVE_CREATE_BACKING, EnclaveCreateBacking(src=src, backing=backing)
            )

    def set_backing(
        self,
        mode: int,
        *,
        flags: int = 0,
        contents: tuple[int, int] = (0, 0),
        pcmds: tuple[int, int] | None = None,
        file: int = -1,
        pcmds_file: int = -1,
    ) -> None:
        """SGX_IOC_ENCLAVE_SET_BACKING; ``mode`` and ``flags`` are arch.ioctl's BACKING_*.

        ``contents`` and ``pcmds`` are start and length: in ``task``'s memory or, with BACKING_FD, in the
        files, which are descriptors of the Python process.  With ``pcmds`` the store is separate.
        """
        at, length = (0, 0) if pcmds is None else pcmds
        numbers = [self.task.install(fd) if fd >= 0 else -1 for fd in (file, pcmds_file)]
        try:
            self.ioctl(
                SGX_IOC_ENCLAVE_SET_BACKING,
                EnclaveSetBacking(
                    flags=mode | flags | (0 if pcmds is None else BACKING_SEPARATE),
                    contents=contents[0],
                    contents_len=contents[1],
                    pcmd=at,
                    pcmd_len=length,
                    contents_fd=numbers[0],
                    pcmd_fd=numbers[1],
                    enclave=self._of_several,
                ),
            )
        finally:
            for number in numbers:
                if number >= 0:
                    self.task.close(number)


class LocalEnclave(ChoosesBacking):
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
