// SPDX-License-Identifier: Apache-2.0
// Path calls from one site, again and again: the first asks the supervisor, the others are looked
// at in the process. Each must do what the bare system call does. Runs without softsgx as well.
//
//   path_site LIBRARY TURNS [node]     LIBRARY is path_site_library.so; with "node", /dev/sgx_enclave must open in the end
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <execinfo.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define OK(name, condition) printf("%s %s\n", (condition) ? "ok" : "not ok", name)

enum { CARRY = 1 };

// What path_site_library.c hands out.
struct seen {
	uint64_t rdi, rsi, rdx, r10, r8, r9, rbx, r12, r13, r14, r15, flags;
};

static long (*call_site)(long dirfd, const char *path, long flags, struct seen *out);

static int registers_kept(long turns)
{
	for (long i = 0; i < turns; i++) {
		struct seen s = {0};
		const char *path = i % 2 ? "/dev/null" : "/nonexistent/sgx";
		long fd = call_site(AT_FDCWD, path, O_RDONLY, &s);

		if (i % 2 ? fd < 0 : fd != -ENOENT)
			return 0;
		if (fd >= 0)
			close((int)fd);
		if (s.rdi != (uint64_t)(int64_t)AT_FDCWD || s.rsi != (uintptr_t)path ||
		    s.rdx != O_RDONLY || s.r10 || s.r8 != 8 || s.r9 != 9 || s.rbx != 11 ||
		    s.r12 != 12 || s.r13 != 13 || s.r14 != 14 || s.r15 != 15 || !(s.flags & CARRY))
			return 0;
	}
	return 1;
}

static int bad_pointers(void)
{
	long page = sysconf(_SC_PAGESIZE);
	char *edge = mmap(NULL, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int good = 1;

	munmap(edge + page, page);
	memcpy(edge + page - 5, "/dev/", 5); // no end before the hole
	good &= open(edge + page - 5, O_RDONLY) == -1 && errno == EFAULT;
	good &= open((char *)16, O_RDONLY) == -1 && errno == EFAULT;
	memcpy(edge + page - 10, "/dev/null", 10); // the end is the last byte before the hole
	int fd = open(edge + page - 10, O_RDONLY);
	good &= fd >= 0;
	close(fd);
	char *longest = malloc(8192);
	memset(longest, '/', 8191);
	longest[8191] = 0;
	good &= open(longest, O_RDONLY) == -1 && errno == ENAMETOOLONG;
	free(longest);
	munmap(edge, page);
	return good;
}

static volatile sig_atomic_t alarms, found_caller;
static void *caller_of_open[2];

static void on_alarm(int signal)
{
	void *frames[64];
	int count = backtrace(frames, 64);

	(void)signal;
	for (int i = 0; i < count; i++)
		found_caller |= frames[i] >= caller_of_open[0] && frames[i] < caller_of_open[1];
	alarms = alarms + 1;
}

__attribute__((noinline, noclone)) static int open_fifo(const char *path)
{
	int fd = open(path, O_RDONLY);

	__asm__ volatile("" ::: "memory");
	return fd;
}

static void set_alarm(int flags)
{
	struct sigaction action = {.sa_handler = on_alarm, .sa_flags = flags};

	sigaction(SIGALRM, &action, NULL);
	struct itimerspec when = {.it_value.tv_nsec = 50000000};
	timer_t timer;
	timer_create(CLOCK_MONOTONIC, NULL, &timer);
	timer_settime(timer, 0, &when, NULL);
}

static void interrupted(void)
{
	char path[] = "path_site.fifo";
	void *warm[4];

	backtrace(warm, 4); // loads its library now
	caller_of_open[0] = (void *)open_fifo;
	caller_of_open[1] = (char *)open_fifo + 64;
	unlink(path);
	mkfifo(path, 0600);
	set_alarm(0);
	OK("a signal interrupts an open that blocks", open_fifo(path) == -1 && errno == EINTR);
	OK("a backtrace leads through the call to its caller", found_caller);
	set_alarm(SA_RESTART);
	pid_t writer = fork();
	if (!writer) {
		usleep(200000);
		int fd = open(path, O_WRONLY);
		_exit(write(fd, "x", 1) != 1);
	}
	int fd = open_fifo(path);
	char byte = 0;
	OK("a restarted open goes on", fd >= 0 && read(fd, &byte, 1) == 1 && byte == 'x' && alarms == 2);
	close(fd);
	waitpid(writer, NULL, 0);
	unlink(path);
}

static int cleaned;
static void clean_up(void *unused)
{
	(void)unused;
	cleaned = 1;
}

static void *blocked(void *path)
{
	pthread_cleanup_push(clean_up, NULL);
	pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, NULL);
	open(path, O_RDONLY);
	pthread_cleanup_pop(0);
	return NULL;
}

static void cancelled(void)
{
	char path[] = "path_site.fifo";
	pthread_t thread;
	void *result;

	mkfifo(path, 0600);
	pthread_create(&thread, NULL, blocked, path);
	usleep(50000);
	pthread_cancel(thread);
	pthread_join(thread, &result);
	OK("a cancelled open unwinds to the cleanup handler", result == PTHREAD_CANCELED && cleaned);
	unlink(path);
}

static int in_child(long turns)
{
	pid_t child = fork();
	int status;

	if (!child)
		_exit(!(registers_kept(turns) && bad_pointers()));
	return waitpid(child, &status, 0) == child && status == 0;
}

static int in_vfork(void)
{
	pid_t child = vfork();
	int status;

	if (!child) {
		int fd = open("/dev/null", O_RDONLY);
		_exit(fd < 0 || close(fd));
	}
	return waitpid(child, &status, 0) == child && status == 0;
}

int main(int argc, char **argv)
{
	if (argc < 3)
		return 2;
	void *library = dlopen(argv[1], RTLD_NOW);
	long turns = atol(argv[2]);

	if (!library)
		return 3;
	*(void **)&call_site = dlsym(library, "call_site");

	OK("registers, flags and red zone are kept", registers_kept(turns));
	OK("a bad pointer is EFAULT, a long path ENAMETOOLONG", bad_pointers());
	OK("again", bad_pointers());
	sigset_t all;
	sigfillset(&all);
	sigprocmask(SIG_BLOCK, &all, NULL);
	OK("a bad pointer is EFAULT with all signals blocked", bad_pointers());
	sigset_t now;
	sigprocmask(SIG_UNBLOCK, &all, &now);
	OK("and they still are", sigismember(&now, SIGSEGV) && sigismember(&now, SIGBUS));
	interrupted();
	cancelled();
	OK("a forked child", in_child(turns));
	OK("a vforked child", in_vfork());
	struct stat st;
	OK("stat", stat("/dev/null", &st) == 0 && S_ISCHR(st.st_mode) && stat("/none", &st) == -1);
	char link[64];
	OK("readlink", readlink("/proc/self/exe", link, sizeof link) > 0);
	OK("access", access("/dev/null", R_OK) == 0 && access("/none", R_OK) == -1 && errno == ENOENT);
	if (argc > 3) {
		OK("a node by its path", open("/dev/sgx_enclave", O_RDWR) >= 0);
		OK("a node by a relative path", chdir("/dev") == 0 && open("sgx_enclave", O_RDWR) >= 0);
		OK("stat of a node", stat("sgx_enclave", &st) == 0 && S_ISCHR(st.st_mode));
	}
	puts("finished");
	return 0;
}
