//! One property per point of the contract, on every backend, over values that are picked to be hard.
//! `PROPTEST_CASES` sets how many cases each of them tries.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use byzclip::{
    AdversaryMode, Backend, BackendKind, Clipping, Error, Granularity, Layout, NonFinite, Report, Scope,
    Status,
};
use common::{Class, OFFS, Rng, all, assert_same_bits, conform, near_square, oracle, some_root};
use proptest::prelude::*;
use proptest::sample::select;

/// Bits that are wrong first: zeros, subnormals, powers of two and their neighbours, the extremes.
fn nasty() -> impl Strategy<Value = f32> {
    let special = [
        0.0f32,
        -0.0,
        f32::from_bits(1),
        f32::from_bits(0x007f_ffff),
        f32::MIN_POSITIVE,
        f32::from_bits(0x0080_0001),
        1e-30,
        f32::EPSILON,
        1.0,
        1.0 + f32::EPSILON,
        1.0 - f32::EPSILON / 2.0,
        16_777_215.0,
        1e38,
        f32::MAX,
        f32::from_bits(0x7f7f_fffe),
    ];
    let finite = any::<u32>().prop_map(|bits| f32::from_bits(bits & 0xbfff_ffff | (bits & 1) << 29));
    let edges = (0u32..255, -2i32..3, any::<bool>()).prop_map(|(field, off, negative)| {
        f32::from_bits(((field << 23) as i32 + off).clamp(0, 0x7f7f_ffff) as u32 | u32::from(negative) << 31)
    });
    prop_oneof![
        2 => select(special.to_vec()),
        2 => finite,
        2 => edges,
        3 => (-1.0f32..1.0).boxed(),
    ]
}

fn hostile() -> impl Strategy<Value = f32> {
    let payload = (1u32..1 << 23, any::<bool>())
        .prop_map(|(payload, negative)| f32::from_bits(0x7f80_0000 | payload | u32::from(negative) << 31));
    prop_oneof![Just(f32::INFINITY), Just(f32::NEG_INFINITY), payload]
}

fn finite_row() -> impl Strategy<Value = Vec<f32>> {
    prop_oneof![
        3 => prop::collection::vec(nasty(), 0..40),
        1 => (nasty(), 1usize..300).prop_map(|(value, length)| vec![value; length]),
        2 => (any::<u64>(), -129i32..104, 0usize..60, select(OFFS.to_vec()), any::<bool>()).prop_map(
            |(seed, exponent, filler, off, odd)| {
                let mut rng = Rng::new(seed);
                let root = some_root(&mut rng, odd);
                near_square(&mut rng, filler, root, exponent, off)
            }
        ),
    ]
}

fn hostile_row() -> impl Strategy<Value = Vec<f32>> {
    prop_oneof![
        2 => (prop::collection::vec(nasty(), 1..40), hostile(), any::<prop::sample::Index>()).prop_map(
            |(mut row, value, at)| {
                let at = at.index(row.len());
                row[at] = value;
                row
            }
        ),
        1 => prop::collection::vec(hostile(), 1..40),
    ]
}

fn row() -> impl Strategy<Value = Vec<f32>> {
    prop_oneof![4 => finite_row(), 1 => hostile_row()]
}

/// A bound, made from the row's norm or from nothing.
#[derive(Debug, Clone, Copy)]
enum Bound {
    Of(f32),
    Norm(i32),
    Times(f32),
}

fn bound() -> impl Strategy<Value = Bound> {
    prop_oneof![
        2 => nasty().prop_map(|value| Bound::Of(value.abs())),
        1 => Just(Bound::Of(f32::INFINITY)),
        3 => (-2i32..3).prop_map(Bound::Norm),
        4 => (0.0f32..1.1).prop_map(Bound::Times),
        1 => (1e-38f32..1e-6).prop_map(Bound::Times),
    ]
}

