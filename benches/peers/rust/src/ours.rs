//! byzclip on the CPU: what libraries over host memory take turns with. `byzclip bench` is what verifies its bits.

use std::borrow::Cow;

use byzclip::bench::cases::{Batch, MAX_NORM, Stage};
use byzclip::bench::measure::Place;
use byzclip::{Backend, Clipping, Cpu};

use crate::peer::{Failure, Peer, host};

pub(crate) struct Ours {
    cpu: Cpu,
    clipping: Clipping,
    place: Place,
    norms: Vec<f32>,
}

impl Ours {
    pub(crate) fn new() -> Result<Self, Failure> {
        Ok(Self {
            cpu: Cpu::new()?,
            clipping: Clipping::fixed(MAX_NORM),
            place: host(false)?,
            norms: Vec::new(),
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

    fn run(&mut self, stage: Stage, batch: &mut Batch) -> Result<(), Failure> {
        match stage {
            Stage::Norms => {
                let norms = self.cpu.norms(&batch.layout, &batch.work, &self.clipping)?;
                self.norms = norms.rows.iter().map(|norm| norm.value()).collect();
            }
            Stage::Clip => {
                self.cpu.run(&batch.layout, &mut batch.work, &self.clipping)?;
            }
        }
        Ok(())
    }

    fn result<'a>(&'a self, stage: Stage, batch: &'a Batch) -> Result<Cow<'a, [f32]>, Failure> {
        Ok(Cow::Borrowed(if stage == Stage::Norms { &self.norms } else { &batch.work }))
    }

    fn discard(&mut self) {
        self.norms = Vec::new();
    }
}
