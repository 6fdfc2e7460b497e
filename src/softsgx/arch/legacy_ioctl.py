# SPDX-License-Identifier: Apache-2.0
"""The ioctls of the drivers before mainline's: v16 of the kernel series, isgx, and DCAP's.

An enclave is named by its address there.  Sources: arch/x86/include/uapi/asm/sgx.h of the series' v16
(6 November 2018), sgx_user.h of linux-sgx-driver 2.14 (isgx), the uapi headers of the DCAP driver's tags.
SGX_IOC_ENCLAVE_CREATE is mainline's own.
"""

from softsgx.arch.ioctl import SGX_MAGIC
from softsgx.arch.layout import U16, U32, U64, Record, at, layout

_WRITE = 1


def _iow(number: int, argument: type[Record]) -> int:
    return _WRITE << 30 | argument.SIZE << 16 | SGX_MAGIC << 8 | number


@layout(size=26)
class EnclaveAddPage(Record):
    """struct sgx_enclave_add_page, packed: one page to ``addr``; bit i of ``mrmask`` measures bytes i * 256 on."""

    addr: int = at(0, U64)
    src: int = at(8, U64)
    secinfo: int = at(16, U64)
    mrmask: int = at(24, U16)


@layout(size=16)
class EnclaveInitAt(Record):
    """struct sgx_enclave_init of v16 and of DCAP before 1.6: any address in the enclave, and a SIGSTRUCT's."""

    addr: int = at(0, U64)
    sigstruct: int = at(8, U64)


@layout(size=24)
class EnclaveInitByToken(Record):
    """struct sgx_enclave_init of isgx: the launch token is the caller's."""

    addr: int = at(0, U64)
    sigstruct: int = at(8, U64)
    einittoken: int = at(16, U64)


@layout(size=16)
class EnclaveSetAttributeAt(Record):
    """struct sgx_enclave_set_attribute of DCAP 1.4 and 1.5: an open file of /dev/sgx_prv."""

    addr: int = at(0, U64)
    attribute_fd: int = at(8, U64)


@layout(size=16)
class EnclaveRange(Record):
    """struct sgx_range of isgx."""

    start_addr: int = at(0, U64)
    nr_pages: int = at(8, U32)


@layout(size=24)
class EnclaveModification(Record):
    """struct sgx_modification_param of isgx: a range and the permissions that are left."""

    start_addr: int = at(0, U64)
    nr_pages: int = at(8, U32)
    flags: int = at(16, U64)


@layout(size=8)
class EnclavePage(Record):
    """The address of one page, by which isgx is told to remove it."""

    addr: int = at(0, U64)


SGX_IOC_ENCLAVE_ADD_PAGE = _iow(0x01, EnclaveAddPage)
SGX_IOC_ENCLAVE_INIT_AT = _iow(0x02, EnclaveInitAt)
SGX_IOC_ENCLAVE_INIT_BY_TOKEN = _iow(0x02, EnclaveInitByToken)
SGX_IOC_ENCLAVE_SET_ATTRIBUTE_AT = _iow(0x03, EnclaveSetAttributeAt)
SGX_IOC_ENCLAVE_EMODPR = _iow(0x09, EnclaveModification)
SGX_IOC_ENCLAVE_MKTCS = _iow(0x0A, EnclaveRange)
SGX_IOC_ENCLAVE_TRIM = _iow(0x0B, EnclaveRange)
SGX_IOC_ENCLAVE_NOTIFY_ACCEPT = _iow(0x0C, EnclaveRange)
SGX_IOC_ENCLAVE_PAGE_REMOVE = _iow(0x0D, EnclavePage)
