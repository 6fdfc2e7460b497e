/* SPDX-License-Identifier: Apache-2.0 */
/* The device's calls of several threads, by the name of what comes in between. */
#include "host.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

static pthread_barrier_t barrier;

static int created(int fd, uint64_t base)
{
	struct enclave enclave = { .fd = fd, .base = base, .size = the_image.size,
				   .image = &the_image };
	struct secs secs = enclave_secs(&enclave, 0);

	return create(fd, &secs);
}

static void *map_first(void *nothing)
{
	struct op op = { .code = OP_NOP };
	struct enclave enclave;

	pthread_barrier_wait(&barrier);
	enclave = build(&the_image);
	for (int i = 0; i < 10; i++)
		if (!do_op(&enclave, 0, &op))
			_exit(2);
	return nothing;
}

/* Four threads map the first enclave of their process at the same time. */
static void at_once(void)
{
	int bad = 0, status;

	for (int i = 0; i < 10; i++) {
		pthread_t threads[4];
		pid_t child = fork();

		if (!child) {
			pthread_barrier_init(&barrier, NULL, 4);
			for (int k = 0; k < 4; k++)
				pthread_create(&threads[k], NULL, map_first, NULL);
			for (int k = 0; k < 4; k++)
				pthread_join(threads[k], NULL);
			_exit(0);
		}
		waitpid(child, &status, 0);
		bad += status != 0;
	}
	check_equal("processes that failed", bad, 0);
}

static void *after_main(void *nothing)
{
	struct op op = { .code = OP_NOP };
	struct enclave enclave;

	usleep(100000);
	enclave = build(&the_image);
	CHECK("an enclave when the first thread has ended", do_op(&enclave, 0, &op));
	_exit(finish());
	return nothing;
}

static void *own_table(void *nothing)
{
	struct op op = { .code = OP_NOP };
	struct enclave enclave;

	unshare(CLONE_FILES);
	enclave = build(&the_image);
	CHECK("an enclave of a thread with its own descriptors", do_op(&enclave, 0, &op));
	return nothing;
}

/* A filter of the thread's own keeps the filters of the process's threads apart. */
static void *own_filter(void *nothing)
{
	struct sock_filter allow = { BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW };
	struct sock_fprog program = { 1, &allow };
	struct op op = { .code = OP_NOP };
	struct enclave enclave;

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, 2, &program))
		fail("PR_SET_SECCOMP");
	pthread_barrier_wait(&barrier);
	pthread_barrier_wait(&barrier);
	enclave = build(&the_image);
	CHECK("an enclave of a thread with its own filter", do_op(&enclave, 0, &op));
	for (int i = 0; i < the_image.segments; i++)
		if (!(the_image.segment[i].prot & PROT_WRITE))
			check_errno("more than a page allows",
				    mprotect((void *)(enclave.base + the_image.segment[i].offset),
					     PAGE, PROT_READ | PROT_WRITE),
				    EACCES);
	return nothing;
}

/* A system call changes no register but RAX, RCX and R11. */
static void registers(int fd, long wanted)
{
	register long r10 __asm__("r10") = MAP_SHARED;
	register long r8 __asm__("r8") = fd;
	register long r9 __asm__("r9") = 0;
	long rax = SYS_mmap, rdi = 0, rsi = 2 * PAGE, rdx = 0;

	__asm__ volatile("syscall"
			 : "+a"(rax), "+D"(rdi), "+S"(rsi), "+d"(rdx), "+r"(r10), "+r"(r8), "+r"(r9)
			 :
			 : "rcx", "r11", "memory");
	long seen[] = { rdi, rsi, rdx, r10, r8, r9 };

	check(wanted ? rax == wanted : rax > 0, "mmap", "%ld", rax);
	check_equal("rdi", seen[0], 0);
	check_equal("rsi", seen[1], 2 * PAGE);
	check_equal("rdx", seen[2], 0);
	check_equal("r10", seen[3], MAP_SHARED);
	check_equal("r8", seen[4], fd);
	check_equal("r9", seen[5], 0);
}

static void handler(int signal)
{
}

static int add_many(int fd, void *source, uint64_t offset, uint64_t length, uint64_t *count)
{
	struct secinfo secinfo = { .flags = SECINFO_REG | SECINFO_R };
	struct sgx_enclave_add_pages argument = {
		.src = (uint64_t)source,
		.offset = offset,
		.length = length,
		.secinfo = (uint64_t)&secinfo,
	};
	int result = ioctl(fd, SGX_IOC_ENCLAVE_ADD_PAGES, &argument);

	*count = argument.count;
	return result;
}

/* The signals that come are ignored, or caught with SA_RESTART, or caught without. */
static void signals(bool caught, int flags)
{
	struct sigaction action = { .sa_handler = caught ? handler : SIG_DFL, .sa_flags = flags };
	uint64_t size = 64UL << 20, length = caught ? PAGE : size / 2, count = 0;
	uint8_t *source = mmap(NULL, length, PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	struct enclave enclave = { .fd = open_device(), .base = reserve(size), .size = size,
				   .image = &the_image };
	struct secs secs = enclave_secs(&enclave, 0);
	pid_t parent = getpid(), child;
	int interrupted = 0, failed = 0, error = 0;

	secs.size = size;
	if (create(enclave.fd, &secs))
		fail("CREATE");
	sigaction(SIGWINCH, &action, NULL);
	child = fork();
	if (!child)
		for (;;) {
			kill(parent, SIGWINCH);
			usleep(caught ? 250 : 500);
		}
	usleep(5000);
	for (uint64_t done = 0; done < (caught ? 600 * PAGE : length);) {
		if (!add_many(enclave.fd, source, done, length, &count)) {
			if (count != length)
				failed++;
			done += length;
		} else if (errno == EINTR && !count) {
			if (++interrupted > 10000)
				fail("interrupted for ever");
			if (interrupted > 3 && !(flags & SA_RESTART))
				break;
		} else {
			error = errno;
			break;
		}
	}
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	check_equal("errno", error, 0);
	check_equal("short counts", failed, 0);
	if (!caught || flags & SA_RESTART)
		check_equal("calls that were interrupted", interrupted, 0);
	else
		check(interrupted > 0, "calls that were interrupted", "none");
}

int main(int argc, char **argv)
{
	const char *what = argv[3];
	pthread_t thread;

	begin(argc, argv);
	if (!strcmp(what, "at-once")) {
		at_once();
	} else if (!strcmp(what, "leader")) {
		pthread_create(&thread, NULL, after_main, NULL);
		pthread_exit(NULL);
	} else if (!strcmp(what, "table")) {
		pthread_create(&thread, NULL, own_table, NULL);
		pthread_join(thread, NULL);
		check_works("the other threads' descriptors",
			    created(open_device(), reserve(the_image.size)));
	} else if (!strcmp(what, "filter")) {
		pthread_barrier_init(&barrier, NULL, 2);
		pthread_create(&thread, NULL, own_filter, NULL);
		pthread_barrier_wait(&barrier);
		open_device();
		pthread_barrier_wait(&barrier);
		pthread_join(thread, NULL);
	} else if (!strcmp(what, "registers")) {
		registers(open_device(), 0);
		registers(open("/dev/sgx_provision", O_RDWR), -ENODEV);
	} else if (!strcmp(what, "ignored")) {
		signals(false, 0);
	} else if (!strcmp(what, "restarted")) {
		signals(true, SA_RESTART);
	} else if (!strcmp(what, "interrupted")) {
		signals(true, 0);
	}
	return finish();
}
