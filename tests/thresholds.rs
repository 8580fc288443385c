//! Threshold policies: each against a short independent statement of it, on every backend with the same bits.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use byzclip::threshold::Adaptive;
use byzclip::{Backend, Clipping, Error, Granularity, Layout, Reference, Scope, State, Status, Threshold};
use common::{all, assert_same_bits, assert_same_report};

/// Numbers that repeat in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() >> 33) as usize % n
    }
}

/// One-element rows, so that a norm is the magnitude of its element and anyone can see it.
fn magnitudes(n: usize, random: &mut Random) -> Vec<f32> {
    (0..n)
        .map(|_| match random.below(12) {
            0 => 0.0,
            1 => f32::from_bits(random.below(1 << 23) as u32),
            2 => f32::MAX,
            3 => f32::NAN,
            4 => f32::NEG_INFINITY,
            // Ties.
            5..8 => random.below(4) as f32,
            8 => f32::from_bits(random.below(0x7f80_0000) as u32),
            _ => -(random.below(1000) as f32) * 0.01,
        })
        .collect()
}

fn sorted_finite(values: &[f32], mask: &[bool]) -> Vec<f32> {
    let kept = values.iter().zip(mask).filter(|(v, in_scope)| **in_scope && v.is_finite());
    let mut kept: Vec<f32> = kept.map(|(v, _)| v.abs()).collect();
    kept.sort_by(f32::total_cmp);
    kept
}

fn with(threshold: Threshold) -> Clipping {
    Clipping { threshold, ..Clipping::default() }
}

/// Runs on every backend with the state given, requires the same of all, and returns the bounds, the
/// statuses and the next state.
fn run(
    layout: &Layout,
    data: &[f32],
    clipping: &Clipping,
    state: &State,
) -> (Vec<Option<f32>>, Vec<Status>, State) {
    let (mut expected, mut next) = (data.to_vec(), state.clone());
    let report = Reference.run_with(layout, &mut expected, clipping, &mut next).unwrap();
    for (name, backend) in all() {
        let (mut got, mut got_next) = (data.to_vec(), state.clone());
        let context = format!("{name}, {:?}", clipping.threshold);
        let got_report = backend.run_with(layout, &mut got, clipping, &mut got_next).unwrap();
        assert_same_report(&context, &got_report, &report);
        assert_same_bits(&context, &got, &expected);
        assert_eq!(got_next, next, "{context}: state");
    }
    let bounds = report.rows.iter().map(|row| row.bound).collect();
    (bounds, report.rows.iter().map(|row| row.status).collect(), next)
}

/// Batches of many sizes, some rows out of scope.
fn batches(count: usize, most: usize, seed: u64) -> Vec<(Vec<f32>, Vec<bool>)> {
    let mut random = Random(seed);
    (0..count)
        .map(|i| {
            let n = if i < 40 { i } else { 1 + random.below(most) };
            let values = magnitudes(n, &mut random);
            let mask = (0..n).map(|_| random.below(5) > 0).collect();
            (values, mask)
        })
        .collect()
}

fn every_bound_is(bounds: &[Option<f32>], expected: f32, context: &str) {
    for bound in bounds {
        assert_eq!(
            bound.map(f32::to_bits),
            Some(expected.to_bits()),
            "{context}: {bound:?}, expected {expected}"
        );
    }
}

#[test]
fn the_median_is_the_lower_middle_of_the_finite_norms_in_scope() {
    for (values, mask) in batches(60, 2000, 3) {
        let layout = Layout::dense(values.len(), 1).unwrap();
        for factor in [1.0f32, 2.5, 0.0, 1e-30] {
            let clipping = with(Threshold::Median { factor }).scope(Scope::Mask(mask.clone()));
            let finite = sorted_finite(&values, &mask);
            let expected = match finite.len() {
                0 => f32::INFINITY,
                n => finite[(n - 1) / 2] * factor,
            };
            let (bounds, ..) = run(&layout, &values, &clipping, &State::default());
            every_bound_is(&bounds, expected, &format!("{} values, factor {factor}", values.len()));
        }
    }
}

