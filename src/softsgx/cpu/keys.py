# SPDX-License-Identifier: Apache-2.0
"""EGETKEY, EREPORT and EVERIFYREPORT2, and the derivation that they and EINIT share (SDM volume 3D).

The manual names what a key depends on but prints no layout of it; this one is softsgx's. A key is the
AES-CMAC, under the processor's root key, of everything it depends on.
"""

from softsgx.arch.attributes import (
    ATTRIBUTE_DEBUG,
    ATTRIBUTE_EINITTOKENKEY,
    ATTRIBUTE_INIT,
    ATTRIBUTE_KSS,
    ATTRIBUTE_PROVISIONKEY,
    KEYNAME_EINITTOKEN,
    KEYNAME_PROVISION,
    KEYNAME_PROVISION_SEAL,
    KEYNAME_REPORT,
    KEYNAME_SEAL,
    KEYPOLICY_CONFIGID,
    KEYPOLICY_ISVEXTPRODID,
    KEYPOLICY_ISVFAMILYID,
    KEYPOLICY_KSS,
    KEYPOLICY_MRENCLAVE,
    KEYPOLICY_MRSIGNER,
    KEYPOLICY_NOISVPRODID,
    KEYPOLICY_RESERVED,
)
from softsgx.arch.codes import LeafCode
from softsgx.arch.exceptions import PFEC_P, PFEC_SGX, PFEC_U, PFEC_W
from softsgx.arch.layout import U16, U32, U64, Record, at, layout, raw
from softsgx.arch.secinfo import PT_REG, SECINFO_MODIFIED, SECINFO_PENDING, SECINFO_R, SECINFO_W
from softsgx.arch.structures import (
    REPORT_MACED,
    REPORTMACSTRUCT_MACED,
    REPORTTYPE_TDX,
    Keyrequest,
    Report,
    Reportmacstruct,
    Targetinfo,
)
from softsgx.cpu.epc import EPCM_BLOCKED, EPCM_TYPE_SHIFT, EPCM_VALID
from softsgx.cpu.processor import LogicalProcessor, Processor
from softsgx.cpu.secs import SecsPage
from softsgx.errors import Fault

# PKCS #1 v1.5 around a SHA-256 digest, as the manual's keys depend on it: DigestInfo, a zero, 330 times
# FF, 0001. Stored as a little-endian number, which is why it reads backwards.
DIGEST_INFO = bytes.fromhex("3031300d060960864801650304020105000420")
HARDCODED_PKCS1_5_PADDING = (b"\x00\x01" + b"\xff" * 330 + b"\x00" + DIGEST_INFO)[::-1]

# Bits of ATTRIBUTES that a key depends on whatever the request's mask says.
_SEALED_ATTRIBUTES = ATTRIBUTE_INIT | ATTRIBUTE_DEBUG
_KEY_SIZE = 16
# No KEYNAME that EGETKEY knows, so that no enclave can have the key and make a report of a TDX module.
_KEYNAME_REPORT2 = 0xFFFF
_REPORTDATA_SIZE = 64
_REG_WORD = EPCM_VALID | PT_REG << EPCM_TYPE_SHIFT
_REG_MASK = 0xFF << EPCM_TYPE_SHIFT | EPCM_VALID | EPCM_BLOCKED | SECINFO_PENDING | SECINFO_MODIFIED


@layout(size=768)
class Keydependencies(Record):
    """TMP_KEYDEPENDENCIES: everything a key depends on."""

    keyname: int = at(0, U16)
    keypolicy: int = at(2, U16)
    isvprodid: int = at(4, U16)
    isvsvn: int = at(6, U16)
    configsvn: int = at(8, U16)
    miscselect: int = at(12, U32)
    miscmask: int = at(16, U32)
    attributes: int = at(32, U64)
    xfrm: int = at(40, U64)
    attributesmask: int = at(48, U64)
    xfrmmask: int = at(56, U64)
    isvfamilyid: bytes = at(64, raw(16))
    isvextprodid: bytes = at(80, raw(16))
    sgxownerepoch: bytes = at(96, raw(16))
    seal_key_fuses: bytes = at(112, raw(16))
    cpusvn: bytes = at(128, raw(16))
    mrenclave: bytes = at(160, raw(32))
    mrsigner: bytes = at(192, raw(32))
    keyid: bytes = at(224, raw(32))
    configid: bytes = at(256, raw(64))
    padding: bytes = at(320, raw(352))


