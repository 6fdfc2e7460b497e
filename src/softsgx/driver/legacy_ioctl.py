# SPDX-License-Identifier: Apache-2.0
"""The ioctls of v16, isgx and DCAP 1.5 (sgx_ioctl.c), checks in the order of each.

Owns nothing.  What these drivers hand on by oversight is handed on: how many bytes copy_from_user has left,
an EINVAL without its sign, a code of EINIT.
"""

import errno
from struct import Struct
from typing import TYPE_CHECKING

from softsgx.arch.attributes import ATTRIBUTE_EINITTOKENKEY, ATTRIBUTE_PROVISIONKEY
from softsgx.arch.ioctl import (
    SGX_IOC_ENCLAVE_CREATE,
    SGX_IOC_ENCLAVE_CREATE_BACKING,
    SGX_IOC_ENCLAVE_SET_BACKING,
    EnclaveCreate,
    EnclaveCreateBacking,
    EnclaveSetBacking,
)
from softsgx.arch.legacy_ioctl import (
    SGX_IOC_ENCLAVE_ADD_PAGE,
    SGX_IOC_ENCLAVE_EMODPR,
    SGX_IOC_ENCLAVE_INIT_AT,
    SGX_IOC_ENCLAVE_INIT_BY_TOKEN,
    SGX_IOC_ENCLAVE_MKTCS,
    SGX_IOC_ENCLAVE_NOTIFY_ACCEPT,
    SGX_IOC_ENCLAVE_PAGE_REMOVE,
    SGX_IOC_ENCLAVE_SET_ATTRIBUTE_AT,
    SGX_IOC_ENCLAVE_TRIM,
    EnclaveAddPage,
    EnclaveInitAt,
    EnclaveInitByToken,
    EnclaveModification,
    EnclaveSetAttributeAt,
)
from softsgx.arch.secinfo import PAGE_SIZE, SECINFO_R, SECINFO_RWX, SECINFO_W
from softsgx.arch.structures import Einittoken, Secinfo, Secs, Sigstruct
from softsgx.driver.ioctl import create_enclave
from softsgx.driver.launch import NO_TOKEN, launch, signer_hash
from softsgx.driver.legacy_encl import PageRequest, validate_secinfo
from softsgx.driver.nodes import DCAP_1_5, ISGX, V16
from softsgx.driver.uaccess import copy_from_user, copy_some_from_user
from softsgx.driver.validate_secs import ISGX_RULES, V16_RULES, validate_secs
from softsgx.errors import DriverError, Fault, Misaligned

if TYPE_CHECKING:
    from softsgx.driver.legacy import LegacyFile, LegacyMapping
    from softsgx.driver.legacy_encl import LegacyEncl
    from softsgx.driver.task import Task

# IA32_SGXLEPUBKEYHASH0 to 3 as a processor comes from the factory, and as isgx puts them back.
INTEL_LEPUBKEYHASH = Struct("<4Q").pack(
    0xA6053E051270B7AC, 0x6CFBE8BA8B3B413D, 0xC4916D99F2B3735D, 0xD4F8C05909F9BB3B
)
_TOKEN_VALID = 1
_SGX2 = {
    SGX_IOC_ENCLAVE_EMODPR: "EMODPR",
    SGX_IOC_ENCLAVE_MKTCS: "MKTCS",
    SGX_IOC_ENCLAVE_TRIM: "TRIM",
    SGX_IOC_ENCLAVE_NOTIFY_ACCEPT: "NOTIFY_ACCEPT",
    SGX_IOC_ENCLAVE_PAGE_REMOVE: "PAGE_REMOVE",
}
_COMMON = {
    SGX_IOC_ENCLAVE_CREATE,
    SGX_IOC_ENCLAVE_ADD_PAGE,
    # Of no driver: docs/backing.md.
    SGX_IOC_ENCLAVE_CREATE_BACKING,
    SGX_IOC_ENCLAVE_SET_BACKING,
}
# What each driver knows.
_KNOWN = {
    V16: _COMMON | {SGX_IOC_ENCLAVE_INIT_AT},
    ISGX: _COMMON | {SGX_IOC_ENCLAVE_INIT_BY_TOKEN} | _SGX2.keys(),
    DCAP_1_5: _COMMON | {SGX_IOC_ENCLAVE_INIT_AT, SGX_IOC_ENCLAVE_SET_ATTRIBUTE_AT},
}


