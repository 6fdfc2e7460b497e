# SPDX-License-Identifier: Apache-2.0
"""`softsgx info`: what it says is what the processor and the probes say."""

import errno
import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from softsgx import cli
from softsgx.arch.attributes import ATTRIBUTE_CET, ATTRIBUTE_MODE64BIT
from softsgx.arch.leaves import Encls, Enclu
from softsgx.arch.structures import Secs
from softsgx.cli import info
from softsgx.cpu.encls import encls
from softsgx.cpu.identity import Identity
from softsgx.cpu.memory import HeldMemory
from softsgx.cpu.model import FEATURES, Model
from softsgx.cpu.processor import LogicalProcessor, Processor
from softsgx.cpu.registers import Registers
from softsgx.cpu.transition import enclu
from softsgx.driver import vma
from softsgx.driver.local import LocalEnclave
from softsgx.driver.nodes import DRIVERS
from softsgx.driver.platform import Platform
from softsgx.driver.state import State
from softsgx.errors import DriverError, Fault
from softsgx.run import host


def probe(name: str, need: str, ok: bool) -> host.Probe:
    return host.Probe(name, need, ok, "found", "purpose", f"the fix of {name}")


def most() -> Processor:
    """Return a processor that has every feature that can be had."""
    model = Model(1 << 20, features=frozenset(FEATURES))
    return Processor(model, Identity.fresh(), 256)


def test_no_leaf_of_encls_is_refused_that_is_not_told() -> None:
    cpu = most()
    reasons = []
    for leaf in Encls:
        try:
            # No leaf takes an odd address: all that have an operand fault for that.
            encls(cpu, HeldMemory(), leaf, 1, 1, 1)
        except Fault as fault:
            reasons.append(fault.reason)
    assert len(reasons) == len(Encls) - 1
    assert not [reason for reason in reasons if "not supported" in reason]


def test_no_leaf_of_enclu_is_refused_that_is_not_told() -> None:
    cpu = most()
    for leaf in Enclu:
        with pytest.raises(Fault) as caught:
            # Those that exist fault for their side, or for the odd address of their TCS.
            enclu(cpu, LogicalProcessor(lambda _: None), Registers(rax=int(leaf), rbx=1))
        assert "not supported" not in caught.value.reason, leaf


def told(name: str) -> str:
    return dict(info.NOT_MODELLED)[name]


@contextmanager
def created(
    attributes: int, pages: int = 256, size: int = 1 << 22, baseaddr: int = 1 << 46
) -> Iterator[LocalEnclave]:
    with Platform(epc=pages << 12, state=State.temporary()) as platform:
        enclave = platform.open_enclave()
        secs = Secs.blank().replace(
            size=size, baseaddr=baseaddr, ssaframesize=1, attributes=attributes, xfrm=3
        )
        enclave.create(secs.encode())
        yield enclave


def test_create_refuses_what_is_not_claimed_as_told() -> None:
    with pytest.raises(DriverError) as refused, created(ATTRIBUTE_MODE64BIT | ATTRIBUTE_CET):
        pass
    assert f"CREATE gives {errno.errorcode[refused.value.errno]}" in told("CET")


def test_an_enclave_that_is_too_large_gives_what_is_told() -> None:
    with created(ATTRIBUTE_MODE64BIT, size=1 << 46):
        pass
    with (
        pytest.raises(DriverError) as refused,
        created(ATTRIBUTE_MODE64BIT, size=1 << 47, baseaddr=0),
    ):
        pass
    name = errno.errorcode[refused.value.errno]
    assert told("enclaves of 2^47 bytes and more").endswith(f"CREATE gives {name}")


@pytest.mark.parametrize("advice", [vma.MADV_HWPOISON, vma.MADV_SOFT_OFFLINE])
def test_poisoning_gives_what_is_told(advice: int) -> None:
    with pytest.raises(DriverError) as refused:
        vma.check_madvise(advice, 3)
    assert told("poisoning enclave pages").endswith(errno.errorcode[refused.value.errno])


def test_a_move_by_mremap_gives_what_is_told() -> None:
    with pytest.raises(DriverError) as refused:
        vma.check_mremap(4096, 4096, vma.MREMAP_FIXED)
    assert told("mremap that moves enclave memory") == errno.errorcode[refused.value.errno]


