/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pages that come, change and go while an enclave runs: what each touch gives, by the vDSO.
 *
 *     sgx2 ENCLAVE SIGSTRUCT [strict]
 *
 * The enclave has a hole of 4 MiB from its base on.  With `strict` the host has only the abort page
 * while nobody is inside.
 */
#include "host.h"

#include <setjmp.h>

#include "sgx2.h"

#define RWX (PROT_READ | PROT_WRITE | PROT_EXEC)
#define RET 0xc3c3c3c3c3c3c3c3

static struct enclave enclave;
static uint64_t hole; /* the next pages that nobody has used */
static int kept_out = SIGBUS; /* what the host gets where it must not touch */

static uint64_t fresh(int pages, int prot)
{
	uint64_t at = hole;

	hole += (pages + 1) * PAGE;
	map_hole(&enclave, at, pages * PAGE, prot);
	return at;
}

static uint64_t read_word(uint64_t at)
{
	struct op op = { .code = OP_READ, .a = at };

	return do_op(&enclave, 0, &op) ? op.out[0] : ~0UL;
}

static sigjmp_buf after;
static volatile int signal_seen, code_seen;

static void on_signal(int number, siginfo_t *info, void *context)
{
	signal_seen = number;
	code_seen = info->si_code;
	siglongjmp(after, 1);
}

/* A touch by the host: the signal, or 0. */
static int host_touch(uint64_t at, bool by_writing)
{
	if (sigsetjmp(after, 1))
		return signal_seen;
	if (by_writing)
		*(volatile uint64_t *)at = 7;
	else
		(void)*(volatile uint64_t *)at;
	return 0;
}

/* ---- a hole ------------------------------------------------------------------------------- */

static void added_by_a_touch(void)
{
	uint64_t at = fresh(4, PROT_READ | PROT_WRITE);
	struct op op = { .code = OP_WRITE, .a = at, .b = 0x77 };
	struct sgx_enclave_run run = {}, resume = { .tcs = tcs(&enclave, 1) };

	/* The thread that faulted goes on when another has accepted the page. */
	enter(&run, tcs(&enclave, 1), &op);
	check_equal("write to a hole: error code", run.exception_error_code, PFEC_SGX_WRITE);
	check_equal("write to a hole: address", run.exception_addr, at);
	check_equal("write to a hole: function", run.function, ERESUME);
	check_equal("accept what another has touched", eaccept(&enclave, 0, at, AUGMENTED), 0);
	CHECK("then it goes on",
	      !call_vdso(0, 0, 0, ERESUME, 0, 0, &resume) && resume.function == EEXIT);
	check_equal("what it wrote", read_word(at), 0x77);
	check_equal("the rest is zero", read_word(at + 8), 0);
	check_equal("read of a hole", touch(&enclave, 0, OP_READ, at + PAGE), PFEC_SGX_READ);
	check_equal("and once more", touch(&enclave, 0, OP_READ, at + PAGE + 8), PFEC_SGX_READ);
	check_equal("accept with other permissions",
		    eaccept(&enclave, 0, at + PAGE, AUGMENTED | SECINFO_X),
		    SGX_PAGE_ATTRIBUTES_MISMATCH);
	check_equal("still not to be read", touch(&enclave, 0, OP_READ, at + PAGE), PFEC_SGX_READ);
	check_equal("accept a hole", eaccept(&enclave, 0, at + 2 * PAGE, AUGMENTED), 0);
	check_equal("it is zero", read_word(at + 2 * PAGE), 0);
	check_equal("a page is accepted once", eaccept(&enclave, 0, at + 2 * PAGE, AUGMENTED),
		    SGX_PAGE_ATTRIBUTES_MISMATCH);
	check_equal("the host reads a hole", host_touch(at + 3 * PAGE, false), kept_out);
	check_equal("the host writes to it", host_touch(at + 3 * PAGE, true), kept_out);
	if (kept_out)
		check_equal("si_code", code_seen, BUS_ADRERR);
	check_equal("and it can be accepted", eaccept(&enclave, 0, at + 3 * PAGE, AUGMENTED), 0);
	check_equal("and is zero", read_word(at + 3 * PAGE), 0);
}

