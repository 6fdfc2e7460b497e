/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Maps a file readable, writable and executable, MAP_SHARED or MAP_PRIVATE, and prints whether the
 * mapping holds the file's bytes: "same" or "changed".
 *
 *     text_mapping FILE shared|private
 */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static unsigned char contents[1 << 20];

int main(int argc, char **argv)
{
	int fd = argc == 3 ? open(argv[1], O_RDWR) : -1;
	int flags = argc == 3 && !strcmp(argv[2], "shared") ? MAP_SHARED : MAP_PRIVATE;
	struct stat st;
	void *text;

	if (fd < 0 || fstat(fd, &st) || st.st_size > (off_t)sizeof(contents) ||
	    pread(fd, contents, st.st_size, 0) != st.st_size) {
		perror("reading the file");
		return 1;
	}
	text = mmap(NULL, st.st_size, PROT_READ | PROT_WRITE | PROT_EXEC, flags, fd, 0);
	if (text == MAP_FAILED) {
		perror("mmap");
		return 1;
	}
	puts(memcmp(text, contents, st.st_size) ? "changed" : "same");
	if (msync(text, st.st_size, MS_SYNC)) {
		perror("msync");
		return 1;
	}
	return 0;
}
