//! Words, numbers and tables for people.

use std::convert::Infallible;

use super::shown::Shown;

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
