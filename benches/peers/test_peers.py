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


class Turns(unittest.TestCase):
    def test_a_turn_waits_for_threads_that_spin(self):
        start = time.perf_counter()
        thread = threading.Thread(target=spin, args=(0.2,))
        thread.start()
        peers.wait_for_threads()
        self.assertGreaterEqual(time.perf_counter() - start, 0.19)
        thread.join()

    def test_threads_that_never_stop_are_told(self):
        thread = threading.Thread(target=spin, args=(peers.PATIENCE + 0.3,))
        thread.start()
        with contextlib.redirect_stderr(io.StringIO()) as told:
            peers.wait_for_threads()
        self.assertIn("threads still run", told.getvalue())
        thread.join()

    def test_nothing_is_waited_for_where_nothing_runs(self):
        with contextlib.redirect_stderr(io.StringIO()) as told:
            peers.wait_for_threads()
        self.assertEqual(told.getvalue(), "")


if __name__ == "__main__":
    unittest.main()
