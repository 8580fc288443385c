//! The matrix: backend × layout × granularity × data class × bound × policy × scope.
//!
//! Every backend has to give the report and the data of the reference, bit for bit, and the
//! reference those of the oracle. Rows of all classes share a batch, so that a backend with a high
//! cost per call gets through as well.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::ops::Range;

use byzclip::{
    AdversaryMode, Backend, Clipping, Error, Granularity, Layout, NonFinite, Reference, Scope, Status,
};
use common::{Class, Rng, all, assert_same_bits, assert_same_norms, bounds_for, conform, oracle, poison};

const GRANULARITIES: [Granularity; 3] = [Granularity::Row, Granularity::Segment, Granularity::Coordinate];
const POLICIES: [NonFinite; 3] = [NonFinite::Zero, NonFinite::Error, NonFinite::Keep];

/// A layout, and where its author says that rows and segments lie.
struct Shape {
    name: String,
    layout: Layout,
    rows: Vec<Range<usize>>,
    segments: Vec<Vec<Range<usize>>>,
}

/// Rows of these segment lengths; row `r` begins at `start(r)`.
fn shape(name: &str, layout: Layout, starts: &[usize], lengths: &[Vec<usize>], whole: bool) -> Shape {
    let mut rows = Vec::new();
    let mut segments = Vec::new();
    for (&start, lengths) in starts.iter().zip(lengths) {
        let mut end = start;
        let mut cut = Vec::new();
        for &length in lengths {
            cut.push(end..end + length);
            end += length;
        }
        rows.push(start..end);
        segments.push(if whole { rows[rows.len() - 1..].to_vec() } else { cut });
    }
    Shape { name: name.into(), layout, rows, segments }
}

fn dense(rows: usize, cols: usize) -> Shape {
    strided(rows, cols, 0, "dense")
}

fn strided(rows: usize, cols: usize, padding: usize, name: &str) -> Shape {
    let layout = Layout::strided(rows, cols, cols + padding).unwrap();
    let starts: Vec<_> = (0..rows).map(|row| row * (cols + padding)).collect();
    shape(&format!("{name} {rows}x{cols}+{padding}"), layout, &starts, &vec![vec![cols]; rows], true)
}

fn layered(rows: usize, lengths: &[usize], padding: usize) -> Shape {
    let cols: usize = lengths.iter().sum();
    let layout = Layout::strided(rows, cols, cols + padding).unwrap().layered(lengths).unwrap();
    let starts: Vec<_> = (0..rows).map(|row| row * (cols + padding)).collect();
    shape(
        &format!("layered {rows}x{lengths:?}+{padding}"),
        layout,
        &starts,
        &vec![lengths.to_vec(); rows],
        false,
    )
}

/// Rows of these lengths behind a gap.
fn ragged(lengths: &[usize], gap: usize) -> Shape {
    let mut offsets = vec![gap];
    for &length in lengths {
        offsets.push(offsets[offsets.len() - 1] + length);
    }
    let layout = Layout::ragged(&offsets).unwrap();
    let rows: Vec<_> = lengths.iter().map(|&length| vec![length]).collect();
    shape(&format!("ragged, {} rows", lengths.len()), layout, &offsets, &rows, true)
}

fn ragged_layered(rows: &[Vec<usize>]) -> Shape {
    let mut starts = vec![0];
    for row in rows {
        starts.push(starts[starts.len() - 1] + row.iter().sum::<usize>());
    }
    let layout = Layout::ragged_layered(rows).unwrap();
    shape(&format!("ragged layered, {} rows", rows.len()), layout, &starts, rows, false)
}

impl Shape {
    /// Data with poisoned padding and tail, whose row `r` is of class `r`, and bounds that lie on and
    /// around the rows' (or their segments') norms. `turn` pairs classes and bounds differently.
    fn fill(&self, turn: usize, rng: &mut Rng) -> (Vec<f32>, Vec<f32>) {
        let mut data: Vec<f32> = (0..self.layout.len() + 9).map(poison).collect();
        let mut bounds = Vec::new();
        for (index, row) in self.rows.iter().enumerate() {
            let class = Class::ALL[index % Class::ALL.len()];
            data[row.clone()].copy_from_slice(&class.row(row.len(), rng));
            let cuts = &self.segments[index];
            let measured = match (index + turn) % 2 {
                0 if !cuts.is_empty() => cuts[(index / 2) % cuts.len()].clone(),
                _ => row.clone(),
            };
            let norm = oracle::exact_sum(&data[measured]).map_or(f32::NAN, |sum| oracle::root(&sum));
            let candidates = bounds_for(norm);
            // The first few lie around the norm itself; every row gets one of those every other turn.
            let pick = index / Class::ALL.len() + turn;
            bounds.push(candidates[(pick * 5 + index) % candidates.len()]);
        }
        (data, bounds)
    }
}

