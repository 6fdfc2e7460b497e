/* SPDX-License-Identifier: Apache-2.0 */
/* Many threads set the action of SIGILL at the same time, again and again. */
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

#define THREADS 64
#define TIMES 50

static pthread_barrier_t barrier;

static void handler(int number)
{
}

static void *set(void *unused)
{
	struct sigaction action = { .sa_handler = handler }, before;

	for (int i = 0; i < TIMES; i++) {
		pthread_barrier_wait(&barrier);
		if (sigaction(SIGILL, &action, &before) ||
		    (i && before.sa_handler != handler)) {
			puts("not the action that was set");
			exit(1);
		}
	}
	return NULL;
}

int main(void)
{
	pthread_t threads[THREADS];

	pthread_barrier_init(&barrier, NULL, THREADS);
	for (int i = 0; i < THREADS; i++)
		if (pthread_create(&threads[i], NULL, set, NULL))
			return 2;
	for (int i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	return 0;
}