impl Bound {
    fn for_row(self, row: &[f32]) -> f32 {
        let norm = oracle::exact_sum(row).map_or(1.0, |sum| oracle::root(&sum));
        match self {
            Self::Of(bound) => bound,
            Self::Norm(off) => f32::from_bits(norm.to_bits().saturating_add_signed(off).min(0x7f80_0000)),
            Self::Times(share) => (norm.min(f32::MAX) * share).abs(),
        }
    }
}

/// Rows with a bound each.
#[derive(Debug, Clone)]
struct Batch {
    rows: Vec<Vec<f32>>,
    bounds: Vec<f32>,
}

impl Batch {
    fn layout(&self) -> Layout {
        let mut offsets = vec![0];
        for row in &self.rows {
            offsets.push(offsets[offsets.len() - 1] + row.len());
        }
        Layout::ragged(&offsets).unwrap()
    }

    fn data(&self) -> Vec<f32> {
        self.rows.concat()
    }

    fn clipping(&self) -> Clipping {
        Clipping::per_row(self.bounds.clone())
    }

    fn sum(&self, row: usize) -> Option<num_bigint::BigUint> {
        oracle::exact_sum(&self.rows[row])
    }

    /// The report, and the rows after it.
    fn run(&self, backend: &dyn Backend, clipping: &Clipping) -> (Report, Vec<Vec<f32>>) {
        let (layout, mut data) = (self.layout(), self.data());
        let report = backend.run(&layout, &mut data, clipping).unwrap();
        (report, (0..self.rows.len()).map(|row| data[layout.row(row)].to_vec()).collect())
    }
}

fn batch_of<S: Strategy<Value = Vec<f32>>>(row: impl Fn() -> S) -> impl Strategy<Value = Batch> {
    prop::collection::vec((row(), bound()), 1..12).prop_map(|rows| Batch {
        bounds: rows.iter().map(|(row, bound)| bound.for_row(row)).collect(),
        rows: rows.into_iter().map(|(row, _)| row).collect(),
    })
}

fn same_rows(context: &str, got: &byzclip::RowReport, want: &byzclip::RowReport) {
    assert_eq!(got.norm.to_bits(), want.norm.to_bits(), "{context}: norm");
    assert_eq!(got.factor.to_bits(), want.factor.to_bits(), "{context}: factor");
    assert_eq!(got.status, want.status, "{context}: status");
}

/// A call costs milliseconds on a GPU and microseconds elsewhere.
fn config() -> ProptestConfig {
    let base = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    if std::env::var_os("PROPTEST_CASES").is_some() {
        return base;
    }
    let gpu = all().iter().any(|(_, backend)| backend.ran().backend == BackendKind::Gpu);
    ProptestConfig { cases: if gpu { 32 } else { 512 }, ..base }
}

