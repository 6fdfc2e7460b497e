# SPDX-License-Identifier: Apache-2.0
"""EUPDATESVN: its codes in order, and what a newer microcode changes."""

from typing import Any

import pytest

from softsgx.arch.attributes import KEYNAME_SEAL
from softsgx.arch.codes import LeafCode
from softsgx.arch.leaves import Encls, Enclu
from softsgx.arch.secinfo import PT_VA
from softsgx.arch.structures import Keyrequest, Report
from softsgx.cpu import encls
from softsgx.cpu.epc import PageIndex
from softsgx.cpu.keys import egetkey, ereport
from softsgx.cpu.model import DEFAULT_FEATURES, Model
from softsgx.cpu.processor import Processor
from softsgx.cpu.transition import enclu

NEWER = b"\3" + b"\2" * 15


def update(cpu: Processor, memory: Any) -> LeafCode:
    code, _ = encls.encls(cpu, memory, Encls.EUPDATESVN)
    return code


@pytest.fixture
def cpu(machine: Any) -> Processor:
    made: Processor = machine.cpu
    return made


@pytest.mark.leaf("EUPDATESVN", "done", "NO_UPDATE")
def test_newer_microcode_is_attested_to_after_it(machine: Any, cpu: Processor) -> None:
    before = cpu.identity
    cpu.microcode_svn = NEWER
    assert cpu.identity.cpusvn != NEWER
    assert update(cpu, machine.memory) is LeafCode.NO_ERROR
    assert cpu.identity == before.replace(cpusvn=NEWER)
    assert update(cpu, machine.memory) is LeafCode.NO_UPDATE


def test_without_newer_microcode_only_the_paging_key_is_new(machine: Any, cpu: Processor) -> None:
    before = cpu.identity
    encrypt, _, _ = cpu.paging_cipher()
    sealed = encrypt(bytes(12), b"page", b"")
    assert update(cpu, machine.memory) is LeafCode.NO_UPDATE
    assert cpu.identity == before
    _, decrypt, mismatch = cpu.paging_cipher()
    with pytest.raises(mismatch):
        decrypt(bytes(12), sealed, b"")


def test_the_new_key_is_the_one_that_rdseed_gave(machine: Any, cpu: Processor) -> None:
    cpu.rdseed = lambda length: b"\5" * length
    sealed = []
    for _ in range(2):
        update(cpu, machine.memory)
        encrypt, _, _ = cpu.paging_cipher()
        sealed.append(encrypt(bytes(12), b"page", b""))
    assert sealed[0] == sealed[1]


def test_an_enclave_attests_to_it_and_has_the_keys_of_before(machine: Any, cpu: Processor) -> None:
    older = cpu.identity.cpusvn

    def key(cpusvn: bytes) -> tuple[LeafCode, bytes]:
        request = Keyrequest.blank().replace(keyname=KEYNAME_SEAL, cpusvn=cpusvn)
        machine.write(machine.DATA, request.encode())
        code = egetkey(cpu, machine.lp, machine.BASE + machine.DATA, machine.BASE + 0x7000)
        return code, machine.read(0x7000, 16)

    def enter() -> None:
        machine.build(isvsvn=0)
        machine.regs.rax, machine.regs.rbx = int(Enclu.EENTER), machine.BASE + machine.TCS
        enclu(cpu, machine.lp, machine.regs)

    enter()
    code, sealed = key(older)
    assert code is LeafCode.NO_ERROR
    assert key(NEWER)[0] is LeafCode.INVALID_CPUSVN
    cpu.thread_gone(machine.lp)
    for page in (*machine.table.values(), machine.secs_page):
        assert encls.eremove(cpu, machine.address(page)) is LeafCode.NO_ERROR
    machine.table.clear()
    cpu.microcode_svn = NEWER
    assert update(cpu, machine.memory) is LeafCode.NO_ERROR
    enter()
    assert key(older) == (LeafCode.NO_ERROR, sealed)
    code, newer = key(NEWER)
    assert code is LeafCode.NO_ERROR
    assert newer != sealed
    at = machine.BASE + machine.DATA
    ereport(cpu, machine.lp, at, at, at + 0x1000)
    assert Report.decode(machine.read(machine.DATA + 0x1000, 432)).cpusvn == NEWER


@pytest.mark.leaf(
    "EUPDATESVN", "EPC_PAGE_CONFLICT", "EPC_NOT_READY", "INSUFFICIENT_ENTROPY", "done"
)
def test_the_codes_come_in_the_manuals_order(machine: Any, cpu: Processor) -> None:
    cpu.microcode_svn = NEWER
    before = cpu.identity
    cpu.rdseed = lambda _: b""
    page = PageIndex(63)
    encls.epa(cpu, PT_VA, machine.address(page))
    cpu.epc.lock(page)
    # Another leaf is at work, a page is valid, RDSEED has nothing.
    assert update(cpu, machine.memory) is LeafCode.EPC_PAGE_CONFLICT
    cpu.epc.unlock((page,))
    assert update(cpu, machine.memory) is LeafCode.EPC_NOT_READY
    encls.eremove(cpu, machine.address(page))
    assert update(cpu, machine.memory) is LeafCode.INSUFFICIENT_ENTROPY
    cpu.rdseed = lambda length: bytes(length)[1:]
    assert update(cpu, machine.memory) is LeafCode.INSUFFICIENT_ENTROPY
    assert cpu.identity == before
    cpu.rdseed = bytes
    assert update(cpu, machine.memory) is LeafCode.NO_ERROR


@pytest.mark.parametrize("page", ["secs", "child"])
def test_any_page_of_an_enclave_keeps_it_from_updating(
    machine: Any, cpu: Processor, page: str
) -> None:
    machine.create()
    if page == "child":
        machine.populate()
    assert update(cpu, machine.memory) is LeafCode.EPC_NOT_READY


def test_a_processor_without_it_refuses_it(machine: Any, cpu: Processor, gp: Any) -> None:
    cpu.model = Model(64 * 4096, features=DEFAULT_FEATURES - {"eupdatesvn"})
    assert "not supported" in gp(lambda: update(cpu, machine.memory))
