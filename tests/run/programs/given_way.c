/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An enclave that cannot be swapped gives way to another process's, and what everybody then sees.
 *
 *     given_way ENCLAVE SIGSTRUCT BYTES WHAT
 *
 * BYTES of the enclave's heap are used; the EPC has room for one such enclave and not for two. WHAT is
 *     inside  threads stand everywhere in it: they spin inside, entered by the vDSO or by a bare ENCLU,
 *             and one is in a signal handler that has interrupted it
 *     busy    threads enter and leave it all the time
 *     mapped  nobody is inside; it is mapped in another process, too
 *     read-only  it is mapped by a descriptor that can only be read
 *     lone    an enclave alone is larger than the EPC
 */
#include "host.h"

#include <setjmp.h>

#define SPINNING 3
#define BUSY 4
#define CHILD_DONE 40

static struct enclave enclave;
static uint64_t heap, bytes;
static volatile uint8_t stop;
static int go[2], entered[2], leave[2];

/* Vector 14; what the processor tells of a page that is not there: no P, no SGX. */
static bool not_present(uint16_t vector, uint16_t code)
{
	return vector == VECTOR_PF && (code & 4) && !(code & ~0x16);
}

static void check_not_present(const char *name, const struct sgx_enclave_run *run, uint32_t function)
{
	check(run->function == function && not_present(run->exception_vector, run->exception_error_code) &&
		      run->exception_addr - enclave.base < enclave.size,
	      name, "function %u, vector %u, error code %#x at %#llx", run->function,
	      run->exception_vector, run->exception_error_code, run->exception_addr);
}

static bool is_filled(struct enclave *one, uint64_t at, uint64_t seed)
{
	struct op op = { .code = OP_HASH, .a = at, .b = bytes };
	uint64_t hash = 0, sum = 0;

	for (uint64_t i = 0; i < bytes / 8; i++) {
		seed = next_word(seed);
		hash = mix_word(hash, seed);
		sum += seed;
	}
	return do_op(one, 0, &op) && op.out[0] == hash && op.out[1] == sum;
}

static bool fill(struct enclave *one, uint64_t at, uint64_t seed)
{
	struct op op = { .code = OP_FILL, .a = at, .b = bytes, .c = seed };

	return do_op(one, 0, &op);
}

/* The other process: when it is told so, an enclave of its own, and right answers. */
static pid_t rival(void)
{
	pid_t child;

	if (pipe(go))
		fail("pipe");
	child = fork_bound();
	if (!child) {
		struct enclave own;
		uint64_t at;
		char byte;

		if (read(go[0], &byte, 1) != 1)
			_exit(1);
		own = build(&the_image);
		at = at_symbol(&own, "heap_begin");
		_exit(fill(&own, at, 9) && is_filled(&own, at, 9) ? CHILD_DONE : 2);
	}
	return child;
}

static void give_way(pid_t child)
{
	int status;

	if (write(go[1], "", 1) != 1 || waitpid(child, &status, 0) != child)
		fail("the other process");
	check_equal("the other process's answers", WIFEXITED(status) ? WEXITSTATUS(status) : -status,
		    CHILD_DONE);
}

/* ---- touches from outside ----------------------------------------------------------------- */

static sigjmp_buf after;
static volatile int bus_code;
static volatile uint64_t bus_address;

static void on_bus(int number, siginfo_t *info, void *context)
{
	bus_code = info->si_code;
	bus_address = (uint64_t)info->si_addr;
	siglongjmp(after, 1);
}

static void check_bus(const char *name, uint64_t address, bool by_writing)
{
	bus_code = bus_address = 0;
	if (!sigsetjmp(after, 1)) {
		if (by_writing)
			*(volatile uint64_t *)address = 1;
		else
			(void)*(volatile uint64_t *)address;
		check(false, name, "no signal");
		return;
	}
	check(bus_code == BUS_ADRERR && bus_address - address < PAGE, name, "si_code %d at %#lx",
	      bus_code, bus_address);
}

/* ---- what is left of an enclave that was killed ------------------------------------------- */

