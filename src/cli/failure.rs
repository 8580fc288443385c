//! How a command ends.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

/// How a command that ran to its end came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Success,
    /// `verify` found a difference, and has said so.
    Mismatch,
}

/// Why a command did not run to its end: one line that says got, expected, remedy.
#[derive(Debug)]
pub(super) enum Failure {
    /// The command line asks for something that makes no sense: exit code 2.
    Usage(String),
    /// Everything else: exit code 1.
    Failed(String),
    /// The reader of stdout has gone; nobody is left to tell.
    ClosedPipe,
}

impl Failure {
    /// A file that cannot be read.
    pub(super) fn unreadable(path: &Path, error: &std::io::Error) -> Self {
        let expected = if error.kind() == std::io::ErrorKind::OutOfMemory {
            "memory for a piece of it; allow this process more"
        } else {
            "a readable file; check the path and its permissions"
        };
        Self::Failed(format!("cannot read {}: got \"{error}\"; expected {expected}", path.display()))
    }

    /// A file or folder that cannot be written.
    pub(super) fn unwritable(path: &Path, error: &std::io::Error) -> Self {
        Self::Failed(format!(
            "cannot write {}: got \"{error}\"; expected a folder with permission and space to write; free \
             space or choose another -o",
            path.display()
        ))
    }

    /// A file that holds something else than it should.
    pub(super) fn content(path: &Path, got: &str, expected: &str, remedy: &str) -> Self {
        Self::Failed(format!("{}: got {got}; expected {expected}; {remedy}", path.display()))
    }

    pub(super) fn print(&self) {
        match self {
            Self::Usage(message) | Self::Failed(message) => {
                // In one go, so that what another thread has to say does not come between. Without stderr nobody is left to tell.
                drop(std::io::stderr().write_all(format!("byzclip: {}\n", one_line(message)).as_bytes()));
            }
            Self::ClosedPipe => {}
        }
    }

    pub(super) fn exit_code(&self) -> ExitCode {
        match self {
            Self::Usage(_) => ExitCode::from(2),
            Self::Failed(_) | Self::ClosedPipe => ExitCode::from(1),
        }
    }
}

/// Text that files and drivers may have had a hand in, as one line without control characters.
fn one_line(text: &str) -> String {
    let words = text.split(['\n', '\r']).map(str::trim).collect::<Vec<_>>().join(" ");
    words.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// The start of a text that a file holds, because a hostile one may be long.
pub(super) fn excerpt(text: &str) -> String {
    const LONGEST: usize = 60;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

impl From<byzclip::Error> for Failure {
    fn from(error: byzclip::Error) -> Self {
        use byzclip::Error::{DuplicateRow, InvalidBound, Setting};
        match error {
            // Settings, whether or not another batch would make them right.
            DuplicateRow { .. } | InvalidBound { .. } | Setting { .. } => Self::Usage(error.to_string()),
            _ => Self::Failed(error.to_string()),
        }
    }
}
