# SPDX-License-Identifier: Apache-2.0
"""Imports much, with libraries that look at CPUID, and tells what it has found by them."""

import asyncio
import concurrent.futures
import ctypes
import decimal
import hashlib
import json
import multiprocessing
import sqlite3
import ssl
import subprocess
import sys
import threading
import zlib

import numpy as np
from cryptography.hazmat.primitives.ciphers.aead import AESGCM


def square(number: int) -> int:
    return number * number


def found() -> dict[str, object]:
    matrix = np.arange(250000, dtype=np.float64).reshape(500, 500) % 17
    with sqlite3.connect(":memory:") as database:
        answer = database.execute("select 6 * 7").fetchone()
    with multiprocessing.get_context("fork").Pool(2) as pool:
        forked = sum(pool.map(square, range(100)))
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        threaded = sum(threads.map(square, range(100)))
    return {
        "ssl": ssl.OPENSSL_VERSION,
        "sha256": hashlib.sha256(bytes(100000)).hexdigest(),
        "crc32": zlib.crc32(bytes(range(256)) * 999),
        "matrix": [int((matrix @ matrix).sum()), int(np.sort(matrix, axis=None)[99999])],
        "gcm": AESGCM(bytes(16)).encrypt(bytes(12), b"text" * 99, None).hex()[-32:],
        "sqlite": answer,
        "decimal": str(decimal.Decimal(2).sqrt()),
        "forked": forked,
        "threaded": threaded,
        "asyncio": asyncio.run(asyncio.sleep(0, "slept")),
        "child": subprocess.run(["sh", "-c", "echo child"], check=True, stdout=-1).stdout.decode(),
        "ctypes": ctypes.CDLL(None).abs(-3),
        "threads": threading.active_count(),
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(found()) + "\n")
    sys.exit(7)
