/* SPDX-License-Identifier: Apache-2.0 */
/* EENTER with a stack that ends a little below RSP: it touches nothing there, whoever makes it. */
#include "own_enter.h"

static struct enclave enclave;
static struct own own;
static struct turn turn;

static bool enters(uint64_t stack)
{
	uint64_t argument = (uint64_t)&own, function = (uint64_t)own_near;

	fill(&own, &turn, tcs(&enclave, 0), ARITHMETIC);
	asm volatile("mov %%rsp, %%rbx\n"
		     "	mov %2, %%rsp\n"
		     "	call *%1\n"
		     "	mov %%rbx, %%rsp\n"
		     : "+D"(argument), "+S"(function)
		     : "r"(stack)
		     : "rax", "rbx", "rcx", "rdx", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "memory",
		       "cc");
	for (int i = 0; i < 16; i++)
		if (i != RAX && i != RCX && turn.out[i] != own.in[i])
			return false;
	return turn.out[RAX] == 0 && turn.out[RCX] == own_at(own_behind) && own.out[RAX] == EEXIT &&
	       !((turn.out[16] ^ own.flags_in) & ARITHMETIC);
}

int main(int argc, char **argv)
{
	uint8_t *pages;

	begin(argc, argv);
	end_after(60);
	own_near = copy_own_enter();
	enclave = build(&the_image);
	pages = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	for (int i = 0; i < 8; i++)
		enters((uint64_t)pages + 2 * PAGE);
	munmap(pages, PAGE);
	/* What own_enter pushes is 64 bytes with the return address. */
	for (uint64_t room = 128; room <= 192; room += 4) {
		char name[40];

		snprintf(name, sizeof(name), "%lu bytes below RSP", room);
		check(enters((uint64_t)pages + PAGE + room + 64), name, "not as the manual has it");
	}
	return finish();
}
