/* SPDX-License-Identifier: Apache-2.0 */
/* What mmap, mprotect, munmap, mremap and madvise do with an enclave's pages. */
#include "host.h"

static struct enclave enclave;
static struct op get = { .code = OP_GET };

/* SECS, pages and so on, without INIT and without mapping. */
static struct enclave uninitialised(void)
{
	struct enclave made = { .fd = open_device(), .base = reserve(the_image.size),
				.size = the_image.size, .image = &the_image };
	struct secs secs = enclave_secs(&made, 0);

	if (create(made.fd, &secs) || add_segments(made.fd, &the_image))
		fail("building");
	return made;
}

static long map_at(int fd, uint64_t address, uint64_t length, int prot, int flags)
{
	return mmap((void *)address, length, prot, flags, fd, 0) == MAP_FAILED ? -1 : 0;
}

static void permissions_of(const struct enclave *made, const char *when)
{
	static const int denied[4][3] = {
		{ PROT_EXEC, PROT_READ | PROT_EXEC, PROT_READ | PROT_WRITE | PROT_EXEC },
		{ PROT_WRITE, PROT_READ | PROT_WRITE, PROT_READ | PROT_WRITE | PROT_EXEC },
		{ PROT_WRITE, PROT_EXEC, PROT_READ | PROT_WRITE },
		{ PROT_EXEC, PROT_READ | PROT_EXEC, PROT_WRITE | PROT_EXEC },
	};
	static const char *const names[] = { "TCS", "code", "read-only data", "data" };
	char name[100];

	for (int i = 0; i < 4; i++) {
		const struct segment *segment = &made->image->segment[i];
		uint64_t address = made->base + segment->offset;

		for (int j = 0; j < 3; j++) {
			snprintf(name, sizeof(name), "%s: mmap %s with prot %d", when, names[i],
				 denied[i][j]);
			check_errno(name, map_at(made->fd, address, segment->length, denied[i][j],
						 MAP_SHARED | MAP_FIXED), EACCES);
		}
		snprintf(name, sizeof(name), "%s: mmap %s with its own prot", when, names[i]);
		check_works(name, map_at(made->fd, address, segment->length, segment->prot,
					 MAP_SHARED | MAP_FIXED));
		for (int j = 0; j < 3; j++) {
			snprintf(name, sizeof(name), "%s: mprotect %s to %d", when, names[i],
				 denied[i][j]);
			check_errno(name, mprotect((void *)address, segment->length, denied[i][j]),
				    EACCES);
		}
		snprintf(name, sizeof(name), "%s: mprotect %s to PROT_NONE", when, names[i]);
		check_works(name, mprotect((void *)address, segment->length, PROT_NONE));
		snprintf(name, sizeof(name), "%s: mprotect %s back", when, names[i]);
		check_works(name, mprotect((void *)address, segment->length, segment->prot));
	}
}

static void sharing(void)
{
	uint64_t data = at_symbol(&enclave, "heap_page");

	check_errno("MAP_PRIVATE", map_at(enclave.fd, data, PAGE, PROT_READ,
					  MAP_PRIVATE | MAP_FIXED), EINVAL);
	check_errno("MAP_PRIVATE anywhere", map_at(enclave.fd, 0, PAGE, PROT_READ, MAP_PRIVATE),
		    EINVAL);
	check_errno("outside ELRANGE after INIT",
		    map_at(enclave.fd, reserve(PAGE), PAGE, PROT_READ, MAP_SHARED | MAP_FIXED),
		    EACCES);
	check_errno("length 0", map_at(enclave.fd, data, 0, PROT_READ, MAP_SHARED | MAP_FIXED),
		    EINVAL);
	check_errno("misaligned", map_at(enclave.fd, data + 8, PAGE, PROT_READ,
					 MAP_SHARED | MAP_FIXED), EINVAL);
	check_works("a hole, with any prot",
		    map_at(enclave.fd, enclave.base + enclave.size - PAGE, PAGE,
			   PROT_READ | PROT_WRITE | PROT_EXEC, MAP_SHARED | MAP_FIXED));
	CHECK("the enclave still works", do_op(&enclave, 0, &get));
}

/* The file offset of an enclave mapping says nothing: the address selects the page. */
static void any_offset(void)
{
	uint64_t rodata = at_symbol(&enclave, "read_only_page");
	struct op look = { .code = OP_READ, .a = rodata };

	CHECK("mapped with an odd file offset",
	      mmap((void *)rodata, PAGE, PROT_READ, MAP_SHARED | MAP_FIXED, enclave.fd,
		   64 * PAGE) == (void *)rodata);
	CHECK("read", do_op(&enclave, 0, &look));
	check_equal("it is the page of that address", look.out[0] & 0xff, 0x52);
}

