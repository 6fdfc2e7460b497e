/* SPDX-License-Identifier: Apache-2.0 */
/* The records of EREPORT and EGETKEY, and the MAC of a REPORT as its receiver computes it. */
#ifndef REPORT_H
#define REPORT_H

#include <stdint.h>
#include <string.h>

#define KEYNAME_EINITTOKEN 0
#define KEYNAME_PROVISION 1
#define KEYNAME_PROVISION_SEAL 2
#define KEYNAME_REPORT 3
#define KEYNAME_SEAL 4

#define ATTRIBUTE_INIT 1UL

struct target {
	uint8_t measurement[32];
	uint64_t attributes, xfrm;
	uint8_t reserved1[2];
	uint16_t configsvn;
	uint32_t miscselect;
	uint8_t reserved2[8], configid[64], reserved3[384];
};
_Static_assert(sizeof(struct target) == 512, "TARGETINFO");

struct report {
	uint8_t cpusvn[16];
	uint32_t miscselect;
	uint8_t reserved1[12], isvextprodid[16];
	uint64_t attributes, xfrm;
	uint8_t mrenclave[32], reserved2[32], mrsigner[32], reserved3[32], configid[64];
	uint16_t isvprodid, isvsvn, configsvn;
	uint8_t reserved4[42], isvfamilyid[16], reportdata[64], keyid[32], mac[16];
};
_Static_assert(sizeof(struct report) == 432, "REPORT");

#define REPORT_MACED 384 /* KEYID and MAC are not */

struct keyrequest {
	uint16_t keyname, keypolicy, isvsvn, reserved1;
	uint8_t cpusvn[16];
	uint64_t attributemask, xfrmmask;
	uint8_t keyid[32];
	uint32_t miscmask;
	uint16_t configsvn;
	uint8_t reserved2[434];
};
_Static_assert(sizeof(struct keyrequest) == 512, "KEYREQUEST");

/* ---- AES-128 (FIPS 197), encryption only, and CMAC (RFC 4493) ------------------------------- */

static inline uint8_t aes_double(uint8_t x)
{
	return x << 1 ^ (x & 0x80 ? 0x1b : 0);
}

static inline uint8_t aes_multiply(uint8_t x, uint8_t y)
{
	uint8_t product = 0;

	for (; y; y >>= 1, x = aes_double(x))
		product ^= y & 1 ? x : 0;
	return product;
}

/* The inverse is the 254th power; then the affine map. */
static inline uint8_t aes_substitute(uint8_t x)
{
	uint8_t inverse = 1;

	for (int i = 0; i < 254; i++)
		inverse = aes_multiply(inverse, x);
	x = inverse;
	for (int i = 0; i < 4; i++) {
		x = x << 1 | x >> 7;
		inverse ^= x;
	}
	return inverse ^ 0x63;
}

static inline void aes_encrypt(const uint8_t key[16], uint8_t block[16])
{
	static uint8_t substitute[256];
	uint8_t round_key[16], state[16], constant = 1;

	for (int i = 0; !substitute[0] && i < 256; i++)
		substitute[255 - i] = aes_substitute(255 - i);
	memcpy(round_key, key, 16);
	for (int i = 0; i < 16; i++)
		block[i] ^= round_key[i];
	for (int round = 1; round <= 10; round++) {
		for (int i = 0; i < 4; i++)
			round_key[i] ^= substitute[round_key[12 + (i + 1) % 4]];
		round_key[0] ^= constant;
		for (int i = 4; i < 16; i++)
			round_key[i] ^= round_key[i - 4];
		constant = aes_double(constant);
		for (int i = 0; i < 16; i++) /* SubBytes and ShiftRows */
			state[i] = substitute[block[(5 * i) % 16]];
		for (int i = 0; i < 16; i++) { /* MixColumns, not in the last round */
			const uint8_t *column = state + i / 4 * 4;
			uint8_t next = column[(i + 1) % 4];

			block[i] = round_key[i] ^ (round == 10 ? state[i] :
						   aes_double(state[i] ^ next) ^ next ^
						   column[(i + 2) % 4] ^ column[(i + 3) % 4]);
		}
	}
}

/* The CMAC of at least one byte. */
static inline void aes_cmac(const uint8_t key[16], const void *message, unsigned int length,
			    uint8_t mac[16])
{
	const uint8_t *bytes = message;
	uint8_t subkey[16] = { 0 }, carry;

	aes_encrypt(key, subkey);
	for (int doubled = 0; doubled < (length % 16 ? 2 : 1); doubled++) {
		carry = subkey[0] >> 7;
		for (int i = 0; i < 16; i++)
			subkey[i] = subkey[i] << 1 | (i < 15 ? subkey[i + 1] >> 7 : 0);
		subkey[15] ^= carry ? 0x87 : 0;
	}
	memset(mac, 0, 16);
	for (; length > 16; length -= 16, bytes += 16) {
		for (int i = 0; i < 16; i++)
			mac[i] ^= bytes[i];
		aes_encrypt(key, mac);
	}
	for (unsigned int i = 0; i < 16; i++)
		mac[i] ^= (i < length ? bytes[i] : i == length ? 0x80 : 0) ^ subkey[i];
	aes_encrypt(key, mac);
}

#endif
