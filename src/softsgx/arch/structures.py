# SPDX-License-Identifier: Apache-2.0
"""The structures of SDM volume 3D, "SGX data structures": every offset as the manual's tables print it.

Fields of features that are not modelled (CET) are not declared: they are reserved, so that the checks
of reserved bytes refuse them.  ATTRIBUTES is two fields, ``attributes`` (63:0) and ``xfrm`` (127:64).
"""

from softsgx.arch.layout import U8, U16, U32, U64, Record, at, layout, raw, record


@layout(size=4096)
class Secs(Record):
    """SGX enclave control structure: one page, the enclave's root."""

    size: int = at(0, U64)
    baseaddr: int = at(8, U64)
    ssaframesize: int = at(16, U32)
    miscselect: int = at(20, U32)
    attributes: int = at(48, U64)
    xfrm: int = at(56, U64)
    mrenclave: bytes = at(64, raw(32))
    mrsigner: bytes = at(128, raw(32))
    configid: bytes = at(192, raw(64))
    isvprodid: int = at(256, U16)
    isvsvn: int = at(258, U16)
    configsvn: int = at(260, U16)


@layout(size=4096)
class Tcs(Record):
    """Thread control structure: one page, where a logical processor enters."""

    state: int = at(0, U64)
    flags: int = at(8, U64)
    ossa: int = at(16, U64)
    cssa: int = at(24, U32)
    nssa: int = at(28, U32)
    oentry: int = at(32, U64)
    aep: int = at(40, U64)
    ofsbasgx: int = at(48, U64)
    ogsbasgx: int = at(56, U64)
    fslimit: int = at(64, U32)
    gslimit: int = at(68, U32)


@layout(size=184)
class Gprsgx(Record):
    """General registers: the end of an SSA frame (184 bytes; the manual's table says 176, Linux and the hardware not)."""

    rax: int = at(0, U64)
    rcx: int = at(8, U64)
    rdx: int = at(16, U64)
    rbx: int = at(24, U64)
    rsp: int = at(32, U64)
    rbp: int = at(40, U64)
    rsi: int = at(48, U64)
    rdi: int = at(56, U64)
    r8: int = at(64, U64)
    r9: int = at(72, U64)
    r10: int = at(80, U64)
    r11: int = at(88, U64)
    r12: int = at(96, U64)
    r13: int = at(104, U64)
    r14: int = at(112, U64)
    r15: int = at(120, U64)
    rflags: int = at(128, U64)
    rip: int = at(136, U64)
    ursp: int = at(144, U64)
    urbp: int = at(152, U64)
    exitinfo: int = at(160, U32)
    aexnotify: int = at(167, U8)
    fsbase: int = at(168, U64)
    gsbase: int = at(176, U64)


@layout(size=16)
class Exinfo(Record):
    """Exception information of the MISC region, directly below GPRSGX."""

    maddr: int = at(0, U64)
    errcd: int = at(8, U32)


@layout(size=32)
class Pageinfo(Record):
    """Operand of the leaves that add a page; 32-byte aligned."""

    linaddr: int = at(0, U64)
    srcpge: int = at(8, U64)
    secinfo: int = at(16, U64)
    secs: int = at(24, U64)


@layout(size=64)
class Secinfo(Record):
    """A page's type and permissions; 64-byte aligned."""

    flags: int = at(0, U64)


@layout(size=128)
class Pcmd(Record):
    """Paging crypto metadata: what EWB writes beside an evicted page; 128-byte aligned."""

    secinfo: Secinfo = at(0, record(Secinfo))
    enclaveid: int = at(64, U64)
    mac: bytes = at(112, raw(16))


@layout(size=32)
class Rdinfo(Record):
    """What ERDINFO tells of a page; 32-byte aligned.  FLAGS are SECINFO's, and BLOCKED in bit 63."""

    status: int = at(0, U64)
    flags: int = at(8, U64)
    enclavecontext: int = at(16, U64)


# SIGSTRUCT.HEADER and HEADER2, which EINIT compares whole.
SIGSTRUCT_HEADER = bytes.fromhex("06000000e10000000000010000000000")
SIGSTRUCT_HEADER2 = bytes.fromhex("01010000600000006000000001000000")
SIGSTRUCT_VENDOR_INTEL = 0x8086
SIGSTRUCT_EXPONENT = 3
# The signature covers these two stretches, one after the other.
SIGSTRUCT_SIGNED = ((0, 128), (900, 1028))


