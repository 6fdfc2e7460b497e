/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the host side of the Fortanix EDP does, call by call and flag by flag: the order of the
 * nodes, a second open for the enclave, a shared reservation, pages one by one with their mappings
 * merged on the way, XFRM by CPUID 0DH, and usercalls. A usercall leaves by EEXIT with its
 * parameters in RDI, RSI, RDX, R8 and R9 and is answered by an entry with RDI 0 and the results in
 * RSI and RDX, by whichever worker is free.
 *
 * It enters by the vDSO function if the dynamic linker has resolved its weak symbol, else by an
 * ENCLU that is its own AEP: after an AEX there is nobody to ask, the same instruction resumes.
 * Both are shown. Linked, as the EDP is, against a stub of linux-vdso.so.1 without versions.
 */
#include "host.h"

#include <cpuid.h>

#include "report.h"

#define THREADS 8
#define WORKERS 4
#define USERCALLS 12
#define TURNS 3000
#define INTERRUPTIONS 3

/* ---- the device ---------------------------------------------------------------------------- */

/* The calls of other drivers, and of Fortanix's own: none of them is mainline's. */
#define IOC_ADD_PAGE_ISGX _IOC(_IOC_WRITE, SGX_MAGIC, 0x01, 26)
#define IOC_INIT_ISGX _IOC(_IOC_WRITE, SGX_MAGIC, 0x02, 24)
#define IOC_INIT_ISGX_NO_TOKEN _IOC(_IOC_WRITE, SGX_MAGIC, 0x02, 16)
#define IOC_EXTEND _IOW(SGX_MAGIC, 0x81, uint64_t)

static const char *const nodes[] = { "/dev/sgx_enclave", "/dev/sgx/enclave", "/dev/isgx",
				     "/dev/sgx" };
#define NODES 4

/* The first node that is there, from this one on; its name in *path. */
static int open_node(int first, const char **path)
{
	for (int i = first; i < NODES; i++) {
		int fd = open(nodes[i], O_RDWR | O_CLOEXEC);

		if (fd < 0 && (errno == ENOENT || errno == ENOTDIR))
			continue;
		*path = nodes[i];
		return fd;
	}
	*path = "none";
	return -1;
}

static void order_of_nodes(void)
{
	for (int first = 0; first < 2; first++) {
		const char *path;
		int fd = open_node(first, &path);

		check(fd >= 0 && path == nodes[first], nodes[first], "found %s, errno %d", path,
		      errno);
		close(fd);
	}
	check_errno("/dev/isgx is another driver's", open("/dev/isgx", O_RDWR | O_CLOEXEC), ENOENT);
}

static uint64_t xcr0(void)
{
	uint32_t eax, edx;

	asm volatile("xgetbv" : "=a"(eax), "=d"(edx) : "c"(0));
	return (uint64_t)edx << 32 | eax;
}

/* Only what XCR0 has and one SSA frame can hold; the two parts of AMX together or not at all. */
static uint64_t xfrm(void)
{
	static const uint64_t tiles = 3UL << 17;
	uint64_t found = XFRM_LEGACY;

	for (int bit = 2; bit < 64; bit++) {
		uint32_t size, base, ecx, edx;

		if (!(xcr0() >> bit & 1) || __get_cpuid_max(0, NULL) < 0xd)
			continue;
		__cpuid_count(0xd, bit, size, base, ecx, edx);
		if (base && base + size <= SSA_FRAME)
			found |= 1UL << bit;
	}
	return (found & tiles) == tiles ? found : found & ~tiles;
}

static void xfrm_is_offered(uint64_t found)
{
	uint32_t eax, ebx, low, high;

	__cpuid_count(0x12, 1, eax, ebx, low, high);
	check_equal("0DH lets AVX in where XCR0 has it", found >> 2 & 1, xcr0() >> 2 & 1);
	check_equal("12H.1 offers the XFRM of 0DH", found & ((uint64_t)high << 32 | low), found);
}

