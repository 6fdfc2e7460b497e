/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A debugger of itself: it sets TCS.FLAGS.DBGOPTIN by /proc/self/mem, as the Intel SDK's loader does for a debug
 * enclave. On that TCS INT3 is #BP, a fault, and TF steps the enclave by #DB; on any other INT3 is #UD, and a visit to
 * the enclave is one step. Neither #BP nor #DB is the vDSO's: they are signals.
 */
#include "host.h"

#define TCS_FLAGS 8
#define DBGOPTIN 1UL
#define EXITINFO 160
#define NOT_OPTED_IN 1

static struct enclave enclave;
static uint64_t aep;
static volatile int inside, outside, other_code;
static uint8_t frame[SSA_FRAME];

static void build_debug(void)
{
	struct secs secs;

	enclave = (struct enclave){ .fd = open_device(), .base = reserve(the_image.size),
				    .size = the_image.size, .image = &the_image };
	secs = enclave_secs(&enclave, ATTRIBUTE_DEBUG);
	if (create(enclave.fd, &secs) || add_segments(enclave.fd, &the_image) ||
	    init(enclave.fd, sigstruct) || map_segments(&enclave))
		fail("a debug enclave");
}

static void opt_in(uint64_t address)
{
	uint64_t flags = DBGOPTIN;
	int fd = open("/proc/self/mem", O_RDWR | O_CLOEXEC);

	if (fd < 0 || pwrite(fd, &flags, sizeof(flags), address + TCS_FLAGS) != sizeof(flags))
		fail("cannot write TCS.FLAGS");
	close(fd);
}

/* Goes on behind the INT3, by a nested entry that moves SSA[0].RIP. */
static void on_int3(int number, siginfo_t *info, void *context)
{
	struct op read = { .code = OP_SSA, .a = 0, .b = (uint64_t)frame };
	struct op skip = { .code = OP_SET_RIP, .a = at_symbol(&enclave, "illegal_int3") + 1 };

	note_signal(number, info, context);
	if (!do_op(&enclave, 0, &read) || !do_op(&enclave, 0, &skip))
		fail("the nested entries");
}

static uint64_t word(int offset)
{
	uint64_t value;

	memcpy(&value, frame + offset, sizeof(value));
	return value;
}

static void int3_is_bp(void)
{
	struct op op = { .code = OP_JUMP, .a = at_symbol(&enclave, "illegal_int3") };
	struct sgx_enclave_run run;

	handle(SIGTRAP, on_int3);
	CHECK("INT3, opted in: the enclave goes on", enter(&run, tcs(&enclave, 0), &op) == 0);
	check_equal("and leaves", run.function, EEXIT);
	check_equal("from behind it", op.out[0], 1);
	check_equal("one signal", caught.count, 1);
	check_equal("SIGTRAP", caught.number, SIGTRAP);
	check_equal("of the kernel", caught.code, SI_KERNEL);
	check_equal("at the AEP", caught.regs[REG_RIP], aep);
	check_equal("with ERESUME in RAX", caught.regs[REG_RAX], ERESUME);
	check_equal("SSA.RIP at the INT3", word(GPRSGX + 136), op.a);
	check_equal("EXITINFO tells #BP", word(GPRSGX + EXITINFO) & 0xffffffff, 0x80000603);
	CHECK("RF as in a fault's frame", word(GPRSGX + 128) & 0x10000);
}

static void int3_is_ud(void)
{
	struct op op = { .code = OP_JUMP, .a = at_symbol(&enclave, "illegal_int3") };
	struct sgx_enclave_run run;

	CHECK("INT3, not opted in", enter(&run, tcs(&enclave, NOT_OPTED_IN), &op) == 0);
	check_equal("is an exception of the vDSO's", run.function, ERESUME);
	check_equal("#UD", run.exception_vector, VECTOR_UD);
	check_equal("and no signal", caught.count, 1);
	CHECK("the frame leaves", leave_faulted(&enclave, NOT_OPTED_IN));
}

static void on_step(int number, siginfo_t *info, void *context)
{
	const greg_t *regs = ((ucontext_t *)context)->uc_mcontext.gregs;

	(void)number;
	if (info->si_code != TRAP_TRACE)
		other_code++;
	/* Behind an AEX; RAX is EENTER at the same place on the way in. */
	if ((uint64_t)regs[REG_RIP] == aep && regs[REG_RAX] == ERESUME)
		inside++;
	else
		outside++;
}

static bool stepped(int index)
{
	struct op op = { .code = OP_WORK, .a = 7 }, plain = op;

	if (!do_op(&enclave, index, &plain))
		return false;
	inside = outside = other_code = 0;
	asm volatile("pushfq\n\torq $0x100, (%%rsp)\n\tpopfq" ::: "memory", "cc");
	bool left = do_op(&enclave, index, &op);
	asm volatile("pushfq\n\tandq $~0x100, (%%rsp)\n\tpopfq" ::: "memory", "cc");
	return left && op.out[0] == plain.out[0];
}

static void tf_steps(void)
{
	handle(SIGTRAP, on_step);
	CHECK("TF, not opted in: right result", stepped(NOT_OPTED_IN));
	check_equal("no step inside", inside, 0);
	CHECK("but outside", outside > 10);
	check_equal("all by TF", other_code, 0);
	CHECK("TF, opted in: right result", stepped(0));
	/* 64 turns twice, of several instructions each. */
	check(inside > 500, "each instruction inside is a #DB", "%d only", inside);
	CHECK("and outside", outside > 10);
	check_equal("all by TF", other_code, 0);
}

int main(int argc, char **argv)
{
	struct op op = { .code = OP_ENTRY };

	begin(argc, argv);
	build_debug();
	CHECK("first entry", do_op(&enclave, 0, &op));
	aep = op.out[ENTRY_RCX] - 3; /* one ENCLU serves as entry and as AEP */
	opt_in(tcs(&enclave, 0));
	int3_is_bp();
	int3_is_ud();
	tf_steps();
	return finish();
}