/// Small shapes of every kind.
fn shapes() -> Vec<Shape> {
    let rows = 4 * Class::ALL.len();
    let cut = |row: usize| match row % 6 {
        0 => vec![],
        1 => vec![0],
        2 => vec![7, 0, 60, 33],
        3 => vec![1; 50],
        4 => vec![0, 0, 211],
        _ => vec![130, 1],
    };
    vec![
        dense(rows, 101),
        strided(rows, 97, 3, "strided"),
        strided(rows, 64, 64, "strided"),
        ragged(&(0..rows).map(|row| [0, 1, 131, 50, 97, 2, 256][row % 7]).collect::<Vec<_>>(), 3),
        layered(rows, &[0, 17, 1, 0, 96, 14], 0),
        layered(rows, &[64, 36, 0], 5),
        ragged_layered(&(0..rows).map(cut).collect::<Vec<_>>()),
    ]
}

fn scopes(rows: usize) -> [Scope; 4] {
    let modes = [AdversaryMode::None, AdversaryMode::GradAscent, AdversaryMode::LabelFlip];
    [
        Scope::All,
        Scope::Mask((0..rows).map(|row| row % 3 != 1).collect()),
        Scope::Rows((0..rows).rev().filter(|row| row % 4 != 2).collect()),
        Scope::Adversaries((0..rows).map(|row| modes[row % 3]).collect()),
    ]
}

#[test]
fn layouts_put_rows_and_segments_where_they_say() {
    for shape in shapes() {
        for (row, range) in shape.rows.iter().enumerate() {
            assert_eq!(shape.layout.row(row), *range, "{}", shape.name);
            let segments: Vec<_> =
                shape.layout.segments_of(row).map(|segment| shape.layout.segment(segment)).collect();
            assert_eq!(segments, shape.segments[row], "{} row {row}", shape.name);
        }
        assert_eq!(shape.layout.clients(), shape.rows.len());
        assert_eq!(shape.layout.segment_count(), shape.segments.iter().map(Vec::len).sum::<usize>());
        assert_eq!(shape.layout.elements(), shape.rows.iter().map(Range::len).sum::<usize>());
        assert_eq!(shape.layout.params(), shape.rows.iter().map(Range::len).max().unwrap());
    }
}

#[test]
fn every_backend_does_what_the_contract_says_in_every_layout_under_every_policy_and_scope() {
    let mut rng = Rng::new(1);
    for shape in shapes() {
        for granularity in GRANULARITIES {
            for policy in POLICIES {
                for (turn, scope) in scopes(shape.rows.len()).into_iter().enumerate() {
                    let (data, bounds) = shape.fill(turn, &mut rng);
                    let mask = oracle::mask(&scope, shape.rows.len());
                    let clipping =
                        Clipping::per_row(bounds).granularity(granularity).non_finite(policy).scope(scope);
                    let context = format!("{}, {granularity:?}, {policy:?}, turn {turn}", shape.name);
                    let result = conform(&context, &shape.layout, &data, &clipping).result;
                    let hostile = (0..mask.len()).find(|&row| {
                        mask[row] && data[shape.rows[row].clone()].iter().any(|value| !value.is_finite())
                    });
                    match (policy, hostile) {
                        (NonFinite::Error, Some(row)) => {
                            assert_eq!(result.unwrap_err(), Error::NonFinite { row }, "{context}");
                        }
                        _ => assert!(result.is_ok(), "{context}: {result:?}"),
                    }
                }
            }
        }
    }
}

#[test]
fn the_error_policy_lets_finite_batches_through() {
    let shape = layered(12, &[40, 0, 60], 2);
    let mut rng = Rng::new(2);
    let (mut data, bounds) = shape.fill(0, &mut rng);
    for row in &shape.rows {
        data[row.clone()].iter_mut().for_each(|value| *value = rng.finite());
    }
    for granularity in GRANULARITIES {
        let clipping =
            Clipping::per_row(bounds.clone()).granularity(granularity).non_finite(NonFinite::Error);
        assert!(conform("finite", &shape.layout, &data, &clipping).result.is_ok());
    }
}

