//! candle on the CPU: tensors do not change, so a clip is a new one.

use std::borrow::Cow;

use byzclip::bench::cases::{Batch, MAX_NORM, Stage};
use byzclip::bench::measure::Place;
use candle_core::{Device, Tensor};

use crate::peer::{Failure, Offers, Peer, host};

struct Candle {
    place: Place,
    rows: Option<Tensor>,
    result: Option<Tensor>,
}

pub(crate) fn peers() -> Offers {
    let peer = || -> Result<Box<dyn Peer>, Failure> {
        Ok(Box::new(Candle { place: host(false)?, rows: None, result: None }))
    };
    vec![("candle", peer())]
}

impl Peer for Candle {
    fn library(&self) -> &'static str {
        "candle broadcast_mul"
    }

    fn package(&self) -> &'static str {
        "candle-core"
    }

    fn place(&self) -> &Place {
        &self.place
    }

    fn load(&mut self, batch: &Batch) -> Result<(), Failure> {
        self.rows = None;
        let dimensions = (batch.shape.clients, batch.shape.params);
        self.rows = Some(Tensor::from_slice(&batch.original, dimensions, &Device::Cpu)?);
        Ok(())
    }

    fn run(&mut self, stage: Stage, _batch: &mut Batch) -> Result<(), Failure> {
        let rows = self.rows.as_ref().ok_or("got a run before its data was loaded")?;
        let norms = rows.sqr()?.sum(1)?.sqrt()?;
        self.result = Some(match stage {
            Stage::Norms => norms,
            Stage::Clip => {
                let factors = (norms.recip()? * f64::from(MAX_NORM))?.minimum(1.0)?;
                rows.broadcast_mul(&factors.unsqueeze(1)?)?
            }
        });
        Ok(())
    }

    fn result<'a>(&'a self, _stage: Stage, _batch: &'a Batch) -> Result<Cow<'a, [f32]>, Failure> {
        let result = self.result.as_ref().ok_or("got no result; expected one after a run")?;
        Ok(Cow::Owned(result.flatten_all()?.to_vec1()?))
    }

    fn discard(&mut self) {
        self.result = None;
    }
}
