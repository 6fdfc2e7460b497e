# SPDX-License-Identifier: Apache-2.0
"""EGETKEY and EREPORT: who gets which key, and what a key depends on."""

from collections.abc import Callable
from typing import Any

import pytest

from softsgx.arch.attributes import (
    ATTRIBUTE_DEBUG,
    ATTRIBUTE_EINITTOKENKEY,
    ATTRIBUTE_KSS,
    ATTRIBUTE_MODE64BIT,
    ATTRIBUTE_PROVISIONKEY,
    KEYNAME_EINITTOKEN,
    KEYNAME_PROVISION,
    KEYNAME_PROVISION_SEAL,
    KEYNAME_REPORT,
    KEYNAME_SEAL,
    KEYPOLICY_CONFIGID,
    KEYPOLICY_ISVEXTPRODID,
    KEYPOLICY_ISVFAMILYID,
    KEYPOLICY_MRENCLAVE,
    KEYPOLICY_MRSIGNER,
    KEYPOLICY_NOISVPRODID,
)
from softsgx.arch.codes import LeafCode
from softsgx.arch.exceptions import PFEC_P, PFEC_SGX, PFEC_U, PFEC_W
from softsgx.arch.secinfo import PT_TCS, PT_TRIM, SECINFO_MODIFIED, SECINFO_PENDING, SECINFO_R
from softsgx.arch.structures import Keyrequest, Report, Targetinfo
from softsgx.cpu.epc import EPCM_BLOCKED, EPCM_VALID
from softsgx.cpu.identity import Identity
from softsgx.cpu.keys import cmac
from softsgx.cpu.transition import enclu
from softsgx.errors import Fault, SoftsgxError

EVERYTHING = (
    ATTRIBUTE_MODE64BIT
    | ATTRIBUTE_DEBUG
    | ATTRIBUTE_KSS
    | ATTRIBUTE_PROVISIONKEY
    | ATTRIBUTE_EINITTOKENKEY
)
KSS = {"isvfamilyid": b"\xfa" * 16, "isvextprodid": b"\xe4" * 16}
ALL_POLICIES = 0x3F


class Inside:
    """A thread inside an enclave that executes leaves over its own data pages."""

    OPERAND, OUTPUT, INPUT = 0x6000, 0x7000, 0x8000

    def __init__(self, machine: Any, **changes: Any) -> None:
        self.machine = machine
        machine.build(**changes)
        self.base = machine.BASE
        machine.regs.rax, machine.regs.rbx = 2, self.base + machine.TCS
        enclu(machine.cpu, machine.lp, machine.regs)

    def leaf(self, rax: int, **registers: int) -> Any:
        regs = self.machine.regs
        regs.rax = rax
        for name, value in registers.items():
            setattr(regs, name, value)
        rip = regs.rip
        enclu(self.machine.cpu, self.machine.lp, regs)
        assert regs.rip == rip + 3
        return regs

    def egetkey(self, request: bytes) -> int:
        self.machine.write(self.OPERAND, request)
        self.machine.write(self.OUTPUT, bytes(16))
        regs = self.machine.regs
        regs.rflags = 0xAD7
        self.leaf(1, rbx=self.base + self.OPERAND, rcx=self.base + self.OUTPUT)
        # CF PF AF SF OF are cleared, ZF tells an error, the rest stays.
        assert regs.rflags == (0x242 if regs.rax else 0x202)
        return int(regs.rax)

    def key(self, **fields: Any) -> bytes:
        assert self.egetkey(self.request(**fields)) == 0
        return bytes(self.machine.read(self.OUTPUT, 16))

    def code(self, **fields: Any) -> int:
        code = self.egetkey(self.request(**fields))
        assert self.machine.read(self.OUTPUT, 16) == bytes(16)
        return code

    def request(self, **fields: Any) -> bytes:
        return Keyrequest.blank().replace(**fields).encode()

    def ereport(self, target: bytes, data: bytes = bytes(64)) -> bytes:
        self.machine.write(self.OPERAND, target)
        self.machine.write(self.INPUT, data)
        self.leaf(
            0,
            rbx=self.base + self.OPERAND,
            rcx=self.base + self.INPUT,
            rdx=self.base + self.OUTPUT,
        )
        return bytes(self.machine.read(self.OUTPUT, 432))


@pytest.fixture
def inside(make_machine: Any) -> Callable[..., Inside]:
    def enter(identity: Identity | None = None, **changes: Any) -> Inside:
        changes = {"attributes": EVERYTHING, "configid": b"\xc0" * 64, "configsvn": 4} | changes
        return Inside(make_machine(identity=identity), **changes)

    return enter


