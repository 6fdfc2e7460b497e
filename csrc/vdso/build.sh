#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Build the vDSO image: csrc/vdso/build.sh OUTPUT   (CC names the compiler, default cc)
#
# CFLAGS and LDFLAGS are not used: what hardens or instruments an ordinary
# library breaks an image that must need no relocation and no library.
set -eu

if [ $# -ne 1 ]; then
	echo "usage: $0 OUTPUT" >&2
	exit 2
fi
here=$(dirname "$0")

# CC may hold arguments ("ccache cc").
# shellcheck disable=SC2086
exec ${CC:-cc} -m64 -ffreestanding -nostdlib -shared -fPIC \
	-Wl,-T,"$here/vdso.lds" -Wl,--version-script,"$here/vdso.map" \
	-Wl,-soname,linux-vdso.so.1 -Wl,--hash-style=both -Wl,--eh-frame-hdr \
	-Wl,--build-id=none -Wl,--no-undefined -Wl,-s \
	-Wl,-z,max-page-size=4096 -Wl,-z,noexecstack -Wl,-z,norelro -Wl,-z,text \
	-o "$1" "$here/sgx.S" "$here/clock.S" "$here/detours.S" "$here/paths.S" "$here/stubs.S" "$here/transitions.S"
