#!/usr/bin/env python3
"""python3 -m unittest discover benches/peers -p test_join.py: what join.py makes of records."""
import contextlib
import io
import json
import pathlib
import tempfile
import unittest
from unittest import mock

import join


def record(library, gb_per_s, **other):
    fields = {
        "format": join.RECORD,
        "library": library,
        "method": "host",
        "backend": "cpu",
        "device": "A CPU x 4 threads",
        "clients": 64,
        "params": 100_000,
        "case": "clip",
        "clipped": 0.2,
        "scope": 1.0,
        "gb_per_s": gb_per_s,
        "verified": True,
    }
    return fields | other


def wrong(library):
    return record(library, None, verified=False, error="row 3: got 1.0; expected 2.0")


class Join(unittest.TestCase):
    def joined(self, *records):
        found = join.join(records)
        self.assertEqual(len(found), 1)
        return next(iter(found.values()))

    def test_the_best_peer_is_the_fastest(self):
        ours, peers = self.joined(record("slow", 2.0), record("byzclip", 10.0), record("fast", 5.0))
        self.assertEqual(ours["gb_per_s"], 10.0)
        self.assertEqual([peer["library"] for peer in peers], ["fast", "slow"])
        self.assertAlmostEqual(peers[0]["ratio"], 2.0)

    def test_ours_is_above_one_where_it_is_faster(self):
        page = join.report([], [record("byzclip", 30.0), record("peer", 20.0)])
        self.assertIn("| `peer` | `peer` 20.0 | 30.0 | 20.0 | 1.50 |", page)

    def test_what_ran_on_another_adapter_is_named_and_not_compared(self):
        on = lambda library, device: record(library, 10.0, method="device", backend="gpu", device=device)
        records = [record("byzclip", 30.0), record("peer", 20.0), on("byzclip", "a GPU"), on("other", "a software adapter")]
        for page in (join.report([], records), join.brief([], records)):
            self.assertIn("- not compared: `other (gpu)` ran on a software adapter, ours on a GPU", page)
        records[3] = on("other", "a GPU")
        for page in (join.report([], records), join.brief([], records)):
            self.assertNotIn("not compared", page)

    def test_a_wrong_result_is_never_the_best_and_is_listed(self):
        page = join.report([], [record("byzclip", 10.0), wrong("broken"), record("peer", 5.0)])
        self.assertIn("| `peer` | `peer` 5.0, `broken` WRONG | 10.0 | 5.0 | 2.00 |", page)
        self.assertIn("- WRONG: `broken` on 64 × 100000, clip 20 %: row 3: got 1.0; expected 2.0", page)

    def test_where_all_peers_are_wrong_there_is_no_ratio(self):
        with self.assertRaisesRegex(join.Bad, "no case that byzclip and a peer both have"):
            join.report([], [record("byzclip", 10.0), wrong("broken")])

    def test_baseline_ceilings_and_scoped_cases_are_no_peers(self):
        ours, peers = self.joined(
            record("byzclip", 10.0),
            record("plain", 11.0),
            record("plain", 40.0, case="ceiling", clipped=None),
            record("byzclip", 90.0, scope=0.1),
            record("peer", 5.0),
        )
        self.assertEqual(ours["gb_per_s"], 10.0)
        self.assertEqual([peer["library"] for peer in peers], ["peer"])

    def test_records_meet_only_on_the_same_case_place_and_machine(self):
        for other in (
            {"params": 5},
            {"clients": 5},
            {"clipped": 1.0},
            {"case": "norms", "clipped": None},
            {"case": "mean"},
            {"method": "device"},
            {"device": "Another CPU x 4 threads"},
        ):
            joined = join.join([record("byzclip", 10.0), record("peer", 5.0, **other)])
            self.assertEqual(len(joined), 2, other)
            self.assertEqual([bool(ours) for ours, _ in joined.values()], [True, False], other)

    def test_a_library_of_one_thread_is_compared_on_the_same_processor(self):
        _, peers = self.joined(record("byzclip", 10.0), record("numpy", 5.0, device="A CPU x 1 thread"))
        self.assertEqual(len(peers), 1)

    def test_on_a_device_the_gpu_is_ours_and_the_backend_is_in_the_name(self):
        gpu = {"method": "device", "device": "A GPU"}
        page = join.report([], [record("byzclip", 90.0, backend="gpu", **gpu), record("torch", 60.0, backend="cuda", **gpu)])
        self.assertIn("| `torch (cuda)` | `torch (cuda)` 60.0 | 90.0 | 60.0 | 1.50 |", page)

    def test_of_several_rounds_the_middle_one_counts_and_any_wrong_one(self):
        rounds = [record("byzclip", 10.0), record("peer", 8.0), record("byzclip", 1.0), record("peer", 9.0)]
        rounds += [record("byzclip", 12.0), record("peer", 2.0)]
        ours, peers = self.joined(*rounds)
        self.assertEqual((ours["gb_per_s"], [peer["gb_per_s"] for peer in peers]), (10.0, [8.0]))
        ours, _ = self.joined(record("byzclip", 10.0), record("byzclip", 12.0))
        self.assertEqual(ours["gb_per_s"], 10.0)
        _, peers = self.joined(*rounds, record("peer", 0.0, verified=False))
        self.assertFalse(peers[0]["verified"])

    def test_a_round_is_compared_with_the_runs_of_ours_beside_it(self):
        # A machine that is twice as fast from the second round on, and a last round in which something else ran.
        rounds = [record("byzclip", 12.0), record("peer", 8.0), record("byzclip", 12.0)]
        rounds += [record("byzclip", 24.0), record("peer", 16.0), record("byzclip", 24.0)]
        rounds += [record("byzclip", 24.0), record("peer", 1.0), record("byzclip", 24.0)]
        _, peers = self.joined(*rounds)
        self.assertAlmostEqual(peers[0]["ratio"], 1.5)
        # It became four times as fast while theirs ran.
        _, peers = self.joined(record("byzclip", 10.0), record("peer", 20.0), record("byzclip", 40.0))
        self.assertAlmostEqual(peers[0]["ratio"], 1.0)

    def test_where_a_library_took_turns_with_ours_that_ratio_counts(self):
        rounds = [record("byzclip", 10.0), *(record("peer", 20.0, by_ours=ratio) for ratio in (1.5, 3.0, 1.25))]
        _, peers = self.joined(*rounds)
        self.assertEqual(peers[0]["ratio"], 1.5)
        # Of a device, and in records of before there were turns.
        _, peers = self.joined(*rounds, record("peer", 20.0, by_ours=None))
        self.assertEqual(peers[0]["ratio"], 1.25)

    def test_the_means_are_geometric(self):
        self.assertAlmostEqual(join.geometric_mean([0.5, 2.0, 8.0]), 2.0)
        records = [
            record("byzclip", 10.0),
            record("a", 20.0),
            record("b", 5.0),
            record("byzclip", 80.0, clipped=1.0),
            record("a", 10.0, clipped=1.0),
        ]
        page = join.report([], records)
        self.assertIn("| clip, data on the host | 2 | 2.00 | 0.50 | 8.00 |", page)
        self.assertIn("| `a` | 2 | 2.00 |", page)
        self.assertIn("| `b` | 1 | 2.00 |", page)

    def test_a_mean_is_a_case_beside_the_clip_of_the_same_rows(self):
        of_mean = {"case": "mean", "clipped": 0.2}
        records = [record("byzclip", 10.0), record("a", 5.0), record("byzclip", 60.0, **of_mean), record("a", 20.0, **of_mean)]
        page = join.report([], [*records, wrong("b") | of_mean])
        self.assertIn("| 64 × 100,000 | mean 20 % | host | `a` | `a` 20.0, `b` WRONG | 60.0 | 20.0 | 3.00 |", page)
        self.assertIn("| clip, data on the host | 1 | 2.00 | 2.00 | 2.00 |", page)
        self.assertIn("| mean, data on the host | 1 | 3.00 | 3.00 | 3.00 |", page)
        self.assertIn("- WRONG: `b` on 64 × 100000, mean 20 %: row 3", page)

    def test_what_was_skipped_and_which_versions_ran_is_told(self):
        headers = [
            {"format": join.HEADER, "skipped": {"cupy cuda": "No module named 'cupy'"}, "versions": {"peer": "1.2"}},
            {"format": join.HEADER, "date": "2026-11-23", "commit": "0123456789abcdef", "load": 0.25},
        ]
        page = join.report(headers, [record("byzclip", 10.0), record("peer", 5.0)])
        self.assertIn("- skipped: cupy cuda: No module named 'cupy'", page)
        self.assertIn("- versions: `peer` 1.2", page)
        self.assertIn("- 2026-11-23, commit 0123456789ab, load before the run 0.25", page)
        self.assertEqual(join.commit({"commit": "0123456789abcdef-dirty"}), "0123456789ab-dirty")


