/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An enclave by the ABI of the drivers that find it by its address: v16, isgx, and DCAP before 1.6.
 * Which of them it is, and its node, are given to the program; everything else is host.h's.
 */
#ifndef LEGACY_H
#define LEGACY_H

#include "host.h"

struct legacy_add_page {
	uint64_t addr, src, secinfo;
	uint16_t mrmask;
} __attribute__((packed));

struct legacy_init {
	uint64_t addr, sigstruct;
};

struct legacy_init_token {
	uint64_t addr, sigstruct, einittoken;
};

#define LEGACY_IOC_ADD_PAGE _IOW(0xA4, 0x01, struct legacy_add_page)
#define LEGACY_IOC_INIT _IOW(0xA4, 0x02, struct legacy_init)
#define LEGACY_IOC_INIT_TOKEN _IOW(0xA4, 0x02, struct legacy_init_token)

static const char *legacy_node, *legacy_driver;
static bool legacy_token; /* INIT takes a launch token */

__attribute__((unused)) static void legacy_begin(int argc, char **argv)
{
	begin(argc, argv);
	if (argc < 5)
		fail("usage: %s ENCLAVE SIGSTRUCT NODE DRIVER [ARG...]", argv[0]);
	legacy_node = argv[3];
	legacy_driver = argv[4];
	legacy_token = !strcmp(legacy_driver, "isgx");
}

__attribute__((unused)) static int legacy_open(void)
{
	int fd = open(legacy_node, O_RDWR | O_CLOEXEC);

	if (fd < 0)
		fail("cannot open %s", legacy_node);
	return fd;
}

/* As the loaders of the time: the driver finds room and aligns it. */
__attribute__((unused)) static uint64_t legacy_map(int fd, uint64_t size, int prot)
{
	void *area = mmap(NULL, size, prot, MAP_SHARED, fd, 0);

	if (area == MAP_FAILED)
		fail("cannot map %#lx bytes of %s", size, legacy_node);
	return (uint64_t)area;
}

__attribute__((unused)) static int legacy_add(int fd, uint64_t addr, const void *page,
					      uint64_t flags, uint16_t mrmask)
{
	struct secinfo secinfo = { .flags = flags };
	struct legacy_add_page argument = {
		.addr = addr,
		.src = (uint64_t)page,
		.secinfo = (uint64_t)&secinfo,
		.mrmask = mrmask,
	};

	return ioctl(fd, LEGACY_IOC_ADD_PAGE, &argument);
}

__attribute__((unused)) static int legacy_add_segments(int fd, uint64_t base,
						       const struct image *image)
{
	for (int i = 0; i < image->segments; i++) {
		const struct segment *segment = &image->segment[i];

		for (uint64_t at = 0; at < segment->length; at += PAGE) {
			int result = legacy_add(fd, base + segment->offset + at, segment->data + at,
						segment->secinfo, 0xffff);

			if (result)
				return result;
		}
	}
	return 0;
}

__attribute__((unused)) static int legacy_init_at(int fd, uint64_t addr, const void *css)
{
	static uint8_t token[304];
	struct legacy_init_token by_token = { addr, (uint64_t)css, (uint64_t)token };
	struct legacy_init argument = { addr, (uint64_t)css };

	return legacy_token ? ioctl(fd, LEGACY_IOC_INIT_TOKEN, &by_token)
			    : ioctl(fd, LEGACY_IOC_INIT, &argument);
}

/* The protections that the segments want, as the loaders set them. */
__attribute__((unused)) static int legacy_protect(uint64_t base, const struct image *image)
{
	for (int i = 0; i < image->segments; i++) {
		const struct segment *segment = &image->segment[i];

		if (mprotect((void *)(base + segment->offset), segment->length, segment->prot))
			return -1;
	}
	return 0;
}

/* All the steps with one descriptor; any that fails ends the program. */
__attribute__((unused)) static struct enclave legacy_build_on(int fd, int prot)
{
	struct enclave enclave = {
		.fd = fd,
		.size = the_image.size,
		.image = &the_image,
	};
	struct secs secs;

	enclave.base = legacy_map(fd, enclave.size, prot);
	secs = enclave_secs(&enclave, 0);
	if (create(fd, &secs))
		fail("CREATE");
	if (legacy_add_segments(fd, enclave.base, &the_image))
		fail("ADD_PAGE");
	if (!prot && legacy_protect(enclave.base, &the_image))
		fail("mprotect");
	if (legacy_init_at(fd, enclave.base, sigstruct))
		fail("INIT");
	return enclave;
}

__attribute__((unused)) static struct enclave legacy_build(void)
{
	return legacy_build_on(legacy_open(), PROT_NONE);
}

#endif
