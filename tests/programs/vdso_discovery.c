/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The three ways in which runtimes find __vdso_sgx_enter_enclave: by the section headers, by
 * PT_DYNAMIC and DT_HASH, and as a weak symbol of linux-vdso.so.1 that the dynamic linker resolves.
 * And the functions that were there before still tell the time.
 *
 * Linked against a stub library with the soname linux-vdso.so.1 (vdso_stub.c).
 */
#include "host.h"

#include <link.h>
#include <sys/syscall.h>
#include <time.h>

extern int __vdso_sgx_enter_enclave(uint64_t rdi, uint64_t rsi, uint64_t rdx, unsigned int function,
				    uint64_t r8, uint64_t r9, struct sgx_enclave_run *run)
	__attribute__((weak));
extern int __vdso_clock_gettime(clockid_t clock, struct timespec *ts) __attribute__((weak));

/* SHT_DYNSYM and the string table it links to: how the Intel SDK looks. */
static void *by_section_headers(const char *name)
{
	uint64_t start = getauxval(AT_SYSINFO_EHDR);
	const Elf64_Ehdr *header = (const Elf64_Ehdr *)start;
	const Elf64_Shdr *section = (const Elf64_Shdr *)(start + header->e_shoff);

	if (!header->e_shoff || header->e_shentsize != sizeof(*section))
		return NULL;
	for (int i = 0; i < header->e_shnum; i++) {
		const Elf64_Sym *symbol = (const Elf64_Sym *)(start + section[i].sh_offset);
		const char *names;

		if (section[i].sh_type != SHT_DYNSYM)
			continue;
		names = (const char *)start + section[section[i].sh_link].sh_offset;
		for (uint64_t n = 0; n < section[i].sh_size / sizeof(*symbol); n++)
			if (!strcmp(names + symbol[n].st_name, name))
				return (void *)(start + symbol[n].st_value);
	}
	return NULL;
}

/* The soname and the version definition that a dynamic linker checks. */
static void soname_and_version(void)
{
	uint64_t start = getauxval(AT_SYSINFO_EHDR);
	const Elf64_Ehdr *header = (const Elf64_Ehdr *)start;
	const Elf64_Phdr *phdr = (const Elf64_Phdr *)(start + header->e_phoff);
	const char *strtab = NULL, *soname = NULL;
	const Elf64_Verdef *verdef = NULL;
	uint64_t bias = 0, name = 0, count = 0;
	bool linux_2_6 = false, gnu_hash = false;

	for (int i = 0; i < header->e_phnum; i++)
		if (phdr[i].p_type == PT_LOAD && !bias)
			bias = start + phdr[i].p_offset - phdr[i].p_vaddr;
	for (int i = 0; i < header->e_phnum; i++) {
		if (phdr[i].p_type != PT_DYNAMIC)
			continue;
		for (const Elf64_Dyn *dyn = (const Elf64_Dyn *)(start + phdr[i].p_offset);
		     dyn->d_tag != DT_NULL; dyn++) {
			if (dyn->d_tag == DT_STRTAB)
				strtab = (const char *)(bias + dyn->d_un.d_ptr);
			else if (dyn->d_tag == DT_SONAME)
				name = dyn->d_un.d_val;
			else if (dyn->d_tag == DT_VERDEF)
				verdef = (const Elf64_Verdef *)(bias + dyn->d_un.d_ptr);
			else if (dyn->d_tag == DT_VERDEFNUM)
				count = dyn->d_un.d_val;
			else if (dyn->d_tag == DT_GNU_HASH)
				gnu_hash = true;
		}
	}
	if (strtab && name)
		soname = strtab + name;
	for (; strtab && verdef && count--; verdef = (void *)((char *)verdef + verdef->vd_next)) {
		const Elf64_Verdaux *aux = (const void *)((const char *)verdef + verdef->vd_aux);

		linux_2_6 |= !strcmp(strtab + aux->vda_name, "LINUX_2.6");
		if (!verdef->vd_next)
			break;
	}
	check(soname && !strcmp(soname, "linux-vdso.so.1"), "soname", "%s", soname ? soname : "none");
	CHECK("version LINUX_2.6", linux_2_6);
	CHECK("DT_GNU_HASH too", gnu_hash);
}