#[test]
fn a_quantile_is_the_least_norm_that_so_many_do_not_exceed() {
    for (i, (values, mask)) in batches(80, 2000, 5).into_iter().enumerate() {
        let layout = Layout::dense(values.len(), 1).unwrap();
        // A fraction of 1000 as integers, so that the expected rank is exact.
        let thousandths = [0, 1, 100, 250, 500, 800, 900, 999, 1000][i % 9];
        let clipping =
            with(Threshold::Quantile(f64::from(thousandths) / 1000.0)).scope(Scope::Mask(mask.clone()));
        let finite = sorted_finite(&values, &mask);
        let expected = match finite.len() {
            0 => f32::INFINITY,
            n => finite[(n * thousandths as usize).div_ceil(1000).max(1) - 1],
        };
        let (bounds, ..) = run(&layout, &values, &clipping, &State::default());
        every_bound_is(&bounds, expected, &format!("{} values, {thousandths} thousandths", values.len()));
    }
}

#[test]
fn nine_tenths_of_ten_is_nine() {
    let values: Vec<f32> = (1..=10).map(|v| v as f32).collect();
    let layout = Layout::dense(10, 1).unwrap();
    let (bounds, statuses, _) = run(&layout, &values, &with(Threshold::Quantile(0.9)), &State::default());
    every_bound_is(&bounds, 9.0, "0.9 of ten");
    assert_eq!(statuses.iter().filter(|s| **s == Status::Clipped).count(), 1);
}

#[test]
fn arc_clips_the_k_largest_to_the_next_for_every_f() {
    let mut random = Random(11);
    for n in (1..=40).chain([333, 2000]) {
        // Distinct norms, so that exactly k rows are above the bound.
        let mut values: Vec<f32> = (1..=n).map(|v| v as f32 * 0.37).collect();
        for i in (1..n).rev() {
            values.swap(i, random.below(i + 1));
        }
        let layout = Layout::dense(n, 1).unwrap();
        let all_f: Vec<usize> =
            if n <= 40 { (0..=n + 1).collect() } else { vec![0, 1, n / 10, n / 3, n / 2] };
        for f in all_f {
            let clipping = with(Threshold::Arc { byzantine: f as u32 });
            let f = f.min(n / 2);
            let k = 2 * f * (n - f) / n;
            let sorted = sorted_finite(&values, &vec![true; n]);
            let (bounds, statuses, _) = run(&layout, &values, &clipping, &State::default());
            every_bound_is(&bounds, sorted[n - 1 - k], &format!("n {n}, f {f}"));
            assert_eq!(statuses.iter().filter(|s| **s == Status::Clipped).count(), k, "n {n}, f {f}");
        }
    }
}

#[test]
fn the_row_that_sets_a_bound_is_not_clipped_by_it() {
    // Norms that are not representable: the bound has to be the next number up where they lie above.
    let mut random = Random(17);
    let (clients, params) = (101, 7);
    let data: Vec<f32> = (0..clients * params).map(|_| random.below(100_000) as f32 * 1.3e-5).collect();
    let layout = Layout::dense(clients, params).unwrap();
    for q in [0.1, 0.25, 0.5, 0.75, 0.9] {
        let (_, statuses, _) = run(&layout, &data, &with(Threshold::Quantile(q)), &State::default());
        let clipped = statuses.iter().filter(|s| **s == Status::Clipped).count();
        assert_eq!(clipped, clients - (q * clients as f64).ceil() as usize, "q {q}");
    }
}

#[test]
fn an_adaptive_bound_follows_the_formula_and_converges_from_both_sides() {
    let mut random = Random(23);
    let (clients, target) = (200, 0.8);
    let layout = Layout::dense(clients, 1).unwrap();
    for initial in [0.01f32, 500.0] {
        let adaptive = Adaptive { initial, target, rate: 0.2, ..Adaptive::default() };
        let clipping = with(Threshold::Adaptive(adaptive));
        let (mut state, mut exact, mut expected) = (State::default(), f64::from(initial), initial);
        for round in 0..180 {
            let values: Vec<f32> = (0..clients).map(|_| random.below(1000) as f32 * 0.01).collect();
            let (bounds, statuses, next) = run(&layout, &values, &clipping, &state);
            every_bound_is(&bounds, expected, &format!("round {round}"));
            let not_clipped = statuses.iter().filter(|s| **s == Status::Untouched).count();
            exact *= (-0.2 * (not_clipped as f64 / clients as f64 - target)).exp();
            expected = f32::from_bits(next.words()[0]);
            assert!((f64::from(expected) / exact - 1.0).abs() < 1e-5, "round {round}: {expected} {exact}");
            state = next;
        }
        // The norms are uniform on 0 … 10, so their 0.8-quantile is 8.
        assert!((7.0..9.0).contains(&expected), "from {initial}: {expected}");
    }
}

