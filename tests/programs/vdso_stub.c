/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a program links against to need linux-vdso.so.1 (soname and version are given when it is
 * linked): at run time the dynamic linker has that library already, so this one is never loaded.
 */
int __vdso_sgx_enter_enclave(void);
int __vdso_clock_gettime(void);

int __vdso_sgx_enter_enclave(void)
{
	return 0;
}

int __vdso_clock_gettime(void)
{
	return 0;
}
