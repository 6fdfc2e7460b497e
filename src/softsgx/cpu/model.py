# SPDX-License-Identifier: Apache-2.0
"""What the processor claims to be: its features, and CPUID which tells them (SDM volume 3D, 37.7).

Only what is built is claimed. The vendor and everything outside SGX stay the host's.
"""

from softsgx.arch.attributes import (
    ATTRIBUTE_AEXNOTIFY,
    ATTRIBUTE_DEBUG,
    ATTRIBUTE_EINITTOKENKEY,
    ATTRIBUTE_KSS,
    ATTRIBUTE_MODE64BIT,
    ATTRIBUTE_PROVISIONKEY,
    MISC_EXINFO,
    TCS_AEXNOTIFY,
    TCS_DBGOPTIN,
    XFRM_AMX,
    XFRM_AVX,
    XFRM_AVX512,
    XFRM_LEGACY,
    XFRM_MPX,
    XFRM_PKRU,
    XFRM_SSE,
)
from softsgx.errors import SoftsgxError

# Offset and size of the components in the standard format, as CPUID.0DH tells them on Intel's processors.
XSAVE_SIZES = {
    2: (256, 576),
    3: (64, 960),
    4: (64, 1024),
    5: (64, 1088),
    6: (512, 1152),
    7: (1024, 1664),
    9: (8, 2688),
    17: (64, 2752),
    18: (8192, 2816),
}
# The legacy area and the header.
XSAVE_MINIMUM = 576

# What SIZE must be below, as a power of two, 32-bit and 64-bit: CPUID.12H.0:EDX. Processors with
# SGX tell 38H; here an enclave has no pages beyond the user address space of 4-level paging.
MAX_ENCLAVE_SIZE_NOT64 = 0x1F
MAX_ENCLAVE_SIZE_64 = 0x2F

# A physical address nobody uses; a section is told by CPUID but never dereferenced.
_EPC_PHYSICAL_BASE = 0x10_0000_0000

# The EPCM's column of owners holds 32-bit page numbers.
_EPC_MAXIMUM = 1 << 44

# What a processor with SGX1 may have besides: its bit of CPUID.12H.0:EAX, the bit of ATTRIBUTES and that of
# MISCSELECT that come with it.
FEATURES = {
    "sgx2": (1 << 1, 0, 0),
    "oversub": (1 << 6, 0, 0),
    "everifyreport2": (1 << 7, 0, 0),
    "eupdatesvn": (1 << 10, 0, 0),
    "aex-notify": (1 << 11, ATTRIBUTE_AEXNOTIFY, 0),
    "kss": (0, ATTRIBUTE_KSS, 0),
    "exinfo": (0, 0, MISC_EXINFO),
}
# EVERIFYREPORT2 comes with TDX, whose reports nothing here can make.
DEFAULT_FEATURES = frozenset(FEATURES) - {"everifyreport2"}
# The leaves of a feature, by number; all others are SGX1's.
ENCLS_OF = {
    "sgx2": (0x0D, 0x0E, 0x0F),  # EAUG, EMODPR, EMODT
    "oversub": (0x10, 0x11, 0x12, 0x13),  # ERDINFO, ETRACKC, ELDBC, ELDUC
    "eupdatesvn": (0x18,),
}
ENCLU_OF = {
    "sgx2": (5, 6, 7),  # EACCEPT, EMODPE, EACCEPTCOPY
    "everifyreport2": (8,),
    "aex-notify": (9,),  # EDECCSSA
}
_ENCLS_SGX1 = 0x0C
_ENCLU_SGX1 = 0x04

_LEAF_SGX = 0x12
_SGX1 = 1 << 0
_LEAF7_EBX_SGX = 1 << 2
_LEAF7_ECX_SGX_LC = 1 << 30
_SECTION_VALID = 1
_SECTION_CONFIDENTIAL_INTEGRITY = 1

Cpuid = tuple[int, int, int, int]
# Leaf and subleaf with the bits that must agree, then what is kept of the host's registers and what
# is added. The first row that agrees counts; where none does, the host's answer stands.
CpuidRow = tuple[int, int, int, int, Cpuid, Cpuid]
_EVERY_BIT = 0xFFFF_FFFF