#[test]
fn rows_of_every_length_around_blocks_and_tasks_conform() {
    let mut rng = Rng::new(3);
    let short = [1, 2, 3, 4, 5, 7, 8, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257, 509, 1023, 1024];
    let long = [1025, 2048, 4093, 4095, 4096, 4097, 8191, 8192, 8193, 16384, 32767, 32768, 32769];
    for (turn, cols) in short.into_iter().chain(long).enumerate() {
        let shape = strided(Class::ALL.len(), cols, turn % 3, "strided");
        let (data, bounds) = shape.fill(turn, &mut rng);
        conform(&shape.name, &shape.layout, &data, &Clipping::per_row(bounds));
    }
}

#[test]
fn long_rows_around_a_task_conform() {
    let mut rng = Rng::new(4);
    for (turn, cols) in [65521, 65535, 65536, 65537, 131_071, 131_073].into_iter().enumerate() {
        let shape = strided(Class::ALL.len(), cols, 1 + turn % 2, "strided");
        let (data, bounds) = shape.fill(turn, &mut rng);
        conform(&shape.name, &shape.layout, &data, &Clipping::per_row(bounds));
        let shape = layered(Class::ALL.len(), &[cols / 3, 0, cols - cols / 3 - 1, 1], turn % 3);
        let (data, bounds) = shape.fill(turn + 1, &mut rng);
        let clipping = Clipping::per_row(bounds).granularity(Granularity::Segment);
        conform(&shape.name, &shape.layout, &data, &clipping);
    }
}

#[test]
fn ragged_rows_of_very_different_lengths_share_a_batch() {
    let mut rng = Rng::new(5);
    let lengths = [0, 70_001, 1, 0, 4096, 3, 32_768, 200_003, 2, 65_536, 0, 17, 4097, 130, 1000, 60, 50, 99];
    let shape = ragged(&lengths, 1);
    for turn in 0..6 {
        let (data, bounds) = shape.fill(turn, &mut rng);
        for granularity in GRANULARITIES {
            conform(
                &shape.name,
                &shape.layout,
                &data,
                &Clipping::per_row(bounds.clone()).granularity(granularity),
            );
        }
    }
}

#[test]
fn rows_of_thousands_of_segments_conform() {
    let mut rng = Rng::new(6);
    let rows =
        [vec![1; 5000], vec![3; 2000], vec![], vec![0; 3000], [vec![4096, 0, 4097], vec![1; 1000]].concat()];
    let shape = ragged_layered(&rows);
    for turn in 0..4 {
        let (mut data, bounds) = shape.fill(turn, &mut rng);
        for row in &shape.rows {
            data[row.clone()].iter_mut().for_each(|value| *value = rng.unit());
        }
        for granularity in GRANULARITIES {
            conform(
                &shape.name,
                &shape.layout,
                &data,
                &Clipping::per_row(bounds.clone()).granularity(granularity),
            );
        }
    }
}

/// Groups that are not full, ends of all lengths, padding that is NaN, and elements behind the last row.
#[test]
fn short_rows_in_any_number_conform() {
    let mut rng = Rng::new(11);
    for rows in [2, 7, 8, 9, 15, 16, 17, 41] {
        for (cols, padding) in [(1, 0), (7, 2), (8, 0), (9, 4), (63, 1), (100, 0), (100, 3), (100, 150)] {
            let shape = strided(rows, cols, padding, "strided");
            let (mut data, bounds) = shape.fill(rows + cols, &mut rng);
            data.extend((0..300).map(poison));
            let clipping = Clipping::per_row(bounds);
            conform(&shape.name, &shape.layout, &data, &clipping);
            let scope = Scope::Mask((0..rows).map(|row| row % 3 != 1).collect());
            conform(&format!("{}, some rows", shape.name), &shape.layout, &data, &clipping.scope(scope));
        }
    }
}

#[test]
fn batches_of_thousands_of_short_rows_conform() {
    let mut rng = Rng::new(7);
    for (rows, cols) in [(70_001, 1), (20_011, 3), (5_003, 60)] {
        let shape = strided(rows, cols, 1, "strided");
        let (data, bounds) = shape.fill(rows, &mut rng);
        let clipping = Clipping::per_row(bounds);
        conform(&shape.name, &shape.layout, &data, &clipping);
        // Neither a period of the group of rows that a thread takes, nor of a workgroup's.
        let scope = Scope::Mask((0..rows).map(|row| row % 11 != 3 && row % 5 != 1).collect());
        conform(&format!("{}, some rows", shape.name), &shape.layout, &data, &clipping.scope(scope));
    }
}

