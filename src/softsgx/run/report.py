# SPDX-License-Identifier: Apache-2.0
"""What a run says at its end, `--stats` for a reader and `--stats-json` for a machine, and meanwhile.

Owns the list of the largest enclaves, which is as long as a reader can use, however many there were.
"""

import os

from softsgx.driver.encl_stats import COUNTERS, EnclStats
from softsgx.run.observe import VECTOR_NAMES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from softsgx.driver.encl import Encl
    from softsgx.run.observe import Observer

MARK = "software, for testing; not secure"
_REPORTED = 20
# A snapshot is sent at once, so it has an end: some 500 bytes an enclave.
_SHOWN = 100
_PIDS_SHOWN = 16
_COMMAND_SHOWN = 1000
_EENTER, _ERESUME, _EEXIT = 2, 3, 4


def enclave_object(encl: "Encl", pids: "list[int]") -> "dict[str, Any]":
    """Describe an enclave that was created; `pids` are the processes that have it."""
    return {
        "number": encl.stats.number,
        "pids": pids,
        "base": f"{encl.base:#x}",
        "size": encl.size,
        "initialized": encl.initialized,
        "pages": len(encl.page_array),
        **encl.stats.as_dict(),
    }


def amount(size: int) -> str:
    """Write a number of bytes shortly, as `--epc` takes it where it is a whole one."""
    units = iter("KMGTPE")
    unit, value = "", float(size)
    while value >= 1024:
        unit, value = next(units), value / 1024
    return f"{value:.0f}{unit}" if value == int(value) else f"{value:.1f}{unit}"


class LargestEnclaves:
    """The enclaves with most pages, by their objects, and the sum of all others."""

    def __init__(self, most: int = _REPORTED) -> None:
        self._most = most
        self._largest: list[dict[str, Any]] = []
        self.others = dict.fromkeys(("enclaves", "pages", *COUNTERS), 0)

    def enter(self, enclave: "dict[str, Any]") -> None:
        """Take an enclave in."""
        self._largest.append(enclave)
        if len(self._largest) > 2 * self._most:
            self.largest()

    def largest(self) -> "list[dict[str, Any]]":
        """Give the largest, by falling size; the rest goes to the others."""
        self._largest.sort(key=lambda enclave: -int(enclave["pages"]))
        for enclave in self._largest[self._most :]:
            self.others["enclaves"] += 1
            for name in ("pages", *COUNTERS):
                self.others[name] += enclave[name]
        del self._largest[self._most :]
        return self._largest


def snapshot(observer: "Observer", processes: "dict[Encl, set[int]]") -> "dict[str, Any]":
    """Describe a run that goes on; `processes` are those that have an enclave mapped."""
    from softsgx import __version__  # noqa: PLC0415  (few runs are asked)

    driver = observer.driver
    if driver is None:
        raise ValueError("a run is asked when it has a driver")
    enclaves = LargestEnclaves(_SHOWN)
    for encl in driver.stats.live:
        if encl.created:
            pids = sorted(processes.get(encl) or {observer.openers.get(encl, 0)} - {0})
            enclaves.enter(enclave_object(encl, pids[:_PIDS_SHOWN]))
    return {
        "softsgx": __version__,
        "warning": MARK,
        "pid": os.getpid(),
        "command": _shortened(observer.command),
        "started": round(observer.began, 3),
        "seconds": round(observer.now() - observer.started, 6),
        "driver": driver.name,
        "epc_pages": driver.epc.total,
        "epc_pages_free": driver.epc.free_pages,
        "epc_pages_peak": driver.epc.total - driver.epc.fewest_free,
        "enclaves": observer.enclaves,
        **driver.stats.total().as_dict(),
        "processes": observer.processes,
        "largest_enclaves": enclaves.largest(),
        "other_enclaves": enclaves.others,
    }


def _shortened(command: "Sequence[str]") -> list[str]:
    words: list[str] = []
    left = _COMMAND_SHOWN
    for word in command:
        if len(word) > left:
            return [*words, word[:left] + "..."]
        words.append(word)
        # An empty word takes room too.
        left -= len(word) + 1
    return words


def _transitions(trapped: int, fast: int) -> str:
    return f"{trapped + fast}" + f"  ({fast} without a trap, {trapped} trapped)" * bool(fast)


