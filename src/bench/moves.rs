//! What a case has to move, and nothing else: rows that are only read are read, rows that are clipped are scaled in place, a mean is written.
//! The time that memory allows the case, in the buffer and the moment that ours runs in.

use std::hint::black_box;

use rayon::prelude::*;

use super::cases::{Batch, Case, Stage};
use super::ceilings::{Rescaled, Sum, check};
use super::element::Element;
use crate::backend::cpu::simd::vectorised;
use crate::backend::cpu::{PART, Team};
use crate::error::Result;

/// What happens to elements that lie side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Move {
    Skip,
    Read,
    Scale,
}

/// The loops of a case.
pub(super) struct Moves {
    /// For each pass over the batch what each task does, and to how many elements.
    passes: Vec<Vec<Vec<(Move, usize)>>>,
    /// How many are moved by the first: those in scope.
    elements: usize,
    /// How many elements a result has that is written to memory of its own.
    result: usize,
}

impl Moves {
    /// Clipped rows that a cache of `cache` bytes does not hold are read by one pass and scaled by the next.
    pub(super) fn of<E: Element>(batch: &Batch<E>, case: &Case, cache: u64) -> Self {
        let row_bytes = E::DTYPE.bytes() * batch.shape.params as u64;
        let is_read_before = row_bytes > cache && (0..batch.shape.clients).any(|row| case.writes(row));
        let (params, elements) = (batch.shape.params, batch.shape.elements());
        let pass = |of_row: &dyn Fn(usize) -> Move| {
            let mut tasks: Vec<Vec<(Move, usize)>> = vec![Vec::new(); elements.div_ceil(PART)];
            let mut position = 0;
            for row in 0..batch.shape.clients {
                let (what, end) = (of_row(row), (row + 1) * params);
                while position < end {
                    let count = (end - position).min(PART - position % PART);
                    let task = &mut tasks[position / PART];
                    match task.last_mut() {
                        Some((last, so_far)) if *last == what => *so_far += count,
                        _ => task.push((what, count)),
                    }
                    position += count;
                }
            }
            tasks
        };
        let first = |row| match (case.in_scope(row), case.writes(row) && !is_read_before) {
            (false, _) => Move::Skip,
            (true, false) => Move::Read,
            (true, true) => Move::Scale,
        };
        let second = |row| if case.writes(row) { Move::Scale } else { Move::Skip };
        let mut passes = vec![pass(&first)];
        if is_read_before {
            passes.push(pass(&second));
        }
        let in_scope = (0..batch.shape.clients).filter(|row| case.in_scope(*row)).count();
        let result = if case.stage == Stage::Mean { params } else { 0 };
        Self { passes, elements: in_scope * params, result }
    }

    /// Moves everything, and sums the bits of what is only read, so that reading cannot be left out. The result comes with them, because
    /// to let go of its memory is no part of what is timed.
    pub(super) fn run<E: Element>(&self, values: &mut [E]) -> (u32, Vec<f32>) {
        let (mut sum, team) = (0u32, Team::global(self.elements));
        for pass in &self.passes {
            let tasks = values.chunks_mut(PART).zip(pass);
            let of_pass = team.collect(tasks, |(values, moves)| task(values, moves));
            sum = of_pass.into_iter().fold(sum, u32::wrapping_add);
        }
        let mut result = vec![0.0f32; self.result];
        team.share(result.chunks_mut(PART), |part| part.fill(1.0));
        (sum, black_box(result))
    }

