//! An input file, and where its elements lie in it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::failure::Failure;

/// What stays of a file whose header was read.
#[derive(Debug)]
pub(super) struct InputFile {
    pub path: PathBuf,
    pub length: u64,
    /// Everything before the elements, byte for byte.
    pub head: Vec<u8>,
    /// Where each layer of its first row begins; a format without layers has one.
    pub starts: Vec<u64>,
    modified: Option<SystemTime>,
}

/// Opens what should be `expected`; head and starts are for its format to fill in.
pub(super) fn open(path: &Path, expected: &str) -> Result<(InputFile, File), Failure> {
    let unreadable = |e: std::io::Error| Failure::unreadable(path, &e);
    // Before it is opened: opening a pipe would wait for a writer.
    let metadata = fs::metadata(path).map_err(unreadable)?;
    if !metadata.is_file() {
        let got = if metadata.is_dir() { "a folder" } else { "a device or pipe" };
        return Err(Failure::content(path, got, expected, "pass the file itself"));
    }
    let reader = File::open(path).map_err(unreadable)?;
    let (length, modified) = (metadata.len(), metadata.modified().ok());
    let file = InputFile { path: path.to_owned(), length, head: Vec::new(), starts: Vec::new(), modified };
    Ok((file, reader))
}

impl InputFile {
    /// Opens the file again, for its elements.
    pub(super) fn reopen(&self) -> Result<File, Failure> {
        self.check_unchanged()?;
        File::open(&self.path).map_err(|e| Failure::unreadable(&self.path, &e))
    }

    /// Fails where the file is not what it was: a bound would be that of other values.
    pub(super) fn check_unchanged(&self) -> Result<(), Failure> {
        let now = fs::metadata(&self.path).map_err(|e| Failure::unreadable(&self.path, &e))?;
        if now.len() == self.length && now.modified().ok() == self.modified {
            return Ok(());
        }
        Err(Failure::content(
            &self.path,
            "another length or time of change than before",
            "a file that stays as it is while it is read",
            "wait until it is written, and try again",
        ))
    }
}
