//! Exact at any length: ten million elements, crafted ties, rows on which fast sums go wrong, and a
//! certificate that does not lie.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use byzclip::numerics::{ExactSum, certify};
use byzclip::{Backend, Clipping, Granularity, Layout, NormClass, Reference, Status};
use common::{Class, OFFS, Off, Rng, conform, losing_row, near_square, oracle, power, some_root};
use num_bigint::BigUint;

const TEN_MILLION: usize = 10_000_000;

/// The quality that the CPU backend claims for its sums.
const QUALITY: u32 = 44;

fn norm(values: &[f32]) -> f32 {
    oracle::root(&oracle::exact_sum(values).unwrap())
}

/// A ragged batch of these rows.
fn batch(rows: &[Vec<f32>]) -> (Layout, Vec<f32>) {
    let mut offsets = vec![0];
    for row in rows {
        offsets.push(offsets[offsets.len() - 1] + row.len());
    }
    (Layout::ragged(&offsets).unwrap(), rows.concat())
}

#[test]
fn the_oracle_knows_what_is_known_without_it() {
    assert_eq!(norm(&[3.0, 4.0]), 5.0);
    assert_eq!(norm(&[3e-30, -4e-30]), 5e-30);
    assert_eq!(norm(&[-f32::MAX]), f32::MAX);
    assert_eq!(norm(&[f32::MAX, f32::MAX]), f32::INFINITY);
    assert_eq!(norm(&[f32::from_bits(1); 4]), f32::from_bits(2));
    assert_eq!(norm(&[f32::from_bits(1); 3]), f32::from_bits(2));
    assert_eq!(norm(&[f32::from_bits(1); 2]), f32::from_bits(1));
    assert_eq!(norm(&[f32::MIN_POSITIVE / 2.0; 4]), f32::MIN_POSITIVE);
    assert_eq!(norm(&[]), 0.0);
    // Roots 2^24 + 1 and 2^24 + 3 are no f32: to even, down and up.
    for (root, rounded) in [((1u64 << 24) + 1, 1u64 << 24), ((1 << 24) + 3, (1 << 24) + 4)] {
        let tie = BigUint::from(root * root) << 298u32;
        assert_eq!(oracle::root(&tie), rounded as f32);
        assert_eq!(oracle::root(&(&tie + 1u32)), ((root + 1) & !1) as f32);
        assert_eq!(oracle::root(&(tie - 1u32)), ((root - 1) & !1) as f32);
    }
    assert!(oracle::exceeds(&oracle::exact_sum(&[1.0, 1e-45]).unwrap(), 1.0));
    assert!(!oracle::exceeds(&oracle::exact_sum(&[1.0]).unwrap(), 1.0));
    assert!(!oracle::exceeds(&oracle::exact_sum(&[f32::MAX; 9]).unwrap(), f32::INFINITY));
    assert_eq!(oracle::product(3.0, 0.5), 1.5);
    assert_eq!(oracle::product(-f32::MIN_POSITIVE, 0.5).to_bits(), (-0.0f32).to_bits());
    assert_eq!(oracle::product(f32::from_bits(0x0080_0001), 1.0 - power(-24)), f32::MIN_POSITIVE);
    assert_eq!(oracle::product(f32::MIN_POSITIVE, 1.0 - power(-24)), 0.0);
}

