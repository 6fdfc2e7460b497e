# SPDX-License-Identifier: Apache-2.0
"""Waiting in wait4 for a thread that stops again at once: a descriptor that wants attention ends it.

Each test is a process of its own, for the waiter has the process's signals and children. The child that is waited for
ends by its alarm where nothing rings, and then it is what the waiter gives.
"""

import subprocess
import sys

PREAMBLE = """
import os, select, signal, threading, time
from softsgx.run import signals
from softsgx.run.waiting import Waiter

signals.block(signals.bits(signal.SIGCHLD))
reader, writer = os.pipe()
children = signals.descriptor(signals.bits(signal.SIGCHLD))
waiter = Waiter(children)
waiter.watch(reader)
child = os.fork()
if not child:
    signal.alarm(20)
    while True:
        signal.pause()

def end_child():
    os.kill(child, signal.SIGKILL)
    # The bell may say late what has been seen already.
    while (ended := waiter.next_stop()) == (0, 0):
        assert waiter.ready(0) in ([], [children])
    assert ended == (child, signal.SIGKILL)

def let_the_bell_poll():
    time.sleep(0.05)

"""


def run(script: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PREAMBLE + script],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_what_becomes_ready_while_it_waits_rings() -> None:
    run("""
assert waiter.ready(0) == []
threading.Timer(0.2, os.write, (writer, b"1")).start()
assert waiter.next_stop() == (0, 0)
assert waiter.ready(0) == [reader]
os.read(reader, 1)
assert waiter.ready(0) == []
end_child()
""")


def test_what_is_ready_when_the_bell_begins_rings() -> None:
    run("""
os.write(writer, b"1")
assert waiter.next_stop() == (0, 0)
assert waiter.ready(0) == [reader]
os.read(reader, 1)
assert waiter.ready(0) == []
end_child()
""")


def test_what_wants_attention_more_than_once_is_told_until_it_has_it() -> None:
    run("""
os.write(writer, b"123")
assert waiter.next_stop() == (0, 0)
for _ in range(3):
    assert waiter.ready(0) == [reader]
    os.read(reader, 1)
    let_the_bell_poll()
    assert waiter.next_stop() == (0, 0)
assert waiter.ready(0) == []
end_child()
""")


def test_what_became_ready_while_nobody_waited_is_not_slept_over() -> None:
    run("""
threading.Timer(0.2, os.write, (writer, b"1")).start()
assert waiter.next_stop() == (0, 0)
os.read(reader, 1)
assert waiter.ready(0) == []
for turn in range(200):
    if turn < 4:
        let_the_bell_poll()
    os.write(writer, b"1")
    if turn < 2:
        let_the_bell_poll()
    assert waiter.next_stop() == (0, 0)
    assert waiter.ready(0) == [reader]
    os.read(reader, 1)
    assert waiter.ready(0) == []
end_child()
""")


def test_a_descriptor_that_comes_later_rings_and_one_that_is_forgotten_is_not_asked() -> None:
    run("""
threading.Timer(0.2, os.write, (writer, b"1")).start()
assert waiter.next_stop() == (0, 0)
os.read(reader, 1)
assert waiter.ready(0) == []
later, into = os.pipe()
os.write(into, b"1")
waiter.watch(later)
assert waiter.next_stop() == (0, 0)
assert waiter.ready(0) == [later]
waiter.forget(later)
assert waiter.ready(0) == []
end_child()
""")
