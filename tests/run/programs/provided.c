/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An enclave larger than the EPC whose evicted pages go where the program says.
 *
 *     provided ENCLAVE SIGSTRUCT BYTES WHERE WHAT
 *
 * BYTES of the enclave's heap are used. WHERE is memory, memory-two (two ranges), shared (a mapping of
 * a memfd), create (memory, by the CREATE of November 2018), punched (a memfd that gets holes); file or
 * file-two (the PCMDs in a memfd), a new one in the current directory; or file=PATH, which is there. WHAT is
 *     hash      fill, hash and hash again
 *     walk      the same, and what is in the store is not what is in the enclave
 *     protect   take the store's protection away while pages are in it, and give it back
 *     unmap     put something else in its place, and put it back
 *     truncate  make the file shorter, and put back what was in it
 *     flip      change a bit of a page, then of a PCMD, and change it back
 *     swap      exchange two pages
 *     replay    put an older copy of a page back
 *     late      a page of the store is the program's to supply, by userfaultfd, and comes when another
 *               enclave has done something
 *     exit      the process whose memory is the store ends; a child of it still has the enclave
 *     exec      it executes another program instead
 */
#include "host.h"
#include "set_backing.h"

#include <linux/userfaultfd.h>
#include <sys/syscall.h>

struct store {
	uint8_t *contents, *pcmds; /* as this process sees them */
	uint64_t contents_length, pcmds_length;
	int fd; /* of the contents, -1 for memory */
};

static struct enclave enclave;
static struct store store;
static uint64_t heap, bytes;

static uint64_t whole_pages(uint64_t length)
{
	return (length + PAGE - 1) & -PAGE;
}

static uint8_t *map_file(int fd, uint64_t length)
{
	void *at = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	if (at == MAP_FAILED)
		fail("cannot map %#lx bytes of a file", length);
	return at;
}

static int new_file(const char *path, uint64_t length)
{
	int fd = path ? open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600) :
			memfd_create("store", MFD_CLOEXEC);

	if (fd < 0 || ftruncate(fd, length))
		fail("cannot make a file of %#lx bytes", length);
	if (path)
		unlink(path);
	return fd;
}

static uint8_t *anonymous(uint64_t length)
{
	void *at = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (at == MAP_FAILED)
		fail("no memory for a store of %#lx bytes", length);
	return at;
}

/* Make the store and give the argument that names it. */
static struct sgx_enclave_set_backing make_store(const char *where, uint64_t size)
{
	bool two = strstr(where, "-two"), in_file = !strncmp(where, "file", 4) || !strcmp(where, "punched");
	uint64_t S = size + PAGE, all = whole_pages(S + S / 32);
	struct sgx_enclave_set_backing argument = { .contents_fd = -1, .pcmd_fd = -1 };

	store.fd = -1;
	store.contents_length = two ? S : all;
	store.pcmds_length = two ? whole_pages(S / 32) : 0;
	if (in_file) {
		int pcmd_fd = two ? new_file(NULL, store.pcmds_length) : -1;

		const char *path = strcmp(where, "punched") ? "store" : NULL;

		store.fd = where[4] == '=' ? open(where + 5, O_RDWR | O_CLOEXEC) :
					     new_file(path, store.contents_length);
		if (store.fd < 0)
			fail("cannot open %s", where);
		if (where[4] != '=') /* FUSE's own cannot always be mapped */
			store.contents = map_file(store.fd, store.contents_length);
		store.pcmds = two ? map_file(pcmd_fd, store.pcmds_length) : store.contents + S;
		argument.contents_fd = store.fd;
		argument.pcmd_fd = pcmd_fd;
	} else {
		store.contents = strcmp(where, "shared") ?
					 anonymous(store.contents_length) :
					 map_file(new_file(NULL, all), all);
		store.pcmds = two ? anonymous(store.pcmds_length) : store.contents + S;
		argument.contents = (uint64_t)store.contents;
		argument.pcmd = two ? (uint64_t)store.pcmds : 0;
	}
	argument.flags = (in_file ? SGX_BACKING_FD : SGX_BACKING_VMA) |
			 (two ? SGX_BACKING_SEPARATE : 0) |
			 (strcmp(where, "punched") ? 0 : SGX_BACKING_PUNCH);
	argument.contents_len = store.contents_length;
	argument.pcmd_len = store.pcmds_length;
	return argument;
}

