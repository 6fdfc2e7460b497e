/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Under strict isolation: from outside enclave memory reads as all ones, and writes to it vanish.
 *
 *     isolated ENCLAVE SIGSTRUCT
 */
#include "host.h"
#include <sched.h>
#include <setjmp.h>

#define SECRET 0x1122334455667788
#define ONES 0xffffffffffffffff

static struct enclave enclave;
static uint64_t kept;
static sigjmp_buf back;
static volatile int jumped, code;

static void jump(int number, siginfo_t *info, void *context)
{
	jumped = number;
	code = info->si_code;
	siglongjmp(back, 1);
}

static uint64_t inside(void)
{
	struct op op = { .code = OP_GET };

	return do_op(&enclave, 0, &op) ? op.out[0] : 0;
}

#define EXPECT_SIGNAL(name, number, what)                              \
	do {                                                           \
		jumped = 0;                                            \
		if (!sigsetjmp(back, 1)) {                             \
			what;                                          \
		}                                                      \
		check_equal(name, jumped, number);                     \
	} while (0)

static void reads(void)
{
	uint8_t copy[300], ones[300];
	uint64_t value, other = 5, at;

	memset(ones, 0xff, sizeof(ones));
	check_equal("a word", *(volatile uint64_t *)kept, ONES);
	check_equal("half a word", *(volatile uint32_t *)(kept + 4), 0xffffffff);
	check_equal("two bytes", *(volatile uint16_t *)(kept + 1), 0xffff);
	check_equal("a byte", *(volatile uint8_t *)(kept + 3), 0xff);
	asm volatile("mov (%1), %0" : "=r"(value) : "0"(kept));
	check_equal("into its own base", value, ONES);
	value = kept;
	asm volatile("movb (%0), %b0" : "+a"(value));
	check_equal("into a byte of its base", value, kept | 0xff);
	value = kept;
	asm volatile("movb (%0), %%ah" : "+a"(value));
	check_equal("into another byte", value, kept | 0xff00);
	asm volatile("add (%1), %0" : "+r"(other) : "r"(kept) : "cc");
	check_equal("an addition", other, 4);
	asm volatile("movdqu (%1), %%xmm3\n\tmovq %%xmm3, %0" : "=r"(value) : "r"(kept) : "xmm3");
	check_equal("sixteen bytes", value, ONES);
	asm volatile("mov 8(%1, %2, 4), %0" : "=r"(value) : "r"(kept), "r"(3UL));
	check_equal("with an index", value, ONES);
	memset(copy, 0, sizeof(copy));
	memcpy(copy, (void *)(kept + 5), sizeof(copy));
	CHECK("memcpy", !memcmp(copy, ones, sizeof(copy)));
	memset(copy, 0, sizeof(copy));
	{
		void *to = copy;
		uint64_t from = kept, count = 70;

		asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(count) : : "memory");
		CHECK("rep movsb", !memcmp(copy, ones, 70) && !copy[70]);
		CHECK("its registers", to == copy + 70 && from == kept + 70 && !count);
	}
	asm volatile("pushq (%1)\n\tpopq %0" : "=r"(value) : "r"(kept));
	check_equal("a push of it", value, ONES);
	at = tcs(&enclave, 0);
	check_equal("a TCS", *(volatile uint64_t *)(at + 16), ONES);
	asm volatile("cmpq $-1, (%1)\n\tsete %b0" : "=r"(value) : "r"(kept), "0"(0UL) : "cc");
	check_equal("a comparison", value, 1);
}

static void writes(void)
{
	uint64_t value = 9, to = kept, count = 16;

	*(volatile uint64_t *)kept = 5;
	check_equal("a store", inside(), SECRET);
	asm volatile("lock incq (%0)" : : "r"(kept) : "cc", "memory");
	check_equal("an increment", inside(), SECRET);
	asm volatile("xchg %0, (%1)" : "+r"(value) : "r"(kept) : "memory");
	check_equal("an exchange reads", value, ONES);
	check_equal("an exchange", inside(), SECRET);
	asm volatile("rep stosb" : "+D"(to), "+c"(count) : "a"(0) : "memory");
	CHECK("rep stosb's registers", to == kept + 16 && !count);
	memset((void *)kept, 0, 200);
	asm volatile("mov %0, (%0)" : : "r"(kept) : "memory");
	check_equal("more stores", inside(), SECRET);
	asm volatile("movsq" : "+S"(to), "=D"(value) : "1"(kept) : "memory");
	check_equal("from enclave to enclave", inside(), SECRET);
}

