# SPDX-License-Identifier: Apache-2.0
"""EINIT: the signature, the measurement, launch control, in the manual's order."""

import os
from pathlib import Path
from typing import Any

import pytest

from softsgx.arch.attributes import (
    ATTRIBUTE_DEBUG,
    ATTRIBUTE_EINITTOKENKEY,
    ATTRIBUTE_INIT,
    ATTRIBUTE_KSS,
    ATTRIBUTE_MODE64BIT,
)
from softsgx.arch.codes import LeafCode
from softsgx.arch.structures import EINITTOKEN_MACED, Einittoken
from softsgx.cpu.einit import einit
from softsgx.cpu.keys import cmac, einittoken_key
from softsgx.image.sigstruct import format_error, signature_error

# SIGSTRUCTs that others made; the project's own tests do not need them.
DATA = Path(
    os.environ.get(
        "SOFTSGX_TEST_DATA", Path(__file__).resolve().parents[2].parent / "shared" / "data"
    )
)


@pytest.fixture
def built(machine: Any) -> Any:
    machine.create()
    machine.populate()
    machine.cpu.ia32_sgxlepubkeyhash = machine.mrsigner()
    return machine


def flipped(data: bytes, offset: int, bits: int = 1) -> bytes:
    out = bytearray(data)
    out[offset] ^= bits
    return bytes(out)


@pytest.mark.leaf("EINIT", "done")
def test_einit_commits_what_the_signer_says(built: Any) -> None:
    mrenclave = built.secs.hasher.digest()
    css = built.sigstruct(isvprodid=0x1234, isvsvn=0x5678)
    assert built.einit(css) is LeafCode.NO_ERROR
    secs = built.secs
    assert (secs.mrenclave, secs.mrsigner) == (mrenclave, built.mrsigner())
    assert (secs.isvprodid, secs.isvsvn) == (0x1234, 0x5678)
    assert secs.attributes & ATTRIBUTE_INIT


@pytest.mark.leaf("EINIT", "#GP")
def test_einit_happens_once(built: Any, gp: Any) -> None:
    css = built.sigstruct()
    assert built.einit(css) is LeafCode.NO_ERROR
    assert "already" in gp(lambda: built.einit(css))


@pytest.mark.leaf("EINIT", "#GP", "#PF")
def test_einit_checks_its_operands(built: Any, gp: Any, pf: Any) -> None:
    css, token = built.memory.place(built.sigstruct()), built.memory.place(bytes(304))
    secs = built.address(built.secs_page)

    def run(rbx: int = css, rcx: int = secs, rdx: int = token) -> Any:
        return lambda: einit(built.cpu, built.memory, rbx, rcx, rdx)

    assert "page aligned" in gp(run(rbx=css + 8))
    assert "page aligned" in gp(run(rcx=secs + 8))
    assert "512-byte" in gp(run(rdx=token + 256))
    assert pf(run(rcx=0x1000)) == 0x1000
    assert pf(run(rbx=0x5000_0000)) == 0x5000_0000
    assert pf(run(rdx=0x5000_0000)) == 0x5000_0000
    assert pf(run(rcx=built.address(50))) == built.address(50)
    child = built.address(built.secs_page + 1)
    assert pf(run(rcx=child)) == child
    built.cpu.epc.lock(built.secs_page)
    assert "in use" in gp(run())
    built.cpu.epc.unlock((built.secs_page,))
    assert run()() is LeafCode.NO_ERROR


@pytest.mark.parametrize(
    "offset", [0, 15, 16, 24, 39, 44, 127, 512, 908, 910, 992, 1007, 1028, 1039]
)
@pytest.mark.leaf("EINIT", "INVALID_SIG_STRUCT")
def test_a_malformed_sigstruct_is_refused(built: Any, offset: int) -> None:
    css = flipped(built.sigstruct(), offset)
    assert built.einit(css) is LeafCode.INVALID_SIG_STRUCT
    # The form is looked at before the page.
    secs = built.address(50)
    memory = built.memory
    code = einit(built.cpu, memory, memory.place(css), secs, memory.place(bytes(304)))
    assert code is LeafCode.INVALID_SIG_STRUCT


def test_intel_may_be_the_vendor(built: Any) -> None:
    assert built.einit(built.sigstruct(vendor=0x8086)) is LeafCode.NO_ERROR


# 20 date, 40 swdefined, 128 modulus, 516 signature, 960 hash, 1024 product, q1 and q2 at both ends.
@pytest.mark.parametrize(
    "offset", [20, 40, 128, 511, 516, 899, 904, 960, 1024, 1040, 1423, 1424, 1807]
)
@pytest.mark.leaf("EINIT", "INVALID_SIGNATURE")
def test_a_changed_byte_breaks_the_signature(built: Any, offset: int) -> None:
    css = flipped(built.sigstruct(), offset)
    assert built.einit(css) is LeafCode.INVALID_SIGNATURE
    assert not built.secs.initialised


