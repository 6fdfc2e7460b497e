# SPDX-License-Identifier: Apache-2.0
"""The driver that came with Intel's DCAP 1.6 to 1.9: mainline's ABI before it was mainline's.

Owns nothing beyond what an EnclaveFile does.  Source: driver/linux of the tag DCAP_1.6; where 1.9 differs,
docs/drivers.md says so.  The order of the checks is its own.
"""

import errno
from typing import TYPE_CHECKING

from softsgx.arch.attributes import ATTRIBUTES_UNPRIVILEGED
from softsgx.arch.ioctl import (
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
)
from softsgx.arch.secinfo import PAGE_SIZE, SECINFO_X
from softsgx.arch.structures import Secinfo, Secs, Sigstruct
from softsgx.driver.driver import EnclaveFile
from softsgx.driver.encl import Encl
from softsgx.driver.epcm_encl import EpcmEncl
from softsgx.driver.ioctl import (
    create_enclave,
    sgx_ioc_enclave_provision,
    sgx_ioc_enclave_set_backing,
    validate_secinfo,
)
from softsgx.driver.launch import launch, signer_hash
from softsgx.driver.uaccess import copy_from_user, copy_to_user
from softsgx.driver.validate_secs import DCAP_RULES, validate_secs
from softsgx.driver.vma import PROT_RWX
from softsgx.errors import DriverError, Fault, Misaligned

if TYPE_CHECKING:
    from softsgx.driver.task import Task

# What its ENCLS wrappers return for an exception: this and the vector.
ENCLS_FAULT_FLAG = 0x4000_0000
_U64 = (1 << 64) - 1


class DcapEncl(EpcmEncl):
    """An enclave of it: mmap asks for the pages, and mprotect, which the kernel of its time does not tell it of, does not."""

    def may_map(self, start: int, end: int, prot: int, read_implies_exec: bool = False) -> None:
        """Judge a mapping of [start, end) (sgx_encl_may_map): a place without a page allows nothing."""
        if read_implies_exec:
            raise DriverError(errno.EACCES, "the caller's personality is READ_IMPLIES_EXEC")
        if not prot & PROT_RWX:
            return
        at = start
        for low, high, run in self.page_array.parts(start, end):
            if low > at or prot & PROT_RWX & ~run.vm_max_prot:
                break
            at = high
        if at < end:
            raise DriverError(errno.EACCES, f"no page at {at:#x} allows protection {prot:#x}")


class DcapEnclaveFile(EnclaveFile):
    """An open file of /dev/sgx/enclave."""

    encl_type = DcapEncl
    # Pages have been added before its EINTR.
    restarts = False

    def check_mprotect(self, start: int, end: int, prot: int, task: "Task") -> None:
        """Grant any protection: the EPCM is asked at the access."""

    def _ioctl(self, request: int, arg: int, task: "Task") -> int:
        return dcap_ioctl(self.encl, request & 0xFFFF_FFFF, arg, task)


def dcap_ioctl(encl: Encl, request: int, arg: int, task: "Task") -> int:
    """Carry out an ioctl on an enclave file and return its result, or raise DriverError."""
    if encl.ioctl_in_flight:
        raise DriverError(errno.EBUSY, "another ioctl on this enclave is in flight")
    if encl.dead:
        raise DriverError(errno.EFAULT, "the enclave is dead")
    encl.ioctl_in_flight = True
    try:
        if request == SGX_IOC_ENCLAVE_CREATE:
            create = copy_from_user(task, arg, EnclaveCreate.SIZE, "the argument")
            return _create(encl, EnclaveCreate.decode(create).src, None, task)
        if request == SGX_IOC_ENCLAVE_CREATE_BACKING:
            create = copy_from_user(task, arg, EnclaveCreateBacking.SIZE, "the argument")
            wanted = EnclaveCreateBacking.decode(create)
            return _create(encl, wanted.src, wanted.backing, task)
        if request == SGX_IOC_ENCLAVE_ADD_PAGES:
            _add_pages(encl, arg, task)
        elif request == SGX_IOC_ENCLAVE_INIT:
            _init(encl, arg, task)
        elif request == SGX_IOC_ENCLAVE_PROVISION:
            sgx_ioc_enclave_provision(encl, arg, task)
        elif request == SGX_IOC_ENCLAVE_SET_BACKING:
            sgx_ioc_enclave_set_backing(encl, arg, task)
        else:
            raise DriverError(errno.ENOTTY, f"{request:#010x} is no ioctl of /dev/sgx/enclave")
    finally:
        encl.ioctl_in_flight = False
    return 0