def test_the_same_request_gives_the_same_key_in_another_run(inside: Any) -> None:
    identity = Identity.fresh()
    again = Identity.from_bytes(identity.to_bytes())
    first, second, other = inside(identity), inside(again), inside()
    for name in range(5):
        key = first.key(keyname=name)
        assert key == second.key(keyname=name)
        assert key != other.key(keyname=name)


def test_keys_of_different_names_differ(inside: Any) -> None:
    enclave = inside()
    assert len({enclave.key(keyname=name) for name in range(5)}) == 5


# What each key depends on: (keyname, changed request field, value, does the key change?)
@pytest.mark.parametrize("name", range(5))
@pytest.mark.parametrize(
    ("field", "value", "names"),
    [
        ("isvsvn", 1, {0, 1, 2, 4}),
        ("cpusvn", b"\1" * 16, {0, 1, 2, 4}),
        ("attributemask", ATTRIBUTE_MODE64BIT, {0, 1, 2, 4}),
        # INIT and DEBUG count anyway; but the mask itself is part of all keys but two.
        ("attributemask", 3, {1, 2, 4}),
        ("xfrmmask", 3, {0, 1, 2, 4}),
        ("keyid", b"\1" * 32, {0, 3, 4}),
        ("miscmask", 1, {1, 2, 4}),
        ("keypolicy", KEYPOLICY_MRENCLAVE, {2, 4}),
        ("keypolicy", KEYPOLICY_MRSIGNER, {2, 4}),
        ("keypolicy", KEYPOLICY_NOISVPRODID, {2, 4}),
        ("keypolicy", KEYPOLICY_CONFIGID, {2, 4}),
        ("keypolicy", KEYPOLICY_ISVFAMILYID, {2, 4}),
        ("keypolicy", KEYPOLICY_ISVEXTPRODID, {2, 4}),
        ("configsvn", 1, set()),
    ],
)
def test_a_key_depends_on_what_the_manuals_table_says(
    inside: Any, name: int, field: str, value: Any, names: set[int]
) -> None:
    enclave = inside()
    plain = enclave.key(keyname=name)
    assert (enclave.key(keyname=name, **{field: value}) != plain) == (name in names)


def test_configsvn_counts_with_the_policy_for_configid(inside: Any) -> None:
    enclave = inside()
    for name in (KEYNAME_PROVISION_SEAL, KEYNAME_SEAL):
        keys = {
            enclave.key(keyname=name, keypolicy=KEYPOLICY_CONFIGID, configsvn=svn)
            for svn in range(5)
        }
        assert len(keys) == 5


# Which of the enclave's own properties a key depends on, without and with its policy bit.
@pytest.mark.parametrize(
    ("changes", "always", "by_policy", "policy"),
    [
        ({"isvprodid": 9}, {0, 1, 2, 4}, {0, 1}, KEYPOLICY_NOISVPRODID),
        ({"isvfamilyid": b"\1" * 16}, set(), {2, 4}, KEYPOLICY_ISVFAMILYID),
        ({"isvextprodid": b"\1" * 16}, set(), {2, 4}, KEYPOLICY_ISVEXTPRODID),
        ({"configid": b"\1" * 64}, {3}, {2, 3, 4}, KEYPOLICY_CONFIGID),
        ({"configsvn": 3}, {3}, {3}, KEYPOLICY_CONFIGID),
        ({"miscselect": 1}, {3}, {3}, 0),
        # SSAFRAMESIZE changes MRENCLAVE and nothing else that a key could depend on.
        ({"ssaframesize": 2}, {3}, {3, 4}, KEYPOLICY_MRENCLAVE),
        ({"attributes": EVERYTHING & ~ATTRIBUTE_DEBUG}, {0, 1, 2, 3, 4}, {0, 1, 2, 3, 4}, 0),
        ({"isvsvn": 4}, set(), set(), 0),
    ],
)
def test_a_key_depends_on_the_enclave(
    inside: Any, changes: Any, always: set[int], by_policy: set[int], policy: int
) -> None:
    identity = Identity.fresh()
    tcs = {"tcs": None}
    one, other = inside(identity, **KSS), inside(identity, **KSS | tcs | changes)
    for with_policy, names in ((0, always), (policy, by_policy)):
        differ = {
            name
            for name in range(5)
            if one.key(keyname=name, keypolicy=with_policy)
            != other.key(keyname=name, keypolicy=with_policy)
        }
        assert differ == names