#[test]
fn no_norms_leave_an_adaptive_bound_where_it_is() {
    let layout = Layout::dense(3, 1).unwrap();
    let clipping = with(Threshold::Adaptive(Adaptive::default()));
    let (bounds, statuses, next) = run(&layout, &[f32::NAN; 3], &clipping, &State::default());
    every_bound_is(&bounds, 1.0, "nothing finite");
    assert_eq!(statuses, [Status::Zeroed; 3]);
    assert_eq!(next.words(), [1.0f32.to_bits()]);
}

#[test]
fn a_history_is_the_median_of_the_last_rounds() {
    let mut random = Random(29);
    for (clients, window, factor) in [(1, 1, 1.0f32), (7, 3, 2.0), (50, 20, 1.0), (2000, 5, 1.5)] {
        let layout = Layout::dense(clients, 1).unwrap();
        let clipping = with(Threshold::History { window, factor });
        let (mut state, mut rounds) = (State::default(), Vec::<Vec<f32>>::new());
        for round in 0..(2 * window as usize + 2).min(12) {
            let values = magnitudes(clients, &mut random);
            rounds.push(sorted_finite(&values, &vec![true; clients]));
            let first = rounds.len().saturating_sub(window as usize);
            let mut seen = rounds[first..].concat();
            seen.sort_by(f32::total_cmp);
            let expected = if seen.is_empty() { f32::INFINITY } else { seen[(seen.len() - 1) / 2] * factor };
            let (bounds, _, next) = run(&layout, &values, &clipping, &state);
            every_bound_is(&bounds, expected, &format!("{clients} clients, round {round}"));
            state = next;
        }
    }
}

#[test]
fn layers_have_bounds_of_their_own_across_clients() {
    let layout = Layout::dense(4, 3).unwrap().layered(&[1, 2]).unwrap();
    let data = [1.0, 30.0, 40.0, 2.0, 3.0, 4.0, 3.0, 0.0, 0.0, 100.0, 6.0, 8.0];
    let clipping = with(Threshold::Median { factor: 1.0 }).granularity(Granularity::Segment);
    let mut clipped = data.to_vec();
    let report = Reference.run(&layout, &mut clipped, &clipping).unwrap();
    let bounds: Vec<f32> = report.segments(0).iter().map(|s| s.bound).collect();
    // The norms of the layers: 1, 2, 3, 100 and 50, 5, 0, 10.
    assert_eq!(bounds, [2.0, 5.0]);
    run(&layout, &data, &clipping, &State::default());

    // Rows with other numbers of segments: the second layer is the median of 5, 0 and 10.
    let ragged = Layout::ragged_layered(&[vec![1, 2], vec![1], vec![1, 1], vec![1, 2]]).unwrap();
    let data = [1.0, 3.0, 4.0, 2.0, 3.0, 0.0, 100.0, 6.0, 8.0];
    let report = Reference.run(&ragged, &mut data.to_vec(), &clipping).unwrap();
    assert_eq!(report.segments(0).iter().map(|s| s.bound).collect::<Vec<_>>(), [2.0, 5.0]);
    run(&ragged, &data, &clipping, &State::default());
}

#[test]
fn a_split_total_bounds_the_whole_row() {
    let mut random = Random(31);
    for _ in 0..200 {
        let lengths: Vec<usize> = (0..1 + random.below(9)).map(|_| random.below(40)).collect();
        let params = lengths.iter().sum();
        let layout = Layout::dense(2, params).unwrap().layered(&lengths).unwrap();
        let total = f32::from_bits(0x0080_0000 + random.below(0x7e00_0000) as u32);
        for threshold in [Threshold::SplitEqual(total), Threshold::SplitBySize(total)] {
            let by_size = matches!(threshold, Threshold::SplitBySize(_));
            let clipping = with(threshold).granularity(Granularity::Segment);
            let data = vec![0.0; layout.len()];
            let report = Reference.run(&layout, &mut data.clone(), &clipping).unwrap();
            let bounds: Vec<f64> = report.segments(1).iter().map(|s| f64::from(s.bound)).collect();
            let scale = f64::from(total);
            let squares: f64 = bounds.iter().map(|b| (b / scale) * (b / scale)).sum();
            // The sum is of a few terms with relative errors of 2^-53.
            assert!(squares <= 1.0 + 1e-14, "{total}: {squares}");
            for (bound, &length) in bounds.iter().zip(&lengths) {
                let share = if by_size { length as f64 / params as f64 } else { 1.0 / lengths.len() as f64 };
                let exact = scale * if share.is_nan() { 0.0 } else { share.sqrt() };
                assert!((bound - exact).abs() <= exact * 1.3e-7 + 1.5e-45, "{bound} {exact}");
            }
        }
    }
}

