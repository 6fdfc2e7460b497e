# SPDX-License-Identifier: Apache-2.0
"""What happened in a run: the counters of `--stats` and the lines of `--trace`.

Owns the counters and the trace file. A trace line is one JSON object: an ioctl, a leaf, an
asynchronous exit, what happened to an enclave's pages, or a refusal with its reason in words.
"""

import errno
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import IO, Any

    from softsgx.cpu.transition import Event
    from softsgx.driver.driver import Driver
    from softsgx.driver.encl import Encl
    from softsgx.errors import DriverError, Fault
    from softsgx.run.report import LargestEnclaves
    from softsgx.run.tracee import Tracee

IOCTL_NAMES = {
    0x4008A400: "SGX_IOC_ENCLAVE_CREATE",
    0xC030A401: "SGX_IOC_ENCLAVE_ADD_PAGES",
    0x4008A402: "SGX_IOC_ENCLAVE_INIT",
    0x4008A403: "SGX_IOC_ENCLAVE_PROVISION",
    0xC028A405: "SGX_IOC_ENCLAVE_RESTRICT_PERMISSIONS",
    0xC028A406: "SGX_IOC_ENCLAVE_MODIFY_TYPES",
    0xC018A407: "SGX_IOC_ENCLAVE_REMOVE_PAGES",
    0x4040A410: "SGX_IOC_ENCLAVE_SET_BACKING",
    0x4010A400: "SGX_IOC_ENCLAVE_CREATE_BACKING",
    # Of the older drivers.
    0x401AA401: "SGX_IOC_ENCLAVE_ADD_PAGE",
    0x4010A402: "SGX_IOC_ENCLAVE_INIT",
    0x4018A402: "SGX_IOC_ENCLAVE_INIT",
    0x4010A403: "SGX_IOC_ENCLAVE_SET_ATTRIBUTE",
    0x4018A409: "SGX_IOC_ENCLAVE_EMODPR",
    0x4010A40A: "SGX_IOC_ENCLAVE_MKTCS",
    0x4010A40B: "SGX_IOC_ENCLAVE_TRIM",
    0x4010A40C: "SGX_IOC_ENCLAVE_NOTIFY_ACCEPT",
    0x4008A40D: "SGX_IOC_ENCLAVE_PAGE_REMOVE",
}
VECTOR_NAMES = {
    None: "interrupt",
    0: "#DE",
    1: "#DB",
    3: "#BP",
    6: "#UD",
    13: "#GP",
    14: "#PF",
    16: "#MF",
    17: "#AC",
    19: "#XM",
}
_CREATES = (0x4008A400, 0x4010A400)


