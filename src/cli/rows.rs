//! Rows of a batch in JSON.

use std::io;

use serde::ser::{Error as _, SerializeSeq};
use serde::{Serialize, Serializer};

use super::display;
use super::log;
use super::row_log::{Entry, RowLog};

/// A number that is null where it is not finite.
pub(super) fn finite(value: f32) -> Option<f32> {
    value.is_finite().then_some(value)
}

/// A bound: a number, or the string "inf", because JSON has no infinity.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bound(pub f32);

impl Serialize for Bound {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.is_finite() { serializer.serialize_f32(self.0) } else { serializer.serialize_str("inf") }
    }
}

/// A factor, as the shortest number that reads back to the same `f32`, or to the same `f64` where it
/// is below the range of `f32`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Factor(pub f64);

impl Serialize for Factor {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let narrow = self.0 as f32;
        if f64::from(narrow) == self.0 {
            serializer.serialize_f32(narrow)
        } else {
            serializer.serialize_f64(self.0)
        }
    }
}

impl std::fmt::Display for Factor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let narrow = self.0 as f32;
        if f64::from(narrow) == self.0 {
            f.write_str(&display::number(narrow))
        } else {
            write!(f, "{:e}", self.0)
        }
    }
}

/// A clipped row in JSON.
#[derive(Debug, Serialize)]
struct ClippedRow<'a> {
    norm: Option<f32>,
    bound: Option<Bound>,
    factor: Factor,
    status: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    segments: Vec<ClippedSegment<'a>>,
}

/// A clipped layer in JSON.
#[derive(Debug, Serialize)]
struct ClippedSegment<'a> {
    name: Option<&'a str>,
    norm: Option<f32>,
    bound: Option<Bound>,
    factor: Factor,
    status: &'static str,
}

/// A JSON array of which each entry is read when it is its turn: a batch may have millions of rows.
pub(super) struct Each<F> {
    pub count: usize,
    /// The entry with this index.
    pub entry: F,
}

impl<T: Serialize, F: Fn(usize) -> io::Result<T>> Serialize for Each<F> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut entries = serializer.serialize_seq(Some(self.count))?;
        for index in 0..self.count {
            let entry =
                (self.entry)(index).map_err(|e| S::Error::custom(log::unreadable(&log::row(index), &e)))?;
            entries.serialize_element(&entry)?;
        }
        entries.end()
    }
}

/// The clipped rows of a batch in JSON; `layers` are the names of the layers.
pub(super) fn clipped<'a>(log: &'a RowLog, layers: &'a [String]) -> impl Serialize + 'a {
    let entry = |row: usize| Ok(ClippedRow::new(log.row(row)?, &log.segments(row)?, layers));
    Each { count: log.clients(), entry }
}

impl<'a> ClippedRow<'a> {
    fn new(row: Entry, segments: &[Entry], layers: &'a [String]) -> Self {
        let segment = |(i, segment): (usize, &Entry)| ClippedSegment {
            name: layers.get(i).map(String::as_str),
            norm: finite(segment.norm),
            bound: segment.bound().map(Bound),
            factor: Factor(segment.factor),
            status: segment.status().name(),
        };
        Self {
            norm: finite(row.norm),
            bound: row.bound().map(Bound),
            factor: Factor(row.factor),
            status: row.status().name(),
            segments: segments.iter().enumerate().map(segment).collect(),
        }
    }
}
