/* SPDX-License-Identifier: Apache-2.0 */
/* What the test enclave does for each opcode. Freestanding, position independent, no SSE. */
#include "ops.h"

typedef unsigned long u64;
typedef unsigned char u8;

#define EREPORT 0
#define EGETKEY 1
#define EENTER 2
#define EACCEPT 5
#define EMODPE 6
#define EACCEPTCOPY 7

#define SSA_FRAME 4096
#define GPRSGX_SIZE 184
#define GPRSGX_RIP 136

/* Distance from the entry records of a thread to its SSA frames: see the thread macro. */
#define SSA_FROM_GS (4 * 4096)

struct answer {
	u64 first, second;
};

/* Hidden, so that an address is never an absolute number: the enclave runs where it is put. */
#pragma GCC visibility push(hidden)
void leave_frame_0(void);
void fault_registers(void);
void exit_registers(u64 *record);
struct answer usercall(u64 *record, const u64 *parameters);
u64 divide_by_zero(void);
void raise_ud2(void);
u64 enclu(u64 leaf, u64 rbx, u64 rcx, u64 rdx, u64 *rflags);
#pragma GCC visibility pop

const u8 read_only_page[4096] __attribute__((aligned(4096))) = { [0] = 0x52, [4095] = 0x4f };
u8 heap_page[4096] __attribute__((aligned(4096)));
u64 kept;

static struct {
	u8 target[512];
	u8 request[512];
	u8 report[512];
	u8 data[128];
	u8 key[128];
} operands __attribute__((aligned(512)));

/* The compiler may turn loops into calls of these. */
void *memcpy(void *to, const void *from, u64 n)
{
	u8 *t = to;
	const u8 *f = from;

	while (n--)
		*t++ = *f++;
	return to;
}

void *memset(void *to, int value, u64 n)
{
	u8 *t = to;

	while (n--)
		*t++ = value;
	return to;
}

static u8 *ssa_frame(u64 *record, u64 index)
{
	return (u8 *)record[ENTRY_GSBASE] + SSA_FROM_GS + index * SSA_FRAME;
}

static void loop(struct op *op)
{
	volatile u64 turns = 0;
	u64 sum = 0;

	for (u64 i = 0; i < op->a; i++) {
		/* Keep a real multiplication, a memory write and a long life in registers. */
		asm volatile("" : "+r"(i));
		sum += i * i;
		turns++;
	}
	op->out[0] = sum;
	op->out[1] = turns;
}

static u64 work(u64 seed)
{
	volatile u64 box[64];
	u64 x = seed;

	for (u64 i = 0; i < 64; i++)
		box[i] = seed + i;
	for (u64 i = 0; i < 64; i++)
		x = (x ^ box[i]) * 0x9e3779b97f4a7c15 + i;
	return x;
}

static void marker(u64 seed)
{
	volatile u64 *word = (u64 *)heap_page;

	for (u64 i = 0; i < 512; i++) {
		seed = seed * 6364136223846793005 + 1442695040888963407;
		word[i] = seed;
	}
}

static void spin(struct op *op)
{
	volatile u8 *stop = (u8 *)op->a;

	*(volatile u64 *)&op->out[0] = 1;
	while (!*stop)
		asm volatile("pause");
}

static void report(struct op *op)
{
	u64 flags;

	memcpy(operands.target, (void *)op->a, sizeof(operands.target));
	memcpy(operands.data, (void *)op->b, 64);
	op->out[0] = enclu(EREPORT, (u64)operands.target, (u64)operands.data, (u64)operands.report,
			   &flags);
	op->out[1] = flags;
	memcpy((void *)op->c, operands.report, 432);
}

static void key(struct op *op)
{
	u64 flags;

	memcpy(operands.request, (void *)op->a, sizeof(operands.request));
	memset(operands.key, 0xee, 16);
	op->out[0] = enclu(EGETKEY, (u64)operands.request, (u64)operands.key, 0, &flags);
	op->out[1] = flags;
	memcpy((void *)op->b, operands.key, 16);
}

/* Every parameter and both answers go into the mix: see what edp_loader.c computes. */
static void usercalls(struct op *op, u64 *record)
{
	u64 mix = op->b;

	for (u64 i = 1; i <= op->a; i++) {
		u64 parameters[5] = { i, mix, ~mix, mix * 3, mix ^ i };
		struct answer answer;

		for (volatile u64 turns = op->c; turns; turns--)
			;
		answer = usercall(record, parameters);
		mix = (answer.first ^ mix) * 0x9e3779b97f4a7c15 + answer.second;
	}
	op->out[0] = mix;
}

static void fill(u64 *word, u64 length, u64 seed)
{
	for (u64 i = 0; i < length / 8; i++)
		word[i] = seed = next_word(seed);
}

static void hash(struct op *op)
{
	const u64 *word = (const u64 *)op->a;
	u64 mixed = 0, sum = 0;

	for (u64 i = 0; i < op->b / 8; i++) {
		mixed = mix_word(mixed, word[i]);
		sum += word[i];
	}
	op->out[0] = mixed;
	op->out[1] = sum;
}

static void merge(const u64 *from, u64 *to, u64 low, u64 middle, u64 high)
{
	u64 left = low, right = middle;

	for (u64 i = low; i < high; i++)
		if (left < middle && (right == high || from[left] <= from[right]))
			to[i] = from[left++];
		else
			to[i] = from[right++];
}

