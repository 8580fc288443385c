//! What a command leaves: text on stdout, files by way of a temporary one.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::io::{self, BufWriter, ErrorKind, Seek, SeekFrom, StdoutLock, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;
use tempfile::{NamedTempFile, TempPath};

use super::failure::Failure;

/// Prints text to stdout.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    to_stdout(|stdout| stdout.write_all(text.as_bytes()))
}

/// Prints one JSON object, of which no more than a buffer is in memory.
pub(super) fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let mut unread = None;
    to_stdout(|stdout| match serde_json::to_writer(&mut *stdout, value) {
        Ok(()) => stdout.write_all(b"\n"),
        Err(error) if error.is_io() => Err(error.into()),
        // A value could not be had, and says why.
        Err(error) => {
            unread = Some(Failure::Failed(error.to_string()));
            Ok(())
        }
    })?;
    unread.map_or(Ok(()), Err)
}

/// Writes to stdout by a buffer.
fn to_stdout(write: impl FnOnce(&mut BufWriter<StdoutLock<'_>>) -> io::Result<()>) -> Result<(), Failure> {
    let mut stdout = BufWriter::with_capacity(BUFFER, io::stdout().lock());
    let written = write(&mut stdout).and_then(|()| stdout.flush());
    // What could not be written is not tried again.
    drop(stdout.into_parts());
    match written {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(Failure::ClosedPipe),
        Err(error) => Err(Failure::Failed(format!(
            "cannot write to stdout: got \"{error}\"; free space or redirect it elsewhere"
        ))),
    }
}

/// Bytes of text that are written at a time.
const BUFFER: usize = 64 << 10;

/// The temporary files that there may be, and the lock that a signal has to wait for.
static TEMPORARY: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Exit code of a process that a person interrupted: 128 and the number of SIGINT, as shells have it.
const INTERRUPTED: i32 = 130;

/// On Ctrl-C, SIGTERM or SIGHUP, removes what is not complete, and ends.
pub(super) fn clean_up_when_interrupted() {
    let clean_up = || {
        let files = TEMPORARY.lock().unwrap_or_else(PoisonError::into_inner);
        for file in files.iter() {
            // Most have taken their place by now, or were removed.
            drop(fs::remove_file(file));
        }
        std::process::exit(INTERRUPTED);
    };
    // Where no handler can be set, the system's own ends the process, and hidden files may stay.
    drop(ctrlc::set_handler(clean_up));
}

/// A file that is complete or not there: written beside its place, then renamed.
pub(super) struct Pending {
    file: NamedTempFile,
    target: PathBuf,
}

/// A file that is written, and has not taken its place yet.
pub(super) struct Complete {
    file: TempPath,
    target: PathBuf,
}

impl Pending {
    pub(super) fn create(target: &Path) -> Result<Self, Failure> {
        check(target)?;
        // Through a symlink, so that what it names is replaced and not the link.
        let target = fs::canonicalize(target).unwrap_or_else(|_| match place(target) {
            Some((folder, name)) => folder.join(name),
            None => target.to_owned(),
        });
        let mut builder = tempfile::Builder::new();
        builder.prefix(".byzclip-").suffix(".partial");
        // Like any new file: readable as the umask allows, not for the owner alone.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        // Held until the file is listed, so that a signal finds it.
        let mut temporary = TEMPORARY.lock().unwrap_or_else(PoisonError::into_inner);
        let file =
            builder.tempfile_in(folder(&target)).map_err(|e| Failure::unwritable(&target, &plain(e)))?;
        temporary.push(file.path().to_owned());
        Ok(Self { file, target })
    }

    pub(super) fn write_at(&mut self, start: u64, bytes: &[u8]) -> Result<(), Failure> {
        let written = self.file.seek(SeekFrom::Start(start)).and_then(|_| self.file.write_all(bytes));
        written.map_err(|e| Failure::unwritable(&self.target, &plain(e)))
    }

    /// Writes one JSON object, of which no more than a buffer is in memory.
    pub(super) fn write_json(&mut self, value: &impl Serialize) -> Result<(), Failure> {
        let mut writer = BufWriter::with_capacity(BUFFER, &mut self.file);
        let written = serde_json::to_writer(&mut writer, value).map_err(io::Error::from);
        let written = written.and_then(|()| writer.write_all(b"\n")).and_then(|()| writer.flush());
        written.map_err(|e| Failure::unwritable(&self.target, &plain(e)))
    }

    /// Hands what was written to the disk and closes the file.
    pub(super) fn complete(self) -> Result<Complete, Failure> {
        let synced = self.file.as_file().sync_all();
        synced.map_err(|e| Failure::unwritable(&self.target, &plain(e)))?;
        Ok(Complete { file: self.file.into_temp_path(), target: self.target })
    }
}

/// Puts files in their places, over what was there. All are complete by now, and a signal waits.
pub(super) fn finish(files: Vec<Complete>) -> Result<(), Failure> {
    let mut targets = HashSet::new();
    // By another spelling, or by way of a link: one would replace the other, and be lost.
    if let Some(twice) = files.iter().find(|file| !targets.insert(&file.target)) {
        return Err(Failure::content(
            &twice.target,
            "two outputs",
            "one for each place",
            "choose another place",
        ));
    }
    let _signals = TEMPORARY.lock().unwrap_or_else(PoisonError::into_inner);
    files.into_iter().try_for_each(|Complete { file, target }| {
        file.persist(&target).map_err(|e| Failure::unwritable(&target, &plain(e.error)))
    })
}

/// The system's own words, without the name of the temporary file.
fn plain(error: io::Error) -> io::Error {
    error.kind().into()
}

/// Checks that a file can be put there: its folder exists, and what it replaces is a file.
pub(super) fn check(target: &Path) -> Result<(), Failure> {
    const REMEDY: &str = "choose another place (-o, --state or --plot)";
    if !folder(target).is_dir() {
        let got = format!("no folder {}", folder(target).display());
        return Err(Failure::content(
            target,
            &got,
            "a folder that exists",
            "create it or choose another place (-o, --state or --plot)",
        ));
    }
    match (fs::metadata(target), fs::symlink_metadata(target)) {
        (Ok(there), _) if there.is_dir() => Err(Failure::content(target, "a folder", "a file name", REMEDY)),
        // A device would be replaced like a file, and gone.
        (Ok(there), _) if !there.is_file() => {
            Err(Failure::content(target, "a device or pipe", "a file name", REMEDY))
        }
        (Err(_), Ok(_)) => Err(Failure::content(target, "a symlink to nothing", "a file name", REMEDY)),
        _ => Ok(()),
    }
}

fn folder(target: &Path) -> &Path {
    match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Whether two paths name the same place, where there may be no file yet.
pub(super) fn same_place(a: &Path, b: &Path) -> bool {
    matches!((place(a), place(b)), (Some(a), Some(b)) if a == b)
}

/// The folder of a path by its one true name, and the path's name in it.
fn place(path: &Path) -> Option<(PathBuf, OsString)> {
    Some((fs::canonicalize(folder(path)).ok()?, path.file_name()?.to_owned()))
}

/// Whether two paths are the same file, by any name.
pub(super) fn same_file(a: &Path, b: &Path) -> bool {
    let (Ok(first), Ok(second)) = (fs::metadata(a), fs::metadata(b)) else { return false };
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        (first.dev(), first.ino()) == (second.dev(), second.ino())
    }
    #[cfg(not(unix))]
    {
        drop((first, second));
        matches!((fs::canonicalize(a), fs::canonicalize(b)), (Ok(a), Ok(b)) if a == b)
    }
}
