# SPDX-License-Identifier: Apache-2.0
# The enclave of the benchmarks as a flat image, one page after the other: TCS, code, two SSA
# frames, data. No runtime: EENTER with RDI = 0 leaves at once (an empty ecall), with RDI = turns it
# runs the loop on the data page and writes the result to the address in RDX, outside. With RSI = an
# address in the enclave it reads the first word of RDI pages from there, R8 bytes apart, and writes
# their sum.

        .set    CODE, 0x1000
        .set    SSA, 0x2000
        .set    DATA, 0x4000
        # host.c calls the same loop outside, at this offset of a copy of the code page.
        .set    LOOP, 0x100

        .text
tcs:
        .quad   0               # STATE
        .quad   0               # FLAGS
        .quad   SSA             # OSSA
        .long   0               # CSSA
        .long   2               # NSSA
        .quad   CODE            # OENTRY
        .quad   0               # AEP
        .quad   0               # OFSBASGX
        .quad   0               # OGSBASGX
        .long   0xffffffff      # FSLIMIT
        .long   0xffffffff      # GSLIMIT

        .org    CODE
        mov     %rcx, %rbx      # EENTER left the address after it in RCX; EEXIT wants it in RBX
        test    %rdi, %rdi
        jz      leave
        test    %rsi, %rsi
        jnz     touch
        lea     tcs + DATA(%rip), %rsi
        call    loop
        mov     %rax, (%rdx)
leave:
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

        .org    DATA + 0x1000
