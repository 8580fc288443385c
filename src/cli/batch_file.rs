//! A batch of client updates in files: one `.npy`, or a `.safetensors` per client.

use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use byzclip::Layout;

use super::elements::{Dtype, Elements};
use super::failure::Failure;
use super::input_file::InputFile;
use super::output::{self, Complete, Pending, same_file, same_place};
use super::stream::Piece;
use super::{npy, rows, safetensors};

/// A batch whose files are open to be read, piece by piece.
pub(super) struct BatchFile {
    pub layout: Layout,
    pub dtype: Dtype,
    /// The names of the layers; none in an `.npy`.
    pub layers: Vec<String>,
    /// The number of columns of each layer; an `.npy` is one.
    pub widths: Vec<usize>,
    kind: Kind,
    /// One, or one per client.
    files: Vec<InputFile>,
}

/// The format that file names ask for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Npy,
    Safetensors,
}

/// Elements that lie together, in a file and in memory.
struct Run {
    /// The number of the file.
    file: usize,
    /// Where in the file, in bytes.
    start: u64,
    bytes: usize,
}

/// Parts of rows that are shorter than this, in bytes, are picked out of whole rows.
const SHORT: usize = 64 << 10;

/// Bytes of whole rows that are read at a time for that.
const BLOCK: usize = 4 << 20;

impl BatchFile {
    /// Reads the headers.
    pub(super) fn open(inputs: &[PathBuf]) -> Result<Self, Failure> {
        let kind = kind(inputs)?;
        match kind {
            Kind::Npy => {
                let npy::Npy { file, layout, dtype } = npy::open(&inputs[0])?;
                let widths = vec![layout.params()];
                Ok(Self { layout, dtype, layers: Vec::new(), widths, kind, files: vec![file] })
            }
            Kind::Safetensors => {
                let safetensors::Clients { files, names, widths, dtype } = safetensors::open(inputs)?;
                let layout = Layout::dense(files.len(), widths.iter().sum())?.layered(&widths)?;
                Ok(Self { layout, dtype, layers: names, widths, kind, files })
            }
        }
    }

    /// Bytes of all elements.
    pub(super) fn bytes(&self) -> u64 {
        (self.layout.elements() * self.dtype.bytes()) as u64
    }

    /// Reads the elements of a piece, row by row.
    pub(super) fn read(&self, piece: &Piece, elements: &mut Elements) -> Result<(), Failure> {
        let bytes = elements.bytes_mut(piece.elements());
        let first = self.files.first().map_or(Path::new(""), |file| &file.path);
        let mut rest = bytes.map_err(|e| Failure::unreadable(first, &e))?;
        if self.is_scattered(piece) {
            return self.pick(piece, rest);
        }
        let mut open = None;
        for run in self.runs(piece) {
            let input = &self.files[run.file];
            let file = match &mut open {
                Some((number, file)) if *number == run.file => file,
                _ => &mut open.insert((run.file, input.reopen()?)).1,
            };
            let (part, tail) = rest.split_at_mut(run.bytes);
            rest = tail;
            let read = file.seek(SeekFrom::Start(run.start)).and_then(|_| file.read_exact(part));
            read.map_err(|e| Failure::unreadable(&input.path, &e))?;
        }
        Ok(())
    }

    /// Whether a piece is little of each of many rows that lie behind one another.
    fn is_scattered(&self, piece: &Piece) -> bool {
        let short = piece.columns.len() * self.dtype.bytes() < SHORT;
        self.kind == Kind::Npy && short && piece.rows.len() > 1 && !piece.is_full(self)
    }

    /// Reads blocks of whole rows, and picks the columns of the piece.
    fn pick(&self, piece: &Piece, bytes: &mut [u8]) -> Result<(), Failure> {
        let input = &self.files[0];
        let width = self.dtype.bytes();
        let (row, columns) =
            (self.layout.params() * width, piece.columns.start * width..piece.columns.end * width);
        let mut file = input.reopen()?;
        let seek = file.seek(SeekFrom::Start(input.starts[0] + (piece.rows.start * row) as u64));
        seek.map_err(|e| Failure::unreadable(&input.path, &e))?;
        let height = (BLOCK / row).max(1);
        let mut block = vec![0; height.min(piece.rows.len()) * row];
        for rows in bytes.chunks_mut(height * columns.len()) {
            let block = &mut block[..rows.len() / columns.len() * row];
            file.read_exact(block).map_err(|e| Failure::unreadable(&input.path, &e))?;
            for (part, row) in rows.chunks_exact_mut(columns.len()).zip(block.chunks_exact(row)) {
                part.copy_from_slice(&row[columns.clone()]);
            }
        }
        Ok(())
    }

