/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Spins inside an enclave until a debugger writes to `stop`; says where the enclave is, and "inside".
 *
 *     spin_debugged ENCLAVE SIGSTRUCT debug|production
 */
#include "host.h"

volatile uint8_t stop;
static struct op op = { .code = OP_SPIN, .a = (uint64_t)&stop };

static void *tell(void *nothing)
{
	while (!*(volatile uint64_t *)&op.out[0])
		usleep(1000);
	dprintf(1, "inside\n");
	return nothing;
}

int main(int argc, char **argv)
{
	struct enclave enclave = { .image = &the_image };
	pthread_t teller;
	struct secs secs;

	begin(argc, argv);
	enclave.fd = open_device();
	enclave.size = the_image.size;
	enclave.base = reserve(enclave.size);
	secs = enclave_secs(&enclave, strcmp(argv[3], "debug") ? 0 : ATTRIBUTE_DEBUG);
	if (create(enclave.fd, &secs) || add_segments(enclave.fd, &the_image) ||
	    init(enclave.fd, sigstruct) || map_segments(&enclave))
		fail("building the enclave");
	dprintf(1, "base %#lx\n", enclave.base);
	pthread_create(&teller, NULL, tell, NULL);
	if (!do_op(&enclave, 0, &op))
		return 1;
	pthread_join(teller, NULL);
	return 0;
}
