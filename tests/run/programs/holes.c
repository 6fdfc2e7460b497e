/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the host finds where an enclave has no page, and when a page is added to what is mapped: by
 * this process, by another one, under each state of the signals.
 */
#include "host.h"

#include <setjmp.h>
#include <sys/resource.h>

#define RW (PROT_READ | PROT_WRITE)
#define ORIGINAL 0x41
#define TOLD(signal, code) ((signal) << 8 | (code))

/* Pages from the base on. */
enum { DATA = 0, MORE = 1, THREAD = 2, CONSTANT = 3, HOLE = 4, LATER = 6, LATEST = 7, MANY = 8 };
#define PAGES 16
#define THREADS 4

static __thread sigjmp_buf back;
static __thread uint64_t fault_address;
static struct enclave enclave;
static uint8_t page[PAGE] __attribute__((aligned(4096)));

static void on_fault(int signal, siginfo_t *info, void *context)
{
	fault_address = (uint64_t)info->si_addr;
	siglongjmp(back, TOLD(signal, info->si_code));
}

static uint64_t at(int number)
{
	return enclave.base + number * PAGE;
}

/* Signal and code of a touch; 0 if nothing happens. */
static int touch(uint64_t address, bool write)
{
	int told = sigsetjmp(back, 1);
	volatile uint8_t *byte = (volatile uint8_t *)address;

	if (told)
		return told;
	if (write)
		*byte = ORIGINAL;
	else
		(void)*byte;
	return 0;
}

static void check_hole(const char *name, uint64_t address)
{
	check_equal(name, touch(address + 0x123, false), TOLD(SIGBUS, BUS_ADRERR));
	check_equal("its address", fault_address, address + 0x123);
	check_equal("write", touch(address + 0x124, true), TOLD(SIGBUS, BUS_ADRERR));
	check_equal("its address", fault_address, address + 0x124);
}

static void add(int number, uint64_t secinfo)
{
	if (add_pages(enclave.fd, page, number * PAGE, PAGE, secinfo, false))
		fail("adding page %d", number);
}

static void mapped_before_its_pages(void)
{
	struct secs secs;

	enclave = (struct enclave){ .fd = open_device(), .base = reserve(2 * PAGES * PAGE) + PAGES * PAGE,
				    .size = PAGES * PAGE };
	secs = enclave_secs(&enclave, 0);
	if (create(enclave.fd, &secs))
		fail("CREATE");
	if (mmap((void *)enclave.base, enclave.size, RW, MAP_SHARED | MAP_FIXED | MAP_POPULATE,
		 enclave.fd, 0) == MAP_FAILED)
		fail("mapping");
	check_hole("before any page", at(DATA));

	add(DATA, SECINFO_REG | RW);
	check_equal("a page that is there", touch(at(DATA), false), 0);
	check_equal("its contents", *(uint8_t *)at(DATA), ORIGINAL);
	check_equal("write", touch(at(DATA), true), 0);
	check_hole("a page that is not", at(MORE));
	add(MORE, SECINFO_REG | RW);
	check_equal("it comes later", touch(at(MORE), true), 0);

	add(CONSTANT, SECINFO_REG | PROT_READ);
	check_hole("a page that allows less than the mapping", at(CONSTANT));
	if (add_pages(enclave.fd, the_image.segment[0].data, THREAD * PAGE, PAGE, SECINFO_TCS, false))
		fail("adding a TCS");
	check_hole("a TCS", at(THREAD));
}

static void protections(void)
{
	uint64_t before = enclave.base - PAGE;

	if (mmap((void *)before, PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != (void *)before)
		fail("mapping the page before");
	check_works("mprotect of an enclave and what lies before it",
		    mprotect((void *)before, (HOLE + 3) * PAGE, PROT_READ));
	check_equal("before, write", touch(before, true), TOLD(SIGSEGV, SEGV_ACCERR));
	check_equal("before, read", touch(before, false), 0);
	check_equal("page, write", touch(at(DATA) + 5, true), TOLD(SIGSEGV, SEGV_ACCERR));
	check_equal("its address", fault_address, at(DATA) + 5);
	check_equal("page, read", touch(at(DATA), false), 0);
	check_equal("the constant page", touch(at(CONSTANT), false), 0);
	check_equal("hole, read", touch(at(HOLE), false), TOLD(SIGBUS, BUS_ADRERR));
	check_equal("hole, write", touch(at(HOLE), true), TOLD(SIGSEGV, SEGV_ACCERR));
	check_errno("more than the constant page allows",
		    mprotect((void *)enclave.base, enclave.size, RW), EACCES);
	check_equal("it stays so", touch(at(DATA), true), TOLD(SIGSEGV, SEGV_ACCERR));
	check_works("none", mprotect((void *)at(DATA), 2 * PAGE, PROT_NONE));
	check_equal("read", touch(at(MORE), false), TOLD(SIGSEGV, SEGV_ACCERR));
	check_works("back", mprotect((void *)at(DATA), 2 * PAGE, RW));
	check_works("and the hole", mprotect((void *)at(HOLE), (PAGES - HOLE) * PAGE, RW));
	check_equal("write", touch(at(MORE), true), 0);
	check_hole("still a hole", at(HOLE));
	check_errno("mprotect beyond what is mapped",
		    mprotect((void *)at(HOLE), 64 * PAGE, PROT_READ), ENOMEM);
	check_works("back again", mprotect((void *)at(HOLE), (PAGES - HOLE) * PAGE, RW));
}

static void system_calls(void)
{
	int ends[2];

	if (pipe(ends))
		fail("pipe");
	check_equal("write from a page", write(ends[1], (void *)at(DATA), 16), 16);
	check_equal("read into a page", read(ends[0], (void *)at(MORE), 16), 16);
	check_errno("write from a hole", write(ends[1], (void *)at(HOLE), 16), EFAULT);
	check_errno("write from a TCS", write(ends[1], (void *)at(THREAD), 16), EFAULT);
	close(ends[0]);
	close(ends[1]);
}

static void open_for_reading(void)
{
	int fd = open("/dev/sgx_enclave", O_RDONLY | O_CLOEXEC);
	void *found = mmap(NULL, PAGE, RW, MAP_SHARED, fd, 0);

	check_errno("a writable mapping of a descriptor for reading",
		    found == MAP_FAILED ? -1 : 0, EACCES);
	found = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, 0);
	CHECK("a readable one", found != MAP_FAILED);
	check_equal("which has a hole", touch((uint64_t)found, false), TOLD(SIGBUS, BUS_ADRERR));
	check_errno("cannot become writable", mprotect(found, PAGE, RW), EACCES);
	munmap(found, PAGE);
	close(fd);
}

