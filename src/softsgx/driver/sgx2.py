# SPDX-License-Identifier: Apache-2.0
"""Pages of an enclave that runs (kernel: the SGX2 part of ioctl.c, and sgx_encl_eaug_page of encl.c).

Owns nothing.  Unlike the kernel, which does one page at a time, an ioctl takes some hundred pages through each
of its steps: what an address space may touch no more is taken out of it, the pages change, and ETRACK closes.
Whatever suspends the caller in between may have evicted a page again, so each is looked at where it changes.
"""

import errno
from typing import TYPE_CHECKING

from softsgx.arch.exceptions import VECTOR_PF
from softsgx.arch.ioctl import (
    EnclaveModifyTypes,
    EnclaveRemovePages,
    EnclaveRestrictPermissions,
)
from softsgx.arch.secinfo import (
    PAGE_SIZE,
    PT_REG,
    PT_TCS,
    PT_TRIM,
    SECINFO_R,
    SECINFO_RWX,
    SECINFO_W,
)
from softsgx.cpu.epc import Epc, PageIndex
from softsgx.cpu.paging import etrack, tlb_shootdown
from softsgx.cpu.sgx2 import eaug_page, emodpr_page, emodt_page
from softsgx.driver.ioctl import validate_offset_length
from softsgx.driver.page_array import PageKind, PageRun, neighbours
from softsgx.driver.reclaim import AGAIN, EpcExhausted
from softsgx.driver.uaccess import copy_from_user, copy_to_user
from softsgx.driver.vma import PROT_READ, PROT_RWX, PROT_WRITE
from softsgx.errors import DriverError, Fault

if TYPE_CHECKING:
    from collections.abc import Callable

    from softsgx.driver.encl import Encl
    from softsgx.driver.task import Task

    # What an ioctl does to the pages at some addresses: it returns how many it did, what a leaf left in
    # RAX, and why it has not done them all.
    Change = Callable[[list[int]], "Done"]

# Between so many pages others have their turn.
_BATCH_PAGES = 512
# SGX_PAGE_TYPE_MASK.
_PAGE_TYPE_MASK = 0xFF
# What EAUG makes: mappings may allow anything, for the enclave decides what it accepts.
_AUGMENTED = PageKind(PROT_RWX, PT_REG, PROT_READ | PROT_WRITE, pending=True)


class Done:
    """How far an ioctl has come: pages, the code of the leaf that failed, and the failure."""

    __slots__ = ("failure", "pages", "result")

    def __init__(self) -> None:
        self.pages = 0
        self.result = 0
        self.failure: DriverError | None = None

    def failed(self, failure: DriverError, result: int = 0) -> None:
        """Record why the next page was not done."""
        self.failure = failure
        self.result = result


# -- the ioctls ---------------------------------------------------------------------------------------


def sgx_ioc_enclave_restrict_permissions(encl: "Encl", arg: int, task: "Task") -> None:
    """EMODPR pages: the EPCM allows no more than ``permissions`` from now on."""
    _check_ready(encl)
    data = copy_from_user(task, arg, EnclaveRestrictPermissions.SIZE, "the argument")
    restrict = EnclaveRestrictPermissions.decode(data)
    validate_offset_length(encl, restrict.offset, restrict.length)
    wanted = restrict.permissions
    if wanted & ~SECINFO_RWX:
        raise DriverError(errno.EINVAL, f"permissions {wanted:#x} are more than R, W and X")
    if wanted & SECINFO_W and not wanted & SECINFO_R:
        raise DriverError(errno.EINVAL, "permissions have W without R")
    if restrict.result or restrict.count:
        raise DriverError(errno.EINVAL, "result and count must be zero")

    def change(addresses: list[int]) -> Done:
        return _restrict(encl, addresses, wanted, task)

    done = _in_batches(encl, restrict.offset, restrict.length, task, change)
    answer = restrict.replace(result=done.result, count=done.pages * PAGE_SIZE)
    _tell(task, arg, answer.encode(), done)


def sgx_ioc_enclave_modify_types(encl: "Encl", arg: int, task: "Task") -> None:
    """EMODT pages: a regular page becomes a TCS, or both are to be removed (TRIM)."""
    _check_ready(encl)
    data = copy_from_user(task, arg, EnclaveModifyTypes.SIZE, "the argument")
    modify = EnclaveModifyTypes.decode(data)
    validate_offset_length(encl, modify.offset, modify.length)
    kind = modify.page_type
    if kind & ~_PAGE_TYPE_MASK:
        raise DriverError(errno.EINVAL, f"page type {kind:#x} has more than 8 bits")
    if modify.result or modify.count:
        raise DriverError(errno.EINVAL, "result and count must be zero")
    done = Done()
    if kind not in (PT_TCS, PT_TRIM):
        done.failed(DriverError(errno.EINVAL, f"page type {kind} is neither TCS nor TRIM"))
    else:

        def change(addresses: list[int]) -> Done:
            return _modify(encl, addresses, kind, task)

        done = _in_batches(encl, modify.offset, modify.length, task, change)
    answer = modify.replace(result=done.result, count=done.pages * PAGE_SIZE)
    _tell(task, arg, answer.encode(), done)


