/* SPDX-License-Identifier: Apache-2.0 */
/* A core dump holds no enclave page, and the mappings say so (VmFlags dd). */
#include "host.h"

#include <sys/resource.h>

#define ENCLAVE_SEED 0x123456789UL
#define HOST_SEED 0x987654321UL

static void words(uint64_t seed, uint64_t *to)
{
	for (int i = 0; i < 512; i++) {
		seed = seed * 6364136223846793005 + 1442695040888963407;
		to[i] = seed;
	}
}

static bool has_flag_dd(uint64_t address)
{
	FILE *smaps = fopen("/proc/self/smaps", "r");
	bool here = false, found = false;
	unsigned long from, to;
	char line[512];

	while (smaps && fgets(line, sizeof(line), smaps)) {
		if (sscanf(line, "%lx-%lx ", &from, &to) == 2)
			here = from <= address && address < to;
		else if (here && !strncmp(line, "VmFlags:", 8))
			found = strstr(line, " dd") != NULL;
	}
	if (smaps)
		fclose(smaps);
	return found;
}

/* Is any word of the seed's second half in the file? The first words could be registers. */
static bool holds(const uint8_t *file, size_t length, uint64_t seed)
{
	uint64_t expected[512];

	words(seed, expected);
	return memmem(file, length, &expected[256], sizeof(uint64_t)) ||
	       memmem(file, length, &expected[511], sizeof(uint64_t));
}

static void in_the_child(void)
{
	struct rlimit unlimited = { RLIM_INFINITY, RLIM_INFINITY };
	struct enclave enclave = build(&the_image);
	uint64_t *host = malloc(PAGE);

	CHECK("the enclave fills its page",
	      do_op(&enclave, 0, &(struct op){ .code = OP_MARKER, .a = ENCLAVE_SEED }));
	for (int i = 0; i < the_image.segments; i++)
		CHECK("VmFlags has dd", has_flag_dd(enclave.base + the_image.segment[i].offset));
	words(HOST_SEED, host);
	getrlimit(RLIMIT_CORE, &unlimited);
	unlimited.rlim_cur = unlimited.rlim_max;
	setrlimit(RLIMIT_CORE, &unlimited);
	if (failures)
		_exit(1);
	abort();
}

int main(int argc, char **argv)
{
	char pattern[256] = "", name[64];
	int status, fd, fd_pattern;
	struct stat st;
	pid_t child;
	void *core;

	begin(argc, argv);
	fd_pattern = open("/proc/sys/kernel/core_pattern", O_RDONLY);
	if (fd_pattern < 0 || read(fd_pattern, pattern, sizeof(pattern) - 1) < 0)
		pattern[0] = '|';
	close(fd_pattern);

	child = fork();
	if (!child)
		in_the_child();
	waitpid(child, &status, 0);
	CHECK("the child aborted", WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
	if (strcmp(pattern, "core\n") && strcmp(pattern, "core.%p\n")) {
		dprintf(1, "skip the core file: core_pattern is %s", pattern);
		return finish() ? 1 : SKIPPED;
	}
	fd = open("core", O_RDONLY);
	if (fd < 0) {
		snprintf(name, sizeof(name), "core.%d", child);
		fd = open(name, O_RDONLY);
	}
	if (fd < 0 && !WCOREDUMP(status)) {
		dprintf(1, "skip the core file: the kernel wrote none\n");
		return finish() ? 1 : SKIPPED;
	}
	if (fd < 0 || fstat(fd, &st))
		fail("no core file");
	core = mmap(NULL, st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
	if (core == MAP_FAILED)
		fail("mapping the core file");
	CHECK("it holds the host's words", holds(core, st.st_size, HOST_SEED));
	CHECK("it holds no word of the enclave", !holds(core, st.st_size, ENCLAVE_SEED));
	unlink("core");
	return finish();
}
