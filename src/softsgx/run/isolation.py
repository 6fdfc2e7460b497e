# SPDX-License-Identifier: Apache-2.0
"""Enclave memory kept from the program that is outside (`--isolation strict`).

Owns nothing: the map of an address space counts who is inside. While nobody is, the enclave's mappings are
PROT_NONE, and an access to them is one to the abort page; who enters opens them, for the whole process.
"""

from softsgx.driver.vma import PROT_EXEC, PROT_RWX
from softsgx.run import numbers as n
from softsgx.run.delivery import deliver, siginfo, unforce
from softsgx.run.elrange_map import too_many_runs
from softsgx.run.mm import Refused
from softsgx.run.page_faults import SEGV_ACCERR
from softsgx.run.tracee import Tracee

TYPE_CHECKING = False
if TYPE_CHECKING:
    from softsgx.driver.encl import Encl
    from softsgx.run.observe import Observer

_ILL_ILLOPN = 2


def entered(tracee: Tracee) -> None:
    """Open the enclave that a thread has just entered; it still stands at its ENCLU."""
    enclaves = tracee.mm.enclaves
    thread = tracee.lp.thread if tracee.lp is not None else None
    vma = enclaves.find(thread.linaddr) if enclaves is not None and thread is not None else None
    if enclaves is None or vma is None:
        return
    tracee.within = vma.file.encl
    enclaves.inside[tracee.within] = enclaves.inside.get(tracee.within, 0) + 1
    _settle(tracee, tracee.within)


def left(tracee: Tracee) -> None:
    """Close the enclave that a thread has left, if it was the last one."""
    encl, enclaves = gone(tracee), tracee.mm.enclaves
    if encl is not None and enclaves is not None and encl not in enclaves.inside:
        _settle(tracee, encl)


def gone(tracee: Tracee) -> "Encl | None":
    """Count a thread that is not inside any more; give its enclave."""
    encl, tracee.within = tracee.within, None
    enclaves = tracee.mm.enclaves
    if encl is None or enclaves is None:
        return None
    enclaves.inside[encl] -= 1
    if not enclaves.inside[encl]:
        del enclaves.inside[encl]
    return encl


def _settle(tracee: Tracee, encl: "Encl") -> None:
    enclaves = tracee.mm.enclaves
    if enclaves is None or enclaves.unsettled(encl.base, encl.base + encl.size) is None:
        return
    with tracee.injecting() as injector:
        if enclaves.settle(injector, encl.base, encl.base + encl.size):
            raise Refused(too_many_runs(tracee))
    tracee.borrowed = True


def touched(tracee: Tracee, code: int, address: int, observer: "Observer") -> bool:
    """Handle a SIGSEGV outside at memory that is closed; tell whether it was. The registers are loaded."""
    enclaves = tracee.mm.enclaves
    vma = enclaves.find(address) if enclaves is not None else None
    if enclaves is None or vma is None or code != SEGV_ACCERR or not enclaves.shut(vma.file.encl):
        return False
    run = vma.file.encl.page_array.find(address // n.PAGE_SIZE)
    # The EPCM has no say: what is pending, or may not be read inside, is the abort page as well.
    if run is None or vma.prot & PROT_RWX & ~run.vm_max_prot:
        return False
    if address == tracee.regs.rip:
        if not vma.prot & PROT_EXEC:
            return False
        # All ones are no instruction.
        observer.touched(tracee, address, "execute")
        unforce(tracee, n.SIGSEGV)
        deliver(tracee, n.SIGILL, siginfo(n.SIGILL, _ILL_ILLOPN, address))
        return True
    # Heavy, and needed by programs that do what they should not.
    from softsgx.run import abort_page  # noqa: PLC0415
    from softsgx.run.access import writes_to  # noqa: PLC0415

    writes = writes_to(tracee, address)
    if writes and not vma.prot & n.PROT_WRITE:
        return False
    observer.touched(tracee, address, "write" if writes else "read")
    unforce(tracee, n.SIGSEGV)
    if abort_page.touch(tracee):
        return True
    observer.warn_once(
        "abort page",
        f"process {tracee.process.pid} has touched enclave memory at {address:#x} from outside, by an "
        f"instruction at {tracee.regs.rip:#x} that cannot be given all ones: it gets SIGSEGV",
    )
    deliver(tracee, n.SIGSEGV, siginfo(n.SIGSEGV, code, address))
    return True
