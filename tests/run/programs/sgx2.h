/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the programs of SGX2 share: the ioctls of <asm/sgx.h>, which older headers lack, and the
 * leaves of the enclave.  The enclave has a hole from its base on: see HOLE_SIZE.
 */
#ifndef SGX2_H
#define SGX2_H

#include <sched.h>

#define SECINFO_X 4UL
#define SECINFO_PENDING 8UL
#define SECINFO_MODIFIED 16UL
#define SECINFO_PR 32UL
#define SECINFO_TRIM (4UL << 8)
#define SECINFO_RW (SECINFO_REG | SECINFO_R | SECINFO_W)
#define AUGMENTED (SECINFO_RW | SECINFO_PENDING)
#define PT_TCS 1
#define PT_REG 2
#define PT_TRIM 4

#define PFEC_SGX_READ 0x8005
#define PFEC_SGX_WRITE 0x8007
#define PFEC_SGX_FETCH 0x8015

#define SGX_NOT_TRACKED 11
#define SGX_PAGE_ATTRIBUTES_MISMATCH 19
#define SGX_PAGE_NOT_MODIFIABLE 20

struct restrict_permissions {
	uint64_t offset, length, permissions, result, count;
};

struct modify_types {
	uint64_t offset, length, page_type, result, count;
};

struct remove_pages {
	uint64_t offset, length, count;
};

#define IOC_RESTRICT _IOWR(0xa4, 5, struct restrict_permissions)
#define IOC_MODIFY _IOWR(0xa4, 6, struct modify_types)
#define IOC_REMOVE _IOWR(0xa4, 7, struct remove_pages)

/* An ioctl until it has done all its pages: one at a time an enclave, and none while pages are on their way. */
#define UNTIL_DONE(fd, request, argument)                                              \
	({                                                                             \
		int result_;                                                           \
		while ((result_ = ioctl(fd, request, &(argument))) &&                  \
		       (errno == EBUSY || errno == EAGAIN)) {                          \
			(argument).offset += (argument).count;                         \
			(argument).length -= (argument).count;                         \
			(argument).count = 0;                                          \
			sched_yield();                                                 \
		}                                                                      \
		result_;                                                               \
	})

__attribute__((unused)) static int restrict_pages(const struct enclave *enclave, uint64_t at,
						    uint64_t length, uint64_t permissions)
{
	struct restrict_permissions argument = {
		.offset = at - enclave->base, .length = length, .permissions = permissions
	};

	return UNTIL_DONE(enclave->fd, IOC_RESTRICT, argument);
}

__attribute__((unused)) static int modify_pages(const struct enclave *enclave, uint64_t at,
						  uint64_t length, uint64_t type)
{
	struct modify_types argument = {
		.offset = at - enclave->base, .length = length, .page_type = type
	};

	return UNTIL_DONE(enclave->fd, IOC_MODIFY, argument);
}

__attribute__((unused)) static int remove_pages(const struct enclave *enclave, uint64_t at,
						  uint64_t length)
{
	struct remove_pages argument = { .offset = at - enclave->base, .length = length };

	return UNTIL_DONE(enclave->fd, IOC_REMOVE, argument);
}

/* What RAX has after a leaf; -1 where it has not left by EEXIT. */
__attribute__((unused)) static long leaf(const struct enclave *enclave, int index, uint64_t code,
					   uint64_t page, uint64_t flags, uint64_t from)
{
	struct op op = { .code = code, .a = page, .b = flags, .c = from };

	return do_op(enclave, index, &op) ? (long)op.out[0] : -1;
}

__attribute__((unused)) static long eaccept(const struct enclave *enclave, int index, uint64_t page,
					      uint64_t flags)
{
	return leaf(enclave, index, OP_EACCEPT, page, flags, 0);
}

/* A read, a write or a jump inside: 0 where it works, else the error code of its page fault. */
__attribute__((unused)) static unsigned int touch(const struct enclave *enclave, int index,
						    uint64_t code, uint64_t address)
{
	struct op op = { .code = code, .a = address, .b = 0x5a5a };
	struct sgx_enclave_run run;

	if (enter(&run, tcs(enclave, index), &op) == 0 && run.function == EEXIT)
		return 0;
	if (run.function != ERESUME || run.exception_vector != VECTOR_PF ||
	    run.exception_addr != (address & -PAGE) || !leave_faulted(enclave, index))
		return 0xffff;
	return run.exception_error_code;
}

/* Map the hole with this protection. */
__attribute__((unused)) static void map_hole(const struct enclave *enclave, uint64_t at,
					       uint64_t length, int prot)
{
	if (mmap((void *)at, length, prot, MAP_SHARED | MAP_FIXED, enclave->fd, 0) == MAP_FAILED)
		fail("mapping a hole");
}

#endif
