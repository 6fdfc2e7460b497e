/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An enclave larger than the EPC whose program stands still, so that others can look at its memory.
 *
 *     standing ENCLAVE SIGSTRUCT BYTES FIFO
 *
 * BYTES of the enclave's heap are filled. Then it waits for lines from FIFO, and does what they say:
 *     look   print the process, the enclave's base, its first and last page that is no TCS, and for each
 *            of these a letter, "1" if mincore(2) has it
 *     touch  read the first page of the heap that mincore has not, and print its address
 *     end
 */
#include "host.h"

static struct enclave enclave;
static uint64_t heap, bytes;

static bool in_core(uint64_t address)
{
	unsigned char there;

	if (mincore((void *)address, PAGE, &there))
		fail("mincore");
	return there & 1;
}

static void look(void)
{
	uint64_t first = enclave.base + the_image.segment[1].offset;
	uint64_t end = enclave.base + the_image.segment[3].offset + the_image.segment[3].length;

	printf("%d %#lx %#lx %#lx ", getpid(), enclave.base, first, end - PAGE);
	for (uint64_t at = first; at < end; at += PAGE)
		putchar(in_core(at) ? '1' : '0');
	putchar('\n');
}

static void touch(void)
{
	struct op op = { .code = OP_TOUCH, .a = heap, .b = PAGE, .c = 1 };

	while (op.a < heap + bytes && in_core(op.a))
		op.a += PAGE;
	if (!do_op(&enclave, 0, &op))
		fail("reading a page");
	printf("%#lx\n", op.a);
}

int main(int argc, char **argv)
{
	struct op op = { .code = OP_FILL, .c = 1 };
	char line[8];
	FILE *fifo;

	begin(argc, argv);
	if (argc < 5)
		fail("usage: standing ENCLAVE SIGSTRUCT BYTES FIFO");
	bytes = strtoul(argv[3], NULL, 0);
	enclave = build(&the_image);
	heap = at_symbol(&enclave, "heap_begin");
	op.a = heap;
	op.b = bytes;
	if (!do_op(&enclave, 0, &op))
		fail("filling the enclave");
	fifo = fopen(argv[4], "r+");
	if (!fifo)
		fail("cannot open %s", argv[4]);
	while (fgets(line, sizeof(line), fifo) && *line != 'e') {
		if (*line == 'l')
			look();
		else
			touch();
		fflush(stdout);
	}
	return finish();
}
