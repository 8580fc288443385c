//! A backend over host memory, beside plain loops over the same memory, and beside what that memory allows.

use std::hint::{black_box, spin_loop};
use std::time::{Duration, Instant};

use super::cases::{Batch, Case, Shape, Stage};
use super::ceilings::{self, Ceilings};
use super::element::{Bf16, Dtype, Element, F16};
use super::expected::Expected;
use super::measure::{Allowed, Samples, Timed, Times, timed};
use super::moves::Moves;
use super::plain;
use crate::backend::Backend;
use crate::clip::Clipping;
use crate::error::Result;
use crate::report::BackendKind;

/// A batch of elements of any type.
pub trait AnyBatch {
    /// What its elements are stored as.
    fn dtype(&self) -> Dtype;

    /// [`Batch::fill`].
    fn fill(&mut self, case: &Case);

    /// [`ceilings::measure`].
    ///
    /// # Errors
    /// Those of [`ceilings::measure`].
    fn ceilings(&mut self, runs: usize) -> Result<Ceilings>;

    /// A case on the batch, which is filled for it, of which no round has run.
    ///
    /// # Errors
    /// Those of the specification, on data that is not the case's.
    fn rounds<'a>(&'a mut self, backend: &'a dyn Backend, case: &'a Case) -> Result<Box<dyn Rounds + 'a>>;
}

/// Room for a batch of this shape and type.
///
/// # Errors
/// Those of [`Batch::new`].
pub fn batch(shape: Shape, dtype: Dtype) -> Result<Box<dyn AnyBatch>> {
    Ok(match dtype {
        Dtype::F32 => Box::new(Batch::<f32>::new(shape)?),
        Dtype::F16 => Box::new(Batch::<F16>::new(shape)?),
        Dtype::Bf16 => Box::new(Batch::<Bf16>::new(shape)?),
    })
}

impl<E: Element> AnyBatch for Batch<E> {
    fn dtype(&self) -> Dtype {
        E::DTYPE
    }

    fn fill(&mut self, case: &Case) {
        self.fill(case);
    }

    fn ceilings(&mut self, runs: usize) -> Result<Ceilings> {
        ceilings::measure(self, runs)
    }

    fn rounds<'a>(&'a mut self, backend: &'a dyn Backend, case: &'a Case) -> Result<Box<dyn Rounds + 'a>> {
        let ran = backend.ran();
        let beside = (ran.backend != BackendKind::Gpu).then(|| Beside {
            moves: Moves::of(self, case, ceilings::core_cache()),
            plain: Times::default(),
            allowed: Samples::default(),
        });
        let (name, expected) = (ran.to_string(), Expected::of(self, case)?);
        Ok(Box::new(OnHost {
            backend,
            name,
            batch: self,
            case,
            expected,
            rounds: 0,
            ours: Times::default(),
            beside,
        }))
    }
}

/// What becomes of a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Round {
    is_verified: bool,
    is_counted: bool,
}

/// What is timed round by round.
pub trait Rounds {
    /// A round, each of its runs behind a restoration.
    ///
    /// # Errors
    /// [`Error::Mismatch`](crate::Error::Mismatch) where a result is not the expected one; errors of the backend.
    fn run(&mut self, round: Round, fault: &mut bool) -> Result<()>;

    /// What all rounds took.
    fn timed(self: Box<Self>) -> Timed;
}

/// Rounds of one batch before the next has its turn.
const TURN: usize = 5;

/// Verifies a case on batches that are filled for it, then times it on all of them in turns: whatever slows the machine
/// down for a while slows all types of elements, and with them plain loops and what memory allows.
///
/// The first round of a turn is not counted: it finds in the caches what another batch has left there.
///
/// # Errors
/// [`Error::Mismatch`](crate::Error::Mismatch) where a result is not the expected one; errors of the backend.
pub fn measure<'a>(
    backend: &dyn Backend,
    batches: impl IntoIterator<Item = &'a mut (dyn AnyBatch + 'static)>,
    case: &Case,
    runs: usize,
    fault: &mut bool,
) -> Result<Vec<Timed>> {
    let batches = batches.into_iter().map(|batch| batch.rounds(backend, case));
    let mut batches = batches.collect::<Result<Vec<_>>>()?;
    let mut counted = 0;
    while counted < runs {
        let turn = TURN.min(runs - counted);
        for batch in &mut batches {
            batch.run(Round { is_verified: counted == 0, is_counted: false }, fault)?;
            for round in 1..=turn {
                batch.run(Round { is_verified: counted + round == runs, is_counted: true }, fault)?;
            }
        }
        counted += turn;
    }
    Ok(batches.into_iter().map(Rounds::timed).collect())
}

/// Lets the threads of the pool fall asleep, as they are for a program that has done something else since its last batch.
fn pause() {
    const LONG_ENOUGH: Duration = Duration::from_micros(200);
    let start = Instant::now();
    while start.elapsed() < LONG_ENOUGH {
        spin_loop();
    }
}

struct OnHost<'a, E> {
    backend: &'a dyn Backend,
    name: String,
    batch: &'a mut Batch<E>,
    case: &'a Case,
    expected: Expected,
    /// How many rounds that count have begun.
    rounds: usize,
    ours: Times,
    /// Nothing where the backend does not run on the host's threads.
    beside: Option<Beside>,
}

/// Who takes turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Ours,
    Plain,
    Moves,
}