static void check_dead(void)
{
	struct sgx_enclave_run run;
	struct op op = { .code = OP_NOP };
	uint64_t data = enclave.base + the_image.segment[3].offset;
	void *again;

	for (int i = 0; i < 5; i++) {
		enter(&run, tcs(&enclave, i), &op);
		check_not_present("nobody enters it", &run, EENTER);
	}
	check_errno("INIT", init(enclave.fd, sigstruct), EIO);
	check_errno("ADD_PAGES",
		    add_pages(enclave.fd, the_image.segment[3].data, the_image.segment[3].offset, PAGE,
			      SECINFO_REG | SECINFO_R | SECINFO_W, true),
		    EIO);
	check_bus("a read from outside", data, false);
	check_bus("a write from outside", data, true);
	check_bus("a read of code", at_symbol(&enclave, "enclave_entry"), false);
	check_bus("a read of the heap", heap + bytes - PAGE, false);
	again = mmap((void *)data, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, enclave.fd, 0);
	CHECK("it can be mapped again", again == (void *)data);
	check_bus("a read of what was mapped again", data, false);
	check_works("mprotect", mprotect((void *)heap, PAGE, PROT_READ));
	check_works("munmap", munmap((void *)enclave.base, enclave.size));
	check_works("close", close(enclave.fd));
}

static void check_another(void)
{
	struct enclave another = build(&the_image);
	uint64_t at = at_symbol(&another, "heap_begin");

	CHECK("another enclave can be built", fill(&another, at, 5) && is_filled(&another, at, 5));
}

/* ---- threads inside ----------------------------------------------------------------------- */

static struct spinner {
	pthread_t thread;
	struct op op;
	struct sgx_enclave_run run;
	int result;
} spinner[SPINNING];

static void *spin(void *argument)
{
	struct spinner *self = argument;

	self->op = (struct op){ .code = OP_SPIN, .a = (uint64_t)&stop };
	self->result = enter(&self->run, tcs(&enclave, self - spinner), &self->op);
	return NULL;
}

static volatile uint64_t bare_rip, bare_rax;

static void on_bare_bus(int number, siginfo_t *info, void *context)
{
	const greg_t *regs = ((ucontext_t *)context)->uc_mcontext.gregs;

	bare_rip = regs[REG_RIP];
	bare_rax = regs[REG_RAX];
	on_bus(number, info, context);
}

static void *spin_bare(void *argument)
{
	struct spinner *self = argument;
	struct bare bare;

	self->op = (struct op){ .code = OP_SPIN, .a = (uint64_t)&stop };
	bare = bare_record(EENTER, tcs(&enclave, self - spinner), bare_resume, &self->op);
	if (!sigsetjmp(after, 1)) {
		bare_enclu(&bare);
		self->result = 1;
	}
	return NULL;
}

static void stand(int number)
{
	char byte;

	if (write(entered[1], "", 1) != 1 || read(leave[0], &byte, 1) != 1)
		_exit(9);
}

static void inside(void)
{
	pid_t child = rival();
	char byte;

	enclave = build(&the_image);
	heap = at_symbol(&enclave, "heap_begin");
	CHECK("filled", fill(&enclave, heap, 1));
	if (pipe(entered) || pipe(leave))
		fail("pipe");
	handle(SIGBUS, on_bare_bus);
	signal(SIGUSR1, stand);
	for (int i = 0; i < SPINNING; i++) {
		if (pthread_create(&spinner[i].thread, NULL, i < 2 ? spin : spin_bare, &spinner[i]))
			fail("pthread_create");
		while (!*(volatile uint64_t *)&spinner[i].op.out[0])
			usleep(1000);
	}
	pthread_kill(spinner[1].thread, SIGUSR1);
	if (read(entered[0], &byte, 1) != 1)
		fail("the handler");
	give_way(child);
	pthread_join(spinner[0].thread, NULL);
	check_equal("who spun inside has left the vDSO", spinner[0].result, 0);
	check_not_present("and been told so", &spinner[0].run, ERESUME);
	if (write(leave[1], "", 1) != 1)
		fail("the handler");
	pthread_join(spinner[1].thread, NULL);
	check_equal("who was interrupted has left the vDSO", spinner[1].result, 0);
	check_not_present("and been told so", &spinner[1].run, ERESUME);
	pthread_join(spinner[2].thread, NULL);
	check_equal("who came by a bare ENCLU got SIGBUS", bus_code, BUS_ADRERR);
	check_equal("at the AEP", bare_rip, (uint64_t)bare_resume);
	check_equal("with ERESUME", bare_rax, ERESUME);
	check(bus_address - enclave.base < enclave.size, "about the enclave", "%#lx", bus_address);
	handle(SIGBUS, on_bus);
	check_dead();
	check_another();
}

/* ---- threads that come and go ------------------------------------------------------------- */

static struct sgx_enclave_run last[BUSY];
static volatile uint64_t turns[BUSY];

static void *come_and_go(void *argument)
{
	uintptr_t index = (uintptr_t)argument;
	struct op op = { .code = OP_WORK, .a = index };

	while (!enter(&last[index], tcs(&enclave, index), &op) && last[index].function == EEXIT)
		turns[index]++;
	return NULL;
}

