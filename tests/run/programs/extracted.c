/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Builds one enclave twice, with pages that are not measured, or in part only where it is given a node and
 * a driver; changes what it may; and builds others that it does not initialise. Exits with status 7,
 * or kills its supervisor where KILL_THE_SUPERVISOR is set.
 */
#include "legacy.h"

static uint8_t full[PAGE] __attribute__((aligned(4096))), none[PAGE] __attribute__((aligned(4096)));

static void add(int fd, uint64_t base, uint64_t offset, const void *page, uint16_t mrmask)
{
	uint64_t flags = SECINFO_REG | SECINFO_R | SECINFO_W;

	if (legacy_node ? legacy_add(fd, base + offset, page, flags, mrmask) :
			  add_pages(fd, page, offset, PAGE, flags, false))
		fail("adding the page at %#lx", offset);
}

static struct enclave unfinished(void)
{
	struct enclave enclave = { .size = the_image.size, .image = &the_image };
	struct secs secs;

	enclave.fd = legacy_node ? legacy_open() : open_device();
	enclave.base = legacy_node ? legacy_map(enclave.fd, enclave.size, PROT_NONE) :
				     reserve(enclave.size);
	secs = enclave_secs(&enclave, 0);
	if (create(enclave.fd, &secs))
		fail("CREATE");
	if (legacy_node ? legacy_add_segments(enclave.fd, enclave.base, &the_image) :
			  add_segments(enclave.fd, &the_image))
		fail("adding the segments");
	return enclave;
}

static void finished(void)
{
	struct enclave enclave = unfinished();
	uint64_t behind = enclave.size - 4 * PAGE;
	struct op put = { .code = OP_PUT, .a = 0x1234 };

	add(enclave.fd, enclave.base, behind, full, 0);
	add(enclave.fd, enclave.base, behind + PAGE, none, 0);
	if (legacy_node) {
		add(enclave.fd, enclave.base, behind + 2 * PAGE, full, 0x8421);
		add(enclave.fd, enclave.base, behind + 3 * PAGE, none, 0x0002);
	}
	if (legacy_node ? legacy_init_at(enclave.fd, enclave.base, sigstruct) :
			  init(enclave.fd, sigstruct))
		fail("INIT");
	if (legacy_node ? legacy_protect(enclave.base, &the_image) : map_segments(&enclave))
		fail("mapping the enclave");
	CHECK("it works", do_op(&enclave, 0, &put));
}

int main(int argc, char **argv)
{
	pid_t child;

	if (argc > 3)
		legacy_begin(argc, argv);
	else
		begin(argc, argv);
	memset(full, 0x5a, sizeof(full));
	finished();
	finished();
	/* One ends before the program, one with a process that is killed, one with the program. */
	child = fork();
	if (!child) {
		unfinished();
		kill(getpid(), SIGKILL);
	}
	waitpid(child, NULL, 0);
	munmap((void *)unfinished().base, the_image.size);
	unfinished();
	if (getenv("KILL_THE_SUPERVISOR"))
		kill(getppid(), SIGKILL);
	return finish() ? 1 : 7;
}
