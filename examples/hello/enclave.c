// SPDX-License-Identifier: Apache-2.0
/* The inside of the example: freestanding, no vector registers, trusts nothing that it is given. */
#include <stdbool.h>
#include <stddef.h>

#include "hello.h"

#define EREPORT 0
#define REPORT_MRENCLAVE 64

extern char enclave_base[], enclave_end[];

/* In enclave memory: the host can neither read nor reset it. */
static uint64_t visits;

/* The compiler may call these for a copy of its own. */
void *memcpy(void *restrict to, const void *restrict from, size_t length)
{
	char *t = to;
	const char *f = from;

	while (length--)
		*t++ = *f++;
	return to;
}

void *memset(void *to, int value, size_t length)
{
	char *t = to;

	while (length--)
		*t++ = (char)value;
	return to;
}

/*
 * A pointer from the host must not point into the enclave, or the host could have the enclave's own
 * memory read and written for it.
 */
static bool outside(const void *pointer, size_t length)
{
	uintptr_t start = (uintptr_t)pointer, base = (uintptr_t)enclave_base, size = 4096;

	while (size < (uintptr_t)enclave_end - base)
		size *= 2;
	return start + length >= start && (start + length <= base || start >= base + size);
}

static void append(char **end, const char *text)
{
	while (*text)
		*(*end)++ = *text++;
	**end = '\0';
}

static void greet(struct hello *hello)
{
	char *end = hello->greeting;

	hello->name[sizeof(hello->name) - 1] = '\0';
	append(&end, "Hello ");
	append(&end, hello->name);
	append(&end, ", from inside the enclave.");
	hello->sum = hello->a + hello->b;
	hello->visits = __atomic_add_fetch(&visits, 1, __ATOMIC_RELAXED);
}

/* Ask the processor who we are: EREPORT writes it into the report, the host cannot. */
static void measurement(struct hello *hello)
{
	static const uint8_t targetinfo[512] __attribute__((aligned(512)));
	static const uint8_t reportdata[64] __attribute__((aligned(128)));
	uint8_t report[512] __attribute__((aligned(512)));

	asm volatile("enclu"
		     :
		     : "a"(EREPORT), "b"(targetinfo), "c"(reportdata), "d"(report)
		     : "memory", "cc");
	memcpy(hello->mrenclave, report + REPORT_MRENCLAVE, sizeof(hello->mrenclave));
}

/* Called on the thread's stack in the enclave, with what the host had in RDI. */
void enclave_main(struct hello *hosts)
{
	struct hello hello;

	if (!outside(hosts, sizeof(*hosts)))
		return;
	/* One look at the host's memory: it may change at any time. */
	memcpy(&hello, hosts, sizeof(hello));
	hello.result = 0;
	switch (hello.request) {
	case HELLO_GREET:
		greet(&hello);
		break;
	case HELLO_MEASUREMENT:
		measurement(&hello);
		break;
	default:
		hello.result = -1;
	}
	memcpy(hosts, &hello, sizeof(hello));
}