def test_a_signature_must_be_below_the_modulus(built: Any) -> None:
    css = built.sigstruct()
    modulus = int.from_bytes(css[128:512], "little")
    raised = int.from_bytes(css[516:900], "little") + modulus
    if raised >> 3072:
        raised = modulus
    bad = css[:516] + raised.to_bytes(384, "little") + css[900:]
    assert built.einit(bad) is LeafCode.INVALID_SIGNATURE


def test_all_zero_is_no_signature(built: Any) -> None:
    css = built.sigstruct()
    for start, end in ((516, 900), (1040, 1424), (1424, 1808)):
        css = css[:start] + bytes(end - start) + css[end:]
    assert built.einit(css) is LeafCode.INVALID_SIGNATURE
    zero = css[:128] + bytes(384) + css[512:]
    assert built.einit(zero) is LeafCode.INVALID_SIGNATURE


@pytest.mark.leaf("EINIT", "INVALID_MEASUREMENT")
def test_a_wrong_hash_is_told_before_wrong_attributes(built: Any) -> None:
    wrong = {"enclavehash": bytes(32), "attributes": ATTRIBUTE_DEBUG}
    assert built.einit(built.sigstruct(**wrong)) is LeafCode.INVALID_MEASUREMENT
    assert built.einit(built.sigstruct(attributes=ATTRIBUTE_DEBUG)) is LeafCode.INVALID_ATTRIBUTE


def test_a_page_flipped_after_signing_is_a_wrong_measurement(make_machine: Any) -> None:
    first, second = make_machine(), make_machine()
    for machine, last in ((first, 0), (second, 1)):
        machine.create()
        machine.populate()
        machine.add(0x20000, bytes(4095) + bytes([last]), 0x203)
        machine.cpu.ia32_sgxlepubkeyhash = machine.mrsigner()
    assert second.einit(first.sigstruct()) is LeafCode.INVALID_MEASUREMENT


@pytest.mark.parametrize(
    "changes",
    [
        {"attributes": ATTRIBUTE_MODE64BIT, "attributemask": ATTRIBUTE_DEBUG},
        {"xfrm": 7},
        {"miscselect": 1},
        {"attributes": ATTRIBUTE_MODE64BIT | ATTRIBUTE_KSS},
    ],
)
@pytest.mark.leaf("EINIT", "INVALID_ATTRIBUTE")
def test_the_masked_attributes_must_agree(built: Any, changes: Any) -> None:
    assert built.einit(built.sigstruct(**changes)) is LeafCode.INVALID_ATTRIBUTE
    masked = {"attributemask": 0, "xfrmmask": 0, "miscmask": 0}
    assert built.einit(built.sigstruct(**changes | masked)) is LeafCode.NO_ERROR


@pytest.mark.leaf("EINIT", "INVALID_SIG_STRUCT", "done")
def test_family_and_extended_product_need_kss(built: Any, make_machine: Any) -> None:
    for name in ("isvfamilyid", "isvextprodid"):
        css = built.sigstruct(**{name: b"\1" * 16, "enclavehash": bytes(32)})
        assert built.einit(css) is LeafCode.INVALID_SIG_STRUCT
    kss = make_machine().build(
        attributes=ATTRIBUTE_MODE64BIT | ATTRIBUTE_KSS,
        isvfamilyid=b"\1" * 16,
        isvextprodid=b"\2" * 16,
    )
    assert (kss.secs.isvfamilyid, kss.secs.isvextprodid) == (b"\1" * 16, b"\2" * 16)


@pytest.mark.leaf("EINIT", "INVALID_ATTRIBUTE")
def test_only_the_trusted_signer_has_launch_enclaves(machine: Any) -> None:
    machine.create(attributes=ATTRIBUTE_MODE64BIT | ATTRIBUTE_EINITTOKENKEY)
    machine.populate()
    css = machine.sigstruct()
    assert machine.einit(css) is LeafCode.INVALID_ATTRIBUTE
    machine.cpu.ia32_sgxlepubkeyhash = machine.mrsigner()
    assert machine.einit(css) is LeafCode.NO_ERROR


@pytest.mark.leaf("EINIT", "INVALID_EINITTOKEN")
def test_without_token_the_signer_must_be_the_trusted_one(machine: Any) -> None:
    machine.create()
    machine.populate()
    assert machine.einit(machine.sigstruct()) is LeafCode.INVALID_EINITTOKEN