    /// Whether a run did on the batch, which was as restored, what it is timed for.
    ///
    /// # Errors
    /// [`Error::Mismatch`](crate::Error::Mismatch) where it did not.
    pub(super) fn check<E: Element>(&self, batch: &Batch<E>, case: &Case, sum: u32) -> Result<()> {
        let is_read = |row: &usize| case.in_scope(*row) && (!case.writes(*row) || self.passes.len() > 1);
        let read =
            (0..batch.shape.clients).filter(is_read).flat_map(|row| &batch.original[batch.layout.row(row)]);
        let expected = read.fold(0u32, |sum, value| sum.wrapping_add(value.bits()));
        let rows =
            batch.work.par_chunks(batch.shape.params).zip(batch.original.par_chunks(batch.shape.params));
        let is_right = |(row, (got, original)): (usize, (&[E], &[E]))| {
            let expected = |value: E| if case.writes(row) { value.rescaled() } else { value };
            got.iter().zip(original).all(|(got, original)| got.bits() == expected(*original).bits())
        };
        check("a plain loop", "moves", sum == expected && rows.enumerate().all(is_right))
    }
}

/// What one task does. Each loop is a kernel of its own: one over all of them would not keep its sums in registers.
fn task<E: Element>(values: &mut [E], moves: &[(Move, usize)]) -> u32 {
    let (mut sum, mut rest) = (0u32, values);
    for &(what, count) in moves {
        let (values, tail) = rest.split_at_mut(count);
        match what {
            Move::Skip => {}
            Move::Read => sum = sum.wrapping_add(vectorised(Sum(values))),
            Move::Scale => vectorised(Rescaled(values)),
        }
        rest = tail;
    }
    sum
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::Error;
    use crate::bench::element::{Bf16, F16};

    const CASES: [Case; 6] = [
        Case::norms(),
        Case::clip(0.0),
        Case::clip(0.2),
        Case::clip(1.0),
        Case::scoped(0.5),
        Case::mean(0.2),
    ];

    fn every_case_moves_what_it_has_to<E: Element>() {
        // Several rows to a task, and several tasks to a row.
        for shape in ["700x333", "3x150001"] {
            let mut batch = Batch::<E>::new(shape.parse().unwrap()).unwrap();
            let row_bytes = E::DTYPE.bytes() * batch.shape.params as u64;
            for (case, cache) in CASES.iter().flat_map(|case| [(case, row_bytes - 1), (case, row_bytes)]) {
                batch.fill(case);
                let moves = Moves::of(&batch, case, cache);
                let (sum, result) = moves.run(&mut batch.work);
                moves.check(&batch, case, sum).unwrap();
                let written = if case.stage == Stage::Mean { batch.shape.params } else { 0 };
                assert_eq!(result, vec![1.0; written], "{case}");
                let passes = if cache < row_bytes && batch.work != batch.original { 2 } else { 1 };
                assert_eq!(moves.passes.len(), passes, "{case}");
                assert!(moves.check(&batch, case, sum ^ 1).is_err(), "{case}");
            }
        }
    }

    #[test]
    fn every_case_moves_what_it_has_to_in_every_type() {
        every_case_moves_what_it_has_to::<f32>();
        every_case_moves_what_it_has_to::<F16>();
        every_case_moves_what_it_has_to::<Bf16>();
    }

    #[test]
    fn a_row_that_was_left_out_is_found() {
        let mut batch = Batch::<f32>::new("20x50".parse().unwrap()).unwrap();
        for case in &CASES {
            batch.fill(case);
            let moves = Moves::of(&batch, case, 0);
            let (sum, _) = moves.run(&mut batch.work);
            let (row, is_written) = (19, batch.work[19 * 50..] != batch.original[19 * 50..]);
            assert_eq!(is_written, case.writes(row), "{case}");
            let original = batch.original[row * 50];
            batch.work[row * 50] = if is_written { original } else { -original };
            assert!(matches!(moves.check(&batch, case, sum), Err(Error::Mismatch { .. })), "{case}");
        }
    }

    #[test]
    fn rows_out_of_scope_are_not_touched() {
        let batch = Batch::<f32>::new("4x100".parse().unwrap()).unwrap();
        let moves = Moves::of(&batch, &Case::scoped(0.25), u64::MAX);
        assert_eq!(moves.passes, [[[(Move::Skip, 300), (Move::Scale, 100)]]]);
        assert_eq!(moves.elements, 100);
    }
}
