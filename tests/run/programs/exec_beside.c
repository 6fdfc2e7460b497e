/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A second thread executes a program while the first is in a call of the node; the new program
 * says whether it was started as any other is.
 *
 *     exec_beside ENCLAVE SIGSTRUCT add|map
 *     exec_beside ENCLAVE SIGSTRUCT started     the new program
 */
#include <cpuid.h>

#include "host.h"

#define LARGE (32UL << 20)
#define ROUNDS 8

static char **arguments;
static volatile bool go;
static int delay;

static void *execute(void *nothing)
{
	while (!go)
		usleep(100);
	usleep(delay);
	execl(arguments[0], arguments[0], arguments[1], arguments[2], "started", NULL);
	_exit(126);
}

static int started(void)
{
	unsigned int a, b, c, d;
	struct enclave enclave;
	struct op op = { .code = OP_NOP };

	if (!vdso_symbol("__vdso_sgx_enter_enclave"))
		return 2;
	__cpuid_count(0x12, 0, a, b, c, d);
	if (!(a & 1))
		return 3;
	enclave = build(&the_image);
	return do_op(&enclave, 0, &op) ? 0 : 4;
}

static void add_for_ever(void)
{
	void *data = mmap(NULL, LARGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	for (;;) {
		struct enclave large = { .fd = open_device(), .size = LARGE };
		struct secs secs;

		large.base = reserve(LARGE);
		secs = enclave_secs(&large, 0);
		if (create(large.fd, &secs))
			fail("SGX_IOC_ENCLAVE_CREATE");
		go = true;
		if (add_pages(large.fd, data, 0, LARGE, SECINFO_REG | SECINFO_R, true))
			fail("SGX_IOC_ENCLAVE_ADD_PAGES");
		close(large.fd);
	}
}

static void map_for_ever(void)
{
	int fd = open_device();

	for (;;) {
		void *area = mmap(NULL, PAGE, PROT_NONE, MAP_SHARED, fd, 0);

		if (area == MAP_FAILED || munmap(area, PAGE))
			fail("mapping the node");
		go = true;
	}
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	arguments = argv;
	if (argc > 3 && !strcmp(argv[3], "started"))
		return started();
	end_after(18);
	for (int i = 0; i < ROUNDS; i++) {
		int status = 0;
		pid_t pid = fork();

		if (!pid) {
			pthread_t thread;

			delay = 100 + 700 * i;
			pthread_create(&thread, NULL, execute, NULL);
			if (argc > 3 && !strcmp(argv[3], "add"))
				add_for_ever();
			map_for_ever();
		}
		waitpid(pid, &status, 0);
		check_equal("status of the new program", status, 0);
	}
	return finish();
}
