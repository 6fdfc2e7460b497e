/* SPDX-License-Identifier: Apache-2.0 */
/* What the enclave linted_enclave.S is told to do: in the first word at RDI. */
#ifndef LINTED_H
#define LINTED_H

#define LINTED_LEAVE 0
#define LINTED_CPUID 1
#define LINTED_EREPORT 2 /* with a TARGETINFO that is not aligned */
#define LINTED_UD2 3
#define LINTED_JUMP 4    /* to the second word */

#endif
