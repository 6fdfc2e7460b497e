/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An enclave built and entered through the node of DCAP's driver, where mprotect asks nobody and the
 * EPCM keeps its own.
 */
#define SGX_NODE "/dev/sgx/enclave"
#include "host.h"

int main(int argc, char **argv)
{
	struct sgx_enclave_run run;
	struct enclave enclave;
	struct op op = { .code = OP_NOP };
	const struct segment *code, *last;
	void *at, *hole;

	begin(argc, argv);
	enclave = build(&the_image);
	CHECK("enter and leave", do_op(&enclave, 0, &op));
	code = &the_image.segment[1];
	at = (void *)(enclave.base + code->offset);
	last = &the_image.segment[the_image.segments - 1];
	hole = (void *)(enclave.base + last->offset + last->length);

	/* A place without a page allows nothing, and PROT_NONE only. */
	check_errno("map a hole",
		    mmap(hole, PAGE, PROT_READ, MAP_SHARED | MAP_FIXED, enclave.fd, 0) ==
				    MAP_FAILED ? -1 : 0, EACCES);
	CHECK("map a hole without protection",
	      mmap(hole, PAGE, PROT_NONE, MAP_SHARED | MAP_FIXED, enclave.fd, 0) == hole);
	check_errno("map more than a page allows",
		    mmap(at, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, enclave.fd, 0) ==
				    MAP_FAILED ? -1 : 0, EACCES);

	/* But mprotect does: what the page does not allow is the EPCM's page fault, inside. */
	check_works("mprotect beyond SECINFO",
		    mprotect(at, code->length, PROT_READ | PROT_WRITE | PROT_EXEC));
	CHECK("enter and leave again", do_op(&enclave, 0, &op));
	op = (struct op){ .code = OP_WRITE, .a = (uint64_t)at, .b = 1 };
	check_equal("write to code returns", enter(&run, tcs(&enclave, 0), &op), 0);
	check_equal("function", run.function, ERESUME);
	check_equal("vector", run.exception_vector, VECTOR_PF);
	check_equal("error code", run.exception_error_code, 0x8007);
	CHECK("leave", leave_faulted(&enclave, 0));
	return finish();
}
