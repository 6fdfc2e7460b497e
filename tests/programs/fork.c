/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A forked child inherits descriptor and mappings: it enters the same enclave, builds its own, and
 * the enclave lives until the last of the two has let go of it.
 */
#include "host.h"

static struct enclave enclave;

static uint64_t kept(void)
{
	struct op op = { .code = OP_GET };

	return do_op(&enclave, 0, &op) ? op.out[0] : 0;
}

static bool keep(uint64_t value)
{
	return do_op(&enclave, 0, &(struct op){ .code = OP_PUT, .a = value });
}

static int wait_for(pid_t child)
{
	int status = -1;

	if (child < 0 || waitpid(child, &status, 0) != child)
		fail("fork or waitpid");
	return status;
}

static void child_enters(void)
{
	pid_t child;

	CHECK("parent keeps a value", keep(0x1234));
	child = fork();
	if (!child) {
		bool good = check_equal("child finds it", kept(), 0x1234);

		good &= CHECK("child keeps another", keep(0x5678));
		_exit(!good);
	}
	check_equal("child ended well", wait_for(child), 0);
	check_equal("enclave memory is shared", kept(), 0x5678);
}

static void child_builds_its_own(void)
{
	pid_t child = fork();

	if (!child) {
		struct enclave mine = build(&the_image);
		struct op op = { .code = OP_GET };

		CHECK("child enters its own", do_op(&mine, 0, &op));
		check_equal("which is another one", op.out[0], 0);
		close(mine.fd);
		munmap((void *)mine.base, mine.size);
		check_equal("and the inherited one", kept(), 0x5678);
		_exit(failures != 0);
	}
	check_equal("building child ended well", wait_for(child), 0);
	check_equal("the parent's is untouched", kept(), 0x5678);
}

static void both_at_once(void)
{
	pid_t child = fork();
	struct op op = { .code = OP_LOOP, .a = 1000 };
	int index = child ? 1 : 2, wrong = 0;

	for (int i = 0; i < 100; i++)
		wrong += !do_op(&enclave, index, &op) || op.out[1] != 1000;
	if (!child)
		_exit(wrong != 0);
	check_equal("child, on its TCS", wait_for(child), 0);
	check_equal("parent, on its TCS", wrong, 0);
}

static void child_faults(void)
{
	pid_t child = fork();

	if (!child) {
		struct op op = { .code = OP_UD2 };
		struct sgx_enclave_run run;

		CHECK("child's exception comes back to the child",
		      enter(&run, tcs(&enclave, 3), &op) == 0 && run.function == ERESUME &&
			      run.exception_vector == VECTOR_UD);
		CHECK("child leaves", leave_faulted(&enclave, 3));
		_exit(failures != 0);
	}
	check_equal("faulting child ended well", wait_for(child), 0);
}

static void mapped_in_the_child_only(void)
{
	int pipes[2];
	pid_t child;
	char byte;

	if (pipe(pipes))
		fail("pipe");
	child = fork();
	if (!child) {
		close(enclave.fd);
		if (read(pipes[0], &byte, 1) != 1)
			_exit(2);
		_exit(kept() != 0x5678);
	}
	close(enclave.fd);
	munmap((void *)enclave.base, enclave.size);
	if (write(pipes[1], "x", 1) != 1)
		fail("write");
	check_equal("an enclave lives as long as one mapping", wait_for(child), 0);
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	enclave = build(&the_image);
	child_enters();
	child_builds_its_own();
	both_at_once();
	child_faults();
	mapped_in_the_child_only();
	return finish();
}