def test_there_is_no_virtual_epc() -> None:
    assert "there is no /dev/sgx_vepc" in told("ENCLV, virtual EPC")
    assert not any("/dev/sgx_vepc" in nodes.paths for nodes in DRIVERS.values())


def test_json_tells_the_host_the_claims_and_what_is_missing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    status = cli.main(["info", "--json"])
    found = json.loads(capsys.readouterr().out)
    essentials = [each["ok"] for each in found["host"] if each["need"] == "essential"]
    assert found["run"] is all(essentials)
    assert status == (0 if found["run"] else 1)
    assert "never for secrets" in found["warning"]
    assert {each["name"] for each in found["host"]} >= {"ptrace", "userfaultfd", "PKU", "FSGSBASE"}
    names = [each["name"] for each in found["not_modelled"]]
    assert len(set(names)) == len(names)


def test_json_gives_leaf_12h_as_the_model_does(capsys: pytest.CaptureFixture[str]) -> None:
    model = info.claims()
    if model is None:
        pytest.skip("the processor cannot be asked for XCR0")
    cli.main(["info", "--json"])
    platform = json.loads(capsys.readouterr().out)["platform"]
    assert platform["epc_bytes"] == 128 << 20
    for subleaf in range(4):
        registers = platform["cpuid"][f"0x12.{subleaf}"]
        expected = model.cpuid(0x12, subleaf, (9, 9, 9, 9))
        assert tuple(registers[name] for name in ("eax", "ebx", "ecx", "edx")) == expected
    # SGX1 and SGX2.
    assert platform["cpuid"]["0x12.0"]["eax"] & 3 == 3


@pytest.mark.parametrize("cpu", ["default", "sgx1", "sgx1,+kss"])
def test_the_processor_that_was_asked_for_is_shown(
    capsys: pytest.CaptureFixture[str], cpu: str
) -> None:
    model = info.claims(cpu)
    if model is None:
        pytest.skip("the processor cannot be asked for XCR0")
    cli.main(["info", "--json", "--cpu", cpu])
    platform = json.loads(capsys.readouterr().out)["platform"]
    assert platform["cpu"] == cpu
    assert set(platform["features"]) == model.features
    assert platform["cpuid"]["0x12.1"]["eax"] == model.attributes
    assert platform["models"]["sgx1"] == []
    cli.main(["info", "--cpu", cpu])
    text = capsys.readouterr().out
    assert f"softsgx run --cpu {cpu}`" in text
    assert f"ATTRIBUTES  {model.attributes:#x}" in text


def test_a_processor_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", "--cpu", "sgx9"]) == 2
    assert "'sgx9' is no model" in capsys.readouterr().err


def test_text_names_every_probe_and_everything_not_modelled(
    capsys: pytest.CaptureFixture[str],
) -> None:
    cli.main(["info"])
    text = capsys.readouterr().out
    assert all(each.name in text for each in host.probe_host())
    assert all(name in text and instead in text for name, instead in info.NOT_MODELLED)
    assert all(" ".join(sorted(nodes.paths)) in text for nodes in DRIVERS.values())
    assert text.startswith("softsgx ")
    assert "never for secrets" in text.splitlines()[0]


def test_a_missing_essential_gives_1_and_its_fix(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    probes = [probe("one", host.ESSENTIAL, ok=True), probe("two", host.ESSENTIAL, ok=False)]
    monkeypatch.setattr(host, "probe_host", lambda: probes)
    assert cli.main(["info"]) == 1
    text = capsys.readouterr().out
    assert "cannot work here" in text
    assert "the fix of two" in text
    assert "the fix of one" not in text


def test_what_is_merely_useful_does_not_stop_a_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    probes = [probe("one", host.ESSENTIAL, ok=True), probe("two", host.USEFUL, ok=False)]
    monkeypatch.setattr(host, "probe_host", lambda: probes)
    assert cli.main(["info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["run"] is True
    assert [each["fix"] for each in found["host"]] == ["", "the fix of two"]


def test_a_processor_that_cannot_be_asked_claims_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(info, "claims", lambda _: None)
    cli.main(["info", "--json"])
    assert json.loads(capsys.readouterr().out)["platform"] is None
    cli.main(["info"])
    assert "platform is unknown" in capsys.readouterr().out
