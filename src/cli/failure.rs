//! How a command ends.

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
    /// A file that cannot be read or written.
    pub(super) fn io(action: &str, path: &Path, error: &std::io::Error, remedy: &str) -> Self {
        Self::Failed(format!("cannot {action} {}: got \"{error}\"; {remedy}", path.display()))
    }

    /// A file that holds something else than it should.
    pub(super) fn content(path: &Path, got: &str, expected: &str, remedy: &str) -> Self {
        Self::Failed(format!("{}: got {got}; expected {expected}; {remedy}", path.display()))
    }

    pub(super) fn print(&self) {
        match self {
            Self::Usage(message) | Self::Failed(message) => {
                // Names of files and drivers may hold anything; the message stays one line.
                let line = message.split(['\n', '\r']).map(str::trim).collect::<Vec<_>>().join(" ");
                eprintln!("byzclip: {line}");
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

impl From<byzclip::Error> for Failure {
    fn from(error: byzclip::Error) -> Self {
        use byzclip::Error::{DuplicateRow, InvalidBound, Setting};
        match error {
            // These are wrong whatever the files hold.
            DuplicateRow { .. } | InvalidBound { .. } | Setting { .. } => Self::Usage(error.to_string()),
            _ => Self::Failed(error.to_string()),
        }
    }
}
