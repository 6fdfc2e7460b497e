# SPDX-License-Identifier: Apache-2.0
"""The ioctls of /dev/sgx_enclave (kernel: ioctl.c), checks in the kernel's order.

Owns nothing.  What an ioctl reads from user memory it reads once, into a copy.
"""

import errno
from typing import TYPE_CHECKING

from softsgx.arch.attributes import ATTRIBUTE_PROVISIONKEY
from softsgx.arch.ioctl import (
    SGX_IOC_ENCLAVE_ADD_PAGES,
    SGX_IOC_ENCLAVE_CREATE,
    SGX_IOC_ENCLAVE_CREATE_BACKING,
    SGX_IOC_ENCLAVE_INIT,
    SGX_IOC_ENCLAVE_MODIFY_TYPES,
    SGX_IOC_ENCLAVE_PROVISION,
    SGX_IOC_ENCLAVE_REMOVE_PAGES,
    SGX_IOC_ENCLAVE_RESTRICT_PERMISSIONS,
    SGX_IOC_ENCLAVE_SET_BACKING,
    SGX_PAGE_MEASURE,
    EnclaveAddPages,
    EnclaveCreate,
    EnclaveCreateBacking,
    EnclaveInit,
    EnclaveProvision,
    EnclaveSetBacking,
)
from softsgx.arch.secinfo import (
    PAGE_SIZE,
    SECINFO_PAGE_TYPE,
    SECINFO_R,
    SECINFO_REG,
    SECINFO_RWX,
    SECINFO_TCS,
    SECINFO_W,
)
from softsgx.arch.structures import SIGSTRUCT_VENDOR_INTEL, Secinfo, Secs, Sigstruct
from softsgx.driver.launch import launch, signer_hash
from softsgx.driver.uaccess import copy_from_user, copy_to_user
from softsgx.errors import DriverError, Fault, Misaligned

if TYPE_CHECKING:
    from softsgx.driver.encl import Encl
    from softsgx.driver.task import Task

_U64 = (1 << 64) - 1
# Bits 3, 6, 9:8 and 63:11 of ATTRIBUTES (SGX_ATTR_RESERVED_MASK; bit 10 is known to Linux 6.2 and later).
_ATTRIBUTES_RESERVED = _U64 & ~0x4B7
# MISCSELECT beyond EXINFO (SGX_MISC_RESERVED_MASK).
_MISC_RESERVED = 0xFFFF_FFFE
_SGX2 = (
    SGX_IOC_ENCLAVE_RESTRICT_PERMISSIONS,
    SGX_IOC_ENCLAVE_MODIFY_TYPES,
    SGX_IOC_ENCLAVE_REMOVE_PAGES,
)


def sgx_ioctl(encl: "Encl", request: int, arg: int, task: "Task") -> int:
    """Carry out an ioctl on an enclave file and return 0, or raise DriverError.

    One at a time an enclave: while one is suspended in user memory, another is EBUSY.
    """
    if encl.ioctl_in_flight:
        raise DriverError(errno.EBUSY, "another ioctl on this enclave is in flight")
    if encl.dead:
        raise DriverError(errno.EIO, "the enclave was killed")
    encl.ioctl_in_flight = True
    try:
        # An ioctl's request is an unsigned int: the upper half of the register does not count.
        request &= 0xFFFF_FFFF
        if request == SGX_IOC_ENCLAVE_CREATE:
            sgx_ioc_enclave_create(encl, arg, task)
        elif request == SGX_IOC_ENCLAVE_ADD_PAGES:
            sgx_ioc_enclave_add_pages(encl, arg, task)
        elif request == SGX_IOC_ENCLAVE_INIT:
            sgx_ioc_enclave_init(encl, arg, task)
        elif request == SGX_IOC_ENCLAVE_PROVISION:
            sgx_ioc_enclave_provision(encl, arg, task)
        elif request == SGX_IOC_ENCLAVE_SET_BACKING:
            sgx_ioc_enclave_set_backing(encl, arg, task)
        elif request == SGX_IOC_ENCLAVE_CREATE_BACKING:
            sgx_ioc_enclave_create_backing(encl, arg, task)
        elif request in _SGX2:
            _sgx2(encl, request, arg, task)
        else:
            raise DriverError(errno.ENOTTY, f"{request:#010x} is no ioctl of /dev/sgx_enclave")
    finally:
        encl.ioctl_in_flight = False
    return 0


