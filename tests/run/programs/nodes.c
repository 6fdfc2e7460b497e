/* SPDX-License-Identifier: Apache-2.0 */
/* Which of the paths that were given can be opened: a line "PATH ERRNO" each; and what maps says. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	char line[512];

	for (int i = 1; i < argc; i++) {
		int fd = open(argv[i], O_RDWR), found = fd < 0 ? errno : 0;
		struct stat st;

		printf("%s %d\n", argv[i], found);
		if (stat(argv[i], &st) ? errno != found : !S_ISCHR(st.st_mode))
			printf("%s: stat says otherwise\n", argv[i]);
		if (access(argv[i], R_OK | W_OK) ? errno != found : found)
			printf("%s: access says otherwise\n", argv[i]);
		/* A node of enclaves can be mapped; it is named by who asks what is mapped. */
		if (fd >= 0 && mmap(NULL, 8192, PROT_NONE, MAP_SHARED, fd, 0) != MAP_FAILED) {
			FILE *maps = fopen("/proc/self/maps", "r");

			while (fgets(line, sizeof(line), maps))
				if (strstr(line, "sgx") && !strstr(line, "softsgx"))
					printf("mapped %s", strrchr(line, ' ') + 1);
			fclose(maps);
		}
	}
	return 0;
}