static void what_the_mapping_forbids(void)
{
	uint64_t at = fresh(2, PROT_READ);
	struct op op = { .code = OP_EACCEPT, .a = at + PAGE, .b = AUGMENTED };
	struct sgx_enclave_run run;

	/* The kernel does not come to ask for a page. */
	check_equal("write, the mapping read-only, no page", touch(&enclave, 0, OP_WRITE, at), 6);
	check_equal("nothing was added: it is asked for now", eaccept(&enclave, 0, at, AUGMENTED), 0);
	check_equal("write, the mapping read-only, a page", touch(&enclave, 0, OP_WRITE, at), 7);
	check_equal("read", touch(&enclave, 0, OP_READ, at), 0);
	mprotect((void *)at, 2 * PAGE, PROT_READ | PROT_WRITE);
	check_equal("write after mprotect", touch(&enclave, 0, OP_WRITE, at), 0);
	mprotect((void *)at, 2 * PAGE, PROT_NONE);
	check_equal("read, PROT_NONE", touch(&enclave, 0, OP_READ, at) & ~1U, 4);
	CHECK("EACCEPT, PROT_NONE: returns", !enter(&run, tcs(&enclave, 0), &op));
	check_equal("EACCEPT, PROT_NONE: error code", run.exception_error_code, 4);
	check_equal("EACCEPT, PROT_NONE: address", run.exception_addr, at + PAGE);
	CHECK("EACCEPT, PROT_NONE: leave", leave_faulted(&enclave, 0));
	mprotect((void *)at, 2 * PAGE, PROT_READ | PROT_WRITE);
	check_equal("read after mprotect", touch(&enclave, 0, OP_READ, at), 0);
}

static void executed(void)
{
	uint64_t at = fresh(3, RWX);
	struct op op = { .code = OP_WRITE, .a = at, .b = RET };

	check_equal("jump into a hole", touch(&enclave, 0, OP_JUMP, at), PFEC_SGX_FETCH);
	check_equal("accept it", eaccept(&enclave, 0, at, AUGMENTED), 0);
	check_equal("jump where only the mapping has X", touch(&enclave, 0, OP_JUMP, at),
		    PFEC_SGX_FETCH);
	CHECK("write code", do_op(&enclave, 0, &op));
	check_equal("jump to it", touch(&enclave, 0, OP_JUMP, at), PFEC_SGX_FETCH);
	leaf(&enclave, 0, OP_EMODPE, at, SECINFO_X, 0);
	check_equal("jump after EMODPE", touch(&enclave, 0, OP_JUMP, at), 0);
	check_equal("copy it", leaf(&enclave, 0, OP_EACCEPTCOPY, at + PAGE, SECINFO_REG | 5, at), 0);
	check_equal("jump to the copy", touch(&enclave, 0, OP_JUMP, at + PAGE), 0);
	check_equal("write to the copy", touch(&enclave, 0, OP_WRITE, at + PAGE + 8), 0);
	check_equal("a copy needs what EAUG made",
		    leaf(&enclave, 0, OP_EACCEPTCOPY, at + PAGE, SECINFO_REG | 5, at),
		    SGX_PAGE_ATTRIBUTES_MISMATCH);
	check_equal("copy to a hole", leaf(&enclave, 0, OP_EACCEPTCOPY, at + 2 * PAGE, SECINFO_RW, at),
		    0);
	check_equal("what is there", read_word(at + 2 * PAGE), RET);
	check_equal("which is not executed", touch(&enclave, 0, OP_JUMP, at + 2 * PAGE),
		    PFEC_SGX_FETCH);
}

/* ---- permissions -------------------------------------------------------------------------- */

