/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An enclave larger than the EPC, of which no word is 0, read again and again until somebody ends it.
 *
 *     zero_watch ENCLAVE SIGSTRUCT BYTES FILE WHERE
 *
 * BYTES of the enclave's heap are read: by two threads inside, by one outside, and inside by a child that
 * was forked. WHERE the evicted pages go is kernel, or memory: this process's own, which the enclave
 * does not outlive, and the child does. FILE is made when the heap is filled; it gets a struct watched
 * from each reader, for nobody can leave an enclave to tell anything when the supervisor is dead.
 */
#include "host.h"
#include "set_backing.h"

#define INSIDE 2
#define WATCHERS (INSIDE + 2)

static struct enclave enclave;
static struct watched *seen;
static uint64_t heap, bytes;

static void *inside(void *argument)
{
	uintptr_t index = (uintptr_t)argument;
	struct op op = { .code = OP_WATCH, .a = heap, .b = bytes, .c = (uint64_t)&seen[index] };
	struct sgx_enclave_run run;

	/* It comes back when a word was 0, or the enclave was killed. */
	enter(&run, tcs(&enclave, index), &op);
	_exit(seen[index].zero_at ? 2 : 3);
}

static void build_with_own_memory(void)
{
	struct sgx_enclave_set_backing argument = { .flags = SGX_BACKING_VMA, .contents_fd = -1, .pcmd_fd = -1 };
	struct secs secs;

	enclave = (struct enclave){
		.fd = open_device(),
		.base = reserve(the_image.size),
		.size = the_image.size,
		.image = &the_image,
	};
	secs = enclave_secs(&enclave, 0);
	argument.contents_len = (enclave.size + PAGE + (enclave.size + PAGE) / 32 + PAGE - 1) & -PAGE;
	argument.contents = (uint64_t)mmap(NULL, argument.contents_len, PROT_READ | PROT_WRITE,
					   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (create(enclave.fd, &secs) || ioctl(enclave.fd, SGX_IOC_ENCLAVE_SET_BACKING, &argument) ||
	    add_segments(enclave.fd, &the_image) || init(enclave.fd, sigstruct) ||
	    map_segments(&enclave))
		fail("building the enclave");
}

int main(int argc, char **argv)
{
	pthread_t thread;
	struct op op = { .code = OP_FILL, .c = 1 };
	bool own_memory;
	int file;

	begin(argc, argv);
	if (argc < 6)
		fail("usage: zero_watch ENCLAVE SIGSTRUCT BYTES FILE WHERE");
	own_memory = !strcmp(argv[5], "memory");
	if (own_memory)
		build_with_own_memory();
	else
		enclave = build(&the_image);
	heap = at_symbol(&enclave, "heap_begin");
	bytes = strtoul(argv[3], NULL, 0);
	op.a = heap;
	op.b = bytes;
	if (!do_op(&enclave, 0, &op))
		fail("filling the enclave");
	file = open(argv[4], O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (file < 0 || ftruncate(file, WATCHERS * sizeof(*seen)))
		fail("cannot make %s", argv[4]);
	seen = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	if (seen == MAP_FAILED)
		fail("cannot map %s", argv[4]);
	if (own_memory ? !fork() : !fork_bound())
		inside((void *)(INSIDE + 1UL));
	for (uintptr_t i = 0; i < INSIDE; i++)
		if (pthread_create(&thread, NULL, inside, (void *)i))
			fail("pthread_create");
	watch((const volatile uint64_t *)heap, bytes, &seen[INSIDE]);
	_exit(2);
}
