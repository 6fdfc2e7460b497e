/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What an asynchronous exit leaves: the synthetic registers in the signal frame and at the AEP,
 * and in the SSA what the enclave had, with EXITINFO and EXINFO.
 */
#include "host.h"

#define FLAGS_ARITHMETIC 0x8d5UL /* CF PF AF ZF SF OF */
#define FLAG_TF 0x100UL
#define FLAG_DF 0x400UL
#define FLAG_RF 0x10000UL

static uint8_t frame[SSA_FRAME];

static uint64_t word(unsigned int offset)
{
	uint64_t value;

	memcpy(&value, frame + offset, sizeof(value));
	return value;
}

static uint32_t half(unsigned int offset)
{
	uint32_t value;

	memcpy(&value, frame + offset, sizeof(value));
	return value;
}

/* Fault with op on this TCS: the handler notes the signal frame, the AEP then the registers. */
static struct bare fault(const struct enclave *enclave, int index, struct op *op)
{
	struct bare bare = bare_record(EENTER, tcs(enclave, index), bare_capture, op);
	struct op read = { .code = OP_SSA, .a = 0, .b = (uint64_t)frame };

	caught.count = 0;
	bare_enclu(&bare);
	memset(frame, 0, sizeof(frame));
	if (bare.where == 2 && !do_op(enclave, index, &read))
		check(false, "read the SSA", "the nested entry failed");
	return bare;
}

static void every_register(const struct enclave *enclave)
{
	static const int order[16] = { REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
				       REG_RSI, REG_RDI, REG_R8, REG_R9, REG_R10, REG_R11,
				       REG_R12, REG_R13, REG_R14, REG_R15 };
	struct op op = { .code = OP_FAULT_REGISTERS };
	uint64_t fs = read_fsbase(), gs = read_gsbase();
	struct bare bare = fault(enclave, 0, &op);
	uint64_t wanted[16] = { [RAX] = ERESUME, [RCX] = (uint64_t)bare_capture,
				[RBX] = tcs(enclave, 0), [RSP] = bare.in[RSP],
				[RBP] = bare.in[RBP] };
	char name[60];

	/* The signal frame. */
	check_equal("one signal", caught.count, 1);
	check_equal("SIGILL", caught.number, SIGILL);
	check_equal("si_addr is the AEP", caught.address, (uint64_t)bare_capture);
	check_equal("frame RIP is the AEP", caught.regs[REG_RIP], (uint64_t)bare_capture);
	for (int i = 0; i < 16; i++) {
		snprintf(name, sizeof(name), "frame register %d", i);
		check_equal(name, caught.regs[order[i]], wanted[i]);
	}
	check_equal("frame arithmetic flags", caught.regs[REG_EFL] & FLAGS_ARITHMETIC, 0);
	check_equal("frame DF stays as the enclave had it", caught.regs[REG_EFL] & FLAG_DF,
		    FLAG_DF);
	check_equal("frame RF and TF", caught.regs[REG_EFL] & (FLAG_RF | FLAG_TF), 0);
	check_equal("frame MXCSR", caught.mxcsr, 0x1fb0);
	check_equal("frame FCW", caught.fcw, 0x37f);
	check_equal("frame FSW", caught.fsw, 0);
	check_equal("frame XMM zero", caught.xmm_or, 0);
	check_equal("host FS base in the handler", caught.fsbase, fs);

	/* The registers at the AEP. */
	check_equal("the AEP ran", bare.where, 2);
	for (int i = 0; i < 16; i++) {
		snprintf(name, sizeof(name), "AEP register %d", i);
		check_equal(name, bare.out[i], wanted[i]);
	}
	check_equal("AEP arithmetic flags", bare.rflags & FLAGS_ARITHMETIC, 0);
	check_equal("AEP DF", bare.rflags & FLAG_DF, FLAG_DF);
	check_equal("AEP MXCSR", bare.out_fx.mxcsr, 0x1fb0);
	check_equal("AEP FCW", bare.out_fx.fcw, 0x37f);
	check_equal("AEP FSW", bare.out_fx.fsw, 0);
	check_equal("AEP FS base", bare.fsbase, fs);
	check_equal("AEP GS base", bare.gsbase, gs);
	for (int i = 0; i < 16; i++) {
		snprintf(name, sizeof(name), "AEP xmm%d", i);
		check_equal(name, bare.out_fx.xmm[i][0] | bare.out_fx.xmm[i][1], 0);
	}

	/* The SSA frame. */
	for (int i = 0; i < 16; i++) {
		/* GPRSGX keeps RSP, RBP in the order of the encoding: RAX RCX RDX RBX RSP RBP RSI RDI. */
		snprintf(name, sizeof(name), "SSA register %d", i);
		check_equal(name, word(GPRSGX + 8 * i), REG_PATTERN(i));
	}
	check_equal("SSA RIP", word(GPRSGX + 136), at_symbol(enclave, "fault_registers_ud2"));
	check_equal("SSA RFLAGS", word(GPRSGX + 128) & (FLAG_DF | FLAG_TF | 0x45),
		    FLAG_DF | 0x45);
	check_equal("SSA RF", word(GPRSGX + 128) & FLAG_RF, FLAG_RF);
	check_equal("SSA URSP", word(GPRSGX + 144), bare.in[RSP]);
	check_equal("SSA URBP", word(GPRSGX + 152), bare.in[RBP]);
	check_equal("SSA EXITINFO", half(GPRSGX + 160), 0x80000300 | VECTOR_UD);
	check_equal("SSA FS base", word(GPRSGX + 168), at_symbol(enclave, "thread_fs0"));
	check_equal("SSA GS base", word(GPRSGX + 176), at_symbol(enclave, "thread_gs0"));
	check_equal("SSA FCW", half(0) & 0xffff, PATTERN_FCW);
	check_equal("SSA MXCSR", half(24), PATTERN_MXCSR);
	for (int i = 0; i < 16; i++) {
		snprintf(name, sizeof(name), "SSA xmm%d", i);
		check(word(160 + 16 * i) == 0x7ec7000000000000 + (uint64_t)i &&
			      word(168 + 16 * i) == 0x7ec8000000000000 + (uint64_t)i,
		      name, "%#lx %#lx", word(168 + 16 * i), word(160 + 16 * i));
	}
	check_equal("SSA XSTATE_BV is within XFRM", word(512) & ~XFRM_LEGACY, 0);
	check_equal("SSA XSTATE_BV has SSE", word(512) & 2, 2);
	check_equal("SSA XCOMP_BV and reserved", word(520) | word(528), 0);
	CHECK("leave", leave_faulted(enclave, 0));
}

