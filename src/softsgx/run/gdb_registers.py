# SPDX-License-Identifier: Apache-2.0
"""A stopped thread's registers as gdb wants them: target description, order, sizes.

Owns nothing. The order is that of the `g` packet; a register's number is its place in it.

Source: the GDB manual, "Standard Target Features", i386 and amd64; SDM volume 1, 13.4 (XSAVE area).
"""

import struct

from softsgx.run import ptrace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from softsgx.run.ptrace import UserRegs

_XFRM_AVX = 1 << 2
_YMM_HIGH = 16 * 16
_XMM_AT, _ST_AT = 160, 32
_XSTATE_BV = 512
# gdb's name, ours, bytes.
_GENERAL = (
    *((name, name, 8) for name in ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp")),
    *((f"r{number}", f"r{number}", 8) for number in range(8, 16)),
    ("rip", "rip", 8),
    ("eflags", "rflags", 4),
    *((name, name, 4) for name in ("cs", "ss", "ds", "es", "fs", "gs")),
)
_LAST = (("orig_rax", "orig_rax", 8), ("fs_base", "fsbase", 8), ("gs_base", "gsbase", 8))
# Of the FXSAVE area: offset and bytes of what gdb has as 32-bit numbers.
_CONTROL = (
    ("fctrl", 0, 2), ("fstat", 2, 2), ("ftag", 4, 1), ("fiseg", 12, 2), ("fioff", 8, 4),
    ("foseg", 20, 2), ("fooff", 16, 4), ("fop", 6, 2),
)  # fmt: skip
_MXCSR = 24
_TYPES = {"rip": "code_ptr", "rsp": "data_ptr", "rbp": "data_ptr", "eflags": "i386_eflags"}
_EFLAGS = (
    ("CF", 0), ("PF", 2), ("AF", 4), ("ZF", 6), ("SF", 7), ("TF", 8), ("IF", 9), ("DF", 10),
    ("OF", 11), ("NT", 14), ("RF", 16), ("VM", 17), ("AC", 18), ("ID", 21),
)  # fmt: skip
_VECTOR = (
    '<vector id="v4f" type="ieee_single" count="4"/><vector id="v2d" type="ieee_double" count="2"/>'
    '<vector id="v16i8" type="int8" count="16"/><vector id="v8i16" type="int16" count="8"/>'
    '<vector id="v4i32" type="int32" count="4"/><vector id="v2i64" type="int64" count="2"/>'
    '<union id="vec128"><field name="v4_float" type="v4f"/><field name="v2_double" type="v2d"/>'
    '<field name="v16_int8" type="v16i8"/><field name="v8_int16" type="v8i16"/>'
    '<field name="v4_int32" type="v4i32"/><field name="v2_int64" type="v2i64"/>'
    '<field name="uint128" type="uint128"/></union>'
)


def _flags() -> str:
    fields = "".join(f'<field name="{n}" start="{at}" end="{at}"/>' for n, at in _EFLAGS)
    return f'<flags id="i386_eflags" size="4">{fields}</flags>'


def _reg(name: str, bits: int, kind: str, group: str = "") -> str:
    grouped = f' group="{group}"' if group else ""
    return f'<reg name="{name}" bitsize="{bits}" type="{kind}"{grouped}/>'


class Registers:
    """The registers of amd64; AVX's upper halves where the host's XCR0 has them.

    `ymm_high` is where they lie in the XSAVE image.
    """

    def __init__(self, xcr0: int, ymm_high: int) -> None:
        self._ymm_at = ymm_high if xcr0 & _XFRM_AVX else 0
        # By number: what is in struct user_regs_struct, and how long; else where in the XSAVE image.
        self._places: list[tuple[str, int, int]] = [(ours, size, -1) for _, ours, size in _GENERAL]
        self._places += [("", 10, _ST_AT + 16 * number) for number in range(8)]
        self._places += [("", 4, at) for _, at, _ in _CONTROL]
        self._places += [("", 16, _XMM_AT + 16 * number) for number in range(16)]
        self._places.append(("", 4, _MXCSR))
        self._places += [(ours, size, -1) for _, ours, size in _LAST]
        if self._ymm_at:
            self._places += [("", 16, self._ymm_at + 16 * number) for number in range(16)]
        self._control = {at: size for _, at, size in _CONTROL}

    def __len__(self) -> int:
        return len(self._places)

    def description(self) -> bytes:
        """Give the target description (target.xml)."""
        core = [
            _reg(name, 8 * size, _TYPES.get(name, f"int{8 * size}")) for name, _, size in _GENERAL
        ]
        core += [_reg(f"st{number}", 80, "i387_ext") for number in range(8)]
        core += [_reg(name, 32, "int", "float") for name, _, _ in _CONTROL]
        sse = [_reg(f"xmm{number}", 128, "vec128") for number in range(16)]
        sse.append(_reg("mxcsr", 32, "int", "vector"))
        features = [
            ("core", _flags() + "".join(core)),
            ("sse", _VECTOR + "".join(sse)),
            ("linux", _reg("orig_rax", 64, "int")),
            ("segments", _reg("fs_base", 64, "int") + _reg("gs_base", 64, "int")),
        ]
        if self._ymm_at:
            high = [_reg(f"ymm{number}h", 128, "uint128") for number in range(16)]
            features.append(("avx", "".join(high)))
        told = [
            f'<feature name="org.gnu.gdb.i386.{name}">{regs}</feature>' for name, regs in features
        ]
        text = (
            '<?xml version="1.0"?><!DOCTYPE target SYSTEM "gdb-target.dtd"><target version="1.0">'
            "<architecture>i386:x86-64</architecture><osabi>GNU/Linux</osabi>"
            f"{''.join(told)}</target>"
        )
        return text.encode()

    def read(self, tid: int, regs: "UserRegs", number: int) -> bytes:
        """Give one register of a stopped thread, whose general registers are `regs`."""
        return self._value(number, regs, ptrace.get_xstate(tid))

    def read_all(self, tid: int, regs: "UserRegs") -> bytes:
        """Give all of them in order."""
        image = ptrace.get_xstate(tid)
        return b"".join([self._value(number, regs, image) for number in range(len(self._places))])

    def _value(self, number: int, regs: "UserRegs", image: bytearray) -> bytes:
        name, size, at = self._places[number]
        if name:
            whole: int = getattr(regs, name)
            return whole.to_bytes(8, "little")[:size]
        if at < _XSTATE_BV:
            return bytes(image[at : at + self._control.get(at, size)]).ljust(size, b"\0")
        # A component in its initial state has nothing in the image.
        here = image[_XSTATE_BV] & _XFRM_AVX and at + size <= len(image)
        return bytes(image[at : at + size]) if here else bytes(size)

    def write(self, tid: int, regs: "UserRegs", number: int, value: bytes) -> None:
        """Change one register of a stopped thread."""
        self._store(tid, regs, [(number, value)])

    def write_all(self, tid: int, regs: "UserRegs", values: bytes) -> None:
        """Change all, from their values in order; what is missing at the end stays."""
        changes, at = [], 0
        for number, (_, size, _) in enumerate(self._places):
            if at + size > len(values):
                break
            changes.append((number, values[at : at + size]))
            at += size
        self._store(tid, regs, changes)

    def _store(self, tid: int, regs: "UserRegs", changes: "list[tuple[int, bytes]]") -> None:
        image = ptrace.get_xstate(tid)
        before = bytes(image)
        for number, value in changes:
            name, size, at = self._places[number]
            if name:
                whole = getattr(regs, name).to_bytes(8, "little")
                setattr(regs, name, int.from_bytes(value[:size] + whole[size:], "little"))
            elif at < _XSTATE_BV:
                kept = self._control.get(at, size)
                image[at : at + kept] = value[:kept]
            elif at + size <= len(image) and (any(value) or image[_XSTATE_BV] & _XFRM_AVX):
                if not image[_XSTATE_BV] & _XFRM_AVX:
                    image[self._ymm_at : self._ymm_at + _YMM_HIGH] = bytes(_YMM_HIGH)
                    image[_XSTATE_BV] |= _XFRM_AVX
                image[at : at + size] = value[:size]
        if image != before:
            # What was changed of x87 and SSE is in use from now on.
            bv = struct.unpack_from("<Q", image, _XSTATE_BV)[0] | 3
            struct.pack_into("<Q", image, _XSTATE_BV, bv)
            ptrace.set_xstate(tid, image)
        ptrace.set_regs(tid, regs)
