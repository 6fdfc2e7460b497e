/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Local attestation with itself: EREPORT for this enclave and the report key by EGETKEY; then the
 * refusals of EGETKEY. Prints "report HEX" and "key HEX": whoever reads them checks the CMAC.
 */
#include "host.h"
#include "report.h"

#define POLICY_MRENCLAVE 1
#define POLICY_MRSIGNER 2

#define INVALID_ATTRIBUTE 2
#define INVALID_CPUSVN 32
#define INVALID_ISVSVN 64
#define INVALID_KEYNAME 256

#define ZF 0x40UL
#define CF_PF_AF_SF_OF 0x895UL

static struct enclave enclave;
static struct report report;
static uint8_t key[16];

static void print_hex(const char *name, const void *bytes, unsigned int length)
{
	char text[2 * sizeof(struct report) + 1];

	for (unsigned int i = 0; i < length; i++)
		sprintf(text + 2 * i, "%02x", ((const uint8_t *)bytes)[i]);
	dprintf(1, "%s %s\n", name, text);
}

static bool zero(const uint8_t *bytes, unsigned int length)
{
	uint8_t all = 0;

	while (length--)
		all |= *bytes++;
	return !all;
}

static void get_report(void)
{
	struct target target = { .attributes = ATTRIBUTE_MODE64BIT | 1, .xfrm = XFRM_LEGACY,
				 .miscselect = MISC_EXINFO };
	uint8_t data[64];
	struct op op = { .code = OP_REPORT, .a = (uint64_t)&target, .b = (uint64_t)data,
			 .c = (uint64_t)&report };

	for (int i = 0; i < 64; i++)
		data[i] = 3 * i;
	memcpy(target.measurement, sigstruct + 960, 32);
	CHECK("EREPORT", do_op(&enclave, 0, &op));
	check_equal("MRENCLAVE", memcmp(report.mrenclave, sigstruct + 960, 32), 0);
	check_equal("ATTRIBUTES with INIT", report.attributes, ATTRIBUTE_MODE64BIT | 1);
	check_equal("XFRM", report.xfrm, XFRM_LEGACY);
	check_equal("MISCSELECT", report.miscselect, MISC_EXINFO);
	check_equal("ISVPRODID", report.isvprodid, *(uint16_t *)(sigstruct + 1024));
	check_equal("ISVSVN", report.isvsvn, *(uint16_t *)(sigstruct + 1026));
	check_equal("REPORTDATA", memcmp(report.reportdata, data, 64), 0);
	CHECK("reserved bytes are zero",
	      zero(report.reserved1, 12) && zero(report.reserved2, 32) &&
		      zero(report.reserved3, 32) && zero(report.reserved4, 42));
	CHECK("no KSS fields", zero(report.configid, 64) && zero(report.isvextprodid, 16) &&
				       zero(report.isvfamilyid, 16) && !report.configsvn);
	CHECK("MRSIGNER is there", !zero(report.mrsigner, 32));
	print_hex("report", &report, sizeof(report));
	print_hex("modulus", sigstruct + 128, 384);
}

/* EGETKEY; RAX, and RFLAGS to *rflags. ~0 when it faulted. */
static uint64_t get_key(const struct keyrequest *request, uint64_t *rflags)
{
	struct op op = { .code = OP_KEY, .a = (uint64_t)request, .b = (uint64_t)key };
	struct sgx_enclave_run run;

	enter(&run, tcs(&enclave, 0), &op);
	*rflags = op.out[1];
	if (run.function == EEXIT)
		return op.out[0];
	if (run.exception_vector != VECTOR_GP || !leave_faulted(&enclave, 0))
		fail("EGETKEY: vector %u", run.exception_vector);
	return ~0UL;
}

