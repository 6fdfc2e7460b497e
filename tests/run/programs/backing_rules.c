/* SPDX-License-Identifier: Apache-2.0 */
/* What SGX_IOC_ENCLAVE_SET_BACKING refuses, and what it takes, of a real program's memory and files. */
#include "host.h"
#include "set_backing.h"

#include <sys/prctl.h>

#define SIZE (1UL << 20)
#define CONTENTS (SIZE + PAGE)
#define PCMDS ((CONTENTS / 32 + PAGE - 1) & -PAGE)
#define SINGLE ((CONTENTS + CONTENTS / 32 + PAGE - 1) & -PAGE)

static uint64_t range; /* where all enclaves are: none of them is ever mapped */

static int created(void)
{
	int fd = open_device();
	struct enclave enclave = { .fd = fd, .base = range, .size = SIZE };
	struct secs secs = enclave_secs(&enclave, 0);

	if (create(fd, &secs))
		fail("CREATE");
	return fd;
}

static int set(int fd, struct sgx_enclave_set_backing argument)
{
	return ioctl(fd, SGX_IOC_ENCLAVE_SET_BACKING, &argument);
}

static struct sgx_enclave_set_backing in_memory(const void *at)
{
	return (struct sgx_enclave_set_backing){
		.flags = SGX_BACKING_VMA,
		.contents = (uint64_t)at,
		.contents_len = SINGLE,
		.contents_fd = -1,
		.pcmd_fd = -1,
	};
}

static struct sgx_enclave_set_backing in_file(int file)
{
	return (struct sgx_enclave_set_backing){
		.flags = SGX_BACKING_FD,
		.contents_len = SINGLE,
		.contents_fd = file,
		.pcmd_fd = -1,
	};
}

static uint8_t *mapping(int prot, int flags, int fd)
{
	void *at = mmap(NULL, SINGLE, prot, flags, fd, 0);

	if (at == MAP_FAILED)
		fail("mmap");
	return at;
}

