/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Loads a library, makes path calls, and then compares the text of every file that it has mapped
 * with the file. Prints each that differs, and in the last line whether CPUID shows SGX.
 *
 *     own_text LIBRARY
 */
#include <cpuid.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void compare(const char *path, unsigned char *low, size_t size, long offset)
{
	unsigned char *file = malloc(size);
	int fd = open(path, O_RDONLY);
	ssize_t length = pread(fd, file, size, offset);

	if (length <= 0)
		printf("cannot read %s\n", path);
	else if (memcmp(low, file, length))
		printf("changed %s\n", strrchr(path, '/') + 1);
	close(fd);
	free(file);
}

int main(int argc, char **argv)
{
	unsigned int a, features, c, d;
	char line[4600], permissions[5], path[4200];
	unsigned long low, high, offset;
	struct stat st;
	FILE *maps;

	if (argc != 2 || !dlopen(argv[1], RTLD_NOW))
		return 2;
	for (int turn = 0; turn < 3; turn++)
		if (stat("/", &st) || access("/", R_OK) || readlink("/proc/self/exe", path, 8) != 8)
			return 3;
	__cpuid_count(7, 0, a, features, c, d);
	maps = fopen("/proc/self/maps", "r");
	while (maps && fgets(line, sizeof(line), maps))
		if (sscanf(line, "%lx-%lx %4s %lx %*s %*s %4199s", &low, &high, permissions, &offset,
			   path) == 5 && path[0] == '/' && permissions[0] == 'r' && permissions[2] == 'x')
			compare(path, (unsigned char *)low, high - low, offset);
	printf("SGX %u\n", features >> 2 & 1);
	return 0;
}