static void refused(const char *what, struct keyrequest request, uint64_t code)
{
	uint64_t rflags, rax = get_key(&request, &rflags);
	char name[80];

	check_equal(what, rax, code);
	if (code == ~0UL)
		return;
	snprintf(name, sizeof(name), "%s: flags", what);
	check_equal(name, rflags & (ZF | CF_PF_AF_SF_OF), ZF);
	snprintf(name, sizeof(name), "%s: no output", what);
	CHECK(name, key[0] == 0xee && key[15] == 0xee && !memcmp(key, key + 1, 15));
}

static struct keyrequest seal_request(uint16_t policy)
{
	struct keyrequest request = { .keyname = KEYNAME_SEAL, .keypolicy = policy,
				      .isvsvn = report.isvsvn, .attributemask = ~0UL,
				      .xfrmmask = ~0UL, .miscmask = ~0U };

	memcpy(request.cpusvn, report.cpusvn, 16);
	return request;
}

int main(int argc, char **argv)
{
	struct keyrequest request = { .keyname = KEYNAME_REPORT }, other;
	uint8_t by_enclave[16], by_signer[16];
	uint64_t rflags;

	begin(argc, argv);
	enclave = build(&the_image);
	get_report();

	memcpy(request.keyid, report.keyid, 32);
	check_equal("EGETKEY(REPORT)", get_key(&request, &rflags), 0);
	check_equal("flags are clear", rflags & (ZF | CF_PF_AF_SF_OF), 0);
	print_hex("key", key, 16);

	request = seal_request(POLICY_MRENCLAVE);
	check_equal("EGETKEY(SEAL), MRENCLAVE", get_key(&request, &rflags), 0);
	memcpy(by_enclave, key, 16);
	print_hex("sealing", key, 16);
	request = seal_request(POLICY_MRSIGNER);
	check_equal("EGETKEY(SEAL), MRSIGNER", get_key(&request, &rflags), 0);
	memcpy(by_signer, key, 16);
	print_hex("sealing-signer", key, 16);
	CHECK("the policy matters", memcmp(by_enclave, by_signer, 16));
	check_equal("the same request again", get_key(&request, &rflags), 0);
	CHECK("gives the same key", !memcmp(key, by_signer, 16));
	request.keyid[31] = 1;
	check_equal("another KEYID", get_key(&request, &rflags), 0);
	CHECK("gives another key", memcmp(key, by_signer, 16));
	request = seal_request(POLICY_MRSIGNER);
	request.isvsvn--;
	check_equal("an older ISVSVN", get_key(&request, &rflags), 0);
	CHECK("gives another key still", memcmp(key, by_signer, 16));

	other = seal_request(POLICY_MRSIGNER);
	other.isvsvn++;
	refused("ISVSVN of the future", other, INVALID_ISVSVN);
	other = seal_request(POLICY_MRSIGNER);
	memset(other.cpusvn, 0xff, 16);
	refused("CPUSVN of the future", other, INVALID_CPUSVN);
	other = seal_request(POLICY_MRSIGNER);
	other.keyname = 5;
	refused("unknown key name", other, INVALID_KEYNAME);
	other.keyname = KEYNAME_PROVISION;
	refused("PROVISION without the attribute", other, INVALID_ATTRIBUTE);
	other.keyname = KEYNAME_PROVISION_SEAL;
	refused("PROVISION_SEAL without the attribute", other, INVALID_ATTRIBUTE);
	other.keyname = KEYNAME_EINITTOKEN;
	refused("EINITTOKEN without the attribute", other, INVALID_ATTRIBUTE);
	other = seal_request(0x40);
	refused("reserved policy bit: #GP", other, ~0UL);
	other = seal_request(POLICY_MRSIGNER | 8);
	refused("CONFIGID policy without KSS: #GP", other, ~0UL);
	other = seal_request(POLICY_MRSIGNER);
	other.configsvn = 1;
	refused("CONFIGSVN without KSS: #GP", other, ~0UL);
	other = seal_request(POLICY_MRSIGNER);
	other.reserved2[433] = 1;
	refused("reserved byte: #GP", other, ~0UL);
	return finish();
}
