//! Where clipped batches and means go: files of the format that the batch came in.

use std::path::{Path, PathBuf};

use super::batch_file::{BatchFile, Kind, is, kind};
use super::elements::Elements;
use super::failure::Failure;
use super::output::{self, Complete, Pending, same_file, same_place};
use super::stream::Piece;
use super::{npy, safetensors};

/// The clipped batch on its way into files of the same format, each complete or not there.
pub(super) struct Output {
    path: PathBuf,
    current: Option<Pending>,
    complete: Vec<Complete>,
    /// Last, because it is gone last.
    folder: Option<NewFolder>,
}

/// A folder made for an output; gone again where nothing came of it.
struct NewFolder(PathBuf);

impl Drop for NewFolder {
    fn drop(&mut self) {
        // Only an empty folder can be removed this way, and that is what is wanted.
        drop(std::fs::remove_dir(&self.0));
    }
}

impl Output {
    /// Nothing is made before something is written.
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), folder: None, current: None, complete: Vec::new() }
    }

    /// Writes a piece; pieces come in file order.
    pub(super) fn write(
        &mut self,
        batch: &BatchFile,
        piece: &Piece,
        elements: &Elements,
    ) -> Result<(), Failure> {
        let mut rest = elements.bytes();
        for run in batch.runs(piece)? {
            let (part, tail) = rest.split_at(run.bytes);
            rest = tail;
            self.file(batch, run.file)?.write_at(run.start, part)?;
        }
        Ok(())
    }

    /// The file with this number, after all before it are complete.
    fn file(&mut self, batch: &BatchFile, number: usize) -> Result<&mut Pending, Failure> {
        while self.complete.len() < number {
            let pending = match self.current.take() {
                Some(pending) => pending,
                None => self.create(batch, self.complete.len())?,
            };
            self.complete.push(pending.complete()?);
        }
        let pending = match self.current.take() {
            Some(pending) => pending,
            None => self.create(batch, number)?,
        };
        Ok(self.current.insert(pending))
    }

    fn create(&mut self, batch: &BatchFile, number: usize) -> Result<Pending, Failure> {
        let input = &batch.files[number];
        let path = match batch.kind {
            Kind::Npy => self.path.clone(),
            Kind::Safetensors => {
                if !self.path.is_dir() {
                    std::fs::create_dir_all(&self.path).map_err(|e| Failure::unwritable(&self.path, &e))?;
                    self.folder = Some(NewFolder(self.path.clone()));
                }
                target(&self.path, &input.path)
            }
        };
        let mut pending = Pending::create(&path)?;
        pending.write_at(0, &input.read_head()?)?;
        Ok(pending)
    }

    /// All files, complete, those without elements too. A folder made for them goes with `self` where they have not
    /// taken their places by then.
    pub(super) fn finish(&mut self, batch: &BatchFile) -> Result<Vec<Complete>, Failure> {
        if let Some(last) = batch.files.len().checked_sub(1) {
            self.file(batch, last)?;
        }
        if let Some(pending) = self.current.take() {
            self.complete.push(pending.complete()?);
        }
        Ok(std::mem::take(&mut self.complete))
    }
}

/// A mean on its way into a file: a `.safetensors` with the names and shapes of the first client, or an `.npy`.
pub(super) struct MeanOutput {
    file: Pending,
    /// Where its elements begin, in bytes.
    start: u64,
}

impl MeanOutput {
    pub(super) fn create(batch: &BatchFile, path: &Path) -> Result<Self, Failure> {
        let head = match batch.files.first() {
            Some(file) if batch.kind == Kind::Safetensors && is(Kind::Safetensors, path) => {
                safetensors::header_of_values(file)?
            }
            _ => npy::header_of_vector(batch.layout.params()),
        };
        let mut file = Pending::create(path)?;
        file.write_at(0, &head)?;
        Ok(Self { file, start: head.len() as u64 })
    }

    /// Writes the coordinates from this column on.
    pub(super) fn write(&mut self, column: usize, mean: &[f32]) -> Result<(), Failure> {
        self.file.write_at(self.start + (column * size_of::<f32>()) as u64, bytemuck::cast_slice(mean))
    }

    pub(super) fn finish(self) -> Result<Complete, Failure> {
        self.file.complete()
    }
}

fn target(folder: &Path, input: &Path) -> PathBuf {
    folder.join(input.file_name().unwrap_or_default())
}

/// The files that clipping these inputs writes.
pub(super) fn targets(inputs: &[PathBuf], output: &Path) -> Vec<PathBuf> {
    match kind(inputs) {
        Ok(Kind::Safetensors) => inputs.iter().map(|input| target(output, input)).collect(),
        _ => vec![output.to_owned()],
    }
}

/// Checks, before anything is read, that what `option` names is none of these files.
pub(super) fn check_apart(option: &str, file: &Path, kind: &str, others: &[&PathBuf]) -> Result<(), Failure> {
    match others.iter().find(|other| same_file(other, file) || same_place(other, file)) {
        None => Ok(()),
        Some(other) => Err(Failure::Usage(format!(
            "got the {kind} {} as {option} {}; expected another place; choose another {}",
            other.display(),
            file.display(),
            if option == "output" { "-o" } else { option }
        ))),
    }
}

/// Checks, before anything is read, that a mean can be put there.
pub(super) fn check_mean_output(inputs: &[PathBuf], path: &Path) -> Result<(), Failure> {
    let (formats, fits) = match kind(inputs)? {
        Kind::Npy => ("a name that ends in .npy", is(Kind::Npy, path)),
        Kind::Safetensors => {
            ("a name that ends in .safetensors or .npy", is(Kind::Npy, path) || is(Kind::Safetensors, path))
        }
    };
    if !fits {
        return Err(Failure::Usage(format!(
            "got the output {}; expected {formats}; choose another -o",
            path.display()
        )));
    }
    output::check(path)
}

/// Checks, before anything is read, that the output has room for each input.
pub(super) fn check_output(inputs: &[PathBuf], output: &Path) -> Result<(), Failure> {
    match kind(inputs)? {
        Kind::Npy => {
            if is(Kind::Safetensors, output) {
                return Err(Failure::Usage(format!(
                    "got the output {} for an .npy; expected a name that ends in .npy; choose another -o",
                    output.display()
                )));
            }
            // A name that is an input's as well has a better message behind this.
            if same_file(&inputs[0], output) { Ok(()) } else { output::check(output) }
        }
        Kind::Safetensors => {
            if output.exists() && !output.is_dir() {
                return Err(Failure::Usage(format!(
                    "got the file {} as output; expected a folder for .safetensors; choose another -o",
                    output.display()
                )));
            }
            for (i, input) in inputs.iter().enumerate() {
                if inputs[..i].iter().any(|earlier| earlier.file_name() == input.file_name()) {
                    return Err(Failure::Usage(format!(
                        "got two inputs called {}; expected a name for each client; rename one of them",
                        input.file_name().unwrap_or_default().display()
                    )));
                }
                if output.is_dir() {
                    output::check(&target(output, input))?;
                }
            }
            Ok(())
        }
    }
}