static bool close_to(const struct timespec *a, const struct timespec *b)
{
	double apart = (double)(b->tv_sec - a->tv_sec) + (b->tv_nsec - a->tv_nsec) * 1e-9;

	return apart >= -0.05 && apart < 5;
}

static void clocks(void)
{
	static const clockid_t ids[] = { CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME,
					 CLOCK_REALTIME_COARSE, CLOCK_MONOTONIC_COARSE,
					 CLOCK_PROCESS_CPUTIME_ID };
	int (*gettime)(clockid_t, struct timespec *) = vdso_symbol("__vdso_clock_gettime");
	int (*getres)(clockid_t, struct timespec *) = vdso_symbol("__vdso_clock_getres");
	int (*timeofday)(struct timeval *, void *) = vdso_symbol("__vdso_gettimeofday");
	time_t (*seconds)(time_t *) = vdso_symbol("__vdso_time");
	int (*getcpu)(unsigned int *, unsigned int *, void *) = vdso_symbol("__vdso_getcpu");
	struct timespec ours, kernel, last = { 0 };
	struct timeval day;
	unsigned int cpu = ~0U;
	char name[60];

	for (unsigned int i = 0; gettime && i < sizeof(ids) / sizeof(ids[0]); i++) {
		snprintf(name, sizeof(name), "clock %d agrees with the system call", ids[i]);
		CHECK(name, gettime(ids[i], &ours) == 0 &&
				    syscall(SYS_clock_gettime, ids[i], &kernel) == 0 &&
				    close_to(&ours, &kernel));
		CHECK("and so does libc's", clock_gettime(ids[i], &ours) == 0 &&
						    close_to(&kernel, &ours));
	}
	CHECK("__vdso_clock_gettime", gettime);
	if (gettime)
		check(gettime(9999, &ours) == -EINVAL, "unknown clock is -EINVAL", "it is not");
	CHECK("__vdso_clock_getres", getres && getres(CLOCK_MONOTONIC, &ours) == 0 &&
					     ours.tv_sec == 0 && ours.tv_nsec > 0);
	CHECK("__vdso_gettimeofday", timeofday && timeofday(&day, NULL) == 0 &&
					     labs(day.tv_sec - time(NULL)) < 5);
	CHECK("__vdso_time", seconds && labs(seconds(NULL) - time(NULL)) < 5);
	CHECK("__vdso_getcpu", getcpu && getcpu(&cpu, NULL, NULL) == 0 &&
				       cpu < (unsigned int)sysconf(_SC_NPROCESSORS_CONF));
	for (int i = 0; i < 1000; i++) {
		clock_gettime(CLOCK_MONOTONIC, &ours);
		if (ours.tv_sec < last.tv_sec ||
		    (ours.tv_sec == last.tv_sec && ours.tv_nsec < last.tv_nsec))
			check(false, "the monotonic clock goes forward", "it went back");
		last = ours;
	}
}

int main(int argc, char **argv)
{
	static const char name[] = "__vdso_sgx_enter_enclave";
	struct op op = { .code = OP_NOP };
	struct enclave enclave;

	begin(argc, argv);
	clocks();
	soname_and_version();
	check_equal("by the section headers", (uint64_t)by_section_headers(name),
		    (uint64_t)vdso_enter);
	check_equal("by the dynamic linker", (uint64_t)&__vdso_sgx_enter_enclave,
		    (uint64_t)vdso_enter);
	CHECK("the linker finds the clock too", (void *)&__vdso_clock_gettime ==
							vdso_symbol("__vdso_clock_gettime"));
	/* Names that are the vDSO's business only stay out of a program's way. */
	CHECK("no unprefixed names", !vdso_symbol("sgx_enter_enclave") && !vdso_symbol("memcpy"));

	enclave = build(&the_image);
	CHECK("entered by DT_HASH", do_op(&enclave, 0, &op));
	vdso_enter = __vdso_sgx_enter_enclave;
	CHECK("entered by the linker's address", vdso_enter && do_op(&enclave, 0, &op));
	return finish();
}
