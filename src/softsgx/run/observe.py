# SPDX-License-Identifier: Apache-2.0
"""What happened in a run: the counters of `--stats` and the lines of `--trace`.

Owns the counters and the trace file. A trace line is one JSON object: an ioctl, a leaf, an
asynchronous exit, or a refusal with its reason in words.
"""

import errno
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import IO, Any

    from softsgx.cpu.transition import Event
    from softsgx.errors import DriverError, Fault
    from softsgx.run.tracee import Tracee

IOCTL_NAMES = {
    0x4008A400: "SGX_IOC_ENCLAVE_CREATE",
    0xC030A401: "SGX_IOC_ENCLAVE_ADD_PAGES",
    0x4008A402: "SGX_IOC_ENCLAVE_INIT",
    0x4008A403: "SGX_IOC_ENCLAVE_PROVISION",
    0xC028A405: "SGX_IOC_ENCLAVE_RESTRICT_PERMISSIONS",
    0xC028A406: "SGX_IOC_ENCLAVE_MODIFY_TYPES",
    0xC018A407: "SGX_IOC_ENCLAVE_REMOVE_PAGES",
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
_CREATE = 0x4008A400
_EENTER, _ERESUME, _EEXIT = 2, 3, 4


class Observer:
    """Counts what happens, and writes it down where asked to."""

    now = staticmethod(time.perf_counter)

    def __init__(self, trace: "IO[str] | None" = None) -> None:
        self._trace = trace
        self._started = self.now()
        self._said: set[str] = set()
        self.enclaves = 0
        self.pages_added = 0
        self.leaves: dict[int, int] = {}
        self.faulted_leaves = 0
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

    def aex(self, tracee: "Tracee", event: "Event") -> None:
        """An asynchronous exit was made."""
        self.exits[event.vector] = self.exits.get(event.vector, 0) + 1
        if self._trace is not None:
            line: dict[str, Any] = {"aex": VECTOR_NAMES.get(event.vector, str(event.vector))}
            if event.vector is not None:
                line["error_code"] = f"{event.error_code:#x}"
                line["address"] = f"{event.address:#x}"
            self._write(tracee, line)

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
        self.enclaves += request == _CREATE and error is None
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

    def warn(self, message: str) -> None:
        """Say something to the user, on standard error."""
        sys.stderr.write(f"softsgx: warning: {message}\n")

    def warn_once(self, subject: str, message: str) -> None:
        """Say something that a tree of a thousand programs would repeat: once a run."""
        if subject not in self._said:
            self._said.add(subject)
            self.warn(message)

    def internal_error(self, tid: int) -> None:
        """The supervisor failed at a stop or call of this thread."""
        import traceback  # noqa: PLC0415  (never needed, we hope)

        self.warn(f"internal error at thread {tid}\n{traceback.format_exc()}")

    def _write(self, tracee: "Tracee", line: "dict[str, Any]") -> None:
        if self._trace is None:
            return
        import json  # noqa: PLC0415  (only a traced run needs it)

        head = {"time": round(self.now() - self._started, 6), "pid": tracee.process.pid}
        self._trace.write(json.dumps({**head, "tid": tracee.tid, **line}) + "\n")

    def report(self) -> str:
        """Describe the run for a reader."""
        enters = self.leaves.get(_EENTER, 0)
        resumes = self.leaves.get(_ERESUME, 0)
        vectors = ", ".join(
            f"{VECTOR_NAMES.get(vector, vector)} {count}"
            for vector, count in sorted(self.exits.items(), key=lambda item: item[0] or -1)
        )
        ioctls = ", ".join(
            f"{name.removeprefix('SGX_IOC_ENCLAVE_')} {count}"
            for name, count in self.ioctls.items()
        )
        rows = [
            ("enclaves", f"{self.enclaves}"),
            ("pages added", f"{self.pages_added}"),
            ("ioctls", (ioctls or "none") + f"  ({self.refusals} refused)" * bool(self.refusals)),
            ("EENTER", f"{enters}"),
            ("EEXIT", f"{self.leaves.get(_EEXIT, 0)}"),
            ("AEX", f"{sum(self.exits.values())}" + (f"  ({vectors})" if vectors else "")),
            ("ERESUME", f"{resumes}"),
            ("leaves faulted", f"{self.faulted_leaves}"),
            ("CPUID answered", f"{self.cpuids}"),
            (
                "CPUID unproven",
                ", ".join(f"{path} ({count})" for path, count in self.unproven.items()) or "none",
            ),
            ("path calls", f"{self.path_calls} asked"),
            ("processes", f"{self.processes}"),
            ("time in ioctls", f"{self.ioctl_seconds:.3f} s"),
            ("time in all", f"{self.now() - self._started:.3f} s"),
        ]
        lines = ["softsgx (software, for testing; not secure):"]
        lines += [f"  {name:<15}{value}" for name, value in rows]
        return "\n".join(lines) + "\n"
