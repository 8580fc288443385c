//! An input file.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::failure::Failure;

/// What stays of a file whose header was read.
#[derive(Debug)]
pub(super) struct InputFile {
    pub path: PathBuf,
    pub length: u64,
    /// Bytes before the elements.
    pub head: usize,
    modified: Option<SystemTime>,
}

/// Opens what should be `expected`; the head is for its format to fill in.
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
    let file = InputFile { path: path.to_owned(), length, head: 0, modified };
    Ok((file, reader))
}

impl InputFile {
    /// Opens the file again, for its elements.
    pub(super) fn reopen(&self) -> Result<File, Failure> {
        self.check_unchanged()?;
        File::open(&self.path).map_err(|e| Failure::unreadable(&self.path, &e))
    }

    /// Everything before the elements, byte for byte: thousands of files may have a long one each, so it is not kept.
    pub(super) fn read_head(&self) -> Result<Vec<u8>, Failure> {
        let mut head = vec![0; self.head];
        self.reopen()?.read_exact(&mut head).map_err(|e| Failure::unreadable(&self.path, &e))?;
        Ok(head)
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
