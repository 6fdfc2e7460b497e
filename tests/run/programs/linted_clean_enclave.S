/* SPDX-License-Identifier: Apache-2.0 */
#define CLEAN
#include "linted_enclave.S"