static uint64_t made(int pages)
{
	uint64_t at = fresh(pages, PROT_READ | PROT_WRITE);

	if (leaf(&enclave, 0, OP_EACCEPT_RANGE, at, AUGMENTED, pages * PAGE))
		fail("EACCEPT of %d pages", pages);
	return at;
}

static void restricted(void)
{
	uint64_t at = made(4), accepted = SECINFO_REG | SECINFO_R | SECINFO_PR;
	pid_t child;
	int status;

	check_equal("write before", touch(&enclave, 0, OP_WRITE, at + PAGE), 0);
	check_works("RESTRICT_PERMISSIONS", restrict_pages(&enclave, at, 3 * PAGE, SECINFO_R));
	check_equal("write before EACCEPT", touch(&enclave, 0, OP_WRITE, at + PAGE), PFEC_SGX_WRITE);
	check_equal("EACCEPT", leaf(&enclave, 0, OP_EACCEPT_RANGE, at, accepted, 3 * PAGE), 0);
	check_equal("write", touch(&enclave, 0, OP_WRITE, at + PAGE), PFEC_SGX_WRITE);
	check_equal("write beside", touch(&enclave, 0, OP_WRITE, at + 3 * PAGE), 0);
	check_equal("read", read_word(at + PAGE), 0x5a5a);
	check_equal("the host writes", host_touch(at + PAGE, true), kept_out);
	check_equal("the host reads", host_touch(at + PAGE, false), 0);

	/* What a mapping does in between gives nothing back. */
	mprotect((void *)at, 4 * PAGE, PROT_READ);
	mprotect((void *)at, 4 * PAGE, PROT_READ | PROT_WRITE);
	check_equal("write after two mprotects", touch(&enclave, 0, OP_WRITE, at), PFEC_SGX_WRITE);
	munmap((void *)at, 2 * PAGE);
	map_hole(&enclave, at, 2 * PAGE, PROT_READ);
	mprotect((void *)at, 2 * PAGE, PROT_READ | PROT_WRITE);
	check_equal("write through a new mapping", touch(&enclave, 0, OP_WRITE, at), PFEC_SGX_WRITE);
	check_equal("read through it", read_word(at + PAGE), 0x5a5a);

	child = fork_bound();
	if (!child) {
		bool good = touch(&enclave, 2, OP_WRITE, at) == PFEC_SGX_WRITE &&
			    touch(&enclave, 2, OP_WRITE, at + 3 * PAGE) == 0 &&
			    read_word(at + PAGE) == 0x5a5a;

		/* Its own restriction holds for everybody. */
		good = good && !restrict_pages(&enclave, at + 3 * PAGE, PAGE, SECINFO_R) &&
		       touch(&enclave, 2, OP_WRITE, at + 3 * PAGE) == PFEC_SGX_WRITE;
		_exit(good ? 40 : 1);
	}
	waitpid(child, &status, 0);
	check_equal("in a child", WEXITSTATUS(status), 40);
	check_equal("write, the child has restricted it", touch(&enclave, 0, OP_WRITE, at + 3 * PAGE),
		    PFEC_SGX_WRITE);
	leaf(&enclave, 0, OP_EMODPE, at, SECINFO_R | SECINFO_W, 0);
	check_equal("write after EMODPE", touch(&enclave, 0, OP_WRITE, at), 0);
	check_equal("write beside it", touch(&enclave, 0, OP_WRITE, at + PAGE), PFEC_SGX_WRITE);

	check_works("to nothing", restrict_pages(&enclave, at + PAGE, PAGE, 0));
	check_equal("read where nothing is allowed", touch(&enclave, 0, OP_READ, at + PAGE),
		    PFEC_SGX_READ);
	check_equal("EMODPE has no code", leaf(&enclave, 0, OP_EMODPE, at + PAGE, 3, 0), 6);
	check_equal("and all is back", touch(&enclave, 0, OP_WRITE, at + PAGE), 0);
}

/* ---- types -------------------------------------------------------------------------------- */

