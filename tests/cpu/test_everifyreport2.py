# SPDX-License-Identifier: Apache-2.0
"""EVERIFYREPORT2: its faults and codes in order, on a processor that has it, and its absence."""

from typing import Any

import pytest

from softsgx.arch.codes import LeafCode
from softsgx.arch.exceptions import PFEC_P, PFEC_SGX, PFEC_U
from softsgx.arch.leaves import Enclu
from softsgx.arch.structures import REPORTTYPE_TDX, Reportmacstruct
from softsgx.cpu.keys import report2_mac
from softsgx.cpu.model import DEFAULT_FEATURES, Model
from softsgx.cpu.registers import RFLAGS_ZF
from softsgx.cpu.transition import enclu
from softsgx.errors import Fault

STATUS = 0x8D5


class Verifier:
    """A thread inside an enclave of a processor with TDX, and a report of that processor's TDX module."""

    def __init__(self, machine: Any) -> None:
        self.machine = machine
        features = DEFAULT_FEATURES | {"everifyreport2"}
        machine.cpu.model = Model(64 * 4096, features=features)
        machine.build()
        self.cpu = machine.cpu
        self.at = machine.BASE + machine.DATA
        machine.regs.rax, machine.regs.rbx = int(Enclu.EENTER), machine.BASE + machine.TCS
        enclu(machine.cpu, machine.lp, machine.regs)
        self.report = Reportmacstruct.blank().replace(
            reporttype=REPORTTYPE_TDX,
            cpusvn=self.cpu.identity.cpusvn,
            tee_info_hash=b"\7" * 48,
            reportdata=b"\1" * 64,
        )

    def made(self, **changes: Any) -> bytes:
        """Return the report with changes, and with the MAC that fits."""
        return self.maced(self.report.replace(**changes).encode())

    def maced(self, data: bytes) -> bytes:
        return data[:224] + report2_mac(self.cpu, data)

    def leaf(self, rbx: int) -> int:
        regs = self.machine.regs
        regs.rax, regs.rbx, regs.rip, regs.rflags = int(Enclu.EVERIFYREPORT2), rbx, 0x1000, STATUS
        enclu(self.cpu, self.machine.lp, regs)
        assert regs.rip == 0x1003
        # ZF tells an error, the other arithmetic flags are clear, DF and the rest stay.
        assert regs.rflags == (RFLAGS_ZF if regs.rax else 0)
        return int(regs.rax)

    def verify(self, data: bytes) -> int:
        self.machine.write(self.machine.DATA, data)
        return self.leaf(self.at)

    def fault(self, rbx: int) -> Fault:
        with pytest.raises(Fault) as caught:
            self.leaf(rbx)
        return caught.value


@pytest.fixture
def verifier(machine: Any) -> Verifier:
    return Verifier(machine)


@pytest.mark.leaf("EVERIFYREPORT2", "done")
def test_a_report_of_this_processor_is_verified(verifier: Verifier) -> None:
    assert verifier.verify(verifier.made()) == LeafCode.NO_ERROR
    assert verifier.verify(verifier.made(cpusvn=bytes(16))) == LeafCode.NO_ERROR


@pytest.mark.leaf("EVERIFYREPORT2", "#GP", "#PF")
def test_the_faults_come_in_the_manuals_order(verifier: Verifier) -> None:
    machine = verifier.machine
    hole = machine.BASE + 0x80000
    for bad in (verifier.at + 128, hole + 1):
        fault = verifier.fault(bad)
        assert fault.vector == 13
        assert "256-byte" in fault.reason
    for outside in (machine.BASE - 256, machine.BASE + machine.SIZE):
        fault = verifier.fault(outside)
        assert fault.vector == 13
        assert "ELRANGE" in fault.reason
    fault = verifier.fault(hole)
    assert (fault.vector, fault.address, fault.error_code) == (14, hole, PFEC_U)
    tcs = machine.BASE + machine.TCS
    fault = verifier.fault(tcs)
    violation = PFEC_U | PFEC_P | PFEC_SGX
    assert (fault.vector, fault.address, fault.error_code) == (14, tcs, violation)


@pytest.mark.parametrize(
    "reporttype", [b"\0\0\0\0", b"\x80\0\0\0", b"\x81\1\0\0", b"\x81\0\1\0", b"\x81\0\0\1"]
)
@pytest.mark.leaf("EVERIFYREPORT2", "INVALID_REPORTMACSTRUCT")
def test_a_report_of_another_kind_is_refused_first(verifier: Verifier, reporttype: bytes) -> None:
    data = verifier.made(reporttype=reporttype, cpusvn=b"\xff" * 16)
    assert verifier.verify(data) == LeafCode.INVALID_REPORTMACSTRUCT


@pytest.mark.parametrize("offset", [4, 15, 192, 223])
def test_what_is_reserved_is_zero(verifier: Verifier, offset: int) -> None:
    data = bytearray(verifier.made(cpusvn=b"\xff" * 16))
    data[offset] = 1
    code = verifier.verify(verifier.maced(bytes(data)))
    assert code == LeafCode.INVALID_REPORTMACSTRUCT


@pytest.mark.leaf("EVERIFYREPORT2", "INVALID_CPUSVN")
def test_a_newer_processor_is_told_before_the_mac_is_looked_at(verifier: Verifier) -> None:
    newer = bytes(15) + b"\3"
    data = verifier.made(cpusvn=newer)[:-1] + b"\0"
    assert verifier.verify(data) == LeafCode.INVALID_CPUSVN


@pytest.mark.parametrize("offset", [31, 32, 127, 128, 191, 224, 255])
@pytest.mark.leaf("EVERIFYREPORT2", "INVALID_REPORTMACSTRUCT")
def test_every_byte_of_the_report_is_covered(verifier: Verifier, offset: int) -> None:
    data = bytearray(verifier.made())
    data[offset] ^= 2
    assert verifier.verify(bytes(data)) == LeafCode.INVALID_REPORTMACSTRUCT


def test_a_report_from_before_the_start_is_not_of_this_one(verifier: Verifier) -> None:
    data = verifier.made()
    verifier.cpu.report_keyid = bytes(32)
    assert verifier.verify(data) == LeafCode.INVALID_REPORTMACSTRUCT


def test_it_is_a_leaf_of_the_inside(verifier: Verifier) -> None:
    regs = verifier.machine.regs
    regs.rax, regs.rbx = int(Enclu.EEXIT), 0x1000
    enclu(verifier.cpu, verifier.machine.lp, regs)
    assert "outside" in verifier.fault(verifier.at).reason


def test_the_default_processor_has_it_not(machine: Any) -> None:
    machine.build()
    regs = machine.regs
    regs.rax, regs.rbx = int(Enclu.EENTER), machine.BASE + machine.TCS
    enclu(machine.cpu, machine.lp, regs)
    regs.rax, regs.rbx = int(Enclu.EVERIFYREPORT2), machine.BASE + machine.DATA + 1
    with pytest.raises(Fault) as caught:
        enclu(machine.cpu, machine.lp, regs)
    # Before any operand is looked at: the Intel SDK's own handler takes it from there.
    assert caught.value.vector == 13
    assert "not supported" in caught.value.reason
