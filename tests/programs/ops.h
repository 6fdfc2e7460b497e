/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The mailbox between a test program and its enclave. The program points RDI at a struct op in
 * its own memory; the enclave does what the opcode says and leaves by EEXIT. Read by C and by
 * assembly, on both sides.
 */
#ifndef OPS_H
#define OPS_H

#define OP_NOP 0
#define OP_ENTRY 1            /* out[] = the registers found at this entry (ENTRY_*) */
#define OP_PUT 2              /* keep a */
#define OP_GET 3              /* out[0] = what was kept */
#define OP_LOOP 4             /* a turns; out[0] = their sum, out[1] = turns counted in memory */
#define OP_SSA 5              /* copy SSA frame a of this TCS (4096 bytes) to b */
#define OP_SET_RIP 6          /* SSA[0].RIP = a */
#define OP_UD2 7
#define OP_DIVIDE 8           /* divide by zero */
#define OP_READ 9             /* out[0] = *(u64 *)a */
#define OP_WRITE 10           /* *(u64 *)a = b */
#define OP_FAULT_REGISTERS 11 /* load REG_PATTERN everywhere, fault by UD2 */
#define OP_EXIT_REGISTERS 12  /* load REG_PATTERN, leave by EEXIT */
#define OP_REPORT 13          /* EREPORT: TARGETINFO at a, REPORTDATA at b, REPORT to c */
#define OP_KEY 14             /* EGETKEY: KEYREQUEST at a, key to b; out[] = RAX, RFLAGS */
#define OP_SPIN 15            /* out[0] = 1, then until a byte at a is not zero */
#define OP_WORK 16            /* out[0] = work(a): a mix through this thread's own stack */
#define OP_MARKER 17          /* fill a page of the heap with words made from seed a */
#define OP_REPORT_MISALIGNED 18 /* EREPORT with RBX off by 8: #GP at the ENCLU */
#define OP_SET_REGISTER 19    /* the u64 at offset a of SSA[0].GPRSGX = b */
#define OP_ENTER_INSIDE 20    /* EENTER from inside: #GP */
#define OP_LEAVE 21           /* on CSSA 1: let frame 0 leave, to where this entry leaves */
#define OP_JUMP 22            /* call the address a */
#define OP_USERCALLS 23       /* a usercalls from seed b, c turns before each; out[0] = the last mix */
#define OP_FILL 24            /* b bytes at a = the words of generator c */
#define OP_HASH 25            /* out[0] = a hash of the b bytes at a, out[1] = their sum */
#define OP_SORT 26            /* sort the b bytes at a as u64; as many bytes behind them are scratch */
#define OP_TOUCH 27           /* read a word of each of the b bytes' pages at a, c times over */
#define OP_WATCH 28           /* read the b bytes at a until a word is 0; *(struct watched *)c tells */
/* SGX2, each on page a, with SECINFO.FLAGS b; out[] = RAX, RFLAGS. */
#define OP_EACCEPT 40
#define OP_EMODPE 41
#define OP_EACCEPTCOPY 42     /* from page c */
#define OP_EACCEPT_RANGE 43   /* EACCEPT of the c bytes from a on, until one has a code */

#define TCS_ONE_FRAME 8       /* index of the TCS with NSSA = 1; the others have 2 */

/* Offsets into the record of an entry: u64 each. The enclave keeps it at GS, one for a CSSA. */
#define ENTRY_RAX 0
#define ENTRY_RCX 1
#define ENTRY_RDX 2
#define ENTRY_RBX 3
#define ENTRY_RSP 4
#define ENTRY_RBP 5
#define ENTRY_RSI 6
#define ENTRY_RDI 7
#define ENTRY_RFLAGS 16
#define ENTRY_FSBASE 17
#define ENTRY_GSBASE 18
#define ENTRY_RIP 19
#define ENTRY_COUNT 20

/* At GS too: where the stack of CSSA 0 waits for the return of a usercall, else 0. */
#define USERCALL_RSP 1024

/* The value of general register n (order RAX RCX RDX RBX RSP RBP RSI RDI R8..R15) in the two
 * OP_*_REGISTERS. */
#define REG_PATTERN(n) (0x5a5a000000001100 + (n))

/* MXCSR and FCW that OP_FAULT_REGISTERS loads: legal, and unlike any default. */
#define PATTERN_MXCSR 0x5fc0
#define PATTERN_FCW 0x0272

#ifndef __ASSEMBLER__
/* The words of OP_FILL, and the mix of OP_HASH: the same inside and outside. */
static inline unsigned long next_word(unsigned long word)
{
	return word * 6364136223846793005 + 1442695040888963407;
}

static inline unsigned long mix_word(unsigned long hash, unsigned long word)
{
	return (hash ^ word) * 0x9e3779b97f4a7c15;
}

/* What a watcher has seen: how often all words were there, and the address of the first that was 0. */
struct watched {
	volatile unsigned long turns, zero_at;
};

static inline void watch(const volatile unsigned long *word, unsigned long length, struct watched *seen)
{
	for (;; seen->turns++)
		for (unsigned long i = 0; i < length / 8; i++)
			if (!word[i]) {
				seen->zero_at = (unsigned long)&word[i];
				return;
			}
}

struct op {
	unsigned long code, a, b, c;
	unsigned long out[ENTRY_COUNT];
};
#endif
#endif