static bool is_blocked(int signal)
{
	sigset_t mask;

	sigprocmask(SIG_SETMASK, NULL, &mask);
	return sigismember(&mask, signal);
}

static void block(int signal, int how)
{
	sigset_t mask;

	sigemptyset(&mask);
	sigaddset(&mask, signal);
	sigprocmask(how, &mask, NULL);
}

static void *touch_many(void *unused)
{
	long bad = 0;

	for (int i = MANY; i < PAGES; i++)
		bad += touch(at(i), true) != 0;
	return (void *)bad;
}

/* In a child that has the mapping, while its parent adds the pages. */
static void touch_later(int go)
{
	pthread_t thread[THREADS];
	struct sigaction action;
	char byte;

	if (read(go, &byte, 1) != 1)
		fail("the parent is gone");
	block(SIGSEGV, SIG_BLOCK);
	check_equal("a page that another process has added", touch(at(LATER), false), 0);
	check_equal("its contents", *(uint8_t *)at(LATER), ORIGINAL);
	CHECK("SIGSEGV is still blocked", is_blocked(SIGSEGV));
	check_hole("a hole with SIGSEGV blocked", at(HOLE));
	CHECK("SIGSEGV is still blocked", is_blocked(SIGSEGV));
	block(SIGSEGV, SIG_UNBLOCK);
	sigaction(SIGSEGV, NULL, &action);
	CHECK("its handler is still there", action.sa_sigaction == on_fault);

	signal(SIGSEGV, SIG_IGN);
	if (read(go, &byte, 1) != 1)
		fail("the parent is gone");
	check_equal("a page with SIGSEGV ignored", touch(at(LATEST), true), 0);
	sigaction(SIGSEGV, NULL, &action);
	CHECK("SIGSEGV is still ignored", action.sa_handler == SIG_IGN);
	handle(SIGSEGV, on_fault);

	for (int i = 0; i < THREADS; i++)
		pthread_create(&thread[i], NULL, touch_many, NULL);
	for (int i = 0; i < THREADS; i++) {
		void *bad;

		pthread_join(thread[i], &bad);
		check_equal("pages that a thread could not touch", (uint64_t)bad, 0);
	}
	check_hole("a hole at the end", at(HOLE));
}

static void another_process(void)
{
	int go[2], status;
	pid_t child;

	if (pipe(go))
		fail("pipe");
	child = fork();
	if (!child) {
		touch_later(go[0]);
		_exit(failures != 0);
	}
	add(LATER, SECINFO_REG | RW);
	if (write(go[1], "", 1) != 1)
		fail("write");
	add(LATEST, SECINFO_REG | RW);
	for (int i = MANY; i < PAGES; i++)
		add(i, SECINFO_REG | RW);
	if (write(go[1], "", 1) != 1)
		fail("write");
	waitpid(child, &status, 0);
	check_equal("the child ended well", status, 0);
}

static int ends_at_a_hole(int blocked, int ignored)
{
	int status;
	pid_t child = fork();

	if (!child) {
		struct rlimit none = { 0, 0 };

		setrlimit(RLIMIT_CORE, &none);
		if (blocked)
			block(blocked, SIG_BLOCK);
		if (ignored)
			signal(ignored, SIG_IGN);
		_exit(touch(at(HOLE), false) ? 40 : 41);
	}
	waitpid(child, &status, 0);
	return status;
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	memset(page, ORIGINAL, sizeof(page));
	handle(SIGBUS, on_fault);
	handle(SIGSEGV, on_fault);
	mapped_before_its_pages();
	protections();
	system_calls();
	open_for_reading();
	another_process();
	check_equal("SIGBUS blocked: death", ends_at_a_hole(SIGBUS, 0), SIGBUS);
	check_equal("SIGBUS ignored: death", ends_at_a_hole(0, SIGBUS), SIGBUS);
	check_equal("SIGSEGV ignored: the handler", ends_at_a_hole(0, SIGSEGV), 40 << 8);
	return finish();
}
