# SPDX-License-Identifier: Apache-2.0
"""The device nodes and mappings of them, at the edges where programs are unlike each other."""

import errno
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import Harness

pytestmark = pytest.mark.live

MISC_MAJOR = "10"


def rows(report: str) -> dict[str, str]:
    """Read the rows of --stats."""
    found = (re.match(r"  (.{15})(.*)", line) for line in report.splitlines())
    return {row[1].strip(): row[2] for row in found if row}


def test_what_the_stat_calls_say_of_nodes_and_links(softsgx: "Harness") -> None:
    ended = softsgx.run(softsgx.program("node_types"))
    said: dict[str, list[str]] = {}
    for line in ended.out.splitlines():
        path, call, *what = line.split()
        said[f"{path} {call}"] = what
    for kind in ("enclave", "provision"):
        node, link = f"/dev/sgx_{kind}", f"/dev/sgx/{kind}"
        for call in ("stat", "lstat", "fstatat", "statx", "lstatx"):
            assert said[f"{node} {call}"] == ["c", MISC_MAJOR], call
        for call in ("stat", "statx"):
            assert said[f"{link} {call}"] == ["c", MISC_MAJOR], call
        for call in ("lstat", "fstatat", "lstatx"):
            assert said[f"{link} {call}"][0] == "l", call
        target = os.path.normpath(Path(link).parent / said[f"{link} readlink"][0])
        assert target == node
        assert f"{node} readlink" not in said
        assert said[f"{node} open"] == said[f"{link} open"] == ["yes"]


def test_private_mappings_are_refused_first_thing_after_open(softsgx: "Harness") -> None:
    ended = softsgx.run(softsgx.program("first_mapping"))
    wanted = {
        "private, read": errno.EINVAL,
        "private, none": errno.EINVAL,
        "private, write": errno.EINVAL,
        "private, exec": errno.EINVAL,
        "shared, none": 0,
        "shared, read": 0,
        "private after shared, read": errno.EINVAL,
    }
    assert ended.out.splitlines() == [f"{what}: {number}" for what, number in wanted.items()]


def test_uncommon_calls_on_a_mapping(softsgx: "Harness") -> None:
    softsgx.checked("mapping_calls")


def test_a_copy_through_proc_is_no_second_owner(softsgx: "Harness") -> None:
    softsgx.checked("reopened")


def test_a_child_that_asks_to_be_untraced(softsgx: "Harness") -> None:
    assert tuple(softsgx.run(softsgx.program("untraced"))) == (0, "40\n", "")


def test_a_program_that_cannot_be_dumped(softsgx: "Harness") -> None:
    softsgx.checked("not_dumpable")


@pytest.mark.parametrize("when", [(), ("first",)])
def test_a_program_of_an_ordinary_user_that_cannot_be_dumped(
    softsgx: "Harness", ordinary_user: int | None, when: tuple[str, ...]
) -> None:
    # Only here does the kernel close its /proc.
    softsgx.checked("not_dumpable", *when, uid=ordinary_user)


def test_pages_added_are_counted_exactly(softsgx: "Harness") -> None:
    program = softsgx.program("counted")
    ended = softsgx.run(program, *softsgx.enclave(), options=("--stats",))
    assert ended.status == 0, ended
    said = dict(re.findall(r"^(pages|enclaves) (\d+)$", ended.out, re.MULTILINE))
    report = rows(ended.err)
    assert report["enclaves"] == said["enclaves"]
    assert report["pages added"] == said["pages"]


def test_released_pages_are_free_at_once(softsgx: "Harness") -> None:
    softsgx.checked("full_again", "256", "60", options=("--epc", "1M"))


# -- what is told ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trace(softsgx: "Harness", tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    path: Path = tmp_path_factory.mktemp("trace") / "trace.jsonl"
    path.write_text("what was there before\n")
    softsgx.checked("traced", options=("--trace", path))
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_trace_line_is_a_json_object_with_a_head(trace: list[dict[str, Any]]) -> None:
    assert trace
    times = [line["time"] for line in trace]
    assert times == sorted(times)
    for line in trace:
        assert isinstance(line["pid"], int)
        assert isinstance(line["tid"], int)
        kinds = {"ioctl", "leaf", "aex", "call", "cpuid"} & set(line)
        assert len(kinds) == 1, line
        fields = {
            "ioctl": {"ioctl", "result", "seconds"},
            "leaf": {"leaf", "rbx"},
            "aex": {"aex"},
            "call": {"call", "errno", "reason"},
            "cpuid": {"cpuid", "subleaf"},
        }[kinds.pop()]
        assert fields <= set(line) - {"time", "pid", "tid"}, line


def test_a_trace_tells_every_ioctl_in_order(trace: list[dict[str, Any]]) -> None:
    ioctls = [line for line in trace if "ioctl" in line]
    names = [line["ioctl"].removeprefix("SGX_IOC_ENCLAVE_") for line in ioctls]
    assert names == ["CREATE", "CREATE", *["ADD_PAGES"] * (len(names) - 4), "INIT", "INIT"]
    assert [line["result"] for line in ioctls if "reason" not in line] == [0] * (len(names) - 2)


def test_a_refusal_has_its_errno_and_its_reason(trace: list[dict[str, Any]]) -> None:
    refused = [line for line in trace if line.get("result", 0) < 0]
    assert [(line["ioctl"][16:], line["errno"]) for line in refused] == [
        ("CREATE", "EINVAL"),
        ("INIT", "EPERM"),
    ]
    for line in refused:
        assert line["result"] == -getattr(errno, line["errno"])
        assert len(line["reason"].split()) > 2
    (call,) = [line for line in trace if "call" in line]
    assert (call["call"], call["errno"]) == ("mprotect", "EACCES")
    assert len(call["reason"].split()) > 2


def test_a_trace_tells_leaves_and_exits(trace: list[dict[str, Any]]) -> None:
    told = [line for line in trace if "leaf" in line or "aex" in line]
    names = [line.get("leaf") or line["aex"] for line in told]
    assert names == ["EENTER", "EEXIT", "EENTER", "#UD", "EENTER"]
    entered, left, again, _, nowhere = told
    assert entered["rbx"] == again["rbx"]
    assert int(entered["rbx"], 16) % 4096 == 0
    assert left["rbx"] != entered["rbx"]
    assert nowhere["fault"] == "#PF"
    assert len(nowhere["reason"].split()) > 2