struct fault_case {
	const char *name;
	struct op op;
	int number, code;
	uint64_t address; /* si_addr */
	uint32_t exitinfo;
	bool exinfo;
	uint64_t maddr;
	uint32_t errcd;
};

static void one_fault(const struct enclave *enclave, struct fault_case *one)
{
	struct bare bare = fault(enclave, 1, &one->op);
	char name[80];

#define NAME(text) (snprintf(name, sizeof(name), "%s: " text, one->name), name)
	check_equal(NAME("signal"), caught.number, one->number);
	check_equal(NAME("si_code"), (uint32_t)caught.code, (uint32_t)one->code);
	check_equal(NAME("si_addr"), caught.address, one->address);
	check_equal(NAME("frame RIP"), caught.regs[REG_RIP], (uint64_t)bare_capture);
	check_equal(NAME("frame RAX"), caught.regs[REG_RAX], ERESUME);
	check_equal(NAME("where"), bare.where, 2);
	if (bare.where != 2)
		return;
	check_equal(NAME("EXITINFO"), half(GPRSGX + 160), one->exitinfo);
	if (one->exinfo) {
		check_equal(NAME("EXINFO.MADDR"), word(EXINFO), one->maddr);
		check_equal(NAME("EXINFO.ERRCD"), half(EXINFO + 8), one->errcd);
	}
	CHECK(NAME("leave"), leave_faulted(enclave, 1));
#undef NAME
}