/* ---- building ------------------------------------------------------------------------------ */

struct loader {
	struct enclave enclave;
	struct {
		uint64_t start, end;
		int prot;
	} pending;
};

static uint64_t reserve_shared(uint64_t size)
{
	/* 0 as the file, which MAP_ANONYMOUS does not look at: it is this process's input. */
	void *area = mmap(NULL, 2 * size, PROT_NONE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, 0,
			  0);
	uint64_t start = (uint64_t)area, head = -start & (size - 1);

	if (area == MAP_FAILED)
		fail("cannot reserve %#lx bytes", 2 * size);
	if (head && munmap(area, head))
		fail("trimming the head");
	if (munmap((void *)(start + head + size), size - head))
		fail("trimming the tail");
	return start + head;
}

static void map_pending(struct loader *loader)
{
	void *start = (void *)loader->pending.start;

	if (mmap(start, loader->pending.end - loader->pending.start, loader->pending.prot,
		 MAP_SHARED | MAP_FIXED, loader->enclave.fd, 0) != start)
		fail("mapping %#lx-%#lx", loader->pending.start, loader->pending.end);
}

static int add_page(struct loader *loader, const uint8_t *bytes, uint64_t offset, uint64_t flags,
		    bool measured)
{
	uint8_t page[PAGE] __attribute__((aligned(4096)));
	struct secinfo secinfo = { .flags = flags };
	struct sgx_enclave_add_pages argument = {
		.src = (uint64_t)page,
		.offset = offset,
		.length = PAGE,
		.secinfo = (uint64_t)&secinfo,
		.flags = measured ? SGX_PAGE_MEASURE : 0,
	};

	memcpy(page, bytes, PAGE);
	if (ioctl(loader->enclave.fd, SGX_IOC_ENCLAVE_ADD_PAGES, &argument))
		return -1;
	return argument.count == PAGE ? 0 : -1;
}

/* A page, and the mapping of those before it if it cannot be mapped with them. */
static void add(struct loader *loader, const struct segment *segment, uint64_t offset)
{
	uint64_t address = loader->enclave.base + segment->offset + offset;
	bool is_tcs = segment->secinfo == SECINFO_TCS;
	int prot = is_tcs ? PROT_READ | PROT_WRITE : segment->prot;

	if (add_page(loader, segment->data + offset, segment->offset + offset, segment->secinfo,
		     true))
		fail("adding the page at offset %#lx", segment->offset + offset);
	if (loader->pending.end == address && loader->pending.prot == prot) {
		loader->pending.end += PAGE;
		return;
	}
	if (loader->pending.end)
		map_pending(loader);
	loader->pending.start = address;
	loader->pending.end = address + PAGE;
	loader->pending.prot = prot;
}

/* Each enclave has an open file of its own, beside the device's. */
static struct loader created(const char *path, uint64_t attributes, uint64_t state)
{
	struct loader loader = { .enclave = { .fd = open(path, O_RDWR | O_CLOEXEC),
					      .size = the_image.size,
					      .image = &the_image } };
	struct secs secs;

	if (loader.enclave.fd < 0)
		fail("cannot open %s again", path);
	loader.enclave.base = reserve_shared(the_image.size);
	secs = enclave_secs(&loader.enclave, attributes);
	secs.xfrm = state;
	if (create(loader.enclave.fd, &secs))
		fail("SGX_IOC_ENCLAVE_CREATE with XFRM %#lx", state);
	return loader;
}

static void destroy(const struct enclave *enclave)
{
	if (munmap((void *)enclave->base, enclave->size))
		fail("munmap of the enclave");
	close(enclave->fd);
}

static struct enclave load(const char *path, uint64_t state)
{
	struct loader loader = created(path, ATTRIBUTE_DEBUG, state);

