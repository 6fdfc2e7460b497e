/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The user handler of __vdso_sgx_enter_enclave: it sees the registers as the enclave left them,
 * what it leaves in them is what the next entry gets, and it may call the function itself.
 */
#include "host.h"

#include <setjmp.h>

/* What the assembly handler saw at each call, and what it is to do. */
struct step {
	uint64_t rdi, rsi, rdx, rcx, r8, r9, run, rsp, rflags; /* seen */
	uint64_t give_rdi, give_rsi, give_rdx, give_r8, give_r9, answer;
};
_Static_assert(sizeof(struct step) == 120, "the assembly below");

__attribute__((used)) struct step steps[8];
__attribute__((used)) struct step *next_step;

int script_handler(long, long, long, long, long, long, struct sgx_enclave_run *);
asm(".text\n"
    "script_handler:\n"
    "	mov next_step(%rip), %rax\n"
    "	mov %rdi, 0(%rax)\n"
    "	mov %rsi, 8(%rax)\n"
    "	mov %rdx, 16(%rax)\n"
    "	mov %rcx, 24(%rax)\n"
    "	mov %r8, 32(%rax)\n"
    "	mov %r9, 40(%rax)\n"
    "	mov 8(%rsp), %rdi\n"
    "	mov %rdi, 48(%rax)\n"
    "	mov %rsp, 56(%rax)\n"
    "	pushfq\n"
    "	popq 64(%rax)\n"
    "	mov 72(%rax), %rdi\n"
    "	mov 80(%rax), %rsi\n"
    "	mov 88(%rax), %rdx\n"
    "	mov 96(%rax), %r8\n"
    "	mov 104(%rax), %r9\n"
    "	addq $120, next_step(%rip)\n"
    "	mov 112(%rax), %rax\n"
    "	ret\n");

static struct sgx_enclave_run run;

static int call(const struct enclave *enclave, int index, struct op *op, void *handler)
{
	memset(&run, 0, sizeof(run));
	run.tcs = tcs(enclave, index);
	run.user_handler = (uint64_t)handler;
	run.user_data = 0xda7a;
	next_step = steps;
	return call_vdso((uint64_t)op, 0x51, 0x52, EENTER, 0x58, 0x59, &run);
}

static void registers_pass_both_ways(const struct enclave *enclave)
{
	struct op leave = { .code = OP_EXIT_REGISTERS }, look = { .code = OP_ENTRY };
	int result;

	memset(steps, 0, sizeof(steps));
	steps[0].give_rdi = (uint64_t)&look;
	steps[0].give_rsi = 0x61;
	steps[0].give_rdx = 0x62;
	steps[0].give_r8 = 0x68;
	steps[0].give_r9 = 0x69;
	steps[0].answer = EENTER;
	result = call(enclave, 0, &leave, script_handler);

	check_equal("0 from the handler is returned", result, 0);
	check_equal("the handler was called twice", next_step - steps, 2);
	check_equal("RDI as the enclave left it", steps[0].rdi, REG_PATTERN(7));
	check_equal("RSI as the enclave left it", steps[0].rsi, REG_PATTERN(6));
	check_equal("RDX as the enclave left it", steps[0].rdx, REG_PATTERN(2));
	check_equal("R8 as the enclave left it", steps[0].r8, REG_PATTERN(8));
	check_equal("R9 as the enclave left it", steps[0].r9, REG_PATTERN(9));
	check_equal("the seventh argument is the run record", steps[0].run, (uint64_t)&run);
	check_equal("the stack is aligned at the call", (steps[0].rsp + 8) % 16, 0);
	check_equal("DF is clear", steps[0].rflags & 0x400, 0);
	check_equal("RDI given to the next entry", look.out[ENTRY_RDI], (uint64_t)&look);
	check_equal("RSI given to the next entry", look.out[ENTRY_RSI], 0x61);
	check_equal("RDX given to the next entry", look.out[ENTRY_RDX], 0x62);
	check_equal("R8 given to the next entry", look.out[8], 0x68);
	check_equal("R9 given to the next entry", look.out[9], 0x69);
	check_equal("RCX argument is RSP at the exit", steps[1].rcx, look.out[ENTRY_RSP]);
	check_equal("function is EEXIT", run.function, EEXIT);
	check_equal("user_data is the program's", run.user_data, 0xda7a);
	check_equal("no exception", run.exception_vector, 0);
}

