# SPDX-License-Identifier: Apache-2.0
"""The counters of enclaves, whatever ends their building or themselves."""

from typing import Any

import pytest

from softsgx.arch.ioctl import SGX_IOC_ENCLAVE_ADD_PAGES
from softsgx.driver.encl_stats import COUNTERS, EnclStats
from softsgx.errors import DriverError


class Heard:
    """An EnclEvents that writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def evicted(self, encl: Any, pages: int) -> None:
        self.told.append(("evicted", encl, pages))

    def reloaded(self, encl: Any, address: int) -> None:
        self.told.append(("reloaded", encl, address))

    def killed(self, encl: Any, reason: str) -> None:
        self.told.append(("killed", encl, reason))

    def backing_fault(self, encl: Any, address: int, reason: str) -> None:
        self.told.append(("backing_fault", encl, address, reason))

    def ended(self, encl: Any) -> None:
        self.told.append(("ended", encl, encl.stats.resident, encl.secs_page is not None))


def in_use(bench: Any) -> int:
    return int(bench.driver.epc.total - bench.free)


def test_an_enclave_holds_its_pages_its_secs_and_its_va_page(bench: Any) -> None:
    encl = bench.build().file.encl
    assert (encl.stats.resident, encl.stats.added) == (6 + 2, 6)
    assert bench.driver.stats.live == {encl: encl.stats}
    assert in_use(bench) == 8


def test_nothing_is_counted_where_nothing_was_added(bench: Any) -> None:
    enclave = bench.build()
    encl = enclave.file.encl
    with pytest.raises(DriverError):
        enclave.create(bench.secs())
    assert bench.refused(enclave.file, SGX_IOC_ENCLAVE_ADD_PAGES, bench.add_argument()) == "EBUSY"
    bad = bench.add_argument(src=0xDEAD_0000, offset=0x8000)
    assert bench.refused(enclave.file, SGX_IOC_ENCLAVE_ADD_PAGES, bad) == "EFAULT"
    assert (encl.stats.resident, encl.stats.added) == (8, 6)


def test_of_an_ended_enclave_the_sums_are_kept(bench: Any) -> None:
    first, second = bench.build(), bench.build()
    first.file.encl.stats.evictions = 3
    second.file.encl.stats.evictions = 4
    first.close()
    assert list(bench.driver.stats.live) == [second.file.encl]
    # Its number is not given again.
    assert (second.file.encl.stats.number, bench.open().encl.stats.number) == (2, 3)
    ended = dict.fromkeys(COUNTERS, 0) | {"added": 6, "evictions": 3}
    assert bench.driver.stats.ended.as_dict() == ended
    assert bench.driver.stats.total().as_dict() == ended | {
        "resident": 8,
        "added": 12,
        "evictions": 7,
    }


def test_a_page_that_is_lost_stays_in_use(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    enclave = bench.build()
    monkeypatch.setattr("softsgx.driver.encl_epc.eremove_pages", lambda *_: (1, 0))
    assert enclave.file.release() > 0
    bench.lost = in_use(bench)
    assert bench.driver.stats.total().resident == bench.lost > 0


def test_the_end_is_told_while_the_counters_still_tell(bench: Any) -> None:
    silent = bench.open()
    heard = bench.driver.events = Heard()
    encl = bench.build().file.encl
    bench.platform.close()
    silent.release()
    assert heard.told == [("ended", encl, 8, True)]


def test_counters_are_added_one_by_one() -> None:
    one, other = EnclStats(), EnclStats()
    for index, name in enumerate(COUNTERS):
        setattr(one, name, index)
        setattr(other, name, 100 * index)
    one.include(other)
    assert list(one.as_dict().values()) == [101 * index for index in range(len(COUNTERS))]
