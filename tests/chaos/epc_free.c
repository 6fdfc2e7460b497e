/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Adds pages to an enclave until the EPC is full, and prints how many there was room for. It maps
 * the enclave too, for which a keeper must be there.
 */
#include "host.h"

#define MOST (64UL << 20)

int main(int argc, char **argv)
{
	static uint8_t data[64 * PAGE] __attribute__((aligned(4096)));
	struct secinfo secinfo = { .flags = SECINFO_REG | SECINFO_R };
	struct enclave enclave = { .fd = open_device(), .base = reserve(MOST), .size = MOST };
	struct secs secs = enclave_secs(&enclave, 0);
	uint64_t added = 0;
	int result = 0;

	if (create(enclave.fd, &secs))
		fail("CREATE");
	if (mmap((void *)enclave.base, PAGE, PROT_READ, MAP_SHARED | MAP_FIXED, enclave.fd, 0) ==
	    MAP_FAILED)
		fail("mmap");
	while (!result && added < MOST) {
		struct sgx_enclave_add_pages argument = {
			.src = (uint64_t)data,
			.offset = added,
			.length = sizeof(data),
			.secinfo = (uint64_t)&secinfo,
		};

		result = ioctl(enclave.fd, SGX_IOC_ENCLAVE_ADD_PAGES, &argument);
		added += argument.count;
	}
	if (result && errno != ENOMEM)
		fail("ADD_PAGES");
	dprintf(1, "free %lu\n", added / PAGE);
	return 0;
}
