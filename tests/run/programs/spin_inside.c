/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fills the EPC of PAGES pages to the last one, by two enclaves, then spins inside the first until
 * it is killed; prints "inside" once it is there. With "leave" it ends instead. PAGES is at most
 * 512, so that each enclave needs one VA page.
 *
 *     spin_inside ENCLAVE SIGSTRUCT PAGES [leave]
 */
#include "host.h"

static struct op op = { .code = OP_SPIN, .a = (uint64_t)&op.c };

static uint64_t pages_of(const struct image *image)
{
	uint64_t pages = 2; /* SECS and VA */

	for (int i = 0; i < image->segments; i++)
		pages += image->segment[i].length / PAGE;
	return pages;
}

/* A second enclave of this many pages, SECS and VA included. */
static void fill(uint64_t pages)
{
	uint64_t length = (pages - 2) * PAGE;
	struct enclave large = { .fd = open_device(), .size = PAGE };
	struct secs secs;
	void *data;

	while (large.size < length)
		large.size *= 2;
	large.base = reserve(large.size);
	secs = enclave_secs(&large, 0);
	data = mmap(NULL, length, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (create(large.fd, &secs) || add_pages(large.fd, data, 0, length,
						 SECINFO_REG | SECINFO_R | SECINFO_W, false))
		fail("filling the EPC with %lu pages", pages);
}

static void *tell(void *nothing)
{
	while (!*(volatile unsigned long *)&op.out[0])
		usleep(1000);
	dprintf(1, "inside\n");
	return nothing;
}

int main(int argc, char **argv)
{
	struct enclave enclave;
	pthread_t teller;

	begin(argc, argv);
	enclave = build(&the_image);
	fill(atol(argv[3]) - pages_of(&the_image));
	if (argc > 4) {
		dprintf(1, "filled\n");
		return 0;
	}
	pthread_create(&teller, NULL, tell, NULL);
	do_op(&enclave, 0, &op);
	return 1;
}
