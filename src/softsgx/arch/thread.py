# SPDX-License-Identifier: Apache-2.0
"""The records of thread and TCS state that softsgx shares with the program it runs.

They are softsgx's own layout, not the manual's.  Whoever moves control writes them the same way ("the
transition", below): the processor's EENTER, ERESUME, EEXIT and AEX on behalf of a stopped thread, or the
code of csrc/vdso/transitions.S inside the program.  Each field has one writer, named with it; all others
read.  A thread's record is written only while that thread stands still or by that thread itself; a TCS
record's state is taken by compare and exchange, and the rest of it belongs to who holds the state.
"""

from softsgx.arch.layout import U8, U32, U64, Record, at, layout

MODE_OUTSIDE = 0
MODE_INSIDE = 1

# A TcsRecord's state: TCS_ACTIVE as the manual has it, whether code in the program may make the next
# transition, and the id of the thread that is inside.
STATE_OPEN = 2
STATE_TID_SHIFT = 2


@layout(size=128)
class ThreadRecord(Record):
    """One thread (logical processor).

    mode, tcs, elrange_base, elrange_size, host_fsbase, host_gsbase, aep, host_rflags: the transition.
    selector (the byte of syscall user dispatch): the transition, together with mode.
    tid: run, when it first sees the thread.
    tcs_record (address of the TcsRecord in the program, 0 = not mapped there): the transition.
    taken (what this thread makes of a TcsRecord's state), watch (the enclave for whose CPUIDs its debug
    registers are set): run.
    rbx, flags, site: code in the program, for itself. entered, left: the same, for whoever counts.
    tcs and aep are linear addresses; mode is MODE_OUTSIDE or MODE_INSIDE.
    """

    mode: int = at(0, U32)
    selector: int = at(4, U8)
    tid: int = at(8, U32)
    tcs: int = at(16, U64)
    elrange_base: int = at(24, U64)
    elrange_size: int = at(32, U64)
    host_fsbase: int = at(40, U64)
    host_gsbase: int = at(48, U64)
    aep: int = at(56, U64)
    host_rflags: int = at(64, U64)
    tcs_record: int = at(72, U64)
    taken: int = at(80, U32)
    watch: int = at(84, U32)
    rbx: int = at(88, U64)
    flags: int = at(96, U64)
    entered: int = at(104, U64)
    left: int = at(112, U64)
    site: int = at(120, U64)


@layout(size=192)
class TcsRecord(Record):
    """The run-time state of one TCS, which the EPC page of the TCS does not hold while it is in use.

    state (TCS_INACTIVE or TCS_ACTIVE, STATE_OPEN, the thread's id), cssa, aep, thread (the address of the
    ThreadRecord of who is inside, 0 = it leaves by ENCLU): the transition.
    nssa, ssaframesize (pages), linaddr, flags, ossa, oentry, ofsbasgx, ogsbasgx, elrange_base,
    elrange_size: EADD, once.  flags: also EDBGWR.  Offsets are from the enclave's base, as in the TCS.
    entry, fsbase, gsbase, ursp (addresses, of the next entry and of U_RSP in its SSA frame), watch (the
    enclave, if it has CPUIDs): run, before it opens the state.
    """

    state: int = at(0, U32)
    cssa: int = at(4, U32)
    nssa: int = at(8, U32)
    ssaframesize: int = at(12, U32)
    linaddr: int = at(16, U64)
    flags: int = at(24, U64)
    ossa: int = at(32, U64)
    oentry: int = at(40, U64)
    aep: int = at(48, U64)
    ofsbasgx: int = at(56, U64)
    ogsbasgx: int = at(64, U64)
    elrange_base: int = at(72, U64)
    elrange_size: int = at(80, U64)
    thread: int = at(88, U64)
    entry: int = at(96, U64)
    fsbase: int = at(104, U64)
    gsbase: int = at(112, U64)
    ursp: int = at(120, U64)
    watch: int = at(128, U32)
