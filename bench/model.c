// SPDX-License-Identifier: Apache-2.0
// What entering and leaving an enclave costs at least without a trap: a bare model of the path, without softsgx.
//
//   model ecall COUNT         COUNT empty ecalls
//   model ocall COUNT         COUNT ecalls with an ocall in the middle: two entries, two exits
//
// Prints what transitions.h says. An entry claims the record, saves the stack of the caller in a frame and both bases in
// the record, and sets the enclave's bases. The exit finds the record by the GS base, which is all that it knows, and has
// RAX and RCX to do it with. Nothing else: no check, no flags that are kept. The enclave does what enclave.S does.
#include <asm/prctl.h>
#include <err.h>
#include <immintrin.h>
#include <string.h>
#include <sys/auxv.h>

#include "transitions.h"

enum { PAGE = 4096, RECORDS = 64, HWCAP2_FSGSBASE = 1 << 1 };

// Offsets as the assembly has them.
struct record {
	uint64_t gsbase; // 0: the key
	uint64_t fsbase; // 8
	uint64_t state;  // 16
	uint64_t *frame; // 24
	uint64_t host_fsbase; // 32
	uint64_t host_gsbase; // 40
	void *entry; // 48
	uint64_t reserved;
};

_Static_assert(sizeof(struct record) == 64 && RECORDS == 64, "as the assembly has them");

_Alignas(64) struct record records[RECORDS];
uint64_t ocalls;

int64_t model_enter(int64_t rdi, struct record *record);
extern char model_enclave[];
void model_host_function(void);

void model_host_function(void)
{
	ocalls++;
}

__asm__(
	"	.text\n"
	"	.balign	64\n"
	"model_enter:\n"
	"	push	%rbp\n"
	"	mov	%rsp, %rbp\n"
	"	push	%rbx\n"
	"	push	%rsi\n"
	"1:	mov	-16(%rbp), %rbx\n"
	"	xor	%eax, %eax\n"
	"	mov	$1, %ecx\n"
	"	lock cmpxchg %rcx, 16(%rbx)\n"
	"	jne	9f\n"
	"	mov	24(%rbx), %rcx\n"
	"	mov	%rsp, (%rcx)\n"
	"	mov	%rbp, 8(%rcx)\n"
	"	rdfsbase %rax\n"
	"	mov	%rax, 32(%rbx)\n"
	"	rdgsbase %rax\n"
	"	mov	%rax, 40(%rbx)\n"
	"	mov	8(%rbx), %rax\n"
	"	wrfsbase %rax\n"
	"	mov	(%rbx), %rax\n"
	"	wrgsbase %rax\n"
	"	lea	2f(%rip), %rcx\n"
	"	jmp	*48(%rbx)\n"

	"2:	cmp	$" TEXT(OCALL) ", %rdi\n"
	"	jne	3f\n"
	"	call	model_host_function\n"
	"	mov	$" TEXT(RETURN) ", %rdi\n"
	"	jmp	1b\n"
	"3:	mov	%rdi, %rax\n"
	"	mov	-8(%rbp), %rbx\n"
	"	leave\n"
	"	ret\n"
	"9:	ud2\n"

	"	.balign	64\n"
	"model_exit:\n"
	"	rdgsbase %rcx\n"
	"	shr	$6, %ecx\n"
	"	and	$0xfc0, %ecx\n"
	"	lea	records(%rip), %rax\n"
	"	add	%rax, %rcx\n"
	"	rdgsbase %rax\n"
	"	cmp	%rax, (%rcx)\n"
	"	jne	9b\n"
	"	mov	32(%rcx), %rax\n"
	"	wrfsbase %rax\n"
	"	mov	40(%rcx), %rax\n"
	"	wrgsbase %rax\n"
	"	movq	$0, 16(%rcx)\n"
	"	jmp	*%rbx\n"

	"	.balign	64\n"
	"model_enclave:\n"
	"	mov	%rcx, %rbx\n"
	"	test	%rdi, %rdi\n"
	"	jz	5f\n"
	"	cmp	$" TEXT(CALL) ", %rdi\n"
	"	je	6f\n"
	"	cmp	$" TEXT(RETURN) ", %rdi\n"
	"	je	5f\n"
	"	ud2\n"
	"5:	mov	$4, %eax\n"
	"	jmp	model_exit\n"
	"6:	mov	$" TEXT(OCALL) ", %rdi\n"
	"	mov	$4, %eax\n"
	"	jmp	model_exit\n");

static void ecall(void *record)
{
	if (model_enter(0, record) != 0)
		errx(1, "ecall");
}

static void ocall(void *record)
{
	if (model_enter(CALL, record) != RETURN)
		errx(1, "ocall");
}

int main(int argc, char **argv)
{
	static _Alignas(PAGE) uint64_t frame[PAGE / 8], data[PAGE / 8];
	const uint64_t at = (uintptr_t)data;
	struct record *record = &records[at / PAGE % RECORDS];

	if (argc != 3)
		errx(2, "usage: model ecall|ocall COUNT");
	if (!(getauxval(AT_HWCAP2) & HWCAP2_FSGSBASE))
		errx(1, "this kernel lets no program write its FS and GS base");
	*record = (struct record){.gsbase = at, .fsbase = at, .frame = frame, .entry = model_enclave};
	const uint64_t count = strtoull(argv[2], NULL, 0);
	if (strcmp(argv[1], "ecall") == 0) {
		measure(ecall, record, count);
	} else if (strcmp(argv[1], "ocall") == 0) {
		measure(ocall, record, count);
		if (ocalls < count)
			errx(1, "%llu ocalls of %llu", (unsigned long long)ocalls, (unsigned long long)count);
	} else {
		errx(2, "%s: unknown", argv[1]);
	}
	return 0;
}