def cmac(key: bytes, data: bytes) -> bytes:
    """Return the AES-128-CMAC of the data (16 bytes)."""
    from cryptography.hazmat.primitives.ciphers.algorithms import AES128  # noqa: PLC0415
    from cryptography.hazmat.primitives.cmac import CMAC  # noqa: PLC0415

    mac = CMAC(AES128(key))
    mac.update(data)
    return mac.finalize()


def derivekey(cpu: Processor, dependencies: Keydependencies) -> bytes:
    """Return the key of 16 bytes that depends on this processor and the dependencies."""
    return cmac(cpu.identity.root_key, dependencies.encode())


def beyond(cpusvn: bytes, current: bytes) -> bool:
    """Tell whether any component of a CPUSVN is newer than the current one's."""
    return any(asked > have for asked, have in zip(cpusvn, current, strict=True))


def einittoken_key(
    cpu: Processor,
    *,
    isvprodid: int,
    isvsvn: int,
    attributes: int,
    xfrm: int,
    miscselect: int,
    mrsigner: bytes,
    cpusvn: bytes,
    keyid: bytes,
) -> bytes:
    """Return the key that a launch enclave signs tokens with, and that EINIT checks them with."""
    return derivekey(
        cpu,
        Keydependencies.blank().replace(
            keyname=KEYNAME_EINITTOKEN,
            isvprodid=isvprodid,
            isvsvn=isvsvn,
            sgxownerepoch=cpu.identity.owner_epoch,
            attributes=attributes,
            xfrm=xfrm,
            mrsigner=mrsigner,
            keyid=keyid,
            seal_key_fuses=cpu.identity.seal_fuses,
            cpusvn=cpusvn,
            padding=HARDCODED_PKCS1_5_PADDING,
            miscselect=miscselect,
        ),
    )


def report_key(
    cpu: Processor,
    *,
    mrenclave: bytes,
    attributes: int,
    xfrm: int,
    miscselect: int,
    configid: bytes,
    configsvn: int,
    keyid: bytes,
) -> bytes:
    """Return the key of the reports for one enclave: it asks for it by EGETKEY, EREPORT uses it."""
    return derivekey(
        cpu,
        Keydependencies.blank().replace(
            keyname=KEYNAME_REPORT,
            sgxownerepoch=cpu.identity.owner_epoch,
            attributes=attributes,
            xfrm=xfrm,
            mrenclave=mrenclave,
            keyid=keyid,
            seal_key_fuses=cpu.identity.seal_fuses,
            cpusvn=cpu.identity.cpusvn,
            padding=HARDCODED_PKCS1_5_PADDING,
            miscselect=miscselect,
            configid=configid,
            configsvn=configsvn,
        ),
    )


def _operand(
    cpu: Processor, lp: LogicalProcessor, secs: SecsPage, address: int, align: int, permission: int
) -> None:
    """Check an operand's alignment, then its page: present, of this enclave, of the permission."""
    if address % align or not 0 <= address - secs.baseaddr < secs.size:
        raise Fault.gp(f"operand {address:#x} is not {align}-byte aligned or outside ELRANGE")
    write = PFEC_W if permission == SECINFO_W else 0
    page = lp.resolve(address)
    if page is None:
        raise Fault.pf(address, "the operand's page is not present", PFEC_U | write)
    epc = cpu.epc
    word = epc.words[page]
    if (
        word & _REG_MASK != _REG_WORD
        or epc.owners[page] != secs.page
        or epc.addresses[page] != address & ~0xFFF
        or not word & permission
    ):
        code = PFEC_U | PFEC_P | PFEC_SGX | write
        raise Fault.pf(address, "the operand's page is not an accessible page of ours", code)


def _current(lp: LogicalProcessor) -> SecsPage:
    if lp.thread is None:
        raise ValueError("the logical processor is not inside an enclave")
    return lp.thread.secs


