//! ndarray: by rows in one thread and with rayon, and the obvious code over whole arrays.

use std::borrow::Cow;

use byzclip::bench::cases::{Batch, MAX_NORM, Stage};
use byzclip::bench::measure::Place;
use ndarray::parallel::prelude::*;
use ndarray::{ArrayView1, ArrayView2, ArrayViewMut1, ArrayViewMut2, Axis};

use crate::peer::{Failure, Offers, Peer, host};

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
    norms: Vec<f32>,
}

pub(crate) fn peers() -> Offers {
    let peer = |way| -> Result<Box<dyn Peer>, Failure> {
        Ok(Box::new(Ndarray { way, place: host(way != Way::Rayon)?, norms: Vec::new() }))
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

    fn run(&mut self, stage: Stage, batch: &mut Batch) -> Result<(), Failure> {
        let dimensions = (batch.shape.clients, batch.shape.params);
        match stage {
            Stage::Norms => self.norms = norms(self.way, ArrayView2::from_shape(dimensions, &batch.work)?),
            Stage::Clip => clip(self.way, ArrayViewMut2::from_shape(dimensions, &mut batch.work)?),
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

fn norms(way: Way, rows: ArrayView2<f32>) -> Vec<f32> {
    match way {
        Way::Arrays => rows.mapv(|value| value * value).sum_axis(Axis(1)).mapv(f32::sqrt).to_vec(),
        Way::Rows => rows.rows().into_iter().map(norm).collect(),
        Way::Rayon => rows.axis_iter(Axis(0)).into_par_iter().map(norm).collect(),
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

fn norm(row: ArrayView1<f32>) -> f32 {
    row.dot(&row).sqrt()
}

fn clip_row(mut row: ArrayViewMut1<f32>) {
    let norm = norm(row.view());
    if norm > MAX_NORM {
        row *= MAX_NORM / norm;
    }
}
