/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Stop signals and SIGCONT that come while a process is made to carry out calls: at its exec, in
 * the ioctls and mappings of an enclave, and where it enters, which with SIGILL ignored takes such
 * calls each time.
 *
 *     stopped ENCLAVE SIGSTRUCT exec|ioctl|continue
 *     stopped ENCLAVE SIGSTRUCT terminal THREADS
 *     stopped ENCLAVE SIGSTRUCT started FD       what "exec" executes: ends once FD can be read
 */
#include "host.h"

#define ENDED 7
#define MOST_THREADS 4

struct shared {
	volatile unsigned long turns;
	volatile bool end;
};

static int threads;
static struct shared *shared;
static struct enclave enclave;

/* A child in a process group of its own, for which the terminal's stop signals have their meaning. */
static pid_t child(void (*body)(void))
{
	pid_t pid;

	shared->turns = shared->end = 0;
	pid = fork_bound();
	if (!pid) {
		setpgid(0, 0);
		body();
		_exit(ENDED);
	}
	setpgid(pid, pid);
	return pid;
}

/* Until the child has gone round twice more; false: it never does. */
static bool goes_on(void)
{
	unsigned long turns = shared->turns;

	for (int i = 0; i < 8000; i++) {
		if (shared->turns >= turns + 2)
			return true;
		usleep(1000);
	}
	return false;
}

static bool ends(pid_t pid)
{
	int status;

	shared->end = true;
	return waitpid(pid, &status, WUNTRACED) == pid && WIFEXITED(status) &&
	       WEXITSTATUS(status) == ENDED;
}

/* Stop and continue a child, and go on only once it does. */
static void stop_often(const char *name, pid_t pid, int number, int rounds)
{
	int status = 0;

	for (int i = 0; i < rounds; i++) {
		usleep(200 + i * 37 % 1500);
		kill(pid, number);
		if (waitpid(pid, &status, WUNTRACED) != pid || !WIFSTOPPED(status)) {
			check(false, name, "round %d: status %#x, not stopped", i, status);
			return;
		}
		if (!check(WSTOPSIG(status) == number, name, "round %d: stopped by %d, not by %d",
			   i, WSTOPSIG(status), number)) {
			kill(pid, SIGKILL);
			return;
		}
		kill(pid, SIGCONT);
		if (!check(goes_on(), name,
			   "round %d: does not go on after SIGCONT", i)) {
			kill(pid, SIGKILL);
			return;
		}
	}
	CHECK("it ends as it does without stops", ends(pid));
}

static void stop_at_exec(char **argv)
{
	char descriptor[16];
	int tube[2], status;

	for (int i = 0; i < 60; i++) {
		pid_t pid;

		if (pipe(tube))
			fail("pipe");
		snprintf(descriptor, sizeof(descriptor), "%d", tube[0]);
		pid = fork_bound();
		if (!pid) {
			close(tube[1]);
			execl(argv[0], argv[0], argv[1], argv[2], "started", descriptor, NULL);
			_exit(127);
		}
		close(tube[0]);
		usleep(200 + i * 150);
		kill(pid, SIGSTOP);
		if (waitpid(pid, &status, WUNTRACED) != pid || !WIFSTOPPED(status) ||
		    WSTOPSIG(status) != SIGSTOP)
			fail("round %d: status %#x, not stopped by SIGSTOP", i, status);
		kill(pid, SIGCONT);
		if (write(tube[1], "", 1) != 1)
			fail("round %d: the new program reads no more", i);
		if (waitpid(pid, &status, WUNTRACED) != pid || !WIFEXITED(status) ||
		    WEXITSTATUS(status) != ENDED)
			fail("round %d: status %#x after SIGCONT, not the exit", i, status);
		close(tube[1]);
	}
}

static void make_enclaves(void)
{
	static uint8_t data[64 * PAGE] __attribute__((aligned(PAGE)));

	while (!shared->end) {
		struct enclave made = { .fd = open_device(), .size = sizeof(data) };
		struct secs secs;

		made.base = reserve(made.size);
		secs = enclave_secs(&made, 0);
		if (create(made.fd, &secs) ||
		    add_pages(made.fd, data, 0, made.size, SECINFO_REG | SECINFO_R, true) ||
		    mmap((void *)made.base, made.size, PROT_READ, MAP_SHARED | MAP_FIXED, made.fd,
			 0) == MAP_FAILED)
			fail("making an enclave");
		munmap((void *)made.base, made.size);
		close(made.fd);
		shared->turns++;
	}
}

static void map_and_enter(void)
{
	int fd = open_device();

	signal(SIGILL, SIG_IGN);
	while (!shared->end) {
		void *area = mmap(NULL, PAGE, PROT_NONE, MAP_SHARED, fd, 0);
		struct op op = { .code = OP_NOP };

		if (area == MAP_FAILED || munmap(area, PAGE) || !do_op(&enclave, 0, &op))
			fail("mapping and entering");
		shared->turns++;
	}
}

static void *enter_often(void *index)
{
	while (!shared->end) {
		struct op op = { .code = OP_NOP };

		if (!do_op(&enclave, (long)index, &op))
			fail("entering");
		__atomic_add_fetch(&shared->turns, 1, __ATOMIC_RELAXED);
	}
	return NULL;
}

static void enter_ignoring(void)
{
	pthread_t thread[MOST_THREADS];

	signal(SIGILL, SIG_IGN);
	for (long i = 1; i < threads; i++)
		pthread_create(&thread[i], NULL, enter_often, (void *)i);
	enter_often(NULL);
	for (int i = 1; i < threads; i++)
		pthread_join(thread[i], NULL);
}

static void continue_often(pid_t pid)
{
	int status = 0;

	for (int i = 0; i < 1500; i++) {
		kill(pid, SIGCONT);
		usleep(100);
		if (waitpid(pid, &status, WNOHANG | WUNTRACED)) {
			check(false, "SIGCONT alone", "status %#x after signal %d", status, i);
			kill(pid, SIGKILL);
			return;
		}
	}
	CHECK("it still goes on", goes_on());
	CHECK("it ends as it does without SIGCONT", ends(pid));
}

int main(int argc, char **argv)
{
	const char *mode;

	begin(argc, argv);
	if (argc < 4)
		fail("which?");
	mode = argv[3];
	if (!strcmp(mode, "started")) {
		char byte;

		return read(atoi(argv[4]), &byte, 1) == 1 ? ENDED : 1;
	}
	end_after(18);
	shared = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (strcmp(mode, "exec") && strcmp(mode, "ioctl"))
		enclave = build(&the_image);
	if (!strcmp(mode, "exec"))
		stop_at_exec(argv);
	else if (!strcmp(mode, "ioctl"))
		stop_often("in an ioctl", child(make_enclaves), SIGSTOP, 60);
	else if (!strcmp(mode, "continue"))
		continue_often(child(map_and_enter));
	else if (argc > 4 && (threads = atoi(argv[4])) <= MOST_THREADS)
		stop_often("entering", child(enter_ignoring), SIGTSTP, 60);
	else
		fail("how many threads?");
	return finish();
}
