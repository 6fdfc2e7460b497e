// SPDX-License-Identifier: Apache-2.0
// Calls each function of cpuid_detour_library.c and compares it with a CPUID that traps.
//
//   cpuid_detour LIBRARY     prints "NAME BYTE RIGHT" a line: the first byte at its CPUID, and whether
//                            registers, flags, red zone and answers are what CPUID leaves
#include <cpuid.h>
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

struct regs {
	uint64_t rax, rcx, out[4];
	uint8_t carry, red_zone, r11, r10, r9, fill[3];
	uint64_t read;
	uint32_t chosen;
};

static const uint32_t leaves[][2] = {{0, 0}, {1, 0}, {7, 0}, {7, 1}, {0x11, 0}, {0x12, 0}, {0x12, 1},
				     {0x12, 2}, {0x12, 3}, {0x12, 9}, {0x80000000, 0}, {0xd, 1}};

static int right(void (*function)(struct regs *), int reads)
{
	for (unsigned int i = 0; i < sizeof(leaves) / sizeof(leaves[0]); i++) {
		struct regs regs = {.rax = 0xffffffff00000000 | leaves[i][0],
				    .rcx = 0xffffffff00000000 | leaves[i][1], .chosen = 5};
		uint32_t wanted[4];

		function(&regs);
		__cpuid_count(leaves[i][0], leaves[i][1], wanted[0], wanted[1], wanted[2], wanted[3]);
		// EBX of leaf 1 tells the processor that this thread is on.
		for (int k = 0; k < 4; k++)
			if (regs.out[k] != wanted[k] && !(leaves[i][0] == 1 && k == 1))
				return 0;
		if (!regs.carry || !regs.red_zone || !regs.r11 || !regs.r10 || !regs.r9)
			return 0;
		if (reads && regs.read != 0x1234)
			return 0;
	}
	return 1;
}

int main(int argc, char **argv)
{
	static const char *const names[] = {"room", "displaced", "entered", "cold", "led", "chosen", "beside",
					    "past", "bounded", "leaf"};
	void *library = argc > 1 ? dlopen(argv[1], RTLD_NOW) : NULL;

	if (!library)
		return 2;
	for (unsigned int i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		char where[32];
		void (*function)(struct regs *);
		const unsigned char *at;

		snprintf(where, sizeof where, "%s_where", names[i]);
		*(void **)&function = dlsym(library, names[i]);
		at = dlsym(library, where);
		snprintf(where, sizeof where, "%s_mov", names[i]);
		if (dlsym(library, where))
			at = dlsym(library, where);
		printf("%s %02x %s\n", names[i], at[0] == 0x0f ? at[1] : at[0],
		       right(function, !strcmp(names[i], "displaced")) ? "right" : "wrong");
	}
	return 0;
}
