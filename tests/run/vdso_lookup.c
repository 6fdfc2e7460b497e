// SPDX-License-Identifier: Apache-2.0
// Find a symbol of an image as programs do that start from AT_SYSINFO_EHDR: PT_DYNAMIC, the System V
// hash table, and the version.  Knows no file: reads only the memory that it is given.
//
//   vdso_lookup IMAGE SYMBOL VERSION      prints the symbol's offset; status 1 when there is none

#include <elf.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *image;

static unsigned long hash(const char *name)
{
	unsigned long h = 0;
	for (; *name; name++) {
		h = (h << 4) + (unsigned char)*name;
		h = (h ^ (h & 0xf0000000) >> 24) & 0x0fffffff;
	}
	return h;
}

static const void *entry(long tag)
{
	const Elf64_Ehdr *header = (const void *)image;
	const Elf64_Phdr *segment = (const void *)(image + header->e_phoff);
	for (int i = 0; i < header->e_phnum; i++, segment++) {
		if (segment->p_type != PT_DYNAMIC)
			continue;
		for (const Elf64_Dyn *d = (const void *)(image + segment->p_offset); d->d_tag; d++)
			if (d->d_tag == tag)
				return image + d->d_un.d_ptr;
	}
	fprintf(stderr, "no dynamic entry %ld\n", tag);
	exit(2);
}

static int has_version(unsigned index, const char *version)
{
	const char *names = entry(DT_STRTAB);
	const char *at = entry(DT_VERDEF);
	for (;;) {
		const Elf64_Verdef *def = (const void *)at;
		const Elf64_Verdaux *aux = (const void *)(at + def->vd_aux);
		if (def->vd_ndx == (index & 0x7fff))
			return !(def->vd_flags & VER_FLG_BASE) && def->vd_hash == hash(version) &&
			       !strcmp(names + aux->vda_name, version);
		if (!def->vd_next)
			return 0;
		at += def->vd_next;
	}
}

int main(int argc, char **argv)
{
	FILE *stream = argc == 4 ? fopen(argv[1], "rb") : NULL;
	char *memory = malloc(65536);
	if (!stream || !memory || !fread(memory, 1, 65536, stream))
		return 2;
	image = memory;

	const Elf64_Word *table = entry(DT_HASH);
	const Elf64_Sym *symbols = entry(DT_SYMTAB);
	const Elf64_Half *versions = entry(DT_VERSYM);
	const char *names = entry(DT_STRTAB);
	const Elf64_Word *bucket = table + 2, *chain = bucket + table[0];
	for (Elf64_Word i = bucket[hash(argv[2]) % table[0]]; i != STN_UNDEF; i = chain[i]) {
		if (symbols[i].st_shndx != SHN_UNDEF && !strcmp(names + symbols[i].st_name, argv[2]) &&
		    has_version(versions[i], argv[3])) {
			printf("%#lx\n", symbols[i].st_value);
			return 0;
		}
	}
	return 1;
}
