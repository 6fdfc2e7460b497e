/* SPDX-License-Identifier: Apache-2.0 */
/* EENTER writes the host's RSP and RBP to SSA[CSSA]'s URSP and URBP, where runtimes read them. */
#include "host.h"

#define URSP (GPRSGX + 144)
#define URBP (GPRSGX + 152)

static uint64_t word(const uint8_t *frame, unsigned int offset)
{
	uint64_t value;

	memcpy(&value, frame + offset, sizeof(value));
	return value;
}

int main(int argc, char **argv)
{
	static uint8_t frame[SSA_FRAME];
	struct op op = { .code = OP_SSA, .a = 0, .b = (uint64_t)frame };
	struct op entry = { .code = OP_ENTRY }, ud2 = { .code = OP_UD2 };
	struct sgx_enclave_run run;
	struct enclave enclave;
	struct bare bare;

	begin(argc, argv);
	enclave = build(&the_image);

	/* The enclave reads its own frame during the entry that wrote it: no AEX is needed. */
	bare = bare_record(EENTER, tcs(&enclave, 0), bare_resume, &op);
	bare_enclu(&bare);
	check_equal("URSP is the host's RSP", word(frame, URSP), bare.in[RSP]);
	check_equal("URBP is the host's RBP", word(frame, URBP), bare.in[RBP]);

	/* Each entry writes them anew. */
	bare.in[RBP] = 0x4242;
	bare_enclu(&bare);
	check_equal("URBP of the next entry", word(frame, URBP), 0x4242);

	/* A nested entry writes those of its own frame and leaves frame 0 alone. */
	CHECK("fault", enter(&run, tcs(&enclave, 0), &ud2) == 0 && run.function == ERESUME);
	op.a = 0;
	CHECK("nested entry reads frame 0", do_op(&enclave, 0, &op));
	uint64_t outer = word(frame, URSP);

	op.a = 1;
	bare = bare_record(EENTER, tcs(&enclave, 0), bare_resume, &op);
	bare_enclu(&bare);
	check_equal("nested URSP", word(frame, URSP), bare.in[RSP]);
	check_equal("nested URBP", word(frame, URBP), bare.in[RBP]);
	op.a = 0;
	CHECK("nested entry reads frame 0 again", do_op(&enclave, 0, &op));
	check_equal("frame 0 kept its URSP", word(frame, URSP), outer);

	CHECK("nested entry has CSSA 1", do_op(&enclave, 0, &entry) && entry.out[ENTRY_RAX] == 1);
	CHECK("frame 0 leaves", leave_faulted(&enclave, 0));
	CHECK("CSSA is 0 again", do_op(&enclave, 0, &entry) && entry.out[ENTRY_RAX] == 0);
	return finish();
}
