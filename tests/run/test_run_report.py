# SPDX-License-Identifier: Apache-2.0
"""What `--stats` and `--stats-json` say at the end, and what `--trace` says of enclaves' pages."""

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from softsgx.arch.secinfo import SECINFO_R, SECINFO_REG
from softsgx.arch.structures import Secs
from softsgx.driver.encl_stats import COUNTERS
from softsgx.driver.platform import Platform
from softsgx.driver.state import State
from softsgx.run.observe import Observer
from softsgx.run.report import Report, amount

if TYPE_CHECKING:
    from conftest import Harness

live = pytest.mark.live

PAGE = 4096
EPC_PAGES = 512


def summed(report: dict[str, Any], name: str) -> int:
    return sum(row[name] for row in [*report["largest_enclaves"], report["other_enclaves"]])


# -- a real run ---------------------------------------------------------------------------------


@live
def test_the_object_and_the_text_say_the_same(softsgx: "Harness", tmp_path: Path) -> None:
    path = tmp_path / "stats.json"
    path.write_text("what was there before\n")
    options = ("--stats", "--stats-json", path, "--epc", f"{EPC_PAGES * 4}K")
    ended = softsgx.run(softsgx.program("counted"), *softsgx.enclave(), options=options)
    assert ended.status == 0, ended
    said = {
        name: int(number)
        for name, number in re.findall(r"^(pages|enclaves) (\d+)$", ended.out, re.MULTILINE)
    }
    report = json.loads(path.read_text())
    assert (report["enclaves"], report["added"]) == (said["enclaves"], said["pages"])
    assert summed(report, "pages") == summed(report, "added") == said["pages"]
    assert report["epc_pages"] == EPC_PAGES
    # SECS and VA page; three threads have an enclave each at a time.
    largest = report["largest_enclaves"][0]
    assert largest["resident"] == largest["pages"] + 2
    assert largest["resident"] <= report["epc_pages_peak"] <= 3 * largest["resident"]
    assert "software" in report["warning"]
    assert len(report["largest_enclaves"]) == said["enclaves"] == 19
    rows = re.findall(r"^  process (\d+) +(0x\w+) +\w+ +(\d+) +(\d+)", ended.err, re.MULTILINE)
    assert [(int(pid), base, int(pages), int(resident)) for pid, base, pages, resident in rows] == [
        (row["pids"][0], row["base"], row["pages"], row["resident"])
        for row in report["largest_enclaves"]
    ]


@live
def test_of_many_enclaves_the_largest_are_told(softsgx: "Harness", tmp_path: Path) -> None:
    path = tmp_path / "stats.json"
    options = ("--epc", "1M", "--stats-json", path)
    softsgx.checked("full_again", "256", "60", options=options)
    report = json.loads(path.read_text())
    assert report["enclaves"] == 60 + 20
    assert len(report["largest_enclaves"]) == 20
    assert report["other_enclaves"]["enclaves"] == 60
    assert summed(report, "added") == report["added"] == 80 * 254
    assert report["epc_pages_peak"] == 256


@live
def test_a_trace_tells_all_that_is_counted(softsgx: "Harness", tmp_path: Path) -> None:
    path, trace = tmp_path / "stats.json", tmp_path / "trace"
    heap = EPC_PAGES * PAGE * 2
    program = [softsgx.program("pressure"), *softsgx.enclave(heap=heap), str(heap), "walk"]
    epc = f"{EPC_PAGES * 4}K"
    options = ("--epc", epc, "--stats", "--stats-json", path, "--trace", trace)
    ended = softsgx.run(*program, options=options)
    assert ended.status == 0, ended
    report = json.loads(path.read_text())
    lines = [json.loads(line) for line in trace.read_text().splitlines()]
    evicted = [line for line in lines if "evicted" in line]
    reloaded = [line for line in lines if "reloaded" in line]
    assert sum(line["evicted"] for line in evicted) == report["evictions"] > EPC_PAGES
    assert len(reloaded) == report["reloads"] > EPC_PAGES
    (enclave,) = report["largest_enclaves"]
    base = int(enclave["base"], 16)
    for line in evicted + reloaded:
        assert (line["enclave"], [line["pid"]]) == (enclave["base"], enclave["pids"])
    # The SECS stands behind the last page.
    assert all(0 <= int(r["reloaded"], 16) - base <= enclave["size"] for r in reloaded)
    assert report["epc_pages_peak"] <= EPC_PAGES
    assert re.search(rf"^  evictions +{report['evictions']}$", ended.err, re.MULTILINE)
    assert re.search(rf"^  reloads +{report['reloads']}$", ended.err, re.MULTILINE)


@live
def test_a_run_without_sgx_has_a_report_too(softsgx: "Harness", tmp_path: Path) -> None:
    path = tmp_path / "stats.json"
    assert tuple(softsgx.run("true", options=(f"--stats-json={path}",))) == (0, "", "")
    report = json.loads(path.read_text())
    assert report["epc_pages"] == 128 << 20 >> 12
    assert (report["enclaves"], report["epc_pages_peak"], report["resident"]) == (0, 0, 0)
    assert report["processes"] == 1


