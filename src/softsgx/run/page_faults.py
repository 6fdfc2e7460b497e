# SPDX-License-Identifier: Apache-2.0
"""Page faults at enclave memory: which of them are the program's, and what they are told as.

Owns nothing. VMA and EPCM decide, never what the host's kernel has told: there a page that must
fault is a hole, or PROT_NONE, and one that is PROT_NONE may be there by now.

Sources: SDM volume 3, 36.3 and 38.5; arch/x86/mm/fault.c; arch/x86/kernel/cpu/sgx/encl.c.
"""

from softsgx.arch.exceptions import PFEC_I, PFEC_P, PFEC_SGX, PFEC_U, PFEC_W
from softsgx.driver.reclaim import AGAIN
from softsgx.run import numbers as n
from softsgx.run.delivery import BUS_ADRERR
from softsgx.run.elrange_map import too_many_runs
from softsgx.run.mm import Refused
from softsgx.run.revoke import pause
from softsgx.run.tracee import Tracee

TYPE_CHECKING = False
if TYPE_CHECKING:
    from softsgx.run.elrange_map import EnclaveMap, EnclaveVma

_SEGV_MAPERR = 1
SEGV_ACCERR = 2
_FLAG_WP = 1 << 1  # UFFD_PAGEFAULT_FLAG_WP
_TOLD = {n.PROT_WRITE: PFEC_W, n.PROT_EXEC: PFEC_I}


# Of a pagemap entry's last byte: present, and write-protected by a userfaultfd.
_PRESENT = 1 << 63 - 56
_UFFD_WP = 1 << 57 - 56


