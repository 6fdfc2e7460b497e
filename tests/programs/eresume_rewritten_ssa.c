/* SPDX-License-Identifier: Apache-2.0 */
/* ERESUME takes everything from the SSA, so a nested entry that rewrites the frame decides. */
#include "host.h"

#define GPR_RAX 0
#define GPR_RCX 8
#define GPR_FSBASE 168

static struct sgx_enclave_run run;

static bool rewrite(const struct enclave *enclave, int index, uint64_t field, uint64_t value)
{
	struct op op = { .code = OP_SET_REGISTER, .a = field, .b = value };

	return do_op(enclave, index, &op);
}

static int resume(const struct enclave *enclave, int index)
{
	memset(&run, 0, sizeof(run));
	run.tcs = tcs(enclave, index);
	return call_vdso(0, 0, 0, ERESUME, 0, 0, &run);
}

static void rewritten_rip(const struct enclave *enclave)
{
	struct op op = { .code = OP_UD2 };
	struct op skip = { .code = OP_SET_RIP, .a = at_symbol(enclave, "ud2_instruction") + 2 };

	CHECK("ud2 faults", enter(&run, tcs(enclave, 0), &op) == 0 && run.function == ERESUME);
	check_equal("not past the ud2 yet", op.out[0], 0);
	CHECK("RIP rewritten from CSSA 1", do_op(enclave, 0, &skip));
	CHECK("FS base rewritten", rewrite(enclave, 0, GPR_FSBASE, enclave->base + 0x3000));
	CHECK("ERESUME ends by EEXIT", resume(enclave, 0) == 0 && run.function == EEXIT);
	check_equal("the enclave went on past the ud2", op.out[0], 1);
	check_equal("FS base comes from the SSA", op.out[ENTRY_FSBASE], enclave->base + 0x3000);
	check_equal("GS base comes from the SSA", op.out[ENTRY_GSBASE],
		    at_symbol(enclave, "thread_gs0"));
}

static void rewritten_operands(const struct enclave *enclave)
{
	struct op op = { .code = OP_DIVIDE };

	CHECK("div faults", enter(&run, tcs(enclave, 1), &op) == 0 && run.exception_vector == 0 &&
				    run.function == ERESUME);
	CHECK("ERESUME without a change faults again",
	      resume(enclave, 1) == 0 && run.function == ERESUME);
	CHECK("RAX rewritten", rewrite(enclave, 1, GPR_RAX, 42));
	CHECK("RCX rewritten", rewrite(enclave, 1, GPR_RCX, 7));
	CHECK("the division is made again", resume(enclave, 1) == 0 && run.function == EEXIT);
	check_equal("42 / 7", op.out[0], 6);
}

/* A page that the host makes accessible between the fault and ERESUME. */
static void mended_by_the_host(const struct enclave *enclave)
{
	uint64_t *page = mmap(NULL, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct op op = { .code = OP_WRITE, .a = (uint64_t)page, .b = 77 };

	CHECK("write to PROT_NONE faults",
	      enter(&run, tcs(enclave, 2), &op) == 0 && run.exception_vector == VECTOR_PF);
	mprotect(page, PAGE, PROT_READ | PROT_WRITE);
	CHECK("ERESUME makes the write", resume(enclave, 2) == 0 && run.function == EEXIT);
	check_equal("the written word", *page, 77);
}

static void resume_with_nothing_to_resume(const struct enclave *enclave)
{
	CHECK("ERESUME on CSSA 0 returns", resume(enclave, 3) == 0);
	check_equal("it is #GP", run.exception_vector, VECTOR_GP);
	check_equal("it is ERESUME that faulted", run.function, ERESUME);
}

/* SIGILL handler that makes the AEP's ENCLU an EENTER, as runtimes without the vDSO do. */
static struct op at_aep;

static void enter_at_the_aep(int number, siginfo_t *info, void *context)
{
	ucontext_t *uc = context;

	note_signal(number, info, context);
	uc->uc_mcontext.gregs[REG_RAX] = EENTER;
	uc->uc_mcontext.gregs[REG_RDI] = (greg_t)&at_aep;
}

static void eenter_at_the_aep(const struct enclave *enclave)
{
	struct op op = { .code = OP_UD2 };
	struct bare bare = bare_record(EENTER, tcs(enclave, 4), bare_instruction, &op);

	at_aep.code = OP_ENTRY;
	handle(SIGILL, enter_at_the_aep);
	bare_enclu(&bare);
	signal(SIGILL, SIG_DFL);
	check_equal("EENTER at the AEP: left by EEXIT", bare.where, 1);
	check_equal("EENTER at the AEP: nested", at_aep.out[ENTRY_RAX], 1);
	check_equal("EENTER at the AEP: RCX", at_aep.out[ENTRY_RCX], (uint64_t)bare_behind);
	CHECK("EENTER at the AEP: frame 0 leaves", leave_faulted(enclave, 4));
}

/* A rewritten XSAVE header that XRSTOR refuses, and a RIP that is no address. */
static void impossible_frames(const struct enclave *enclave)
{
	struct op op = { .code = OP_UD2 };

	CHECK("fault", enter(&run, tcs(enclave, 5), &op) == 0 && run.function == ERESUME);
	CHECK("XSTATE_BV beyond XFRM", rewrite(enclave, 5, (uint64_t)512 - GPRSGX, 0x204));
	CHECK("ERESUME returns", resume(enclave, 5) == 0);
	check_equal("bad XSTATE_BV is #GP", run.exception_vector, VECTOR_GP);
	CHECK("XSTATE_BV mended", rewrite(enclave, 5, (uint64_t)512 - GPRSGX, 3));
	CHECK("RIP not canonical", rewrite(enclave, 5, 136, 0x8000000000000000));
	CHECK("ERESUME returns again", resume(enclave, 5) == 0);
	check_equal("RIP not canonical is #GP", run.exception_vector, VECTOR_GP);
	CHECK("frame 0 leaves", leave_faulted(enclave, 5));
}

int main(int argc, char **argv)
{
	struct enclave enclave;

	begin(argc, argv);
	enclave = build(&the_image);
	rewritten_rip(&enclave);
	rewritten_operands(&enclave);
	mended_by_the_host(&enclave);
	resume_with_nothing_to_resume(&enclave);
	eenter_at_the_aep(&enclave);
	impossible_frames(&enclave);
	return finish();
}
