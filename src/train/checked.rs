//! The backend's stages, held against the reference where asked for.

use crate::backend::{Backend, Reference};
use crate::batch::Layout;
use crate::clip::{Clipping, Scope};
use crate::error::{Error, Result};
use crate::norms::Norm;
use crate::report::{Ran, Report};
use crate::threshold::State;

/// What a backend's results are held against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Check {
    Nothing,
    Reference,
}

/// The norms of the rows in scope.
pub(super) fn norms(
    backend: &dyn Backend,
    layout: &Layout,
    data: &[f32],
    scope: &Scope,
    check: Check,
) -> Result<Vec<Norm>> {
    let clipping = Clipping::default().scope(scope.clone());
    let norms = backend.norms(layout, data, &clipping)?.rows;
    if check == Check::Reference {
        let expected = Reference.norms(layout, data, &clipping)?.rows;
        same(&backend.ran(), "norms", &norms, &expected)?;
    }
    Ok(norms)
}

/// All stages in place; the threshold's state moves on by a round.
pub(super) fn clip(
    backend: &dyn Backend,
    layout: &Layout,
    data: &mut [f32],
    clipping: &Clipping,
    state: &mut State,
    check: Check,
) -> Result<Report> {
    let mut expected_data = if check == Check::Reference { data.to_vec() } else { Vec::new() };
    let mut expected_state = state.clone();
    let report = backend.run_with(layout, data, clipping, state)?;
    if check == Check::Reference {
        let expected = Reference.run_with(layout, &mut expected_data, clipping, &mut expected_state)?;
        same(&report.ran, "threshold", &decisions(&report), &decisions(&expected))?;
        same(&report.ran, "threshold", state.words(), expected_state.words())?;
        same(&report.ran, "clip", &rows(layout, data), &rows(layout, &expected_data))?;
    }
    Ok(report)
}

/// Norm, bound and factor as bits, and the status, of every row.
fn decisions(report: &Report) -> Vec<(u32, Option<u32>, u64, &'static str)> {
    let bits = |bound: Option<f32>| bound.map(f32::to_bits);
    let canonical = |norm: f32| if norm.is_nan() { f32::NAN } else { norm }.to_bits();
    report
        .rows
        .iter()
        .map(|row| (canonical(row.norm), bits(row.bound), row.factor.to_bits(), row.status.name()))
        .collect()
}

/// The elements of every row.
fn rows<'a>(layout: &Layout, data: &'a [f32]) -> Vec<Row<'a>> {
    (0..layout.clients()).map(|row| Row(&data[layout.row(row)])).collect()
}

/// Equal where all bits are.
struct Row<'a>(&'a [f32]);

impl PartialEq for Row<'_> {
    fn eq(&self, other: &Self) -> bool {
        bytemuck::cast_slice::<f32, u32>(self.0) == bytemuck::cast_slice::<f32, u32>(other.0)
    }
}

impl std::fmt::Debug for Row<'_> {
    /// Rows are long: the first elements say enough to recognise one.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} elements that begin {:?}", self.0.len(), &self.0[..self.0.len().min(4)])
    }
}

fn same<T: PartialEq + std::fmt::Debug>(
    ran: &Ran,
    stage: &'static str,
    got: &[T],
    expected: &[T],
) -> Result<()> {
    let differs = |row: &usize| got.get(*row) != expected.get(*row);
    match (0..got.len().max(expected.len())).find(differs) {
        None => Ok(()),
        Some(row) => Err(Error::Mismatch {
            backend: ran.to_string(),
            stage,
            row,
            got: format!("{:?}", got.get(row)),
            expected: format!("{:?}", expected.get(row)),
        }),
    }
}