proptest! {
    #![proptest_config(config())]

    /// Contract 1.
    #[test]
    fn the_norm_is_the_nearest_f32_to_the_exact_one(batch in batch_of(row)) {
        for (name, backend) in all() {
            let norms = backend.norms(&batch.layout(), &batch.data(), &Clipping::default()).unwrap();
            for (row, norm) in norms.rows.iter().enumerate() {
                let want = batch.sum(row).map_or(f32::NAN, |sum| oracle::root(&sum));
                assert_eq!(norm.value().to_bits(), want.to_bits(), "{name}: row {row}: {norm:?}");
            }
        }
    }

    /// Contract 1 and 3: the class of a norm decides against any bound.
    #[test]
    fn a_norm_knows_whether_the_exact_one_exceeds_a_bound(
        batch in batch_of(finite_row), others in prop::collection::vec(bound(), 20),
    ) {
        for (name, backend) in all() {
            let norms = backend.norms(&batch.layout(), &batch.data(), &Clipping::default()).unwrap();
            for (row, norm) in norms.rows.iter().enumerate() {
                let sum = batch.sum(row).unwrap();
                for bound in others.iter().map(|bound| bound.for_row(&batch.rows[row])) {
                    let want = oracle::exceeds(&sum, bound);
                    assert_eq!(norm.exceeds(bound), want, "{name}: row {row}: {norm:?} > {bound:e}");
                }
            }
        }
    }

    /// Contract 2: neighbours.
    #[test]
    fn a_row_alone_gets_what_it_gets_in_any_batch(batch in batch_of(row), at in any::<prop::sample::Index>()) {
        let row = at.index(batch.rows.len());
        let alone = Batch { rows: vec![batch.rows[row].clone()], bounds: vec![batch.bounds[row]] };
        let last = batch.rows.len() - 1;
        let mut reversed = batch.clone();
        reversed.rows.reverse();
        reversed.bounds.reverse();
        for (name, backend) in all() {
            let (report, rows) = batch.run(backend.as_ref(), &batch.clipping());
            let (one, one_rows) = alone.run(backend.as_ref(), &alone.clipping());
            let (back, back_rows) = reversed.run(backend.as_ref(), &reversed.clipping());
            same_rows(name, &one.rows[0], &report.rows[row]);
            assert_same_bits(name, &one_rows[0], &rows[row]);
            for row in 0..batch.rows.len() {
                same_rows(name, &back.rows[last - row], &report.rows[row]);
                assert_same_bits(name, &back_rows[last - row], &rows[row]);
            }
        }
    }

    /// Contract 2: the order of elements and their signs.
    #[test]
    fn the_norm_does_not_depend_on_the_order_of_elements_or_their_signs(
        batch in batch_of(finite_row), seed in any::<u64>(),
    ) {
        let mut rng = Rng::new(seed);
        let mut mixed = batch.clone();
        for row in &mut mixed.rows {
            rng.shuffle(row);
            row.iter_mut().for_each(|value| *value *= rng.sign());
        }
        for (name, backend) in all() {
            let norms = |batch: &Batch| {
                backend.norms(&batch.layout(), &batch.data(), &Clipping::default()).unwrap()
            };
            common::assert_same_norms(name, &norms(&mixed), &norms(&batch));
        }
    }

    /// Contract 3.
    #[test]
    fn no_exact_norm_is_above_its_bound_afterwards_nor_far_below_where_it_was_clipped(
        batch in batch_of(finite_row),
    ) {
        for (name, backend) in all() {
            let (report, rows) = batch.run(backend.as_ref(), &batch.clipping());
            for (row, after) in rows.iter().enumerate() {
                let sum = oracle::exact_sum(after).unwrap();
                let bound = batch.bounds[row];
                assert!(!oracle::exceeds(&sum, bound), "{name}: row {row} at {bound:e}");
                let lost = batch.rows[row].iter().zip(after).any(|(b, a)| *b != 0.0 && *a == 0.0);
                if report.rows[row].status == Status::Clipped && !lost {
                    let share = num_bigint::BigUint::from((1u32 << 20) - 1).pow(2);
                    let least = oracle::units(bound).pow(2) * share;
                    assert!(sum << 40u32 >= least, "{name}: row {row} at {bound:e} is far below it");
                }
            }
        }
    }

    /// Contract 3.
    #[test]
    fn a_row_is_clipped_if_and_only_if_its_exact_norm_is_above_the_bound(batch in batch_of(finite_row)) {
        for (name, backend) in all() {
            let (report, _) = batch.run(backend.as_ref(), &batch.clipping());
            for (row, got) in report.rows.iter().enumerate() {
                let above = oracle::exceeds(&batch.sum(row).unwrap(), batch.bounds[row]);
                let want = if above { Status::Clipped } else { Status::Untouched };
                assert_eq!(got.status, want, "{name}: row {row}");
                assert_eq!(got.factor < 1.0, above, "{name}: row {row}");
            }
        }
    }

    /// Contract 4.
    #[test]
    fn rows_that_are_not_clipped_keep_every_bit(batch in batch_of(row)) {
        let clipping = batch.clipping().non_finite(NonFinite::Keep);
        for (name, backend) in all() {
            let (report, rows) = batch.run(backend.as_ref(), &clipping);
            for (row, after) in rows.iter().enumerate() {
                if report.rows[row].status != Status::Clipped {
                    assert_same_bits(&format!("{name}: row {row}"), after, &batch.rows[row]);
                }
            }
        }
    }

    /// Contract 5.
    #[test]
    fn clipping_again_changes_nothing(batch in batch_of(row)) {
        for (name, backend) in all() {
            let (_, rows) = batch.run(backend.as_ref(), &batch.clipping());
            let once = Batch { rows, bounds: batch.bounds.clone() };
            let (report, twice) = once.run(backend.as_ref(), &batch.clipping());
            assert_same_bits(name, &twice.concat(), &once.data());
            assert_eq!(report.count(Status::Untouched), once.rows.len(), "{name}");
        }
    }

    /// Contract 6.
    #[test]
    fn a_hostile_row_changes_no_other(
        batch in batch_of(finite_row), bad in hostile_row(), at in any::<prop::sample::Index>(),
        policy in select(vec![NonFinite::Zero, NonFinite::Keep]),
    ) {
        let hostile = at.index(batch.rows.len());
        let clipping = batch.clipping().non_finite(policy);
        let mut attacked = batch.clone();
        attacked.rows[hostile] = bad;
        for (name, backend) in all() {
            let (want, want_rows) = batch.run(backend.as_ref(), &clipping);
            let (got, rows) = attacked.run(backend.as_ref(), &clipping);
            for row in 0..rows.len() {
                if row != hostile {
                    same_rows(&format!("{name}: row {row}"), &got.rows[row], &want.rows[row]);
                    assert_same_bits(&format!("{name}: row {row}"), &rows[row], &want_rows[row]);
                }
            }
            let (status, after) = match policy {
                NonFinite::Keep => (Status::Kept, attacked.rows[hostile].clone()),
                _ => (Status::Zeroed, vec![0.0; attacked.rows[hostile].len()]),
            };
            assert_eq!(got.rows[hostile].status, status, "{name}");
            assert_same_bits(name, &rows[hostile], &after);
        }
    }

    /// Contract 6.
    #[test]
    fn the_error_policy_names_the_first_hostile_row_and_leaves_the_data(
        batch in batch_of(row), bad in hostile_row(), at in any::<prop::sample::Index>(),
    ) {
        let mut batch = batch;
        let at = at.index(batch.rows.len());
        batch.rows[at] = bad;
        let first = (0..batch.rows.len()).find(|&row| batch.sum(row).is_none()).unwrap();
        for (name, backend) in all() {
            let mut data = batch.data();
            let error = backend.run(&batch.layout(), &mut data, &batch.clipping().non_finite(NonFinite::Error));
            assert_eq!(error.unwrap_err(), Error::NonFinite { row: first }, "{name}");
            assert_same_bits(name, &data, &batch.data());
        }
    }

    /// Contract 4 and 6: rows out of scope are neither read nor written, whatever they hold.
    #[test]
    fn rows_out_of_scope_keep_every_bit_and_have_no_say(batch in batch_of(row), seed in any::<u64>()) {
        let mut rng = Rng::new(seed);
        let mask: Vec<bool> = batch.rows.iter().map(|_| rng.below(2) == 0).collect();
        let mut rows: Vec<usize> = (0..mask.len()).filter(|&row| mask[row]).collect();
        rng.shuffle(&mut rows);
        let mode = |&hostile: &bool| if hostile { AdversaryMode::LabelFlip } else { AdversaryMode::None };
        let modes = mask.iter().map(mode).collect();
        let scopes = [Scope::Mask(mask.clone()), Scope::Rows(rows), Scope::Adversaries(modes)];
        for (name, backend) in all() {
            let (all, all_rows) = batch.run(backend.as_ref(), &batch.clipping());
            for scope in &scopes {
                let (report, after) = batch.run(backend.as_ref(), &batch.clipping().scope(scope.clone()));
                for (row, &in_scope) in mask.iter().enumerate() {
                    let context = format!("{name}: row {row}");
                    if in_scope {
                        same_rows(&context, &report.rows[row], &all.rows[row]);
                        assert_same_bits(&context, &after[row], &all_rows[row]);
                    } else {
                        assert_eq!(report.rows[row].status, Status::OutOfScope, "{context}");
                        assert!(report.rows[row].norm.is_nan(), "{context}");
                        assert_same_bits(&context, &after[row], &batch.rows[row]);
                    }
                }
            }
        }
    }

    /// Contract 8.
    #[test]
    fn products_are_rounded_once_and_subnormal_ones_are_zeros_of_the_same_sign(
        rows in prop::collection::vec((finite_row(), 1e-9f32..1.0), 1..12), seed in any::<u64>(),
    ) {
        let mut rng = Rng::new(seed);
        let batch = Batch {
            bounds: rows.iter().map(|(row, share)| Bound::Times(*share).for_row(row)).collect(),
            // With elements whose products lie on either side of the least normal number.
            rows: rows.into_iter().map(|(mut row, share)| {
                let edge = f32::MIN_POSITIVE / share;
                row.extend((0..9).map(|off| rng.sign() * f32::from_bits(edge.to_bits() + off - 4)));
                row
            }).collect(),
        };
        for (name, backend) in all() {
            let (report, rows) = batch.run(backend.as_ref(), &batch.clipping());
            for (row, after) in rows.iter().enumerate() {
                if report.rows[row].status == Status::Clipped {
                    let factor = report.rows[row].factor;
                    let want: Vec<_> = batch.rows[row].iter().map(|&v| oracle::product(v, factor)).collect();
                    assert_same_bits(&format!("{name}: row {row}"), after, &want);
                    assert!(after.iter().all(|value| *value == 0.0 || value.is_normal()), "{name}: row {row}");
                }
            }
        }
    }

    /// All of it at once, in any layout.
    #[test]
    fn any_batch_in_any_layout_conforms(
        lengths in prop::collection::vec(prop::collection::vec(0usize..70, 0..6), 0..14),
        seed in any::<u64>(), bounds in prop::collection::vec(bound(), 14),
        policy in select(vec![NonFinite::Zero, NonFinite::Error, NonFinite::Keep]),
        granularity in select(vec![Granularity::Row, Granularity::Segment, Granularity::Coordinate]),
        padding in 0usize..5, kind in 0..3,
    ) {
        let mut rng = Rng::new(seed);
        let layout = match (kind, lengths.first()) {
            (0, Some(first)) => {
                let params: usize = first.iter().sum();
                Layout::strided(lengths.len(), params, params + padding).unwrap().layered(first).unwrap()
            }
            (1, Some(first)) => Layout::strided(lengths.len(), first.len(), first.len() + padding).unwrap(),
            _ => Layout::ragged_layered(&lengths).unwrap(),
        };
        let mut data: Vec<f32> = (0..layout.len() + padding).map(common::poison).collect();
        let mut per_row = Vec::new();
        for (row, bound) in bounds.iter().enumerate().take(layout.clients()) {
            let class = Class::ALL[rng.below(Class::ALL.len() as u64) as usize];
            let range = layout.row(row);
            data[range.clone()].copy_from_slice(&class.row(range.len(), &mut rng));
            per_row.push(bound.for_row(&data[range]));
        }
        let mask = (0..layout.clients()).map(|_| rng.below(4) != 0).collect();
        let clipping =
            Clipping::per_row(per_row).granularity(granularity).non_finite(policy).scope(Scope::Mask(mask));
        conform("any layout", &layout, &data, &clipping);
    }
}
