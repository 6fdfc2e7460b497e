# SPDX-License-Identifier: Apache-2.0
"""EINIT: verify the signature, compare the measurement, make the enclave enterable (SDM volume 3D, EINIT)."""

from softsgx.arch.attributes import (
    ATTRIBUTE_DEBUG,
    ATTRIBUTE_EINITTOKENKEY,
    ATTRIBUTE_INIT,
    ATTRIBUTE_KSS,
)
from softsgx.arch.codes import LeafCode
from softsgx.arch.structures import (
    EINITTOKEN_MACED,
    Einittoken,
    Sigstruct,
)
from softsgx.cpu.keys import beyond, cmac, einittoken_key
from softsgx.cpu.memory import Memory
from softsgx.cpu.processor import Processor
from softsgx.cpu.secs import SecsPage
from softsgx.errors import Fault

# Attributes that only the signer in IA32_SGXLEPUBKEYHASH may give its enclaves.
_CONTROLLED_ATTRIBUTES = ATTRIBUTE_EINITTOKENKEY
_TOKEN_VALID = 1


def einit(cpu: Processor, memory: Memory, rbx: int, rcx: int, rdx: int) -> LeafCode:
    """EINIT: SIGSTRUCT in RBX, the SECS in RCX, EINITTOKEN in RDX."""
    from hashlib import sha256  # noqa: PLC0415  # libcrypto is not needed before

    from softsgx.image.sigstruct import format_error, signature_error  # noqa: PLC0415

    epc = cpu.epc
    if rbx % 4096 or rcx % 4096:
        raise Fault.gp("EINIT operand is not page aligned")
    if rdx % 512:
        raise Fault.gp("EINITTOKEN is not 512-byte aligned")
    page = epc.resolve(rcx)
    with memory.user_access() as window:
        data = window.read(rbx, Sigstruct.SIZE)
        token = window.read(rdx, Einittoken.SIZE)
    css = Sigstruct.decode(data)
    if format_error(data):
        return LeafCode.INVALID_SIG_STRUCT
    if signature_error(data):
        return LeafCode.INVALID_SIGNATURE
    epc.lock(page)
    try:
        if not epc.is_secs(page):
            raise Fault.pf(rcx, "the page is no valid SECS")
        secs = cpu.enclaves[page]
        if not secs.attributes & ATTRIBUTE_KSS and (any(css.isvfamilyid) or any(css.isvextprodid)):
            return LeafCode.INVALID_SIG_STRUCT
        if secs.initialised:
            raise Fault.gp("the enclave is initialised already")
        mrenclave = secs.hasher.digest()
        if mrenclave != css.enclavehash:
            return LeafCode.INVALID_MEASUREMENT
        mrsigner = sha256(css.modulus).digest()
        if secs.attributes & _CONTROLLED_ATTRIBUTES and mrsigner != cpu.ia32_sgxlepubkeyhash:
            return LeafCode.INVALID_ATTRIBUTE
        if (secs.attributes ^ css.attributes) & css.attributemask or (
            secs.xfrm ^ css.xfrm
        ) & css.xfrmmask:
            return LeafCode.INVALID_ATTRIBUTE
        if (secs.miscselect ^ css.miscselect) & css.miscmask:
            return LeafCode.INVALID_ATTRIBUTE
        code = _launch(cpu, secs, token, mrenclave, mrsigner)
        if code:
            return code
        secs.mrenclave = mrenclave
        secs.mrsigner = mrsigner
        secs.isvprodid = css.isvprodid
        secs.isvsvn = css.isvsvn
        secs.isvfamilyid = css.isvfamilyid
        secs.isvextprodid = css.isvextprodid
        secs.attributes |= ATTRIBUTE_INIT
    finally:
        epc.unlock((page,))
    return LeafCode.NO_ERROR


def _launch(
    cpu: Processor, secs: SecsPage, data: bytes, mrenclave: bytes, mrsigner: bytes
) -> LeafCode:
    """Make the checks of launch control: the signer is the trusted one, or the token says yes."""
    token = Einittoken.decode(data)
    if not token.valid & _TOKEN_VALID:
        trusted = mrsigner == cpu.ia32_sgxlepubkeyhash
        return LeafCode.NO_ERROR if trusted else LeafCode.INVALID_EINITTOKEN
    if token.maskedattributesle & ATTRIBUTE_DEBUG and not secs.debug:
        return LeafCode.INVALID_EINITTOKEN
    if token.valid != _TOKEN_VALID or not Einittoken.reserved_is_zero(data):
        return LeafCode.INVALID_EINITTOKEN
    if beyond(token.cpusvnle, cpu.identity.cpusvn):
        return LeafCode.INVALID_CPUSVN
    key = einittoken_key(
        cpu,
        isvprodid=token.isvprodidle,
        isvsvn=token.isvsvnle,
        attributes=token.maskedattributesle,
        xfrm=token.maskedxfrmle,
        miscselect=token.maskedmiscselectle,
        mrsigner=cpu.ia32_sgxlepubkeyhash,
        cpusvn=token.cpusvnle,
        keyid=token.keyid,
    )
    if cmac(key, data[:EINITTOKEN_MACED]) != token.mac:
        return LeafCode.INVALID_EINITTOKEN
    if token.mrenclave != mrenclave or token.mrsigner != mrsigner:
        return LeafCode.INVALID_MEASUREMENT
    if (token.attributes, token.xfrm) != (secs.attributes, secs.xfrm):
        return LeafCode.INVALID_ATTRIBUTE
    return LeafCode.NO_ERROR