def legacy_ioctl(file: "LegacyFile", request: int, arg: int, task: "Task") -> int:
    """Carry out an ioctl on a node's file and return its result, or raise DriverError.

    Any number at a time: each one's copies from user memory are made before it touches the enclave.
    """
    if request not in _KNOWN[file.kind]:
        raise DriverError(errno.ENOTTY, f"{request:#010x} is no ioctl of the driver {file.kind}")
    data = copy_from_user(task, arg, request >> 16 & 0x3FFF, "the argument")
    if request == SGX_IOC_ENCLAVE_CREATE:
        return _create(file, EnclaveCreate.decode(data).src, None, task)
    if request == SGX_IOC_ENCLAVE_CREATE_BACKING:
        create = EnclaveCreateBacking.decode(data)
        return _create(file, create.src, create.backing, task)
    if request == SGX_IOC_ENCLAVE_SET_BACKING:
        return _set_backing(data, task)
    if request == SGX_IOC_ENCLAVE_ADD_PAGE:
        return _add_page(EnclaveAddPage.decode(data), task)
    if request == SGX_IOC_ENCLAVE_INIT_AT:
        init = EnclaveInitAt.decode(data)
        if file.kind == V16:
            return _init_v16(init, task)
        return _init_dcap(init, task)
    if request == SGX_IOC_ENCLAVE_INIT_BY_TOKEN:
        return _init_isgx(EnclaveInitByToken.decode(data), task)
    if request == SGX_IOC_ENCLAVE_SET_ATTRIBUTE_AT:
        return _set_attribute(EnclaveSetAttributeAt.decode(data), task)
    return _sgx2(request, data)


# -- CREATE ------------------------------------------------------------------------------------


def _create(file: "LegacyFile", src: int, backing: int | None, task: "Task") -> int:
    """ECREATE for a mapping; ``backing`` is where the caller wants its store, 0 for none at all."""
    secs, left = copy_some_from_user(task, src, Secs.SIZE)
    if left:
        return left
    rules = V16_RULES if file.kind == V16 else ISGX_RULES
    validate_secs(file.driver.processor.model, secs, rules)
    fields = Secs.decode(secs)
    place, problem = _place_for(file, fields, task)
    # The mapping is looked at last: what ECREATE or the EPC has to say is said first.
    encl = file.unmapped_encl() if place is None else place.encl
    encl.ioctl_in_flight = True
    try:
        create_enclave(encl, secs, backing, task)
    except DriverError as error:
        if isinstance(error.__cause__, Fault):
            raise DriverError(errno.EFAULT, error.reason) from error.__cause__
        raise
    finally:
        encl.ioctl_in_flight = False
    if place is None or place.released:
        # Unmapped in the meantime, where making room for the SECS has suspended the caller.
        encl.release()
        raise DriverError(errno.EINVAL, problem or "the mapping is gone")
    return 0


def _place_for(file: "LegacyFile", secs: Secs, task: "Task") -> "tuple[LegacyMapping | None, str]":
    """Find the mapping that is to be the enclave: the whole VMA at BASEADDR; else say why there is none."""
    found = task.legacy_vma(secs.baseaddr)
    if found is None:
        return None, f"nothing of the node is mapped at BASEADDR {secs.baseaddr:#x}"
    start, end, mapping = found
    if mapping.encl.created or mapping.encl.ioctl_in_flight:
        return None, f"the mapping at {start:#x} has its enclave already"
    if (start, end) != (secs.baseaddr, secs.baseaddr + secs.size):
        return None, f"the mapping is {start:#x}..{end:#x}, and the enclave is not all of it"
    # isgx has that check in a comment.
    if file.kind != ISGX and mapping.pgoff(start):
        return None, f"the mapping begins at page {mapping.pgoff(start):#x} of the file"
    return mapping, ""


def _encl_at(task: "Task", addr: int) -> "LegacyEncl":
    """Find the enclave at an address (sgx_encl_get), which nobody is giving a store now; DriverError."""
    if addr % PAGE_SIZE:
        raise Misaligned(errno.EINVAL, f"address {addr:#x} is not page aligned")
    found = task.legacy_vma(addr)
    if found is None:
        raise DriverError(errno.EINVAL, f"nothing of the node is mapped at {addr:#x}")
    encl = found[2].encl
    if not encl.created:
        raise DriverError(errno.ENOENT, f"the mapping at {addr:#x} has no enclave yet")
    while encl.ioctl_in_flight:
        if task.signal_pending():
            raise DriverError(errno.EINTR, "a signal came while another thread chose a store")
        task.pause()
    return encl


def _set_backing(data: bytes, task: "Task") -> int:
    """Choose where the evicted pages of the enclave at a base go: see set_backing.py."""
    from softsgx.driver.set_backing import set_backing  # noqa: PLC0415  (few programs choose)

    encl = _encl_at(task, EnclaveSetBacking.decode(data).enclave)
    if encl.dead:
        raise DriverError(encl.dead_errno, encl.end_reason)
    if encl.queue:
        raise DriverError(errno.EINVAL, "the enclave has pages already")
    encl.ioctl_in_flight = True
    try:
        set_backing(encl, data, task, encl.base)
    finally:
        encl.ioctl_in_flight = False
    return 0