static void build_with(const char *where)
{
	struct sgx_enclave_set_backing argument;
	struct secs secs;

	enclave = (struct enclave){
		.fd = open_device(),
		.base = reserve(the_image.size),
		.size = the_image.size,
		.image = &the_image,
	};
	secs = enclave_secs(&enclave, 0);
	argument = make_store(where, enclave.size);
	if (!strcmp(where, "create")) {
		struct sgx_enclave_create_backing both = {
			.src = (uint64_t)&secs,
			.backing = argument.contents,
		};

		check_works("CREATE with a backing",
			    ioctl(enclave.fd, SGX_IOC_ENCLAVE_CREATE_BACKING, &both));
	} else {
		check_works("CREATE", create(enclave.fd, &secs));
		check_works("SET_BACKING",
			    ioctl(enclave.fd, SGX_IOC_ENCLAVE_SET_BACKING, &argument));
	}
	/* The store is the enclave's own: the program's descriptor is needed no longer. */
	if (argument.pcmd_fd >= 0)
		close(argument.pcmd_fd);
	if (add_segments(enclave.fd, &the_image) || init(enclave.fd, sigstruct) ||
	    map_segments(&enclave))
		fail("building the enclave");
	heap = at_symbol(&enclave, "heap_begin");
}

static bool fill(uint64_t seed)
{
	struct op op = { .code = OP_FILL, .a = heap, .b = bytes, .c = seed };

	return do_op(&enclave, 0, &op);
}

static void expect(uint64_t seed, uint64_t *hash, uint64_t *sum)
{
	*hash = *sum = 0;
	for (uint64_t i = 0; i < bytes / 8; i++) {
		seed = next_word(seed);
		*hash = mix_word(*hash, seed);
		*sum += seed;
	}
}

static bool right(const struct op *op, uint64_t seed)
{
	uint64_t hash, sum;

	expect(seed, &hash, &sum);
	return op->out[0] == hash && op->out[1] == sum;
}

static bool is_filled(uint64_t seed)
{
	struct op op = { .code = OP_HASH, .a = heap, .b = bytes };

	return do_op(&enclave, 0, &op) && right(&op, seed);
}

/* ---- what is in the store ----------------------------------------------------------------- */

static const uint64_t *pcmd_of(uint64_t index)
{
	return (const uint64_t *)(store.pcmds + index * 128);
}

/* A MAC is there: the page is evicted, and is not on its way. */
static bool is_evicted(uint64_t index)
{
	return pcmd_of(index)[14] || pcmd_of(index)[15];
}

static uint64_t heap_index(uint64_t page)
{
	return (heap - enclave.base) / PAGE + page;
}

/*
 * The number of the first evicted page of the heap from this one on. What an entry needs is resident
 * then, so that this page is the first to be missed.
 */
static uint64_t evicted_page(uint64_t page)
{
	struct op op = { .code = OP_TOUCH, .a = heap + bytes - PAGE, .b = PAGE, .c = 1 };

	if (!do_op(&enclave, 0, &op))
		fail("entering the enclave");
	while (page < bytes / PAGE && !is_evicted(heap_index(page)))
		page++;
	if (page == bytes / PAGE)
		fail("no page of the heap is evicted");
	return page;
}

/* One page of the heap: what its words are is right, or a fault. */
static int touch(uint64_t page, struct sgx_enclave_run *run)
{
	struct op op = { .code = OP_TOUCH, .a = heap + page * PAGE, .b = PAGE, .c = 1 };

	return enter(run, tcs(&enclave, 0), &op) == 0 ? (int)run->function : -1;
}

static bool faults(uint64_t page)
{
	struct sgx_enclave_run run;

	return touch(page, &run) == ERESUME && run.exception_vector == VECTOR_PF &&
	       run.exception_addr == heap + page * PAGE;
}

/* The access that has faulted is made again. */
static bool faults_again(uint64_t page)
{
	struct sgx_enclave_run run = { .tcs = tcs(&enclave, 0) };

	return call_vdso(0, 0, 0, ERESUME, 0, 0, &run) == 0 && run.function == ERESUME &&
	       run.exception_vector == VECTOR_PF && run.exception_addr == heap + page * PAGE;
}