class Launcher:
    """A launch enclave's part: signs tokens for a machine."""

    LE_HASH = b"\x1e" * 32

    def __init__(self, machine: Any) -> None:
        self.machine = machine
        machine.create()
        machine.populate()
        machine.cpu.ia32_sgxlepubkeyhash = self.LE_HASH

    def token(self, **changes: Any) -> bytes:
        machine = self.machine
        secs = machine.secs
        fields = {
            "valid": 1,
            "attributes": secs.attributes,
            "xfrm": secs.xfrm,
            "mrenclave": secs.hasher.digest(),
            "mrsigner": machine.mrsigner(),
            "cpusvnle": machine.cpu.identity.cpusvn,
            "isvprodidle": 1,
            "isvsvnle": 2,
            "maskedattributesle": ATTRIBUTE_EINITTOKENKEY,
            "maskedxfrmle": 3,
            "keyid": b"\x33" * 32,
        }
        token = Einittoken.blank().replace(**fields | changes)
        key = einittoken_key(
            machine.cpu,
            isvprodid=token.isvprodidle,
            isvsvn=token.isvsvnle,
            attributes=token.maskedattributesle,
            xfrm=token.maskedxfrmle,
            miscselect=token.maskedmiscselectle,
            mrsigner=self.LE_HASH,
            cpusvn=token.cpusvnle,
            keyid=token.keyid,
        )
        return token.replace(mac=cmac(key, token.encode()[:EINITTOKEN_MACED])).encode()

    def launch(self, token: bytes) -> LeafCode:
        code: LeafCode = self.machine.einit(self.machine.sigstruct(), token)
        return code


def test_a_token_launches_another_signers_enclave(machine: Any) -> None:
    launcher = Launcher(machine)
    assert launcher.launch(launcher.token()) is LeafCode.NO_ERROR


@pytest.mark.leaf(
    "EINIT", "INVALID_EINITTOKEN", "INVALID_CPUSVN", "INVALID_MEASUREMENT", "INVALID_ATTRIBUTE"
)
def test_a_token_is_checked_in_order(machine: Any) -> None:
    launcher = Launcher(machine)
    token = launcher.token()
    cases = [
        (flipped(token, 288), LeafCode.INVALID_EINITTOKEN),
        (flipped(token, 0, 2), LeafCode.INVALID_EINITTOKEN),
        (flipped(token, 44), LeafCode.INVALID_EINITTOKEN),
        (launcher.token(cpusvnle=b"\xff" * 16), LeafCode.INVALID_CPUSVN),
        (launcher.token(cpusvnle=b"\0" * 15 + b"\xff"), LeafCode.INVALID_CPUSVN),
        (flipped(launcher.token(cpusvnle=b"\xff" * 16), 212), LeafCode.INVALID_EINITTOKEN),
        (launcher.token(mrenclave=bytes(32)), LeafCode.INVALID_MEASUREMENT),
        (launcher.token(mrsigner=bytes(32)), LeafCode.INVALID_MEASUREMENT),
        (launcher.token(attributes=ATTRIBUTE_MODE64BIT), LeafCode.INVALID_ATTRIBUTE),
        (launcher.token(mrsigner=bytes(32), xfrm=7), LeafCode.INVALID_MEASUREMENT),
    ]
    for bad, code in cases:
        assert launcher.launch(bad) is code
    assert launcher.launch(token) is LeafCode.NO_ERROR


def test_a_debug_launch_enclave_launches_debug_enclaves_only(make_machine: Any) -> None:
    production = make_machine()
    production.create(attributes=ATTRIBUTE_MODE64BIT)
    production.populate()
    production.cpu.ia32_sgxlepubkeyhash = Launcher.LE_HASH
    launcher = Launcher.__new__(Launcher)
    launcher.machine = production
    debug = ATTRIBUTE_EINITTOKENKEY | ATTRIBUTE_DEBUG
    assert launcher.launch(launcher.token(maskedattributesle=debug)) is LeafCode.INVALID_EINITTOKEN
    assert launcher.launch(launcher.token()) is LeafCode.NO_ERROR


def sigstructs() -> list[Path]:
    folder = DATA / "sigstruct"
    return sorted(
        path for path in folder.rglob("*") if path.is_file() and path.stat().st_size == 1808
    )


def test_sigstructs_of_others_verify() -> None:
    found = sigstructs()
    if not found:
        pytest.skip(f"no SIGSTRUCTs of others in {DATA} (SOFTSGX_TEST_DATA)")
    for path in found:
        data = path.read_bytes()
        assert format_error(data) is None, path
        assert signature_error(data) is None, path
        for offset in (130, 600, 1025, 1100, 1500):
            bad = flipped(data, offset)
            assert signature_error(bad) is not None, path