	for (int i = 0; i < the_image.segments; i++)
		for (uint64_t at = 0; at < the_image.segment[i].length; at += PAGE)
			add(&loader, &the_image.segment[i], at);
	map_pending(&loader);
	if (init(loader.enclave.fd, sigstruct))
		fail("SGX_IOC_ENCLAVE_INIT");
	return loader.enclave;
}

/* ENOTTY is how a loader learns which driver it talks to; anything else ends the load. */
static void calls_of_other_drivers(const char *path)
{
	struct loader loader = created(path, ATTRIBUTE_DEBUG, XFRM_LEGACY);
	const struct segment *text = &the_image.segment[1];
	uint64_t token[38] = { 0 }, with_token[3], by_page[4], offset = text->offset;
	int fd = loader.enclave.fd;

	with_token[0] = loader.enclave.base;
	with_token[1] = (uint64_t)sigstruct;
	with_token[2] = (uint64_t)token;
	memset(by_page, 0, sizeof(by_page));
	check_works("a page that is not measured",
		    add_page(&loader, text->data, text->offset, text->secinfo, false));
	check_errno("EXTEND for a part of it", ioctl(fd, IOC_EXTEND, &offset), ENOTTY);
	check_errno("ADD_PAGE of isgx", ioctl(fd, IOC_ADD_PAGE_ISGX, by_page), ENOTTY);
	check_errno("INIT of isgx", ioctl(fd, IOC_INIT_ISGX, with_token), ENOTTY);
	check_errno("INIT of isgx without a token", ioctl(fd, IOC_INIT_ISGX_NO_TOKEN, with_token),
		    ENOTTY);
	check_errno("INIT of an enclave that is not the signed one", init(fd, sigstruct), EPERM);
	destroy(&loader.enclave);
}

/* ---- entering ------------------------------------------------------------------------------ */

typedef uint8_t debug_buffer[1024];

/* RDI, RSI, RDX, R8 and R9, on the way in and on the way out. */
struct parameters {
	uint64_t p[5];
};

/*
 * Weak, so that it may be missing; the call behind it, which nothing reaches, is what makes the
 * link editor keep linux-vdso.so.1 although --as-needed. R10 is where the debug buffer is.
 */
void *resolved_vdso(void);
int coenter_vdso(struct parameters *p, struct sgx_enclave_run *run, uint8_t *debug);
int coenter_enclu(struct parameters *p, uint64_t tcs, uint8_t *debug);
extern const char own_enclu[];
asm(".text\n"
    "	.weak __vdso_sgx_enter_enclave\n"
    "	.type __vdso_sgx_enter_enclave, function\n"
    "	.type __vdso_clock_gettime, function\n"
    "resolved_vdso:\n"
    "	mov __vdso_sgx_enter_enclave@GOTPCREL(%rip), %rax\n"
    "	ret\n"
    "	call __vdso_clock_gettime@PLT\n"

    "	.macro coenter_in\n"
    "	push %rbx\n"
    "	push %rbp\n"
    "	push %r12\n"
    "	push %r13\n"
    "	push %r14\n"
    "	push %r15\n"
    "	push %rdi\n"
    "	mov %rdx, %r10\n"
    "	mov %rsi, %r11\n"
    "	mov 8(%rdi), %rsi\n"
    "	mov 16(%rdi), %rdx\n"
    "	mov 24(%rdi), %r8\n"
    "	mov 32(%rdi), %r9\n"
    "	mov 0(%rdi), %rdi\n"
    "	.endm\n"

    "	.macro coenter_out\n"
    "	pop %r11\n"
    "	mov %rdi, 0(%r11)\n"
    "	mov %rsi, 8(%r11)\n"
    "	mov %rdx, 16(%r11)\n"
    "	mov %r8, 24(%r11)\n"
    "	mov %r9, 32(%r11)\n"
    "	pop %r15\n"
    "	pop %r14\n"
    "	pop %r13\n"
    "	pop %r12\n"
    "	pop %rbp\n"
    "	pop %rbx\n"
    "	ret\n"
    "	.endm\n"

    "coenter_vdso:\n"
    "	coenter_in\n"
    "	mov $2, %ecx\n"
    "	sub $8, %rsp\n"
    "	push %r11\n"
    "	call __vdso_sgx_enter_enclave@PLT\n"
    "	add $16, %rsp\n"
    "	coenter_out\n"

    "coenter_enclu:\n"
    "	coenter_in\n"
    "	mov $2, %eax\n"
    "	mov %r11, %rbx\n"
    "	lea own_enclu(%rip), %rcx\n"
    "	.globl own_enclu\n"
    "own_enclu:\n"
    "	enclu\n"
    "	coenter_out\n");