def sgx_ioc_enclave_create(encl: "Encl", arg: int, task: "Task") -> None:
    """ECREATE from a SECS in user memory."""
    if encl.created:
        raise DriverError(errno.EINVAL, "the enclave is created already")
    create = EnclaveCreate.decode(copy_from_user(task, arg, EnclaveCreate.SIZE, "the argument"))
    encl.create(copy_from_user(task, create.src, Secs.SIZE, "the SECS"), task)


def sgx_ioc_enclave_create_backing(encl: "Encl", arg: int, task: "Task") -> None:
    """ECREATE as CREATE does, with one range of the caller's memory as the store, or none at all."""
    if encl.created:
        raise DriverError(errno.EINVAL, "the enclave is created already")
    data = copy_from_user(task, arg, EnclaveCreateBacking.SIZE, "the argument")
    create = EnclaveCreateBacking.decode(data)
    secs = copy_from_user(task, create.src, Secs.SIZE, "the SECS")
    create_enclave(encl, secs, create.backing, task)


def _sgx2(encl: "Encl", request: int, arg: int, task: "Task") -> None:
    from softsgx.driver import sgx2  # noqa: PLC0415  (most enclaves stay as they were built)

    if request == SGX_IOC_ENCLAVE_RESTRICT_PERMISSIONS:
        sgx2.sgx_ioc_enclave_restrict_permissions(encl, arg, task)
    elif request == SGX_IOC_ENCLAVE_MODIFY_TYPES:
        sgx2.sgx_ioc_enclave_modify_types(encl, arg, task)
    else:
        sgx2.sgx_ioc_enclave_remove_pages(encl, arg, task)


def create_enclave(encl: "Encl", secs: bytes, address: int | None, task: "Task") -> None:
    """ECREATE, with the store that begins at an address of the caller's: 0 is none, None the default."""
    if address is None:
        encl.create(secs, task)
        return
    from softsgx.driver.set_backing import create_backing  # noqa: PLC0415  (few programs choose)

    backing = create_backing(encl, Secs.decode(secs), address, task)
    try:
        encl.create(secs, task, backing)
    except BaseException:
        backing.close()
        raise


def sgx_ioc_enclave_set_backing(encl: "Encl", arg: int, task: "Task") -> None:
    """Choose where evicted pages go: see set_backing.py."""
    from softsgx.driver.set_backing import check_settable, set_backing  # noqa: PLC0415  (as above)

    check_settable(encl)
    data = copy_from_user(task, arg, EnclaveSetBacking.SIZE, "the argument")
    set_backing(encl, data, task)


def sgx_ioc_enclave_add_pages(encl: "Encl", arg: int, task: "Task") -> None:
    """EADD pages from user memory, and EEXTEND them if SGX_PAGE_MEASURE is set.

    ``count`` of the argument tells how many bytes were added, also when the call fails in the middle.
    """
    _check_buildable(encl)
    data = copy_from_user(task, arg, EnclaveAddPages.SIZE, "the argument")
    add = EnclaveAddPages.decode(data)
    if add.src % PAGE_SIZE:
        raise Misaligned(errno.EINVAL, f"src {add.src:#x} is not page aligned")
    validate_offset_length(encl, add.offset, add.length)
    secinfo = copy_from_user(task, add.secinfo, Secinfo.SIZE, "the SECINFO")
    validate_secinfo(secinfo)
    secinfo_flags = Secinfo.decode(secinfo).flags
    measure = bool(add.flags & SGX_PAGE_MEASURE)
    done = 0
    failure: DriverError | None = None
    try:
        while done < add.length:
            if task.signal_pending():
                # With a page added it is a short count and success.
                if not done:
                    failure = DriverError(errno.EINTR, "a signal came before the first page")
                break
            pages = encl.add_run(
                task,
                add.offset + done,
                add.src + done & _U64,
                (add.length - done) // PAGE_SIZE,
                secinfo_flags,
                measure,
            )
            done += pages * PAGE_SIZE
    except DriverError as error:
        failure = error
    copy_to_user(task, arg, add.replace(count=done).encode(), "the argument")
    if failure is not None:
        raise failure