static void answers(const struct enclave *enclave)
{
	static const struct {
		const char *name;
		long answer;
		int result;
	} cases[] = {
		{ "a negative answer is returned", -7, -7 },
		{ "answer EGETKEY is -EINVAL", EGETKEY, -EINVAL },
		{ "answer EEXIT is -EINVAL", EEXIT, -EINVAL },
		{ "answer 0x1002 is -EINVAL", 0x1002, -EINVAL },
	};
	struct op op = { .code = OP_NOP };

	for (unsigned int i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		memset(steps, 0, sizeof(steps));
		steps[0].answer = cases[i].answer;
		check_equal(cases[i].name, call(enclave, 0, &op, script_handler),
			    cases[i].result);
	}
}

/* A handler as the Intel SDK's: on an exception it calls the function again, then resumes. */
static int nested_result, handled;
static struct op nested;

static int nesting_handler(long rdi, long rsi, long rdx, long rsp, long r8, long r9,
			   struct sgx_enclave_run *given)
{
	struct sgx_enclave_run inner = { .tcs = given->tcs };

	(void)rdi, (void)rsi, (void)rdx, (void)rsp, (void)r8, (void)r9;
	if (given->function == EEXIT)
		return 0;
	handled++;
	nested_result = call_vdso((uint64_t)&nested, 0, 0, EENTER, 0, 0, &inner);
	return inner.function == EEXIT ? ERESUME : -1;
}

static void recursion_and_resume(const struct enclave *enclave)
{
	struct op op = { .code = OP_UD2 };

	nested = (struct op){ .code = OP_SET_RIP, .a = at_symbol(enclave, "ud2_instruction") + 2 };
	check_equal("nested call", call(enclave, 1, &op, nesting_handler), 0);
	check_equal("one exception handled", handled, 1);
	check_equal("nested call returned", nested_result, 0);
	check_equal("the enclave went on", op.out[0], 1);
	check_equal("and left by EEXIT", run.function, EEXIT);
}

/* A handler that leaves by longjmp, as the UAPI allows. */
static jmp_buf out;

static int jumping_handler(long rdi, long rsi, long rdx, long rsp, long r8, long r9,
			   struct sgx_enclave_run *given)
{
	(void)rdi, (void)rsi, (void)rdx, (void)rsp, (void)r8, (void)r9, (void)given;
	longjmp(out, 9);
}

static void longjmp_out(const struct enclave *enclave)
{
	struct op op = { .code = OP_NOP };
	volatile int back = setjmp(out);

	if (!back)
		call(enclave, 2, &op, jumping_handler);
	call_level = 0;
	check_equal("longjmp out of the handler", back, 9);
	CHECK("the TCS is free afterwards", do_op(enclave, 2, &op));
}

/* A handler that leaves the enclave's interrupted frame for later. */
static int stopping_handler(long rdi, long rsi, long rdx, long rsp, long r8, long r9,
			    struct sgx_enclave_run *given)
{
	(void)rdi, (void)rsi, (void)rdx, (void)rsp, (void)r8, (void)r9;
	return given->function == ERESUME ? -44 : 0;
}

static void exception_reaches_the_handler(const struct enclave *enclave)
{
	struct op op = { .code = OP_UD2 };

	check_equal("the handler's answer to an exception",
		    call(enclave, 3, &op, stopping_handler), -44);
	check_equal("vector", run.exception_vector, VECTOR_UD);
	check_equal("function", run.function, ERESUME);
	CHECK("leave", leave_faulted(enclave, 3));
}

int main(int argc, char **argv)
{
	struct enclave enclave;

	begin(argc, argv);
	enclave = build(&the_image);
	registers_pass_both_ways(&enclave);
	answers(&enclave);
	recursion_and_resume(&enclave);
	longjmp_out(&enclave);
	exception_reaches_the_handler(&enclave);
	return finish();
}