static bool by_vdso;

/* True for an EEXIT, which is all that the EDP knows to go on with. */
static bool coenter(uint64_t address, struct parameters *p, uint8_t *debug)
{
	struct sgx_enclave_run run = { .tcs = address };

	if (!by_vdso)
		return coenter_enclu(p, address, debug) == EEXIT;
	return coenter_vdso(p, &run, debug) == 0 && run.function == EEXIT;
}

/* A first entry that makes no usercall. RDI 0 is a thread that returns. */
static bool run_op(const struct enclave *enclave, int index, struct op *op, uint8_t *debug)
{
	struct parameters p = { { (uint64_t)op, 0x51, 0x52, 0x53, 0x54 } };

	return coenter(tcs(enclave, index), &p, debug) && p.p[0] == 0;
}

static uint64_t aep;

static void first_entry(const struct enclave *enclave, uint64_t state)
{
	static struct target target __attribute__((aligned(512)));
	static uint8_t data[64];
	struct report found;
	struct op op = { .code = OP_ENTRY };
	struct op report = { .code = OP_REPORT, .a = (uint64_t)&target, .b = (uint64_t)data,
			     .c = (uint64_t)&found };
	debug_buffer debug;

	CHECK("entered", run_op(enclave, 0, &op, debug));
	CHECK("five parameters arrive", op.out[ENTRY_RDI] == (uint64_t)&op &&
						op.out[ENTRY_RSI] == 0x51 &&
						op.out[ENTRY_RDX] == 0x52 && op.out[8] == 0x53 &&
						op.out[9] == 0x54);
	check_equal("and the debug buffer", op.out[10], (uint64_t)debug);
	/* Both ways have one ENCLU, which is entry and AEP: it stands before where EEXIT goes. */
	aep = op.out[ENTRY_RCX] - 3;
	check_equal("whose ENCLU it is", aep == (uint64_t)own_enclu, !by_vdso);
	CHECK("EREPORT", run_op(enclave, 0, &report, debug));
	check_equal("the XFRM that was asked for", found.xfrm, state);
	check_equal("a debug enclave", found.attributes,
		    ATTRIBUTE_INIT | ATTRIBUTE_DEBUG | ATTRIBUTE_MODE64BIT);
}

/* ---- usercalls ----------------------------------------------------------------------------- */

struct work {
	int thread;
	struct parameters p;
	bool left; /* by EEXIT */
};

/* More than there can be under way: a thread of the enclave is in one queue, or inside. */
struct queue {
	pthread_mutex_t mutex;
	pthread_cond_t filled;
	struct work work[THREADS + 1];
	int first, count;
};

static const struct enclave *running;
static struct queue to_worker[WORKERS], to_main;

static void prepare(struct queue *queue)
{
	pthread_mutex_init(&queue->mutex, NULL);
	pthread_cond_init(&queue->filled, NULL);
	queue->first = queue->count = 0;
}

static void put(struct queue *queue, struct work work)
{
	pthread_mutex_lock(&queue->mutex);
	queue->work[(queue->first + queue->count++) % (THREADS + 1)] = work;
	pthread_cond_signal(&queue->filled);
	pthread_mutex_unlock(&queue->mutex);
}