def ereport(cpu: Processor, lp: LogicalProcessor, rbx: int, rcx: int, rdx: int) -> None:
    """EREPORT: TARGETINFO in RBX, REPORTDATA in RCX, the REPORT to RDX."""
    secs = _current(lp)
    _operand(cpu, lp, secs, rbx, Targetinfo.SIZE, SECINFO_R)
    _operand(cpu, lp, secs, rcx, 128, SECINFO_R)
    _operand(cpu, lp, secs, rdx, 512, SECINFO_W)
    target = Targetinfo.decode(secs.elrange.read(rbx, Targetinfo.SIZE))
    report = Report(
        cpusvn=cpu.identity.cpusvn,
        miscselect=secs.miscselect,
        isvextprodid=secs.isvextprodid,
        attributes=secs.attributes,
        xfrm=secs.xfrm,
        mrenclave=secs.mrenclave,
        mrsigner=secs.mrsigner,
        configid=secs.configid,
        isvprodid=secs.isvprodid,
        isvsvn=secs.isvsvn,
        configsvn=secs.configsvn,
        isvfamilyid=secs.isvfamilyid,
        reportdata=secs.elrange.read(rcx, _REPORTDATA_SIZE),
        keyid=cpu.report_keyid,
        mac=bytes(16),
    ).encode()
    key = report_key(
        cpu,
        mrenclave=target.measurement,
        attributes=target.attributes,
        xfrm=target.xfrm,
        miscselect=target.miscselect,
        configid=target.configid,
        configsvn=target.configsvn,
        keyid=cpu.report_keyid,
    )
    mac = Report.OFFSETS["mac"]
    secs.elrange.write(rdx, report[:mac] + cmac(key, report[:REPORT_MACED]))


def report2_mac(cpu: Processor, reportmacstruct: bytes) -> bytes:
    """Return the MAC of a REPORTMACSTRUCT, as SEAMREPORT makes it for the TDX module of this processor."""
    import hmac  # noqa: PLC0415  # few processors have it

    key = derivekey(
        cpu,
        Keydependencies.blank().replace(
            keyname=_KEYNAME_REPORT2,
            sgxownerepoch=cpu.identity.owner_epoch,
            seal_key_fuses=cpu.identity.seal_fuses,
            cpusvn=cpu.identity.cpusvn,
            keyid=cpu.report_keyid,
        ),
    )
    return hmac.digest(key, reportmacstruct[:REPORTMACSTRUCT_MACED], "sha256")


def everifyreport2(cpu: Processor, lp: LogicalProcessor, rbx: int) -> LeafCode:
    """EVERIFYREPORT2: the REPORTMACSTRUCT in RBX (Intel TDX CPU architectural extensions)."""
    secs = _current(lp)
    _operand(cpu, lp, secs, rbx, Reportmacstruct.SIZE, SECINFO_R)
    data = secs.elrange.read(rbx, Reportmacstruct.SIZE)
    report = Reportmacstruct.decode(data)
    if report.reporttype != REPORTTYPE_TDX or not Reportmacstruct.reserved_is_zero(data):
        return LeafCode.INVALID_REPORTMACSTRUCT
    if beyond(report.cpusvn, cpu.identity.cpusvn):
        return LeafCode.INVALID_CPUSVN
    if report2_mac(cpu, data) != report.mac:
        return LeafCode.INVALID_REPORTMACSTRUCT
    return LeafCode.NO_ERROR


def egetkey(cpu: Processor, lp: LogicalProcessor, rbx: int, rcx: int) -> LeafCode:
    """EGETKEY: KEYREQUEST in RBX, the key to RCX, which stays untouched on an error."""
    secs = _current(lp)
    _operand(cpu, lp, secs, rbx, Keyrequest.SIZE, SECINFO_R)
    _operand(cpu, lp, secs, rcx, _KEY_SIZE, SECINFO_W)
    data = secs.elrange.read(rbx, Keyrequest.SIZE)
    request = Keyrequest.decode(data)
    if not Keyrequest.reserved_is_zero(data):
        raise Fault.gp("KEYREQUEST reserved bytes are not zero")
    if request.keypolicy & KEYPOLICY_RESERVED:
        raise Fault.gp(f"KEYPOLICY {request.keypolicy:#x} has reserved bits")
    if not secs.attributes & ATTRIBUTE_KSS and (
        request.keypolicy & KEYPOLICY_KSS or request.configsvn
    ):
        raise Fault.gp("KEYPOLICY or CONFIGSVN asks for KSS, which the enclave has not")
    key = _key(cpu, secs, request)
    if isinstance(key, LeafCode):
        return key
    secs.elrange.write(rcx, key)
    return LeafCode.NO_ERROR


