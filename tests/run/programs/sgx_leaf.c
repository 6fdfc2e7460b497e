/* SPDX-License-Identifier: Apache-2.0 */
/* Prints CPUID.12H.0:EAX and EBX and CPUID.12H.1:EAX, and what CREATE makes of the ATTRIBUTES that are given. */
#define _GNU_SOURCE
#include <cpuid.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <asm/sgx.h>

static uint8_t secs[4096] __attribute__((aligned(4096)));

static void put(unsigned int at, uint64_t value, unsigned int length)
{
	memcpy(secs + at, &value, length);
}

int main(int argc, char **argv)
{
	struct sgx_enclave_create create = { .src = (uint64_t)secs };
	unsigned int leaves, misc, attributes, b, c, d;
	int fd = open("/dev/sgx_enclave", O_RDWR);

	__cpuid_count(0x12, 0, leaves, misc, c, d);
	__cpuid_count(0x12, 1, attributes, b, c, d);
	put(0, 0x100000, 8);       /* SIZE */
	put(8, 0x7e0000000000, 8); /* BASEADDR */
	put(16, 1, 4);             /* SSAFRAMESIZE */
	put(20, misc, 4);          /* MISCSELECT */
	put(48, argc > 1 ? strtoul(argv[1], NULL, 0) : 4, 8);
	put(56, 3, 8);             /* XFRM */
	printf("%#x %#x %#x %s\n", leaves, misc, attributes,
	       ioctl(fd, SGX_IOC_ENCLAVE_CREATE, &create) ? strerrorname_np(errno) : "created");
	return 0;
}
