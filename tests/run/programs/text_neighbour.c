/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Maps a page of its own text whose last instruction but one is CPUID right before a page of another
 * file, which changes then. Prints the first byte at CPUID, and what the page behind shows.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096
#define BEFORE 4064

extern const char __executable_start[], edge[];

__asm__(".text\n"
	".balign 4096\n"
	".globl	edge\n"
	".type	edge, @function\n"
	"edge:\n"
	".cfi_startproc\n"
	".skip	4064, 0x90\n"
	"cpuid\n"
	"ret\n"
	".cfi_endproc\n"
	".size	edge, . - edge\n"
	".balign 4096, 0xcc\n");

int main(void)
{
	int text = open("/proc/self/exe", O_RDONLY), other = memfd_create("other", 0);
	volatile unsigned char *pages;

	pages = mmap(NULL, 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (text < 0 || pages == MAP_FAILED || pwrite(other, "a", 1, PAGE - 1) != 1 ||
	    mmap((void *)(pages + PAGE), PAGE, PROT_READ, MAP_PRIVATE | MAP_FIXED, other, 0) ==
		    MAP_FAILED ||
	    mmap((void *)pages, PAGE, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_FIXED, text,
		 edge - __executable_start) == MAP_FAILED) {
		perror("mapping");
		return 2;
	}
	pwrite(other, "b", 1, PAGE - 1);
	printf("%02x %c\n", pages[BEFORE] == 0x0f ? pages[BEFORE + 1] : pages[BEFORE],
	       pages[2 * PAGE - 1]);
	return 0;
}
