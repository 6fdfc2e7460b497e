// SPDX-License-Identifier: Apache-2.0
// What a page fault costs at least that another process answers: touches pages of a shared file that are
// absent, with a userfaultfd that answer.py has from it by a socket.
//
//   faults PAGES SOCKET
//
// Prints nanoseconds a page, of each stretch of pages.
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, STRETCH = 64 };

static uint64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static void hand_over(int socket, int fd)
{
	_Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof fd)] = {0};
	char byte = 0;
	struct iovec data = {.iov_base = &byte, .iov_len = 1};
	struct msghdr message = {
		.msg_iov = &data, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);

	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(sizeof fd);
	memcpy(CMSG_DATA(header), &fd, sizeof fd);
	if (sendmsg(socket, &message, 0) != 1)
		err(1, "sendmsg");
}

int main(int argc, char **argv)
{
	if (argc != 3)
		errx(2, "usage: faults PAGES SOCKET");
	const size_t pages = strtoull(argv[1], NULL, 0);
	int file = memfd_create("faults", MFD_CLOEXEC);
	if (file < 0 || ftruncate(file, (off_t)(pages * PAGE)) != 0)
		err(1, "memfd");
	volatile uint8_t *at = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	if (at == MAP_FAILED)
		err(1, "mmap");
	int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
	struct uffdio_api api = {.api = UFFD_API};
	struct uffdio_register range = {
		.range = {.start = (uintptr_t)at, .len = pages * PAGE}, .mode = UFFDIO_REGISTER_MODE_MISSING};
	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api) != 0 || ioctl(uffd, UFFDIO_REGISTER, &range) != 0)
		err(1, "userfaultfd");
	hand_over(atoi(argv[2]), uffd);
	for (size_t first = 0; first + STRETCH <= pages; first += STRETCH) {
		uint64_t begin = now();
		for (size_t i = 0; i < STRETCH; i++)
			(void)at[(first + i) * PAGE];
		printf("%llu ", (unsigned long long)((now() - begin) / STRETCH));
	}
	puts("");
	return 0;
}
