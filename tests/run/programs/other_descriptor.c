/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ADD_PAGES holds on to the open file, not to its number: another thread puts another file there
 * while pages are added. Nor does a limit on the size of files concern it. Sources that are not
 * present, not readable or only partly there are those of get_user_pages.
 */
#include "host.h"

#include <sys/resource.h>

#define SIZE (32UL << 20)

static uint8_t *source;
static int victim;

static struct enclave made(void)
{
	struct enclave enclave = { .fd = open_device(), .base = reserve(SIZE), .size = SIZE,
				   .image = &the_image };
	struct secs secs = enclave_secs(&enclave, 0);

	secs.size = SIZE;
	if (create(enclave.fd, &secs))
		fail("CREATE");
	return enclave;
}

static void *exchange(void *enclave)
{
	unsigned char present;

	/* Only the ioctl touches the second half. */
	do {
		usleep(100);
		if (mincore(source + SIZE / 2, PAGE, &present))
			fail("mincore");
	} while (!(present & 1));
	dup2(victim, ((struct enclave *)enclave)->fd);
	return NULL;
}

static long added(int fd, void *source, uint64_t offset, uint64_t length)
{
	struct secinfo secinfo = { .flags = SECINFO_REG | SECINFO_R | SECINFO_W };
	struct sgx_enclave_add_pages argument = {
		.src = (uint64_t)source,
		.offset = offset,
		.length = length,
		.secinfo = (uint64_t)&secinfo,
	};
	int result = ioctl(fd, SGX_IOC_ENCLAVE_ADD_PAGES, &argument);

	return result && !argument.count ? -1 : (long)argument.count;
}

int main(int argc, char **argv)
{
	struct rlimit limit = { 1 << 16, 1 << 16 };
	struct enclave enclave;
	pthread_t thread;
	struct stat stat;

	begin(argc, argv);
	source = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	enclave = made();
	victim = memfd_create("victim", 0);
	if (write(victim, "hello", 5) != 5)
		fail("write");
	memset(source, 0x41, SIZE / 2);
	pthread_create(&thread, NULL, exchange, &enclave);
	check_equal("present and absent pages are added", added(enclave.fd, source, 0, SIZE - PAGE),
		    SIZE - PAGE);
	pthread_join(thread, NULL);
	fstat(victim, &stat);
	check_equal("the other file is as it was", stat.st_size, 5);

	enclave = made();
	setrlimit(RLIMIT_FSIZE, &limit);
	madvise(source, SIZE, MADV_DONTNEED);
	check_equal("under a limit on file sizes", added(enclave.fd, source, 0, 64 * PAGE), 64 * PAGE);
	memset(source, 1, 16 * PAGE);
	mprotect(source + 6 * PAGE, PAGE, PROT_NONE);
	check_equal("up to a page that may not be read",
		    added(enclave.fd, source, 64 * PAGE, 16 * PAGE), 6 * PAGE);
	check_errno("from that page on",
		    added(enclave.fd, source + 6 * PAGE, 80 * PAGE, 2 * PAGE), EFAULT);
	mprotect(source + 6 * PAGE, PAGE, PROT_WRITE);
	check_errno("a page that may only be written",
		    added(enclave.fd, source + 6 * PAGE, 80 * PAGE, 2 * PAGE), EFAULT);
	munmap(source + 5 * PAGE, PAGE);
	madvise(source, SIZE, MADV_DONTNEED);
	check_equal("up to a hole, no page present",
		    added(enclave.fd, source + 2 * PAGE, 96 * PAGE, 16 * PAGE), 3 * PAGE);
	return finish();
}
