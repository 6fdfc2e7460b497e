# SPDX-License-Identifier: Apache-2.0
"""The ioctls of Linux's SGX driver: request numbers and arguments of include/uapi/asm/sgx.h (arch/x86)."""

from softsgx.arch.layout import S32, U64, Record, at, layout

SGX_MAGIC = 0xA4

# A request: direction in 31:30, the argument's size in 29:16, the magic in 15:8, the number in 7:0.
_WRITE = 1
_READ = 2


def _request(direction: int, number: int, argument: type[Record] | None) -> int:
    size = 0 if argument is None else argument.SIZE
    return direction << 30 | size << 16 | SGX_MAGIC << 8 | number


def ioctl_magic(request: int) -> int:
    """Return the magic (_IOC_TYPE) of a request number."""
    return request >> 8 & 0xFF


@layout(size=8)
class EnclaveCreate(Record):
    """struct sgx_enclave_create: ``src`` is the address of the SECS."""

    src: int = at(0, U64)


@layout(size=48)
class EnclaveAddPages(Record):
    """struct sgx_enclave_add_pages: lengths and ``count`` in bytes, ``offset`` from the enclave's base."""

    src: int = at(0, U64)
    offset: int = at(8, U64)
    length: int = at(16, U64)
    secinfo: int = at(24, U64)
    flags: int = at(32, U64)
    count: int = at(40, U64)


@layout(size=8)
class EnclaveInit(Record):
    """struct sgx_enclave_init: the address of the SIGSTRUCT."""

    sigstruct: int = at(0, U64)


@layout(size=8)
class EnclaveProvision(Record):
    """struct sgx_enclave_provision: an open file of /dev/sgx_provision."""

    fd: int = at(0, U64)


@layout(size=40)
class EnclaveRestrictPermissions(Record):
    """struct sgx_enclave_restrict_permissions: ``result`` and ``count`` are written by the driver."""

    offset: int = at(0, U64)
    length: int = at(8, U64)
    permissions: int = at(16, U64)
    result: int = at(24, U64)
    count: int = at(32, U64)


@layout(size=40)
class EnclaveModifyTypes(Record):
    """struct sgx_enclave_modify_types: ``result`` and ``count`` are written by the driver."""

    offset: int = at(0, U64)
    length: int = at(8, U64)
    page_type: int = at(16, U64)
    result: int = at(24, U64)
    count: int = at(32, U64)


@layout(size=24)
class EnclaveRemovePages(Record):
    """struct sgx_enclave_remove_pages: ``count`` is written by the driver."""

    offset: int = at(0, U64)
    length: int = at(8, U64)
    count: int = at(16, U64)


@layout(size=16)
class EnclaveCreateBacking(Record):
    """struct sgx_enclave_create as the thread of November 2018 had it: with the address of a store, or 0."""

    src: int = at(0, U64)
    backing: int = at(8, U64)


@layout(size=64)
class EnclaveSetBacking(Record):
    """struct sgx_enclave_set_backing: no kernel has it; reference: docs/backing.md.

    ``enclave`` is its base on the nodes whose descriptor holds many enclaves, else 0.
    """

    flags: int = at(0, U64)
    contents: int = at(8, U64)
    contents_len: int = at(16, U64)
    pcmd: int = at(24, U64)
    pcmd_len: int = at(32, U64)
    contents_fd: int = at(40, S32)
    pcmd_fd: int = at(44, S32)
    enclave: int = at(48, U64)


SGX_IOC_ENCLAVE_CREATE = _request(_WRITE, 0x00, EnclaveCreate)
SGX_IOC_ENCLAVE_ADD_PAGES = _request(_WRITE | _READ, 0x01, EnclaveAddPages)
SGX_IOC_ENCLAVE_INIT = _request(_WRITE, 0x02, EnclaveInit)
SGX_IOC_ENCLAVE_PROVISION = _request(_WRITE, 0x03, EnclaveProvision)
SGX_IOC_VEPC_REMOVE_ALL = _request(0, 0x04, None)
SGX_IOC_ENCLAVE_RESTRICT_PERMISSIONS = _request(_WRITE | _READ, 0x05, EnclaveRestrictPermissions)
SGX_IOC_ENCLAVE_MODIFY_TYPES = _request(_WRITE | _READ, 0x06, EnclaveModifyTypes)
SGX_IOC_ENCLAVE_REMOVE_PAGES = _request(_WRITE | _READ, 0x07, EnclaveRemovePages)

# Of softsgx only.  The number is in the block of SGX, clear of everybody's: Linux has 0 to 7, isgx 9 to
# 0xd; 0xA4 is also TEE's, with 0 to 0xa.
SGX_IOC_ENCLAVE_SET_BACKING = _request(_WRITE, 0x10, EnclaveSetBacking)
# The size is in the number: both CREATEs can be told apart.
SGX_IOC_ENCLAVE_CREATE_BACKING = _request(_WRITE, 0x00, EnclaveCreateBacking)

# EnclaveSetBacking.flags
BACKING_MODE = 0xF
BACKING_KERNEL = 0
BACKING_NONE = 1
BACKING_VMA = 2
BACKING_FD = 3
BACKING_SEPARATE = 1 << 4
BACKING_KILL_ON_ERROR = 1 << 5
BACKING_SYNC = 1 << 6
BACKING_PUNCH = 1 << 7

# EnclaveAddPages.flags: measure the pages with EEXTEND.  The kernel ignores the other bits.
SGX_PAGE_MEASURE = 0x01
