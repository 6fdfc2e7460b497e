# SPDX-License-Identifier: Apache-2.0
"""What is known about the CPUID instructions of a file, kept on disk from one run to the next.

Owns `$XDG_CACHE_HOME/softsgx/cpuid/` (else `~/.cache/softsgx/cpuid/`). An entry is one small file
that is renamed into place whole, so any number of supervisors may share the directory. An entry
that is damaged, or was made for a file with other headers, is a miss; a directory that cannot be
written costs speed, never a run.

Entry, little endian: magic (8), CRC-32 of what follows (4), length of the identity (4), number of
proven and of unproven offsets (4, 4), the identity, the offsets (8 each), and for each proven one
its detour (8).
"""

# pathlib would cost the start of every run some milliseconds.
import os
from binascii import crc32
from struct import Struct, error, pack, unpack_from

# The digit counts up when the proof changes, so that no entry outlives the rules it was made by.
_MAGIC = b"sgxcpu7\n"
_HEAD = Struct("<8sIIII")
_LARGEST_ENTRY = 8 << 20

# Proven offsets, unproven ones, and for each proven one its detour.
Found = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


def directory() -> str | None:
    """Give the directory of the entries, or None where the environment names no home."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    # The base directory specification: a relative path there is to be ignored.
    if not cache.startswith("/"):
        home = os.environ.get("HOME", "")
        if not home.startswith("/"):
            return None
        cache = home + "/.cache"
    return cache + "/softsgx/cpuid"


def usable() -> bool:
    """Tell whether entries can be kept."""
    where = directory()
    if where is None:
        return False
    try:
        os.makedirs(where, mode=0o700, exist_ok=True)
    except OSError:
        return False
    return os.access(where, os.W_OK)


def load(key: str, identity: bytes) -> Found | None:
    """Give what is kept under a key for this identity, or None."""
    where = directory()
    if where is None:
        return None
    try:
        fd = os.open(f"{where}/{key}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        entry = os.read(fd, _LARGEST_ENTRY)
    except OSError:
        return None
    finally:
        os.close(fd)
    return _decode(entry, identity)


def store(key: str, identity: bytes, found: Found) -> None:
    """Keep what was found under a key; does nothing where it cannot."""
    where = directory()
    if where is None:
        return
    proven, unproven, detours = found
    body = pack("<III", len(identity), len(proven), len(unproven)) + identity
    offsets = (*proven, *unproven, *detours)
    body += pack(f"<{len(offsets)}Q", *offsets)
    entry = _MAGIC + pack("<I", crc32(body)) + body
    if len(entry) > _LARGEST_ENTRY:
        return
    # One name for all, so that what a killed one has left is overwritten. Two at a time write the
    # same bytes; where they do not, the checksum tells.
    temporary = f"{where}/.{key}"
    try:
        os.makedirs(where, mode=0o700, exist_ok=True)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    except OSError:
        return
    try:
        try:
            written = os.write(fd, entry)
        finally:
            os.close(fd)
        # No fsync: an entry that a crash leaves short fails its checksum and is made again.
        if written == len(entry):
            os.rename(temporary, f"{where}/{key}")
            return
    except OSError:
        # Such as a full disk; what was begun is taken away below.
        written = 0
    _discard(temporary)


def _discard(temporary: str) -> None:
    try:
        os.unlink(temporary)
    except OSError:
        # It was never made, or somebody tidied up: either way it is gone.
        return


def _decode(entry: bytes, identity: bytes) -> Found | None:
    try:
        magic, checksum, identity_length, proven, unproven = _HEAD.unpack_from(entry)
        if magic != _MAGIC or checksum != crc32(entry[12:]):
            return None
        offsets_at = _HEAD.size + identity_length
        if entry[_HEAD.size : offsets_at] != identity:
            return None
        count = proven + unproven + proven
        if len(entry) != offsets_at + 8 * count:
            return None
        offsets = unpack_from(f"<{count}Q", entry, offsets_at)
    except error:
        return None
    return offsets[:proven], offsets[proven : proven + unproven], offsets[proven + unproven :]