static void each_fault(const struct enclave *enclave)
{
	uint64_t none = (uint64_t)mmap(NULL, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint64_t hole = reserve(PAGE); /* then unmapped: no VMA there */
	uint64_t rodata = at_symbol(enclave, "read_only_page");
	uint64_t aep = (uint64_t)bare_capture;
	/* A page of the ELRANGE that was never added, but is mapped. */
	uint64_t absent = enclave->base + enclave->size - PAGE;
	struct op touch = { .code = OP_READ, .a = rodata };
	struct fault_case cases[] = {
		{ "div", { .code = OP_DIVIDE }, SIGFPE, FPE_INTDIV, aep,
		  0x80000300 | VECTOR_DE, false, 0, 0 },
		{ "ud2", { .code = OP_UD2 }, SIGILL, ILL_ILLOPN, aep, 0x80000300 | VECTOR_UD,
		  false, 0, 0 },
		{ "non-canonical", { .code = OP_READ, .a = 0x8000000000000000 }, SIGSEGV,
		  SI_KERNEL, 0, 0x80000300 | VECTOR_GP, true, 0, 0 },
		{ "PROT_NONE read", { .code = OP_READ, .a = none + 0x128 }, SIGSEGV, SEGV_ACCERR,
		  none, 0x80000300 | VECTOR_PF, true, none + 0x128, 4 },
		{ "PROT_NONE write", { .code = OP_WRITE, .a = none + 0x130 }, SIGSEGV, SEGV_ACCERR,
		  none, 0x80000300 | VECTOR_PF, true, none + 0x130, 6 },
		{ "unmapped read", { .code = OP_READ, .a = hole + 0x140 }, SIGSEGV, SEGV_MAPERR,
		  hole, 0x80000300 | VECTOR_PF, true, hole + 0x140, 4 },
		{ "write to a read-only page", { .code = OP_WRITE, .a = rodata + 0x48 }, SIGSEGV,
		  SEGV_ACCERR, rodata, 0x80000300 | VECTOR_PF, true, rodata + 0x48, 7 },
		{ "read of an absent page", { .code = OP_READ, .a = absent + 0x50 },
		  has_sgx2() ? SIGSEGV : SIGBUS, has_sgx2() ? SEGV_ACCERR : BUS_ADRERR, absent,
		  0x80000300 | VECTOR_PF, true, absent + 0x50, has_sgx2() ? 0x8005 : 4 },
		{ "EREPORT misaligned", { .code = OP_REPORT_MISALIGNED }, SIGSEGV, SI_KERNEL, 0,
		  0x80000300 | VECTOR_GP, true, 0, 0 },
		{ "EENTER inside", { .code = OP_ENTER_INSIDE }, SIGSEGV, SI_KERNEL, 0,
		  0x80000300 | VECTOR_GP, true, 0, 0 },
	};

	munmap((void *)hole, PAGE);
	if (mmap((void *)absent, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, enclave->fd,
		 0) == MAP_FAILED)
		fail("mapping a page that was never added");
	/* Present for the first write, so that the fault is one of protection. */
	do_op(enclave, 1, &touch);
	for (unsigned int i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
		one_fault(enclave, &cases[i]);
}

/* A leaf that faults inside leaves RIP at its ENCLU and the leaf in RAX. */
static void leaf_that_faults(const struct enclave *enclave)
{
	struct op op = { .code = OP_REPORT_MISALIGNED };
	struct bare bare = fault(enclave, 2, &op);

	check_equal("EREPORT: the AEP ran", bare.where, 2);
	check_equal("EREPORT: SSA RIP at the ENCLU", word(GPRSGX + 136),
		    at_symbol(enclave, "enclu_instruction"));
	check_equal("EREPORT: SSA RAX is the leaf", word(GPRSGX), EREPORT);
	CHECK("EREPORT: leave", leave_faulted(enclave, 2));
}

int main(int argc, char **argv)
{
	static const int signals[] = { SIGILL, SIGFPE, SIGSEGV, SIGBUS };
	struct enclave enclave;

	begin(argc, argv);
	enclave = build(&the_image);
	for (int i = 0; i < 4; i++)
		handle(signals[i], note_signal);
	every_register(&enclave);
	each_fault(&enclave);
	leaf_that_faults(&enclave);
	return finish();
}