def brought_in(tracee: Tracee, address: int, access: int = 0) -> bool:
    """Bring in a page that was evicted, or add one; tell whether the access is to be made again.

    A page is added (SGX2) for an access that the mapping allows, one of PROT_*, where the enclave has
    none. The access is also made again where no EPC page is free now, or the store has not answered
    (VM_FAULT_NOPAGE): the others go on meanwhile. False for any page that is there, or that the store
    or its MAC keeps: that is for the program to hear.
    """
    enclaves = tracee.mm.enclaves
    vma = enclaves.find(address) if enclaves is not None else None
    if enclaves is None or vma is None or not vma.prot:
        return False
    encl = vma.file.encl
    page = address & -n.PAGE_SIZE
    encl.touched(page)
    if encl.augments and encl.page_array.find(page // n.PAGE_SIZE) is None:
        return _allows(vma.prot, access) and _augmented(tracee, vma, page)
    if not encl.created or not encl.is_evicted(encl.index(page)):
        return False
    try:
        return _loaded(enclaves, vma, page)
    except AGAIN:
        pause(tracee)
        return True


def answered(enclaves: "EnclaveMap", address: int, flags: int) -> bool:
    """Answer what a userfaultfd tells of a thread that sleeps at a page; False where it needs a stop.

    `flags` are UFFD_PAGEFAULT_FLAG_*. AGAIN as `Encl.load_page_in_vma`.
    """
    vma = enclaves.find(address)
    if vma is None or not vma.prot:
        return False
    page = address & -n.PAGE_SIZE
    if not _loaded(enclaves, vma, page, ahead=True):
        return False
    if enclaves.placed == page:
        # Who slept there has been woken.
        return True
    if not _there(vma, page):
        return False
    if flags & _FLAG_WP:
        if vma.file.encl.unwritable(page, page + n.PAGE_SIZE):
            return False
        enclaves.unblock(page)
    else:
        # Somebody has brought it in meanwhile, to another address space perhaps.
        enclaves.wake(page)
    return True


def _loaded(enclaves: "EnclaveMap", vma: "EnclaveVma", page: int, *, ahead: bool = False) -> bool:
    encl, elrange = vma.file.encl, vma.file.elrange
    encl.touched(page)
    enclaves.placed = -1
    elrange.place = enclaves.place if vma.watched else None
    try:
        return encl.load_page_in_vma(page, vma.prot, vma.end if ahead else 0) is None
    finally:
        elrange.place = None


def _there(vma: "EnclaveVma", page: int) -> bool:
    encl = vma.file.encl
    run = encl.page_array.find(page // n.PAGE_SIZE)
    return (
        run is not None
        and not run.hidden
        and bool(encl.page_prot(run, vma.prot))
        and encl.translate(page) is not None
    )


def _augmented(tracee: Tracee, vma: "EnclaveVma", page: int) -> bool:
    # Loaded with the first such page.
    from softsgx.driver.sgx2 import sgx_encl_eaug_page  # noqa: PLC0415

    encl = vma.file.encl
    try:
        refusal = sgx_encl_eaug_page(encl, page)
    except AGAIN:
        pause(tracee)
        return True
    # A mapping may give more than such a page: nobody may execute what the enclave has not extended. A
    # hole that only faults by being one is narrowed whole, for the pages to come.
    span = (vma.start, vma.end) if vma.watched else (page, page + n.PAGE_SIZE)
    for mm in list(encl.mm_list) if refusal is None else []:
        while not mm.narrow(encl, [span]):
            pause(tracee)
    return refusal is None


def missing(tracee: Tracee, address: int) -> bool:
    """Tell whether a fault at a hole is nobody's: the page was evicted, on its way out, or never added, and is there now."""
    # What faults so is allowed by the mapping.
    if brought_in(tracee, address, n.PROT_READ):
        return True
    enclaves = tracee.mm.enclaves
    vma = enclaves.find(address) if enclaves is not None else None
    if enclaves is None or vma is None:
        return False
    page = address & -n.PAGE_SIZE
    if not _there(vma, page):
        return False
    entry = tracee.mm.pagemap(page // n.PAGE_SIZE * 8, 8)
    state = entry[7] if len(entry) == 8 else _UFFD_WP
    if state & _UFFD_WP:
        if not vma.file.encl.unwritable(page, page + n.PAGE_SIZE):
            enclaves.unblock(page)
            return True
        if _access(tracee, address) == n.PROT_WRITE:
            return False
    # Another thread has had it brought in since this one has faulted. Where it is present and stays so,
    # the fault is of another kind.
    now = tracee.regs.rip, address, enclaves.generation
    before, tracee.retried = tracee.retried, now
    return not state & _PRESENT or before != now


def passed_over(tracee: Tracee, code: int, address: int) -> bool:
    """Tell whether a SIGSEGV is nobody's: the page can be touched now, and the thread may go on.

    It has been added since the mapping got its protection, by another process perhaps, or
    another thread has stopped at it as well.
    """
    enclaves = tracee.mm.enclaves
    vma = enclaves.find(address) if enclaves is not None else None
    if enclaves is None or vma is None or code != SEGV_ACCERR:
        return False
    page = address & -n.PAGE_SIZE
    encl = vma.file.encl
    absent = encl.augments and encl.page_array.find(page // n.PAGE_SIZE) is None
    again = brought_in(tracee, address, _access(tracee, address) if absent else 0)
    run = enclaves.unsettled(page, page + n.PAGE_SIZE)
    if run is not None and run[2]:
        with tracee.injecting() as injector:
            if enclaves.settle(injector, vma.start, vma.end):
                raise Refused(too_many_runs(tracee))
        again = True
    if again:
        return True
    if enclaves.changing:
        # Who changes it may be at a stop that is told of last, while all others fault here again and again.
        pause(tracee)
        return True
    # Once only: what an instruction wants is not always found by decoding it.
    if not _allows(vma.in_force, _access(tracee, address)):
        return False
    now = tracee.regs.rip, address, enclaves.generation
    before, tracee.retried = tracee.retried, now
    return before != now


def out_of_reach(tracee: Tracee, code: int, address: int) -> bool:
    """Tell whether a SIGSEGV outside is for a page that the kernel's driver could not map: SIGBUS."""
    vma = tracee.mm.enclaves.find(address) if tracee.mm.enclaves else None
    if vma is None or code != SEGV_ACCERR:
        return False
    return _allows(vma.prot, _access(tracee, address))


def accepted(tracee: Tracee, address: int) -> None:
    """Hear that a leaf of the enclave's (SGX2) has changed a page."""
    vma = tracee.mm.enclaves.find(address) if tracee.mm.enclaves else None
    if vma is not None:
        vma.file.encl.epcm_changed(address)


def of_leaf(tracee: Tracee, error_code: int, address: int) -> tuple[int, int]:
    """Give signal and si_code of a #PF that a leaf has raised (arch/x86/mm/fault.c)."""
    vma = tracee.mm.enclaves.find(address) if tracee.mm.enclaves else None
    if error_code & (PFEC_P | PFEC_SGX):
        return n.SIGSEGV, SEGV_ACCERR
    if vma is None:
        return n.SIGSEGV, _SEGV_MAPERR
    # What the mapping allows the driver could not map.
    allowed = _allows(vma.prot, n.PROT_WRITE if error_code & PFEC_W else n.PROT_READ)
    return (n.SIGBUS, BUS_ADRERR) if allowed else (n.SIGSEGV, SEGV_ACCERR)


def inside(tracee: Tracee, signal: int, code: int, address: int) -> tuple[int, int, int]:
    """Give signal, si_code and page-fault error code of a #PF that was taken inside.

    ptrace shows no error code: W and I come from the instruction, P and SGX from VMA and EPCM.
    """
    access = _access(tracee, address)
    error_code = PFEC_U | _TOLD.get(access, 0)
    vma = tracee.mm.enclaves.find(address) if tracee.mm.enclaves else None
    if vma is None:
        if code == SEGV_ACCERR and _mapped(tracee, address):
            error_code |= PFEC_P
        return signal, code, error_code
    if not _allows(vma.prot, access):
        # The VMA forbids it. A page that was mapped shows as present.
        if vma.prot and vma.file.encl.translate(address) is not None:
            error_code |= PFEC_P
        return n.SIGSEGV, SEGV_ACCERR, error_code
    try:
        refusal = vma.file.encl.load_page_in_vma(address, vma.prot)
    except AGAIN as later:
        # It was refused a moment ago for another reason.
        refusal = str(later)
    if refusal is not None:
        return n.SIGBUS, BUS_ADRERR, error_code
    return n.SIGSEGV, SEGV_ACCERR, error_code | PFEC_P | PFEC_SGX


def _access(tracee: Tracee, address: int) -> int:
    """Tell what the instruction at RIP wanted of an address: one of PROT_*."""
    if address == tracee.regs.rip:
        return n.PROT_EXEC
    # Heavy, and needed once the first enclave faults: so it is imported here.
    from softsgx.run.access import writes_to  # noqa: PLC0415

    return n.PROT_WRITE if writes_to(tracee, address) else n.PROT_READ


def _allows(prot: int, access: int) -> bool:
    # What can be written or executed can be read.
    return bool(prot & access or (prot and access == n.PROT_READ))


def _mapped(tracee: Tracee, address: int) -> bool:
    # Of memory outside any enclave: PROT_NONE leaves no page present for the processor.
    try:
        with open(f"/proc/{tracee.tid}/maps", "rb") as maps:
            for line in maps:
                span, permissions, *_ = line.split(None, 2)
                low, _, high = span.partition(b"-")
                if int(low, 16) <= address < int(high, 16):
                    return not permissions.startswith(b"---")
    except OSError:
        return True
    return False
