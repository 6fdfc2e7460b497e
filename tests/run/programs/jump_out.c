/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An enclave that calls code of the host's, which waits for a while and comes back. Prints "went on" where that was
 * carried out, and where it was #GP, "#GP at the target" or where else SSA.RIP was.
 */
#include "host.h"

static uint8_t frame[SSA_FRAME];

/* A tenth of a second of work, so that somebody may find the thread here. */
extern const char outside[];
asm(".text\noutside:\n\tmov $300000000, %ecx\n1:\n\tdec %ecx\n\tjnz 1b\n\tret\n");

int main(int argc, char **argv)
{
	struct op op = { .code = OP_JUMP, .a = (uint64_t)outside };
	struct op read = { .code = OP_SSA, .a = 0, .b = (uint64_t)frame };
	struct sgx_enclave_run run;
	struct enclave enclave;
	uint64_t rip;

	begin(argc, argv);
	enclave = build(&the_image);
	if (enter(&run, tcs(&enclave, 0), &op))
		fail("the vDSO");
	if (run.function == EEXIT) {
		dprintf(1, "went on\n");
		return finish();
	}
	check_equal("an exception inside", run.function, ERESUME);
	check_equal("#GP", run.exception_vector, VECTOR_GP);
	CHECK("the SSA can be read", do_op(&enclave, 0, &read));
	memcpy(&rip, frame + GPRSGX + 136, sizeof(rip));
	if (rip == (uint64_t)outside)
		dprintf(1, "#GP at the target\n");
	else
		dprintf(1, "#GP %ld bytes behind it\n", (long)(rip - (uint64_t)outside));
	CHECK("and it leaves", leave_faulted(&enclave, 0));
	return finish();
}
