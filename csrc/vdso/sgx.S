/* SPDX-License-Identifier: Apache-2.0 */
/*
 * __vdso_sgx_enter_enclave: the contract of the kernel's entry function
 * (include/uapi and arch/x86/entry/vdso of Linux: "vsgx").
 *
 *   int __vdso_sgx_enter_enclave(rdi, rsi, rdx, unsigned int function,
 *                                r8, r9, struct sgx_enclave_run *run);
 *
 * RDI, RSI, RDX, R8 and R9 belong to the caller, the enclave and the user
 * handler alone: they pass through in both directions and nothing here may
 * use them.  RBX and RBP are the only registers that are preserved; AEX and
 * the enclave may destroy R12 to R15.  RSP is the enclave's to move (it may
 * leave arguments on the host's stack for the handler), so the frame is
 * addressed by RBP, which EEXIT and AEX bring back.
 *
 * There is one ENCLU, and its address is the AEP: a thread that resumes there
 * with EAX = ERESUME goes back in, and a fault at that address is turned, by
 * whoever stands for the kernel, into a jump to softsgx_handle_exception.
 * EENTER is tried without it first (transitions.S).
 */

#define EENTER		2
#define ERESUME		3
#define EEXIT		4
#define EINVAL		22

/* struct sgx_enclave_run, 256 bytes */
#define RUN_TCS			0
#define RUN_FUNCTION		8
#define RUN_EXCEPTION_VECTOR	12
#define RUN_EXCEPTION_ERROR	14
#define RUN_EXCEPTION_ADDR	16
#define RUN_USER_HANDLER	24
#define RUN_RESERVED		40
#define RUN_END			256

/* the seventh argument, above the saved RBP and the return address */
#define RUN			16(%rbp)

	.text
	.globl	__vdso_sgx_enter_enclave
	.type	__vdso_sgx_enter_enclave, @function
	.balign	16
__vdso_sgx_enter_enclave:
	.cfi_startproc
	push	%rbp
	.cfi_def_cfa_offset	16
	.cfi_offset		%rbp, -16
	mov	%rsp, %rbp
	.cfi_def_cfa_register	%rbp
	push	%rbx
	.cfi_offset		%rbx, -24
	mov	%ecx, %eax

	/* EAX = leaf.  The handler's answer comes here too: all is checked anew. */
.Lenter:
	lea	-EENTER(%rax), %ecx
	cmp	$(ERESUME - EENTER), %ecx
	ja	.Linvalid

	mov	RUN, %rcx
	mov	RUN_RESERVED(%rcx), %rbx
	.set	at, RUN_RESERVED + 8
	.rept	(RUN_END - RUN_RESERVED) / 8 - 1
	or	at(%rcx), %rbx
	.set	at, at + 8
	.endr
	jnz	.Linvalid

	mov	RUN_TCS(%rcx), %rbx
	lea	softsgx_enclu(%rip), %rcx
	cmp	$EENTER, %eax
	jne	softsgx_enclu
	/* Only where a stop in there is looked after: a handler's frame would lie over what it keeps. */
	cmpq	$0, softsgx_table(%rip)
	je	softsgx_enclu
	lea	3(%rcx), %rax
	jmp	softsgx_eenter

	.globl	softsgx_enclu
	.hidden	softsgx_enclu
softsgx_enclu:
	enclu

	/* EEXIT arrives here.  The exception fields keep what they held. */
	mov	RUN, %rbx
	movl	$EEXIT, RUN_FUNCTION(%rbx)

.Lhandler:
	cmpq	$0, RUN_USER_HANDLER(%rbx)
	je	.Lsuccess

	/*
	 * int handler(rdi, rsi, rdx, rsp at exit, r8, r9, run): the argument on
	 * the stack is pushed twice so that RSP is 16-byte aligned at the call.
	 */
	mov	RUN_USER_HANDLER(%rbx), %rax
	mov	%rsp, %rcx
	and	$-16, %rsp
	push	%rbx
	push	%rbx
	mov	%rcx, %rbx
	cld
	call	*%rax

	/* An enclave is entered again with the stack it left. */
	mov	%rbx, %rsp
	test	%eax, %eax
	jg	.Lenter
	jmp	.Lout

.Lsuccess:
	xor	%eax, %eax
.Lout:
	mov	-8(%rbp), %rbx
	leave
	.cfi_remember_state
	.cfi_restore		%rbp
	.cfi_restore		%rbx
	.cfi_def_cfa		%rsp, 8
	ret
	.cfi_restore_state

.Linvalid:
	mov	$-EINVAL, %eax
	jmp	.Lout

	/*
	 * The exception fixup's landing: RDI = vector, RSI = error code,
	 * RDX = address, EAX = the leaf as the fault left it (EENTER when the
	 * entry itself faulted, ERESUME after an AEX).
	 */
	.globl	softsgx_handle_exception
	.hidden	softsgx_handle_exception
softsgx_handle_exception:
	mov	RUN, %rbx
	mov	%eax, RUN_FUNCTION(%rbx)
	mov	%di, RUN_EXCEPTION_VECTOR(%rbx)
	mov	%si, RUN_EXCEPTION_ERROR(%rbx)
	mov	%rdx, RUN_EXCEPTION_ADDR(%rbx)
	jmp	.Lhandler
	.cfi_endproc
	.size	__vdso_sgx_enter_enclave, . - __vdso_sgx_enter_enclave

	.section .note.GNU-stack, "", @progbits
