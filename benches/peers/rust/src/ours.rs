//! byzclip on the CPU: what libraries over host memory take turns with. `byzclip bench` is what verifies its bits.

use std::borrow::Cow;

use byzclip::bench::cases::{MAX_NORM, Stage};
use byzclip::bench::measure::Place;
use byzclip::{Backend, Clipping, Cpu};

use crate::peer::{Failure, Peer, Work, host};

pub(crate) struct Ours {
    cpu: Cpu,
    clipping: Clipping,
    place: Place,
    /// Norms, or a mean.
    result: Vec<f32>,
}

impl Ours {
    pub(crate) fn new() -> Result<Self, Failure> {
        Ok(Self {
            cpu: Cpu::new()?,
            clipping: Clipping::fixed(MAX_NORM),
            place: host(false)?,
            result: Vec::new(),
        })
    }
}

impl Peer for Ours {
    fn library(&self) -> &'static str {
        "byzclip"
    }

    fn package(&self) -> &'static str {
        "byzclip"
    }

    fn place(&self) -> &Place {
        &self.place
    }

    fn run(&mut self, work: &mut Work) -> Result<(), Failure> {
        let Work { batch, case, expected, weights, .. } = work;
        match case.stage {
            Stage::Norms => {
                let norms = self.cpu.norms(&batch.layout, &batch.work, &self.clipping)?;
                self.result = norms.rows.iter().map(|norm| norm.value()).collect();
            }
            Stage::Clip => {
                self.cpu.run(&batch.layout, &mut batch.work, &self.clipping)?;
            }
            Stage::Mean => {
                let decisions = expected.decisions();
                self.result =
                    self.cpu.mean(&batch.layout, &batch.work, &self.clipping, decisions, weights)?;
            }
        }
        Ok(())
    }

    fn result<'a>(&'a self, work: &'a Work) -> Result<Cow<'a, [f32]>, Failure> {
        Ok(Cow::Borrowed(work.clipped_or(&self.result)))
    }

    fn discard(&mut self) {
        self.result = Vec::new();
    }
}
