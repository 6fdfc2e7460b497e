/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Loads a library whose text asks CPUID from a thread, after it has run for a while; then another
 * file that has taken its path; then a third that was written over that file, which is unloaded
 * before. Each exports ask(), which gives CPUID.7:EBX, and number(), in which the pair 0F A2 is an
 * operand: at the place of CPUID in the library before. Prints SGX and the number.
 *
 *     late_library PATH SECOND THIRD    PATH is absolute
 */
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *path;
static char again[4200]; /* the same, spelled so that the loader does not know it */
static void *library;

static void *load(void *name)
{
	unsigned int (*ask)(void), (*number)(void);

	library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
	if (!library) {
		printf("%s: %s\n", (const char *)name, dlerror());
		return NULL;
	}
	*(void **)&ask = dlsym(library, "ask");
	*(void **)&number = dlsym(library, "number");
	printf("%s %u %#x\n", (const char *)name, ask() >> 2 & 1, number());
	return NULL;
}

static void in_a_thread(const char *name)
{
	pthread_t thread;

	pthread_create(&thread, NULL, load, (void *)name);
	pthread_join(thread, NULL);
}

static int overwrite(const char *with)
{
	static char content[1 << 20];
	int from = open(with, O_RDONLY), to = open(path, O_WRONLY | O_TRUNC);
	ssize_t length = read(from, content, sizeof(content));

	close(from);
	return length <= 0 || write(to, content, length) != length || close(to);
}

int main(int argc, char **argv)
{
	if (argc != 4)
		return 2;
	path = argv[1];
	in_a_thread("first");
	if (rename(argv[2], path))
		return 3;
	snprintf(again, sizeof(again), "/.%s", path);
	path = again;
	in_a_thread("renamed");
	if (dlclose(library) || overwrite(argv[3]))
		return 4;
	in_a_thread("written over");
	return 0;
}