# -- ADD_PAGE ----------------------------------------------------------------------------------


def _add_page(add: EnclaveAddPage, task: "Task") -> int:
    encl = _encl_at(task, add.addr)
    secinfo = copy_from_user(task, add.secinfo, Secinfo.SIZE, "the SECINFO")
    data, left = copy_some_from_user(task, add.src, PAGE_SIZE)
    if left:
        return left
    validate_secinfo(secinfo)
    request = PageRequest(add.addr, Secinfo.decode(secinfo).flags, add.mrmask)
    encl.add_page(request, data, task)
    return 0


# -- INIT --------------------------------------------------------------------------------------


def _init_v16(init: EnclaveInitAt, task: "Task") -> int:
    sigstruct, left = copy_some_from_user(task, init.sigstruct, Sigstruct.SIZE)
    if left:
        return left
    css = Sigstruct.decode(sigstruct)
    if css.attributes & ATTRIBUTE_EINITTOKENKEY:
        # `ret = EINVAL`.
        return errno.EINVAL
    encl = _encl_at(task, init.addr)
    return _launch(encl, task, sigstruct, signer_hash(css.modulus), fatal=True)


def _init_isgx(init: EnclaveInitByToken, task: "Task") -> int:
    """EINIT with the caller's launch token, under the launch key hash of Intel's launch enclave.

    Without a token the driver stands in for the launch enclave, which a program would have had from
    aesmd: its token would let the enclave start, and its absence does.  Only the attribute that makes a
    launch enclave stays with Intel's signer.
    """
    sigstruct, left = copy_some_from_user(task, init.sigstruct, Sigstruct.SIZE)
    if left:
        return left
    einittoken, left = copy_some_from_user(task, init.einittoken, Einittoken.SIZE)
    if left:
        return left
    encl = _encl_at(task, init.addr)
    lepubkeyhash = INTEL_LEPUBKEYHASH
    if not (
        Einittoken.decode(einittoken).valid & _TOKEN_VALID
        or encl.attributes & ATTRIBUTE_EINITTOKENKEY
    ):
        lepubkeyhash = signer_hash(Sigstruct.decode(sigstruct).modulus)
    return _launch(encl, task, sigstruct, lepubkeyhash, einittoken)


def _init_dcap(init: EnclaveInitAt, task: "Task") -> int:
    sigstruct, left = copy_some_from_user(task, init.sigstruct, Sigstruct.SIZE)
    if left:
        return left
    encl = _encl_at(task, init.addr)
    refused = encl.attributes & ~encl.attributes_mask
    if refused:
        raise DriverError(errno.EACCES, f"SECS.ATTRIBUTES {refused:#x} have not been granted")
    return _launch(encl, task, sigstruct, signer_hash(Sigstruct.decode(sigstruct).modulus))


def _launch(
    encl: "LegacyEncl",
    task: "Task",
    sigstruct: bytes,
    lepubkeyhash: bytes,
    einittoken: bytes = NO_TOKEN,
    *,
    fatal: bool = False,
) -> int:
    encl.flush(task)
    if encl.initialized:
        return 0
    if encl.dead:
        raise DriverError(errno.EFAULT, encl.end_reason)
    try:
        code = launch(encl, sigstruct, lepubkeyhash, einittoken)
    except Fault as fault:
        if fatal:
            encl.destroy()
        raise DriverError(errno.EFAULT, f"EINIT: {fault}") from fault
    encl.initialized = not code
    return int(code)


def _set_attribute(grant: EnclaveSetAttributeAt, task: "Task") -> int:
    file = task.file(grant.attribute_fd & 0xFFFF_FFFF)
    if file is None or not file.grants_provisioning:
        raise DriverError(errno.EINVAL, f"descriptor {grant.attribute_fd} is no open /dev/sgx_prv")
    _encl_at(task, grant.addr).attributes_mask |= ATTRIBUTE_PROVISIONKEY
    return 0


# -- SGX2 --------------------------------------------------------------------------------------


def _sgx2(request: int, data: bytes) -> int:
    if request == SGX_IOC_ENCLAVE_EMODPR:
        flags = EnclaveModification.decode(data).flags
        if flags & ~SECINFO_RWX or (flags & SECINFO_W and not flags & SECINFO_R):
            raise DriverError(errno.EINVAL, f"permissions {flags:#x} cannot be had")
    raise DriverError(errno.ENOSYS, f"{_SGX2[request]}: SGX2 is not modelled with this driver")