/// Rows just too long for groups, and around a block of the CPU's sums and a tile of a device's.
#[test]
fn batches_of_rows_of_thousands_conform() {
    let mut rng = Rng::new(9);
    for (rows, cols) in [(64, 1_025), (41, 4_161), (23, 8_255)] {
        let shape = strided(rows, cols, 1, "strided");
        for turn in 0..2 {
            let (data, bounds) = shape.fill(turn, &mut rng);
            let clipping = Clipping::per_row(bounds);
            conform(&shape.name, &shape.layout, &data, &clipping);
            let scope = Scope::Mask((0..rows).map(|row| row % 7 != 3 && row % 5 != 1).collect());
            conform(&format!("{}, some rows", shape.name), &shape.layout, &data, &clipping.scope(scope));
        }
    }
}

/// Every class against every bound, exhaustively: one batch.
#[test]
fn every_class_conforms_at_every_bound() {
    let mut rng = Rng::new(8);
    let (mut offsets, mut data, mut bounds) = (vec![0], Vec::new(), Vec::new());
    for class in Class::ALL {
        for length in [1, 2, 33, 100] {
            let row = class.row(length, &mut rng);
            let norm = oracle::exact_sum(&row).map_or(f32::NAN, |sum| oracle::root(&sum));
            for bound in bounds_for(norm) {
                data.extend_from_slice(&row);
                offsets.push(data.len());
                bounds.push(bound);
            }
        }
    }
    let layout = Layout::ragged(&offsets).unwrap();
    for policy in [NonFinite::Zero, NonFinite::Keep] {
        let clipping = Clipping::per_row(bounds.clone()).non_finite(policy);
        let report = conform("classes × bounds", &layout, &data, &clipping).result.unwrap();
        assert!(report.count(Status::Clipped) > 300 && report.count(Status::Untouched) > 300);
    }
    for bound in [0.0, -0.0, 1e-45, 1e-30, 1.0, f32::MAX, f32::INFINITY] {
        conform(&format!("all at {bound:e}"), &layout, &data, &Clipping::fixed(bound));
    }
}

/// Data that ends with its rows, of which the last one has no place of its own.
#[test]
fn many_rows_without_elements_conform() {
    for rows in [9, 1_601, 70_001] {
        let layout = Layout::strided(rows, 0, 3).unwrap();
        let data = vec![1.0; layout.len()];
        let report = conform("rows of nothing", &layout, &data, &Clipping::fixed(1.0)).result.unwrap();
        assert_eq!(report.count(Status::Untouched), rows);
    }
}

