#!/usr/bin/env python3
"""python3 -m unittest discover benches/peers: the data and the check of results. Needs NumPy."""
import unittest

import numpy as np

import cases

CASES = cases.cases([0.0, 0.2, 1.0])


def filled(shape, case):
    batch = cases.Batch(cases.Shape.parse(shape))
    batch.fill(case)
    return batch


def right(batch):
    """A right result by another way: whole rows in float64."""
    rows = batch.original.astype(np.float64)
    norms = np.linalg.norm(rows, axis=1)
    if batch.case.stage == "norms":
        return norms.astype(np.float32)
    clipped = rows * np.minimum(1, cases.MAX_NORM / norms)[:, None]
    if batch.case.stage == "clip":
        return clipped.astype(np.float32)
    return np.average(clipped, axis=0, weights=cases.weights(len(rows))).astype(np.float32)


class Cases(unittest.TestCase):
    def test_the_data_is_that_of_the_other_package(self):
        # benches/peers/rust holds the same number against byzclip's own data.
        bits = filled("30x2000", cases.Case("clip", 0.2)).original.reshape(-1).view(np.uint32).astype(np.uint64)
        self.assertEqual(int((bits * np.arange(bits.size, dtype=np.uint64)).sum()), 3774631624712788950)

    def test_shares_pick_as_many_rows_as_they_say(self):
        for share, rows, expected in ((0.2, 64, 12), (0.1, 10, 1), (0.29, 100, 29), (1.0, 7, 7), (0.0, 9, 0)):
            self.assertEqual(len(cases.Case("clip", share).written(cases.Shape(rows, 1))), expected)

    def test_a_right_result_passes_and_a_spoiled_one_is_found(self):
        for shape in ("30x777", "3x200001", "5000x3"):
            for case in CASES:
                batch = filled(shape, case)
                got = right(batch)
                self.assertIsNone(batch.check(got), (shape, str(case)))
                self.assertRegex(batch.check(batch.spoiled(got)), r"(row|element) \d+", (shape, str(case)))

    def test_nan_and_other_shapes_are_found(self):
        for case in CASES:
            batch = filled("30x777", case)
            got = right(batch)
            self.assertIn("of shape", batch.check(got[1:]))
            got[(7,) + (0,) * (got.ndim - 1)] = np.nan
            self.assertIn("element 7" if case.stage == "mean" else "row 7", batch.check(got))

    def test_a_mean_of_rows_that_are_not_clipped_or_of_fewer_is_found(self):
        batch = filled("30x777", cases.Case("mean", 0.2))
        rows, by_weight = batch.original.astype(np.float64), cases.weights(30)
        for wrong in (
            np.average(rows, axis=0, weights=by_weight),
            batch.shares[1:].astype(np.float64) @ rows[1:],
            np.average(rows, axis=0),
            batch.mean[::-1],
        ):
            self.assertRegex(batch.check(wrong.astype(np.float32)), r"element \d+: got the mean")
        self.assertIn("float64", batch.check(batch.mean))

    def test_plain_sums_of_shares_are_a_right_mean(self):
        # One row, short and long ones, and many.
        for shape in ("1x300", "30x777", "3x200001", "50000x3"):
            batch = filled(shape, cases.Case("mean", 0.2))
            self.assertIsNone(batch.check(batch.shares @ batch.work), shape)
            self.assertIsNone(batch.check((batch.work * batch.shares[:, None]).sum(axis=0)), shape)

    def test_a_row_that_is_not_clipped_keeps_its_bits(self):
        batch = filled("30x777", cases.Case("clip", 0.2))
        got = right(batch)
        got.view(np.uint32)[0, 5] ^= 1
        self.assertIn("row 0, element 5", batch.check(got))

    def test_restoring_brings_back_what_was_written(self):
        for case in CASES[1:]:
            batch = filled("30x777", case)
            batch.work[batch.written] = 0
            batch.restore()
            np.testing.assert_array_equal(batch.work, batch.original)

    def test_bytes_are_those_of_one_pass(self):
        shape = cases.Shape(10, 100)
        self.assertEqual([case.bytes(shape) for case in CASES], [4000, 4000, 4800, 8000, 4400])

    def test_a_record_tells_the_share_of_rows_that_are_clipped(self):
        self.assertEqual([case.told_share() for case in CASES], [None, 0.0, 0.2, 1.0, 0.2])
        self.assertEqual([str(case) for case in CASES], ["norms", "clip 0 %", "clip 20 %", "clip 100 %", "mean 20 %"])

    def test_what_is_no_shape_is_refused(self):
        for wrong in ("", "3", "0x4", "4x0", "3x-1", "x", "1x2x3"):
            with self.assertRaises(ValueError):
                cases.Shape.parse(wrong)


if __name__ == "__main__":
    unittest.main()