@layout(size=1808)
class Sigstruct(Record):
    """Enclave signature structure; multi-byte integers, also the RSA ones, are little-endian."""

    header: bytes = at(0, raw(16))
    vendor: int = at(16, U32)
    date: int = at(20, U32)
    header2: bytes = at(24, raw(16))
    swdefined: int = at(40, U32)
    modulus: bytes = at(128, raw(384))
    exponent: int = at(512, U32)
    signature: bytes = at(516, raw(384))
    miscselect: int = at(900, U32)
    miscmask: int = at(904, U32)
    isvfamilyid: bytes = at(912, raw(16))
    attributes: int = at(928, U64)
    xfrm: int = at(936, U64)
    attributemask: int = at(944, U64)
    xfrmmask: int = at(952, U64)
    enclavehash: bytes = at(960, raw(32))
    isvextprodid: bytes = at(1008, raw(16))
    isvprodid: int = at(1024, U16)
    isvsvn: int = at(1026, U16)
    q1: bytes = at(1040, raw(384))
    q2: bytes = at(1424, raw(384))


# EINITTOKEN.MAC covers so many bytes from the start.
EINITTOKEN_MACED = 192


@layout(size=304)
class Einittoken(Record):
    """The launch token; 512-byte aligned."""

    valid: int = at(0, U32)
    attributes: int = at(48, U64)
    xfrm: int = at(56, U64)
    mrenclave: bytes = at(64, raw(32))
    mrsigner: bytes = at(128, raw(32))
    cpusvnle: bytes = at(192, raw(16))
    isvprodidle: int = at(208, U16)
    isvsvnle: int = at(210, U16)
    maskedmiscselectle: int = at(236, U32)
    maskedattributesle: int = at(240, U64)
    maskedxfrmle: int = at(248, U64)
    keyid: bytes = at(256, raw(32))
    mac: bytes = at(288, raw(16))


# REPORT.MAC covers so many bytes from the start: all but KEYID and itself.
REPORT_MACED = 384


@layout(size=432)
class Report(Record):
    """What EREPORT writes; 512-byte aligned."""

    cpusvn: bytes = at(0, raw(16))
    miscselect: int = at(16, U32)
    isvextprodid: bytes = at(32, raw(16))
    attributes: int = at(48, U64)
    xfrm: int = at(56, U64)
    mrenclave: bytes = at(64, raw(32))
    mrsigner: bytes = at(128, raw(32))
    configid: bytes = at(192, raw(64))
    isvprodid: int = at(256, U16)
    isvsvn: int = at(258, U16)
    configsvn: int = at(260, U16)
    isvfamilyid: bytes = at(304, raw(16))
    reportdata: bytes = at(320, raw(64))
    keyid: bytes = at(384, raw(32))
    mac: bytes = at(416, raw(16))


@layout(size=512)
class Targetinfo(Record):
    """Whom a report is for; 512-byte aligned."""

    measurement: bytes = at(0, raw(32))
    attributes: int = at(32, U64)
    xfrm: int = at(40, U64)
    configsvn: int = at(50, U16)
    miscselect: int = at(52, U32)
    configid: bytes = at(64, raw(64))


@layout(size=512)
class Keyrequest(Record):
    """Operand of EGETKEY; 512-byte aligned."""

    keyname: int = at(0, U16)
    keypolicy: int = at(2, U16)
    isvsvn: int = at(4, U16)
    cpusvn: bytes = at(8, raw(16))
    attributemask: int = at(24, U64)
    xfrmmask: int = at(32, U64)
    keyid: bytes = at(40, raw(32))
    miscmask: int = at(72, U32)
    configsvn: int = at(76, U16)


# REPORTMACSTRUCT.REPORTTYPE of a TDX module's report, with subtype, version and reserved byte; MAC covers so
# many bytes from the start.
REPORTTYPE_TDX = b"\x81\0\0\0"
REPORTMACSTRUCT_MACED = 224


@layout(size=256)
class Reportmacstruct(Record):
    """What SEAMREPORT writes and EVERIFYREPORT2 verifies; 256-byte aligned."""

    reporttype: bytes = at(0, raw(4))
    cpusvn: bytes = at(16, raw(16))
    tee_tcb_info_hash: bytes = at(32, raw(48))
    tee_info_hash: bytes = at(80, raw(48))
    reportdata: bytes = at(128, raw(64))
    mac: bytes = at(224, raw(32))
