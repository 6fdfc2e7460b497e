/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Opens the node until no more descriptors are to be had, closes all, and does so again.
 *
 *     open_until_full     prints at each round how many it could open
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#define MOST 4096
#define ROUNDS 4

static int fds[MOST];

int main(void)
{
	for (int round = 0; round < ROUNDS; round++) {
		int opened = 0;

		while (opened < MOST && (fds[opened] = open("/dev/sgx_enclave", O_RDWR)) >= 0)
			opened++;
		if (opened == MOST || errno != EMFILE)
			return 2;
		printf("%d\n", opened);
		while (opened)
			close(fds[--opened]);
	}
	return 0;
}
