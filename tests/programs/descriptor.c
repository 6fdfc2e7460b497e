/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The descriptor of a node beside its ioctls: what a character device answers, in this process, in
 * a forked child and after an exec. Prints its maps, too, as lines that begin with "maps ".
 */
#include "host.h"

#include <linux/stat.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>

#define MISC_MAJOR 10

static void check_stats(const char *what, int fd)
{
	struct stat st = { 0 }, raw = { 0 };
	struct statx stx = { 0 };
	char name[80];

	snprintf(name, sizeof(name), "%s: fstat", what);
	CHECK(name, fstat(fd, &st) == 0 && S_ISCHR(st.st_mode) && st.st_size == 0 &&
	      major(st.st_rdev) == MISC_MAJOR);
	snprintf(name, sizeof(name), "%s: the system call fstat", what);
	CHECK(name, syscall(SYS_fstat, fd, &raw) == 0 && raw.st_mode == st.st_mode &&
	      raw.st_rdev == st.st_rdev);
	snprintf(name, sizeof(name), "%s: statx", what);
	CHECK(name, syscall(SYS_statx, fd, "", AT_EMPTY_PATH, STATX_ALL, &stx) == 0 &&
	      S_ISCHR(stx.stx_mode) && stx.stx_rdev_major == MISC_MAJOR);
}

static void check_other_files(int node)
{
	struct stat st;
	int fd = open("/proc/self/exe", O_RDONLY);

	CHECK("fstat of a file is its own", fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_size);
	CHECK("and so is the system call's",
	      syscall(SYS_fstat, fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_size);
	close(fd);
	check_errno("fstat of no file", fstat(999, &st), EBADF);
	check_errno("fstat to a bad pointer", syscall(SYS_fstat, node, 8), EFAULT);
	check_errno("fstatat to a bad pointer",
		    syscall(SYS_newfstatat, node, "", 8, AT_EMPTY_PATH), EFAULT);
}

static void check_refusals(const struct enclave *enclave)
{
	char bytes[64] = { 0 };
	struct iovec vector = { bytes, sizeof(bytes) };
	int fd = enclave->fd;
	off_t page = (off_t)enclave->base;

	check_errno("ftruncate", ftruncate(fd, 0), EINVAL);
	check_errno("fallocate", fallocate(fd, 0, 0, PAGE), ENODEV);
	check_errno("fallocate of a hole", fallocate(fd, 3, page, PAGE), ENODEV);
	CHECK("nothing is read", read(fd, bytes, sizeof(bytes)) <= 0);
	CHECK("nothing is written", write(fd, bytes, sizeof(bytes)) == -1);
	CHECK("nor at an offset", pwrite(fd, bytes, sizeof(bytes), page) == -1);
	CHECK("nor of a vector", writev(fd, &vector, 1) == -1);
	CHECK("nor of a vector at an offset", pwritev(fd, &vector, 1, page) == -1);
}

static void check_poll(int fd)
{
	struct pollfd one = { .fd = fd, .events = POLLIN | POLLOUT };
	struct epoll_event event = { .events = EPOLLIN };
	int epoll = epoll_create1(0);

	CHECK("poll finds it readable and writable",
	      poll(&one, 1, 0) == 1 && one.revents == (POLLIN | POLLOUT));
	check_errno("epoll_ctl", epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event), EPERM);
	close(epoll);
}

static void print_maps(const char *path)
{
	char line[512];
	FILE *maps = fopen(path, "r");

	while (maps && fgets(line, sizeof(line), maps))
		dprintf(1, "maps %s", line);
	if (maps)
		fclose(maps);
}

int main(int argc, char **argv)
{
	struct enclave enclave;
	char number[16];
	pid_t child;
	int status, provision;

	if (argc > 3) {
		check_stats("after exec", atoi(argv[3]));
		return finish();
	}
	begin(argc, argv);
	enclave = build(&the_image);
	check_stats("opened", enclave.fd);
	check_stats("duplicated", dup(enclave.fd));
	provision = open("/dev/sgx_provision", O_RDWR);
	check_stats("provision", provision);
	check_other_files(enclave.fd);
	check_refusals(&enclave);
	check_poll(enclave.fd);
	CHECK("and the enclave is whole", do_op(&enclave, 0, &(struct op){ .code = OP_NOP }));
	print_maps("/proc/self/maps");
	child = fork();
	if (!child) {
		check_stats("in a forked child", enclave.fd);
		snprintf(number, sizeof(number), "%d", enclave.fd);
		fcntl(enclave.fd, F_SETFD, 0);
		execl("/proc/self/exe", argv[0], argv[1], argv[2], number, NULL);
		_exit(1);
	}
	waitpid(child, &status, 0);
	CHECK("the child ended well", !status);
	return finish();
}
