/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A child with the process id of the keeper, which was killed and waited for. Whoever traces this
 * program, its parent, is stopped while the child is made, and so is told of the child's first stop
 * before it is told of the fork. In a namespace of process ids where nobody else makes any.
 *
 *     keepers_id ENCLAVE SIGSTRUCT
 */
#include "host.h"

#define ENDED 7
#define WHILE_STOPPED 200000 /* us */

static pid_t supervisor;
static volatile bool *stopped, *waits;

static void map_an_enclave(void)
{
	build(&the_image);
}

static void wake_the_supervisor(void)
{
	/* From here on it makes no stop: who would end that is stopped itself soon. */
	*waits = true;
	while (!*stopped)
		usleep(1000);
	usleep(2 * WHILE_STOPPED);
	kill(supervisor, SIGCONT);
}

static void nothing(void)
{
}

static pid_t child(void (*body)(void))
{
	pid_t pid = fork_bound();

	if (!pid) {
		body();
		_exit(ENDED);
	}
	return pid;
}

static bool ends(pid_t pid)
{
	int status;

	return waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == ENDED;
}

/* The supervisor's child that is not this program. */
static pid_t find_keeper(void)
{
	char path[64];
	pid_t pid, keeper = 0;
	FILE *children;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/children", supervisor, supervisor);
	children = fopen(path, "r");
	while (children && fscanf(children, "%d", &pid) == 1)
		if (pid != getpid())
			keeper = pid;
	if (!keeper)
		fail("no keeper");
	fclose(children);
	return keeper;
}

static void give_next(pid_t pid)
{
	FILE *last = fopen("/proc/sys/kernel/ns_last_pid", "w");

	if (!last || fprintf(last, "%d", pid - 1) < 0 || fclose(last))
		fail("ns_last_pid");
}

int main(int argc, char **argv)
{
	pid_t keeper, waker, same;

	begin(argc, argv);
	end_after(18);
	supervisor = getppid();
	stopped = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	waits = stopped + 1;
	CHECK("it maps an enclave", ends(child(map_an_enclave)));
	waker = child(wake_the_supervisor);
	while (!*waits)
		usleep(1000);

	keeper = find_keeper();
	kill(keeper, SIGKILL);
	while (!kill(keeper, 0))
		usleep(1000);
	give_next(keeper);
	kill(supervisor, SIGSTOP);
	*stopped = true;
	usleep(WHILE_STOPPED);
	same = child(nothing);
	check_equal("the id", same, keeper);
	CHECK("it ends", ends(same));
	CHECK("the other ends", ends(waker));
	return finish();
}
