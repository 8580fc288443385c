//! candle on the CPU: tensors do not change, so a clip is a new one. A mean is a product of matrices.

use std::borrow::Cow;

use byzclip::bench::cases::{MAX_NORM, Shape, Stage};
use byzclip::bench::measure::Place;
use candle_core::{Device, Tensor};

use crate::peer::{Failure, Offers, Peer, Work, host};

struct Candle {
    place: Place,
    rows: Option<Tensor>,
    shares: Option<Tensor>,
    result: Option<Tensor>,
}

pub(crate) fn peers() -> Offers {
    let peer = || -> Result<Box<dyn Peer>, Failure> {
        Ok(Box::new(Candle { place: host(false)?, rows: None, shares: None, result: None }))
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

    fn load(&mut self, work: &Work) -> Result<(), Failure> {
        self.rows = None;
        let Shape { clients, params } = work.batch.shape;
        self.rows = Some(Tensor::from_slice(&work.batch.original, (clients, params), &Device::Cpu)?);
        self.shares = Some(Tensor::from_slice(&work.shares, (1, clients), &Device::Cpu)?);
        Ok(())
    }

    fn run(&mut self, work: &mut Work) -> Result<(), Failure> {
        let (Some(rows), Some(shares)) = (&self.rows, &self.shares) else {
            return Err("got a run before its data was loaded".into());
        };
        let norms = || rows.sqr()?.sum(1)?.sqrt();
        self.result = Some(match work.case.stage {
            Stage::Norms => norms()?,
            Stage::Clip => {
                let factors = (norms()?.recip()? * f64::from(MAX_NORM))?.minimum(1.0)?;
                rows.broadcast_mul(&factors.unsqueeze(1)?)?
            }
            Stage::Mean => shares.matmul(rows)?,
        });
        Ok(())
    }

    fn result<'a>(&'a self, _work: &'a Work) -> Result<Cow<'a, [f32]>, Failure> {
        let result = self.result.as_ref().ok_or("got no result; expected one after a run")?;
        Ok(Cow::Owned(result.flatten_all()?.to_vec1()?))
    }

    fn discard(&mut self) {
        self.result = None;
    }
}
