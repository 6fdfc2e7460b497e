# SPDX-License-Identifier: Apache-2.0
"""An enclave as its memory and a ledger of it, for people and tools that read or change pages.

The memory is a flat file, in which each page lies at its offset in the enclave; pages of zeros are holes. The ledger has
one JSON object a line, the first for the enclave, and one for each step of the loader, in its order:

    {"softsgx": "pages", "version": 1, "size": 65536, "ssaframesize": 1, "memory": "enclave.pages.bin"}
    {"offset": 4096, "length": 8192, "secinfo_flags": 517, "measured": true, "zeros": false, "name": ".text"}
    {"offset": 4352, "length": 256}

A line without secinfo_flags is EEXTEND alone, of chunks of a page that is there. Of pages whose ``zeros`` is true the memory
is not looked at. The memory lies beside the ledger.
"""

from __future__ import annotations

import json
import os
from array import array
from bisect import bisect_right
from itertools import pairwise
from typing import IO, Any

from softsgx.arch.secinfo import EEXTEND_SIZE, PAGE_SIZE
from softsgx.errors import SoftsgxError
from softsgx.image.enclave import Enclave
from softsgx.image.file import File
from softsgx.image.stream import (
    MAXIMUM_SIZE,
    MINIMUM_SIZE,
    Chunks,
    Fill,
    Image,
    PageRun,
    added_flags,
)

FORMAT = "pages"

_VERSION = 1
_AT_ONCE = 1 << 16
_HEAD: dict[str, type[Any]] = {
    "softsgx": str,
    "version": int,
    "size": int,
    "ssaframesize": int,
    "memory": str,
}
_ADDED: dict[str, type[Any]] = {
    "offset": int,
    "length": int,
    "secinfo_flags": int,
    "measured": bool,
    "zeros": bool,
    "name": str,
}
_EXTENDED: dict[str, type[Any]] = {"offset": int, "length": int}


def read(file: File, memory: File | None = None) -> tuple[Enclave, ...]:
    """Read the enclave of a ledger; its memory lies beside it unless it is given."""
    lines = _Lines(file)
    head = next(lines)
    _check_keys(file, 0, head, _HEAD)
    if head["version"] != _VERSION:
        file.damaged(0, f"a ledger of version {head['version']}, not {_VERSION}")
    size = head["size"]
    if size.bit_count() != 1 or not MINIMUM_SIZE <= size <= MAXIMUM_SIZE:
        file.damaged(0, f"SIZE is {size:#x}, not a power of two from 8 KiB on")
    if not 1 <= head["ssaframesize"] < 1 << 32:
        file.damaged(0, f"SSAFRAMESIZE is {head['ssaframesize']}")
    if memory is None:
        memory = File.open(_beside(file.name, head["memory"]))
    reader = _Reader(file, memory, size)
    image = Image(size, head["ssaframesize"], reader.records(lines))
    return (Enclave(FORMAT, image, fields={"memory": head["memory"]}),)


def write(image: Image, ledger: IO[bytes], memory: IO[bytes], name: str) -> None:
    """Write an image; `name` is the memory's."""
    head = {
        "softsgx": FORMAT,
        "version": _VERSION,
        "size": image.size,
        "ssaframesize": image.ssaframesize,
        "memory": name,
    }
    ledger.write(json.dumps(head).encode() + b"\n")
    for record in image.records:
        line: dict[str, int | bool | str] = {"offset": record.offset}
        if isinstance(record, Chunks):
            line["length"] = len(record.data)
        else:
            line["length"] = record.length
            line["secinfo_flags"] = record.secinfo_flags
            line["measured"] = record.measured
            line["zeros"] = record.data is None and not record.is_tcs
            line["name"] = record.name
            if not line["zeros"]:
                for offset, content in record.pieces():
                    memory.seek(offset)
                    memory.write(content)
        ledger.write(json.dumps(line).encode() + b"\n")


class _Lines:
    """The objects of a file, one a line, and where the last one begins."""

    def __init__(self, file: File) -> None:
        self._file = file
        self._next = 0
        self._window = b""
        self.at = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> dict[str, Any]:
        file, window, self.at = self._file, self._window, self._next
        end = window.find(b"\n") + 1
        if not end and self.at + len(window) < file.size:
            length = min(_AT_ONCE, file.size - self.at)
            window = file.read(self.at, length, "lines of the ledger")
            end = window.find(b"\n") + 1
        if not window:
            raise StopIteration
        if not end and self.at + len(window) < file.size:
            file.damaged(self.at, f"a line of more than {_AT_ONCE} bytes")
        line, self._window = window[: end or None], window[end or len(window) :]
        self._next += len(line)
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            file.damaged(self.at, f"not a line of JSON: {error}")
        if not isinstance(found, dict):
            file.damaged(self.at, "not an object of JSON")
        return found


