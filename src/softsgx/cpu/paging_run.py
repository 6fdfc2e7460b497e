# SPDX-License-Identifier: Apache-2.0
"""ELDU of neighbouring pages at once, for a driver that reads ahead (SDM volume 3D, ELDB/ELDU).

What each page needs is checked as ``eldu_page`` checks it; a page that would get a code or a fault ends the run.
"""

from collections.abc import Sequence

from softsgx.arch.secinfo import PAGE_SIZE, PT_REG, SECINFO_PAGE_TYPE_SHIFT, VA_SLOT_SIZE
from softsgx.arch.structures import Pcmd
from softsgx.cpu.epc import EPCM_VALID, SECS_WORD, VA_WORD, PageIndex
from softsgx.cpu.paging import unpack_pcmd, unseal
from softsgx.cpu.processor import Processor

_RWX = 7


def eldu_run(
    cpu: Processor,
    pages: Sequence[PageIndex],
    slots: Sequence[tuple[PageIndex, int]],
    owner: PageIndex,
    linaddr: int,
    contents: bytes,
    pcmds: bytes,
) -> int:
    """ELDU of an enclave's REG pages whose addresses follow each other, from ``linaddr`` on.

    ``slots`` has the VA page and the offset of each one's version, ``contents`` 4096 bytes and ``pcmds``
    128 for each.  Returns how many are loaded, from the first: the next one is PENDING, MODIFIED or of
    another type, or ELDU of it would not succeed.
    """
    epc = cpu.epc
    words, busy = epc.words, epc.busy
    if words[owner] != SECS_WORD or not busy.isdisjoint((owner, *pages)):
        return 0
    secs = cpu.enclaves[owner]
    eid = secs.eid
    plain: list[bytes] = []
    flags: list[int] = []
    for at, (page, (va, slot)) in enumerate(zip(pages, slots, strict=True)):
        if words[page] & EPCM_VALID or words[va] != VA_WORD or va in busy:
            break
        secinfo, reserved, mac = unpack_pcmd(pcmds[at * Pcmd.SIZE : (at + 1) * Pcmd.SIZE])
        if secinfo[0] & ~_RWX or secinfo[1] != PT_REG:
            break
        version = int.from_bytes(epc.contents[va][slot : slot + VA_SLOT_SIZE], "little")
        start = at * PAGE_SIZE
        sealed = contents[start : start + PAGE_SIZE]
        opened = unseal(cpu, version, eid, linaddr + start, sealed, secinfo, reserved, mac)
        if opened is None:
            break
        plain.append(opened)
        flags.append(secinfo[0])
    if plain:
        secs.elrange.write(linaddr, b"".join(plain))
    for at, flag in enumerate(flags):
        page, (va, slot) = pages[at], slots[at]
        epc.contents[va][slot : slot + VA_SLOT_SIZE] = bytes(VA_SLOT_SIZE)
        words[page] = EPCM_VALID | flag | PT_REG << SECINFO_PAGE_TYPE_SHIFT
        epc.owners[page] = owner
        epc.addresses[page] = linaddr + at * PAGE_SIZE
    secs.children += len(flags)
    return len(flags)
