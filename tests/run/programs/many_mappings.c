/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A process with as many mappings as it may have but a few maps an enclave, and adds every other
 * page of it: what is mapped then is one run a page.
 */
#include "host.h"

#define PAGES 512
#define ROOM 64
#define MOST (4UL << 20)

static void use_up_mappings(void)
{
	uint8_t *area = mmap(NULL, MOST * PAGE, PROT_NONE,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	unsigned long i = 0;

	if (area == MAP_FAILED)
		fail("mapping an area");
	while (i < MOST && !mprotect(area + i * PAGE, PAGE, PROT_READ))
		i += 2;
	if (i >= MOST)
		fail("vm.max_map_count is beyond what this test can use up");
	munmap(area + (i - ROOM) * PAGE, ROOM * PAGE);
}

int main(int argc, char **argv)
{
	static uint8_t page[PAGE] __attribute__((aligned(4096)));
	struct enclave enclave = { .size = PAGES * PAGE };
	struct secs secs;

	begin(argc, argv);
	use_up_mappings();
	enclave.fd = open_device();
	enclave.base = reserve(enclave.size);
	secs = enclave_secs(&enclave, 0);
	check_works("CREATE", create(enclave.fd, &secs));
	CHECK("mapping", mmap((void *)enclave.base, enclave.size, PROT_READ, MAP_SHARED | MAP_FIXED,
			      enclave.fd, 0) != MAP_FAILED);
	for (int i = 0; i < PAGES; i += 2)
		if (add_pages(enclave.fd, page, i * PAGE, PAGE, SECINFO_REG | PROT_READ, false))
			fail("ADD_PAGES");
	for (int i = 0; i < PAGES; i += 2)
		if (*(volatile uint8_t *)(enclave.base + i * PAGE))
			fail("page %d", i);
	return finish();
}
