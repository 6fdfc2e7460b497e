# SPDX-License-Identifier: Apache-2.0
"""Every record and request number against its source, compared by the C compiler."""

import subprocess
from pathlib import Path

import pytest

from softsgx.arch import ioctl, legacy_ioctl, structures, vdso
from softsgx.arch.layout import Record

SDM = Path(__file__).with_name("sdm.h")
LEGACY = Path(__file__).with_name("legacy.h")

FROM_SDM = [
    value
    for value in vars(structures).values()
    if isinstance(value, type) and issubclass(value, Record) and value is not Record
]
FROM_KERNEL: dict[type[Record], str] = {
    ioctl.EnclaveCreate: "sgx_enclave_create",
    ioctl.EnclaveAddPages: "sgx_enclave_add_pages",
    ioctl.EnclaveInit: "sgx_enclave_init",
    ioctl.EnclaveProvision: "sgx_enclave_provision",
    ioctl.EnclaveRestrictPermissions: "sgx_enclave_restrict_permissions",
    ioctl.EnclaveModifyTypes: "sgx_enclave_modify_types",
    ioctl.EnclaveRemovePages: "sgx_enclave_remove_pages",
    vdso.SgxEnclaveRun: "sgx_enclave_run",
}
# What no kernel has: as our own header declares it to C programs.
OURS: dict[type[Record], str] = {
    ioctl.EnclaveSetBacking: "sgx_enclave_set_backing",
    ioctl.EnclaveCreateBacking: "sgx_enclave_create_backing",
}
OUR_HEADER = Path(__file__).parents[1] / "programs" / "set_backing.h"
OUR_REQUESTS = ["SGX_IOC_ENCLAVE_SET_BACKING", "SGX_IOC_ENCLAVE_CREATE_BACKING"]
REQUESTS = [
    name for name in vars(ioctl) if name.startswith("SGX_IOC_") and name not in OUR_REQUESTS
]
FROM_LEGACY = [
    value
    for value in vars(legacy_ioctl).values()
    if isinstance(value, type) and issubclass(value, Record) and value is not Record
]
# As they were computed from the drivers' own headers.
LEGACY_REQUESTS = {
    "SGX_IOC_ENCLAVE_ADD_PAGE": 0x401AA401,
    "SGX_IOC_ENCLAVE_INIT_AT": 0x4010A402,
    "SGX_IOC_ENCLAVE_INIT_BY_TOKEN": 0x4018A402,
    "SGX_IOC_ENCLAVE_SET_ATTRIBUTE_AT": 0x4010A403,
    "SGX_IOC_ENCLAVE_EMODPR": 0x4018A409,
    "SGX_IOC_ENCLAVE_MKTCS": 0x4010A40A,
    "SGX_IOC_ENCLAVE_TRIM": 0x4010A40B,
    "SGX_IOC_ENCLAVE_NOTIFY_ACCEPT": 0x4010A40C,
    "SGX_IOC_ENCLAVE_PAGE_REMOVE": 0x4008A40D,
}


def compiles(program: str) -> str | None:
    """Return what the compiler objects to."""
    done = subprocess.run(
        ["cc", "-std=gnu11", "-Werror", "-fsyntax-only", "-x", "c", "-"],
        input=program,
        capture_output=True,
        text=True,
        check=False,
    )
    return None if done.returncode == 0 else done.stderr


def assertions(kind: type[Record], struct: str) -> list[str]:
    lines = [f'_Static_assert(sizeof(struct {struct}) == {kind.SIZE}, "size of {struct}");']
    for name, field in kind._KINDS:
        offset = kind.OFFSETS[name]
        lines += [
            f'_Static_assert(__builtin_offsetof(struct {struct}, {name}) == {offset}, "{struct}.{name}");',
            f'_Static_assert(sizeof(((struct {struct} *)0)->{name}) == {field.size}, "size of {name}");',
        ]
    return lines


