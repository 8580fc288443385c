//! A backend over host memory, beside plain loops over the same memory.

use std::hint::black_box;

use super::cases::{Batch, Case, Stage};
use super::element::Element;
use super::expected::Expected;
use super::measure::{Timed, Times, timed};
use super::plain;
use crate::backend::Backend;
use crate::clip::Clipping;
use crate::error::Result;
use crate::report::BackendKind;

/// Verifies the case, then times it, in turn with plain where the backend runs on the same threads.
///
/// # Errors
/// [`Error::Mismatch`](crate::Error::Mismatch) where a result is not the expected one; errors of the backend.
pub fn measure<E: Element>(
    backend: &dyn Backend,
    batch: &mut Batch<E>,
    case: &Case,
    runs: usize,
    fault: &mut bool,
) -> Result<Timed> {
    let expected = Expected::of(batch, case)?;
    let (ran, shape) = (backend.ran(), batch.shape);
    let name = ran.to_string();
    let has_plain = ran.backend != BackendKind::Gpu;
    let (mut ours, mut plain) = (Times::default(), Times::default());
    // The first round verifies and warms up; it is not counted.
    for round in 0..=runs {
        let seconds = run(backend, batch, case, &expected, &name)?;
        if round == 0 && *fault && batch.spoil(case) {
            *fault = false;
        }
        if round == 0 || round == runs {
            expected.check_values(&name, batch, &batch.work)?;
        }
        batch.restore(case);
        ours.push_after_first(round, seconds);
        if has_plain {
            let (norms, seconds) = timed(|| match case.stage {
                Stage::Norms => plain::norms(shape, case, black_box(&batch.work)),
                Stage::Clip => plain::clip(shape, case, black_box(&mut batch.work)),
            });
            if round == 0 {
                expected.check_plain(&norms, plain::error(shape))?;
                expected.check_plain_values(batch, &batch.work, 2.0 * plain::error(shape))?;
            }
            plain.push_after_first(round, seconds);
            batch.restore(case);
        }
    }
    Ok(Timed { method: "host", ours, plain: has_plain.then_some(plain) })
}

/// One run, its norms or report held against the expected ones.
fn run<E: Element>(
    backend: &dyn Backend,
    batch: &mut Batch<E>,
    case: &Case,
    expected: &Expected,
    name: &str,
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
    }
}