static void removed(void)
{
	uint64_t at = made(3), trim = SECINFO_TRIM | SECINFO_MODIFIED;

	check_equal("fill", touch(&enclave, 0, OP_WRITE, at), 0);
	check_works("MODIFY_TYPES", modify_pages(&enclave, at, 2 * PAGE, PT_TRIM));
	check_equal("read of a TRIM page", touch(&enclave, 0, OP_READ, at), PFEC_SGX_READ);
	check_equal("write to it", touch(&enclave, 0, OP_WRITE, at), PFEC_SGX_WRITE);
	check_equal("the host reads it", host_touch(at, false), kept_out);
	check_errno("REMOVE_PAGES before EACCEPT", remove_pages(&enclave, at, PAGE), EPERM);
	check_equal("EACCEPT", leaf(&enclave, 0, OP_EACCEPT_RANGE, at, trim, 2 * PAGE), 0);
	check_equal("read of an accepted one", touch(&enclave, 0, OP_READ, at), PFEC_SGX_READ);
	check_works("REMOVE_PAGES", remove_pages(&enclave, at, 2 * PAGE));
	check_errno("REMOVE_PAGES again", remove_pages(&enclave, at, PAGE), EFAULT);
	check_equal("read where it was: another page", touch(&enclave, 0, OP_READ, at), PFEC_SGX_READ);
	check_equal("which can be accepted", eaccept(&enclave, 0, at, AUGMENTED), 0);
	check_equal("and has nothing of the one before", read_word(at), 0);
	check_equal("the neighbour is as it was", touch(&enclave, 0, OP_READ, at + 2 * PAGE), 0);
}

static void new_tcs(void)
{
	uint64_t at = made(1);
	struct op op = { .code = OP_NOP };
	struct sgx_enclave_run run;
	/* STATE, FLAGS, OSSA, CSSA and NSSA, OENTRY, AEP, OFSBASGX, OGSBASGX, the limits. */
	const uint64_t tcs_page[] = {
		0, 0, symbol(&the_image, "thread_ssa7"), 2UL << 32,
		symbol(&the_image, "enclave_entry"), 0, symbol(&the_image, "thread_fs7"),
		symbol(&the_image, "thread_gs7"), ~0UL,
	};

	for (size_t i = 0; i < sizeof(tcs_page) / 8; i++) {
		struct op put = { .code = OP_WRITE, .a = at + 8 * i, .b = tcs_page[i] };

		do_op(&enclave, 0, &put);
	}
	check_works("MODIFY_TYPES to TCS", modify_pages(&enclave, at, PAGE, PT_TCS));
	check_equal("read of it", touch(&enclave, 0, OP_READ, at), PFEC_SGX_READ);
	enter(&run, at, &op);
	check_equal("enter by it before EACCEPT", run.exception_error_code, PFEC_SGX_READ);
	check_equal("EACCEPT", eaccept(&enclave, 0, at, SECINFO_TCS | SECINFO_MODIFIED), 0);
	CHECK("enter by it", !enter(&run, at, &op) && run.function == EEXIT);
	check_equal("read of a TCS", touch(&enclave, 0, OP_READ, at), PFEC_SGX_READ);
	check_works("MODIFY_TYPES to TRIM", modify_pages(&enclave, at, PAGE, PT_TRIM));
	enter(&run, at, &op);
	check_equal("enter by what is none any more", run.exception_error_code, PFEC_SGX_READ);
}

/* ---- under the eyes of others --------------------------------------------------------------- */

struct other {
	bool writes;
	uint64_t at;
	struct watched *seen; /* shared with a child */
	unsigned int error_code;
};