/// Every mix is clipped at a third of its norm on all backends and held against big integers.
#[test]
fn ten_million_elements_are_summed_exactly_at_every_mix_of_magnitudes() {
    type Mix = (&'static str, fn(usize, &mut Rng) -> f32);
    let mixes: [Mix; 9] = [
        ("ordinary", |_, rng| rng.unit()),
        ("any finite bits", |_, rng| rng.finite()),
        ("1e38", |_, rng| rng.unit() * 1e38),
        // Around the largest that fast sums take.
        ("1e7", |_, rng| rng.unit() * 1e7),
        ("1e10", |_, rng| rng.unit() * 1e10),
        ("1e-30", |_, rng| rng.unit() * 1e-30),
        ("subnormal", |_, rng| f32::from_bits(rng.below(1 << 23) as u32)),
        ("one of 1e8 and the others of 1e-3", |i, rng| rng.unit() * if i == 77_777 { 1e8 } else { 1e-3 }),
        ("falling", |i, rng| rng.unit() / (i + 1) as f32),
    ];
    let mut rng = Rng::new(10);
    let layout = Layout::dense(1, TEN_MILLION).unwrap();
    for (name, element) in mixes {
        let data: Vec<f32> = (0..TEN_MILLION).map(|i| element(i, &mut rng)).collect();
        let bound = (norm(&data) / 3.0).min(f32::MAX);
        let report = conform(name, &layout, &data, &Clipping::fixed(bound)).result.unwrap();
        assert_eq!(report.rows[0].status, Status::Clipped, "{name}");
    }
}

#[test]
fn ten_million_elements_whose_norm_is_all_but_a_tie_are_rounded_right() {
    let mut rng = Rng::new(11);
    for (off, odd) in [(Off::By(0), true), (Off::Over, true), (Off::Under, true), (Off::By(1), false)] {
        let root = some_root(&mut rng, odd);
        let row = near_square(&mut rng, TEN_MILLION, root, -24, off);
        let layout = Layout::dense(1, row.len()).unwrap();
        let norms = Reference.norms(&layout, &row, &Clipping::default()).unwrap();
        assert_eq!(norms.rows[0].value(), norm(&row), "{off:?}");
        conform(&format!("{off:?}"), &layout, &row, &Clipping::fixed(norm(&row)));
    }
}

#[test]
fn ties_go_to_even_and_a_hair_decides() {
    let mut rng = Rng::new(12);
    for round in 0..40 {
        let root = some_root(&mut rng, true);
        let exponent = [-149, -129, -70, -24, 0, 30, 80, 103][round % 8];
        let value = |integer: u64| common::scaled_integer(integer, exponent);
        let even = if (root / 2).is_multiple_of(2) { root - 1 } else { root + 1 };
        for (off, want) in [
            (Off::By(0), even),
            (Off::By(1), root + 1),
            (Off::By(-1), root - 1),
            (Off::Over, root + 1),
            (Off::Under, root - 1),
        ] {
            if exponent == -149 && matches!(off, Off::Over | Off::Under) {
                continue;
            }
            let row = near_square(&mut rng, 60, root, exponent, off);
            let norms = Reference.norms(&Layout::dense(1, row.len()).unwrap(), &row, &Clipping::default());
            let got = norms.unwrap().rows[0];
            assert_eq!(got.value(), value(want), "{root} * 2^{exponent} {off:?}");
            let class = if want < root { NormClass::Above } else { NormClass::Below };
            assert_eq!(got.class(), class, "{root} * 2^{exponent} {off:?}");
        }
    }
}

#[test]
fn a_row_whose_norm_is_the_bound_is_not_clipped_and_one_a_hair_above_is() {
    let mut rng = Rng::new(13);
    let (mut rows, mut bounds, mut want) = (Vec::new(), Vec::new(), Vec::new());
    for exponent in [-129, -70, -24, 0, 30, 80, 103] {
        for off in OFFS {
            let root = some_root(&mut rng, false);
            rows.push(near_square(&mut rng, 50, root, exponent, off));
            bounds.push(common::scaled_integer(root, exponent));
            let above = matches!(off, Off::Over | Off::By(1..));
            want.push(if above { Status::Clipped } else { Status::Untouched });
        }
    }
    let (layout, data) = batch(&rows);
    let report = conform("equality", &layout, &data, &Clipping::per_row(bounds)).result.unwrap();
    let got: Vec<_> = report.rows.iter().map(|row| row.status).collect();
    assert_eq!(got, want);
}

/// Its 24 bits below the smallest normal `f32` are rounded to that where one takes it for an `f32`.
#[test]
fn a_factor_just_below_the_normal_numbers_is_taken_as_it_is() {
    let (large, bound) = (f32::from_bits(0x71a0_0000), f32::from_bits(0x32a0_0002));
    for length in [1, 15, 16, 40, 100, 1500] {
        let mut row = vec![0.0; length];
        row[0] = large;
        let layout = Layout::dense(3, length).unwrap();
        let outcome =
            conform(&format!("{length} elements"), &layout, &row.repeat(3), &Clipping::fixed(bound));
        assert_eq!(outcome.result.unwrap().rows[2].factor, power(-127) * (2.0 - power(-23)));
        assert_eq!(outcome.data[2 * length].to_bits(), 0x329f_ffff);
    }
}

/// Thousands of rows next to rounding boundaries: all of them are what the exact pass is for, and
/// one of the backends sums exactly always.
#[test]
fn fast_and_exact_sums_agree_on_thousands_of_crafted_rows() {
    let mut rng = Rng::new(14);
    let (mut rows, mut bounds) = (Vec::new(), Vec::new());
    for round in 0..4000 {
        let root = some_root(&mut rng, round % 2 == 0);
        let exponent = rng.below(200) as i32 - 120;
        let filler = rng.below(120) as usize;
        rows.push(near_square(&mut rng, filler, root, exponent, OFFS[round % OFFS.len()]));
        bounds.push(common::scaled_integer(root & !1, exponent));
    }
    for _ in 0..4000 {
        let length = rng.below(100) as usize;
        rows.push(Class::Mixed.row(length, &mut rng));
        bounds.push(rng.finite().abs());
    }
    let (layout, data) = batch(&rows);
    conform("crafted", &layout, &data, &Clipping::per_row(bounds));
}

/// A fast pass that claimed more precision than it has would round these to the wrong side.
#[test]
fn rows_on_which_fast_sums_lose_small_terms_are_rounded_right() {
    let mut rng = Rng::new(15);
    let (mut rows, mut bounds, mut wrong) = (Vec::new(), Vec::new(), 0);
    for heads in [1, 4, 8, 16, 32, 64, 128, 256, 1024] {
        for length in [4096, 8192, 65536] {
            for share in [0.45, 0.55] {
                for odd in [true, false] {
                    let row = losing_row(&mut rng, heads, length, share, odd);
                    // As a backend that trusts its lanes would.
                    let mut lanes = vec![0.0; heads as usize];
                    for group in row.chunks(lanes.len()) {
                        for (lane, &value) in lanes.iter_mut().zip(group) {
                            *lane += f64::from(value) * f64::from(value);
                        }
                    }
                    let sum: f64 = lanes.iter().sum();
                    let exact = exact_norm(&row);
                    wrong += usize::from(certify(sum, 62).is_some_and(|norm| norm != exact));
                    bounds.push(exact.value());
                    rows.push(row);
                }
            }
        }
    }
    assert!(wrong > rows.len() / 2, "only {wrong} of {} rows are hard", rows.len());
    let (layout, data) = batch(&rows);
    conform("losing rows", &layout, &data, &Clipping::per_row(bounds));
}

fn exact_norm(row: &[f32]) -> byzclip::Norm {
    let mut sum = ExactSum::default();
    row.iter().for_each(|&value| sum.add_square(value));
    sum.norm()
}

/// Behind one large segment, thousands whose sums are each lost if they are added to its sum alone.
#[test]
fn the_norm_of_a_row_of_many_segments_loses_none_of_them() {
    let mut rng = Rng::new(16);
    for (share, odd) in [(0.45, true), (0.45, false), (0.55, true), (0.55, false)] {
        let head = 64;
        let row = losing_row(&mut rng, 1, 8192, share, odd);
        let lengths = [vec![head], vec![1; row.len() - head]].concat();
        let layout = Layout::ragged_layered(&[lengths]).unwrap();
        let clipping = Clipping::fixed(1.0).granularity(Granularity::Segment);
        let report = conform("segments", &layout, &row, &clipping).result.unwrap();
        assert_eq!(report.rows[0].norm, norm(&row));
    }
}

#[test]
fn no_certificate_is_given_within_the_error_of_a_boundary() {
    let mut rng = Rng::new(17);
    for round in 0..3000 {
        let root = some_root(&mut rng, round % 2 == 0);
        let off = OFFS[round % 7];
        let exponent = rng.below(120) as i32 - 60;
        let row = near_square(&mut rng, 30, root, exponent, off);
        let sum: f64 = row.iter().map(|&value| f64::from(value) * f64::from(value)).sum();
        assert_eq!(certify(sum, QUALITY), None, "{off:?}");
    }
    // Sums of subnormal rows lie on the fixed grid, where there are no fast certificates.
    assert_eq!(certify(power(-298) * 5.0, QUALITY), None);
}

#[test]
fn certificates_are_true_wherever_the_sum_lies_within_its_error() {
    let mut rng = Rng::new(18);
    for quality in [26, 30, 40] {
        let (rows, mut certified) = (20_000, 0);
        for _ in 0..rows {
            let (length, magnitude) = (2 + rng.below(12), rng.finite().abs().clamp(1e-30, 1e37));
            let row: Vec<f32> = (0..length).map(|_| rng.unit() * magnitude).collect();
            let sum: f64 = row.iter().map(|&value| f64::from(value) * f64::from(value)).sum();
            let error = (f64::from(rng.unit()) * 0.99).mul_add(power(-quality), 1.0);
            if let Some(norm) = certify(sum * error, quality as u32) {
                assert_eq!(norm, exact_norm(&row), "{quality}: {row:?}");
                certified += 1;
            }
        }
        // Two neighbours of 25 bits are 2^-24 to 2^-23 of a sum apart, the error takes 2^(1 - quality).
        let expected = f64::from(rows) * power(25 - quality);
        let refused = f64::from(rows - certified);
        assert!(refused < 1.1 * expected + 5.0, "{quality}: {refused} for at most {expected}");
    }
}

/// An exact pass for everything would hide that the fast one never decides.
#[test]
fn nearly_all_ordinary_rows_are_certified() {
    let mut rng = Rng::new(19);
    let rows = 20_000;
    let certified = (0..rows)
        .filter(|_| {
            let sum: f64 = (0..50).map(|_| f64::from(rng.unit()).powi(2)).sum();
            certify(sum, QUALITY).is_some()
        })
        .count();
    assert!(certified > rows - 20, "{certified} of {rows}");
}
