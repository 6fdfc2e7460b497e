/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Key separation and sharing: CONFIGID and CONFIGSVN, which the loader chooses, and ISVFAMILYID and ISVEXTPRODID,
 * which the signer does: in reports, in sealing keys by policy, and what is refused to an enclave without KSS.
 * Called with the SIGSTRUCT of the same enclave without KSS as a third argument; the first two have KSS.
 */
#include "host.h"

#include "report.h"

#define ATTRIBUTE_KSS (1UL << 7)
#define CONFIGSVN 4
#define INVALID_ISVSVN 64
#define POLICY_MRSIGNER 2
#define POLICY_NOISVPRODID 4
#define POLICY_CONFIGID 8
#define POLICY_ISVFAMILYID 16
#define POLICY_ISVEXTPRODID 32

static struct report report;
static uint8_t key[16];

static struct enclave configured(uint64_t attributes, uint8_t id, uint16_t svn)
{
	struct enclave made = {
		.fd = open_device(),
		.base = reserve(the_image.size),
		.size = the_image.size,
		.image = &the_image,
	};
	struct secs secs = enclave_secs(&made, attributes);

	memset((uint8_t *)&secs + 192, id, 64);
	memcpy((uint8_t *)&secs + 260, &svn, 2);
	if (create(made.fd, &secs) || add_segments(made.fd, &the_image) ||
	    init(made.fd, sigstruct) || map_segments(&made))
		fail("an enclave with CONFIGID %#x", id);
	return made;
}

static void get_report(const struct enclave *enclave)
{
	static struct target target;
	static uint8_t data[64];
	struct op op = { .code = OP_REPORT, .a = (uint64_t)&target, .b = (uint64_t)data,
			 .c = (uint64_t)&report };

	CHECK("EREPORT", do_op(enclave, 0, &op));
}

/* EGETKEY for a sealing key; RAX, or ~0 where it was #GP. */
static uint64_t get_key(const struct enclave *enclave, uint16_t policy, uint16_t configsvn)
{
	struct keyrequest request = { .keyname = KEYNAME_SEAL, .keypolicy = POLICY_MRSIGNER | policy,
				      .configsvn = configsvn };
	struct op op = { .code = OP_KEY, .a = (uint64_t)&request, .b = (uint64_t)key };
	struct sgx_enclave_run run;

	memcpy(request.cpusvn, report.cpusvn, 16);
	enter(&run, tcs(enclave, 0), &op);
	if (run.function == EEXIT)
		return op.out[0];
	if (run.function != ERESUME || run.exception_vector != VECTOR_GP ||
	    !leave_faulted(enclave, 0))
		fail("EGETKEY: vector %u", run.exception_vector);
	return ~0UL;
}

static bool same_key(const struct enclave *one, const struct enclave *other, uint16_t policy,
		     uint16_t configsvn)
{
	uint8_t first[16];

	if (get_key(one, policy, configsvn))
		fail("no key for policy %#x", policy);
	memcpy(first, key, 16);
	if (get_key(other, policy, configsvn))
		fail("no key for policy %#x of the other", policy);
	return !memcmp(first, key, 16);
}

static bool changes_the_key(const struct enclave *enclave, uint16_t policy)
{
	uint8_t plain[16];

	if (get_key(enclave, 0, 0))
		fail("no key without a policy");
	memcpy(plain, key, 16);
	if (get_key(enclave, policy, 0))
		fail("no key for policy %#x", policy);
	return memcmp(plain, key, 16);
}

static void with_kss(void)
{
	struct enclave one = configured(ATTRIBUTE_KSS, 0xc1, CONFIGSVN);
	struct enclave other = configured(ATTRIBUTE_KSS, 0xc2, CONFIGSVN);
	struct enclave newer = configured(ATTRIBUTE_KSS, 0xc1, CONFIGSVN + 3);
	uint8_t expected[64];

	get_report(&one);
	memset(expected, 0xc1, sizeof(expected));
	CHECK("CONFIGID is in the report", !memcmp(report.configid, expected, 64));
	check_equal("so is CONFIGSVN", report.configsvn, CONFIGSVN);
	CHECK("and ISVFAMILYID", !memcmp(report.isvfamilyid, sigstruct + 912, 16) &&
					 report.isvfamilyid[0]);
	CHECK("and ISVEXTPRODID", !memcmp(report.isvextprodid, sigstruct + 1008, 16) &&
					  report.isvextprodid[0]);
	check_equal("and ATTRIBUTES.KSS", report.attributes & ATTRIBUTE_KSS, ATTRIBUTE_KSS);

	CHECK("without a policy CONFIGID does not matter", same_key(&one, &other, 0, 0));
	CHECK("with it, it does", !same_key(&one, &other, POLICY_CONFIGID, 0));
	CHECK("and is all that does", same_key(&one, &newer, POLICY_CONFIGID, 0));
	CHECK("a newer configuration has the keys of older ones",
	      same_key(&one, &newer, POLICY_CONFIGID, CONFIGSVN));
	check_equal("an older one has not those of newer ones",
		    get_key(&one, POLICY_CONFIGID, CONFIGSVN + 1), INVALID_ISVSVN);
	check_equal("whatever the policy", get_key(&one, 0, CONFIGSVN + 1), INVALID_ISVSVN);
	CHECK("policy NOISVPRODID", changes_the_key(&one, POLICY_NOISVPRODID));
	CHECK("policy ISVFAMILYID", changes_the_key(&one, POLICY_ISVFAMILYID));
	CHECK("policy ISVEXTPRODID", changes_the_key(&one, POLICY_ISVEXTPRODID));
	CHECK("policy CONFIGID", changes_the_key(&one, POLICY_CONFIGID));
}

static void without_kss(void)
{
	struct enclave plain = configured(0, 0, 0);
	struct enclave refused = { .fd = open_device(), .base = reserve(the_image.size),
				   .size = the_image.size, .image = &the_image };
	struct secs secs = enclave_secs(&refused, 0);

	get_report(&plain);
	for (uint16_t policy = POLICY_NOISVPRODID; policy <= POLICY_ISVEXTPRODID; policy *= 2)
		check_equal("a policy of KSS is #GP without KSS", get_key(&plain, policy, 0), ~0UL);
	check_equal("so is CONFIGSVN", get_key(&plain, 0, 1), ~0UL);
	check_equal("the others are not", get_key(&plain, 0, 0), 0);

	((uint8_t *)&secs)[192 + 63] = 1;
	check_errno("CONFIGID without KSS", create(refused.fd, &secs), EIO);
	((uint8_t *)&secs)[192 + 63] = 0;
	((uint8_t *)&secs)[260] = 1;
	check_errno("CONFIGSVN without KSS", create(refused.fd, &secs), EIO);
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	if (argc < 4)
		fail("the SIGSTRUCT without KSS is missing");
	with_kss();
	read_sigstruct(argv[3]);
	without_kss();
	return finish();
}