def test_provisioning_keys_do_not_depend_on_the_owner(inside: Any) -> None:
    identity = Identity.fresh()
    moved = identity.replace(owner_epoch=b"\1" * 16)
    refused = identity.replace(seal_fuses=b"\1" * 16)
    one, sold, other = inside(identity), inside(moved), inside(refused)
    changed = {n for n in range(5) if one.key(keyname=n) != sold.key(keyname=n)}
    assert changed == {KEYNAME_EINITTOKEN, KEYNAME_REPORT, KEYNAME_SEAL}
    changed = {n for n in range(5) if one.key(keyname=n) != other.key(keyname=n)}
    assert changed == {0, 2, 3, 4}
    assert KEYNAME_PROVISION not in changed


@pytest.mark.leaf(
    "EGETKEY", "INVALID_CPUSVN", "INVALID_ISVSVN", "INVALID_KEYNAME", "INVALID_ATTRIBUTE", "done"
)
def test_egetkey_codes(inside: Any, make_machine: Any) -> None:
    enclave = inside()
    newer = b"\0" * 15 + b"\3"
    for name in (0, 1, 2, 4):
        assert enclave.code(keyname=name, cpusvn=newer, isvsvn=9) == LeafCode.INVALID_CPUSVN
        assert enclave.code(keyname=name, isvsvn=4) == LeafCode.INVALID_ISVSVN
    assert enclave.code(keyname=KEYNAME_SEAL, configsvn=5) == LeafCode.INVALID_ISVSVN
    assert enclave.key(keyname=KEYNAME_REPORT, cpusvn=newer, isvsvn=9)
    for name in (5, 0xFFFF):
        assert enclave.code(keyname=name, cpusvn=newer) == LeafCode.INVALID_KEYNAME
    plain = Inside(make_machine())
    for name in (0, 1, 2):
        assert plain.code(keyname=name, isvsvn=9) == LeafCode.INVALID_ATTRIBUTE


@pytest.mark.leaf("EGETKEY", "#GP")
def test_egetkey_refuses_reserved_bits_and_kss_without_kss(
    inside: Any, make_machine: Any, gp: Any
) -> None:
    enclave = inside()
    for offset in (6, 7, 78, 511):
        request = bytearray(enclave.request(keyname=KEYNAME_SEAL))
        request[offset] = 1
        assert "reserved" in gp(lambda r=bytes(request): enclave.egetkey(r))
    assert "reserved" in gp(lambda: enclave.key(keyname=99, keypolicy=0x40))
    plain = Inside(make_machine())
    for bit in range(2, 6):
        assert "KSS" in gp(lambda b=bit: plain.key(keyname=KEYNAME_SEAL, keypolicy=1 << b))
    assert "KSS" in gp(lambda: plain.key(keyname=KEYNAME_SEAL, configsvn=1))
    assert plain.key(keyname=KEYNAME_SEAL, keypolicy=3)


@pytest.mark.leaf("EGETKEY", "#GP", "#PF")
@pytest.mark.leaf("EREPORT", "#GP", "#PF")
def test_operands_are_checked_one_after_the_other(inside: Any, gp: Any) -> None:
    enclave = inside()
    base, machine = enclave.base, enclave.machine
    good, out = base + enclave.OPERAND, base + enclave.OUTPUT
    hole = base + 0x80000
    code = base + machine.CODE
    tcs = base + machine.TCS

    def fault(rax: int, **registers: int) -> tuple[int | None, int]:
        before = machine.regs.as_dict()
        with pytest.raises(Fault) as caught:
            enclave.leaf(rax, **registers)
        assert caught.value.vector == 14
        assert machine.regs.as_dict() == before | {"rax": rax} | registers
        return caught.value.address, caught.value.error_code

    violation = PFEC_P | PFEC_U | PFEC_SGX
    assert "512-byte" in gp(lambda: enclave.leaf(1, rbx=good + 16, rcx=hole))
    assert "ELRANGE" in gp(lambda: enclave.leaf(1, rbx=base - 512, rcx=out))
    assert "ELRANGE" in gp(lambda: enclave.leaf(1, rbx=base + machine.SIZE, rcx=out))
    assert fault(1, rbx=hole, rcx=out + 1) == (hole, PFEC_U)
    assert fault(1, rbx=tcs, rcx=out) == (tcs, violation)
    assert "16-byte" in gp(lambda: enclave.leaf(1, rbx=good, rcx=out + 8))
    assert fault(1, rbx=good, rcx=hole) == (hole, PFEC_U | PFEC_W)
    assert fault(1, rbx=good, rcx=code) == (code, violation | PFEC_W)
    assert "512-byte" in gp(lambda: enclave.leaf(0, rbx=good + 256, rcx=good, rdx=out))
    assert "128-byte" in gp(lambda: enclave.leaf(0, rbx=good, rcx=good + 64, rdx=out))
    assert "512-byte" in gp(lambda: enclave.leaf(0, rbx=good, rcx=good, rdx=out + 128))
    assert fault(0, rbx=good, rcx=code, rdx=code) == (code, violation | PFEC_W)
    # A page that the page tables put elsewhere than EADD did is not that page.
    machine.table[base + enclave.OPERAND] = machine.table[base + enclave.INPUT]
    assert fault(1, rbx=good, rcx=out) == (good, violation)


