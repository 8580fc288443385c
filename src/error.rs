//! The one error type of the library: what it got, what it expected, and the remedy.

/// A `Result` of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Everything that can go wrong in the library.
///
/// Every message says what was got, what was expected and what to do about it. Nothing in the
/// library panics on a value that a caller, a file or a driver controls.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The numbers that describe a layout contradict one another.
    #[error("invalid layout: got {got}; expected {expected}; correct the shape")]
    Layout {
        /// What the caller described.
        got: String,
        /// What a layout must satisfy.
        expected: &'static str,
    },
    /// The data is shorter than its layout.
    #[error(
        "data too short: got {got} elements; expected at least {expected}; pass the whole batch or a smaller layout"
    )]
    DataTooShort {
        /// Elements in the slice or buffer.
        got: usize,
        /// Elements that the layout reaches.
        expected: usize,
    },
    /// A row is longer than the contract covers.
    #[error(
        "row too long: got {got} elements; expected at most 2^31; pass fewer parameters, or the client as several rows, each with a norm of its own"
    )]
    RowTooLong {
        /// Elements in the row.
        got: usize,
    },
    /// A bound is NaN or negative.
    #[error(
        "invalid max norm: got {got}; expected a number >= 0 (+inf clips nothing); pass a bound such as 2.0"
    )]
    InvalidBound {
        /// The bound.
        got: f32,
    },
    /// The number of per-row bounds is not the number of rows.
    #[error("wrong number of bounds: got {got}; expected {expected}, one per row; pass one bound per client")]
    BoundCount {
        /// Bounds passed.
        got: usize,
        /// Rows in the batch.
        expected: usize,
    },
    /// A scope has an entry per row, and their number is wrong.
    #[error(
        "wrong scope length: got {got} entries; expected {expected}, one per row; pass one entry per client"
    )]
    ScopeLength {
        /// Entries passed.
        got: usize,
        /// Rows in the batch.
        expected: usize,
    },
    /// A row listed in a scope does not exist.
    #[error("row out of range: got row {row}; expected {}; correct the scope", rows_of(*.clients))]
    RowOutOfRange {
        /// The row.
        row: usize,
        /// Rows in the batch.
        clients: usize,
    },
    /// A row is listed twice in a scope.
    #[error("duplicate row in scope: got row {row} twice; expected each row once; remove one of them")]
    DuplicateRow {
        /// The row.
        row: usize,
    },
    /// The non-finite policy is `error`, and a row in scope holds NaN or Inf.
    #[error(
        "non-finite update: got NaN or Inf in row {row}; expected finite values; drop that client or use the non-finite policy `zero`"
    )]
    NonFinite {
        /// The first such row.
        row: usize,
    },
    /// No adapter fits what was asked for.
    #[error(
        "no GPU adapter: got {found}; expected {wanted}; use the cpu backend, install a Vulkan driver, or name one of the adapters found"
    )]
    NoAdapter {
        /// What was asked for.
        wanted: String,
        /// The adapters that are there.
        found: String,
    },
    /// An adapter is there, and its driver opens no device on it.
    #[error(
        "no device on {adapter}: got \"{message}\"; expected one with the adapter's limits; free memory of the GPU and of the host, \
         name another adapter, or use the cpu backend"
    )]
    NoDevice {
        /// The adapter.
        adapter: String,
        /// The driver's words.
        message: String,
    },
    /// The batch does not fit the device.
    #[error(
        "batch too large for {adapter}: got {got} bytes for {what}; expected at most {limit}; pass fewer rows at a time or use the cpu backend"
    )]
    BatchTooLarge {
        /// The device.
        adapter: String,
        /// The buffer that does not fit.
        what: &'static str,
        /// Bytes needed.
        got: u64,
        /// Bytes allowed.
        limit: u64,
    },
    /// A buffer passed by the caller cannot be used.
    #[error("unusable buffer: got {got}; expected {expected}; create the buffer accordingly")]
    Buffer {
        /// What is wrong with it.
        got: String,
        /// What is needed.
        expected: String,
    },
    /// The device ran out of memory.
    #[error(
        "GPU out of memory while {during}: got \"{message}\"; expected the allocation to fit; pass fewer rows at a time or use the cpu backend"
    )]
    GpuOutOfMemory {
        /// What was being done.
        during: &'static str,
        /// The driver's words.
        message: String,
    },
    /// The device was lost or destroyed.
    #[error(
        "GPU device lost while {during}: got \"{message}\"; expected a live device; create a new device and try again"
    )]
    DeviceLost {
        /// What was being done.
        during: &'static str,
        /// The driver's words.
        message: String,
    },
    /// wgpu refused a call.
    #[error(
        "GPU error while {during}: got \"{message}\"; expected the call to be valid; try the cpu backend and report this"
    )]
    Gpu {
        /// What was being done.
        during: &'static str,
        /// wgpu's words.
        message: String,
    },
    /// The report was asked for before the plan ran, or after a run that was recorded for another kind of clipping or a smaller scope.
    #[error(
        "no report: got a plan that has not run under its clipping; expected a recorded and submitted run; record \
         after set_clipping, and submit first"
    )]
    NotRecorded,
    /// Worker threads could not be started.
    #[error(
        "cannot start worker threads: got \"{message}\"; expected {threads} threads; ask for fewer (RAYON_NUM_THREADS, or Cpu::with_threads)"
    )]
    Threads {
        /// Threads asked for.
        threads: usize,
        /// The system's words.
        message: String,
    },
    /// A setting, for example of a threshold, a centre or a training run, is out of its range.
    #[error("invalid setting {name}: got {got}; expected {expected}; correct it")]
    Setting {
        /// The setting's name.
        name: &'static str,
        /// Its value.
        got: String,
        /// The values allowed.
        expected: &'static str,
    },
    /// A line of the training data cannot be read.
    #[error(
        "unreadable training data: got {got} in line {line}; expected {expected}; restore data/digits.csv"
    )]
    Data {
        /// The line, from 1.
        line: usize,
        /// What it holds.
        got: String,
        /// What a line holds.
        expected: &'static str,
    },
    /// A saved calibration cannot be read, or is one of another device.
    #[error("unusable calibration: got {got}; expected {expected}; calibrate anew")]
    Calibration {
        /// What it holds.
        got: String,
        /// What it should hold.
        expected: String,
    },
    /// A backend's results are not those of the reference.
    #[error(
        "{stage} differs from the reference: got {got} for {} {row}; expected {expected}; do not trust {backend} and report this",
        if *.stage == "mean" { "coordinate" } else { "row" }
    )]
    Mismatch {
        /// The backend and what it ran on.
        backend: String,
        /// The stage whose results differ.
        stage: &'static str,
        /// The first row that differs; of a mean the first coordinate.
        row: usize,
        /// What the backend found.
        got: String,
        /// What the reference found.
        expected: String,
    },
}

