/* SPDX-License-Identifier: Apache-2.0 */
/* The registers that EENTER gives an enclave and those that EEXIT leaves to the host. */
#include "host.h"

static void by_vdso(const struct enclave *enclave)
{
	struct op op = { .code = OP_ENTRY };
	struct sgx_enclave_run run = { .tcs = tcs(enclave, 1) };
	uint64_t fs = read_fsbase(), gs = read_gsbase();
	int result = call_vdso((uint64_t)&op, 0x111, 0x222, EENTER, 0x888, 0x999, &run);

	check_equal("vdso returns 0", result, 0);
	check_equal("vdso function is EEXIT", run.function, EEXIT);
	check_equal("vdso user_data untouched", run.user_data, 0);
	check_equal("RAX is CSSA", op.out[ENTRY_RAX], 0);
	check_equal("RBX is the TCS", op.out[ENTRY_RBX], tcs(enclave, 1));
	check_equal("RDI passed", op.out[ENTRY_RDI], (uint64_t)&op);
	check_equal("RSI passed", op.out[ENTRY_RSI], 0x111);
	check_equal("RDX passed", op.out[ENTRY_RDX], 0x222);
	check_equal("R8 passed", op.out[8], 0x888);
	check_equal("R9 passed", op.out[9], 0x999);
	check_equal("RIP is OENTRY", op.out[ENTRY_RIP], at_symbol(enclave, "enclave_entry"));
	check_equal("FS base from the TCS", op.out[ENTRY_FSBASE],
		    at_symbol(enclave, "thread_fs1"));
	check_equal("GS base from the TCS", op.out[ENTRY_GSBASE],
		    at_symbol(enclave, "thread_gs1"));
	check_equal("vdso RCX follows an ENCLU",
		    memcmp((char *)op.out[ENTRY_RCX] - 3, "\x0f\x01\xd7", 3), 0);
	check_equal("host FS base restored", read_fsbase(), fs);
	check_equal("host GS base restored", read_gsbase(), gs);
}

static void by_bare_enclu(const struct enclave *enclave)
{
	struct op op = { .code = OP_ENTRY };
	struct bare bare = bare_record(EENTER, tcs(enclave, 0), bare_resume, &op);
	uint64_t gs = read_gsbase(), fs = read_fsbase();
	char name[40];

	bare_enclu(&bare);
	check_equal("bare: left by EEXIT", bare.where, 1);
	check_equal("bare: RAX is CSSA", op.out[ENTRY_RAX], 0);
	check_equal("bare: RCX is the next instruction", op.out[ENTRY_RCX], (uint64_t)bare_behind);
	check_equal("bare: RBX is the TCS", op.out[ENTRY_RBX], tcs(enclave, 0));
	for (int i = 0; i < 16; i++) {
		if (i == RAX || i == RCX || i == RBX)
			continue;
		snprintf(name, sizeof(name), "bare: register %d passed in", i);
		check_equal(name, op.out[i], bare.in[i]);
	}
	check_equal("bare: DF, AC, TF clear inside", op.out[ENTRY_RFLAGS] & 0x40500, 0);
	check_equal("bare: RAX after EEXIT is the leaf", bare.out[RAX], EEXIT);
	check_equal("bare: RCX after EEXIT is the AEP", bare.out[RCX], (uint64_t)bare_resume);
	check_equal("bare: RBX after EEXIT is its target", bare.out[RBX], (uint64_t)bare_behind);
	check_equal("bare: RSP as the enclave left it", bare.out[RSP], bare.in[RSP]);
	check_equal("bare: RBP as the enclave left it", bare.out[RBP], bare.in[RBP]);
	check_equal("bare: host FS base", bare.fsbase, fs);
	check_equal("bare: host GS base", bare.gsbase, gs);
	check_equal("bare: XMM pass through entry and exit",
		    memcmp(bare.out_fx.xmm, bare.in_fx.xmm, sizeof(bare.in_fx.xmm)), 0);
	check_equal("bare: MXCSR passes through", bare.out_fx.mxcsr, 0x1f80);
	check_equal("bare: FCW passes through", bare.out_fx.fcw, 0x37f);
}

static void exit_as_the_enclave_left(const struct enclave *enclave)
{
	struct op op = { .code = OP_EXIT_REGISTERS };
	struct bare bare = bare_record(EENTER, tcs(enclave, 2), bare_resume, &op);
	char name[60];

	bare_enclu(&bare);
	check_equal("exit: RAX", bare.out[RAX], EEXIT);
	check_equal("exit: RCX is the AEP", bare.out[RCX], (uint64_t)bare_resume);
	check_equal("exit: RBX", bare.out[RBX], (uint64_t)bare_behind);
	for (int i = 0; i < 16; i++) {
		if (i == RAX || i == RCX || i == RBX || i == RSP || i == RBP)
			continue;
		snprintf(name, sizeof(name), "exit: register %d as the enclave left it", i);
		check_equal(name, bare.out[i], REG_PATTERN(i));
	}
	for (int i = 0; i < 16; i++) {
		snprintf(name, sizeof(name), "exit: xmm%d as the enclave left it", i);
		check(bare.out_fx.xmm[i][0] == 0x7ec7000000000000 + (uint64_t)i &&
			      bare.out_fx.xmm[i][1] == 0x7ec8000000000000 + (uint64_t)i,
		      name, "%#lx %#lx", bare.out_fx.xmm[i][1], bare.out_fx.xmm[i][0]);
	}
	check_equal("exit: CF as the enclave left it", bare.rflags & 1, 1);
}

static void kept_between_entries(const struct enclave *enclave)
{
	struct op put = { .code = OP_PUT, .a = 0x1122334455667788 };
	struct op get = { .code = OP_GET };

	CHECK("put", do_op(enclave, 0, &put));
	CHECK("get on another TCS", do_op(enclave, 1, &get));
	check_equal("what one entry kept, another finds", get.out[0], put.a);
}

/* The program's own GS base is not the enclave's business: it must come back. */
static void own_gs_base(const struct enclave *enclave)
{
	static char block[64];
	struct op op = { .code = OP_NOP };
	uint64_t before = read_gsbase();

	asm volatile("wrgsbase %0" : : "r"(block));
	do_op(enclave, 0, &op);
	check_equal("a GS base of the program's own comes back", read_gsbase(), (uint64_t)block);
	asm volatile("wrgsbase %0" : : "r"(before));
}

int main(int argc, char **argv)
{
	struct enclave enclave;

	begin(argc, argv);
	enclave = build(&the_image);
	by_vdso(&enclave);
	by_bare_enclu(&enclave);
	exit_as_the_enclave_left(&enclave);
	kept_between_entries(&enclave);
	own_gs_base(&enclave);
	return finish();
}
