// SPDX-License-Identifier: Apache-2.0
// A program that never touches SGX. Prints nanoseconds.
//
//   bystander compute TURNS     arithmetic over a table of 1 MiB
//   bystander syscalls COUNT    COUNT times open and close
#include <err.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { ENTRIES = 1 << 17 };

static uint64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static void compute(uint64_t turns)
{
	static volatile uint64_t table[ENTRIES];
	uint64_t value = 1;

	for (uint64_t i = 0; i < turns; i++) {
		value ^= value << 13;
		value ^= value >> 7;
		value ^= value << 17;
		table[value % ENTRIES] += value;
	}
}

static void syscalls(uint64_t count)
{
	for (uint64_t i = 0; i < count; i++) {
		int fd = open("/dev/null", O_RDONLY);

		if (fd < 0)
			err(1, "/dev/null");
		close(fd);
	}
}

int main(int argc, char **argv)
{
	if (argc != 3)
		errx(2, "usage: bystander compute|syscalls NUMBER");
	uint64_t number = strtoull(argv[2], NULL, 0);
	uint64_t begin = now();
	if (strcmp(argv[1], "compute") == 0)
		compute(number);
	else if (strcmp(argv[1], "syscalls") == 0)
		syscalls(number);
	else
		errx(2, "unknown verb %s", argv[1]);
	printf("%llu\n", (unsigned long long)(now() - begin));
	return 0;
}
