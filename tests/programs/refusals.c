/* SPDX-License-Identifier: Apache-2.0 */
/* What INIT refuses, each with its errno; and that what was refused can still be done right. */
#include "host.h"

#define HEADER 0
#define VENDOR 16
#define MODULUS 128
#define SIGNATURE 516
#define CSS_MISCSELECT 900
#define CSS_ATTRIBUTES 928
#define CSS_ATTRIBUTEMASK 944
#define ENCLAVEHASH 960
#define Q1 1040
#define Q2 1424

static uint8_t copy[4096] __attribute__((aligned(4096)));

static uint8_t *fresh(void)
{
	memcpy(copy, sigstruct, sizeof(copy));
	return copy;
}

/* Build up to INIT, with these attributes; data_changed flips one bit of the code. */
static int built(uint64_t attributes, bool data_changed, bool all_measured)
{
	struct enclave enclave = { .fd = open_device(), .base = reserve(the_image.size),
				   .size = the_image.size, .image = &the_image };
	struct secs secs = enclave_secs(&enclave, attributes);

	if (create(enclave.fd, &secs))
		fail("SGX_IOC_ENCLAVE_CREATE");
	for (int i = 0; i < the_image.segments; i++) {
		struct segment *segment = &the_image.segment[i];
		bool flip = data_changed && i == 1;

		segment->data[100] ^= flip;
		if (add_pages(enclave.fd, segment->data, segment->offset, segment->length,
			      segment->secinfo, all_measured || i != 3))
			fail("SGX_IOC_ENCLAVE_ADD_PAGES");
		segment->data[100] ^= flip;
	}
	munmap((void *)enclave.base, enclave.size);
	return enclave.fd;
}

static void a_byte(int fd, const char *name, unsigned int offset, uint8_t change, int wanted)
{
	fresh()[offset] ^= change;
	check_errno(name, init(fd, copy), wanted);
}

int main(int argc, char **argv)
{
	int fd;

	begin(argc, argv);
	fd = built(0, false, true);

	a_byte(fd, "one bit of the signature", SIGNATURE + 7, 1, EPERM);
	a_byte(fd, "one bit of Q1", Q1, 1, EPERM);
	a_byte(fd, "one bit of Q2", Q2 + 383, 1, EPERM);
	a_byte(fd, "one bit of the modulus", MODULUS + 200, 4, EPERM);
	a_byte(fd, "another ENCLAVEHASH, not signed for", ENCLAVEHASH, 1, EPERM);
	a_byte(fd, "another ISVSVN, not signed for", 1026, 1, EPERM);
	a_byte(fd, "another date, not signed for", 20, 1, EPERM);
	a_byte(fd, "header", HEADER + 1, 1, EPERM);
	a_byte(fd, "exponent", 512, 2, EPERM);
	a_byte(fd, "reserved byte", 50, 1, EPERM);
	a_byte(fd, "reserved byte at 992", 992, 1, EPERM);
	a_byte(fd, "vendor", VENDOR, 1, EINVAL);
	/* Bits that the processor does not know, required by the mask. */
	fresh();
	memset(copy + CSS_ATTRIBUTES, 0xff, 8);
	memset(copy + CSS_ATTRIBUTEMASK, 0xff, 8);
	check_errno("reserved attribute bits", init(fd, copy), EINVAL);
	fresh();
	memset(copy + CSS_ATTRIBUTES + 8, 0xff, 8);
	memset(copy + CSS_ATTRIBUTEMASK + 8, 0xff, 8);
	check_errno("reserved XFRM bits", init(fd, copy), EINVAL);
	fresh();
	memset(copy + CSS_MISCSELECT, 0xff, 8);
	check_errno("reserved MISCSELECT bits", init(fd, copy), EINVAL);
	check_errno("SIGSTRUCT of zeros", init(fd, memset(copy, 0, sizeof(copy))), EPERM);
	check_works("the right SIGSTRUCT, after all these", init(fd, sigstruct));
	check_errno("INIT twice", init(fd, sigstruct), EINVAL);
	close(fd);

	fd = built(0, true, true);
	check_errno("a page flipped after signing", init(fd, sigstruct), EPERM);
	check_errno("and again", init(fd, sigstruct), EPERM);
	close(fd);
	fd = built(0, false, false);
	check_errno("a page that was not measured", init(fd, sigstruct), EPERM);
	close(fd);
	fd = built(ATTRIBUTE_DEBUG, false, true);
	check_errno("a debug enclave, a production SIGSTRUCT", init(fd, sigstruct), EPERM);
	close(fd);
	fd = built(ATTRIBUTE_EINITTOKENKEY, false, true);
	check_errno("EINITTOKENKEY", init(fd, sigstruct), EACCES);
	close(fd);
	fd = built(ATTRIBUTE_PROVISIONKEY, false, true);
	check_errno("PROVISIONKEY without a grant", init(fd, sigstruct), EACCES);
	close(fd);

	/* A SIGSTRUCT for debug enclaves is the other argument. */
	if (argc > 3) {
		read_sigstruct(argv[3]);
		fd = built(0, false, true);
		check_errno("a production enclave, a debug SIGSTRUCT", init(fd, sigstruct), EPERM);
		close(fd);
		fd = built(ATTRIBUTE_DEBUG, false, true);
		check_works("a debug enclave, a debug SIGSTRUCT", init(fd, sigstruct));
		close(fd);
	}
	return finish();
}
