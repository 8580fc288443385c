//! A batch of client updates in files: one `.npy`, or a `.safetensors` per client.

use std::path::{Path, PathBuf};

use byzclip::Layout;

use super::elements::Elements;
use super::failure::Failure;
use super::output::{self, Pending, same_file, same_place};
use super::safetensors::ClientFile;
use super::{npy, rows, safetensors};

/// A batch, and what is needed to write it in the same format.
pub(super) struct BatchFile {
    pub layout: Layout,
    pub data: Elements,
    /// The names of the layers; none in an `.npy`.
    pub layers: Vec<String>,
    format: Format,
}

enum Format {
    Npy { header: Vec<u8> },
    Safetensors { files: Vec<ClientFile> },
}

/// The format that file names ask for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Npy,
    Safetensors,
}

impl BatchFile {
    pub(super) fn read(inputs: &[PathBuf]) -> Result<Self, Failure> {
        match kind(inputs)? {
            Kind::Npy => {
                let npy = npy::read(&inputs[0])?;
                let format = Format::Npy { header: npy.header };
                Ok(Self { layout: npy.layout, data: npy.data, layers: Vec::new(), format })
            }
            Kind::Safetensors => {
                let clients = safetensors::read(inputs)?;
                let format = Format::Safetensors { files: clients.files };
                Ok(Self { layout: clients.layout, data: clients.data, layers: clients.names, format })
            }
        }
    }

    /// The batch, written and ready to take its place.
    pub(super) fn pending(self, output: &Path) -> Result<Vec<Pending>, Failure> {
        match self.format {
            Format::Npy { header } => {
                let mut file = Pending::create(output)?;
                file.write(&header)?;
                file.write(self.data.as_bytes())?;
                Ok(vec![file])
            }
            Format::Safetensors { files } => {
                std::fs::create_dir_all(output).map_err(|e| Failure::unwritable(output, &e))?;
                let pending = files.into_iter().enumerate().map(|(client, file)| {
                    let mut pending = Pending::create(&target(output, &file.path))?;
                    pending.write(&file.with_elements(&self.data, self.layout.row(client).start))?;
                    Ok(pending)
                });
                pending.collect()
            }
        }
    }

    /// One row, `[params]`, written and ready to take its place: a .safetensors with the names and shapes of the first
    /// client, or an .npy.
    pub(super) fn pending_mean(self, mean: &[f32], output: &Path) -> Result<Pending, Failure> {
        let mut file = Pending::create(output)?;
        match self.format {
            Format::Safetensors { mut files } if is(Kind::Safetensors, output) && !files.is_empty() => {
                file.write(&files.swap_remove(0).with_mean(mean)?)?;
            }
            _ => {
                file.write(&npy::header_of_vector(mean.len()))?;
                file.write(bytemuck::cast_slice(mean))?;
            }
        }
        Ok(file)
    }

    /// A vector for every row of the batch, `[params]`: of one row, in the format of its name.
    pub(super) fn read_vector(&self, path: &Path) -> Result<Vec<f32>, Failure> {
        let vector = Self::read(&[path.to_owned()])?;
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
        match vector.data {
            Elements::F32(values) => Ok(values),
            Elements::Half(half, bits) => Ok(half.widened(&bits)),
        }
    }

    fn same_layers(&self, other: &Self) -> bool {
        let lengths = |layout: &Layout| -> Vec<usize> {
            layout.segments_of(0).map(|segment| layout.segment(segment).len()).collect()
        };
        self.layers == other.layers && lengths(&self.layout) == lengths(&other.layout)
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
    let formats = match kind(inputs)? {
        Kind::Npy => "a name that ends in .npy",
        Kind::Safetensors => "a name that ends in .safetensors or .npy",
    };
    if !(is(Kind::Npy, path) || formats.contains("safetensors") && is(Kind::Safetensors, path)) {
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