static void unmapping(void)
{
	uint64_t heap = at_symbol(&enclave, "heap_page");
	struct op put = { .code = OP_WRITE, .a = heap, .b = 0xfeed };
	struct op look = { .code = OP_READ, .a = heap };
	struct sgx_enclave_run run;

	CHECK("write", do_op(&enclave, 0, &put));
	check_works("munmap of one page", munmap((void *)heap, PAGE));
	CHECK("read of it faults", enter(&run, tcs(&enclave, 0), &look) == 0 &&
					   run.function == ERESUME &&
					   run.exception_vector == VECTOR_PF);
	check_works("mapping it again", map_at(enclave.fd, heap, PAGE, PROT_READ | PROT_WRITE,
					       MAP_SHARED | MAP_FIXED));
	CHECK("ERESUME reads it now",
	      call_vdso(0, 0, 0, ERESUME, 0, 0, &run) == 0 && run.function == EEXIT);
	check_equal("the contents stayed", look.out[0], 0xfeed);

	check_works("munmap of all", munmap((void *)enclave.base, enclave.size));
	CHECK("mapping all again", map_segments(&enclave) == 0);
	look.out[0] = 0;
	CHECK("it still runs", do_op(&enclave, 0, &look));
	check_equal("with its contents", look.out[0], 0xfeed);

	check_works("PROT_NONE", mprotect((void *)heap, PAGE, PROT_NONE));
	CHECK("read faults", enter(&run, tcs(&enclave, 0), &look) == 0 &&
				     run.exception_vector == VECTOR_PF);
	check_works("PROT_READ", mprotect((void *)heap, PAGE, PROT_READ));
	CHECK("ERESUME reads", call_vdso(0, 0, 0, ERESUME, 0, 0, &run) == 0 &&
				       run.function == EEXIT);
	check_works("and back", mprotect((void *)heap, PAGE, PROT_READ | PROT_WRITE));
}

static void other_calls(void)
{
	uint64_t heap = at_symbol(&enclave, "heap_page");
	struct op look = { .code = OP_READ, .a = heap };

	check_errno("mremap does not grow it",
		    mremap((void *)heap, PAGE, 2 * PAGE, 0) == MAP_FAILED ? -1 : 0, EFAULT);
	check_errno("MADV_DODUMP does not make it dumpable",
		    madvise((void *)heap, PAGE, MADV_DODUMP), EINVAL);
	check_errno("MADV_DOFORK: VM_IO forbids it", madvise((void *)heap, PAGE, MADV_DOFORK),
		    EINVAL);
	check(madvise((void *)heap, PAGE, MADV_REMOVE) == -1, "MADV_REMOVE punches no hole",
	      "it succeeded");
	check_errno("MADV_DONTNEED of a PFN mapping", madvise((void *)heap, PAGE, MADV_DONTNEED),
		    EINVAL);
	look.out[0] = 0;
	CHECK("read after madvise", do_op(&enclave, 0, &look));
	check_equal("nothing was lost", look.out[0], 0xfeed);
}

/* As a file it can only be mapped: nobody makes it shorter, and stat names a device. */
static void as_a_file(void)
{
	struct stat st;

	CHECK("ftruncate is refused", ftruncate(enclave.fd, 0) == -1);
	CHECK("stat says a character device",
	      stat("/dev/sgx_enclave", &st) == 0 && S_ISCHR(st.st_mode));
	CHECK("access", access("/dev/sgx_enclave", R_OK | W_OK) == 0);
	CHECK("still works", do_op(&enclave, 0, &get));
}

static void two_mappings_of_one(void)
{
	int again = dup(enclave.fd);

	close(enclave.fd);
	CHECK("a duplicate keeps it", do_op(&enclave, 0, &get));
	enclave.fd = again;
	check_works("munmap", munmap((void *)enclave.base, enclave.size));
	CHECK("mapped through the duplicate", map_segments(&enclave) == 0);
	CHECK("and it runs", do_op(&enclave, 0, &get));
	close(enclave.fd);
	CHECK("mappings alone keep it", do_op(&enclave, 0, &get));
}

int main(int argc, char **argv)
{
	struct enclave raw;

	begin(argc, argv);
	raw = uninitialised();
	permissions_of(&raw, "before INIT");
	check_works("INIT of the mapped enclave", init(raw.fd, sigstruct));
	permissions_of(&raw, "after INIT");
	CHECK("and it runs", do_op(&raw, 0, &get));

	enclave = build(&the_image);
	sharing();
	any_offset();
	unmapping();
	other_calls();
	as_a_file();
	two_mappings_of_one();
	CHECK("the first one still runs", do_op(&raw, 0, &get));
	return finish();
}