def sgx_ioc_enclave_init(encl: "Encl", arg: int, task: "Task") -> None:
    """EINIT with a SIGSTRUCT in user memory and any signer: the launch key hash is set to it."""
    _check_buildable(encl)
    init = EnclaveInit.decode(copy_from_user(task, arg, EnclaveInit.SIZE, "the argument"))
    sigstruct = copy_from_user(task, init.sigstruct, Sigstruct.SIZE, "the SIGSTRUCT")
    css = Sigstruct.decode(sigstruct)
    if css.vendor not in (0, SIGSTRUCT_VENDOR_INTEL):
        raise DriverError(errno.EINVAL, f"SIGSTRUCT.VENDOR is {css.vendor:#x}; 0 or 0x8086 wanted")
    # Before the SIGSTRUCT is looked at any further: PROVISIONKEY needs /dev/sgx_provision.
    refused = encl.attributes & ~encl.attributes_mask
    if refused:
        raise DriverError(errno.EACCES, f"SECS.ATTRIBUTES {refused:#x} have not been granted")
    model = encl.cpu.model
    for name, wanted, reserved in (
        (
            "ATTRIBUTES",
            css.attributes & css.attributemask,
            ~model.attributes | _ATTRIBUTES_RESERVED,
        ),
        ("MISCSELECT", css.miscselect & css.miscmask, ~model.miscselect | _MISC_RESERVED),
        ("XFRM", css.xfrm & css.xfrmmask, ~model.xfrm),
    ):
        if wanted & reserved:
            raise DriverError(
                errno.EINVAL, f"SIGSTRUCT demands {name} {wanted & reserved:#x}: not supported"
            )
    _einit(encl, sigstruct, css.modulus)
    encl.initialized = True


def _einit(encl: "Encl", sigstruct: bytes, modulus: bytes) -> None:
    try:
        code = launch(encl, sigstruct, signer_hash(modulus))
    except Fault as fault:
        raise DriverError(errno.EIO, f"EINIT: {fault}") from fault
    if code:
        raise DriverError(errno.EPERM, f"EINIT returned {code.name} ({code})")


def sgx_ioc_enclave_provision(encl: "Encl", arg: int, task: "Task") -> None:
    """Grant ATTRIBUTES.PROVISIONKEY for an open file of /dev/sgx_provision.

    Allowed in any state.  CREATE sets the mask anew, so a grant before it is lost.
    """
    data = copy_from_user(task, arg, EnclaveProvision.SIZE, "the argument")
    fd = EnclaveProvision.decode(data).fd & 0xFFFF_FFFF
    file = task.file(fd)
    if file is None or not file.grants_provisioning:
        raise DriverError(errno.EINVAL, f"descriptor {fd} is no open /dev/sgx_provision")
    encl.attributes_mask |= ATTRIBUTE_PROVISIONKEY


def _check_buildable(encl: "Encl") -> None:
    if not encl.created:
        raise DriverError(errno.EINVAL, "the enclave is not created yet")
    if encl.initialized:
        raise DriverError(errno.EINVAL, "the enclave is initialized already")


def validate_offset_length(encl: "Encl", offset: int, length: int) -> None:
    """Judge the pages that an ioctl names (sgx_validate_offset_length); DriverError EINVAL."""
    if offset % PAGE_SIZE:
        raise Misaligned(errno.EINVAL, f"offset {offset:#x} is not page aligned")
    if not length or length % PAGE_SIZE:
        raise Misaligned(errno.EINVAL, f"length {length:#x} is zero or not page aligned")
    # A sum beyond 64 bits is refused as a wrap; no enclave reaches that far.
    if offset + length > encl.size:
        raise DriverError(
            errno.EINVAL, f"{offset:#x}+{length:#x} is beyond the enclave's size {encl.size:#x}"
        )


def validate_secinfo(secinfo: bytes) -> None:
    """Judge the SECINFO of pages to be added (sgx_validate_secinfo); DriverError EINVAL."""
    flags = Secinfo.decode(secinfo).flags
    page_type = flags & SECINFO_PAGE_TYPE
    if page_type not in (SECINFO_REG, SECINFO_TCS):
        raise DriverError(errno.EINVAL, f"SECINFO.PAGE_TYPE {page_type >> 8} is not REG or TCS")
    if flags & SECINFO_W and not flags & SECINFO_R:
        raise DriverError(errno.EINVAL, "SECINFO has W without R")
    # EADD would clear them without a word, and the measurement would not be what was asked for.
    if page_type == SECINFO_TCS and flags & SECINFO_RWX:
        raise DriverError(errno.EINVAL, f"SECINFO of a TCS has permissions {flags & SECINFO_RWX}")
    if flags & ~(SECINFO_RWX | SECINFO_PAGE_TYPE):
        raise DriverError(errno.EINVAL, f"SECINFO.FLAGS {flags:#x} has reserved bits")
    if not Secinfo.reserved_is_zero(secinfo):
        raise DriverError(errno.EINVAL, "SECINFO has reserved bytes that are not zero")