#[test]
fn order_statistics_are_exact_over_65536_norms() {
    let mut random = Random(37);
    let n = 65_536;
    let values: Vec<f32> = (0..n).map(|_| f32::from_bits(random.below(0x7f80_0000) as u32)).collect();
    let layout = Layout::dense(n, 1).unwrap();
    let sorted = sorted_finite(&values, &vec![true; n]);
    let (bounds, ..) = run(&layout, &values, &with(Threshold::Quantile(0.37)), &State::default());
    every_bound_is(&bounds[..1], sorted[(n * 37).div_ceil(100) - 1], "65,536 norms");
}

#[test]
fn the_error_policy_does_not_move_a_state() {
    let layout = Layout::dense(2, 1).unwrap();
    let clipping = with(Threshold::Adaptive(Adaptive::default())).non_finite(byzclip::NonFinite::Error);
    for (name, backend) in all() {
        let mut state = State::from_words(vec![3.0f32.to_bits()]);
        let result = backend.run_with(&layout, &mut [1.0, f32::NAN], &clipping, &mut state);
        assert_eq!(result.unwrap_err(), Error::NonFinite { row: 1 }, "{name}");
        assert_eq!(state.words(), [3.0f32.to_bits()], "{name}");
    }
}

#[test]
fn settings_out_of_range_and_foreign_states_are_errors() {
    let layout = Layout::dense(2, 1).unwrap();
    let wrong = [
        Threshold::Median { factor: f32::NAN },
        Threshold::Median { factor: -1.0 },
        Threshold::Median { factor: f32::INFINITY },
        Threshold::Quantile(1.1),
        Threshold::Quantile(f64::NAN),
        Threshold::History { window: 0, factor: 1.0 },
        Threshold::History { window: u32::MAX, factor: 1.0 },
        Threshold::Adaptive(Adaptive { initial: 0.0, ..Adaptive::default() }),
        Threshold::Adaptive(Adaptive { rate: -0.1, ..Adaptive::default() }),
        Threshold::Adaptive(Adaptive { target: 2.0, ..Adaptive::default() }),
        Threshold::Adaptive(Adaptive { min: 2.0, ..Adaptive::default() }),
    ];
    for (name, backend) in all() {
        for threshold in &wrong {
            let result = backend.run(&layout, &mut [1.0, 2.0], &with(threshold.clone()));
            assert!(matches!(result, Err(Error::Setting { .. })), "{name}: {threshold:?}: {result:?}");
        }
        for threshold in
            [Threshold::Fixed(-1.0), Threshold::SplitEqual(f32::NAN), Threshold::SplitBySize(-2.0)]
        {
            let result = backend.run(&layout, &mut [1.0, 2.0], &with(threshold));
            assert!(matches!(result, Err(Error::InvalidBound { .. })), "{name}: {result:?}");
        }
        let mut foreign = State::from_words(vec![1, 2, 3]);
        let history = with(Threshold::History { window: 2, factor: 1.0 });
        let result = backend.run_with(&layout, &mut [1.0, 2.0], &history, &mut foreign);
        assert!(matches!(result, Err(Error::Setting { .. })), "{name}: {result:?}");
        assert_eq!(foreign.words(), [1, 2, 3]);
        // No bound that an adaptive threshold could have left: zero, negative, subnormal, Inf, NaN.
        for word in [0, 0xbf80_0000, 1, 0x7f80_0000, 0x7fc0_0000, u32::MAX] {
            let mut spoiled = State::from_words(vec![word]);
            let adaptive = with(Threshold::Adaptive(Adaptive::default()));
            let result = backend.run_with(&layout, &mut [1.0, 2.0], &adaptive, &mut spoiled);
            assert!(matches!(result, Err(Error::Setting { .. })), "{name}: {word:08x}: {result:?}");
        }
    }
}

