/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What transitions.c and its model share: what RDI says, the host's function, and how turns are timed.
 */
#ifndef TRANSITIONS_H
#define TRANSITIONS_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <x86intrin.h>

// As in enclave.S.
#define CALL -1   // into the enclave: leave for an ocall
#define RETURN -2 // into the enclave: back from an ocall
#define OCALL -3  // out of it: an ocall

#define TEXT_OF(value) #value
#define TEXT(value) TEXT_OF(value)

enum { BATCHES = 100 };

extern uint64_t ocalls;

static int by_size(const void *one, const void *other)
{
	const double a = *(const double *)one, b = *(const double *)other;

	return (a > b) - (a < b);
}

// Time `count` turns in batches, after one that does not count; print the nanoseconds in all, and of one turn in the
// median batch the nanoseconds and the cycles of the time stamp counter. Inlined, for a model of nanoseconds.
__attribute__((always_inline)) static inline void measure(void turn(void *), void *argument, uint64_t count)
{
	static double nanoseconds[BATCHES], cycles[BATCHES];
	const uint64_t batch = count / BATCHES ? count / BATCHES : 1;
	double all = 0;

	for (int i = -1; i < BATCHES; i++) {
		struct timespec begin, end;

		clock_gettime(CLOCK_MONOTONIC, &begin);
		const uint64_t first = __rdtsc();
		for (uint64_t n = 0; n < batch; n++)
			turn(argument);
		const uint64_t last = __rdtsc();
		clock_gettime(CLOCK_MONOTONIC, &end);
		if (i < 0)
			continue;
		nanoseconds[i] = (double)(end.tv_sec - begin.tv_sec) * 1e9 + (double)(end.tv_nsec - begin.tv_nsec);
		all += nanoseconds[i];
		cycles[i] = (double)(last - first);
	}
	qsort(nanoseconds, BATCHES, sizeof *nanoseconds, by_size);
	qsort(cycles, BATCHES, sizeof *cycles, by_size);
	printf("%.0f %.2f %.1f\n", all, nanoseconds[BATCHES / 2] / (double)batch, cycles[BATCHES / 2] / (double)batch);
}

#endif
