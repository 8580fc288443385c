//! Rows that are longer than a window.

use byzclip::{Granularity, Norm, NormSum, Norms};

use super::piece::Piece;
use crate::cli::batch_file::BatchFile;
use crate::cli::elements::Elements;

/// The norms of a row that comes in pieces: of the row, and of each layer. They are summed exactly, on the host,
/// whatever the backend: a rounded norm of a part is of no use for that of the whole.
#[derive(Default)]
pub(super) struct LongRow {
    pub in_scope: bool,
    layers: Vec<NormSum>,
}

impl LongRow {
    pub(super) fn new(batch: &BatchFile, in_scope: bool) -> Self {
        Self { in_scope, layers: vec![NormSum::default(); batch.widths.len()] }
    }

    /// `center` is that of the piece's columns.
    pub(super) fn add(
        &mut self,
        batch: &BatchFile,
        piece: &Piece,
        elements: &Elements,
        center: Option<&[f32]>,
    ) -> byzclip::Result<()> {
        let values = elements.values();
        for (layer, columns) in piece.layers(batch) {
            let columns = columns.start - piece.columns.start..columns.end - piece.columns.start;
            match center {
                Some(center) => {
                    self.layers[layer].add_differences(&values[columns.clone()], &center[columns])?;
                }
                None => self.layers[layer].add(&values[columns]),
            }
        }
        Ok(())
    }

    /// When all of it was added.
    pub(super) fn norms(&self, granularity: Granularity) -> Norms {
        let norm = |sum: &NormSum| if self.in_scope { sum.norm(granularity) } else { Norm::OUT_OF_SCOPE };
        let mut whole = NormSum::default();
        self.layers.iter().for_each(|layer| whole.join(layer));
        let segments = match granularity {
            Granularity::Segment => self.layers.iter().map(norm).collect(),
            Granularity::Row | Granularity::Coordinate => Vec::new(),
        };
        Norms { rows: vec![norm(&whole)], segments }
    }
}
