#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The wheel and the source distribution, installed in fresh environments where no compiler is on PATH, and used there.
# Run by `make packages`, which has made dist/*.whl and build/demo before, and puts the tools of .venv on PATH.
set -euo pipefail
cd "$(dirname "$0")/../.."

hello=$PWD/build/demo/hello
enclave=$PWD/build/demo/enclave.elf
sigstruct=$PWD/build/demo/enclave.sigstruct

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

fail() { printf 'packages: %s\n' "$*" >&2; exit 1; }
ok() { printf '%-8s %s\n' "$1" "$2"; }

# A compiler is not hidden by a name: only what is named here can be found.
mkdir "$work/bin"
ln -s "$(command -v sh)" "$work/bin/sh"

fresh() { # NAME: an environment of its own
	"${PYTHON:-/usr/bin/python3}" -m venv "$work/$1"
}
inside() { # NAME COMMAND...: with nothing but the environment's own programs on PATH
	local name=$1
	shift
	env -u CC -u CFLAGS -u LDFLAGS -u PYTHONPATH -u VIRTUAL_ENV HOME="$work" XDG_STATE_HOME="$work/state" \
		XDG_CACHE_HOME="$work/cache" PIP_CACHE_DIR="$cache" PATH="$work/$name/bin:$work/bin" "$@"
}
cache=$(python -m pip cache dir)
for compiler in cc gcc clang tcc c99 ld as; do
	if PATH=$work/bin command -v "$compiler" >/dev/null; then fail "$compiler can be found"; fi
done

mrenclave() { sed -n 's/^MRENCLAVE  //p'; }
wanted=$(softsgx measure "$enclave" | mrenclave)
[ ${#wanted} = 64 ] || fail "the enclave of the demo cannot be measured"
measures() { # NAME
	local found
	found=$(inside "$1" softsgx measure "$enclave" | mrenclave)
	[ "$found" = "$wanted" ] || fail "$1: MRENCLAVE is ${found:-missing}, not $wanted"
}
signs() { # NAME
	local out=$work/$1.sigstruct
	inside "$1" softsgx sign "$enclave" --key "$work/key.pem" --generate-key --out "$out" >/dev/null
	[ "$(wc -c <"$out")" = 1808 ] || fail "$1: no SIGSTRUCT was written"
}

# -- the wheel ---------------------------------------------------------------------------------------

wheels=(dist/softsgx-*.whl)
[ ${#wheels[@]} = 1 ] || fail "dist/ has ${#wheels[@]} wheels"
wheel=${wheels[0]}
case $wheel in
*-py3-none-manylinux_2_17_x86_64.whl) ;;
*) fail "$wheel: the tag is not that of a freestanding x86-64 image" ;;
esac
python -m zipfile -e "$wheel" "$work/unpacked"
# The tag says any Python and a C library of 2012: so much is true of the one native file, and there is no other.
native=$(find "$work/unpacked" -type f -exec sh -c 'head -c 4 "$1" | grep -q ELF' sh {} \; -print)
[ "$native" = "$work/unpacked/softsgx/run/linux-vdso.so.1" ] || fail "$wheel: its native files: ${native:-none}"
dynamic=$(LC_ALL=C readelf -d "$native")
if grep -q NEEDED <<<"$dynamic"; then fail "the vDSO image needs a library"; fi
if LC_ALL=C readelf --dyn-syms -W "$native" | awk '$7 == "UND" && $8 != ""' | grep -q .; then
	fail "the vDSO image has undefined symbols"
fi

fresh wheel
inside wheel python -m pip install --quiet --disable-pip-version-check --only-binary :all: "$wheel"
measures wheel
signs wheel
output=$(inside wheel softsgx run -- "$hello" "$enclave" "$sigstruct")
grep -q "the processor reports MRENCLAVE $wanted" <<<"$output" || fail "wheel: run: $output"
ok wheel "$(basename "$wheel"): installed without a compiler; measure, sign and run work"

# -- the source ----------------------------------------------------------------------------------------

# meson takes what is committed, and nothing else.
git diff --quiet HEAD || ok source 'of the last commit: what was changed since is not in it'
rm -f dist/softsgx-*.tar.gz
python -c 'import mesonpy; mesonpy.build_sdist("dist")' >"$work/sdist.log" 2>&1 || fail "$(cat "$work/sdist.log")"
source=$(echo dist/softsgx-*.tar.gz)
fresh source
inside source python -m pip install --quiet --disable-pip-version-check "$source"
measures source
signs source
status=0
refusal=$(inside source softsgx run -- "$hello" "$enclave" "$sigstruct" 2>&1) || status=$?
[ "$status" = 2 ] || fail "source: run ended with status $status: $refusal"
[ "$(wc -l <<<"$refusal")" = 1 ] || fail "source: the refusal is not one line: $refusal"
grep -q "no vDSO image.*x86-64 Linux" <<<"$refusal" || fail "source: run says: $refusal"
ok source "$(basename "$source"): built and installed without a compiler; measure and sign work, run refuses:"
printf '         %s\n' "${refusal//$work\//}"