class Observer:
    """Counts what happens, and writes it down where asked to; the driver's EnclEvents too.

    `command` is what is run. With `report` the enclaves that have ended are remembered.
    """

    now = staticmethod(time.perf_counter)

    def __init__(
        self,
        trace: "IO[str] | None" = None,
        *,
        command: "Sequence[str]" = (),
        report: bool = False,
    ) -> None:
        self._trace = trace
        self._report = report
        self.command = command
        self.began = time.time()
        self.started = self.now()
        self._said: set[str] = set()
        # The pages are counted by the driver, where there is one.
        self.driver: Driver | None = None
        # Which process opened the node of an enclave that has not ended, or mapped an older driver's.
        self.openers: dict[Encl, int] = {}
        self.seen: LargestEnclaves | None = None
        self.enclaves = 0
        self.leaves: dict[int, int] = {}
        self.faulted_leaves = 0
        # Transitions that the program has made itself, in and out; and why others trapped.
        self.entered = self.left = 0
        self.slow_because: dict[str, int] = {}
        self.exits: dict[int | None, int] = {}
        self.ioctls: dict[str, int] = {}
        self.refusals = 0
        self.ioctl_seconds = 0.0
        self.cpuids = 0
        self.unproven: dict[str, int] = {}
        self.path_calls = 0
        self.processes = 0

    # Called once an ecall or more: no work but the count unless a trace is kept.
    def leaf(self, tracee: "Tracee", leaf: int, tcs: int, fault: "Fault | None") -> None:
        """An ENCLU was carried out, or faulted."""
        if fault is None:
            self.leaves[leaf] = self.leaves.get(leaf, 0) + 1
        else:
            self.faulted_leaves += 1
        if self._trace is not None:
            from softsgx.arch.leaves import Enclu  # noqa: PLC0415  (only a traced run needs it)

            name = Enclu(leaf).name if leaf in Enclu._value2member_map_ else f"{leaf:#x}"
            line: dict[str, Any] = {"leaf": name, "rbx": f"{tcs:#x}"}
            if fault is not None:
                line["fault"] = VECTOR_NAMES.get(fault.vector, str(fault.vector))
                line["reason"] = fault.reason
            self._write(tracee, line)

    def slow(self, why: str) -> None:
        """Transitions of a place, a TCS or a thread will trap, and why."""
        self.slow_because[why] = self.slow_because.get(why, 0) + 1

    def aex(self, tracee: "Tracee", event: "Event", rip: int) -> None:  # noqa: ARG002 - for a lint
        """An asynchronous exit was made, by an exception of the instruction at `rip` or at an interrupt there."""
        self.exits[event.vector] = self.exits.get(event.vector, 0) + 1
        if self._trace is not None:
            line: dict[str, Any] = {"aex": VECTOR_NAMES.get(event.vector, str(event.vector))}
            if event.vector is not None:
                line["error_code"] = f"{event.error_code:#x}"
                line["address"] = f"{event.address:#x}"
            self._write(tracee, line)

    def touched(self, tracee: "Tracee", address: int, access: str) -> None:
        """Enclave memory was touched from outside (--isolation strict); the registers are loaded."""
        if self._trace is not None:
            rip = f"{tracee.regs.rip:#x}"
            self._write(tracee, {"touched": f"{address:#x}", "access": access, "rip": rip})

    def cpuid(self, tracee: "Tracee", leaf: int, subleaf: int) -> None:
        """A CPUID was answered."""
        self.cpuids += 1
        if self._trace is not None:
            self._write(tracee, {"cpuid": f"{leaf:#x}", "subleaf": f"{subleaf:#x}"})

    def cpuid_unproven(self, tracee: "Tracee", path: str, count: int) -> None:
        """A file was mapped whose text holds pairs that may be CPUID, and are left as they are."""
        if self.unproven.get(path, 0) < count:
            self.unproven[path] = count
            self._write(tracee, {"cpuid_unproven": count, "file": path})

    def ioctl(
        self,
        tracee: "Tracee",
        request: int,
        result: int,
        error: "DriverError | None",
        started: float,
    ) -> None:
        """An ioctl was answered."""
        name = IOCTL_NAMES.get(request, f"{request:#x}")
        spent = self.now() - started
        self.ioctls[name] = self.ioctls.get(name, 0) + 1
        self.ioctl_seconds += spent
        self.refusals += error is not None
        self.enclaves += request in _CREATES and not result
        if self._trace is not None:
            line: dict[str, Any] = {"ioctl": name, "result": result, "seconds": round(spent, 6)}
            if error is not None:
                line["errno"] = errno.errorcode.get(error.errno, str(error.errno))
                line["reason"] = error.reason
            self._write(tracee, line)

    def refused(self, tracee: "Tracee", call: str, error: "DriverError") -> None:
        """A mapping call was refused by the driver's rules."""
        self.refusals += 1
        if self._trace is not None:
            code = errno.errorcode.get(error.errno, str(error.errno))
            self._write(tracee, {"call": call, "errno": code, "reason": error.reason})

    # -- what the driver tells (EnclEvents): it happens in no thread's service in particular ----

    def observe(self, driver: "Driver") -> None:
        """Hear from the driver what happens to its enclaves."""
        self.driver = driver
        driver.events = self

    def evicted(self, encl: "Encl", pages: int) -> None:
        """Pages were written to the store, and have left the EPC."""
        if self._trace is not None:
            self._write_of(encl, {"evicted": pages})

    def reloaded(self, encl: "Encl", address: int) -> None:
        """A page is in the EPC again."""
        if self._trace is not None:
            self._write_of(encl, {"reloaded": f"{address:#x}"})

    def killed(self, encl: "Encl", reason: str) -> None:
        """An enclave had to give way."""
        self.warn_once(
            "killed",
            f"the enclave of process {self.openers.get(encl, 0)} at {encl.base:#x} is killed: {reason}",
        )
        if self._trace is not None:
            self._write_of(encl, {"killed": True, "reason": reason})

    def backing_fault(self, encl: "Encl", address: int, reason: str) -> None:
        """The store failed for a page."""
        if self._trace is not None:
            self._write_of(encl, {"backing_fault": f"{address:#x}", "reason": reason})

    def ended(self, encl: "Encl") -> None:
        """An enclave is about to be released."""
        pid = self.openers.pop(encl, 0)
        if self._report and encl.created:
            from softsgx.run.report import LargestEnclaves, enclave_object  # noqa: PLC0415

            self.seen = self.seen or LargestEnclaves()
            self.seen.enter(enclave_object(encl, [pid] if pid else []))

    # -- what is said -----------------------------------------------------------------------

    def warn(self, message: str) -> None:
        """Say something to the user, on standard error."""
        sys.stderr.write(f"softsgx: warning: {message}\n")

    def say(self, message: str) -> None:
        """Say on standard error what is no warning."""
        sys.stderr.write(f"softsgx: {message}\n")

    def warn_once(self, subject: str, message: str) -> None:
        """Say something that a tree of a thousand programs would repeat: once a run."""
        if subject not in self._said:
            self._said.add(subject)
            self.warn(message)

    def internal_error(self, where: str) -> None:
        """The supervisor failed, as at a stop or call of a thread."""
        import traceback  # noqa: PLC0415  (never needed, we hope)

        self.warn(f"internal error {where}\n{traceback.format_exc()}")

    def _write(self, tracee: "Tracee", line: "dict[str, Any]") -> None:
        self._write_line({"pid": tracee.process.pid, "tid": tracee.tid, **line})

    def _write_of(self, encl: "Encl", line: "dict[str, Any]") -> None:
        self._write_line({"pid": self.openers.get(encl, 0), "enclave": f"{encl.base:#x}", **line})

    def _write_line(self, line: "dict[str, Any]") -> None:
        if self._trace is None:
            return
        import json  # noqa: PLC0415  (only a traced run needs it)

        head = {"time": round(self.now() - self.started, 6)}
        self._trace.write(json.dumps({**head, **line}) + "\n")
