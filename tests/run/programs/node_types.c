/* SPDX-License-Identifier: Apache-2.0 */
/* What the stat calls say of nodes and links: a line "NAME CALL TYPE MAJOR" each. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

static char letter(unsigned int mode)
{
	return S_ISLNK(mode) ? 'l' : S_ISCHR(mode) ? 'c' : S_ISDIR(mode) ? 'd' : '?';
}

static void show(const char *path)
{
	struct statx extended;
	struct stat st;
	char target[64] = "";
	int fd = open(path, O_RDWR);

	if (!stat(path, &st))
		printf("%s stat %c %u\n", path, letter(st.st_mode), major(st.st_rdev));
	if (!lstat(path, &st))
		printf("%s lstat %c %u\n", path, letter(st.st_mode), major(st.st_rdev));
	if (!fstatat(AT_FDCWD, path, &st, AT_SYMLINK_NOFOLLOW))
		printf("%s fstatat %c %u\n", path, letter(st.st_mode), major(st.st_rdev));
	if (!statx(AT_FDCWD, path, 0, STATX_BASIC_STATS, &extended))
		printf("%s statx %c %u\n", path, letter(extended.stx_mode),
		       extended.stx_rdev_major);
	if (!statx(AT_FDCWD, path, AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS, &extended))
		printf("%s lstatx %c %u\n", path, letter(extended.stx_mode),
		       extended.stx_rdev_major);
	if (readlink(path, target, sizeof(target) - 1) > 0)
		printf("%s readlink %s\n", path, target);
	printf("%s open %s\n", path, fd >= 0 ? "yes" : "no");
	if (fd >= 0)
		close(fd);
}

int main(void)
{
	show("/dev/sgx_enclave");
	show("/dev/sgx/enclave");
	show("/dev/sgx_provision");
	show("/dev/sgx/provision");
	return 0;
}