@pytest.mark.parametrize("kind", FROM_SDM, ids=lambda kind: kind.__name__)
def test_a_record_is_as_the_manual_prints_it(kind: type[Record]) -> None:
    program = [f'#include "{SDM}"', *assertions(kind, kind.__name__)]
    assert compiles("\n".join(program)) is None


@pytest.mark.parametrize("kind", FROM_KERNEL, ids=lambda kind: kind.__name__)
def test_a_record_is_as_the_kernel_header_has_it(kind: type[Record]) -> None:
    program = ["#include <asm/sgx.h>", *assertions(kind, FROM_KERNEL[kind])]
    assert compiles("\n".join(program)) is None


def test_request_numbers_are_those_of_the_kernel_header() -> None:
    assert len(REQUESTS) == 8
    program = ["#include <linux/ioctl.h>", "#include <asm/sgx.h>"]
    program += [
        f'_Static_assert({name} == {getattr(ioctl, name):#x}u, "{name}");' for name in REQUESTS
    ]
    program.append(
        f'_Static_assert(SGX_PAGE_MEASURE == {ioctl.SGX_PAGE_MEASURE}, "SGX_PAGE_MEASURE");'
    )
    assert compiles("\n".join(program)) is None
    assert {ioctl.ioctl_magic(getattr(ioctl, name)) for name in REQUESTS} == {ioctl.SGX_MAGIC}


def test_our_own_requests_are_those_of_our_header() -> None:
    program = [f'#include "{OUR_HEADER}"']
    for kind, struct in OURS.items():
        program += assertions(kind, struct)
    constants = [name for name in vars(ioctl) if name.startswith("BACKING_") and "MODE" not in name]
    assert len(constants) == 8
    program += [
        f'_Static_assert({c} == {getattr(ioctl, name):#x}u, "{name}");'
        for name in [*OUR_REQUESTS, *constants]
        for c in [name if name in OUR_REQUESTS else f"SGX_{name}"]
    ]
    assert compiles("\n".join(program)) is None
    assert ioctl.SGX_IOC_ENCLAVE_SET_BACKING == 0x4040A410
    assert ioctl.SGX_IOC_ENCLAVE_CREATE_BACKING == 0x4010A400
    assert {ioctl.ioctl_magic(getattr(ioctl, name)) for name in OUR_REQUESTS} == {ioctl.SGX_MAGIC}
    assert {getattr(ioctl, name) for name in OUR_REQUESTS}.isdisjoint(
        getattr(ioctl, name) for name in REQUESTS
    )


@pytest.mark.parametrize("kind", FROM_LEGACY, ids=lambda kind: kind.__name__)
def test_a_record_is_as_a_program_of_the_older_drivers_has_it(kind: type[Record]) -> None:
    program = [f'#include "{LEGACY}"', *assertions(kind, kind.__name__)]
    assert compiles("\n".join(program)) is None


def test_request_numbers_of_the_older_drivers() -> None:
    found = {n: v for n, v in vars(legacy_ioctl).items() if n.startswith("SGX_IOC_")}
    assert found == LEGACY_REQUESTS
    program = [f'#include "{LEGACY}"']
    program += [
        f'_Static_assert({name} == {value:#x}u, "{name}");' for name, value in found.items()
    ]
    assert compiles("\n".join(program)) is None


def test_the_compiler_refuses_a_wrong_offset() -> None:
    program = ["#include <asm/sgx.h>", *assertions(ioctl.EnclaveAddPages, "sgx_enclave_add_pages")]
    wrong = "\n".join(program).replace("count) == 40", "count) == 32")
    assert "sgx_enclave_add_pages.count" in (compiles(wrong) or "")


def test_every_ioctl_record_is_whole() -> None:
    # A field that the header has and the record has not would show as reserved bytes.
    assert [kind.__name__ for kind in FROM_KERNEL if kind._RESERVED] == ["SgxEnclaveRun"]
    [reserved] = vdso.SgxEnclaveRun._RESERVED
    assert reserved == (40, bytes(216))