    /// Where the elements of a piece lie, in their order in memory.
    fn runs(&self, piece: &Piece) -> Vec<Run> {
        let width = self.dtype.bytes();
        let run = |file: usize, start: usize, elements: usize| Run {
            file,
            start: start as u64,
            bytes: elements * width,
        };
        let Piece { rows, columns } = piece;
        match self.kind {
            Kind::Npy => {
                let at = |row: usize| {
                    self.files[0].starts[0] as usize + (row * self.layout.params() + columns.start) * width
                };
                if piece.is_full(self) {
                    return vec![run(0, at(rows.start), piece.elements())];
                }
                rows.clone().map(|row| run(0, at(row), columns.len())).collect()
            }
            Kind::Safetensors => {
                let mut begins = Vec::with_capacity(self.widths.len());
                self.widths.iter().fold(0, |begin, width| {
                    begins.push(begin);
                    begin + width
                });
                let layers = piece.layers(self);
                let of_row = |row: usize| {
                    let starts = &self.files[row].starts;
                    let begins = &begins;
                    layers.iter().map(move |(layer, columns)| {
                        let start = starts[*layer] as usize + (columns.start - begins[*layer]) * width;
                        run(row, start, columns.len())
                    })
                };
                rows.clone().flat_map(of_row).collect()
            }
        }
    }

    /// Fails where a file is not what it was when it was opened.
    pub(super) fn check_unchanged(&self) -> Result<(), Failure> {
        self.files.iter().try_for_each(InputFile::check_unchanged)
    }

    /// One row, `[params]`, written and ready to take its place: a .safetensors with the names and shapes of the first
    /// client, or an .npy.
    pub(super) fn write_mean(&self, mean: &[f32], path: &Path) -> Result<Complete, Failure> {
        let mut pending = Pending::create(path)?;
        match self.files.first() {
            Some(file) if self.kind == Kind::Safetensors && is(Kind::Safetensors, path) => {
                pending.write_at(0, &safetensors::of_values(file, mean)?)?;
            }
            _ => {
                let header = npy::header_of_vector(mean.len());
                pending.write_at(0, &header)?;
                pending.write_at(header.len() as u64, bytemuck::cast_slice(mean))?;
            }
        }
        pending.complete()
    }

    /// A vector for every row of the batch, `[params]`: of one row, in the format of its name.
    pub(super) fn read_vector(&self, path: &Path) -> Result<Vec<f32>, Failure> {
        let vector = Self::open(&[path.to_owned()])?;
        let wrong = |got: String, expected: String| {
            Err(Failure::content(path, &got, &expected, "pass one vector of the same model"))
        };
        let (rows, params) = (vector.layout.clients(), vector.layout.params());
        if rows != 1 || params != self.layout.params() {
            return wrong(
                format!("{} of {}", rows::count(rows, "row"), rows::count(params, "element")),
                format!("1 row of {}", self.layout.params()),
            );
        }
        if !self.layers.is_empty() && !vector.layers.is_empty() && !self.same_layers(&vector) {
            return wrong("tensors of other names or sizes".into(), "those of the inputs".into());
        }
        let mut elements = Elements::new(vector.dtype);
        vector.read(&Piece::whole(&vector), &mut elements)?;
        let values = elements.values().into_owned();
        match values.iter().position(|value| !value.is_finite()) {
            None => Ok(values),
            Some(at) => wrong(format!("{} in element {at}", values[at]), "finite elements".into()),
        }
    }

    fn same_layers(&self, other: &Self) -> bool {
        self.layers == other.layers && self.widths == other.widths
    }
}

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
        for run in batch.runs(piece) {
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
        pending.write_at(0, &input.head)?;
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

fn is(kind: Kind, path: &Path) -> bool {
    let extension = match kind {
        Kind::Npy => "npy",
        Kind::Safetensors => "safetensors",
    };
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case(extension))
}

fn target(folder: &Path, input: &Path) -> PathBuf {
    folder.join(input.file_name().unwrap_or_default())
}

fn kind(inputs: &[PathBuf]) -> Result<Kind, Failure> {
    let has = |extension: &str| {
        inputs
            .iter()
            .filter(|path| path.extension().is_some_and(|e| e.eq_ignore_ascii_case(extension)))
            .count()
    };
    match (has("npy"), has("safetensors"), inputs.len()) {
        (1, 0, 1) => Ok(Kind::Npy),
        (0, clients, all) if clients == all => Ok(Kind::Safetensors),
        (npy, 0, all) if npy == all => Err(Failure::Usage(format!(
            "got {npy} .npy files; expected one, with a row per client; stack them with numpy.stack"
        ))),
        (npy, clients, all) if npy + clients == all => Err(Failure::Usage(format!(
            "got {npy} .npy and {clients} .safetensors; expected one .npy, or .safetensors only, one per \
             client; pass one kind at a time"
        ))),
        _ => {
            let known = |path: &&PathBuf| {
                path.extension()
                    .is_some_and(|e| ["npy", "safetensors"].iter().any(|known| e.eq_ignore_ascii_case(known)))
            };
            let other = inputs.iter().find(|path| !known(path)).map(|path| path.display().to_string());
            Err(Failure::Usage(format!(
                "got the input {}; expected a name that ends in .npy or .safetensors; rename or convert it",
                other.unwrap_or_default()
            )))
        }
    }
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
