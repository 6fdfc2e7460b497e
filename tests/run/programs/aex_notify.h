/* SPDX-License-Identifier: Apache-2.0 */
/* What aex_notify.c asks of its enclave, which is aex_notify_enclave.S: codes of struct op. */
#define NOTIFY_ARM 1    /* from now on each exit of this thread is told to it */
#define NOTIFY_LOOP 2   /* a turns; out[] = sums kept in registers, in an XMM register, in the red zone, on the stack */
#define NOTIFY_UD2 3    /* UD2, which the handler skips; out[0] = 1 */
#define NOTIFY_COUNTS 4 /* out[] = notifications, skipped UD2s, notifications that came in the handler's end */
#define NOTIFY_LEAF 5   /* ENCLU with RAX = a, RBX = b, or 0 for a page of zeros; out[] = RAX, whether ZF is set */
#define SKIPPED_LEAF 0xffffffff /* RAX where the handler has skipped an EVERIFYREPORT2 that is #GP */
