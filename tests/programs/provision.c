/* SPDX-License-Identifier: Apache-2.0 */
/*
 * PROVISIONKEY is granted by a descriptor of /dev/sgx_provision, and only then may an enclave have
 * it. Called with a SIGSTRUCT that allows the attribute.
 */
#include "host.h"

static int provision(int fd, uint64_t granting)
{
	struct sgx_enclave_provision argument = { .fd = granting };

	return ioctl(fd, SGX_IOC_ENCLAVE_PROVISION, &argument);
}

static struct enclave created(bool grant_first, int granting)
{
	struct enclave enclave = { .fd = open_device(), .base = reserve(the_image.size),
				   .size = the_image.size, .image = &the_image };
	struct secs secs = enclave_secs(&enclave, ATTRIBUTE_PROVISIONKEY);

	if (grant_first)
		check_works("a grant before CREATE succeeds", provision(enclave.fd, granting));
	if (create(enclave.fd, &secs) || add_segments(enclave.fd, &the_image))
		fail("building");
	return enclave;
}

int main(int argc, char **argv)
{
	struct enclave enclave;
	int granting;

	begin(argc, argv);
	granting = open("/dev/sgx_provision", O_RDWR | O_CLOEXEC);
	if (granting < 0)
		fail("cannot open /dev/sgx_provision");

	enclave = created(false, granting);
	check_errno("INIT without a grant", init(enclave.fd, sigstruct), EACCES);
	check_errno("a descriptor of another file", provision(enclave.fd, 1), EINVAL);
	check_errno("a descriptor of an enclave", provision(enclave.fd, enclave.fd), EINVAL);
	check_errno("no descriptor", provision(enclave.fd, 9999), EINVAL);
	check_errno("-1", provision(enclave.fd, ~0UL), EINVAL);
	check_errno("argument not readable",
		    ioctl(enclave.fd, SGX_IOC_ENCLAVE_PROVISION, (void *)8), EFAULT);
	check_errno("INIT still without a grant", init(enclave.fd, sigstruct), EACCES);
	check_works("the grant", provision(enclave.fd, granting));
	check_works("INIT with it", init(enclave.fd, sigstruct));
	CHECK("mapped", map_segments(&enclave) == 0);
	CHECK("it runs", do_op(&enclave, 0, &(struct op){ .code = OP_NOP }));

	/* CREATE assigns the allowed attributes: what was granted before is lost. */
	enclave = created(true, granting);
	check_errno("INIT after an early grant", init(enclave.fd, sigstruct), EACCES);

	check_errno("/dev/sgx_provision knows no ioctl", ioctl(granting, SGX_IOC_ENCLAVE_CREATE, 0),
		    ENOTTY);
	return finish();
}
