/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A program that makes itself non-dumpable keeps its enclaves and can make more, in a child too.
 * With a third argument it does so before its first mapping.
 */
#include "host.h"

#include <sys/prctl.h>
#include <sys/wait.h>

static struct enclave mapped_before_create(void)
{
	struct enclave made = { .fd = open_device(), .base = reserve(the_image.size),
				.size = the_image.size, .image = &the_image };

	if (mmap((void *)made.base, made.size, PROT_NONE, MAP_SHARED | MAP_FIXED, made.fd, 0) ==
	    MAP_FAILED)
		fail("mapping before CREATE");
	return made;
}

static void check_child(struct enclave *inherited)
{
	struct op nop = { .code = OP_NOP };
	int status = 0;
	pid_t child = fork();

	if (child < 0)
		fail("fork");
	if (!child) {
		struct enclave own;

		CHECK("a child runs the inherited one", do_op(inherited, 0, &nop));
		own = build(&the_image);
		CHECK("a child makes its own", do_op(&own, 0, &nop));
		CHECK("a child is still not dumpable", prctl(PR_GET_DUMPABLE) == 0);
		_exit(failures != 0);
	}
	waitpid(child, &status, 0);
	CHECK("the child ended well", WIFEXITED(status) && !WEXITSTATUS(status));
}

static void hide(void)
{
	if (prctl(PR_SET_DUMPABLE, 0) || prctl(PR_GET_DUMPABLE))
		fail("PR_SET_DUMPABLE");
}

int main(int argc, char **argv)
{
	struct op nop = { .code = OP_NOP };
	struct enclave first, second, third;
	struct secs secs;

	begin(argc, argv);
	if (argc > 3)
		hide();
	first = mapped_before_create();
	second = build(&the_image);
	hide();

	secs = enclave_secs(&first, 0);
	check_works("CREATE", create(first.fd, &secs));
	check_works("ADD_PAGES", add_segments(first.fd, &the_image));
	check_works("INIT", init(first.fd, sigstruct));
	check_works("mapping", map_segments(&first));
	CHECK("it runs", do_op(&first, 0, &nop));
	CHECK("the one from before runs", do_op(&second, 0, &nop));
	check_errno("a wrong pointer", create(open_device(), (void *)0x40), EFAULT);

	third = build(&the_image);
	CHECK("a third one runs", do_op(&third, 0, &nop));

	check_child(&third);
	return finish();
}
