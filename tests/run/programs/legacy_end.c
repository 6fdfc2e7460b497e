/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How enclaves of the older drivers end while somebody is in them, and with their process:
 *
 *     legacy_end ENCLAVE SIGSTRUCT NODE DRIVER inside | parts | exit ROUNDS | exec
 */
#include "legacy.h"

static int fd;
static struct enclave enclave;
static struct op spin = { .code = OP_SPIN, .a = (uint64_t)&spin.c };
static struct sgx_enclave_run run;

static void *be_inside(void *nothing)
{
	check_equal("leaving is a return", enter(&run, tcs(&enclave, 1), &spin), 0);
	return nothing;
}

static pthread_t enter_in_thread(void)
{
	pthread_t thread;

	spin.out[0] = 0;
	if (pthread_create(&thread, NULL, be_inside, NULL))
		fail("pthread_create");
	while (!*(volatile unsigned long *)&spin.out[0])
		usleep(1000);
	return thread;
}

/* What is unmapped: all, a part with the code, a part that nobody uses. */
static void driven_out(const char *name, uint64_t offset, uint64_t length)
{
	struct enclave next;
	pthread_t thread;
	char text[100];

	enclave = legacy_build_on(fd, PROT_NONE);
	thread = enter_in_thread();
	check_works(name, munmap((void *)(enclave.base + offset), length));
	/* Its EPC is free now: this one takes nearly all there is. */
	next = legacy_build_on(fd, PROT_READ | PROT_WRITE | PROT_EXEC);
	pthread_join(thread, NULL);
	/* The AEX, then ERESUME by a TCS that is none. */
	snprintf(text, sizeof(text), "%s: function", name);
	check_equal(text, run.function, ERESUME);
	snprintf(text, sizeof(text), "%s: vector", name);
	check_equal(text, run.exception_vector, VECTOR_PF);
	munmap((void *)next.base, next.size);
	munmap((void *)enclave.base, enclave.size);
}

/* A child that has an enclave, perhaps a thread inside, and ends as it is. */
static void ends_with_process(int how)
{
	int status;
	pid_t child = fork();

	if (!child) {
		fd = legacy_open();
		enclave = legacy_build_on(fd, PROT_NONE);
		if (how & 1)
			enter_in_thread();
		if (how & 2)
			kill(getpid(), SIGKILL);
		_exit(0);
	}
	waitpid(child, &status, 0);
	check_equal("the child's end", status, how & 2 ? SIGKILL : 0);
}

int main(int argc, char **argv)
{
	legacy_begin(argc, argv);
	fd = legacy_open();
	if (!strcmp(argv[5], "inside")) {
		driven_out("munmap of all", 0, the_image.size);
		driven_out("munmap of the code", the_image.segment[1].offset, PAGE);
		driven_out("munmap of a page that is none", the_image.size - PAGE, PAGE);
	} else if (!strcmp(argv[5], "exit")) {
		for (int i = 0; i < atoi(argv[6]); i++)
			ends_with_process(i & 3);
	} else if (!strcmp(argv[5], "exec")) {
		struct op put = { .code = OP_PUT, .a = 1 };
		int turn = atoi(argv[6]);

		/* Each time the same descriptor and a new address space. */
		fcntl(fd, F_SETFD, 0);
		enclave = legacy_build_on(fd, PROT_NONE);
		CHECK("an enclave", do_op(&enclave, 0, &put));
		if (turn && !failures) {
			char next[16];

			snprintf(next, sizeof(next), "%d", turn - 1);
			enter_in_thread();
			execl(argv[0], argv[0], argv[1], argv[2], argv[3], argv[4], "exec", next,
			      NULL);
		}
	}
	return finish();
}
