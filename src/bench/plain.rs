//! What one would write without a contract: a sum of squares in `f32`, a root, a factor, a multiplication, of halves
//! over their values, and rounded to nearest; and a mean of products in `f32`. No
//! compensation, no certificate, no look at NaN. Threads share it as they share ours, but that rows cost nothing beside their
//! elements, and rows left over are not cut: the difference is what exactness costs.

use super::cases::{Case, MAX_NORM, Shape, Stage};
use super::element::{Dtype, Element};
use crate::backend::cpu::simd::{Kernel, vectorised};
use crate::backend::cpu::{OWN, PART, Team};

/// Independent sums, for SIMD and to hide the latency of addition.
const LANES: usize = 64;

/// Halves that are widened at a time on the stack, which is cleared for each row.
const BLOCK: usize = 512;

/// Elements that one task has at least.
const AT_LEAST: usize = 1 << 15;

/// In how many tasks a thread's share is cut, as the CPU backend does.
const TASKS: usize = 16;

/// The norms of rows in scope, 0 for the others; where the case clips, rows in scope whose norm is above the bound are scaled in place.
pub fn run<E: Element>(shape: Shape, case: &Case, data: &mut [E]) -> Vec<f32> {
    // A row that fits a core's cache is scaled while it is there.
    let norm_of = |row: usize, values: &mut [E], team| {
        if !case.in_scope(row) {
            return 0.0;
        }
        let norm = sum_of_squares(values, team).sqrt();
        if case.stage == Stage::Clip && norm > MAX_NORM {
            scale(values, MAX_NORM / norm, team);
        }
        norm
    };
    let mut norms = vec![0.0; shape.clients];
    let team = Team::global((shape.elements() as f64 * case.scope) as usize);
    let rows = rows_of_task(shape, team);
    if shape.params > OWN {
        let rows = data.chunks_mut(shape.params).zip(&mut norms).enumerate();
        rows.for_each(|(row, (values, norm))| *norm = norm_of(row, values, Some(team)));
        return norms;
    }
    let tasks = data.chunks_mut(shape.params * rows).zip(norms.chunks_mut(rows)).enumerate();
    team.share(tasks, |(task, (values, norms))| {
        let of_rows = values.chunks_mut(shape.params).zip(norms).enumerate();
        of_rows.for_each(|(i, (values, norm))| *norm = norm_of(task * rows + i, values, None));
    });
    norms
}

/// Coordinates of a mean that stay in a core's first cache while rows are added to them.
const STRIP: usize = 1024;

/// The mean of rows of which each has this share, without a rounding of products: strips of coordinates for threads, and blocks of rows
/// where there are fewer strips than threads would share.
pub fn mean<E: Element>(shape: Shape, shares: &[f32], data: &[E]) -> Vec<f32> {
    let Shape { clients, params } = shape;
    let team = Team::global(shape.elements());
    let strips = params.div_ceil(STRIP);
    let blocks = (TASKS * team.threads()).div_ceil(strips).min(clients.div_ceil(STRIP));
    let rows = clients.div_ceil(blocks);
    let of_block = |block: usize, strip: usize, sums: &mut [f32]| {
        let rows = clients.min(block * rows)..clients.min((block + 1) * rows);
        vectorised(Products {
            shares: &shares[rows.clone()],
            data: &data[rows.start * params..],
            params,
            first: strip * STRIP,
            sums,
        });
    };
    let mut mean = vec![0.0; params];
    if blocks == 1 {
        team.share(mean.chunks_mut(STRIP).enumerate(), |(strip, sums)| of_block(0, strip, sums));
        return mean;
    }
    let sums_of = |task: usize| {
        let strip = task % strips;
        let mut sums = vec![0.0; STRIP.min(params - strip * STRIP)];
        of_block(task / strips, strip, &mut sums);
        sums
    };
    for (task, sums) in team.collect(0..blocks * strips, sums_of).into_iter().enumerate() {
        mean[task % strips * STRIP..].iter_mut().zip(sums).for_each(|(mean, sum)| *mean += sum);
    }
    mean
}

/// Some coordinates of some rows, each times its share, added to sums.
struct Products<'a, E> {
    shares: &'a [f32],
    /// From the first of these rows on.
    data: &'a [E],
    params: usize,
    first: usize,
    sums: &'a mut [f32],
}

impl<E: Element> Kernel for Products<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { shares, data, params, first, sums } = self;
        // Four rows at a time, so that sums are read and written once for them.
        let mut room = [[0.0; STRIP]; 4];
        let width = sums.len();
        let strip = |row: usize| &data[row * params + first..][..width];
        let (fours, rest) = shares.as_chunks::<4>();
        for (k, &[a, b, c, d]) in fours.iter().enumerate() {
            let [of_a, of_b, of_c, of_d] = &mut room;
            let (w, x) = (widened(strip(4 * k), of_a), widened(strip(4 * k + 1), of_b));
            let (y, z) = (widened(strip(4 * k + 2), of_c), widened(strip(4 * k + 3), of_d));
            for (sum, (((w, x), y), z)) in sums.iter_mut().zip(w.iter().zip(x).zip(y).zip(z)) {
                *sum += (a * w + b * x) + (c * y + d * z);
            }
        }
        for (row, share) in (4 * fours.len()..).zip(rest) {
            let values = widened(strip(row), &mut room[0]);
            sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += share * value);
        }
    }
}

/// The values of elements, in room for them where they are halves.
#[inline(always)]
fn widened<'a, E: Element>(elements: &'a [E], room: &'a mut [f32; STRIP]) -> &'a [f32] {
    if E::DTYPE == Dtype::F32 {
        return bytemuck::cast_slice(elements);
    }
    let values = &mut room[..elements.len()];
    E::widen(elements, values);
    values
}