class Model:
    """A processor model.

    ``epc_bytes`` is the EPC that CPUID reports. ``xcr0`` is the host's XCR0: XFRM offers of it what an
    enclave may have, because the host's XSAVE area is what an enclave's XSAVE really writes.
    ``xsave_sizes`` is (size, offset) by component, CPUID.0DH's EAX and EBX. ``max_leaf`` is the host's
    highest basic CPUID leaf, CPUID.0:EAX. ``features`` are names of FEATURES; ``encls`` and ``enclu`` are
    the leaves that it has by them, ``tcs_flags`` the bits that TCS.FLAGS may have.
    """

    __slots__ = (
        "attributes",
        "cpuid_rows",
        "encls",
        "enclu",
        "epc_bytes",
        "features",
        "max_leaf",
        "miscselect",
        "tcs_flags",
        "xfrm",
        "xsave_sizes",
    )

    def __init__(
        self,
        epc_bytes: int = 128 << 20,
        xcr0: int = 7,
        xsave_sizes: dict[int, tuple[int, int]] | None = None,
        max_leaf: int = _LEAF_SGX,
        features: frozenset[str] = DEFAULT_FEATURES,
    ) -> None:
        if epc_bytes < 4096 or epc_bytes % 4096 or epc_bytes >= _EPC_MAXIMUM - 4096:
            raise SoftsgxError(
                f"an EPC of {epc_bytes} bytes; a multiple of 4096 below {_EPC_MAXIMUM} is wanted"
            )
        for feature in sorted(features):
            if feature not in FEATURES:
                raise SoftsgxError(
                    f"no feature {feature!r} of a processor; there are {', '.join(FEATURES)}"
                )
        self.features = features
        self.encls = _leaves(features, ENCLS_OF, _ENCLS_SGX1)
        self.enclu = _leaves(features, ENCLU_OF, _ENCLU_SGX1)
        self.epc_bytes = epc_bytes
        self.max_leaf = max_leaf
        self.xsave_sizes = dict(XSAVE_SIZES if xsave_sizes is None else xsave_sizes)
        self.attributes = (
            ATTRIBUTE_DEBUG | ATTRIBUTE_MODE64BIT | ATTRIBUTE_PROVISIONKEY | ATTRIBUTE_EINITTOKENKEY
        )
        self.miscselect = 0
        for feature in features:
            self.attributes |= FEATURES[feature][1]
            self.miscselect |= FEATURES[feature][2]
        self.tcs_flags = TCS_DBGOPTIN | (TCS_AEXNOTIFY if "aex-notify" in features else 0)
        possible = XFRM_LEGACY | XFRM_AVX | XFRM_MPX | XFRM_AVX512 | XFRM_PKRU | XFRM_AMX
        known = XFRM_LEGACY | sum(1 << component for component in self.xsave_sizes)
        self.xfrm = xcr0 & possible & known | XFRM_LEGACY
        self.cpuid_rows = self._rows()

    def loadable(self, xfrm: int) -> bool:
        """Tell whether XSETBV would take the value on this processor."""
        if xfrm & XFRM_LEGACY != XFRM_LEGACY or xfrm & ~self.xfrm:
            return False
        if xfrm & XFRM_AVX and not xfrm & XFRM_SSE:
            return False
        if xfrm & XFRM_AVX512 and (xfrm & XFRM_AVX512 != XFRM_AVX512 or not xfrm & XFRM_AVX):
            return False
        return xfrm & XFRM_MPX in {0, XFRM_MPX} and xfrm & XFRM_AMX in {0, XFRM_AMX}

    def xsave_size(self, xfrm: int) -> int:
        """Return the bytes of a standard-format XSAVE area for the components (SDM 42.7.2.2)."""
        size = XSAVE_MINIMUM
        for component, (length, offset) in self.xsave_sizes.items():
            if component >= 2 and xfrm >> component & 1:
                size = max(size, offset + length)
        return size

    def ssa_size(self, xfrm: int, miscselect: int) -> int:
        """Return the least bytes of an SSA frame."""
        # Records cost a start as much as the interpreter, and only an enclave needs these.
        from softsgx.arch.structures import Exinfo, Gprsgx  # noqa: PLC0415

        misc = Exinfo.SIZE if miscselect & MISC_EXINFO else 0
        return self.xsave_size(xfrm) + Gprsgx.SIZE + misc

    def cpuid(self, leaf: int, subleaf: int, native: Cpuid) -> Cpuid:
        """Return EAX, EBX, ECX, EDX, given what the host's CPUID returned for the same operands."""
        if not leaf:
            # As the row, for a host whose highest leaf this model was not told.
            return max(native[0], _LEAF_SGX), *native[1:]
        for row_leaf, leaf_mask, row_subleaf, subleaf_mask, keep, add in self.cpuid_rows:
            if not (leaf ^ row_leaf) & leaf_mask and not (subleaf ^ row_subleaf) & subleaf_mask:
                eax, ebx, ecx, edx = (
                    value & kept | added
                    for value, kept, added in zip(native, keep, add, strict=True)
                )
                return eax, ebx, ecx, edx
        return native

    def _rows(self) -> tuple[CpuidRow, ...]:
        every, none = _EVERY_BIT, (0, 0, 0, 0)
        all_kept = (every, every, every, every)
        highest = max(self.max_leaf, _LEAF_SGX)
        rows = [
            (0, every, 0, 0, (0, every, every, every), (highest, 0, 0, 0)),
            (7, every, 0, every, all_kept, (0, _LEAF7_EBX_SGX, _LEAF7_ECX_SGX_LC, 0)),
        ]
        rows += [
            (_LEAF_SGX, every, subleaf, every, none, self._cpuid_sgx(subleaf))
            for subleaf in range(3)
        ]
        # Beyond its last leaf a host answers what it likes (Intel's: as for the last one).
        empty = (_LEAF_SGX, *range(self.max_leaf + 1, _LEAF_SGX))
        return (*rows, *((leaf, every, 0, 0, none, none) for leaf in empty))

    def _cpuid_sgx(self, subleaf: int) -> Cpuid:
        if subleaf == 0:
            sizes = MAX_ENCLAVE_SIZE_64 << 8 | MAX_ENCLAVE_SIZE_NOT64
            told = _SGX1
            for feature in self.features:
                told |= FEATURES[feature][0]
            return told, self.miscselect, 0, sizes
        if subleaf == 1:
            return (*_halves(self.attributes), *_halves(self.xfrm))
        if subleaf == 2:
            base_low, base_high = _halves(_EPC_PHYSICAL_BASE)
            size_low, size_high = _halves(self.epc_bytes)
            return (
                base_low | _SECTION_VALID,
                base_high,
                size_low | _SECTION_CONFIDENTIAL_INTEGRITY,
                size_high,
            )
        return 0, 0, 0, 0


def _leaves(
    features: frozenset[str], leaves_of: dict[str, tuple[int, ...]], last: int
) -> frozenset[int]:
    more = (leaf for feature in features for leaf in leaves_of.get(feature, ()))
    return frozenset((*range(last + 1), *more))


def _halves(value: int) -> tuple[int, int]:
    return value & 0xFFFF_FFFF, value >> 32
