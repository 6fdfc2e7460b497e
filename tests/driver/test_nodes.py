# SPDX-License-Identifier: Apache-2.0
"""Which nodes each driver has, and what is said of those of the others."""

import errno
import os
from pathlib import Path

import pytest

from softsgx.driver.nodes import DCAP, DRIVERS, ENCLAVE, MAINLINE, PROVISION, nodes_of
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
    assert nodes.absent == {"/dev/sgx_enclave": ENOENT, "/dev/sgx_provision": ENOENT}


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