#[test]
fn batches_without_elements_conform() {
    let empty: [Vec<usize>; 0] = [];
    let layouts = [
        Layout::dense(0, 0).unwrap(),
        Layout::dense(0, 5).unwrap(),
        Layout::dense(3, 0).unwrap(),
        Layout::strided(3, 0, 4).unwrap(),
        Layout::ragged(&[0]).unwrap(),
        Layout::ragged(&[4]).unwrap(),
        Layout::ragged(&[2, 2, 2]).unwrap(),
        Layout::ragged_layered(&empty).unwrap(),
        Layout::ragged_layered(&[vec![], vec![0, 0], vec![]]).unwrap(),
        Layout::dense(2, 0).unwrap().layered(&[]).unwrap(),
        Layout::dense(2, 0).unwrap().layered(&[0, 0]).unwrap(),
        Layout::dense(0, 3).unwrap().layered(&[1, 2]).unwrap(),
    ];
    for layout in layouts {
        let data: Vec<f32> = (0..layout.len() + 3).map(poison).collect();
        for granularity in GRANULARITIES {
            for bound in [0.0, 1.0, f32::INFINITY] {
                let clipping = Clipping::fixed(bound).granularity(granularity);
                let report = conform(&format!("{layout:?}"), &layout, &data, &clipping).result;
                assert!(report.unwrap().rows.iter().all(|row| row.norm.to_bits() == 0 && row.factor == 1.0));
                let nothing = clipping.scope(Scope::Mask(vec![false; layout.clients()]));
                let report = conform(&format!("{layout:?}"), &layout, &data, &nothing).result;
                assert_eq!(report.unwrap().count(Status::OutOfScope), layout.clients(), "{layout:?}");
            }
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
    #[rustfmt::skip]
    let expected = [
        0.5, -0.5, 0.5, -0.0, payload,
        0.1, f32::from_bits(1), -1e-30, 0.5, payload,
        0.5, -0.5, 1e-40, 0.5, payload,
        0.0, 0.0, 0.0, 0.0, payload,
        -0.5, 0.5, 0.5, 0.5,
    ];
    let clipping = Clipping::fixed(0.5).granularity(Granularity::Coordinate);
    let outcome = conform("coordinates", &layout, &data, &clipping);
    assert_same_bits("coordinates", &outcome.data, &expected);
    let report = outcome.result.unwrap();
    let rows: Vec<_> = report.rows.iter().map(|row| (row.norm, row.status)).collect();
    assert_eq!(rows[..3], [(2.0, Status::Clipped), (0.5, Status::Untouched), (f32::MAX, Status::Clipped)]);
    assert_eq!((rows[3].1, rows[4]), (Status::Zeroed, (7.0, Status::Clipped)));
}

#[test]
fn the_stages_one_by_one_give_what_the_run_gives() {
    let mut rng = Rng::new(9);
    for shape in shapes() {
        for granularity in GRANULARITIES {
            let (data, bounds) = shape.fill(1, &mut rng);
            let scope = Scope::Mask((0..shape.rows.len()).map(|row| row % 5 != 3).collect());
            let clipping = Clipping::per_row(bounds).granularity(granularity).scope(scope);
            let want_data = conform(&shape.name, &shape.layout, &data, &clipping).data;
            let want = Reference.norms(&shape.layout, &data, &clipping).unwrap();
            let decided =
                Reference.threshold(&shape.layout, &want, &clipping, &mut byzclip::State::default()).unwrap();
            for (name, backend) in all() {
                let context = format!("{}, {granularity:?}: {name}", shape.name);
                let norms = backend.norms(&shape.layout, &data, &clipping).unwrap();
                assert_same_norms(&context, &norms, &want);
                let decisions = backend
                    .threshold(&shape.layout, &norms, &clipping, &mut byzclip::State::default())
                    .unwrap();
                assert_eq!(decisions, decided, "{context}");
                let mut clipped = data.clone();
                backend.clip(&shape.layout, &mut clipped, &clipping, &decisions).unwrap();
                assert_same_bits(&context, &clipped, &want_data);
            }
        }
    }
}

/// A product just below the least normal number is rounded to 24 bits first: half of a unit below
/// it and less becomes that number, the rest becomes zero.
#[test]
fn products_at_the_least_normal_number_are_rounded_before_they_flush() {
    let mut rng = Rng::new(20);
    let (rows, cols) = (600, 12);
    let layout = Layout::dense(rows, cols).unwrap();
    let mut data = vec![0.0f32; rows * cols];
    let mut bounds = Vec::new();
    for row in data.chunks_mut(cols) {
        row[0] = 1.5 + rng.unit() / 2.0;
        bounds.push(row[0] * (0.5 + 0.4 * rng.unit()));
    }
    let clipping = Clipping::per_row(bounds);
    let report = Reference.run(&layout, &mut data.clone(), &clipping).unwrap();
    // The small elements move no norm by more than its class, so the factors stay.
    for (row, got) in data.chunks_mut(cols).zip(&report.rows) {
        let edge = (f64::from(f32::MIN_POSITIVE) / got.factor) as f32;
        for (off, value) in (0..).zip(&mut row[1..]) {
            *value = rng.sign() * f32::from_bits(edge.to_bits() + off - 5);
        }
    }
    let after = conform("edges", &layout, &data, &clipping).data;
    let mut outcomes = [0; 3];
    for (index, (&before, &after)) in data.iter().zip(&after).enumerate() {
        let product = f64::from(before).abs() * report.rows[index / cols].factor;
        if product < f64::from(f32::MIN_POSITIVE) {
            outcomes[usize::from(after != 0.0)] += 1;
            assert!(after == 0.0 || after.abs() == f32::MIN_POSITIVE);
        } else {
            outcomes[2] += 1;
        }
    }
    assert!(outcomes.iter().all(|&count| count > 50), "{outcomes:?}");
}

#[test]
fn products_around_the_least_normal_numbers_are_rounded_once_or_vanish() {
    let mut rng = Rng::new(126);
    let (rows, params) = (700, 100);
    let layout = Layout::dense(rows, params).unwrap();
    let mut data = Vec::with_capacity(layout.len());
    let mut bounds = Vec::with_capacity(rows);
    for row in 0..rows {
        // The first element alone makes the norm; the bound is some 2^-1 to 2^-99 of it.
        let norm = 1.0 + rng.unit().abs();
        let bound = norm * (1.0 + rng.unit().abs()) / 2.0 * common::power(-(row as i32 % 99)) as f32;
        let factor = f64::from(bound) / f64::from(norm);
        data.push(norm);
        for i in 1..params {
            // Elements that the factor takes to 2^-128 to 2^-124, give or take a few units in the last place.
            let edge = (common::power(-128 + (i % 5) as i32) / factor) as f32;
            data.push(rng.sign() * f32::from_bits((edge.to_bits() + i as u32 / 5).saturating_sub(10)));
        }
        bounds.push(bound);
    }
    conform("edges", &layout, &data, &Clipping::per_row(bounds));
}
