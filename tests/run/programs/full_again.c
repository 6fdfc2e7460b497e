/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An enclave as large as the EPC, again and again: what is released is free at once, whether the
 * last reference was a descriptor, a mapping, or a process that ended or executed something.
 *
 *     full_again ENCLAVE SIGSTRUCT PAGES ROUNDS
 */
#include "host.h"

static uint64_t length;

/* SECS, VA page and pages: the whole EPC. 0, or -1. */
static int fill(int fd, bool mapped, uint64_t *base)
{
	static uint8_t data[512 * PAGE] __attribute__((aligned(4096)));
	struct enclave large = { .fd = fd, .size = PAGE };
	struct secs secs;

	while (large.size < length)
		large.size *= 2;
	*base = large.base = reserve(large.size);
	secs = enclave_secs(&large, 0);
	if (create(large.fd, &secs) ||
	    add_pages(large.fd, data, 0, length, SECINFO_REG | SECINFO_R | SECINFO_W, false) ||
	    (mapped && mmap((void *)large.base, length, PROT_READ | PROT_WRITE,
			    MAP_SHARED | MAP_FIXED, large.fd, 0) == MAP_FAILED))
		return -1;
	return 0;
}

static void in_a_child(bool mapped, bool exec)
{
	uint64_t base;
	int status;
	pid_t child = fork();

	if (!child) {
		if (fill(open_device(), mapped, &base))
			_exit(1);
		if (!exec)
			_exit(0);
		execl("/bin/sh", "sh", "-c", "exit 0", NULL);
		_exit(2);
	}
	if (waitpid(child, &status, 0) != child || status)
		fail("a child with the whole EPC: status %#x", status);
}

int main(int argc, char **argv)
{
	long rounds;
	int next;

	begin(argc, argv);
	length = (atol(argv[3]) - 2) * PAGE;
	rounds = atol(argv[4]);
	next = open_device();
	for (long round = 0; round < rounds; round++) {
		bool mapped = round & 1;
		uint64_t base;
		int fd = next;

		if (fill(fd, mapped, &base))
			fail("round %ld", round);
		/* So that nothing stands between the last close and the next CREATE. */
		next = open_device();
		if (round & 2)
			close(fd);
		munmap((void *)base, 512 * PAGE);
		if (!(round & 2))
			close(fd);
		if (round % 3 == 2)
			in_a_child(mapped, round & 4);
	}
	CHECK("all rounds", true);
	return finish();
}