static struct work take(struct queue *queue)
{
	struct work work;

	pthread_mutex_lock(&queue->mutex);
	while (!queue->count)
		pthread_cond_wait(&queue->filled, &queue->mutex);
	work = queue->work[queue->first];
	queue->first = (queue->first + 1) % (THREADS + 1);
	queue->count--;
	pthread_mutex_unlock(&queue->mutex);
	return work;
}

/* Alarms interrupt workers only, wherever they are; what they find inside must be synthetic. */
static volatile int wrong_registers;

static void tick(int number, siginfo_t *info, void *context)
{
	const greg_t *regs = ((ucontext_t *)context)->uc_mcontext.gregs;
	uint64_t index = ((uint64_t)regs[REG_RBX] - tcs(running, 0)) / PAGE;

	(void)number, (void)info;
	if ((uint64_t)regs[REG_RIP] - running->base < running->size)
		wrong_registers++;
	/* RAX is EENTER when the signal came just before the entry. */
	if ((uint64_t)regs[REG_RIP] == aep && regs[REG_RAX] != EENTER &&
	    (regs[REG_RAX] != ERESUME || (uint64_t)regs[REG_RCX] != aep || index >= THREADS))
		wrong_registers++;
}

static void *work_for_main(void *argument)
{
	struct queue *queue = argument;
	sigset_t alarm;

	sigemptyset(&alarm);
	sigaddset(&alarm, SIGALRM);
	pthread_sigmask(SIG_UNBLOCK, &alarm, NULL);
	for (;;) {
		struct work work = take(queue);
		debug_buffer debug;

		if (work.thread < 0)
			return NULL;
		work.left = coenter(tcs(running, work.thread), &work.p, debug);
		put(&to_main, work);
	}
}

/* What this host answers, and what the enclave makes of it: see usercalls() there. */
static struct parameters answered(const struct parameters *p)
{
	return (struct parameters){ { 0, p->p[0] * 5 + (p->p[1] ^ p->p[2] >> 7) + p->p[3],
				      p->p[4] * 11 ^ p->p[0] ^ p->p[2] } };
}

static uint64_t expected(uint64_t mix)
{
	for (uint64_t i = 1; i <= USERCALLS; i++) {
		struct parameters call = { { i, mix, ~mix, mix * 3, mix ^ i } };
		struct parameters answer = answered(&call);

		mix = (answer.p[1] ^ mix) * 0x9e3779b97f4a7c15 + answer.p[2];
	}
	return mix;
}

/*
 * Every thread of the enclave starts with its op and makes its usercalls; the main thread answers
 * each and gives it to the worker after the one that brought it, so that a TCS never comes back to
 * the thread that left it.
 */
static void usercalls(const char *way)
{
	static const struct itimerval every_ms = { { 0, 1000 }, { 0, 1000 } }, never;
	struct op op[THREADS];
	int worker[THREADS], calls[THREADS] = { 0 }, under_way = THREADS, lost = 0;
	pthread_t threads[WORKERS];
	char name[60];

	prepare(&to_main);
	for (int i = 0; i < WORKERS; i++) {
		prepare(&to_worker[i]);
		if (pthread_create(&threads[i], NULL, work_for_main, &to_worker[i]))
			fail("pthread_create");
	}
	wrong_registers = 0;
	setitimer(ITIMER_REAL, &every_ms, NULL);
	for (int i = 0; i < THREADS; i++) {
		worker[i] = i % WORKERS;
		op[i] = (struct op){ .code = OP_USERCALLS, .a = USERCALLS, .b = 0x1234567 * i,
				     .c = TURNS };
		put(&to_worker[worker[i]], (struct work){ i, { { (uint64_t)&op[i] } }, false });
	}
	while (under_way) {
		struct work work = take(&to_main);
		int i = work.thread;

		lost += !work.left;
		if (!work.left || !work.p.p[0]) {
			under_way--;
			continue;
		}
		calls[i]++;
		work.p = answered(&work.p);
		worker[i] = (worker[i] + 1) % WORKERS;
		put(&to_worker[worker[i]], work);
	}
	setitimer(ITIMER_REAL, &never, NULL);
	for (int i = 0; i < WORKERS; i++)
		put(&to_worker[i], (struct work){ .thread = -1 });
	for (int i = 0; i < WORKERS; i++)
		pthread_join(threads[i], NULL);
	for (int i = 0; i < THREADS; i++) {
		snprintf(name, sizeof(name), "%s: usercalls of thread %d", way, i);
		check(calls[i] == USERCALLS && op[i].out[0] == expected(op[i].b), name,
		      "%d calls, %#lx", calls[i], op[i].out[0]);
	}
	check(!lost, "every exit is an EEXIT", "%d are not", lost);
	check(!wrong_registers, "no alarm saw the enclave", "%d did", wrong_registers);
}

