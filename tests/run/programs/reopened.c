/* SPDX-License-Identifier: Apache-2.0 */
/*
 * /proc/self/fd/N of the node: whatever such an open gives (a new enclave, as the kernel's node
 * does, or an error), closing it leaves the enclave behind N as it is.
 */
#include "host.h"

static void open_and_close(int fd, int flags)
{
	char path[64];
	int copy;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	copy = open(path, flags);
	if (copy >= 0)
		close(copy);
	usleep(20000); /* whoever watches for the last close is told a little later */
}

int main(int argc, char **argv)
{
	struct op nop = { .code = OP_NOP };
	struct enclave enclave = { .image = &the_image };
	struct secs secs;

	begin(argc, argv);
	enclave.fd = open_device();
	enclave.size = the_image.size;
	enclave.base = reserve(enclave.size);
	secs = enclave_secs(&enclave, 0);

	open_and_close(enclave.fd, O_RDWR);
	check_works("CREATE", create(enclave.fd, &secs));
	open_and_close(enclave.fd, O_RDWR);
	check_works("ADD_PAGES", add_segments(enclave.fd, &the_image));
	open_and_close(enclave.fd, O_RDONLY);
	check_works("INIT", init(enclave.fd, sigstruct));
	open_and_close(enclave.fd, O_PATH);
	check_works("mapping", map_segments(&enclave));
	open_and_close(enclave.fd, O_RDWR);
	CHECK("it runs", do_op(&enclave, 0, &nop));
	return finish();
}
