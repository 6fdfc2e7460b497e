/* SPDX-License-Identifier: Apache-2.0 */
/* Private mappings of the node are refused, the first thing after open as well; prints errnos. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

static int mapped(int fd, int prot, int flags)
{
	return mmap(NULL, 8192, prot, flags, fd, 0) == MAP_FAILED ? errno : 0;
}

int main(void)
{
	int fd = open("/dev/sgx_enclave", O_RDWR);

	printf("private, read: %d\n", mapped(fd, PROT_READ, MAP_PRIVATE));
	printf("private, none: %d\n", mapped(fd, PROT_NONE, MAP_PRIVATE));
	printf("private, write: %d\n", mapped(fd, PROT_READ | PROT_WRITE, MAP_PRIVATE));
	printf("private, exec: %d\n", mapped(fd, PROT_READ | PROT_EXEC, MAP_PRIVATE));
	/* Any range of no enclave yet may be mapped. */
	printf("shared, none: %d\n", mapped(fd, PROT_NONE, MAP_SHARED));
	printf("shared, read: %d\n", mapped(fd, PROT_READ, MAP_SHARED));
	printf("private after shared, read: %d\n", mapped(fd, PROT_READ, MAP_PRIVATE));
	return 0;
}
