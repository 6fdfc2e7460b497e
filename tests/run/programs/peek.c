/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Enclave memory by /proc/PID/mem and process_vm_readv: what a kernel with SGX shows of it.
 *
 *     peek ENCLAVE SIGSTRUCT debug|production
 *     peek read PID ADDRESS debug|production
 */
#include "host.h"
#include <linux/io_uring.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#define SECRET 0x1122334455667788

static uint64_t host_word = 0x0102030405060708;
static bool debug;
static void *volatile nowhere;

static int open_memory(const char *who, int flags)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/%s/mem", who);
	fd = open(path, flags);
	if (fd < 0)
		fail("cannot open %s", path);
	return fd;
}

/* A read that gives the word in a debug enclave, and EIO in any other. */
static void check_read(const char *name, ssize_t got, uint64_t value)
{
	if (debug)
		check(got == 8 && value == SECRET, name, "%zd bytes, %#lx", got, value);
	else
		check_errno(name, got, EIO);
}

static void read_ways(const char *who, uint64_t address)
{
	int fd = open_memory(who, O_RDONLY);
	uint64_t value = 0, half[2] = { 0 };
	struct iovec pieces[] = { { NULL, 0 }, { &value, 8 }, { half, 8 } };
	ssize_t got;

	got = pread(fd, &value, 8, address);
	check_read("pread", got, value);
	value = 0;
	got = preadv(fd, pieces, 3, address);
	check_read("preadv", got, value);
	value = 0;
	lseek(fd, address, SEEK_SET);
	got = read(fd, &value, 8);
	check_read("read", got, value);
	CHECK("the position", (uint64_t)lseek(fd, 0, SEEK_CUR) == address + (debug ? 8 : 0));
	value = 0;
	lseek(fd, address, SEEK_SET);
	got = preadv2(fd, pieces, 3, -1, 0);
	check_read("preadv2 at the position", got, value);
	CHECK("which moves", (uint64_t)lseek(fd, 0, SEEK_CUR) == address + (debug ? 8 : 0));
	if (debug) {
		lseek(fd, address, SEEK_SET);
		CHECK("a part", read(fd, half, 3) == 3 && half[0] == (SECRET & 0xffffff));
		CHECK("the rest", read(fd, half, 5) == 5);
		check_errno("a bad buffer", pread(fd, nowhere, 8, address), EFAULT);
	}
	check_errno("a write by O_RDONLY", pwrite(fd, &value, 8, address), EBADF);
	close(fd);
	/* The number means something else now. */
	fd = open("/dev/zero", O_RDONLY);
	value = 1;
	CHECK("another file by this number", pread(fd, &value, 8, address) == 8 && !value);
	close(fd);
	/* Of which /proc tells other things than of a file. */
	fd = syscall(SYS_io_uring_setup, 1, &(struct io_uring_params){ 0 });
	if (fd >= 0) {
		check_errno("a ring by this number", read(fd, &value, 8), EINVAL);
		close(fd);
	}
}

static void vm_ways(pid_t pid, uint64_t address)
{
	uint64_t words[2] = { 0, 0 };
	struct iovec local = { words, 16 };
	struct iovec remote[] = { { &host_word, 8 }, { (void *)address, 8 } };

	check_errno("process_vm_readv", process_vm_readv(pid, &local, 1, remote + 1, 1, 0), EFAULT);
	check_errno("process_vm_writev", process_vm_writev(pid, &local, 1, remote + 1, 1, 0),
		    EFAULT);
	CHECK("process_vm_readv of the host",
	      process_vm_readv(pid, &local, 1, remote, 1, 0) == 8 && words[0] == host_word);
	words[0] = 0;
	CHECK("process_vm_readv of both",
	      process_vm_readv(pid, &local, 1, remote, 2, 0) == 8 && words[0] == host_word);
}

static int other(char **argv)
{
	uint64_t address = strtoul(argv[3], NULL, 16);

	debug = !strcmp(argv[4], "debug");
	read_ways(argv[2], address);
	vm_ways(atoi(argv[2]), address);
	return failures;
}

static void in_child(bool executes, char **argv, uint64_t address)
{
	char pid[16], at[32], task[48];
	int status;

	snprintf(pid, sizeof(pid), "%d", getpid());
	snprintf(task, sizeof(task), "%d/task/%d", getpid(), getpid());
	snprintf(at, sizeof(at), "%lx", address);
	if (!fork()) {
		char *words[] = { argv[0], "read", pid, at, argv[3], NULL };

		if (executes)
			execv(words[0], words);
		read_ways(task, address);
		_exit(failures);
	}
	wait(&status);
	check_equal("the child's failures", status, 0);
}

int main(int argc, char **argv)
{
	struct enclave enclave = { .image = &the_image };
	struct op put = { .code = OP_PUT, .a = SECRET }, get = { .code = OP_GET };
	uint64_t address, value = 5, tcs_words[10];
	uint8_t both[16] __attribute__((unused));
	struct secs secs;
	int fd;

	if (argc > 4)
		return other(argv);
	begin(argc, argv);
	debug = !strcmp(argv[3], "debug");
	fd = open_memory("self", O_RDWR);
	CHECK("before there is an enclave",
	      pread(fd, &value, 8, (uint64_t)&host_word) == 8 && value == host_word);
	close(fd);
	enclave.fd = open_device();
	enclave.size = the_image.size;
	enclave.base = reserve(enclave.size);
	secs = enclave_secs(&enclave, debug ? ATTRIBUTE_DEBUG : 0);
	if (create(enclave.fd, &secs) || add_segments(enclave.fd, &the_image) ||
	    init(enclave.fd, sigstruct) || map_segments(&enclave))
		fail("building the enclave");
	address = at_symbol(&enclave, "kept");
	CHECK("put", do_op(&enclave, 0, &put));

	read_ways("self", address);
	read_ways("thread-self", address);
	vm_ways(getpid(), address);
	in_child(false, argv, address);
	in_child(true, argv, address);

	fd = open_memory("self", O_RDWR);
	CHECK("the host's memory", pread(fd, &value, 8, (uint64_t)&host_word) == 8 &&
					   value == host_word);
	value = 77;
	if (debug) {
		CHECK("pwrite", pwrite(fd, &value, 8, address) == 8);
		CHECK("get", do_op(&enclave, 0, &get) && get.out[0] == 77);
		lseek(fd, address, SEEK_SET);
		CHECK("write", write(fd, "\x4e", 1) == 1);
		CHECK("get again", do_op(&enclave, 0, &get) && get.out[0] == 78);
		CHECK("a TCS", pread(fd, tcs_words, 72, tcs(&enclave, 0)) == 72);
		check_errno("beyond its fields", pread(fd, tcs_words, 80, tcs(&enclave, 0)), EIO);
		check_errno("OSSA", pwrite(fd, tcs_words, 8, tcs(&enclave, 0) + 16), EIO);
		CHECK("FLAGS", pwrite(fd, "\1", 1, tcs(&enclave, 0) + 8) == 1);
	} else {
		check_errno("pwrite", pwrite(fd, &value, 8, address), EIO);
		CHECK("get", do_op(&enclave, 0, &get) && get.out[0] == SECRET);
		check_errno("a TCS", pread(fd, tcs_words, 72, tcs(&enclave, 0)), EIO);
	}
	return finish();
}
