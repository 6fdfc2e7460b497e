/* SPDX-License-Identifier: Apache-2.0 */
/* The ioctls by which a program provides the backing store of its enclave: docs/backing.md. */
#ifndef SET_BACKING_H
#define SET_BACKING_H

#include <linux/ioctl.h>
#include <linux/types.h>

struct sgx_enclave_set_backing {
	__u64 flags;
	__u64 contents, contents_len;
	__u64 pcmd, pcmd_len;
	__s32 contents_fd, pcmd_fd;
	__u64 enclave;
	__u64 reserved;
};

struct sgx_enclave_create_backing {
	__u64 src;
	__u64 backing;
};

#define SGX_IOC_ENCLAVE_SET_BACKING _IOW(0xA4, 0x10, struct sgx_enclave_set_backing)
#define SGX_IOC_ENCLAVE_CREATE_BACKING _IOW(0xA4, 0x00, struct sgx_enclave_create_backing)

#define SGX_BACKING_KERNEL 0
#define SGX_BACKING_NONE 1
#define SGX_BACKING_VMA 2
#define SGX_BACKING_FD 3
#define SGX_BACKING_SEPARATE (1 << 4)
#define SGX_BACKING_KILL_ON_ERROR (1 << 5)
#define SGX_BACKING_SYNC (1 << 6)
#define SGX_BACKING_PUNCH (1 << 7)

#endif
