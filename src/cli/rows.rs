//! Rows of a batch as JSON and as a table.

use std::convert::Infallible;
use std::io;

use serde::ser::{Error as _, SerializeSeq};
use serde::{Serialize, Serializer};

use super::log::{self, Shown};
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
        if f64::from(narrow) == self.0 { f.write_str(&number(narrow)) } else { write!(f, "{:e}", self.0) }
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

/// A table with right-aligned columns; the first and last rows only where there are many.
pub(super) fn table(head: &[&str], rows: usize, cells: impl Fn(usize) -> Vec<String>) -> String {
    let Ok(text) = try_table(head, rows, |row| Ok::<_, Infallible>(cells(row)));
    text
}

/// The same of cells that have to be read back.
pub(super) fn try_table<E>(
    head: &[&str],
    rows: usize,
    cells: impl Fn(usize) -> Result<Vec<String>, E>,
) -> Result<String, E> {
    aligned(head, rows, cells, |cell, width| format!("{cell:>width$}"))
}

/// A table with left-aligned columns, for words.
pub(super) fn table_left(head: &[&str], rows: usize, cells: impl Fn(usize) -> Vec<String>) -> String {
    let cells = |row| Ok::<_, Infallible>(cells(row));
    let Ok(text) = aligned(head, rows, cells, |cell, width| format!("{cell:<width$}"));
    text
}

fn aligned<E>(
    head: &[&str],
    rows: usize,
    cells: impl Fn(usize) -> Result<Vec<String>, E>,
    align: impl Fn(&str, usize) -> String,
) -> Result<String, E> {
    let [first, last] = Shown::in_table(rows).ranges();
    let is_cut = first.end < last.start;
    let middle = first.len();
    let shown = first.chain(last).map(cells).collect::<Result<Vec<_>, E>>()?;
    let width = |column: usize| {
        shown.iter().map(|row| row[column].len()).chain([head[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..head.len()).map(width).collect();
    let mut text = String::new();
    let mut line = |cells: &[&str]| {
        let cells: Vec<_> = cells.iter().zip(&widths).map(|(cell, width)| align(cell, *width)).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    };
    line(head);
    for (i, row) in shown.iter().enumerate() {
        if is_cut && i == middle {
            line(&["..."]);
        }
        line(&row.iter().map(String::as_str).collect::<Vec<_>>());
    }
    if is_cut {
        text.push_str(&format!("({rows} rows in all; --json has every one)\n"));
    }
    Ok(text)
}

/// A number that reads back to the same `f32`, with an exponent where it would be mostly zeros.
pub(super) fn number(value: f32) -> String {
    let plain = value == 0.0 || !value.is_finite() || (1e-5..1e9).contains(&value.abs());
    if plain { value.to_string() } else { format!("{value:e}") }
}

/// Text from files and paths without control characters, which could write anywhere on a terminal.
pub(super) fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() })
        .collect()
}

/// A number of things: `1 client`, `2 clients`.
pub(super) fn count(number: usize, thing: &str) -> String {
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
}

/// How long the work took, and what it moved a second where there is enough of it to tell.
pub(super) fn rate(bytes: u64, seconds: f64) -> String {
    let bytes = bytes as f64;
    let time = if seconds < 1.0 { format!("{:.2} ms", seconds * 1e3) } else { format!("{seconds:.2} s") };
    if bytes < 1e6 { time } else { format!("{time}, {:.2} GB/s of input", bytes / seconds / 1e9) }
}
