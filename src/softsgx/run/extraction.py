# SPDX-License-Identifier: Apache-2.0
"""The enclaves that the programs of a run build, written as SGXS while they are built; the driver's BuildEvents.

Owns the stream of each enclave that is being built: a file that has no name until EINIT gives it one, MRENCLAVE; of
an enclave that never comes so far nothing is left. What is written is what EADD has put into the EPC, read before
the caller goes on; and it is hashed as it is written, so that no file has the name of another enclave. Used by
the supervisor's one thread.
"""

import json
import os
import sys
from typing import IO, TYPE_CHECKING, Any

from softsgx.arch.secinfo import (
    EEXTEND_SIZE,
    PAGE_SIZE,
    SECINFO_PAGE_TYPE,
    SECINFO_RWX,
    SECINFO_TCS,
)
from softsgx.arch.structures import Sigstruct
from softsgx.errors import SoftsgxError
from softsgx.image.measurement import Measurement
from softsgx.image.output import Output
from softsgx.image.sgxs import EADD, ECREATE, Eadd, Ecreate, page_blocks

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from softsgx.cpu.secs import SecsPage
    from softsgx.driver.encl import Encl

_ALL_CHUNKS = 0xFFFF
# So many pages are read at a time.
_PIECE = 256
_ZEROS = bytes(PAGE_SIZE)


class _Build:
    """An enclave that is being built, and the file that takes it; none is left once it is kept or given up."""

    def __init__(self, encl: "Encl", pid: int) -> None:
        self.pid = pid
        self.base = encl.base
        self.size = encl.size
        self.pages = 0
        self.measurement = Measurement()
        self.output: Output | None = None
        # The last page that came alone: where in the file it is, its offset in the enclave, FLAGS, contents.
        self._alone = (0, 0, 0, b"")

    @property
    def file(self) -> "IO[bytes] | None":
        """Return what takes the stream, until it is kept or given up."""
        return None if self.output is None else self.output.file

    def open(self, directory: str, ssaframesize: int) -> None:
        """Begin the file; OSError."""
        self.output = Output(directory)
        self.output.file.write(Ecreate(ECREATE, ssaframesize, self.size).encode())
        self.measurement.ecreate(ssaframesize, self.size)

    def add(self, file: IO[bytes], offset: int, flags: int, data: bytes, measured: bool) -> None:
        """Write pages that follow each other; OSError."""
        count = len(data) // PAGE_SIZE
        if count == 1:
            self._alone = file.tell(), offset, flags, data
        self.pages += count
        view = memoryview(data)
        blocks = b"".join(
            [
                _blocks(offset + at, flags, view[at : at + PAGE_SIZE], measured)
                for at in range(0, len(data), PAGE_SIZE)
            ]
        )
        if measured:
            self.measurement.add_stream(blocks)
        else:
            self.measurement.add_unmeasured(offset, flags, count)
        file.write(blocks)

    def extend(self, file: IO[bytes], offset: int, mrmask: int) -> None:
        """Write anew the page that came alone, of which some is measured after all; OSError."""
        start, last, flags, data = self._alone
        if last != offset or not data:
            raise ValueError(f"page {offset:#x} is not the one that was added last")
        file.seek(start)
        file.write(page_blocks(offset, flags, data, mrmask))
        for chunk in range(0, PAGE_SIZE, EEXTEND_SIZE):
            if mrmask >> chunk // EEXTEND_SIZE & 1:
                self.measurement.eextend(offset + chunk, data[chunk : chunk + EEXTEND_SIZE])

    def discard(self) -> None:
        """Leave nothing."""
        output, self.output = self.output, None
        if output is not None:
            output.discard()

    def as_object(self) -> "dict[str, Any]":
        """Return what tells it from others."""
        return {
            "pid": self.pid,
            "base": f"{self.base:#x}",
            "size": self.size,
            "pages": self.pages,
        }

    def __str__(self) -> str:
        return f"the enclave of process {self.pid} at {self.base:#x} ({self.pages} pages added)"


def _blocks(offset: int, flags: int, page: memoryview, measured: bool) -> bytes:
    # As `softsgx convert` has it: a page without contents is one of zeros.
    if not measured and page == _ZEROS:
        return Eadd(EADD, offset, flags).encode()
    return page_blocks(offset, flags, page, _ALL_CHUNKS if measured else 0)


