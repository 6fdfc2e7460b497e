# SPDX-License-Identifier: Apache-2.0
"""What a run does that a processor with SGX would punish: the observer of `softsgx lint -- PROGRAM`.

Owns the findings, each place of a program once, and copies of the enclaves' code. While the program runs only
addresses and bytes are noted: what they are called, and which instructions they are, is found out at the end.
"""

import errno
import os
import re
import stat
from typing import IO, Any, NamedTuple
from weakref import WeakKeyDictionary

from softsgx.arch.exceptions import VECTOR_GP, VECTOR_UD
from softsgx.arch.leaves import Enclu
from softsgx.driver.reclaim import AGAIN
from softsgx.driver.vma import PROT_EXEC
from softsgx.errors import DriverError, Fault, Misaligned
from softsgx.run import numbers as n
from softsgx.run.gp_instructions import LONGEST
from softsgx.run.observe import IOCTL_NAMES, VECTOR_NAMES, Observer
from softsgx.run.revoke import pause

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from softsgx.cpu.transition import Event
    from softsgx.driver.encl import Encl
    from softsgx.image.code import Code
    from softsgx.run.mm import Mm
    from softsgx.run.tracee import Tracee

_EENTER = Enclu.EENTER.value
_CHUNK = 1 << 20
# It is kept until the end, and then takes a fifth of a second for each MiB.
_MOST_CODE = 64 << 20
_VDSO = "[vdso]"
_NUMBER = re.compile(r"0x[0-9a-f]+|\d+")
_TOUCHES = {
    "read": "a read of enclave memory from outside gives FF",
    "write": "a write to enclave memory from outside is dropped",
    "execute": "enclave code that is called from outside is #UD: the fetch gives FF",
}
_SAME = "the same here"
_REACHES = "here the same with --isolation strict, else it reaches the memory"
_GOES_ON = "here what is outside is executed until its next trap"


class Place(NamedTuple):
    """Where an instruction stands: a file and the offset in it, or an enclave and the offset in that."""

    module: str
    offset: int


def enclave_name(mrenclave: str) -> str:
    """Give what an enclave is called in findings."""
    return f"enclave {mrenclave[:16]}"


class Seen:
    """Something that an instruction has done, the first time and how often."""

    def __init__(
        self, tracee: "Tracee", rule: str, place: Place, rip: int, told: dict[str, Any]
    ) -> None:
        self.rule = rule
        self.place = place
        self.rip = rip
        self.pid, self.tid = tracee.process.pid, tracee.tid
        self.told = told
        self.code = b""
        self.count = 0