static uint8_t *memory(void)
{
	return mapping(PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
}

static int file(int flags)
{
	int fd = memfd_create("store", MFD_CLOEXEC | flags);

	if (fd < 0 || ftruncate(fd, 2 * SINGLE))
		fail("memfd");
	return fd;
}

static void when(void)
{
	struct sgx_enclave_set_backing none = { .flags = SGX_BACKING_NONE, .contents_fd = -1, .pcmd_fd = -1 };
	int fd = open_device();
	uint8_t *at;
	static uint8_t page[PAGE] __attribute__((aligned(PAGE)));

	check_errno("before CREATE", set(fd, none), EINVAL);
	close(fd);
	fd = created();
	check_errno("no argument", ioctl(fd, SGX_IOC_ENCLAVE_SET_BACKING, NULL), EFAULT);
	at = memory();
	munmap(at + PAGE, PAGE);
	check_errno("half an argument", ioctl(fd, SGX_IOC_ENCLAVE_SET_BACKING, at + PAGE - 32),
		    EFAULT);
	check_works("none", set(fd, none));
	check_errno("a second time", set(fd, none), EBUSY);
	close(fd);
	fd = created();
	check_works("a page", add_pages(fd, page, 0, PAGE, SECINFO_REG | SECINFO_R, false));
	check_errno("after a page", set(fd, none), EINVAL);
	close(fd);
}

static void of_memory(void)
{
	int fd = created(), other, both;
	uint8_t *at = memory(), *shared;

	mprotect(at + PAGE, PAGE, PROT_NONE);
	check_errno("a page without protection", set(fd, in_memory(at)), EFAULT);
	mprotect(at + PAGE, PAGE, PROT_READ);
	check_errno("a page that is read-only", set(fd, in_memory(at)), EFAULT);
	mprotect(at + PAGE, PAGE, PROT_WRITE | PROT_READ);
	munmap(at + SINGLE - PAGE, PAGE);
	check_errno("a hole at the end", set(fd, in_memory(at)), EFAULT);
	at = memory();
	munmap(at, PAGE);
	check_errno("a hole at the start", set(fd, in_memory(at)), EFAULT);
	check_errno("beyond all memory", set(fd, in_memory((void *)((1UL << 47) - PAGE))), EFAULT);
	check_errno("a kernel's address", set(fd, in_memory((void *)0xffff888000000000)), EINVAL);
	check_errno("text", set(fd, in_memory((void *)((uint64_t)of_memory & -PAGE))), EFAULT);

	/* Memory that is an enclave's: get_user_pages would refuse it too. */
	other = created();
	at = memory();
	if (mmap(at + 8 * PAGE, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, other, 0) ==
	    MAP_FAILED)
		fail("mapping an enclave");
	check_errno("memory of an enclave", set(fd, in_memory(at)), EFAULT);
	close(other);

	at = memory();
	check_works("memory", set(fd, in_memory(at)));
	other = created();
	check_errno("another enclave's", set(other, in_memory(at)), EBUSY);
	close(fd);
	check_works("and not any more", set(other, in_memory(at)));
	close(other);

	/* The same file, mapped and by its descriptor. */
	both = file(0);
	shared = mapping(PROT_READ | PROT_WRITE, MAP_SHARED, both);
	fd = created();
	other = created();
	check_works("a file that is mapped", set(fd, in_memory(shared)));
	check_errno("the same by its descriptor", set(other, in_file(both)), EBUSY);
	check_errno("the same mapped elsewhere",
		    set(other, in_memory(mapping(PROT_READ | PROT_WRITE, MAP_SHARED, both))), EBUSY);
	close(fd);
	close(other);
}

static void of_files(void)
{
	int fd = created(), other, some = file(0), ends[2];
	char path[40];

	check_errno("no file", set(fd, in_file(-1)), EBADF);
	check_errno("a number of none", set(fd, in_file(999)), EBADF);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", some);
	other = open(path, O_RDONLY);
	check_errno("open for reading", set(fd, in_file(other)), EACCES);
	close(other);
	other = open(path, O_WRONLY);
	check_errno("open for writing", set(fd, in_file(other)), EACCES);
	close(other);
	other = open(path, O_PATH);
	check_errno("a path", set(fd, in_file(other)), EBADF);
	close(other);
	other = file(MFD_ALLOW_SEALING);
	fcntl(other, F_ADD_SEALS, F_SEAL_WRITE);
	check_errno("sealed", set(fd, in_file(other)), EACCES);
	close(other);
	if (pipe(ends))
		fail("pipe");
	check_errno("a pipe, which is open for one only", set(fd, in_file(ends[0])), EACCES);
	other = open("/dev/zero", O_RDWR);
	check_errno("a device", set(fd, in_file(other)), EOPNOTSUPP);
	close(other);
	other = open_device();
	check_errno("an enclave", set(fd, in_file(other)), EOPNOTSUPP);
	check_errno("itself", set(fd, in_file(fd)), EOPNOTSUPP);
	close(other);
	other = open("/dev/sgx_provision", O_RDWR);
	check_errno("the provision node", set(fd, in_file(other)), EOPNOTSUPP);
	close(other);

	struct sgx_enclave_set_backing argument = in_file(some);

	argument.flags |= SGX_BACKING_SYNC;
	check_errno("synchronous", set(fd, argument), EOPNOTSUPP);
	ftruncate(some, SINGLE - 1);
	check_errno("too short", set(fd, in_file(some)), ENOSPC);
	ftruncate(some, SINGLE);
	check_works("a file", set(fd, in_file(some)));
	other = created();
	check_errno("another enclave's", set(other, in_file(some)), EBUSY);
	close(fd);
	check_works("and not any more", set(other, in_file(some)));
	close(other);
	close(some);
}

/* Another process has other memory at the same address, and may have the same file. */
static void of_a_child(void)
{
	uint8_t *at = memory();
	int fd = created(), status;

	check_works("memory", set(fd, in_memory(at)));
	if (!fork()) {
		int own = created();

		check_works("the child's at the same address", set(own, in_memory(at)));
		_exit(failures);
	}
	wait(&status);
	check_equal("the child", status, 0);
	close(fd);
}

static void not_dumpable(void)
{
	int fd, some = file(0);

	prctl(PR_SET_DUMPABLE, 0);
	fd = created();
	check_works("memory that /proc does not show", set(fd, in_memory(memory())));
	close(fd);
	fd = created();
	check_works("a file that /proc does not show", set(fd, in_file(some)));
	close(fd);
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	range = reserve(SIZE);
	when();
	of_memory();
	of_files();
	of_a_child();
	not_dumpable();
	return finish();
}