/* Merges, each from one half of the memory to the other: they walk through all of it again and again. */
static void sort(u64 *word, u64 count)
{
	u64 *from = word, *to = word + count;

	for (u64 width = 1; width < count; width *= 2) {
		u64 *other = from;

		for (u64 low = 0; low < count; low += 2 * width) {
			u64 middle = low + width < count ? low + width : count;
			u64 high = low + 2 * width < count ? low + 2 * width : count;

			merge(from, to, low, middle, high);
		}
		from = to;
		to = other;
	}
	if (from != word)
		memcpy(word, from, count * 8);
}

static void touch(struct op *op)
{
	u64 sum = 0;

	for (u64 turn = 0; turn < op->c; turn++)
		for (u64 at = op->a; at < op->a + op->b; at += 4096)
			sum += *(volatile u64 *)at;
	op->out[0] = sum;
}

/* Its SECINFO is on the stack: every thread has one. */
static u64 change(u64 leaf, u64 page, u64 flags, u64 from, u64 *rflags)
{
	u64 secinfo[8] __attribute__((aligned(64))) = { flags };

	return enclu(leaf, (u64)secinfo, page, from, rflags);
}

static void accept_range(struct op *op)
{
	u64 code = 0;

	for (u64 at = op->a; at < op->a + op->c && !code; at += 4096)
		code = change(EACCEPT, at, op->b, 0, &op->out[1]);
	op->out[0] = code;
}

void enclave_main(struct op *op, u64 *record)
{
	u64 *first = (u64 *)record[ENTRY_GSBASE];
	u64 flags;

	switch (op->code) {
	case OP_ENTRY:
		for (int i = 0; i < ENTRY_COUNT; i++)
			op->out[i] = record[i];
		break;
	case OP_PUT:
		kept = op->a;
		break;
	case OP_GET:
		op->out[0] = kept;
		break;
	case OP_LOOP:
		loop(op);
		break;
	case OP_SSA:
		memcpy((void *)op->b, ssa_frame(record, op->a), SSA_FRAME);
		break;
	case OP_SET_RIP:
		*(u64 *)(ssa_frame(record, 1) - GPRSGX_SIZE + GPRSGX_RIP) = op->a;
		break;
	case OP_LEAVE:
		/* The next ERESUME comes from where this entry came from: same stack, same ENCLU. */
		first[ENTRY_RSP] = record[ENTRY_RSP];
		first[ENTRY_RBP] = record[ENTRY_RBP];
		first[ENTRY_RCX] = record[ENTRY_RCX];
		*(u64 *)(ssa_frame(record, 1) - GPRSGX_SIZE + GPRSGX_RIP) = (u64)leave_frame_0;
		break;
	case OP_SET_REGISTER:
		*(u64 *)(ssa_frame(record, 1) - GPRSGX_SIZE + op->a) = op->b;
		break;
	case OP_UD2:
		raise_ud2();
		/* Reached only when somebody moved SSA[0].RIP past the UD2. */
		asm volatile("rdfsbase %0" : "=r"(op->out[ENTRY_FSBASE]));
		asm volatile("rdgsbase %0" : "=r"(op->out[ENTRY_GSBASE]));
		op->out[0] = 1;
		break;
	case OP_DIVIDE:
		op->out[0] = divide_by_zero();
		break;
	case OP_READ:
		op->out[0] = *(volatile u64 *)op->a;
		break;
	case OP_WRITE:
		*(volatile u64 *)op->a = op->b;
		break;
	case OP_FAULT_REGISTERS:
		fault_registers();
		break;
	case OP_EXIT_REGISTERS:
		exit_registers(record);
		break;
	case OP_REPORT:
		report(op);
		break;
	case OP_REPORT_MISALIGNED:
		enclu(EREPORT, (u64)operands.target + 8, (u64)operands.data,
		      (u64)operands.report, &flags);
		break;
	case OP_KEY:
		key(op);
		break;
	case OP_SPIN:
		spin(op);
		break;
	case OP_WORK:
		op->out[0] = work(op->a);
		break;
	case OP_MARKER:
		marker(op->a);
		break;
	case OP_ENTER_INSIDE:
		enclu(EENTER, record[ENTRY_RBX], 0, 0, &flags);
		break;
	case OP_USERCALLS:
		usercalls(op, record);
		break;
	case OP_FILL:
		fill((u64 *)op->a, op->b, op->c);
		break;
	case OP_HASH:
		hash(op);
		break;
	case OP_SORT:
		sort((u64 *)op->a, op->b / 8);
		break;
	case OP_TOUCH:
		touch(op);
		break;
	case OP_WATCH:
		watch((const volatile u64 *)op->a, op->b, (struct watched *)op->c);
		break;
	case OP_EACCEPT:
		op->out[0] = change(EACCEPT, op->a, op->b, 0, &op->out[1]);
		break;
	case OP_EMODPE:
		op->out[0] = change(EMODPE, op->a, op->b, 0, &op->out[1]);
		break;
	case OP_EACCEPTCOPY:
		op->out[0] = change(EACCEPTCOPY, op->a, op->b, op->c, &op->out[1]);
		break;
	case OP_EACCEPT_RANGE:
		accept_range(op);
		break;
	case OP_JUMP:
		((void (*)(void))op->a)();
		op->out[0] = 1;
		break;
	}
}
