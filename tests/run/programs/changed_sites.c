/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The MOV of an EEXIT that was led elsewhere, and whoever is to know nothing of it.
 *
 *     changed_sites ENCLAVE SIGSTRUCT debug    /proc/PID/mem of a debug enclave has what the enclave holds
 *     ... evicted       the page goes out and comes in with what it held, and is changed again
 *     ... exec          the program executes itself, with the enclave's descriptor, when its mappings are gone
 *     ... beside        or a child does, while threads of the first go in and out
 *     ... map FD BASE   that program: it maps the enclave, and enters
 */
#include "host.h"

#define MANY 2000

static const uint8_t held[5] = { 0xb8, EEXIT }; /* mov $EEXIT, %eax */
static struct enclave enclave;

static const volatile uint8_t *move(const struct enclave *which)
{
	return (const volatile uint8_t *)at_symbol(which, "enclave_eexit") - sizeof(held);
}

static bool works(const struct enclave *which, int index, uint64_t seed)
{
	struct op op = { .code = OP_WORK, .a = seed }, again = op;

	return do_op(which, index, &op) && do_op(which, index, &again) && op.out[0] == again.out[0];
}

static bool becomes_changed(const struct enclave *which)
{
	for (int i = 0; i < MANY && *move(which) == held[0]; i++)
		if (!works(which, 0, i))
			return false;
	return *move(which) == 0xe9;
}

static void in_debug(void)
{
	int memory;
	struct secs secs;
	uint8_t seen[16];

	enclave = (struct enclave){ .fd = open_device(), .base = reserve(the_image.size),
				    .size = the_image.size, .image = &the_image };
	secs = enclave_secs(&enclave, ATTRIBUTE_DEBUG);
	if (create(enclave.fd, &secs) || add_segments(enclave.fd, &the_image) ||
	    init(enclave.fd, sigstruct) || map_segments(&enclave))
		fail("a debug enclave");
	CHECK("the MOV becomes a jump", becomes_changed(&enclave));
	memory = open("/proc/self/mem", O_RDWR | O_CLOEXEC);
	for (uint64_t before = 0; before < 8; before++)
		for (size_t length = 1; length <= sizeof(seen); length += 3) {
			uint64_t at = (uint64_t)move(&enclave) - before;
			size_t overlap = before + 5 < length ? 5 : length > before ? length - before : 0;

			if (pread(memory, seen, length, at) != (ssize_t)length ||
			    memcmp(seen + before, held, overlap))
				check(false, "EDBGRD has the MOV", "%zu bytes, %lu before it", length, before);
		}
	CHECK("the jump is still there", *move(&enclave) == 0xe9);
	CHECK("EDBGWR of a part", pwrite(memory, held + 1, 1, (uint64_t)move(&enclave) + 1) == 1);
	CHECK("has taken it back", !memcmp((const void *)move(&enclave), held, sizeof(held)));
	CHECK("it works", works(&enclave, 0, 5));
	CHECK("and is changed again", becomes_changed(&enclave));
}

static void when_evicted(void)
{
	struct enclave other;
	struct op op = { .code = OP_FILL };

	enclave = build(&the_image);
	CHECK("the MOV becomes a jump", becomes_changed(&enclave));
	other = build(&the_image);
	for (int i = 0; i < 3; i++) {
		op.a = other.base + symbol(&the_image, "heap_begin");
		op.b = other.base + symbol(&the_image, "enclave_end") - op.a;
		CHECK("another enclave takes its place", do_op(&other, 1, &op));
		CHECK("the page comes in with the MOV", !memcmp((const void *)move(&enclave), held, sizeof(held)));
		CHECK("it works", works(&enclave, 0, i));
		CHECK("and is changed again", becomes_changed(&enclave));
	}
}

static void execute(char **argv)
{
	char fd[16], base[32];

	fcntl(enclave.fd, F_SETFD, 0);
	snprintf(fd, sizeof(fd), "%d", enclave.fd);
	snprintf(base, sizeof(base), "%#lx", enclave.base);
	execl("/proc/self/exe", argv[0], argv[1], argv[2], "map", fd, base, NULL);
	_exit(126);
}

static void map_and_enter(char **argv)
{
	enclave = (struct enclave){ .fd = atoi(argv[4]), .base = strtoul(argv[5], NULL, 0),
				    .size = the_image.size, .image = &the_image };
	if (map_segments(&enclave))
		fail("mapping the enclave");
	CHECK("the MOV is there", !memcmp((const void *)move(&enclave), held, sizeof(held)));
	for (int i = 0; i < MANY; i++)
		if (!works(&enclave, 2, i))
			fail("turn %d in the new program", i);
	CHECK("the new program enters", true);
}

static volatile bool enough;

static void *go_on(void *index)
{
	for (uint64_t i = 0; !enough; i++)
		if (!works(&enclave, (long)index, i)) {
			check(false, "threads go on", "turn %lu", i);
			break;
		}
	return NULL;
}

static void beside(char **argv)
{
	pthread_t threads[2];
	int status = 0;
	pid_t child;

	for (long i = 0; i < 2; i++)
		pthread_create(&threads[i], NULL, go_on, (void *)i);
	/* No mapping of it is inherited by who executes. */
	child = fork_bound();
	if (!child)
		execute(argv);
	CHECK("the child is content", waitpid(child, &status, 0) == child && status == 0);
	enough = true;
	for (int i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
	CHECK("and so is its parent", works(&enclave, 0, 1));
}

int main(int argc, char **argv)
{
	const char *what = argc > 3 ? argv[3] : "";

	begin(argc, argv);
	end_after(60);
	if (!strcmp(what, "debug")) {
		in_debug();
	} else if (!strcmp(what, "evicted")) {
		when_evicted();
	} else if (!strcmp(what, "map")) {
		map_and_enter(argv);
	} else {
		enclave = build(&the_image);
		CHECK("the MOV becomes a jump", becomes_changed(&enclave));
		if (!strcmp(what, "exec"))
			execute(argv);
		beside(argv);
	}
	return finish();
}
