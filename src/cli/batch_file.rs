//! A batch of client updates in files: one `.npy`, or a `.safetensors` per client.

use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use byzclip::{Granularity, Layout};

use super::elements::{Dtype, Elements};
use super::failure::Failure;
use super::input_file::InputFile;
use super::starts::Starts;
use super::stream::Piece;
use super::{npy, safetensors};

/// A batch whose files are open to be read, piece by piece.
pub(super) struct BatchFile {
    pub layout: Layout,
    pub dtype: Dtype,
    /// The names of the layers; none in an `.npy`.
    pub layers: Vec<String>,
    /// The number of columns of each layer; an `.npy` is one.
    pub widths: Vec<usize>,
    pub kind: Kind,
    /// One, or one per client.
    pub files: Vec<InputFile>,
    /// Where the layers begin in files that have layers.
    starts: Starts,
}

/// The format that file names ask for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Npy,
    Safetensors,
}

/// Elements that lie together, in a file and in memory.
pub(super) struct Run {
    /// The number of the file.
    pub file: usize,
    /// Where in the file, in bytes.
    pub start: u64,
    pub bytes: usize,
}

impl Run {
    /// Whether the other begins where this one ends.
    fn ends_at(&self, other: &Self) -> bool {
        self.file == other.file && self.start + self.bytes as u64 == other.start
    }
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
                Ok(Self {
                    layout,
                    dtype,
                    layers: Vec::new(),
                    widths,
                    kind,
                    files: vec![file],
                    starts: Starts::default(),
                })
            }
            Kind::Safetensors => {
                let safetensors::Clients { files, starts, names, widths, dtype } = safetensors::open(inputs)?;
                let layout = Layout::dense(files.len(), widths.iter().sum())?.layered(&widths)?;
                Ok(Self { layout, dtype, layers: names, widths, kind, files, starts })
            }
        }
    }

    /// How many layers of a row have bounds of their own at this granularity; the row itself is none.
    pub(super) fn bounded_layers(&self, granularity: Granularity) -> usize {
        match granularity {
            Granularity::Segment => self.widths.len(),
            Granularity::Row | Granularity::Coordinate => 0,
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
        for run in self.runs(piece)? {
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
        let seek = file.seek(SeekFrom::Start((input.head + piece.rows.start * row) as u64));
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

    /// Where the elements of a piece lie, in their order in memory; layers that lie behind one another in a file are one run.
    pub(super) fn runs(&self, piece: &Piece) -> Result<Vec<Run>, Failure> {
        let width = self.dtype.bytes();
        let run = |file: usize, start: usize, elements: usize| Run {
            file,
            start: start as u64,
            bytes: elements * width,
        };
        let Piece { rows, columns } = piece;
        match self.kind {
            Kind::Npy => {
                let at =
                    |row: usize| self.files[0].head + (row * self.layout.params() + columns.start) * width;
                if piece.is_full(self) {
                    return Ok(vec![run(0, at(rows.start), piece.elements())]);
                }
                Ok(rows.clone().map(|row| run(0, at(row), columns.len())).collect())
            }
            Kind::Safetensors => {
                let mut begins = Vec::with_capacity(self.widths.len());
                self.widths.iter().fold(0, |begin, width| {
                    begins.push(begin);
                    begin + width
                });
                let layers = piece.layers(self);
                let (Some((first, _)), Some((last, _))) = (layers.first(), layers.last()) else {
                    return Ok(Vec::new());
                };
                let mut runs: Vec<Run> = Vec::new();
                for row in rows.clone() {
                    let head = self.files[row].head;
                    let starts = self.starts.of(row, &(*first..last + 1))?;
                    for (layer, columns) in &layers {
                        let start = head + starts[layer - first] as usize;
                        let next = run(row, start + (columns.start - begins[*layer]) * width, columns.len());
                        match runs.last_mut() {
                            Some(last) if last.ends_at(&next) => last.bytes += next.bytes,
                            _ => runs.push(next),
                        }
                    }
                }
                Ok(runs)
            }
        }
    }

    /// Fails where a file is not what it was when it was opened.
    pub(super) fn check_unchanged(&self) -> Result<(), Failure> {
        self.files.iter().try_for_each(InputFile::check_unchanged)
    }

    /// Whether the layers of two batches have the same names and sizes.
    pub(super) fn same_layers(&self, other: &Self) -> bool {
        self.layers == other.layers && self.widths == other.widths
    }
}

/// Whether a file's name is that of this format.
pub(super) fn is(kind: Kind, path: &Path) -> bool {
    let extension = match kind {
        Kind::Npy => "npy",
        Kind::Safetensors => "safetensors",
    };
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case(extension))
}

/// The format of some inputs, by their names.
pub(super) fn kind(inputs: &[PathBuf]) -> Result<Kind, Failure> {
    let count = |kind| inputs.iter().filter(|path| is(kind, path)).count();
    match (count(Kind::Npy), count(Kind::Safetensors), inputs.len()) {
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
            let known = |path: &PathBuf| is(Kind::Npy, path) || is(Kind::Safetensors, path);
            let other = inputs.iter().find(|path| !known(path)).map(|path| path.display().to_string());
            Err(Failure::Usage(format!(
                "got the input {}; expected a name that ends in .npy or .safetensors; rename or convert it",
                other.unwrap_or_default()
            )))
        }
    }
}
