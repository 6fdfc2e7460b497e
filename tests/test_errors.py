# SPDX-License-Identifier: Apache-2.0
"""The failures below all rooms."""

import errno

from softsgx.arch import exceptions
from softsgx.errors import DriverError, Fault


def test_faults_have_the_vectors_of_the_manual() -> None:
    assert Fault.gp("x").vector == exceptions.VECTOR_GP
    assert Fault.pf(0, "x").vector == exceptions.VECTOR_PF
    assert Fault.ud("x").vector == exceptions.VECTOR_UD
    assert Fault.nm("x").vector == exceptions.VECTOR_NM


def test_only_a_page_fault_has_an_address() -> None:
    fault = Fault.pf(0x1000, "no such page", exceptions.PFEC_W | exceptions.PFEC_SGX)
    assert (fault.address, fault.error_code) == (0x1000, 0x8002)
    assert str(fault) == "exception 14 (error code 0x8002) at 0x1000: no such page"
    assert Fault.gp("x", 0x18).address is None
    assert (
        str(Fault.gp("SECS is not aligned")) == "exception 13 (error code 0x0): SECS is not aligned"
    )


def test_a_driver_error_tells_number_and_reason() -> None:
    error = DriverError(errno.EBUSY, "another ioctl is in flight")
    assert error.errno == 16
    assert str(error) == "errno 16: another ioctl is in flight"
