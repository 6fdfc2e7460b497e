# SPDX-License-Identifier: Apache-2.0
# The enclave of the benchmarks as a flat image, one page after the other: THREADS TCSs (1 unless the assembler is told),
# code, two SSA frames for each TCS, a data page for each, at which GS points. No runtime: EENTER with RDI = 0 leaves at
# once (an empty ecall), with RDI = turns it runs the loop on the first data page and writes the result to the address in
# RDX, outside. With RSI = an address in the enclave it reads the first word of RDI pages from there, R8 bytes apart, and
# writes their sum. With RDI = CALL it leaves for an ocall, RDI = OCALL telling so; with RDI = RETURN it is back from there.

        .ifndef THREADS
        .set    THREADS, 1
        .endif
        .set    PAGE, 0x1000
        .set    CODE, THREADS * PAGE
        .set    SSA, CODE + PAGE
        .set    DATA, SSA + 2 * THREADS * PAGE
        # host.c calls the same loop outside, at this offset of a copy of the code page.
        .set    LOOP, 0x100
        # As in transitions.h.
        .set    CALL, -1
        .set    RETURN, -2
        .set    OCALL, -3

        .text
tcs:
        .set    thread, 0
        .rept   THREADS
        .quad   0               # STATE
        .quad   0               # FLAGS
        .quad   SSA + 2 * thread * PAGE # OSSA
        .long   0               # CSSA
        .long   2               # NSSA
        .quad   CODE            # OENTRY
        .quad   0               # AEP
        .quad   0               # OFSBASGX
        .quad   DATA + thread * PAGE    # OGSBASGX
        .long   0xffffffff      # FSLIMIT
        .long   0xffffffff      # GSLIMIT
        .balign PAGE, 0
        .set    thread, thread + 1
        .endr

        mov     %rcx, %rbx      # EENTER left the address after it in RCX; EEXIT wants it in RBX
        test    %rdi, %rdi
        jz      leave
        cmp     $CALL, %rdi
        je      call_out
        cmp     $RETURN, %rdi
        je      leave
        test    %rsi, %rsi
        jnz     touch
        lea     tcs + DATA(%rip), %rsi
        call    loop
        mov     %rax, (%rdx)
leave:
        mov     $4, %eax        # EEXIT
        enclu
call_out:
        mov     $OCALL, %rdi
        mov     $4, %eax        # EEXIT
        enclu
touch:
        xor     %eax, %eax
1:      add     (%rsi), %rax
        add     %r8, %rsi
        dec     %rdi
        jnz     1b
        mov     %rax, (%rdx)
        jmp     leave

        # RDI turns, RSI a page; the result in RAX. Keeps RBX and RDX.
        .org    CODE + LOOP
loop:
        mov     $0x9e3779b97f4a7c15, %r8
        mov     $1, %eax
        .balign 32
1:      imul    %r8, %rax
        mov     %rax, %rcx
        shr     $29, %rcx
        xor     %rcx, %rax
        and     $0xff8, %ecx
        add     (%rsi, %rcx), %rax
        mov     %rax, (%rsi, %rcx)
        dec     %rdi
        jnz     1b
        ret

        .org    DATA + THREADS * PAGE