class LintObserver(Observer):
    """Collects what is to be told of a run when it has ended."""

    def __init__(self, *, command: "Sequence[str]" = ()) -> None:
        super().__init__(command=command)
        self._seen: dict[tuple[str, ...], Seen] = {}
        # The way of a program that copies a page with a thousand touches.
        self._touched: WeakKeyDictionary[Mm, dict[tuple[int, str], Seen]] = WeakKeyDictionary()
        self._files: dict[str, IO[bytes] | None] = {}
        self._names: dict[Encl, str] = {}
        # By MRENCLAVE; None is one with more code than is looked at.
        self._images: dict[str, Code | None] = {}

    # -- what happens -----------------------------------------------------------------------

    def touched(self, tracee: "Tracee", address: int, access: str) -> None:
        """Note the instruction that has touched enclave memory from outside."""
        super().touched(tracee, address, access)
        rip = tracee.regs.rip
        of_mm = self._touched.setdefault(tracee.mm, {})
        seen = of_mm.get((rip, access))
        if seen is not None:
            seen.count += 1
            return
        told = {
            "touched": f"{address:#x}",
            "access": access,
            "reason": _TOUCHES[access],
            "here": _REACHES,
        }
        of_mm[rip, access] = self._note(tracee, "enclave-touched", rip, (access,), told)

    def leaf(self, tracee: "Tracee", leaf: int, tcs: int, fault: "Fault | None") -> None:
        """Note a leaf that refuses what it is given; look at an enclave that is entered for the first time."""
        super().leaf(tracee, leaf, tcs, fault)
        if fault is None:
            if leaf == _EENTER:
                self._look_at(tracee, tcs)
            return
        rip = tracee.regs.rip
        # A page fault is how a leaf asks for a page, and one from beyond the enclave is an exit's.
        if fault.vector not in (VECTOR_GP, VECTOR_UD) or (
            tracee.inside and self._enclave_at(tracee, rip) is None
        ):
            return
        name = Enclu(leaf).name if leaf in Enclu._value2member_map_ else f"ENCLU {leaf:#x}"
        vector = VECTOR_NAMES[fault.vector]
        reason = f"{name} is {vector}: {fault.reason}"
        told = {"leaf": name, "exception": vector, "reason": reason, "here": _SAME}
        which = name, _NUMBER.sub("", fault.reason)
        self._note(tracee, "leaf-refused", rip, which, told)

    def aex(self, tracee: "Tracee", event: "Event", rip: int) -> None:
        """Note an exception inside that an instruction has only there."""
        super().aex(tracee, event, rip)
        inside = event.vector is not None and self._enclave_at(tracee, rip) is not None
        if event.vector == VECTOR_UD and inside:
            seen = self._note(tracee, "illegal-instruction-executed", rip, (), {"exception": "#UD"})
            seen.code = seen.code or tracee.mm.read(rip, LONGEST)
        elif event.vector == VECTOR_GP and not inside:
            reason = "the enclave went on outside without EEXIT: #GP"
            told = {"exception": "#GP", "reason": reason, "here": _GOES_ON}
            self._note(tracee, "left-without-eexit", rip, (), told)

    def ioctl(
        self,
        tracee: "Tracee",
        request: int,
        result: int,
        error: "DriverError | None",
        started: float,
    ) -> None:
        """Note an ioctl with a misaligned argument, or one that ENCLS has refused."""
        super().ioctl(tracee, request, result, error, started)
        self._argument(tracee, IOCTL_NAMES.get(request, f"ioctl {request:#x}"), error)

    def refused(self, tracee: "Tracee", call: str, error: "DriverError") -> None:
        """Note a mapping call with a misaligned argument."""
        super().refused(tracee, call, error)
        self._argument(tracee, call, error)

    def ended(self, encl: "Encl") -> None:
        """Forget an enclave, but for what was noted."""
        super().ended(encl)
        self._names.pop(encl, None)

    def _argument(self, tracee: "Tracee", call: str, error: "DriverError | None") -> None:
        cause = error.__cause__ if error is not None else None
        by_leaf = isinstance(cause, Fault) and cause.vector == VECTOR_GP
        if error is None or not (by_leaf or isinstance(error, Misaligned)):
            return
        name = errno.errorcode.get(error.errno, str(error.errno))
        reason = f"{call} is {name}: {error.reason}"
        told = {"call": call, "errno": name, "reason": reason, "here": _SAME}
        which = call, _NUMBER.sub("", error.reason)
        self._note(tracee, "argument-refused", tracee.regs.rip, which, told)

    def _note(
        self,
        tracee: "Tracee",
        rule: str,
        rip: int,
        which: tuple[str, ...],
        told: dict[str, Any],
    ) -> Seen:
        """Note what an instruction has done; `which` tells it from other things that it may have done."""
        place = self._place(tracee, rip)
        key = (rule, place.module, str(place.offset), *which)
        seen = self._seen.get(key)
        if seen is None:
            seen = self._seen[key] = Seen(tracee, rule, place, rip, told)
        seen.count += 1
        return seen

    # -- where it happens -------------------------------------------------------------------

    @staticmethod
    def _enclave_at(tracee: "Tracee", address: int) -> "Encl | None":
        enclaves = tracee.mm.enclaves
        vma = enclaves.find(address) if enclaves is not None else None
        return vma.file.encl if vma is not None else None

    def _place(self, tracee: "Tracee", rip: int) -> Place:
        encl = self._enclave_at(tracee, rip)
        if encl is not None:
            return Place(self._names.get(encl, "enclave"), rip - encl.base)
        if rip == tracee.mm.aep:
            # Ours, of which /proc does not know that it stands for the kernel's.
            return Place(_VDSO, rip - tracee.mm.image)
        try:
            with open(f"/proc/{tracee.tid}/maps", encoding="utf-8", errors="replace") as maps:
                for line in maps:
                    span, _, offset, _, _, *path = line.rstrip("\n").split(maxsplit=5)
                    low, _, high = span.partition("-")
                    start = int(low, 16)
                    if start <= rip < int(high, 16):
                        module = path[0] if path else ""
                        self._keep_file(tracee, module)
                        # Memory of no file has no offset that another process would have as well.
                        return Place(module, rip - start + int(offset, 16) if module else rip)
        except OSError:
            pass
        return Place("", rip)

    def _keep_file(self, tracee: "Tracee", path: str) -> None:
        # Now, as the program sees it: at the end it may be gone, or its mount namespace.
        if path in self._files or not path.startswith("/"):
            return
        self._files[path] = None
        try:
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
            fd = os.open(f"/proc/{tracee.tid}/root{path}", flags)
            if stat.S_ISREG(os.fstat(fd).st_mode):
                self._files[path] = os.fdopen(fd, "rb")
            else:
                os.close(fd)
        except OSError:
            # "(deleted)", for one.
            return

    # -- the enclaves' code -----------------------------------------------------------------

    def _look_at(self, tracee: "Tracee", tcs: int) -> None:
        encl = self._enclave_at(tracee, tcs)
        thread = tracee.lp.thread if tracee.lp is not None else None
        if encl is None or thread is None or encl in self._names:
            return
        mrenclave = thread.secs.mrenclave.hex()
        self._names[encl] = enclave_name(mrenclave)
        if mrenclave in self._images:
            return
        self._images[mrenclave] = None
        spans = [
            (run.first * n.PAGE_SIZE, run.end * n.PAGE_SIZE)
            for run in encl.page_array.runs()
            if run.vm_max_prot & PROT_EXEC
        ]
        if sum(end - start for start, end in spans) > _MOST_CODE:
            return
        from softsgx.image.code import Code  # noqa: PLC0415

        code = Code("enclave", pages=len(encl.page_array))
        # Control flow begins there; a name it has not.
        code.functions[thread.oentry - encl.base] = ""
        for start, end in spans:
            try:
                data = b"".join(_read(tracee, encl, start, end))
            except DriverError:
                # The enclave is lost, which the program is told at its next touch.
                return
            if code.parts and code.parts[-1][0] + len(code.parts[-1][1]) == start - encl.base:
                at, before = code.parts.pop()
                code.parts.append((at, before + data))
            else:
                code.parts.append((start - encl.base, data))
        self._images[mrenclave] = code

    # -- what is told -----------------------------------------------------------------------

    def findings(self) -> "list[dict[str, Any]]":
        """Give what the program has done, as `softsgx lint` tells it, in the order of its happening."""
        from softsgx.image.illegal import explain  # noqa: PLC0415
        from softsgx.image.symbols import Symbols  # noqa: PLC0415

        symbols = {path: Symbols(file) for path, file in self._files.items() if file is not None}
        told = []
        for seen in self._seen.values():
            if seen.code:
                why = explain(seen.code, seen.rip)
                if why is None:
                    # UD2, or what no processor knows: as illegal outside.
                    continue
                instruction, reason, here = why
                seen.told |= {"instruction": instruction, "here": here}
                seen.told["reason"] = f"{instruction}: #UD inside: {reason}"
            offset, symbol = seen.place.offset, ""
            if seen.place.module == _VDSO:
                symbol = "__vdso_sgx_enter_enclave"
            elif seen.place.module in symbols:
                offset, symbol = symbols[seen.place.module].locate(offset)
            told.append(
                {
                    "rule": seen.rule,
                    "address": f"{seen.rip:#x}",
                    "module": seen.place.module,
                    "offset": f"{offset:#x}",
                    "symbol": symbol,
                    "certain": True,
                    "pid": seen.pid,
                    "tid": seen.tid,
                    "count": seen.count,
                    **seen.told,
                }
            )
        return told

    def images(self) -> "Iterator[tuple[str, Code | None]]":
        """Give the enclaves that were entered, by MRENCLAVE; None for one with too much code to look at."""
        yield from self._images.items()

    def epc(self) -> tuple[int, int, int]:
        """Give how many pages were in use at once, how many there are, and how many had to leave."""
        if self.driver is None:
            return 0, 0, 0
        epc = self.driver.epc
        return epc.total - epc.fewest_free, epc.total, self.driver.stats.total().evictions

    def close(self) -> None:
        """Close the files of the program that were kept."""
        for file in self._files.values():
            if file is not None:
                file.close()


def _read(tracee: "Tracee", encl: "Encl", start: int, end: int) -> "Iterator[bytes]":
    while start < end:
        try:
            chunk = encl.read(start, min(_CHUNK, end - start))
        except AGAIN:
            pause(tracee)
            continue
        yield chunk
        start += len(chunk)
