/* SPDX-License-Identifier: Apache-2.0 */
/* Ways to change a mapping of an enclave that are less common than mmap and mprotect. */
#include "host.h"

#include <sys/syscall.h>

static struct enclave enclave;

static bool works(void)
{
	struct op put = { .code = OP_PUT, .a = 0x5eed }, get = { .code = OP_GET };

	return do_op(&enclave, 0, &put) && do_op(&enclave, 0, &get) && get.out[0] == 0x5eed;
}

static long map(uint64_t address, uint64_t length, int prot)
{
	return mmap((void *)address, length, prot, MAP_SHARED, enclave.fd, 0) == MAP_FAILED ? -1 :
											      0;
}

/* sgx_encl_may_map: after INIT only what lies in ELRANGE. */
static void outside(void)
{
	check_errno("anywhere, read", map(0, PAGE, PROT_READ), EACCES);
	check_errno("anywhere, none", map(0, PAGE, PROT_NONE), EACCES);
	check_errno("anywhere, all", map(0, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC), EACCES);
	check_errno("a hint outside", map(reserve(16 * PAGE), PAGE, PROT_READ), EACCES);
	check_errno("larger than ELRANGE", map(0, 4 * enclave.size, PROT_READ), EACCES);
	CHECK("the enclave works", works());
}

static long protect(uint64_t address, int prot, int key)
{
	return syscall(SYS_pkey_mprotect, address, PAGE, prot, key);
}

static void protection_keys(void)
{
	uint64_t heap = at_symbol(&enclave, "heap_page");
	uint64_t text = enclave.base + the_image.segment[1].offset;

	check_errno("pkey_mprotect, data executable",
		    protect(heap, PROT_READ | PROT_WRITE | PROT_EXEC, -1), EACCES);
	check_errno("pkey_mprotect, text writable", protect(text, PROT_READ | PROT_WRITE, -1),
		    EACCES);
	check_works("pkey_mprotect within SECINFO", protect(heap, PROT_READ, -1));
	check_works("and back", protect(heap, PROT_READ | PROT_WRITE, -1));
	CHECK("the enclave works", works());
}

static void remapping(void)
{
	uint64_t heap = at_symbol(&enclave, "heap_page");
	struct op put = { .code = OP_WRITE, .a = heap, .b = 0xfeed };
	struct op look = { .code = OP_READ, .a = heap };

	CHECK("write", do_op(&enclave, 0, &put));
	check(syscall(SYS_remap_file_pages, heap, PAGE, 0, 0, 0) == -1,
	      "remap_file_pages is refused", "it succeeded");
	check(syscall(SYS_remap_file_pages, heap, PAGE, 0, heap / PAGE + 1, 0) == -1,
	      "remap_file_pages to another page is refused", "it succeeded");
	CHECK("read", do_op(&enclave, 0, &look));
	check_equal("it is the same page", look.out[0], 0xfeed);
	CHECK("the enclave works", works());
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	enclave = build(&the_image);
	outside();
	protection_keys();
	remapping();
	return finish();
}