def sgx_ioc_enclave_remove_pages(encl: "Encl", arg: int, task: "Task") -> None:
    """EREMOVE pages that are TRIM and that the enclave has accepted as such."""
    _check_ready(encl)
    data = copy_from_user(task, arg, EnclaveRemovePages.SIZE, "the argument")
    remove = EnclaveRemovePages.decode(data)
    validate_offset_length(encl, remove.offset, remove.length)
    if remove.count:
        raise DriverError(errno.EINVAL, "count must be zero")

    def change(addresses: list[int]) -> Done:
        return _remove(encl, addresses)

    done = _in_batches(encl, remove.offset, remove.length, task, change)
    _tell(task, arg, remove.replace(count=done.pages * PAGE_SIZE).encode(), done)


def _tell(task: "Task", arg: int, answer: bytes, done: Done) -> None:
    # Also of what has failed the caller hears how far it came.
    copy_to_user(task, arg, answer, "the argument")
    if done.failure is not None:
        raise done.failure


def _check_ready(encl: "Encl") -> None:
    # sgx_ioc_sgx2_ready
    if "sgx2" not in encl.cpu.model.features:
        raise DriverError(errno.ENODEV, "the processor has no SGX2")
    if not encl.initialized:
        raise DriverError(errno.EINVAL, "the enclave is not initialized yet")


# -- their steps --------------------------------------------------------------------------------------


def _in_batches(encl: "Encl", offset: int, length: int, task: "Task", change: "Change") -> Done:
    """Change the pages in order until one fails."""
    total = Done()
    for start in range(0, length, _BATCH_PAGES * PAGE_SIZE):
        if start:
            task.pause()
        end = min(start + _BATCH_PAGES * PAGE_SIZE, length)
        first = encl.base + offset
        done = change(list(range(first + start, first + end, PAGE_SIZE)))
        total.pages += done.pages
        if done.failure is not None:
            total.failed(done.failure, done.result)
            break
    return total


def _restrict(encl: "Encl", addresses: list[int], wanted: int, task: "Task") -> Done:
    done = Done()
    for address in addresses:
        try:
            code = emodpr_page(encl.cpu, _restrictable(encl, address), wanted)
        except DriverError as error:
            done.failed(error)
            break
        except Fault as fault:
            done.failed(DriverError(errno.EFAULT, f"EMODPR: {fault}"))
            break
        if code:
            done.failed(DriverError(errno.EFAULT, f"EMODPR returned {code.name}"), code)
            break
        encl.epcm_changed(address)
        done.pages += 1
    changed = addresses[: done.pages]
    _narrow(encl, changed, task)
    _etrack(encl)
    return done


def _restrictable(encl: "Encl", address: int) -> PageIndex:
    run, page = _load_page(encl, address)
    if run.type != PT_REG:
        raise DriverError(errno.EINVAL, f"page {address:#x} is not REG")
    return page