/* Reads a page until there is a zero, or writes it, all the time: until it faults. */
static void *use(void *argument)
{
	struct other *other = argument;
	struct op watch = { .code = OP_WATCH, .a = other->at, .b = PAGE, .c = (uint64_t)other->seen };
	struct sgx_enclave_run run;

	do {
		struct op fill = { .code = OP_FILL, .a = other->at, .b = PAGE,
				   .c = ++other->seen->turns };

		enter(&run, tcs(&enclave, 4), other->writes ? &fill : &watch);
	} while (other->writes && run.function == EEXIT);
	if (run.function == ERESUME && run.exception_addr == other->at)
		other->error_code = run.exception_error_code;
	/* A watcher has no end of its own. */
	if (other->writes)
		leave_faulted(&enclave, 4);
	return NULL;
}

static void under_others(bool writes, bool by_a_child)
{
	struct other other = { .writes = writes, .at = made(1) };
	struct op fill = { .code = OP_FILL, .a = other.at, .b = PAGE, .c = 1 };
	char name[100];
	pthread_t thread;
	pid_t child = 0;
	int status;

	other.seen = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	do_op(&enclave, 0, &fill);
	if (by_a_child) {
		child = fork_bound();
		if (!child) {
			use(&other);
			_exit(other.error_code == (writes ? PFEC_SGX_WRITE : PFEC_SGX_READ) ? 40 : 1);
		}
	} else if (pthread_create(&thread, NULL, use, &other)) {
		fail("pthread_create");
	}
	while (other.seen->turns < 3)
		usleep(1000);
#define NAME(text) \
	(snprintf(name, sizeof(name), "%s, a %s %s", text, by_a_child ? "child" : "thread", \
		  writes ? "writes" : "reads"), name)
	if (writes) {
		uint64_t word;

		check_works(NAME("RESTRICT_PERMISSIONS"), restrict_pages(&enclave, other.at, PAGE, SECINFO_R));
		word = read_word(other.at + PAGE - 8);
		for (int i = 0; i < 20 && read_word(other.at + PAGE - 8) == word; i++)
			sched_yield();
		check_equal(NAME("nothing is written any more"), read_word(other.at + PAGE - 8), word);
	} else {
		check_works(NAME("MODIFY_TYPES"), modify_pages(&enclave, other.at, PAGE, PT_TRIM));
	}
	if (by_a_child) {
		waitpid(child, &status, 0);
		check_equal(NAME("it has faulted"), WEXITSTATUS(status), 40);
	} else {
		pthread_join(thread, NULL);
		check_equal(NAME("it has faulted"), other.error_code,
			    writes ? PFEC_SGX_WRITE : PFEC_SGX_READ);
	}
	check_equal(NAME("nobody has seen a zero"), other.seen->zero_at, 0);
#undef NAME
}

/* ---- without the vDSO --------------------------------------------------------------------- */

static void as_signals(void)
{
	uint64_t at = fresh(1, PROT_READ | PROT_WRITE);
	struct op op = { .code = OP_READ, .a = at + 24 };
	struct bare bare = bare_record(EENTER, tcs(&enclave, 3), bare_capture, &op);

	handle(SIGSEGV, note_signal);
	caught.count = 0;
	bare_enclu(&bare);
	check_equal("a bare ENCLU: the AEP ran", bare.where, 2);
	check_equal("a bare ENCLU: signal", caught.number, SIGSEGV);
	check_equal("a bare ENCLU: si_code", caught.code, SEGV_ACCERR);
	check_equal("a bare ENCLU: si_addr", caught.address, at);
	CHECK("a bare ENCLU: leave", leave_faulted(&enclave, 3));
	handle(SIGSEGV, on_signal);
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	if (!has_sgx2())
		fail("the processor has no SGX2");
	enclave = build(&the_image);
	hole = enclave.base;
	if (argc > 3 && !strcmp(argv[3], "strict"))
		kept_out = 0;
	handle(SIGBUS, on_signal);
	handle(SIGSEGV, on_signal);
	added_by_a_touch();
	what_the_mapping_forbids();
	executed();
	restricted();
	removed();
	new_tcs();
	under_others(true, false);
	under_others(true, true);
	under_others(false, true);
	under_others(false, false);
	as_signals();
	return finish();
}
