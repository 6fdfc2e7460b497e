# SPDX-License-Identifier: Apache-2.0
"""`softsgx run --driver`: the nodes of each driver, and enclaves by the ABI of each."""

import errno
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from softsgx.driver.nodes import DRIVERS, ENCLAVE, ISGX, LEGACY, V16, nodes_of

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
        if kind in (ENCLAVE, *LEGACY):
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


# -- enclaves by address ------------------------------------------------------------------------


def legacy(softsgx: "Harness", name: str, driver: str, *more: str, **named: Any) -> str:
    """Run a program of the kind of tests/programs/legacy.h on a driver's node."""
    node = next(path for path, kind in nodes_of(driver).paths.items() if kind in LEGACY)
    options = ("--driver", driver, *named.pop("options", ()))
    return softsgx.checked(name, node, driver, *more, options=options, **named)


@pytest.mark.parametrize("driver", LEGACY)
def test_an_enclave_belongs_to_its_mapping(softsgx: "Harness", driver: str) -> None:
    legacy(softsgx, "legacy", driver)


@pytest.mark.parametrize("driver", LEGACY)
def test_enclaves_of_mappings_are_counted_as_any(
    softsgx: "Harness", tmp_path: Path, driver: str
) -> None:
    path = tmp_path / "stats.json"
    legacy(softsgx, "legacy", driver, options=("--stats-json", path))
    report = json.loads(path.read_text())
    assert report["enclaves"] > 0
    assert sum(enclave["added"] for enclave in report["largest_enclaves"]) == report["added"] > 0
    assert all(enclave["pids"] for enclave in report["largest_enclaves"])
    assert report["resident"] == 0


USERFAULTFD = 323


@pytest.fixture(params=["userfaultfd", "without userfaultfd"])
def before(request: pytest.FixtureRequest, softsgx: "Harness") -> list[str]:
    """Give the words before a command that let holes be found the one way or the other."""
    return [] if request.param == "userfaultfd" else softsgx.refusing("1", [USERFAULTFD])


# An EPC that holds one enclave of the tests and not two.
SMALL = ("--epc", "400K")


def test_an_enclave_without_userfaultfd(softsgx: "Harness", before: list[str]) -> None:
    legacy(softsgx, "legacy", "v16", sandbox=before)


@pytest.mark.parametrize("driver", [V16, ISGX])
def test_who_is_inside_is_driven_out(softsgx: "Harness", driver: str, before: list[str]) -> None:
    legacy(softsgx, "legacy_end", driver, "inside", sandbox=before, options=SMALL)


def test_an_enclave_ends_with_its_process(softsgx: "Harness", before: list[str]) -> None:
    # Were a page lost each time, the EPC would be gone long before.
    legacy(softsgx, "legacy_end", V16, "exit", "24", sandbox=before, options=SMALL)


def test_an_enclave_ends_with_an_exec(softsgx: "Harness") -> None:
    legacy(softsgx, "legacy_end", ISGX, "exec", "6", options=SMALL)


# -- an EPC that is too small ---------------------------------------------------------------------

# Eight times the EPC.
HEAP = 1 << 20


@pytest.mark.parametrize(
    ("driver", "where"),
    [(V16, "kernel"), (V16, "memory"), (V16, "create"), (V16, "none"), (ISGX, "kernel")],
)
def test_pages_wait_and_are_evicted(
    softsgx: "Harness", driver: str, where: str, before: list[str]
) -> None:
    node = next(path for path, kind in nodes_of(driver).paths.items() if kind in LEGACY)
    words = [*softsgx.enclave(heap=HEAP), node, driver, str(HEAP), where]
    command = softsgx.command(
        softsgx.program("legacy_pressure"), *words, options=("--driver", driver, "--epc", "128K")
    )
    ended = softsgx.complete([*before, *command])
    assert "not ok" not in ended.out, ended.out + ended.err
    assert ended.out.endswith("finished\n"), ended
    assert ended.status == 0, ended