/* ---- an AEX resumes by itself -------------------------------------------------------------- */

struct spinner {
	pthread_t thread;
	int index;
	struct op op;
	volatile uint8_t stop;
	volatile int signals, wrong;
	bool left;
};

static struct spinner spinners[THREADS];
static __thread struct spinner *mine;

/* The last of them lets the enclave go; nothing but the return from here resumes it. */
static void interrupt(int number, siginfo_t *info, void *context)
{
	const greg_t *regs = ((ucontext_t *)context)->uc_mcontext.gregs;

	(void)number, (void)info;
	if ((uint64_t)regs[REG_RIP] != aep || regs[REG_RAX] != ERESUME ||
	    (uint64_t)regs[REG_RCX] != aep ||
	    (uint64_t)regs[REG_RBX] != tcs(running, mine->index))
		mine->wrong++;
	if (++mine->signals == INTERRUPTIONS)
		mine->stop = 1;
}

static void *spin(void *argument)
{
	debug_buffer debug;

	mine = argument;
	mine->left = run_op(running, mine->index, &mine->op, debug);
	return NULL;
}

static void interruptions(const char *way)
{
	char name[60];

	for (int i = 0; i < THREADS; i++) {
		struct spinner *one = &spinners[i];

		*one = (struct spinner){ .index = i };
		one->op = (struct op){ .code = OP_SPIN, .a = (uint64_t)&one->stop };
		if (pthread_create(&one->thread, NULL, spin, one))
			fail("pthread_create");
	}
	/* Inside, as the enclave itself says. */
	for (int i = 0; i < THREADS; i++)
		while (!*(volatile uint64_t *)&spinners[i].op.out[0])
			usleep(100);
	for (int turn = 1; turn <= INTERRUPTIONS; turn++) {
		for (int i = 0; i < THREADS; i++)
			pthread_kill(spinners[i].thread, SIGUSR1);
		for (int i = 0; i < THREADS; i++)
			while (spinners[i].signals < turn)
				usleep(100);
	}
	for (int i = 0; i < THREADS; i++) {
		const struct spinner *one = &spinners[i];

		pthread_join(one->thread, NULL);
		snprintf(name, sizeof(name), "%s: thread %d was resumed", way, i);
		check(one->left && one->signals == INTERRUPTIONS && !one->wrong, name,
		      "left %d, %d signals, %d wrong", one->left, one->signals, one->wrong);
	}
}

static uint64_t *guarded;

/* On a stack of its own, as the one of Rust's runtime, which looks for overflows in si_addr. */
static void repair(int number, siginfo_t *info, void *context)
{
	note_signal(number, info, context);
	mprotect(guarded, PAGE, PROT_READ);
}

