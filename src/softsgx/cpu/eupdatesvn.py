# SPDX-License-Identifier: Apache-2.0
"""EUPDATESVN: attest to the microcode that was loaded since the start, without another one.

Source: "Runtime microcode updates with Intel SGX", and the kernel's arch/x86/kernel/cpu/sgx/main.c.
"""

from softsgx.arch.codes import LeafCode
from softsgx.cpu.epc import EPCM_VALID
from softsgx.cpu.processor import Processor


def eupdatesvn(cpu: Processor) -> LeafCode:
    """EUPDATESVN, which has no operands: a new paging key, and the loaded microcode's CPUSVN.

    NO_UPDATE is told in CF and is no failure: the paging key is new all the same.
    """
    epc = cpu.epc
    if epc.busy:
        return LeafCode.EPC_PAGE_CONFLICT
    if any(word & EPCM_VALID for word in epc.words):
        return LeafCode.EPC_NOT_READY
    if not cpu.renew_base_pk():
        return LeafCode.INSUFFICIENT_ENTROPY
    if cpu.identity.cpusvn == cpu.microcode_svn:
        return LeafCode.NO_UPDATE
    # The file of the identity stays: the next start is again one with the microcode of before.
    cpu.identity = cpu.identity.replace(cpusvn=cpu.microcode_svn)
    return LeafCode.NO_ERROR