class _Reader:
    def __init__(self, file: File, memory: File, size: int) -> None:
        self._file = file
        self._memory = memory
        self._size = size
        self._records: list[PageRun | Chunks] = []
        # Where the line of each begins, for what is found out at the end only.
        self._places = array("Q")

    def records(self, lines: _Lines) -> tuple[PageRun | Chunks, ...]:
        for line in lines:
            self._places.append(lines.at)
            self._records.append(
                self._page_run(lines.at, line)
                if "secinfo_flags" in line
                else self._chunks(lines.at, line)
            )
        self._place_chunks()
        return tuple(self._records)

    def _page_run(self, at: int, line: dict[str, Any]) -> PageRun:
        _check_keys(self._file, at, line, _ADDED)
        offset, length, flags = line["offset"], line["length"], line["secinfo_flags"]
        if offset % PAGE_SIZE or length % PAGE_SIZE or not length or offset + length > self._size:
            self._file.damaged(
                at, f"pages at {offset:#x}, {length:#x} bytes: not whole, none, or beyond SIZE"
            )
        measured = added_flags(flags)
        if measured is None:
            self._file.damaged(at, f"SECINFO with FLAGS {flags:#x}: EADD refuses it")
        data = None
        if not line["zeros"]:
            if offset + length > self._memory.size:
                self._memory.damaged(
                    offset,
                    f"pages, {length:#x} bytes, are cut off: the file has {self._memory.size:#x} bytes",
                )
            data = self._memory.part(offset, length)
        return PageRun(offset, length, measured, data, line["measured"], line["name"])

    def _chunks(self, at: int, line: dict[str, Any]) -> Chunks:
        _check_keys(self._file, at, line, _EXTENDED)
        offset, length = line["offset"], line["length"]
        if (
            offset % EEXTEND_SIZE
            or length % EEXTEND_SIZE
            or not 0 < length <= PAGE_SIZE - offset % PAGE_SIZE
        ):
            self._file.damaged(
                at, f"chunks at {offset:#x}, {length:#x} bytes: not whole, none, or of two pages"
            )
        return Chunks(offset, self._memory.part(offset, length))

    def _place_chunks(self) -> None:
        """Refuse what no processor would do."""
        added = sorted(
            (record.offset, record.offset + record.length, number)
            for number, record in enumerate(self._records)
            if isinstance(record, PageRun)
        )
        for (_, end, before), (offset, _, number) in pairwise(added):
            if offset < end:
                self._file.damaged(
                    self._places[max(before, number)], f"the page at {offset:#x} is added twice"
                )
        for number, record in enumerate(self._records):
            if not isinstance(record, Chunks):
                continue
            index = bisect_right(added, record.offset, key=lambda run: run[0]) - 1
            _, end, run = added[index] if index >= 0 else (0, 0, 0)
            if run > number or record.offset >= end:
                self._file.damaged(
                    self._places[number],
                    f"chunk at {record.offset:#x} of a page that is not there yet",
                )
            page = self._records[run]
            if isinstance(page, PageRun) and page.is_tcs:
                self._records[number] = page.chunks(record.offset, len(record.data))
            elif isinstance(page, PageRun) and page.data is None:
                self._records[number] = Chunks(record.offset, Fill(0, len(record.data)))


def _check_keys(file: File, at: int, line: dict[str, Any], keys: dict[str, type[Any]]) -> None:
    if line.keys() != keys.keys():
        file.damaged(at, f"the keys are not {', '.join(keys)}, as they should be")
    for key, kind in keys.items():
        value = line[key]
        # A truth value is a number, too; no number is negative or longer; and a text may get to a terminal.
        if (
            type(value) is not kind
            or (kind is int and not 0 <= value < 1 << 64)
            or (kind is str and not value.isprintable())
        ):
            file.damaged(at, f"{key} is not {_WORDS[kind]}")


_WORDS: dict[type[Any], str] = {
    int: "a number of 64 bits",
    bool: "true or false",
    str: "a printable text",
}


def _beside(path: str, name: str) -> str:
    # Never anywhere else, whoever has written the ledger.
    if not name or os.path.basename(name) != name:  # noqa: PTH119
        raise SoftsgxError(
            f"{path}: offset 0x0: memory is {name!r:.60}, not the name of a file beside it"
        )
    return os.path.join(os.path.dirname(path), name)  # noqa: PTH118, PTH120
