/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A turn of the enclave of transitions_enclave.S: the program points RDI at one. Read by C and by assembly, on
 * both sides. Registers are in the order of GPRSGX: RAX RCX RDX RBX RSP RBP RSI RDI R8 to R15.
 */
#ifndef TRANSITIONS_H
#define TRANSITIONS_H

#define TURN_EXIT 0          /* EEXIT behind MOV EAX; and behind the longer MOV RAX; and behind a load */
#define TURN_EXIT_LONG 1
#define TURN_EXIT_LOAD 2
#define TURN_UD2 3
#define TURN_READ 4          /* of the address a */
#define TURN_DIVIDE 5
#define TURN_INT3 6
#define TURN_SYSCALL 7
#define TURN_CPUID 8
#define TURN_SKIP 9          /* on a CSSA above 0: what the frame below was interrupted in shall end */
#define TURN_SSA 10          /* copy GPRSGX of frame a to b */
#define TURN_SPIN 11         /* count in result, until the byte at a is not 0; then it is 1 */
#define TURN_OCALL 12        /* EEXIT, and the next entry on CSSA 0 goes on with this turn and ends it */
#define TURN_LOOP 13         /* result = the sum of 1 to a */
#define TURN_MOVE_GS 14      /* EEXIT with another GS base than the TCS's */
#define TURN_TRAP_FLAG 15    /* set and clear RFLAGS.TF */
#define TURN_EXIT_TO 16      /* EEXIT to a, which may be not canonical; RBP stays the enclave's */
#define TURN_ENTER 17        /* EENTER inside */
#define TURNS 18

#define TURN_A 8
#define TURN_B 16
#define TURN_IN 32           /* what the registers are at the EEXIT, or at the instruction that faults */
#define TURN_FLAGS 160
#define TURN_OUT 168         /* what they were at the entry; then RFLAGS, FS base, GS base */
#define TURN_RESULT 320

#define TCSS 48              /* each with three SSA frames */

#ifndef __ASSEMBLER__
struct turn {
	unsigned long code, a, b, unused;
	unsigned long in[16], flags, out[19];
	volatile unsigned long result;
};
_Static_assert(__builtin_offsetof(struct turn, in) == TURN_IN, "the assembly");
_Static_assert(__builtin_offsetof(struct turn, flags) == TURN_FLAGS, "the assembly");
_Static_assert(__builtin_offsetof(struct turn, out) == TURN_OUT, "the assembly");
_Static_assert(__builtin_offsetof(struct turn, result) == TURN_RESULT, "the assembly");
#endif
#endif