/// A bound of the relative error of these norms: additions in a row, and the root.
#[must_use]
pub fn error(shape: Shape) -> f32 {
    let parts = shape.params.div_ceil(PART);
    let additions = shape.params.min(PART).div_ceil(LANES) + LANES.ilog2() as usize + PART / BLOCK + parts;
    (additions + 4) as f32 * f32::EPSILON
}

fn rows_of_task(shape: Shape, team: Team<'_>) -> usize {
    let share = shape.elements() / (TASKS * team.threads());
    (AT_LEAST.max(share) / shape.params).max(1)
}

/// By one thread, or by all of a team.
fn sum_of_squares<E: Element>(values: &[E], team: Option<Team<'_>>) -> f32 {
    let sum = |part| vectorised(Squares(part));
    match team {
        None => values.chunks(PART).map(sum).sum(),
        Some(team) => team.collect(values.chunks(PART), sum).into_iter().sum(),
    }
}

struct Squares<'a, E>(&'a [E]);

impl<E: Element> Kernel for Squares<'_, E> {
    type Output = f32;

    #[inline(always)]
    fn run(self) -> f32 {
        if E::DTYPE == Dtype::F32 {
            return lanes(bytemuck::cast_slice(self.0));
        }
        let mut block = [0.0; BLOCK];
        let mut sum = 0.0;
        for part in self.0.chunks(BLOCK) {
            let values = &mut block[..part.len()];
            E::widen(part, values);
            sum += lanes(values);
        }
        sum
    }
}

#[inline(always)]
fn lanes(values: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (groups, rest) = values.as_chunks::<LANES>();
    for group in groups {
        for (lane, &value) in lanes.iter_mut().zip(group) {
            *lane += value * value;
        }
    }
    for (lane, &value) in lanes.iter_mut().zip(rest) {
        *lane += value * value;
    }
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// Multiplies in place; halves are rounded to nearest.
fn scale<E: Element>(values: &mut [E], factor: f32, team: Option<Team<'_>>) {
    let scale = |part: &mut [E]| vectorised(Scaled(part, factor));
    match team {
        None => scale(values),
        Some(team) => team.share(values.chunks_mut(PART), scale),
    }
}

struct Scaled<'a, E>(&'a mut [E], f32);

impl<E: Element> Kernel for Scaled<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        if E::DTYPE == Dtype::F32 {
            let values: &mut [f32] = bytemuck::cast_slice_mut(self.0);
            values.iter_mut().for_each(|value| *value *= self.1);
            return;
        }
        let mut block = [0.0; BLOCK];
        for part in self.0.chunks_mut(BLOCK) {
            let values = &mut block[..part.len()];
            E::widen(part, values);
            values.iter_mut().for_each(|value| *value *= self.1);
            E::narrow(values, part);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::Error;
    use crate::bench::cases::Batch;
    use crate::bench::element::{Bf16, F16};
    use crate::bench::expected::Expected;

    #[test]
    fn plain_is_within_its_error_and_further_off_is_found() {
        is_within_its_error::<f32>();
        is_within_its_error::<F16>();
        is_within_its_error::<Bf16>();
    }

    fn is_within_its_error<E: Element>() {
        for shape in ["20x777", "3x200001"] {
            let (shape, case) = (shape.parse().unwrap(), Case::clip(0.5));
            let mut batch = Batch::<E>::new(shape).unwrap();
            batch.fill(&case);
            let expected = Expected::of(&batch, &case).unwrap();
            let mut norms = run(shape, &case, &mut batch.work);
            expected.check_plain(&norms, error(shape)).unwrap();
            expected.check_plain_values(&batch, &batch.work, 2.0 * error(shape)).unwrap();
            norms[1] *= 1.0 + 4.0 * error(shape);
            assert!(matches!(
                expected.check_plain(&norms, error(shape)),
                Err(Error::Mismatch { row: 1, .. })
            ));
            let unclipped = expected.check_plain_values(&batch, &batch.original, 2.0 * error(shape));
            assert!(matches!(unclipped, Err(Error::Mismatch { row: 1, .. })));
        }
    }

    #[test]
    fn a_plain_mean_is_within_its_error_and_further_off_is_found() {
        mean_is_within_its_error::<f32>();
        mean_is_within_its_error::<F16>();
        mean_is_within_its_error::<Bf16>();
    }

    fn mean_is_within_its_error<E: Element>() {
        // Few rows in strips, and blocks of many.
        for shape in ["20x7777", "9000x100"] {
            let (shape, case) = (shape.parse().unwrap(), Case::mean(0.5));
            let mut batch = Batch::<E>::new(shape).unwrap();
            batch.fill(&case);
            let expected = Expected::of(&batch, &case).unwrap();
            let shares = expected.shares(&Case::samples(shape.clients));
            let found = mean(shape, &shares, &batch.work);
            expected.check_plain_mean(&found, E::DTYPE).unwrap();
            assert!(matches!(expected.check_plain_mean(&found[1..], E::DTYPE), Err(Error::Mismatch { .. })));
            // Without half of its rows, and with another coordinate's sum.
            let half: Vec<f32> = shares
                .iter()
                .enumerate()
                .map(|(row, share)| if row % 2 == 0 { *share } else { 0.0 })
                .collect();
            for wrong in [mean(shape, &half, &batch.work), found.iter().rev().copied().collect()] {
                let checked = expected.check_plain_mean(&wrong, E::DTYPE);
                let told = checked.unwrap_err().to_string();
                assert!(
                    told.starts_with("mean differs") && told.contains(" for coordinate "),
                    "{shape}: {told}"
                );
            }
        }
    }
}
