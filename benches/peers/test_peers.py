#!/usr/bin/env python3
"""python3 -m unittest discover benches/peers: what comes between two turns. Needs NumPy."""
import contextlib
import io
import threading
import time
import unittest

import peers


def spin(seconds):
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


class Stub:
    """A library that takes no time and notes when it is called."""

    def __init__(self):
        self.called = []

    def timed(self):
        self.called.append(time.perf_counter())
        return None, peers.WARM, None

    def restore(self):
        pass


class Turns(unittest.TestCase):
    def test_a_turn_waits_for_threads_that_spin(self):
        stub, start = Stub(), time.perf_counter()
        thread = threading.Thread(target=spin, args=(0.3,))
        thread.start()
        peers.turn(stub, None, first=False, last=False)
        self.assertGreaterEqual(stub.called[0] - start, 0.2)
        thread.join()

    def test_threads_that_never_stop_are_told(self):
        thread = threading.Thread(target=spin, args=(peers.PATIENCE + 0.5,))
        thread.start()
        with contextlib.redirect_stderr(io.StringIO()) as told:
            peers.wait_for_threads()
        self.assertIn("threads still run", told.getvalue())
        thread.join()

    def test_little_is_waited_for_where_nothing_runs(self):
        start = time.perf_counter()
        with contextlib.redirect_stderr(io.StringIO()) as told:
            peers.wait_for_threads()
        self.assertEqual(told.getvalue(), "")
        self.assertLess(time.perf_counter() - start, 1.0)


if __name__ == "__main__":
    unittest.main()
