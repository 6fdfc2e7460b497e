# SPDX-License-Identifier: Apache-2.0
"""Which nodes each driver has, and what is said of those of the others."""

import errno
import os
from pathlib import Path

import pytest

from softsgx.driver.nodes import (
    DCAP,
    DCAP_1_5,
    DRIVERS,
    ENCLAVE,
    ISGX,
    MAINLINE,
    PROVISION,
    V16,
    nodes_of,
)
from softsgx.driver.platform import Platform
from softsgx.driver.state import State
from softsgx.errors import SoftsgxError

ENOENT, ENOTDIR = errno.ENOENT, errno.ENOTDIR


def paths(driver: str, kind: str) -> set[str]:
    return {path for path, found in nodes_of(driver).paths.items() if found == kind}


def test_the_nodes_of_mainline_are_two_with_a_link_each() -> None:
    nodes = nodes_of(MAINLINE)
    assert paths(MAINLINE, ENCLAVE) == {"/dev/sgx_enclave", "/dev/sgx/enclave"}
    assert paths(MAINLINE, PROVISION) == {"/dev/sgx_provision", "/dev/sgx/provision"}
    assert len(nodes.links) == 2
    for path, target in nodes.links.items():
        assert nodes.paths[os.path.normpath(Path(path).parent / target)] == nodes.paths[path]
    assert nodes.names == {ENCLAVE: "/dev/sgx_enclave", PROVISION: "/dev/sgx_provision"}


def test_the_nodes_of_dcap_are_in_a_directory() -> None:
    nodes = nodes_of(DCAP)
    assert nodes.paths == {"/dev/sgx/enclave": ENCLAVE, "/dev/sgx/provision": PROVISION}
    assert nodes.links == {}
    assert set(nodes.absent.values()) == {ENOENT}
    assert nodes.absent.keys() >= {"/dev/sgx_enclave", "/dev/sgx_provision", "/dev/isgx"}


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_node_is_there_or_absent(driver: str) -> None:
    nodes = nodes_of(driver)
    every = {path for other in DRIVERS.values() for path in other.paths}
    directories = {path.rpartition("/")[0] for path in nodes.paths}
    assert nodes.paths.keys() | nodes.absent.keys() >= every - directories
    assert not nodes.paths.keys() & nodes.absent.keys()


@pytest.mark.parametrize("driver", ["", "Mainline", "kernel", "sgx"])
def test_an_unknown_driver_is_told_the_known_ones(driver: str) -> None:
    with pytest.raises(SoftsgxError, match="mainline, dcap"):
        nodes_of(driver)
    with (
        pytest.raises(SoftsgxError, match="mainline, dcap"),
        Platform(driver=driver, state=State.temporary()),
    ):
        pass


def test_the_older_drivers_have_one_node_and_dcap_1_5_has_two() -> None:
    assert nodes_of(V16).paths == {"/dev/sgx": V16}
    assert nodes_of(ISGX).paths == {"/dev/isgx": ISGX}
    assert nodes_of(DCAP_1_5).paths == {"/dev/sgx": DCAP_1_5, "/dev/sgx_prv": PROVISION}
    # What is below a node is in no directory.
    for driver in (V16, DCAP_1_5):
        absent = nodes_of(driver).absent
        assert absent["/dev/sgx/enclave"] == absent["/dev/sgx/provision"] == ENOTDIR
        assert absent["/dev/sgx_enclave"] == absent["/dev/isgx"] == ENOENT
    assert nodes_of(ISGX).absent["/dev/sgx"] == ENOENT
    assert "/dev/sgx" not in nodes_of(MAINLINE).absent


@pytest.mark.parametrize("version", ["dcap-1.3", "dcap-1.9", "dcap1.5"])
def test_a_version_of_dcap_is_told_which_name_stands_for_it(version: str) -> None:
    with pytest.raises(SoftsgxError, match=r"DCAP up to 1\.3 is v16, 1\.4 is dcap-1\.5"):
        nodes_of(version)