@pytest.mark.parametrize("leaf", [0, 1])
@pytest.mark.parametrize(
    ("bits", "kind"),
    [
        (EPCM_BLOCKED, None),
        (SECINFO_PENDING, None),
        (SECINFO_MODIFIED, None),
        (SECINFO_R, None),
        (EPCM_VALID, None),
        (0, PT_TRIM),
        (0, PT_TCS),
    ],
)
def test_an_operand_in_any_other_state_is_a_page_fault(
    inside: Any, leaf: int, bits: int, kind: int | None
) -> None:
    enclave = inside()
    epc, place = enclave.machine.cpu.epc, enclave.base + enclave.OPERAND
    page = enclave.machine.table[place]
    registers = {
        "rbx": place,
        "rcx": enclave.base + enclave.INPUT,
        "rdx": enclave.base + enclave.OUTPUT,
    }

    def refused() -> None:
        with pytest.raises(Fault) as caught:
            enclave.leaf(leaf, **registers)
        found = caught.value.vector, caught.value.address, caught.value.error_code
        assert found == (14, place, PFEC_P | PFEC_U | PFEC_SGX)

    good = epc.words[page]
    epc.words[page] = good ^ bits if kind is None else good & 0xFF | kind << 8
    refused()
    epc.words[page] = good
    # And a page of another enclave's.
    epc.owners[page] += 1
    refused()
    epc.owners[page] -= 1
    enclave.leaf(leaf, **registers)


@pytest.mark.leaf("EREPORT", "done")
def test_a_report_is_verified_by_its_target_only(inside: Any, make_machine: Any) -> None:
    identity = Identity.fresh()
    reporter = inside(identity, **KSS)
    secs = reporter.machine.secs
    target = Targetinfo(
        measurement=secs.mrenclave,
        attributes=secs.attributes,
        xfrm=secs.xfrm,
        configsvn=secs.configsvn,
        miscselect=secs.miscselect,
        configid=secs.configid,
    )
    data = bytes(range(64))
    flags = reporter.machine.regs.rflags = 0xAD7
    report = Report.decode(reporter.ereport(target.encode(), data))
    assert reporter.machine.regs.rflags == flags
    assert report.reportdata == data
    assert report.mrenclave == secs.mrenclave
    assert report.mrsigner == reporter.machine.mrsigner()
    assert (report.attributes, report.xfrm) == (secs.attributes, secs.xfrm)
    assert (report.isvprodid, report.isvsvn, report.configsvn) == (5, 3, 4)
    assert (report.isvfamilyid, report.isvextprodid) == (KSS["isvfamilyid"], KSS["isvextprodid"])
    assert report.configid == b"\xc0" * 64
    assert report.cpusvn == identity.cpusvn
    encoded = report.encode()
    key = reporter.key(keyname=KEYNAME_REPORT, keyid=report.keyid)
    assert cmac(key, encoded[:384]) == report.mac
    # KEYID and the MAC itself are not covered; everything before them is.
    assert cmac(key, encoded[:383] + b"\1") != report.mac
    other = Inside(make_machine(identity=identity))
    assert cmac(other.key(keyname=KEYNAME_REPORT, keyid=report.keyid), encoded[:384]) != report.mac
    for change in (
        {"measurement": bytes(32)},
        {"attributes": 5},
        {"xfrm": 7},
        {"configsvn": 3},
        {"miscselect": 1},
        {"configid": bytes(64)},
    ):
        changed = Report.decode(reporter.ereport(target.replace(**change).encode(), data))
        assert changed.mac != report.mac
    # Reserved bytes of TARGETINFO are not looked at.
    dirty = bytearray(target.encode())
    dirty[511] = 1
    assert reporter.ereport(bytes(dirty), data) == encoded


def test_the_cmac_is_that_of_rfc_4493() -> None:
    key = bytes.fromhex("2b7e151628aed2a6abf7158809cf4f3c")
    assert cmac(key, b"").hex() == "bb1d6929e95937287fa37d129b756746"
    message = bytes.fromhex("6bc1bee22e409f96e93d7e117393172a")
    assert cmac(key, message).hex() == "070a16b46b4d4144f79bdd9dd04a287c"


def test_an_identity_that_is_none_is_refused() -> None:
    for data in (b"", bytes(Identity.SIZE), Identity.fresh().to_bytes() + b"\0"):
        with pytest.raises(SoftsgxError, match="not a processor identity"):
            Identity.from_bytes(data)
