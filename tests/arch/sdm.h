/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The structures of the SDM (volume 3D, "SGX data structures") by the sizes of their fields, in the
 * manual's order, reserved fields too.  The package declares the same by offsets: test_abi.py lets the
 * compiler compare the two.
 */
#include <stdint.h>
#pragma pack(push, 1)

struct Secs {
	uint64_t size, baseaddr;
	uint32_t ssaframesize, miscselect;
	uint8_t cet_attributes, reserved_25[7];
	uint64_t cet_leg_bitmap_offset;
	uint8_t cet_bitmap_page_type, reserved_41[7];
	uint64_t attributes, xfrm;
	uint8_t mrenclave[32], reserved_96[32], mrsigner[32], reserved_160[32], configid[64];
	uint16_t isvprodid, isvsvn, configsvn;
	uint8_t reserved_262[3834];
};

struct Tcs {
	uint64_t state, flags, ossa;
	uint32_t cssa, nssa;
	uint64_t oentry, aep, ofsbasgx, ogsbasgx;
	uint32_t fslimit, gslimit;
	uint64_t ocetssa, prevssp;
	uint8_t reserved_88[4008];
};

struct Gprsgx {
	uint64_t rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15;
	uint64_t rflags, rip, ursp, urbp;
	uint32_t exitinfo;
	uint8_t reserved_164[3], aexnotify;
	uint64_t fsbase, gsbase;
};

struct Exinfo {
	uint64_t maddr;
	uint32_t errcd, reserved_12;
};

struct Pageinfo {
	uint64_t linaddr, srcpge, secinfo, secs;
};

struct Secinfo {
	uint64_t flags;
	uint8_t reserved_8[56];
};

struct Pcmd {
	struct Secinfo secinfo;
	uint64_t enclaveid;
	uint8_t reserved_72[40], mac[16];
};

struct Rdinfo {
	uint64_t status, flags, enclavecontext;
	uint64_t reserved;
};

struct Reportmacstruct {
	uint8_t reporttype[4], reserved_4[12], cpusvn[16];
	uint8_t tee_tcb_info_hash[48], tee_info_hash[48], reportdata[64], reserved_192[32], mac[32];
};

struct Sigstruct {
	uint8_t header[16];
	uint32_t vendor, date;
	uint8_t header2[16];
	uint32_t swdefined;
	uint8_t reserved_44[84], modulus[384];
	uint32_t exponent;
	uint8_t signature[384];
	uint32_t miscselect, miscmask;
	uint8_t cet_attributes, cet_attributes_mask, reserved_910[2], isvfamilyid[16];
	uint64_t attributes, xfrm, attributemask, xfrmmask;
	uint8_t enclavehash[32], reserved_992[16], isvextprodid[16];
	uint16_t isvprodid, isvsvn;
	uint8_t reserved_1028[12], q1[384], q2[384];
};

struct Einittoken {
	uint32_t valid;
	uint8_t reserved_4[44];
	uint64_t attributes, xfrm;
	uint8_t mrenclave[32], reserved_96[32], mrsigner[32], reserved_160[32], cpusvnle[16];
	uint16_t isvprodidle, isvsvnle;
	uint8_t reserved_212[24];
	uint32_t maskedmiscselectle;
	uint64_t maskedattributesle, maskedxfrmle;
	uint8_t keyid[32], mac[16];
};

struct Report {
	uint8_t cpusvn[16];
	uint32_t miscselect;
	uint8_t cet_attributes, reserved_21[11], isvextprodid[16];
	uint64_t attributes, xfrm;
	uint8_t mrenclave[32], reserved_96[32], mrsigner[32], reserved_160[32], configid[64];
	uint16_t isvprodid, isvsvn, configsvn;
	uint8_t reserved_262[42], isvfamilyid[16], reportdata[64], keyid[32], mac[16];
};

struct Targetinfo {
	uint8_t measurement[32];
	uint64_t attributes, xfrm;
	uint8_t cet_attributes, reserved_49;
	uint16_t configsvn;
	uint32_t miscselect;
	uint8_t reserved_56[8], configid[64], reserved_128[384];
};

struct Keyrequest {
	uint16_t keyname, keypolicy, isvsvn;
	uint8_t cet_attributes_mask, reserved_7, cpusvn[16];
	uint64_t attributemask, xfrmmask;
	uint8_t keyid[32];
	uint32_t miscmask;
	uint16_t configsvn;
	uint8_t reserved_78[434];
};

#pragma pack(pop)