@live
def test_a_report_that_cannot_be_written_does_not_change_the_status(softsgx: "Harness") -> None:
    ended = softsgx.run("sh", "-c", "exit 3", options=("--stats-json", "/dev/full"))
    assert ended.status == 3
    assert ended.err.startswith("softsgx: warning: --stats-json /dev/full: ")
    assert ended.err.count("\n") == 1


# -- what the driver tells ------------------------------------------------------------------------


@pytest.fixture
def platform() -> Iterator[Platform]:
    with Platform(epc=EPC_PAGES * PAGE, state=State.temporary()) as platform:
        yield platform


def build(platform: Platform, observer: Observer, pages: int, pid: int) -> Any:
    enclave = platform.open_enclave()
    secs = Secs.blank().replace(
        size=0x10_0000, baseaddr=0x10_0000, ssaframesize=1, attributes=4, xfrm=3
    )
    enclave.create(secs.encode())
    enclave.add_pages(0, bytes(pages * PAGE), SECINFO_REG | SECINFO_R)
    observer.openers[enclave.file.encl] = pid
    return enclave


def test_the_pages_of_enclaves_are_told_as_they_were(platform: Platform) -> None:
    observer = Observer(report=True)
    observer.observe(platform.driver)
    ended, left = build(platform, observer, 3, 41), build(platform, observer, 5, 42)
    platform.open_enclave()
    for number, name in enumerate(COUNTERS):
        if name not in ("resident", "added"):
            setattr(ended.file.encl.stats, name, 10 + number)
            setattr(left.file.encl.stats, name, 20 + number)
    ended.close()
    report = Report(observer, EPC_PAGES).as_object()
    first, second = report["largest_enclaves"]
    assert (first["pids"], first["pages"], first["resident"], first["reloads"]) == ([42], 5, 7, 24)
    assert (second["pids"], second["pages"], second["resident"], second["reloads"]) == (
        [41],
        3,
        5,
        14,
    )
    assert (first["base"], first["size"]) == ("0x100000", 0x10_0000)
    # What has ended is not resident any more, but was added, and evicted.
    assert (report["resident"], report["added"], report["evictions"]) == (7, 8, 13 + 23)
    assert report["epc_pages_peak"] == 12
    assert (report["backing_bytes"], report["kills"]) == (17 + 27, 15 + 25)
    text = Report(observer, EPC_PAGES).as_text()
    assert re.search(r"^  EPC +512 pages, 12 resident at the peak$", text, re.MULTILINE)
    assert re.search(r"^  process 41 .* 3 +5 +13 +14  killed$", text, re.MULTILINE)


def test_without_a_report_ended_enclaves_are_forgotten(platform: Platform) -> None:
    observer = Observer()
    observer.observe(platform.driver)
    build(platform, observer, 3, 41).close()
    assert observer.seen is None
    assert observer.openers == {}


def test_a_trace_tells_what_happens_to_pages(
    platform: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = io.StringIO()
    observer = Observer(trace)
    observer.observe(platform.driver)
    encl = build(platform, observer, 3, 41).file.encl
    assert encl.events is observer
    encl.events.evicted(encl, 16)
    encl.events.reloaded(encl, 0x10_2000)
    encl.events.backing_fault(encl, 0x10_1000, "why it failed")
    encl.events.killed(encl, "why it was killed")
    encl.events.killed(encl, "another one")
    lines = [json.loads(line) for line in trace.getvalue().splitlines()]
    assert all(line.pop("time") >= 0 for line in lines)
    of = {"pid": 41, "enclave": "0x100000"}
    assert lines == [
        {**of, "evicted": 16},
        {**of, "reloaded": "0x102000"},
        {**of, "backing_fault": "0x101000", "reason": "why it failed"},
        {**of, "killed": True, "reason": "why it was killed"},
        {**of, "killed": True, "reason": "another one"},
    ]
    # The program sees no more than a signal: its user is told why, once.
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "why it was killed" in err


def test_without_a_trace_nothing_is_written(platform: Platform) -> None:
    observer = Observer()
    observer.observe(platform.driver)
    encl = build(platform, observer, 1, 41).file.encl
    observer._write_line = pytest.fail  # type: ignore[method-assign]
    observer.evicted(encl, 1)
    observer.reloaded(encl, 0x10_0000)
    observer.backing_fault(encl, 0x10_0000, "why")


@pytest.mark.parametrize("request_", [0x4008A400, 0x4010A400, 0x4008A402])
def test_every_way_to_create_is_an_enclave(request_: int) -> None:
    observer = Observer()
    for result in (0, -22):
        observer.ioctl(None, request_, result, None, observer.now())  # type: ignore[arg-type]
    assert observer.enclaves == (request_ & 0xFF == 0)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0"), (4096, "4K"), (128 << 20, "128M"), (1 << 47, "128T"), (5 << 19, "2.5M")],
)
def test_an_amount_is_written_as_epc_takes_it(size: int, text: str) -> None:
    assert amount(size) == text
