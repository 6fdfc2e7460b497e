/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Processes in a row, the threads of each of which make and map its first enclaves all at once.
 *
 *     first_mappings ENCLAVE SIGSTRUCT
 */
#include "host.h"

#define PROCESSES 40
#define THREADS 4

static pthread_barrier_t together;

static void *make(void *index)
{
	struct op op = { .code = OP_NOP };
	struct enclave enclave;

	pthread_barrier_wait(&together);
	enclave = build(&the_image);
	for (int i = 0; i < 5; i++)
		if (!do_op(&enclave, (long)index, &op))
			fail("entering");
	return NULL;
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	end_after(18);
	for (int i = 0; i < PROCESSES; i++) {
		int status = 0;
		pid_t pid = fork();

		if (!pid) {
			pthread_t thread[THREADS];

			pthread_barrier_init(&together, NULL, THREADS);
			for (long k = 0; k < THREADS; k++)
				pthread_create(&thread[k], NULL, make, (void *)k);
			for (int k = 0; k < THREADS; k++)
				pthread_join(thread[k], NULL);
			_exit(0);
		}
		waitpid(pid, &status, 0);
		check_equal("status of a process", status, 0);
	}
	return finish();
}
