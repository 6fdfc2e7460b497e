/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An enclave with base 0, as Gramine makes them for programs linked at fixed addresses: ELRANGE
 * starts at address 0, the first page is at 64 KiB, and the range is mapped before CREATE.
 * Called with an enclave whose segments start at offset 0x10000.
 */
#include "host.h"

#define FIRST 0x10000UL

int main(int argc, char **argv)
{
	struct enclave enclave = { .image = &the_image };
	struct op op = { .code = OP_ENTRY };
	struct secs secs;
	void *range;

	begin(argc, argv);
	enclave.size = the_image.size;
	check_equal("the first page is where mmap_min_addr allows it",
		    the_image.segment[0].offset, FIRST);

	/* Whoever runs this program put nothing of his own where a large enclave would be. */
	range = mmap((void *)FIRST, (64UL << 30) - FIRST, PROT_NONE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
	CHECK("the lowest 64 GiB are free", range == (void *)FIRST);
	if (range != MAP_FAILED)
		munmap(range, (64UL << 30) - FIRST);

	enclave.fd = open_device();
	range = mmap((void *)FIRST, enclave.size - FIRST, PROT_NONE,
		     MAP_SHARED | MAP_FIXED_NOREPLACE, enclave.fd, 0);
	CHECK("mapped before CREATE", range == (void *)FIRST);
	secs = enclave_secs(&enclave, 0);
	check_equal("BASEADDR", secs.base, 0);
	check_works("CREATE with base 0", create(enclave.fd, &secs));
	check_works("ADD_PAGES", add_segments(enclave.fd, &the_image));
	check_works("INIT", init(enclave.fd, sigstruct));

	/* The old mapping serves: two segments by mprotect, two mapped anew. */
	for (int i = 0; i < the_image.segments; i++) {
		const struct segment *segment = &the_image.segment[i];

		if (i % 2)
			check_works("mprotect of the early mapping",
				    mprotect((void *)segment->offset, segment->length,
					     segment->prot));
		else
			check_works("mapped over it", map_segment(&enclave, i));
	}
	check_errno("no rights beyond the page's",
		    mprotect((void *)the_image.segment[2].offset, PAGE, PROT_READ | PROT_WRITE),
		    EACCES);
	CHECK("it runs", do_op(&enclave, 0, &op));
	check_equal("OENTRY is an address from 0", op.out[ENTRY_RIP],
		    symbol(&the_image, "enclave_entry"));
	check_equal("FS base is one too", op.out[ENTRY_FSBASE], symbol(&the_image, "thread_fs0"));
	op = (struct op){ .code = OP_UD2 };

	struct sgx_enclave_run run;

	CHECK("faults as any other",
	      enter(&run, tcs(&enclave, 1), &op) == 0 && run.function == ERESUME &&
		      run.exception_vector == VECTOR_UD);
	CHECK("and leaves", leave_faulted(&enclave, 1));
	return finish();
}