/// The rows of a batch, in words.
fn rows_of(clients: usize) -> String {
    match clients.checked_sub(1) {
        Some(last) => format!("rows 0 to {last}"),
        None => "no row, as the batch has none".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An error of every variant, beside a match without a wildcard: a variant that is not listed does not compile.
    macro_rules! samples {
        ($($variant:ident $fields:tt)*) => {
            fn samples() -> Vec<Error> {
                let all = vec![$(Error::$variant $fields),*];
                for error in &all {
                    match error {
                        $(Error::$variant { .. } => {})*
                    }
                }
                all
            }
        };
    }

    samples! {
        Layout { got: "stride 4 with 5 params".into(), expected: "a stride of at least params" }
        DataTooShort { got: 9, expected: 10 }
        RowTooLong { got: (1 << 31) + 1 }
        InvalidBound { got: -1.0 }
        BoundCount { got: 2, expected: 3 }
        ScopeLength { got: 2, expected: 3 }
        RowOutOfRange { row: 3, clients: 3 }
        DuplicateRow { row: 1 }
        NonFinite { row: 1 }
        NoAdapter { wanted: "an adapter of hardware".into(), found: "none".into() }
        NoDevice { adapter: "some GPU".into(), message: "no memory".into() }
        BatchTooLarge { adapter: "some GPU".into(), what: "the norms", got: 9, limit: 8 }
        Buffer { got: "a buffer without STORAGE".into(), expected: "one with it".into() }
        GpuOutOfMemory { during: "uploading", message: "no memory".into() }
        DeviceLost { during: "clipping", message: "gone".into() }
        Gpu { during: "clipping", message: "invalid".into() }
        NotRecorded {}
        Threads { threads: 9, message: "no memory".into() }
        Setting { name: "factor", got: "-1".into(), expected: "a number >= 0" }
        Data { line: 7, got: "3 fields".into(), expected: "65 numbers" }
        Calibration { got: "one of another GPU".into(), expected: "one of this GPU".into() }
        Mismatch {
            backend: "gpu on some GPU".into(),
            stage: "norms",
            row: 7,
            got: "1".into(),
            expected: "2".into(),
        }
    }

    /// What went wrong, what was got, what was expected, and the remedy.
    fn parts(text: &str) -> Option<[&str; 4]> {
        let (what, rest) = text.split_once(": got ")?;
        let (got, rest) = rest.split_once("; expected ")?;
        let (expected, remedy) = rest.split_once("; ")?;
        Some([what, got, expected, remedy])
    }

    #[test]
    fn every_error_says_what_it_got_expected_and_what_to_do() {
        for error in samples() {
            let text = error.to_string();
            assert!(parts(&text).is_some_and(|parts| parts.iter().all(|part| !part.is_empty())), "{text}");
            // One line, without the gaps that broken literals leave.
            assert!(!text.contains(char::is_control) && !text.contains("  "), "{text}");
        }
    }

    #[test]
    fn a_row_out_of_range_is_told_which_rows_there_are() {
        let of = |clients| Error::RowOutOfRange { row: 7, clients }.to_string();
        assert!(of(7).contains("expected rows 0 to 6;"), "{}", of(7));
        assert!(of(0).contains("expected no row, as the batch has none;"), "{}", of(0));
    }

    /// Of a mean it is a coordinate that differs.
    #[test]
    fn a_mismatch_names_what_it_counts() {
        let of = |stage| {
            let (backend, got, expected) = ("cpu".into(), "1".into(), "2".into());
            Error::Mismatch { backend, stage, row: 7, got, expected }.to_string()
        };
        assert!(of("norms").contains(" for row 7;"), "{}", of("norms"));
        assert!(of("mean").contains(" for coordinate 7;"), "{}", of("mean"));
    }
}