# The attribute that an enclave needs to have the key.
_NEEDS = {
    KEYNAME_EINITTOKEN: ATTRIBUTE_EINITTOKENKEY,
    KEYNAME_PROVISION: ATTRIBUTE_PROVISIONKEY,
    KEYNAME_PROVISION_SEAL: ATTRIBUTE_PROVISIONKEY,
    KEYNAME_SEAL: 0,
}


def _key(cpu: Processor, secs: SecsPage, request: Keyrequest) -> bytes | LeafCode:
    name = request.keyname
    if name == KEYNAME_REPORT:
        return report_key(
            cpu,
            mrenclave=secs.mrenclave,
            attributes=secs.attributes,
            xfrm=secs.xfrm,
            miscselect=secs.miscselect,
            configid=secs.configid,
            configsvn=secs.configsvn,
            keyid=request.keyid,
        )
    needed = _NEEDS.get(name)
    if needed is None:
        return LeafCode.INVALID_KEYNAME
    if secs.attributes & needed != needed:
        return LeafCode.INVALID_ATTRIBUTE
    if beyond(request.cpusvn, cpu.identity.cpusvn):
        return LeafCode.INVALID_CPUSVN
    if request.isvsvn > secs.isvsvn:
        return LeafCode.INVALID_ISVSVN
    if name == KEYNAME_SEAL and request.configsvn > secs.configsvn:
        return LeafCode.INVALID_ISVSVN
    attributes = (request.attributemask | _SEALED_ATTRIBUTES) & secs.attributes
    xfrm = request.xfrmmask & secs.xfrm
    miscselect = request.miscmask & secs.miscselect
    if name == KEYNAME_EINITTOKEN:
        return einittoken_key(
            cpu,
            isvprodid=secs.isvprodid,
            isvsvn=request.isvsvn,
            attributes=attributes,
            xfrm=xfrm,
            miscselect=miscselect,
            mrsigner=secs.mrsigner,
            cpusvn=request.cpusvn,
            keyid=request.keyid,
        )
    common = Keydependencies.blank().replace(
        keyname=name,
        isvsvn=request.isvsvn,
        attributes=attributes,
        xfrm=xfrm,
        attributesmask=request.attributemask,
        xfrmmask=request.xfrmmask,
        cpusvn=request.cpusvn,
        padding=HARDCODED_PKCS1_5_PADDING,
        miscselect=miscselect,
        miscmask=~request.miscmask & 0xFFFF_FFFF,
    )
    if name == KEYNAME_PROVISION:
        # Neither owner epoch nor fuses: Intel, who knows the root, can derive the same key.
        return derivekey(cpu, common.replace(mrsigner=secs.mrsigner, isvprodid=secs.isvprodid))
    common = _by_policy(common, secs, request)
    if name == KEYNAME_PROVISION_SEAL:
        return derivekey(
            cpu,
            common.replace(mrsigner=secs.mrsigner, seal_key_fuses=cpu.identity.seal_fuses),
        )
    policy = request.keypolicy
    return derivekey(
        cpu,
        common.replace(
            sgxownerepoch=cpu.identity.owner_epoch,
            seal_key_fuses=cpu.identity.seal_fuses,
            mrenclave=secs.mrenclave if policy & KEYPOLICY_MRENCLAVE else bytes(32),
            mrsigner=secs.mrsigner if policy & KEYPOLICY_MRSIGNER else bytes(32),
            keyid=request.keyid,
        ),
    )


def _by_policy(
    dependencies: Keydependencies, secs: SecsPage, request: Keyrequest
) -> Keydependencies:
    """Add what KEYPOLICY chooses for both sealing keys."""
    policy = request.keypolicy
    configured = bool(policy & KEYPOLICY_CONFIGID)
    return dependencies.replace(
        keypolicy=policy,
        isvprodid=0 if policy & KEYPOLICY_NOISVPRODID else secs.isvprodid,
        isvfamilyid=secs.isvfamilyid if policy & KEYPOLICY_ISVFAMILYID else bytes(16),
        isvextprodid=secs.isvextprodid if policy & KEYPOLICY_ISVEXTPRODID else bytes(16),
        configid=secs.configid if configured else bytes(64),
        configsvn=request.configsvn if configured else 0,
    )