class Files(unittest.TestCase):
    def run_on(self, *texts):
        """The exit code, or message, and the output."""
        with tempfile.TemporaryDirectory() as folder:
            paths = [pathlib.Path(folder) / f"{number}.jsonl" for number in range(len(texts))]
            for path, text in zip(paths, texts):
                path.write_text(text, encoding="utf-8")
            out = io.StringIO()
            with mock.patch("sys.argv", ["join.py", *map(str, paths)]), contextlib.redirect_stdout(out):
                try:
                    join.main()
                except SystemExit as end:
                    return end.code, out.getvalue()
        return 0, out.getvalue()

    def test_records_of_several_files_meet(self):
        code, page = self.run_on(json.dumps(record("byzclip", 30.0)) + "\n", json.dumps(record("peer", 20.0)) + "\n")
        self.assertEqual(code, 0)
        self.assertIn("| 1.50 |", page)

    def test_what_is_no_record_is_refused_with_its_line(self):
        good = json.dumps(record("byzclip", 30.0))
        for text in ("{}", "[1]", "no json", '{"format": "byzclip-record-1"}', '{"format": ["byzclip-bench-1"]}'):
            code, page = self.run_on(f"{good}\n{text}\n")
            self.assertRegex(code, "line 2: got .*; expected byzclip-peers-1 or byzclip-bench-1")
            self.assertEqual(page, "")

    def test_a_file_that_is_not_there_is_said(self):
        with mock.patch("sys.argv", ["join.py", "no-such-file"]), self.assertRaisesRegex(SystemExit, "cannot read no-such"):
            join.main()


if __name__ == "__main__":
    unittest.main()
