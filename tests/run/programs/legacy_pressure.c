/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An enclave larger than the EPC, by the ABI of the older drivers, whose pages wait to be added in
 * the place where they will lie when they are evicted.
 *
 *     legacy_pressure ENCLAVE SIGSTRUCT NODE DRIVER BYTES WHERE
 *
 * BYTES of the enclave's heap are used. WHERE that place is: kernel (the driver's own), memory,
 * create (memory, named by CREATE), or none.
 */
#include "legacy.h"
#include "set_backing.h"

static struct enclave enclave;
static uint64_t bytes, length;
static uint8_t *store;
static int fd;

static bool is_zero(const uint8_t *page)
{
	for (unsigned i = 0; i < PAGE; i++)
		if (page[i])
			return false;
	return true;
}

static void make_store(uint64_t size)
{
	uint64_t contents = size + PAGE;

	length = (contents + contents / 32 + PAGE - 1) & -PAGE;
	store = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (store == MAP_FAILED)
		fail("no memory for a store");
}

static void set_backing(uint64_t flags, uint64_t base)
{
	struct sgx_enclave_set_backing argument = {
		.flags = flags,
		.contents = (uint64_t)store,
		.contents_len = length,
		.contents_fd = -1,
		.pcmd_fd = -1,
		.enclave = base,
	};

	check_works("SET_BACKING", ioctl(fd, SGX_IOC_ENCLAVE_SET_BACKING, &argument));
}

static void create_with(const char *where)
{
	struct secs secs;

	enclave = (struct enclave){ .fd = fd, .size = the_image.size, .image = &the_image };
	enclave.base = legacy_map(fd, enclave.size, PROT_READ | PROT_WRITE | PROT_EXEC);
	secs = enclave_secs(&enclave, 0);
	if (!strcmp(where, "memory") || !strcmp(where, "create"))
		make_store(enclave.size);
	if (!strcmp(where, "create")) {
		struct sgx_enclave_create_backing both = { (uint64_t)&secs, (uint64_t)store };

		check_works("CREATE with a backing",
			    ioctl(fd, SGX_IOC_ENCLAVE_CREATE_BACKING, &both));
		return;
	}
	check_works("CREATE", create(fd, &secs));
	if (!strcmp(where, "none"))
		set_backing(SGX_BACKING_NONE, enclave.base);
	else if (store)
		set_backing(SGX_BACKING_VMA, enclave.base);
}

/* A page that ADD_PAGE has taken lies in its place as it was given, or has left no trace there. */
static int add_watched(const struct segment *segment, uint64_t at)
{
	const uint8_t *slot = store + segment->offset + at;
	int result = legacy_add(fd, enclave.base + segment->offset + at, segment->data + at,
				segment->secinfo, 0xffff);

	if (!store || result)
		return result;
	if (memcmp(slot, segment->data + at, PAGE) && !is_zero(slot))
		CHECK("what waits is what was given", false);
	return 0;
}

static int add_all(void)
{
	for (int i = 0; i < the_image.segments; i++)
		for (uint64_t at = 0; at < the_image.segment[i].length; at += PAGE) {
			int result = add_watched(&the_image.segment[i], at);

			if (result)
				return result;
		}
	return 0;
}

/* None of the pages of the enclave is in the store as it is in the enclave. */
static void check_store(void)
{
	uint64_t plain = 0, held = 0;

	for (int i = 0; i < the_image.segments; i++)
		for (uint64_t at = 0; at < the_image.segment[i].length; at += PAGE) {
			const uint8_t *slot = store + the_image.segment[i].offset + at;

			held += !is_zero(slot);
			plain += !is_zero(slot) &&
				 !memcmp(slot, the_image.segment[i].data + at, PAGE);
		}
	check_equal("pages that lie there as they were given", plain, 0);
	CHECK("pages lie there", held > 0);
}

static void walk(void)
{
	uint64_t heap = at_symbol(&enclave, "heap_begin"), word = 1, hash = 0;
	struct op op = { .code = OP_FILL, .a = heap, .b = bytes, .c = 1 };

	for (uint64_t i = 0; i < bytes / 8; i++) {
		word = next_word(word);
		hash = mix_word(hash, word);
	}
	CHECK("filled", do_op(&enclave, 0, &op));
	for (int turn = 0; turn < 2; turn++) {
		op = (struct op){ .code = OP_HASH, .a = heap, .b = bytes };
		CHECK("hashed", do_op(&enclave, 0, &op));
		check_equal("the hash", op.out[0], hash);
	}
}

/* The EPC is full of what cannot be evicted: ENOMEM, and the enclave is as it was. */
static void without(void)
{
	int added = -1, result;

	do
		result = legacy_add(fd, enclave.base + ++added * PAGE, sigstruct, SECINFO_REG | 3, 0);
	while (!result);
	check_errno("ADD_PAGE to a full EPC", result, ENOMEM);
	CHECK("pages were added", added > 16);
	check_errno("a page that is there",
		    legacy_add(fd, enclave.base, sigstruct, SECINFO_REG | 3, 0), EEXIST);
	check_errno("INIT with a full EPC", legacy_init_at(fd, enclave.base, sigstruct), ENOMEM);
	check_works("munmap", munmap((void *)enclave.base, enclave.size));
	/* All of it is free: this one pages. */
	create_with("kernel");
	if (add_all() || legacy_init_at(fd, enclave.base, sigstruct))
		fail("building the next one");
	walk();
}

int main(int argc, char **argv)
{
	const char *where;

	legacy_begin(argc, argv);
	bytes = strtoul(argv[5], NULL, 0);
	where = argv[6];
	fd = legacy_open();
	create_with(where);
	if (!strcmp(where, "none")) {
		without();
		return finish();
	}
	if (add_all())
		fail("ADD_PAGE");
	check_works("INIT", legacy_init_at(fd, enclave.base, sigstruct));
	if (store)
		check_store();
	walk();
	return finish();
}
