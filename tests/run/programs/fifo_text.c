/* SPDX-License-Identifier: Apache-2.0 */
/* Maps executable what cannot be mapped; prints the errno of each. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static void map(const char *what, int fd)
{
	void *text = mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, 0);

	printf("%s: %d\n", what, text == MAP_FAILED ? errno : 0);
	fflush(stdout);
}

int main(void)
{
	int ends[2];

	if (mkfifo("fifo", 0600) || pipe(ends)) {
		perror("fifo");
		return 1;
	}
	/* No writer: a reader that does not say O_NONBLOCK waits for ever. */
	map("fifo, read only", open("fifo", O_RDONLY | O_NONBLOCK));
	map("fifo, both ways", open("fifo", O_RDWR));
	map("pipe, reading end", ends[0]);
	map("pipe, writing end", ends[1]);
	map("directory", open(".", O_RDONLY));
	map("terminal or none", open("/dev/tty", O_RDWR));
	map("null device", open("/dev/null", O_RDWR));
	map("no descriptor", 987);
	/* Files still open, so the supervisor that would have waited for a writer is alive. */
	map("a file", open("/proc/self/exe", O_RDONLY));
	return unlink("fifo");
}
