/* SPDX-License-Identifier: Apache-2.0 */
/* EENTER with an AEP that is not canonical: #GP, also where the entries before did not trap. */
#include "own_enter.h"

#include <setjmp.h>

static struct enclave enclave;
static sigjmp_buf back;
static uint64_t at;
static int code;

static void on_fault(int number, siginfo_t *info, void *context)
{
	(void)number;
	at = ((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
	code = info->si_code;
	siglongjmp(back, 1);
}

static bool enters(uint64_t aep)
{
	struct own own;
	struct turn turn;

	fill(&own, &turn, tcs(&enclave, 0), 0);
	own.in[RCX] = aep;
	if (sigsetjmp(back, 1))
		return false;
	own_near(&own);
	return own.out[RAX] == EEXIT && own.out[RCX] == aep;
}

int main(int argc, char **argv)
{
	static const uint64_t edges[] = { 1UL << 47, 1UL << 63, 0x7fffffffffffffff, ~0UL << 48 };

	begin(argc, argv);
	end_after(60);
	own_near = copy_own_enter();
	enclave = build(&the_image);
	handle(SIGSEGV, on_fault);
	for (int i = 0; i < 8; i++)
		CHECK("canonical", enters(own_at(own_aep)));
	for (size_t i = 0; i < sizeof(edges) / sizeof(*edges); i++) {
		at = code = 0;
		CHECK("not canonical", !enters(edges[i]));
		check_equal("at the ENCLU", at, own_at(own_enclu));
		check_equal("of the kernel", code, SI_KERNEL);
		CHECK("and the TCS is free", enters(own_at(own_aep)));
	}
	CHECK("the highest one", enters((1UL << 47) - 1));
	CHECK("one of the upper half", enters(~0UL << 47));
	return finish();
}