static void refusals(void)
{
	struct sgx_enclave_run run;
	struct op op = { .code = OP_UD2 };
	int fds[2];

	handle(SIGSEGV, jump);
	handle(SIGBUS, jump);
	handle(SIGILL, jump);
	EXPECT_SIGNAL("a call of its code", SIGILL,
		      ((void (*)(void))at_symbol(&enclave, "enclave_main"))());
	EXPECT_SIGNAL("a write where the mapping forbids it", SIGSEGV,
		      *(volatile char *)at_symbol(&enclave, "read_only_page") = 1);
	check_equal("its si_code", code, SEGV_ACCERR);
	EXPECT_SIGNAL("an index without a base", SIGSEGV,
		      asm volatile("mov (, %0, 1), %%rcx" : : "r"(kept) : "rcx"));
	if (pipe(fds))
		fail("pipe");
	check_errno("a system call", write(fds[1], (void *)kept, 8), EFAULT);
	CHECK("an exit by #UD", enter(&run, tcs(&enclave, 0), &op) == 0 &&
					run.exception_vector == VECTOR_UD);
	check_equal("after an AEX", *(volatile uint64_t *)kept, ONES);
	CHECK("and back", leave_faulted(&enclave, 0));
	check_equal("after all", inside(), SECRET);
}

/* What mprotect gives is for those inside. */
static void protected(void)
{
	uint64_t from = tcs(&enclave, 0), to = (kept & -PAGE) + PAGE;

	check_works("mprotect of TCSs and more", mprotect((void *)from, to - from, PROT_READ));
	check_equal("after mprotect", *(volatile uint64_t *)kept, ONES);
	for (int i = 0; i < the_image.segments; i++) {
		const struct segment *segment = &the_image.segment[i];

		check_works("mprotect of a segment",
			    mprotect((void *)(enclave.base + segment->offset), segment->length,
				     segment->prot));
	}
	check_equal("after mprotect of all", *(volatile uint64_t *)kept, ONES);
	check_equal("those inside have it", inside(), SECRET);
}

static volatile bool enough;

static void *storing(void *argument)
{
	while (!enough)
		*(volatile uint64_t *)kept = SECRET;
	return NULL;
}

/* What one thread drops is not what another reads. */
static void beside_each_other(void)
{
	pthread_t thread;
	int seen = 0;

	if (pthread_create(&thread, NULL, storing, NULL))
		fail("pthread_create");
	for (int i = 0; i < 1000; i++)
		seen += *(volatile uint64_t *)kept != ONES;
	enough = true;
	pthread_join(thread, NULL);
	check_equal("what another thread stores is not seen", seen, 0);
}

static struct op spin;

static int spinning(void *argument)
{
	struct sgx_enclave_run run;

	enter(&run, tcs(&enclave, 1), &spin);
	return 0;
}

/* Who shares the memory is kept out again when the one inside has been killed there. */
static void killed_inside(void)
{
	static volatile uint8_t never;
	uint64_t seen = 0;
	pid_t process;

	spin = (struct op){ .code = OP_SPIN, .a = (uint64_t)&never };
	process = clone(spinning, malloc(1 << 16) + (1 << 16), CLONE_VM | SIGCHLD, NULL);
	while (process > 0 && !*(volatile uint64_t *)&spin.out[0])
		usleep(1000);
	if (process < 0 || kill(process, SIGKILL) || waitpid(process, NULL, 0) != process)
		fail("a process that is killed inside");
	/* Not in the same moment. */
	for (int i = 0; i < 5000 && seen != ONES; i++) {
		usleep(1000);
		seen = *(volatile uint64_t *)kept;
	}
	check_equal("after one was killed inside", seen, ONES);
}

int main(int argc, char **argv)
{
	struct op put = { .code = OP_PUT, .a = SECRET };
	int status;

	begin(argc, argv);
	enclave = build(&the_image);
	kept = at_symbol(&enclave, "kept");
	CHECK("put", do_op(&enclave, 0, &put));
	reads();
	writes();
	if (!fork()) {
		reads();
		check_equal("a child inside", inside(), SECRET);
		reads();
		_exit(failures);
	}
	wait(&status);
	check_equal("the child's failures", status, 0);
	protected();
	beside_each_other();
	killed_inside();
	refusals();
	return finish();
}
