#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Build an SGX program and its enclave with the system's compiler, sign the enclave, and run both on
# a machine without SGX. Nothing in them knows softsgx. Run by `make demo`, which puts softsgx on PATH.
set -euo pipefail
cd "$(dirname "$0")/.."

out=build/demo
enclave=$out/enclave.elf
sigstruct=$out/enclave.sigstruct
cc=${CC:-cc}
mkdir -p "$out"

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
[ -t 1 ] || say() { printf '\n%s\n' "$*"; }
run() { printf '$ %s\n' "$*"; "$@"; }
newer() { local target=$1 source; shift; for source; do [ "$target" -nt "$source" ] || return 1; done; }

say '1. An ordinary SGX program, built by the C compiler: a host and an enclave.'
sources=(examples/hello/{host.c,hello.h,enclave.c,enclave.S,enclave.lds} examples/demo.sh)
if newer "$out/hello" "${sources[@]}" && newer "$enclave" "${sources[@]}"; then
	echo "$out/hello and $enclave are up to date."
else
	warnings=(-std=gnu11 -O2 -Wall -Wextra -Werror)
	# The enclave is linked at fixed offsets and touches no vector register; see enclave.lds.
	freestanding=(-ffreestanding -fpie -fvisibility=hidden -mgeneral-regs-only
		-fno-stack-protector -fcf-protection=none -fno-asynchronous-unwind-tables
		-fno-tree-loop-distribute-patterns
		-nostdlib -static -no-pie -Wl,-T,examples/hello/enclave.lds
		-Wl,--build-id=none -Wl,-z,noexecstack -Wl,-z,max-page-size=4096)
	$cc "${warnings[@]}" -o "$out/hello" examples/hello/host.c
	$cc "${warnings[@]}" "${freestanding[@]}" -o "$enclave" examples/hello/enclave.{S,c}
	echo "$cc made $out/hello and $enclave; they are linked against nothing of softsgx:"
	readelf -d "$out/hello" | sed -n 's/.*\(Shared library: .*\)/  \1/p'
fi

say '2. Measure the enclave: what a processor computes while the pages are added.'
run softsgx measure "$enclave"

say '3. Sign it, with a throw-away key: SGX starts no enclave without a signature.'
run softsgx sign "$enclave" --key "$out/key.pem" --generate-key --out "$sigstruct"

say '4. Run it without softsgx.'
printf '$ %s\n' "$out/hello $enclave $sigstruct"
status=0
"$out/hello" "$enclave" "$sigstruct" || status=$?
if [ -e /dev/sgx_enclave ]; then
	echo "This machine has /dev/sgx_enclave itself: that was the real processor (status $status)."
elif [ "$status" -ne 0 ]; then
	echo "As it must: this machine has no SGX."
else
	echo "demo: it ran although there is no /dev/sgx_enclave, which cannot be" >&2
	exit 1
fi

say '5. The same program, the same files, under softsgx.'
run softsgx run --stats -- "$out/hello" "$enclave" "$sigstruct" | tee "$out/output"

say '6. An enclave that was changed by one byte after it was signed is refused.'
changed=$out/changed.elf
cp "$enclave" "$changed"
# The first byte of the code: the linker put it at 0x3000 in the file.
printf '\xcc' | dd of="$changed" bs=1 seek=$((0x3000)) conv=notrunc status=none
if run softsgx run -- "$out/hello" "$changed" "$sigstruct"; then
	echo 'demo: the changed enclave was initialized' >&2
	exit 1
fi

say '7. What happened?'
measured=$(softsgx measure --json "$enclave" | sed 's/.*"mrenclave": "\([0-9a-f]*\)".*/\1/')
reported=$(sed -n 's/.*reports MRENCLAVE //p' "$out/output")
if [ -z "$reported" ] || [ "$measured" != "$reported" ]; then
	echo "demo: the enclave was measured as $measured, but reported itself as ${reported:-nothing}" >&2
	exit 1
fi
cat <<'END'
The program opened /dev/sgx_enclave, created an enclave, added its pages and had it initialized: the
signature was verified and the measurement compared. It entered through the vDSO, its own code ran
natively in the enclave, and left by EEXIT. EREPORT inside the enclave gave the same MRENCLAVE that
`softsgx measure` computed from the file. It is all software: nothing here is protected from anybody.
END
