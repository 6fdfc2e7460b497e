/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Instructions that are illegal inside are #UD, fault-like, with SSA.RIP at the instruction. What
 * faults outside ELRANGE without EEXIT is #GP, for the first fetch there would have been.
 */
#include "host.h"

static uint8_t frame[SSA_FRAME];

extern const char host_ud2[];
asm(".text\nhost_ud2:\n\tud2\n");

static void one(const struct enclave *enclave, const char *what, uint64_t target,
		unsigned int vector)
{
	struct op op = { .code = OP_JUMP, .a = target };
	struct op read = { .code = OP_SSA, .a = 0, .b = (uint64_t)frame };
	struct sgx_enclave_run run;
	uint64_t rip;
	char name[80];

	snprintf(name, sizeof(name), "%s: faults", what);
	if (!check(enter(&run, tcs(enclave, 0), &op) == 0 && run.function == ERESUME, name,
		   "function %u vector %u", run.function, run.exception_vector))
		return;
	snprintf(name, sizeof(name), "%s: vector", what);
	check_equal(name, run.exception_vector, vector);
	snprintf(name, sizeof(name), "%s: error code", what);
	check_equal(name, run.exception_error_code, 0);
	if (!do_op(enclave, 0, &read))
		fail("%s: the SSA cannot be read", what);
	memcpy(&rip, frame + GPRSGX + 136, sizeof(rip));
	snprintf(name, sizeof(name), "%s: SSA.RIP", what);
	check_equal(name, rip, target);
	if (!leave_faulted(enclave, 0))
		fail("%s: the frame does not leave", what);
}

int main(int argc, char **argv)
{
	static const char *const illegal[] = { "illegal_int3", "illegal_int", "illegal_in",
					       "illegal_out", "illegal_rdpmc",
					       "illegal_syscall", "illegal_int80",
					       "illegal_cpuid", "illegal_int_3",
					       "illegal_ins", "illegal_outs",
					       "illegal_vmcall", "illegal_vmfunc",
					       "illegal_encls", "illegal_enclv",
					       "illegal_getsec", "illegal_enclu" };
	struct enclave enclave;

	begin(argc, argv);
	enclave = build(&the_image);
	for (unsigned int i = 0; i < sizeof(illegal) / sizeof(illegal[0]); i++)
		one(&enclave, illegal[i], at_symbol(&enclave, illegal[i]), VECTOR_UD);
	one(&enclave, "fetch outside", (uint64_t)host_ud2, VECTOR_GP);
	return finish();
}
