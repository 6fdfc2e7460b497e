# SPDX-License-Identifier: Apache-2.0
"""The leaf numbers of ENCLS and ENCLU, and the opcodes (SDM volume 3D, chapter "SGX instruction references")."""

from enum import IntEnum

ENCLS_OPCODE = b"\x0f\x01\xcf"
ENCLU_OPCODE = b"\x0f\x01\xd7"
ENCLV_OPCODE = b"\x0f\x01\xc0"


class Encls(IntEnum):
    """Leaf of ENCLS, in EAX."""

    ECREATE = 0x00
    EADD = 0x01
    EINIT = 0x02
    EREMOVE = 0x03
    EDBGRD = 0x04
    EDBGWR = 0x05
    EEXTEND = 0x06
    ELDB = 0x07
    ELDU = 0x08
    EBLOCK = 0x09
    EPA = 0x0A
    EWB = 0x0B
    ETRACK = 0x0C
    EAUG = 0x0D
    EMODPR = 0x0E
    EMODT = 0x0F
    ERDINFO = 0x10
    ETRACKC = 0x11
    ELDBC = 0x12
    ELDUC = 0x13
    EUPDATESVN = 0x18


class Enclu(IntEnum):
    """Leaf of ENCLU, in EAX."""

    EREPORT = 0
    EGETKEY = 1
    EENTER = 2
    ERESUME = 3
    EEXIT = 4
    EACCEPT = 5
    EMODPE = 6
    EACCEPTCOPY = 7
    EVERIFYREPORT2 = 8
    EDECCSSA = 9
