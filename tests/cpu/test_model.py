# SPDX-License-Identifier: Apache-2.0
"""CPUID: what is claimed, and that only what is built is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softsgx.arch.attributes import ATTRIBUTE_CET, ATTRIBUTE_INIT
from softsgx.arch.leaves import Encls, Enclu
from softsgx.cpu.model import DEFAULT_FEATURES, ENCLS_OF, ENCLU_OF, FEATURES, Model
from softsgx.errors import SoftsgxError

NATIVE = (0x0D, 0x11, 0x22, 0x33)
ZERO = (0, 0, 0, 0)


def test_the_largest_leaf_reaches_sgx_and_the_vendor_stays() -> None:
    model = Model()
    assert model.cpuid(0, 0, NATIVE) == (0x12, 0x11, 0x22, 0x33)
    assert model.cpuid(0, 0, (0x20, 1, 2, 3)) == (0x20, 1, 2, 3)


def test_leaf_7_gains_sgx_and_launch_control_only() -> None:
    model = Model()
    assert model.cpuid(7, 0, ZERO) == (0, 1 << 2, 1 << 30, 0)
    full = (0xFFFF_FFFF,) * 4
    assert model.cpuid(7, 0, full) == full
    assert model.cpuid(7, 1, NATIVE) == NATIVE


@given(st.integers(0, 0xFFFF_FFFF), st.integers(0, 0xFFFF_FFFF))
def test_other_leaves_are_the_hosts(leaf: int, subleaf: int) -> None:
    if leaf not in {0, 0x12} and (leaf, subleaf) != (7, 0):
        assert Model().cpuid(leaf, subleaf, NATIVE) == NATIVE


@pytest.mark.parametrize("max_leaf", [0xD, 0x11])
def test_leaves_between_the_hosts_last_and_12h_are_empty(max_leaf: int) -> None:
    model = Model(max_leaf=max_leaf)
    answers = {leaf: model.cpuid(leaf, 0, NATIVE) for leaf in (*range(8, 0x15), 1 << 31)}
    empty = {leaf for leaf, answer in answers.items() if answer == ZERO}
    assert empty == set(range(max_leaf + 1, 0x12))
    assert {answers[leaf] for leaf in answers if leaf not in empty | {0x12}} == {NATIVE}


def test_leaf_12h_is_not_the_hosts() -> None:
    model = Model()
    eax, ebx, ecx, edx = model.cpuid(0x12, 0, (0xFFFF_FFFF,) * 4)
    # All but EVERIFYREPORT2.
    assert (eax, ebx, ecx) == (1 << 11 | 1 << 10 | 1 << 6 | 3, 1, 0)
    assert edx == 0x2F1F


# Bits of CPUID.12H.0:EAX, of ATTRIBUTES and of MISCSELECT, as the manual has them.
TOLD = {
    "sgx2": (1, None, None),
    "oversub": (6, None, None),
    "everifyreport2": (7, None, None),
    "eupdatesvn": (10, None, None),
    "aex-notify": (11, 10, None),
    "kss": (None, 7, None),
    "exinfo": (None, None, 0),
}


def test_a_processor_without_features_is_sgx1() -> None:
    model = Model(features=frozenset())
    assert model.cpuid(0x12, 0, NATIVE) == (1, 0, 0, 0x2F1F)
    assert model.cpuid(0x12, 1, NATIVE)[0] == 0x36
    assert model.encls == {*range(0x0D)}
    assert model.enclu == {*range(5)}


@pytest.mark.parametrize("feature", sorted(FEATURES))
def test_a_feature_adds_its_bits_and_its_leaves(feature: str) -> None:
    without, model = Model(features=frozenset()), Model(features=frozenset({feature}))
    first, second = (
        (each.cpuid(0x12, 0, ZERO), each.cpuid(0x12, 1, ZERO)) for each in (without, model)
    )
    bits = [
        second[0][0] ^ first[0][0],
        second[1][0] ^ first[1][0],
        second[0][1] ^ first[0][1],
    ]
    assert bits == [0 if bit is None else 1 << bit for bit in TOLD[feature]]
    assert model.encls - without.encls == {*ENCLS_OF.get(feature, ())}
    assert model.enclu - without.enclu == {*ENCLU_OF.get(feature, ())}


def test_every_leaf_is_of_sgx1_or_of_one_feature() -> None:
    for leaves, of, first in ((Encls, ENCLS_OF, 0x0D), (Enclu, ENCLU_OF, 5)):
        beyond = sorted(leaf for leaf in leaves if leaf >= first)
        assert sorted(leaf for of_feature in of.values() for leaf in of_feature) == beyond


@pytest.mark.parametrize("feature", ["sgx1", "sgx3", "cet", "AEX-Notify"])
def test_what_is_not_known_is_no_feature(feature: str) -> None:
    with pytest.raises(SoftsgxError, match=f"no feature '{feature}'"):
        Model(features=DEFAULT_FEATURES | {feature})


def test_the_settable_attributes_are_those_that_are_built() -> None:
    eax, ebx, ecx, edx = Model(xcr0=0xE7).cpuid(0x12, 1, NATIVE)
    assert (eax, ebx, ecx, edx) == (0x4B6, 0, 0xE7, 0)
    assert not eax & (ATTRIBUTE_INIT | ATTRIBUTE_CET)


@pytest.mark.parametrize("size", [4096, 128 << 20, 64 << 30])
def test_one_section_holds_the_epc_and_the_list_ends(size: int) -> None:
    model = Model(size)
    eax, ebx, ecx, edx = model.cpuid(0x12, 2, NATIVE)
    assert eax & 0xFFF == 1
    assert ecx & 0xFFF == 1
    assert (ecx & 0xFFFF_F000) + ((edx & 0xF_FFFF) << 32) == size
    assert ((eax & 0xFFFF_F000) + (ebx << 32)) % 4096 == 0
    for subleaf in (3, 4, 99):
        assert model.cpuid(0x12, subleaf, NATIVE) == ZERO


def test_xfrm_offers_what_the_host_has_and_an_enclave_may_have() -> None:
    # PT (8) and CET (11, 12) are supervisor or not modelled; 9 is PKRU.
    assert Model(xcr0=0x1BE7).xfrm == 0x2E7
    assert Model(xcr0=3).xfrm == 3
    assert Model(xcr0=7, xsave_sizes={}).xfrm == 3


def test_xfrm_is_loadable_as_xsetbv_says() -> None:
    model = Model(xcr0=0x6_02FF)
    good = [3, 7, 0xE7, 0x203, 0x1B, 0x6_0003, 0x6_02FF]
    bad = [0, 1, 2, 5, 0x27, 0xE3, 0xB, 0x13, 0x2_0003, 0x4_0003, 0x103, 1 << 63 | 3]
    assert [model.loadable(xfrm) for xfrm in good] == [True] * len(good)
    assert [model.loadable(xfrm) for xfrm in bad] == [False] * len(bad)


def test_the_xsave_area_ends_with_its_last_component() -> None:
    model = Model(xcr0=0x2E7)
    sizes = {3: 576, 7: 832, 0xE7: 2688, 0x2E7: 2696, 0x203: 2696}
    assert {xfrm: model.xsave_size(xfrm) for xfrm in sizes} == sizes
    assert model.ssa_size(3, 0) == 576 + 184
    assert model.ssa_size(3, 1) == 576 + 184 + 16


def test_an_epc_is_whole_pages() -> None:
    for size in (0, -4096, 4095, 4097):
        with pytest.raises(SoftsgxError, match="multiple of 4096"):
            Model(size)