static void busy(void)
{
	pthread_t thread[BUSY];
	pid_t child = rival();

	enclave = build(&the_image);
	heap = at_symbol(&enclave, "heap_begin");
	handle(SIGBUS, on_bus);
	for (uintptr_t i = 0; i < BUSY; i++) {
		if (pthread_create(&thread[i], NULL, come_and_go, (void *)i))
			fail("pthread_create");
		while (!turns[i])
			usleep(1000);
	}
	give_way(child);
	for (int i = 0; i < BUSY; i++) {
		char name[40];

		pthread_join(thread[i], NULL);
		snprintf(name, sizeof(name), "thread %d was driven out", i);
		check_not_present(name, &last[i], last[i].function == EENTER ? EENTER : ERESUME);
	}
	check_dead();
}

/* ---- other address spaces ----------------------------------------------------------------- */

static void mapped(void)
{
	const struct segment *data = &the_image.segment[3];
	pid_t child = rival(), other;
	int ready[2], told[2], status;
	uint64_t at;
	char byte;

	enclave = build(&the_image);
	heap = at_symbol(&enclave, "heap_begin");
	handle(SIGBUS, on_bus);
	CHECK("filled", fill(&enclave, heap, 1));
	at = enclave.base + data->offset;
	check(*(volatile uint64_t *)heap == next_word(1), "the heap is filled", "%#lx",
	      *(volatile uint64_t *)heap);
	if (pipe(ready) || pipe(told))
		fail("pipe");
	other = fork_bound();
	if (!other) {
		if (*(volatile uint64_t *)heap != next_word(1) || write(ready[1], "", 1) != 1 ||
		    read(told[0], &byte, 1) != 1)
			_exit(1);
		check_bus("a read by another process", heap, false);
		check_bus("a write by another process", at, true);
		_exit(failures);
	}
	/* It has read before the enclave has to give way. */
	if (read(ready[0], &byte, 1) != 1)
		fail("the other process");
	give_way(child);
	if (write(told[1], "", 1) != 1 || waitpid(other, &status, 0) != other)
		fail("the other process");
	check_equal("the other address space", status, 0);
	check_dead();
	check_another();
}

/* By a descriptor that can only be read: such a mapping no userfaultfd watches. */
static void read_only(void)
{
	const struct segment *data = &the_image.segment[3];
	pid_t child = rival();
	struct secs secs;
	uint64_t at;

	enclave = (struct enclave){
		.fd = open(SGX_NODE, O_RDONLY | O_CLOEXEC),
		.base = reserve(the_image.size),
		.size = the_image.size,
		.image = &the_image,
	};
	at = enclave.base + data->offset;
	secs = enclave_secs(&enclave, 0);
	handle(SIGBUS, on_bus);
	memset(data->data, 0x5a, data->length);
	check_works("CREATE", create(enclave.fd, &secs));
	check_works("ADD_PAGES", add_segments(enclave.fd, &the_image));
	CHECK("mapped", mmap((void *)at, data->length, PROT_READ, MAP_SHARED | MAP_FIXED, enclave.fd, 0) ==
				(void *)at);
	check_equal("a word", *(volatile uint64_t *)at, 0x5a5a5a5a5a5a5a5a);
	give_way(child);
	check_bus("a read", at, false);
	check_bus("another page", at + data->length - PAGE, false);
}

static void lone(void)
{
	const struct segment *data = &the_image.segment[3];
	struct secs secs;

	enclave = (struct enclave){
		.fd = open_device(),
		.base = reserve(the_image.size),
		.size = the_image.size,
		.image = &the_image,
	};
	secs = enclave_secs(&enclave, 0);
	check_works("CREATE", create(enclave.fd, &secs));
	check_errno("ADD_PAGES", add_segments(enclave.fd, &the_image), ENOMEM);
	for (int i = 0; i < 3; i++)
		check_errno("and once more",
			    add_pages(enclave.fd, data->data, data->offset + data->length - PAGE, PAGE,
				      data->secinfo, true),
			    ENOMEM);
	check_errno("it is not dead, and not what was signed", init(enclave.fd, sigstruct), EPERM);
	check_works("close", close(enclave.fd));
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	if (argc < 5)
		fail("usage: given_way ENCLAVE SIGSTRUCT BYTES WHAT");
	bytes = strtoul(argv[3], NULL, 0);
	if (!strcmp(argv[4], "inside"))
		inside();
	else if (!strcmp(argv[4], "busy"))
		busy();
	else if (!strcmp(argv[4], "mapped"))
		mapped();
	else if (!strcmp(argv[4], "read-only"))
		read_only();
	else if (!strcmp(argv[4], "lone"))
		lone();
	else
		fail("no %s", argv[4]);
	return finish();
}