class Extraction:
    """Writes each enclave that is initialised to a directory; SoftsgxError where that cannot be.

    ``summary`` takes one JSON object at the end. ``openers`` tells which process an enclave belongs to.
    """

    def __init__(self, directory: str, summary: IO[str] | None = None) -> None:
        self._directory = directory
        self._summary = summary
        self.openers: Mapping[Encl, int] = {}
        self._builds: dict[Encl, _Build] = {}
        self._written: dict[str, dict[str, Any]] = {}
        self._unfinished: list[dict[str, Any]] = []
        self._failed: list[dict[str, Any]] = []
        try:
            os.makedirs(directory, exist_ok=True)
        except OSError as error:
            raise SoftsgxError(f"--out {directory}: {error.strerror}") from error
        if not os.access(directory, os.W_OK | os.X_OK):
            raise SoftsgxError(f"--out {directory}: no file can be made in it")

    # -- what the driver tells ----------------------------------------------------------------

    def added(
        self, encl: "Encl", address: int, count: int, secinfo_flags: int, measured: bool
    ) -> None:
        """Write pages that EADD has added."""
        build = self._build_of(encl)
        if build.file is None:
            return
        is_tcs = secinfo_flags & SECINFO_PAGE_TYPE == SECINFO_TCS
        # As EADD measures it.
        flags = secinfo_flags & ~SECINFO_RWX if is_tcs else secinfo_flags
        pieces = _threads(encl, address, count) if is_tcs else _regular(encl, address, count)
        try:
            for at, data in pieces:
                build.add(build.file, at - encl.base, flags, data, measured)
        except OSError as error:
            self._fail(build, f"{self._directory}: {error.strerror}")

    def extended(self, encl: "Encl", address: int, mrmask: int) -> None:
        """Write what EEXTEND has measured of the page that was added last."""
        build = self._build_of(encl)
        if build.file is None:
            return
        try:
            build.extend(build.file, address - encl.base, mrmask)
        except OSError as error:
            self._fail(build, f"{self._directory}: {error.strerror}")

    def initialized(self, encl: "Encl", sigstruct: bytes) -> None:
        """Give the files their names: MRENCLAVE."""
        build = self._build_of(encl)
        if build.output is None:
            return
        mrenclave = _secs(encl).mrenclave
        if build.measurement.digest() != mrenclave:
            self._fail(build, f"what was written of it is not what was measured, {mrenclave.hex()}")
            return
        known = self._written.get(mrenclave.hex())
        if known is not None:
            known["times"] += 1
            build.discard()
            return
        try:
            self._keep(build, build.output, mrenclave.hex(), sigstruct)
        except OSError as error:
            self._fail(build, f"{self._directory}: {error.strerror}")

    def released(self, encl: "Encl") -> None:
        """Leave nothing of an enclave that was never initialised, and name it."""
        build = self._builds.pop(encl, None)
        if build is not None:
            self._end(build)
        elif encl.created:
            # Not so much as a page was added.
            self._name(_Build(encl, self.openers.get(encl, 0)))

    # -- the end ------------------------------------------------------------------------------

    def close(self) -> None:
        """Leave nothing of the enclaves that were being built."""
        while self._builds:
            self._end(self._builds.popitem()[1])

    def tell(self) -> None:
        """Say what was written, after a run."""
        for written in self._written.values():
            times = f", {written['times']} times" if written["times"] > 1 else ""
            _say(f"{written['sgxs']}: {written['pages']} pages, {written['size']:#x} bytes{times}")
        if not self._written:
            _say("no enclave was initialised, nothing is written")
        if self._summary is not None:
            self._summarise(self._summary)

    def _summarise(self, summary: IO[str]) -> None:
        from softsgx import __version__  # noqa: PLC0415

        told = {
            "softsgx": __version__,
            "enclaves": list(self._written.values()),
            "not_initialised": self._unfinished,
            "failed": self._failed,
        }
        try:
            with summary:
                summary.write(json.dumps(told, indent=2) + "\n")
        except OSError as error:
            _say(f"warning: --json {summary.name}: {error.strerror}")

    # -- files --------------------------------------------------------------------------------

    def _build_of(self, encl: "Encl") -> _Build:
        build = self._builds.get(encl)
        if build is None:
            build = self._builds[encl] = _Build(encl, self.openers.get(encl, 0))
            try:
                build.open(self._directory, _secs(encl).ssaframesize)
            except OSError as error:
                self._fail(build, f"{self._directory}: {error.strerror}")
        return build

    def _keep(self, build: _Build, stream: Output, mrenclave: str, sigstruct: bytes) -> None:
        names = [f"{self._directory}/{mrenclave}.{kind}" for kind in ("sigstruct", "sgxs")]
        signed = Output(self._directory)
        try:
            signed.file.write(sigstruct)
            # Before either has a name: there may be no room for it.
            stream.file.flush()
            signed.keep(names[0])
        finally:
            signed.discard()
        stream.keep(names[1])
        build.output = None
        from softsgx.driver.launch import signer_hash  # noqa: PLC0415  (loaded by now)

        self._written[mrenclave] = {
            "mrenclave": mrenclave,
            "mrsigner": signer_hash(Sigstruct.decode(sigstruct).modulus).hex(),
            "sigstruct": names[0],
            "sgxs": names[1],
            "times": 1,
            **build.as_object(),
        }

    def _end(self, build: _Build) -> None:
        # One without a file was kept, or given up and named then.
        if build.file is not None:
            build.discard()
            self._name(build)

    def _name(self, build: _Build) -> None:
        self._unfinished.append(build.as_object())
        _say(f"{build} was never initialised, nothing of it is written")

    def _fail(self, build: _Build, reason: str) -> None:
        build.discard()
        self._failed.append({**build.as_object(), "reason": reason})
        _say(f"warning: {build} is not written: {reason}")


def _secs(encl: "Encl") -> "SecsPage":
    return encl.cpu.enclaves[encl.created_secs()]


def _regular(encl: "Encl", address: int, count: int) -> "Iterator[tuple[int, bytes]]":
    end = address + count * PAGE_SIZE
    for start in range(address, end, _PIECE * PAGE_SIZE):
        yield start, encl.elrange.read(start, min(_PIECE * PAGE_SIZE, end - start))


def _threads(encl: "Encl", address: int, count: int) -> "Iterator[tuple[int, bytes]]":
    # What a TCS holds lies in the EPC only.
    for start in range(address, address + count * PAGE_SIZE, PAGE_SIZE):
        page = encl.translate(start)
        if page is None:
            raise ValueError(f"the TCS at {start:#x} is not resident, though it was just added")
        yield start, bytes(encl.cpu.epc.contents[page])


def _say(message: str) -> None:
    sys.stderr.write(f"softsgx: {message}\n")
