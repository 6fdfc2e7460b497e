/* SPDX-License-Identifier: Apache-2.0 */
/* A child that goes where its debugged parent has breakpoints, in the host and in the enclave; then the parent. */
#include "host.h"

volatile int marks;

__attribute__((noinline, noclone)) void built(uint64_t base)
{
	marks += base != 0;
}

__attribute__((noinline, noclone)) void marked(void)
{
	marks++;
}

int main(int argc, char **argv)
{
	struct enclave enclave = { .image = &the_image };
	struct op op = { .code = OP_WORK, .a = 3 };
	struct secs secs;
	int status;

	begin(argc, argv);
	enclave.fd = open_device();
	enclave.size = the_image.size;
	enclave.base = reserve(enclave.size);
	secs = enclave_secs(&enclave, ATTRIBUTE_DEBUG);
	if (create(enclave.fd, &secs) || add_segments(enclave.fd, &the_image) ||
	    init(enclave.fd, sigstruct) || map_segments(&enclave))
		fail("building the enclave");
	built(enclave.base);
	if (!fork()) {
		marked();
		for (int i = 0; i < 3; i++)
			if (!do_op(&enclave, 1, &op))
				_exit(1);
		_exit(0);
	}
	wait(&status);
	check_equal("the child's status", status, 0);
	marked();
	CHECK("the parent's entry", do_op(&enclave, 0, &op));
	return finish();
}
