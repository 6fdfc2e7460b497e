/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Builds enclaves, some at the same time and some refused half way, and prints how many pages were
 * added to them: "pages N", and how many enclaves there were: "enclaves N".
 */
#include "host.h"

#include <stdatomic.h>

#define TURNS 6

static atomic_long pages, enclaves;

static struct enclave made(void)
{
	struct enclave enclave = { .fd = open_device(), .base = reserve(the_image.size),
				   .size = the_image.size, .image = &the_image };
	struct secs secs = enclave_secs(&enclave, 0);

	if (create(enclave.fd, &secs))
		fail("CREATE");
	enclaves++;
	return enclave;
}

static void add(const struct enclave *enclave)
{
	for (int i = 0; i < the_image.segments; i++) {
		struct segment *segment = &the_image.segment[i];

		if (add_pages(enclave->fd, segment->data, segment->offset, segment->length,
			      segment->secinfo, i != 3))
			fail("ADD_PAGES");
		pages += segment->length / PAGE;
	}
}

static void *build_some(void *nothing)
{
	for (int i = 0; i < TURNS; i++) {
		struct enclave enclave = made();

		add(&enclave);
		munmap((void *)enclave.base, enclave.size);
		close(enclave.fd);
	}
	return nothing;
}

/* Half of the source is there: those pages count, the others do not. */
static void half(void)
{
	struct enclave enclave = made();
	struct secinfo secinfo = { .flags = SECINFO_REG | SECINFO_R };
	uint8_t *source = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct sgx_enclave_add_pages argument = {
		.src = (uint64_t)source,
		.length = 4 * PAGE,
		.secinfo = (uint64_t)&secinfo,
	};
	struct secs secs = enclave_secs(&enclave, 0);

	memset(source, 1, 4 * PAGE);
	munmap(source + 2 * PAGE, 2 * PAGE);
	ioctl(enclave.fd, SGX_IOC_ENCLAVE_ADD_PAGES, &argument);
	check_equal("two pages were there", argument.count, 2 * PAGE);
	pages += argument.count / PAGE;
	/* The same pages again, and a second CREATE, add nothing. */
	argument.length = 2 * PAGE;
	argument.count = 0;
	check(ioctl(enclave.fd, SGX_IOC_ENCLAVE_ADD_PAGES, &argument) == -1 && !argument.count,
	      "pages that are there", "were added again");
	check_errno("a second CREATE", create(enclave.fd, &secs), EINVAL);
}

int main(int argc, char **argv)
{
	pthread_t threads[3];

	begin(argc, argv);
	for (int i = 0; i < 3; i++)
		pthread_create(&threads[i], NULL, build_some, NULL);
	for (int i = 0; i < 3; i++)
		pthread_join(threads[i], NULL);
	half();
	dprintf(1, "pages %ld\nenclaves %ld\n", (long)pages, (long)enclaves);
	return finish();
}