/* The access that has faulted is made again, and all that was asked for is done. */
static bool goes_on(void)
{
	struct sgx_enclave_run run = { .tcs = tcs(&enclave, 0) };

	return call_vdso(0, 0, 0, ERESUME, 0, 0, &run) == 0 && run.function == EEXIT;
}

static void hash(void)
{
	CHECK("filled", fill(1));
	CHECK("hashed", is_filled(1));
	CHECK("hashed again", is_filled(1));
}

static void walk(void)
{
	uint64_t word = 1, plain = 0, wrong_type = 0, evicted = 0;
	uint64_t *words = malloc(bytes), *pcmds = malloc(bytes / PAGE * 128);

	for (uint64_t i = 0; i < bytes / 8; i++)
		words[i] = word = next_word(word);
	CHECK("filled", fill(1));
	CHECK("hashed", is_filled(1));
	/* At one time: of the pages that have just come back, the PCMDs are still being cleared. */
	memcpy(pcmds, pcmd_of(heap_index(0)), bytes / PAGE * 128);
	for (uint64_t page = 0; page < bytes / PAGE; page++) {
		const uint64_t *pcmd = pcmds + page * 16;
		const uint64_t *slot = (const uint64_t *)(store.contents + heap_index(page) * PAGE);

		if (!pcmd[14] && !pcmd[15])
			continue;
		evicted++;
		wrong_type += pcmd[0] != (SECINFO_REG | SECINFO_R | SECINFO_W);
		for (uint64_t i = 0; i < PAGE / 8; i++)
			plain += slot[i] == words[page * (PAGE / 8) + i];
	}
	check(evicted > bytes / PAGE / 2, "most of it is in the store", "%lu pages", evicted);
	check_equal("words in the clear", plain, 0);
	check_equal("PCMDs of another type", wrong_type, 0);
	CHECK("hashed again", is_filled(1));
}

/* ---- a store that fails, and is mended ---------------------------------------------------- */

static void protect(void)
{
	uint64_t page;

	CHECK("filled", fill(2));
	page = evicted_page(0);
	mprotect(store.contents, store.contents_length, PROT_NONE);
	CHECK("a page out of reach faults", faults(page));
	mprotect(store.contents, store.contents_length, PROT_READ | PROT_WRITE);
	CHECK("and is there again", goes_on());
	CHECK("nothing is lost", is_filled(2));
}

static void move(uint8_t *from, uint8_t *to)
{
	if (mremap(from, store.contents_length, store.contents_length,
		   MREMAP_MAYMOVE | MREMAP_FIXED, to) != to)
		fail("mremap");
}

static void unmap(void)
{
	uint8_t *elsewhere = (uint8_t *)reserve(1 << 24);
	uint64_t page;

	CHECK("filled", fill(3));
	page = evicted_page(0);
	move(store.contents, elsewhere);
	CHECK("a page that is not mapped faults", faults(page));
	CHECK("and again", faults_again(page));
	move(elsewhere, store.contents);
	CHECK("and is there again", goes_on());
	CHECK("nothing is lost", is_filled(3));
}

static void change_back(const char *name, uint64_t page, uint8_t *at)
{
	*at ^= 0x10;
	check(faults(page), name, "no fault");
	*at ^= 0x10;
	CHECK("and is there again", goes_on());
}

static void flip(void)
{
	uint64_t page;

	CHECK("filled", fill(4));
	page = evicted_page(0);
	change_back("a flipped bit faults", page,
		    store.contents + heap_index(page) * PAGE + 1234);
	page = evicted_page(0);
	change_back("a flipped bit of the MAC faults", page, store.pcmds + heap_index(page) * 128 + 120);
	page = evicted_page(0);
	change_back("a flipped bit of the type faults", page, store.pcmds + heap_index(page) * 128 + 1);
	CHECK("nothing is lost", is_filled(4));
}

