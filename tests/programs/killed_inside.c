/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A process killed inside its enclave leaves nothing behind: its EPC is free at once, its parent's
 * enclave untouched, and a TCS that it held is free. To be run with 8 MiB of EPC.
 */
#include "host.h"

#define LARGE (5UL << 20) /* more than half of the EPC: two of these do not fit */

static struct enclave enclave;

/* An enclave that is never initialised, only large. */
static bool fill_the_epc(void)
{
	struct enclave large = { .fd = open_device(), .size = 2 * LARGE & -(8UL << 20) };
	struct secs secs;
	void *pages = mmap(NULL, LARGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	bool good;

	large.base = reserve(large.size);
	secs = enclave_secs(&large, 0);
	good = create(large.fd, &secs) == 0 &&
	       add_pages(large.fd, pages, 0, LARGE, SECINFO_REG | SECINFO_R | SECINFO_W, false) == 0;
	munmap(pages, LARGE);
	return good;
}

/* A child that fills the EPC and then spins inside, until it is killed. */
static void round_of(bool own_enclave, const char *what)
{
	struct op *op = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int status = 0;
	char name[80];
	pid_t child;

	*op = (struct op){ .code = OP_SPIN, .a = (uint64_t)&op->c };
	child = fork();
	if (!child) {
		if (!fill_the_epc())
			fail("the child's large enclave");
		if (own_enclave)
			enclave = build(&the_image);
		do_op(&enclave, 4, op);
		_exit(3);
	}
	for (int i = 0; i < 20000 && !*(volatile unsigned long *)&op->out[0]; i++)
		usleep(1000);
	snprintf(name, sizeof(name), "%s: the child is inside", what);
	check_equal(name, op->out[0], 1);
	kill(child, SIGKILL);
	waitpid(child, &status, 0);
	snprintf(name, sizeof(name), "%s: the child was killed", what);
	check_equal(name, status, SIGKILL);
	munmap(op, PAGE);
}

int main(int argc, char **argv)
{
	struct op nop = { .code = OP_ENTRY };

	begin(argc, argv);
	enclave = build(&the_image);
	/* Each round needs the EPC that the one before held. */
	round_of(true, "in its own enclave");
	round_of(true, "in its own enclave, again");
	round_of(false, "in the inherited enclave");
	CHECK("the EPC is free", fill_the_epc());
	CHECK("the parent's enclave works", do_op(&enclave, 0, &nop));
	/* The AEX by which the dying thread left took one SSA frame, and nothing else. */
	CHECK("the TCS on which the child died is not busy", do_op(&enclave, 4, &nop));
	check_equal("it entered with the next frame", nop.out[ENTRY_RAX], 1);
	return finish();
}
