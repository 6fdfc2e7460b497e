# SPDX-License-Identifier: Apache-2.0
"""The last argument of __vdso_sgx_enter_enclave (include/uapi/asm/sgx.h of arch/x86)."""

from softsgx.arch.layout import U16, U32, U64, Record, at, layout


@layout(size=256)
class SgxEnclaveRun(Record):
    """struct sgx_enclave_run; its reserved bytes, 40 to 255, must be zero."""

    tcs: int = at(0, U64)
    function: int = at(8, U32)
    exception_vector: int = at(12, U16)
    exception_error_code: int = at(14, U16)
    exception_addr: int = at(16, U64)
    user_handler: int = at(24, U64)
    user_data: int = at(32, U64)