/// In which order the three run in a round. What a run finds in the caches depends on whom it follows: six rounds have all six orders.
fn order(round: usize) -> [Who; 3] {
    const FORTH: [Who; 3] = [Who::Ours, Who::Plain, Who::Moves];
    let mut order = std::array::from_fn(|place| FORTH[(round + place) % 3]);
    if !round.is_multiple_of(2) {
        order.reverse();
    }
    order
}

/// What takes turns with ours.
struct Beside {
    moves: Moves,
    plain: Times,
    allowed: Samples,
}

impl<E: Element> Rounds for OnHost<'_, E> {
    fn run(&mut self, round: Round, fault: &mut bool) -> Result<()> {
        if self.beside.is_none() {
            self.run_ours(round, fault)?;
            self.batch.restore(self.case);
            return Ok(());
        }
        self.rounds += usize::from(round.is_counted);
        for who in order(self.rounds) {
            pause();
            match who {
                Who::Ours => self.run_ours(round, fault)?,
                Who::Plain => self.run_plain(round)?,
                Who::Moves => self.run_moves(round)?,
            }
            self.batch.restore(self.case);
        }
        Ok(())
    }

    fn timed(self: Box<Self>) -> Timed {
        let (plain, allowed) = self.beside.map(|beside| (beside.plain, beside.allowed)).unzip();
        Timed { method: "host", ours: self.ours, plain, allowed: allowed.map(Allowed::InTurn) }
    }
}

impl<E: Element> OnHost<'_, E> {
    fn run_ours(&mut self, round: Round, fault: &mut bool) -> Result<()> {
        let Self { batch, case, expected, .. } = self;
        let seconds = run(self.backend, batch, case, expected, &self.name, fault)?;
        self.ours.push_if(round.is_counted, seconds);
        if round.is_verified && *fault && batch.spoil(case) {
            *fault = false;
        }
        if round.is_verified { expected.check_values(&self.name, batch, &batch.work) } else { Ok(()) }
    }

    fn run_plain(&mut self, round: Round) -> Result<()> {
        let Self { batch, case, expected, .. } = self;
        let Some(Beside { plain, .. }) = &mut self.beside else { return Ok(()) };
        let shape = batch.shape;
        match case.stage {
            Stage::Norms | Stage::Clip => {
                let (norms, seconds) = timed(|| plain::run(shape, case, black_box(&mut batch.work)));
                plain.push_if(round.is_counted, seconds);
                if round.is_verified {
                    expected.check_plain(&norms, plain::error(shape))?;
                    expected.check_plain_values(batch, &batch.work, 2.0 * plain::error(shape))?;
                }
                Ok(())
            }
            Stage::Mean => {
                let samples = Case::samples(shape.clients);
                let (mean, seconds) =
                    timed(|| plain::mean(shape, &expected.shares(&samples), black_box(&batch.work)));
                plain.push_if(round.is_counted, seconds);
                if round.is_verified { expected.check_plain_mean(&mean, E::DTYPE) } else { Ok(()) }
            }
        }
    }

    fn run_moves(&mut self, round: Round) -> Result<()> {
        let Some(Beside { moves, allowed, .. }) = &mut self.beside else { return Ok(()) };
        let ((sum, _result), seconds) = timed(|| moves.run(black_box(&mut self.batch.work)));
        if round.is_counted {
            allowed.push(seconds);
        }
        if round.is_verified { moves.check(self.batch, self.case, sum) } else { Ok(()) }
    }
}

/// One run, its norms, report or mean held against the expected ones; a mean with a `fault` that is set.
fn run<E: Element>(
    backend: &dyn Backend,
    batch: &mut Batch<E>,
    case: &Case,
    expected: &Expected,
    name: &str,
    fault: &mut bool,
) -> Result<f64> {
    match case.stage {
        Stage::Norms => {
            let (norms, seconds) =
                timed(|| E::norms(backend, &batch.layout, black_box(&batch.work), &Clipping::default()));
            expected.check_norms(name, &norms?)?;
            Ok(seconds)
        }
        Stage::Clip => {
            let clipping = case.clipping(batch.shape.clients);
            let (report, seconds) =
                timed(|| E::run(backend, &batch.layout, black_box(&mut batch.work), &clipping));
            expected.check_report(name, &report?)?;
            Ok(seconds)
        }
        Stage::Mean => {
            let clients = batch.shape.clients;
            let (clipping, weights) = (case.clipping(clients), Case::weights(clients));
            let (layout, decisions) = (&batch.layout, expected.decisions());
            let (mean, seconds) =
                timed(|| E::mean(backend, layout, black_box(&batch.work), &clipping, decisions, &weights));
            let mut mean = mean?;
            spoil(&mut mean, fault);
            expected.check_mean(name, &mean)?;
            Ok(seconds)
        }
    }
}

/// Flips the lowest bit of the first coordinate where a fault is set, and takes it.
pub(super) fn spoil(mean: &mut [f32], fault: &mut bool) {
    if let (Some(first), true) = (mean.first_mut(), *fault) {
        *first = f32::from_bits(first.to_bits() ^ 1);
        *fault = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn six_rounds_have_all_orders() {
        let orders: Vec<_> = (1..=6).map(order).collect();
        for (i, order) in orders.iter().enumerate() {
            assert!([Who::Ours, Who::Plain, Who::Moves].iter().all(|who| order.contains(who)), "{order:?}");
            assert!(!orders[..i].contains(order), "{order:?} twice");
        }
    }
}