static void exchange(uint64_t a, uint64_t b)
{
	uint8_t page[PAGE], pcmd[128];

	memcpy(page, store.contents + heap_index(a) * PAGE, PAGE);
	memcpy(pcmd, store.pcmds + heap_index(a) * 128, 128);
	memcpy(store.contents + heap_index(a) * PAGE, store.contents + heap_index(b) * PAGE, PAGE);
	memcpy(store.pcmds + heap_index(a) * 128, store.pcmds + heap_index(b) * 128, 128);
	memcpy(store.contents + heap_index(b) * PAGE, page, PAGE);
	memcpy(store.pcmds + heap_index(b) * 128, pcmd, 128);
}

static void swap(void)
{
	uint64_t one, other;

	CHECK("filled", fill(5));
	one = evicted_page(0);
	other = evicted_page(one + 1);
	exchange(one, other);
	CHECK("the one page faults", faults(one));
	exchange(one, other);
	CHECK("and is there again", goes_on());
	CHECK("nothing is lost", is_filled(5));
}

static void replay(void)
{
	uint64_t page;
	uint8_t old_page[PAGE], old_pcmd[128], new_page[PAGE], new_pcmd[128];
	uint8_t *at, *pcmd;

	CHECK("filled", fill(6));
	page = evicted_page(0);
	at = store.contents + heap_index(page) * PAGE;
	pcmd = store.pcmds + heap_index(page) * 128;
	memcpy(old_page, at, PAGE);
	memcpy(old_pcmd, pcmd, 128);
	do {
		CHECK("filled anew", fill(7));
	} while (!is_evicted(heap_index(page)));
	memcpy(new_page, at, PAGE);
	memcpy(new_pcmd, pcmd, 128);
	memcpy(at, old_page, PAGE);
	memcpy(pcmd, old_pcmd, 128);
	CHECK("an older copy faults", faults(page));
	memcpy(at, new_page, PAGE);
	memcpy(pcmd, new_pcmd, 128);
	CHECK("and the newer is there again", goes_on());
	CHECK("nothing is lost", is_filled(7));
}

/* The file as it is when nothing goes out or comes in any more: that goes on when nobody waits for it. */
static void read_at_rest(uint8_t *copy)
{
	uint8_t *again = malloc(store.contents_length);
	ssize_t length = store.contents_length;

	for (int same = 0; same < 3; same++) {
		if (pread(store.fd, again, length, 0) != length)
			fail("reading the store");
		if (memcmp(copy, again, length))
			same = -1;
		memcpy(copy, again, length);
		usleep(20000);
	}
	free(again);
}

/* What truncating has taken, and only that: other pages have gone out since. */
static void put_back(const uint8_t *was, uint64_t length)
{
	static const uint8_t zeros[128];
	uint8_t *now = calloc(1, length);

	read_at_rest(now);
	for (uint64_t at = 0; at < length; at += 128)
		if (memcmp(was + at, zeros, 128) && !memcmp(now + at, zeros, 128) &&
		    pwrite(store.fd, was + at, 128, at) != 128)
			fail("putting the store back");
	free(now);
}

static void truncated(void)
{
	uint8_t *copy = calloc(1, store.contents_length);
	uint64_t page;

	CHECK("filled", fill(8));
	page = evicted_page(0);
	read_at_rest(copy);
	if (ftruncate(store.fd, PAGE))
		fail("truncating the store");
	CHECK("a page beyond the end faults", faults(page));
	if (ftruncate(store.fd, store.contents_length))
		fail("ftruncate");
	CHECK("a page of zeros faults too", faults_again(page));
	put_back(copy, store.contents_length);
	CHECK("and is there again", goes_on());
	CHECK("nothing is lost", is_filled(8));
}

/* ---- a store that comes late -------------------------------------------------------------- */

static struct enclave other;

/* Answer one fault: first another enclave does something, then the page is given. */
static void *supply(void *argument)
{
	uint8_t *copy = (uint8_t *)argument + PAGE;
	int uffd = *(int *)argument;
	struct op put = { .code = OP_PUT, .a = 0x1a7e }, get = { .code = OP_GET };
	struct uffdio_copy given = { .src = (uint64_t)copy, .len = PAGE };
	struct uffd_msg message;

	if (read(uffd, &message, sizeof(message)) != sizeof(message))
		fail("reading a userfaultfd");
	CHECK("the page was missed", message.event == UFFD_EVENT_PAGEFAULT);
	CHECK("another enclave is not kept waiting",
	      do_op(&other, 0, &put) && do_op(&other, 0, &get) && get.out[0] == 0x1a7e);
	given.dst = message.arg.pagefault.address & -PAGE;
	check_works("the page is given", ioctl(uffd, UFFDIO_COPY, &given));
	return NULL;
}

