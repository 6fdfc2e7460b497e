# SPDX-License-Identifier: Apache-2.0
"""The proof that a byte pair is an executed CPUID instruction: what the start of its function reaches.

Loaded only for a file that holds such a pair and is seen for the first time. A linear sweep
would be cheaper but takes data in text (a string after a jump, a table after a return) for
instructions, so control flow is followed: what falls through, jumps and branches. Code
reached by an indirect jump alone is not proven.
"""

from iced_x86 import Code, Decoder, FlowControl, OpKind

from softsgx.run.cpuid_detours import Detours
from softsgx.run.cpuid_sites import Elf
from softsgx.run.function_starts import FunctionStarts

_FUNCTION_LIMIT = 1 << 20
# Some six seconds of decoding, once a file; what is left over then is unproven.
_INSTRUCTIONS_LIMIT = 4 << 20
_LONGEST_INSTRUCTION = 15

_FALLS_THROUGH = (FlowControl.NEXT, FlowControl.INDIRECT_CALL)
_BRANCHES = (FlowControl.CONDITIONAL_BRANCH, FlowControl.XBEGIN_XABORT_XEND)


class Proof:
    """Tells for the byte pairs of one file whether they are instructions."""

    def __init__(self, elf: Elf) -> None:
        self._elf = elf
        self._functions = FunctionStarts(elf)
        self._budget = _INSTRUCTIONS_LIMIT
        self._function: tuple[int, int] = (0, 0)
        self._reached: dict[int, int] = {}
        self._detours: Detours | None = None

    def covers(self, offset: int) -> bool | None:
        """Tell whether control flow from a known function start executes CPUID at this offset.

        False where it executes another instruction with the pair in it; None where it does not tell.
        """
        where = self._elf.address(offset)
        if where is None:
            return None
        verdict = None
        address, segment_end = where
        for start, whole in self._functions.around(address, segment_end):
            end = min(whole, start + _FUNCTION_LIMIT)
            if (start, end) != self._function:
                self._reached = self._follow(start, end)
                self._function = (start, end)
            if self._is_cpuid(address):
                return True
            if self._is_operand(address):
                verdict = False
        return verdict

    def detour(self, offset: int) -> int:
        """Give the encoded detour of the site that `covers` has just proven, or 0."""
        where = self._elf.address(offset)
        if where is None:
            return 0
        if self._detours is None:
            self._detours = Detours(self._elf, self._follow)
        return self._detours.at(where[0], self._function, self._reached)

    def _is_cpuid(self, address: int) -> bool:
        reached = self._reached
        if reached.get(address) != -2:
            return False
        # Two decodings of the same bytes (a jump past a prefix): patching one would change the other.
        if address + 1 in reached:
            return False
        return not any(
            abs(reached.get(address - back, 0)) > back for back in range(1, _LONGEST_INSTRUCTION)
        )

    def _is_operand(self, address: int) -> bool:
        # The length of CPUID itself, here behind a prefix, is negative.
        return address not in self._reached and any(
            self._reached.get(address - back, 0) > back for back in range(1, _LONGEST_INSTRUCTION)
        )

    # Address -> length of each instruction that is reached from the start and what is given more;
    # negative for CPUID.
    def _follow(self, start: int, end: int, *more: int) -> dict[int, int]:
        code = self._elf.at(start, end - start)
        end = start + len(code)
        decoder = Decoder(64, code, ip=start)
        reached: dict[int, int] = {}
        pending = [start, *more]
        budget = self._budget
        while pending:
            ip = pending.pop()
            while start <= ip < end and ip not in reached and budget > 0:
                budget -= 1
                decoder.position = ip - start
                decoder.ip = ip
                instruction = decoder.decode()
                if instruction.code == Code.INVALID:
                    # What was taken for code is data, or cut off: nothing here is certain.
                    self._budget = budget
                    return {}
                length = instruction.len
                reached[ip] = -length if instruction.code == Code.CPUID else length
                flow = instruction.flow_control
                if flow in _FALLS_THROUGH:
                    ip += length
                    continue
                if flow == FlowControl.INTERRUPT and instruction.code != Code.INT3:
                    ip += length
                    continue
                near = instruction.op_count > 0 and instruction.op0_kind == OpKind.NEAR_BRANCH64
                target = instruction.near_branch_target if near else 0
                if flow == FlowControl.CALL:
                    # A call into the same function may only fetch its return address: then what
                    # follows is data, so it counts as code only if something else reaches it.
                    if start < target < end:
                        pending.append(target)
                        break
                    ip += length
                    continue
                if near:
                    pending.append(target)
                if flow in _BRANCHES:
                    ip += length
                    continue
                break
        self._budget = budget
        return reached if budget > 0 else {}