class Report:
    """Says what an observer has seen."""

    def __init__(self, observer: "Observer", epc_pages: int) -> None:
        self._observer = observer
        self._epc_pages = epc_pages
        self._seconds = observer.now() - observer.started
        self._peak = 0
        self._total = EnclStats()
        self._enclaves = LargestEnclaves() if observer.seen is None else observer.seen
        driver = observer.driver
        if driver is not None:
            self._peak = driver.epc.total - driver.epc.fewest_free
            self._total = driver.stats.total()
            for encl in driver.stats.live:
                if encl.created:
                    pids = [observer.openers[encl]] if encl in observer.openers else []
                    self._enclaves.enter(enclave_object(encl, pids))

    def as_object(self) -> "dict[str, Any]":
        """Give everything as one object of JSON."""
        from softsgx import __version__  # noqa: PLC0415  (not needed for the text)

        seen = self._observer
        return {
            "softsgx": __version__,
            "warning": MARK,
            "epc_pages": self._epc_pages,
            "epc_pages_peak": self._peak,
            "enclaves": seen.enclaves,
            **self._total.as_dict(),
            "ioctls": seen.ioctls,
            "refused": seen.refusals,
            "eenter": seen.leaves.get(_EENTER, 0) + seen.entered,
            "eenter_fast": seen.entered,
            "eexit": seen.leaves.get(_EEXIT, 0) + seen.left,
            "eexit_fast": seen.left,
            "slow_because": seen.slow_because,
            "eresume": seen.leaves.get(_ERESUME, 0),
            "aex": {VECTOR_NAMES.get(v, str(v)): count for v, count in seen.exits.items()},
            "leaves_faulted": seen.faulted_leaves,
            "cpuid_answered": seen.cpuids,
            "cpuid_unproven": seen.unproven,
            "path_calls": seen.path_calls,
            "processes": seen.processes,
            "seconds_in_ioctls": round(seen.ioctl_seconds, 6),
            "seconds": round(self._seconds, 6),
            "largest_enclaves": self._enclaves.largest(),
            "other_enclaves": self._enclaves.others,
        }

    def as_text(self) -> str:
        """Describe the run for a reader."""
        lines = [f"softsgx ({MARK}):"]
        lines += [f"  {name:<15}{value}" for name, value in self._rows()]
        return "\n".join([*lines, *self._table()]) + "\n"

    def _rows(self) -> "list[tuple[str, str]]":
        seen, total = self._observer, self._total
        vectors = ", ".join(
            f"{VECTOR_NAMES.get(vector, vector)} {count}"
            for vector, count in sorted(seen.exits.items(), key=lambda item: item[0] or -1)
        )
        ioctls = ", ".join(
            f"{name.removeprefix('SGX_IOC_ENCLAVE_')} {count}"
            for name, count in seen.ioctls.items()
        )
        unproven = ", ".join(f"{path} ({count})" for path, count in seen.unproven.items())
        return [
            ("enclaves", f"{seen.enclaves}"),
            (
                "pages added",
                f"{total.added}" + f"  ({total.augmented} more by EAUG)" * bool(total.augmented),
            ),
            ("EPC", f"{self._epc_pages} pages, {self._peak} resident at the peak"),
            ("evictions", f"{total.evictions}"),
            ("reloads", f"{total.reloads}"),
            ("kills", f"{total.kills}"),
            ("backing", f"{total.backing_bytes} bytes, {total.backing_faults} faults"),
            ("ioctls", (ioctls or "none") + f"  ({seen.refusals} refused)" * bool(seen.refusals)),
            ("EENTER", _transitions(seen.leaves.get(_EENTER, 0), seen.entered)),
            ("EEXIT", _transitions(seen.leaves.get(_EEXIT, 0), seen.left)),
            *(("slow because", f"{why} ({count})") for why, count in seen.slow_because.items()),
            ("AEX", f"{sum(seen.exits.values())}" + (f"  ({vectors})" if vectors else "")),
            ("ERESUME", f"{seen.leaves.get(_ERESUME, 0)}"),
            ("leaves faulted", f"{seen.faulted_leaves}"),
            ("CPUID answered", f"{seen.cpuids}"),
            ("CPUID unproven", unproven or "none"),
            ("path calls", f"{seen.path_calls} asked"),
            ("processes", f"{seen.processes}"),
            ("time in ioctls", f"{seen.ioctl_seconds:.3f} s"),
            ("time in all", f"{self._seconds:.3f} s"),
        ]

    def _table(self) -> "list[str]":
        columns = ("pages", "resident", "evictions", "reloads")
        enclaves = self._enclaves.largest()
        if not enclaves:
            return []
        heads = "".join(f"{name:>11}" for name in columns)
        lines = [f"  enclave of     {'base':>14}{'size':>8}{heads}"]
        for enclave in enclaves:
            of = f"process {enclave['pids'][0]}" if enclave["pids"] else ""
            place = f"{enclave['base']:>14}{amount(enclave['size']):>8}"
            counts = "".join(f"{enclave[name]:>11}" for name in columns)
            killed = "  killed" if enclave["kills"] else ""
            lines.append(f"  {of:<15}{place}{counts}{killed}")
        if self._enclaves.others["enclaves"]:
            of = f"{self._enclaves.others['enclaves']} others"
            counts = "".join(f"{self._enclaves.others[name]:>11}" for name in columns)
            lines.append(f"  {of:<15}{'':>22}{counts}")
        return lines