/* A fault is no different: the same ENCLU reads again, once the handler has mended the page. */
static void fault_is_resumed(const struct enclave *enclave)
{
	static uint8_t stack[65536] __attribute__((aligned(16)));
	struct sigaction action = { .sa_sigaction = repair, .sa_flags = SA_SIGINFO | SA_ONSTACK };
	struct op op = { .code = OP_READ };
	debug_buffer debug;

	guarded = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (guarded == MAP_FAILED)
		fail("mmap");
	guarded[3] = 0x6a7d;
	mprotect(guarded, PAGE, PROT_NONE);
	op.a = (uint64_t)&guarded[3];
	caught.count = 0;
	sigaltstack(&(stack_t){ .ss_sp = stack, .ss_size = sizeof(stack) }, NULL);
	sigaction(SIGSEGV, &action, NULL);
	CHECK("a fault is resumed", run_op(enclave, 0, &op, debug) && op.out[0] == 0x6a7d);
	check_equal("after one SIGSEGV", caught.count, 1);
	check_equal("of the page", caught.address, (uint64_t)guarded);
	CHECK("at the ENCLU, to resume", (uint64_t)caught.regs[REG_RIP] == aep &&
						 caught.regs[REG_RAX] == ERESUME);
	signal(SIGSEGV, SIG_DFL);
	munmap(guarded, PAGE);
}

/* By the vDSO a fault is the end of the enclave: told, then shown to a debugger that may be there. */
static void fault_is_told(const struct enclave *enclave)
{
	struct sgx_enclave_run run = { .tcs = tcs(enclave, 0) };
	struct op op = { .code = OP_UD2 };
	struct parameters p = { { (uint64_t)&op } };
	struct sigaction action = { .sa_sigaction = note_signal, .sa_flags = SA_SIGINFO }, old;
	debug_buffer debug;

	check_equal("a fault returns", coenter_vdso(&p, &run, debug), 0);
	check_equal("from inside", run.function, ERESUME);
	check_equal("#UD", run.exception_vector, VECTOR_UD);
	caught.count = 0;
	sigaction(SIGTRAP, &action, &old);
	asm volatile("xchg %%rbx, %0\n"
		     "	mov %1, %%r10\n"
		     "	int3\n"
		     "	xchg %0, %%rbx"
		     :
		     : "r"(run.tcs), "r"((uint8_t *)debug)
		     : "r10", "memory");
	sigaction(SIGTRAP, &old, NULL);
	CHECK("a debugger would find TCS and buffer",
	      caught.count == 1 && (uint64_t)caught.regs[REG_RBX] == run.tcs &&
		      (uint64_t)caught.regs[REG_R10] == (uint64_t)debug);
}

/* ---- main ---------------------------------------------------------------------------------- */

int main(int argc, char **argv)
{
	uint64_t state = xfrm();
	sigset_t alarm;
	const char *path;
	int device;

	if (argc < 3)
		fail("usage: %s ENCLAVE SIGSTRUCT", argv[0]);
	the_image = read_image(argv[1]);
	read_sigstruct(argv[2]);
	order_of_nodes();
	device = open_node(0, &path);
	if (device < 0)
		fail("no node");
	xfrm_is_offered(state);
	calls_of_other_drivers(path);

	sigemptyset(&alarm);
	sigaddset(&alarm, SIGALRM);
	pthread_sigmask(SIG_BLOCK, &alarm, NULL);
	handle(SIGALRM, tick);
	handle(SIGUSR1, interrupt);
	if (!CHECK("the dynamic linker resolves the weak symbol", resolved_vdso()))
		return finish();
	for (int way = 0; way < 2; way++) {
		const char *name = way ? "own ENCLU" : "vDSO";
		struct enclave enclave = load(path, state);

		by_vdso = !way;
		running = &enclave;
		first_entry(&enclave, state);
		usercalls(name);
		interruptions(name);
		if (by_vdso)
			fault_is_told(&enclave);
		else
			fault_is_resumed(&enclave);
		destroy(&enclave);
	}
	close(device);
	return finish();
}
