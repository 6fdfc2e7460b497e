/* SPDX-License-Identifier: Apache-2.0 */
/* What CPUID tells a program: SGX is there, the processor is the host's. ARGs: EPC bytes, library. */
#include "host.h"

#include <cpuid.h>
#include <dlfcn.h>

struct leaf {
	unsigned int eax, ebx, ecx, edx;
};

static struct leaf cpuid(unsigned int leaf, unsigned int subleaf)
{
	struct leaf found;

	__cpuid_count(leaf, subleaf, found.eax, found.ebx, found.ecx, found.edx);
	return found;
}

/* What the kernel read at boot, which no program's CPUID goes through. */
static bool cpuinfo(const char *key, char *value, size_t length)
{
	FILE *file = fopen("/proc/cpuinfo", "r");
	char line[256];
	bool found = false;

	while (file && !found && fgets(line, sizeof(line), file))
		if (!strncmp(line, key, strlen(key)) && strchr(line, ':')) {
			snprintf(value, length, "%s", strchr(line, ':') + 2);
			value[strcspn(value, "\n")] = 0;
			found = true;
		}
	if (file)
		fclose(file);
	return found;
}

static uint64_t xcr0(void)
{
	uint32_t eax, edx;

	asm volatile("xgetbv" : "=a"(eax), "=d"(edx) : "c"(0));
	return (uint64_t)edx << 32 | eax;
}

/* Code that comes later is no different: here, when there is an enclave already. */
static void asked_by_a_library(const char *enclave, const char *signature, const char *path)
{
	unsigned int (*has_sgx)(void);
	void *library;

	the_image = read_image(enclave);
	read_sigstruct(signature);
	build(&the_image);
	library = dlopen(path, RTLD_NOW);
	has_sgx = library ? (unsigned int (*)(void))dlsym(library, "has_sgx") : NULL;
	if (!has_sgx)
		fail("cannot load %s: %s", path, dlerror());
	check_equal("a library loaded later sees SGX", has_sgx(), 1);
}

int main(int argc, char **argv)
{
	struct leaf zero = cpuid(0, 0), one = cpuid(1, 0), seven = cpuid(7, 0);
	struct leaf state = cpuid(0xd, 0), sgx = cpuid(0x12, 0), attributes = cpuid(0x12, 1);
	struct leaf epc = cpuid(0x12, 2), end = cpuid(0x12, 3);
	uint64_t epc_bytes = argc > 3 ? strtoull(argv[3], NULL, 0) : 0, xfrm, size, base;
	char vendor[13] = "", known[64] = "";
	unsigned int family;

	check(zero.eax >= 0x12, "largest leaf is at least 0x12", "%#x", zero.eax);
	memcpy(vendor, &zero.ebx, 4);
	memcpy(vendor + 4, &zero.edx, 4);
	memcpy(vendor + 8, &zero.ecx, 4);
	check(cpuinfo("vendor_id", known, sizeof(known)) && !strcmp(vendor, known),
	      "the vendor is the host's", "%s, the kernel says %s", vendor, known);
	family = one.eax >> 8 & 15;
	if (family == 15)
		family += one.eax >> 20 & 255;
	CHECK("cpu family is the host's", cpuinfo("cpu family", known, sizeof(known)) &&
						  strtoul(known, NULL, 10) == family);
	check_equal("OSXSAVE and XSAVE", one.ecx >> 26 & 3, 3);
	check_equal("7: SGX", seven.ebx >> 2 & 1, 1);
	check_equal("7: SGX_LC", seven.ecx >> 30 & 1, 1);
	check_equal("0xD: the XCR0 bits are a superset of XCR0",
		    ((uint64_t)state.edx << 32 | state.eax) & xcr0(), xcr0());
	check(state.ebx >= 576, "0xD: size of the area", "%u", state.ebx);
	check_equal("0x12: SGX1", sgx.eax & 1, 1);
	check_equal("0x12: EXINFO", sgx.ebx & 1, 1);
	check((sgx.edx >> 8 & 255) >= 32 && (sgx.edx >> 8 & 255) < 64,
	      "0x12: largest 64-bit enclave", "2^%u", sgx.edx >> 8 & 255);
	check_equal("0x12.1: DEBUG and MODE64BIT may be set", attributes.eax & 6, 6);
	check_equal("0x12.1: INIT may not", attributes.eax & 1, 0);
	xfrm = (uint64_t)attributes.edx << 32 | attributes.ecx;
	check_equal("0x12.1: XFRM has x87 and SSE", xfrm & 3, 3);
	check_equal("0x12.1: XFRM fits XCR0", xfrm & ~xcr0(), 0);
	check_equal("0x12.2: an EPC section", epc.eax & 15, 1);
	size = (uint64_t)(epc.edx & 0xfffff) << 32 | (epc.ecx & 0xfffff000);
	base = (uint64_t)(epc.ebx & 0xfffff) << 32 | (epc.eax & 0xfffff000);
	check_equal("0x12.2: its size", size, epc_bytes);
	check(base > 0, "0x12.2: its base", "%#lx", base);
	check_equal("0x12.3: no further section", end.eax & 15, 0);
	/* Asked again, in a loop, the answer is the same. */
	for (int i = 0; i < 50; i++)
		if (cpuid(0x12, 0).eax != sgx.eax)
			check(false, "the same answer each time", "turn %d", i);
	/* The C library and libgcc read CPUID themselves. */
	CHECK("the compiler's run-time agrees on SSE2", __builtin_cpu_supports("sse2"));
	for (int i = 4; i < argc; i++)
		asked_by_a_library(argv[1], argv[2], argv[i]);
	return finish();
}