def _create(encl: Encl, src: int, backing: int | None, task: "Task") -> int:
    secs = copy_from_user(task, src, Secs.SIZE, "the SECS")
    if encl.created:
        raise DriverError(errno.EINVAL, "the enclave is created already")
    validate_secs(encl.cpu.model, secs, DCAP_RULES)
    granted = encl.attributes_mask
    try:
        create_enclave(encl, secs, backing, task)
    except DriverError as error:
        # ECREATE's own outcome goes through to the caller.
        if error.errno == errno.EIO and isinstance(error.__cause__, Fault):
            return ENCLS_FAULT_FLAG | error.__cause__.vector
        raise
    # Unlike mainline's, a grant from before CREATE holds.
    encl.attributes_mask = granted | ATTRIBUTES_UNPRIVILEGED
    return 0


def _add_pages(encl: Encl, arg: int, task: "Task") -> None:
    if not encl.created:
        raise DriverError(errno.EINVAL, "the enclave is not created yet")
    data = copy_from_user(task, arg, EnclaveAddPages.SIZE, "the argument")
    add = EnclaveAddPages.decode(data)
    if add.offset % PAGE_SIZE or add.src % PAGE_SIZE or add.length % PAGE_SIZE:
        raise Misaligned(errno.EINVAL, "offset, src or length is not page aligned")
    if (add.offset + add.length - PAGE_SIZE) & _U64 >= encl.size:
        raise DriverError(errno.EINVAL, f"{add.offset:#x}+{add.length:#x} is beyond the enclave")
    secinfo = copy_from_user(task, add.secinfo, Secinfo.SIZE, "the SECINFO")
    validate_secinfo(secinfo)
    done = 0
    failure: DriverError | None = None
    try:
        while done < add.length:
            if task.signal_pending():
                # Unlike mainline's, also where pages have been added.
                failure = DriverError(errno.EINTR, f"a signal came after {done:#x} bytes")
                break
            done += _add_run(encl, add, done, Secinfo.decode(secinfo).flags, task)
    except DriverError as error:
        failure = error
    copy_to_user(task, arg, add.replace(count=done).encode(), "the argument")
    if failure is not None:
        raise failure


def _add_run(encl: Encl, add: EnclaveAddPages, done: int, secinfo_flags: int, task: "Task") -> int:
    if encl.initialized:
        raise DriverError(errno.EFAULT, "the enclave is initialized already")
    source = add.src + done & _U64
    count = (add.length - done) // PAGE_SIZE
    measure = bool(add.flags & SGX_PAGE_MEASURE)
    try:
        return PAGE_SIZE * encl.add_run(
            task,
            add.offset + done,
            source,
            count,
            secinfo_flags,
            measure,
            # Only a page that may be executed asks whether its source may.
            noexec=not secinfo_flags & SECINFO_X,
        )
    except DriverError as error:
        if error.errno == errno.EIO:
            # ENCLS fails where the EPC has been invalidated, it thinks: nothing is left then.
            encl.destroy()
        elif error.errno == errno.EBUSY:
            raise DriverError(errno.EEXIST, error.reason) from error
        raise


def _init(encl: Encl, arg: int, task: "Task") -> None:
    if not encl.created:
        raise DriverError(errno.EINVAL, "the enclave is not created yet")
    init = EnclaveInit.decode(copy_from_user(task, arg, EnclaveInit.SIZE, "the argument"))
    sigstruct = copy_from_user(task, init.sigstruct, Sigstruct.SIZE, "the SIGSTRUCT")
    refused = encl.attributes & ~encl.attributes_mask
    if refused:
        raise DriverError(errno.EACCES, f"SECS.ATTRIBUTES {refused:#x} have not been granted")
    if encl.initialized:
        raise DriverError(errno.EFAULT, "the enclave is initialized already")
    try:
        code = launch(encl, sigstruct, signer_hash(Sigstruct.decode(sigstruct).modulus))
    except Fault as fault:
        encl.destroy()
        raise DriverError(errno.EFAULT, f"EINIT: {fault}") from fault
    if code:
        raise DriverError(errno.EPERM, f"EINIT returned {code.name} ({code})")
    encl.initialized = True