static void late(void)
{
	static uint8_t shared[2 * PAGE] __attribute__((aligned(PAGE)));
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register range = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	struct sgx_enclave_run run;
	pthread_t thread;
	uint64_t page, at;
	int uffd = syscall(SYS_userfaultfd, O_CLOEXEC);

	if (uffd < 0) {
		dprintf(1, "skip userfaultfd: %s\n", strerror(errno));
		_exit(SKIPPED);
	}
	other = build(&the_image);
	CHECK("filled", fill(10));
	page = evicted_page(0);
	at = heap_index(page) * PAGE;
	memcpy(shared + PAGE, store.contents + at, PAGE);
	*(int *)shared = uffd;
	range.range.start = (uint64_t)store.contents + at;
	range.range.len = PAGE;
	if (ioctl(uffd, UFFDIO_API, &api) || ioctl(uffd, UFFDIO_REGISTER, &range) ||
	    madvise(store.contents + at, PAGE, MADV_REMOVE))
		fail("a page for userfaultfd");
	if (pthread_create(&thread, NULL, supply, shared))
		fail("pthread_create");
	CHECK("a page that comes late is there in the end", touch(page, &run) == EEXIT);
	pthread_join(thread, NULL);
	CHECK("nothing is lost", is_filled(10));
}

/* ---- a store that ends -------------------------------------------------------------------- */

/* In a child, when the process whose memory is the store has gone: its enclave has, too. */
static void orphaned(int gone, uint64_t page)
{
	struct sgx_enclave_run run;
	char byte;

	if (read(gone, &byte, 1))
		fail("the pipe's other end is closed by who ends");
	/* Its own memory perhaps, or that of the entry: the enclave may have been killed already. */
	CHECK("a page in the memory of no process is out of reach", touch(page, &run) != EEXIT);
	check_equal("it is a fault", run.exception_vector, VECTOR_PF);
	check_errno("the enclave was killed", init(enclave.fd, sigstruct), EIO);
	enter(&run, tcs(&enclave, 1), &(struct op){ .code = OP_GET });
	check_equal("nobody enters it any more", run.exception_vector, VECTOR_PF);
	_exit(finish());
}

static void ends(bool by_exec)
{
	int gone[2], over[2];
	uint64_t page;

	CHECK("filled", fill(9));
	page = evicted_page(0);
	if (pipe2(gone, O_CLOEXEC) || pipe2(over, 0))
		fail("pipe");
	if (!fork()) {
		close(gone[1]);
		close(over[0]);
		orphaned(gone[0], page);
	}
	close(over[1]);
	if (!by_exec)
		_exit(0);
	/* It ends when the child does. */
	dup2(over[0], 0);
	execlp("cat", "cat", NULL);
	fail("cat");
}

int main(int argc, char **argv)
{
	const char *what;

	begin(argc, argv);
	if (argc < 6)
		fail("usage: provided ENCLAVE SIGSTRUCT BYTES WHERE WHAT");
	bytes = strtoul(argv[3], NULL, 0);
	what = argv[5];
	build_with(argv[4]);
	if (!strcmp(what, "hash"))
		hash();
	else if (!strcmp(what, "walk"))
		walk();
	else if (!strcmp(what, "protect"))
		protect();
	else if (!strcmp(what, "unmap"))
		unmap();
	else if (!strcmp(what, "truncate"))
		truncated();
	else if (!strcmp(what, "flip"))
		flip();
	else if (!strcmp(what, "swap"))
		swap();
	else if (!strcmp(what, "replay"))
		replay();
	else if (!strcmp(what, "late"))
		late();
	else if (!strcmp(what, "exit") || !strcmp(what, "exec"))
		ends(what[2] == 'e');
	else
		fail("no %s", what);
	return finish();
}