#[test]
fn coordinates_are_cut_and_nothing_else_is_touched() {
    let layout = Layout::strided(5, 4, 5).unwrap();
    let payload = f32::from_bits(0x7fc1_2345);
    #[rustfmt::skip]
    let data = [
        1.0, -2.0, 0.5, -0.0, payload,
        0.1, f32::from_bits(1), -1e-30, 0.5, payload,
        3e38, -f32::MAX, 1e-40, 0.50001, payload,
        f32::NAN, 9.0, 9.0, 9.0, payload,
        -0.5, 0.5, 7.0, f32::from_bits(0x3f00_0001),
    ];
    let clipping = Clipping::fixed(0.5).granularity(Granularity::Coordinate);
    let mut cut = data;
    let report = Reference.run(&layout, &mut cut, &clipping).unwrap();
    #[rustfmt::skip]
    let expected = [
        0.5, -0.5, 0.5, -0.0, payload,
        0.1, f32::from_bits(1), -1e-30, 0.5, payload,
        0.5, -0.5, 1e-40, 0.5, payload,
        0.0, 0.0, 0.0, 0.0, payload,
        -0.5, 0.5, 0.5, 0.5,
    ];
    assert_same_bits("reference", &cut, &expected);
    let rows: Vec<_> = report.rows.iter().map(|row| (row.norm, row.status)).collect();
    assert_eq!(rows[..3], [(2.0, Status::Clipped), (0.5, Status::Untouched), (f32::MAX, Status::Clipped)]);
    assert_eq!((rows[3].1, rows[4]), (Status::Zeroed, (7.0, Status::Clipped)));
    run(&layout, &data, &clipping, &State::default());
    // Any threshold works on the largest magnitudes: 0.5, 2, 7 and the greatest f32.
    let median = Clipping { threshold: Threshold::Median { factor: 0.25 }, ..clipping };
    assert_eq!(run(&layout, &data, &median, &State::default()).0[0], Some(0.5));
}

#[test]
fn what_cannot_be_a_state_or_a_bound_is_refused_by_every_backend() {
    let layout = Layout::dense(2, 3).unwrap();
    let data = [3.0, -4.0, 0.5, 0.1, 0.2, 0.3];
    for (name, backend) in all() {
        let clipping = Clipping::fixed(1.0);
        let norms = backend.norms(&layout, &data, &clipping).unwrap();
        let mut leftover = State::from_words(vec![7]);
        let refused = backend.threshold(&layout, &norms, &clipping, &mut leftover);
        assert!(matches!(refused, Err(Error::Setting { name: "state", .. })), "{name}: {refused:?}");

        let by_coordinate = clipping.granularity(Granularity::Coordinate);
        let norms = backend.norms(&layout, &data, &by_coordinate).unwrap();
        let decisions = backend.threshold(&layout, &norms, &by_coordinate, &mut State::default()).unwrap();
        for bound in [-1.0, -0.0, f32::NAN] {
            let mut spoiled = decisions.clone();
            spoiled[0].bound = bound;
            let mut after = data;
            let refused = backend.clip(&layout, &mut after, &by_coordinate, &spoiled);
            assert!(matches!(refused, Err(Error::InvalidBound { .. })), "{name}: {refused:?}");
            assert_same_bits(name, &after, &data);
        }
    }
}

/// Differences from a centre reach norms that no row has; the next round has to take the state they leave.
#[test]
fn a_history_of_the_greatest_differences_is_a_state() {
    let layout = Layout::dense(2, 5000).unwrap();
    let data: Vec<f32> = (0..10_000).map(|i| if i < 5000 { f32::MAX } else { 1.0 }).collect();
    let threshold = Threshold::History { window: 2, factor: 1.0 };
    let clipping = Clipping { threshold, ..Clipping::default() }.around(vec![-f32::MAX; 5000]);
    for (name, backend) in all() {
        let mut state = State::default();
        for _ in 0..3 {
            backend.run_with(&layout, &mut data.clone(), &clipping, &mut state).expect(name);
        }
    }
}
