/* SPDX-License-Identifier: Apache-2.0 */
/* A short life of an enclave, with one refusal of each kind, for --trace to tell. */
#include "host.h"

int main(int argc, char **argv)
{
	struct op nop = { .code = OP_NOP }, ud2 = { .code = OP_UD2 };
	struct enclave enclave = { .image = &the_image };
	struct sgx_enclave_run run;
	struct secs secs, wrong;
	uint8_t css[4096] __attribute__((aligned(4096)));

	begin(argc, argv);
	enclave.fd = open_device();
	enclave.size = the_image.size;
	enclave.base = reserve(enclave.size);
	secs = wrong = enclave_secs(&enclave, 0);
	wrong.size += PAGE;
	check_errno("CREATE, no power of two", create(enclave.fd, &wrong), EINVAL);
	check_works("CREATE", create(enclave.fd, &secs));
	check_works("ADD_PAGES", add_segments(enclave.fd, &the_image));
	memcpy(css, sigstruct, sizeof(css));
	css[516] ^= 1;
	check_errno("INIT, a bit of the signature", init(enclave.fd, css), EPERM);
	check_works("INIT", init(enclave.fd, sigstruct));
	check_works("mapping", map_segments(&enclave));
	check_errno("mprotect", mprotect((void *)at_symbol(&enclave, "heap_page"), PAGE, PROT_EXEC),
		    EACCES);
	CHECK("in and out", do_op(&enclave, 0, &nop));
	CHECK("in and a fault", enter(&run, tcs(&enclave, 0), &ud2) == 0 &&
					run.exception_vector == VECTOR_UD);
	CHECK("no TCS there", enter(&run, enclave.base + enclave.size - PAGE, &nop) == 0 &&
				      run.exception_vector == VECTOR_PF);
	return finish();
}
