/* SPDX-License-Identifier: Apache-2.0 */
/* What the host and the enclave of the example say to each other. */
#ifndef HELLO_H
#define HELLO_H

#include <stdint.h>

enum { HELLO_GREET = 1, HELLO_MEASUREMENT = 2 };

/* Lies in the host's memory; RDI points at it when the host enters. */
struct hello {
	uint64_t request;       /* HELLO_* */
	int64_t result;         /* 0, or -1: the enclave refused */

	/* HELLO_GREET */
	char name[32];
	uint64_t a, b;
	uint64_t sum;           /* a + b */
	uint64_t visits;        /* how often this enclave has greeted: counted in its own memory */
	char greeting[64];

	/* HELLO_MEASUREMENT */
	uint8_t mrenclave[32];  /* what the processor reports about the enclave */
};

#endif
