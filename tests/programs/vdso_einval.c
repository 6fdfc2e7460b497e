/* SPDX-License-Identifier: Apache-2.0 */
/* __vdso_sgx_enter_enclave refuses a function or a run record that it does not know. */
#include "host.h"

static struct sgx_enclave_run run;
static struct op op = { .code = OP_GET };

static int call(uint64_t tcs_address, unsigned int function)
{
	run.tcs = tcs_address;
	op.out[0] = 99;
	return call_vdso((uint64_t)&op, 0, 0, function, 0, 0, &run);
}

static int spoiling_handler(long rdi, long rsi, long rdx, long rsp, long r8, long r9,
			    struct sgx_enclave_run *given)
{
	(void)rdi, (void)rsi, (void)rdx, (void)rsp, (void)r8, (void)r9;
	given->reserved[100] = 1;
	return EENTER;
}

int main(int argc, char **argv)
{
	static const unsigned int functions[] = { 0, 1, 4, 5, 9, 0x102, 0x80000002, 0xffffffff };
	static const int offsets[] = { 0, 1, 7, 8, 100, 214, 215 };
	struct sgx_enclave_run before;
	struct enclave enclave;
	char name[60];

	begin(argc, argv);
	enclave = build(&the_image);
	for (unsigned int i = 0; i < sizeof(functions) / sizeof(functions[0]); i++) {
		memset(&run, 0, sizeof(run));
		run.tcs = tcs(&enclave, 0);
		before = run;
		snprintf(name, sizeof(name), "function %#x", functions[i]);
		check_equal(name, call(tcs(&enclave, 0), functions[i]), -EINVAL);
		snprintf(name, sizeof(name), "function %#x: nothing written", functions[i]);
		check_equal(name, memcmp(&run, &before, sizeof(run)), 0);
	}
	for (unsigned int i = 0; i < sizeof(offsets) / sizeof(offsets[0]); i++) {
		memset(&run, 0, sizeof(run));
		run.reserved[offsets[i]] = 1;
		snprintf(name, sizeof(name), "reserved[%d]", offsets[i]);
		check_equal(name, call(tcs(&enclave, 0), EENTER), -EINVAL);
		check_equal("the enclave was not entered", op.out[0], 99);
	}
	memset(&run, 0, sizeof(run));
	run.user_handler = (uint64_t)spoiling_handler;
	check_equal("reserved is checked at each re-entry", call(tcs(&enclave, 0), EENTER),
		    -EINVAL);
	memset(&run, 0, sizeof(run));
	check_equal("a good call works", call(tcs(&enclave, 0), EENTER), 0);
	check_equal("and enters", op.out[0], 0);
	return finish();
}
