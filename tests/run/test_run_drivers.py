# SPDX-License-Identifier: Apache-2.0
"""`softsgx run --driver`: the nodes of each driver, and enclaves by the ABI of each."""

import errno
from typing import TYPE_CHECKING

import pytest

from softsgx.driver.nodes import DRIVERS, ENCLAVE, nodes_of

if TYPE_CHECKING:
    from conftest import Harness

pytestmark = pytest.mark.live

EVERY_NODE = sorted({path for nodes in DRIVERS.values() for path in nodes.paths})
# What is left to the kernel: a directory on a host that has the nodes in it.
DIRECTORIES = {path.rpartition("/")[0] for path in EVERY_NODE}


@pytest.mark.parametrize("driver", DRIVERS)
def test_the_nodes_of_one_driver_are_there_and_no_other(softsgx: "Harness", driver: str) -> None:
    nodes = nodes_of(driver)
    asked = [path for path in EVERY_NODE if path in nodes.paths or path not in DIRECTORIES]
    ended = softsgx.run(softsgx.program("nodes"), *asked, options=("--driver", driver))
    wanted = []
    for path in asked:
        wanted.append(f"{path} {nodes.absent.get(path, 0)}")
        kind = nodes.paths.get(path)
        if kind == ENCLAVE:
            wanted += [f"mapped {nodes.names[kind]}"] * (
                1 + wanted.count(f"mapped {nodes.names[kind]}")
            )
    assert ended.out.splitlines() == wanted, ended


def test_an_unknown_driver_is_status_2_and_a_line(softsgx: "Harness") -> None:
    ended = softsgx.run("true", options=("--driver", "windows"))
    assert (ended.status, ended.out) == (2, "")
    assert ended.err == f"softsgx: --driver windows: wanted is one of {', '.join(DRIVERS)}\n"


def test_what_absent_nodes_give_is_no_node_to_a_program(softsgx: "Harness") -> None:
    # By the shell's own calls, and from a place in libc that has been led through the image.
    script = "for i in 1 2; do test -e /dev/sgx_enclave || echo none; done; : < /dev/sgx/enclave"
    ended = softsgx.run("sh", "-c", script, options=("--driver=dcap",))
    assert (ended.status, ended.out) == (0, "none\nnone\n"), ended
    assert errno.ENOENT in nodes_of("dcap").absent.values()


def test_dcap(softsgx: "Harness") -> None:
    softsgx.checked("dcap", options=("--driver", "dcap"))
