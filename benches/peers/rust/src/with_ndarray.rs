//! ndarray: by rows in one thread and with rayon, and the obvious code over whole arrays.

use std::borrow::Cow;

use byzclip::bench::cases::{MAX_NORM, Stage};
use byzclip::bench::measure::Place;
use ndarray::parallel::prelude::*;
use ndarray::{Array1, ArrayView1, ArrayView2, ArrayViewMut1, ArrayViewMut2, Axis};

use crate::peer::{Failure, Offers, Peer, Work, host};

/// How the rows are gone through.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    Arrays,
    Rows,
    Rayon,
}

struct Ndarray {
    way: Way,
    place: Place,
    /// Norms, or a mean.
    result: Array1<f32>,
}

pub(crate) fn peers() -> Offers {
    let peer = |way| -> Result<Box<dyn Peer>, Failure> {
        Ok(Box::new(Ndarray { way, place: host(way != Way::Rayon)?, result: Array1::default(0) }))
    };
    [Way::Arrays, Way::Rows, Way::Rayon].map(|way| ("ndarray", peer(way))).into()
}

impl Peer for Ndarray {
    fn library(&self) -> &'static str {
        match self.way {
            Way::Arrays => "ndarray sum_axis",
            Way::Rows => "ndarray dot by rows",
            Way::Rayon => "ndarray dot by rows rayon",
        }
    }

    fn package(&self) -> &'static str {
        "ndarray"
    }

    fn place(&self) -> &Place {
        &self.place
    }

    fn run(&mut self, work: &mut Work) -> Result<(), Failure> {
        let Work { batch, case, shares, .. } = work;
        let dimensions = (batch.shape.clients, batch.shape.params);
        match case.stage {
            Stage::Norms => self.result = norms(self.way, ArrayView2::from_shape(dimensions, &batch.work)?),
            Stage::Clip => clip(self.way, ArrayViewMut2::from_shape(dimensions, &mut batch.work)?),
            Stage::Mean => {
                let rows = ArrayView2::from_shape(dimensions, &batch.work)?;
                self.result = mean(self.way, rows, ArrayView1::from(&*shares));
            }
        }
        Ok(())
    }

    fn result<'a>(&'a self, work: &'a Work) -> Result<Cow<'a, [f32]>, Failure> {
        let result = self.result.as_slice().ok_or("got a result with strides; expected a slice")?;
        Ok(Cow::Borrowed(work.clipped_or(result)))
    }

    fn discard(&mut self) {
        self.result = Array1::default(0);
    }
}

fn norms(way: Way, rows: ArrayView2<f32>) -> Array1<f32> {
    match way {
        Way::Arrays => rows.mapv(|value| value * value).sum_axis(Axis(1)).mapv(f32::sqrt),
        Way::Rows => rows.rows().into_iter().map(norm).collect(),
        Way::Rayon => rows.axis_iter(Axis(0)).into_par_iter().map(norm).collect::<Vec<_>>().into(),
    }
}

fn clip(way: Way, mut rows: ArrayViewMut2<f32>) {
    match way {
        Way::Arrays => {
            let norms = rows.mapv(|value| value * value).sum_axis(Axis(1)).mapv(f32::sqrt);
            rows *= &norms.mapv(|norm| (MAX_NORM / norm).min(1.0)).insert_axis(Axis(1));
        }
        Way::Rows => rows.rows_mut().into_iter().for_each(clip_row),
        Way::Rayon => rows.axis_iter_mut(Axis(0)).into_par_iter().for_each(clip_row),
    }
}

/// Coordinates that stay in a core's first cache while rows are added to them, and rows that one task adds.
const STRIP: usize = 1024;

fn mean(way: Way, rows: ArrayView2<f32>, shares: ArrayView1<f32>) -> Array1<f32> {
    match way {
        Way::Arrays => (&rows * &shares.insert_axis(Axis(1))).sum_axis(Axis(0)),
        Way::Rows => sum_of_shares(rows, shares),
        Way::Rayon => {
            let mut mean = Array1::zeros(rows.ncols());
            let strips = rows.axis_chunks_iter(Axis(1), STRIP).into_par_iter();
            let of_mean = mean.axis_chunks_iter_mut(Axis(0), STRIP).into_par_iter();
            of_mean.zip(strips).for_each(|(mut mean, strip)| {
                // Of many short rows there are fewer strips than threads, so blocks of them are shared as well.
                let blocks = strip.axis_chunks_iter(Axis(0), STRIP).into_par_iter();
                let blocks = blocks.zip(shares.axis_chunks_iter(Axis(0), STRIP));
                let sums = blocks.map(|(rows, shares)| sum_of_shares(rows, shares));
                sums.reduce_with(|a, b| a + b).iter().for_each(|sum| mean.assign(sum));
            });
            mean
        }
    }
}

/// Each row times its share, added row by row.
fn sum_of_shares(rows: ArrayView2<f32>, shares: ArrayView1<f32>) -> Array1<f32> {
    let mut sum = Array1::zeros(rows.ncols());
    rows.rows().into_iter().zip(shares).for_each(|(row, share)| sum.scaled_add(*share, &row));
    sum
}

fn norm(row: ArrayView1<f32>) -> f32 {
    row.dot(&row).sqrt()
}

fn clip_row(mut row: ArrayViewMut1<f32>) {
    let norm = norm(row.view());
    if norm > MAX_NORM {
        row *= MAX_NORM / norm;
    }
}