def _modify(encl: "Encl", addresses: list[int], kind: int, task: "Task") -> Done:
    done = Done()
    willing: list[int] = []
    failure: DriverError | None = None
    for address in addresses:
        try:
            _check_modifiable(_load_page(encl, address)[0], address, kind)
        except DriverError as error:
            failure = error
            break
        willing.append(address)
    # A TCS and a TRIM page are holes: nobody may reach what EMODT takes away.
    encl.modifying.update(willing)
    try:
        _narrow(encl, willing, task)
        for address in willing:
            try:
                run, page = _load_page(encl, address)
                code = emodt_page(encl.cpu, page, kind)
            except DriverError as error:
                done.failed(error)
                break
            except Fault as fault:
                done.failed(DriverError(errno.EFAULT, f"EMODT: {fault}"))
                break
            if code:
                done.failed(DriverError(errno.EFAULT, f"EMODT returned {code.name}"), code)
                break
            max_prot = PROT_READ | PROT_WRITE if kind == PT_TCS else run.vm_max_prot
            encl.page_array.change(address // PAGE_SIZE, 1, PageKind(max_prot, kind, 0))
            done.pages += 1
    finally:
        encl.modifying.difference_update(willing)
    _etrack(encl)
    if done.failure is None and failure is not None:
        done.failed(failure)
    return done


def _check_modifiable(run: PageRun, address: int, kind: int) -> None:
    if run.type != PT_REG and not (run.type == PT_TCS and kind == PT_TRIM):
        raise DriverError(
            errno.EINVAL, f"page {address:#x} of type {run.type} does not become one of type {kind}"
        )
    # Nobody is given more than the page was added with.
    if kind == PT_TCS and ~run.vm_max_prot & (PROT_READ | PROT_WRITE):
        raise DriverError(errno.EPERM, f"page {address:#x} was not added readable and writable")


def _remove(encl: "Encl", addresses: list[int]) -> Done:
    done = Done()
    for address in addresses:
        try:
            page = _removable(encl, address)
        except DriverError as error:
            done.failed(error)
            break
        encl.reclaimer.removed(range(page, page + 1))
        # VA pages stay, though fewer may be needed now.
        encl.page_array.remove(address // PAGE_SIZE, 1)
        encl.page_cnt -= 1
        encl.free_epc_page(page)
        done.pages += 1
    return done


def _removable(encl: "Encl", address: int) -> PageIndex:
    run, page = _load_page(encl, address)
    if run.type != PT_TRIM:
        raise DriverError(errno.EPERM, f"page {address:#x} is not TRIM")
    if not _accepted(encl, page):
        raise DriverError(errno.EPERM, f"the enclave has not accepted {address:#x} as TRIM")
    return page


def _accepted(encl: "Encl", page: PageIndex) -> bool:
    """Ask a TRIM page whether EACCEPT has been there: it gives EMODPR a page fault then, and a code before."""
    try:
        emodpr_page(encl.cpu, page, SECINFO_RWX)
    except Fault as fault:
        return fault.vector == VECTOR_PF
    return False


def _load_page(encl: "Encl", address: int) -> tuple[PageRun, PageIndex]:
    """Return a page's run and its EPC page, brought in before (sgx_encl_load_page); DriverError EFAULT, EAGAIN."""
    while True:
        run = encl.page_array.find(address // PAGE_SIZE)
        if run is None:
            raise DriverError(errno.EFAULT, f"the enclave has no page at {address:#x}")
        page = encl.translate(address)
        if page is not None:
            # One that is on its way out stays.
            encl.touched(address)
            return run, page
        try:
            encl.reclaimer.load(encl, encl.index(address))
        except AGAIN as later:
            raise DriverError(errno.EAGAIN, f"page {address:#x} is out: {later}") from later


def _narrow(encl: "Encl", addresses: list[int], task: "Task") -> None:
    """Take what pages do not allow any more out of every address space; may suspend the caller."""
    spans = [
        (first * PAGE_SIZE, (first + count) * PAGE_SIZE)
        for first, count in neighbours(address // PAGE_SIZE for address in addresses)
    ]
    for mm in list(encl.mm_list) if spans else []:
        # As an interrupt to a processor, it is waited for.
        while not mm.narrow(encl, spans) and task.pause():
            pass


def _etrack(encl: "Encl") -> None:
    """Close the tracking cycle (sgx_enclave_etrack): what was in the page tables has been flushed by now."""
    secs = encl.secs_page
    if secs is None:
        # With the last of the pages it is out, and EWB has seen to that.
        return
    if etrack(encl.cpu, Epc.address(secs)):
        tlb_shootdown(encl.cpu.enclaves[secs])
        etrack(encl.cpu, Epc.address(secs))
    tlb_shootdown(encl.cpu.enclaves[secs])


# -- the fault ----------------------------------------------------------------------------------------


def sgx_encl_eaug_page(encl: "Encl", address: int) -> str | None:
    """Answer a fault where an enclave has no page: None if the access is to be made again, else why it is SIGBUS.

    EpcExhausted, BackingStalled: as in ``Encl.load_page_in_vma``.
    """
    page = address // PAGE_SIZE
    if not encl.augments or not encl.initialized:
        return f"the enclave has no page at {address:#x}, and none can be added"
    reclaimer = encl.reclaimer
    while encl.page_array.find(page) is None and not encl.dead:
        if encl.secs_page is None:
            try:
                reclaimer.load(encl, encl.secs_index)
            except DriverError as error:
                return error.reason
            continue
        wanted = 1 + encl.va_pages_wanted(1)
        if encl.allocator.free_pages >= wanted:
            return _eaug(encl, page)
        # What makes room may suspend the caller: then all may be different.
        if not reclaimer.make_room(wanted, encl):
            if reclaimer.transient(encl):
                raise EpcExhausted(f"no EPC page for {address:#x} yet")
            return encl.exhausted(f"page {address:#x}").reason
    if encl.dead:
        return f"the enclave was killed while a page for {address:#x} was looked for"
    # Another thread has been faster.
    return None


def _eaug(encl: "Encl", page: int) -> str | None:
    encl.grow(1)
    epc_page = encl.allocate_page()
    try:
        eaug_page(encl.cpu, epc_page, encl.created_secs(), page * PAGE_SIZE)
    except Fault as fault:
        encl.free_epc_page(epc_page)
        encl.shrink(1)
        return f"EAUG: {fault}"
    encl.page_array.insert(page, epc_page, 1, _AUGMENTED)
    encl.stats.augmented += 1
    encl.reclaimer.added(encl, range(epc_page, epc_page + 1))
    encl.reclaimer.allocated()
    return None
