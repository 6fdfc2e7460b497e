/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The arguments of the drivers before mainline's as a program declares them: by the sizes of their
 * fields, packed where the drivers' headers pack them.  test_abi.py lets the compiler compare them, and
 * the request numbers that _IOW makes of them, with the package's.
 */
#include <linux/ioctl.h>
#include <stdint.h>

struct __attribute__((packed)) EnclaveAddPage {
	uint64_t addr, src, secinfo;
	uint16_t mrmask;
};

struct EnclaveInitAt {
	uint64_t addr, sigstruct;
};

struct EnclaveInitByToken {
	uint64_t addr, sigstruct, einittoken;
};

struct EnclaveSetAttributeAt {
	uint64_t addr, attribute_fd;
};

struct EnclaveRange {
	unsigned long start_addr;
	unsigned int nr_pages;
};

/* The range is a member of its own there: it ends in four bytes of padding. */
struct EnclaveModification {
	unsigned long start_addr;
	unsigned int nr_pages;
	unsigned long flags;
};

struct EnclavePage {
	unsigned long addr;
};

#define SGX_IOC_ENCLAVE_ADD_PAGE _IOW(0xA4, 0x01, struct EnclaveAddPage)
#define SGX_IOC_ENCLAVE_INIT_AT _IOW(0xA4, 0x02, struct EnclaveInitAt)
#define SGX_IOC_ENCLAVE_INIT_BY_TOKEN _IOW(0xA4, 0x02, struct EnclaveInitByToken)
#define SGX_IOC_ENCLAVE_SET_ATTRIBUTE_AT _IOW(0xA4, 0x03, struct EnclaveSetAttributeAt)
#define SGX_IOC_ENCLAVE_EMODPR _IOW(0xA4, 0x09, struct EnclaveModification)
#define SGX_IOC_ENCLAVE_MKTCS _IOW(0xA4, 0x0a, struct EnclaveRange)
#define SGX_IOC_ENCLAVE_TRIM _IOW(0xA4, 0x0b, struct EnclaveRange)
#define SGX_IOC_ENCLAVE_NOTIFY_ACCEPT _IOW(0xA4, 0x0c, struct EnclaveRange)
#define SGX_IOC_ENCLAVE_PAGE_REMOVE _IOW(0xA4, 0x0d, struct EnclavePage)
