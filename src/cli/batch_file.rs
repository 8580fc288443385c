//! A batch of client updates in files: one `.npy`, or a `.safetensors` per client.

use std::path::{Path, PathBuf};

use byzclip::Layout;

use super::elements::Elements;
use super::failure::Failure;
use super::output::{self, Pending, same_file};
use super::safetensors::ClientFile;
use super::{npy, safetensors};

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

    /// Writes the batch: all of it, or nothing.
    pub(super) fn write(self, output: &Path) -> Result<(), Failure> {
        match self.format {
            Format::Npy { header } => {
                let mut file = Pending::create(output)?;
                file.write(&header)?;
                file.write(self.data.as_bytes())?;
                file.finish()
            }
            Format::Safetensors { files } => write_clients(files, &self.layout, &self.data, output),
        }
    }
}

fn write_clients(
    files: Vec<ClientFile>,
    layout: &Layout,
    data: &Elements,
    folder: &Path,
) -> Result<(), Failure> {
    std::fs::create_dir_all(folder).map_err(|e| Failure::unwritable(folder, &e))?;
    let mut pending = Vec::with_capacity(files.len());
    for (client, file) in files.into_iter().enumerate() {
        let mut output = Pending::create(&target(folder, &file.path))?;
        output.write(&file.with_elements(data, layout.row(client).start))?;
        pending.push(output);
    }
    // Every file is complete before the first takes its place.
    pending.into_iter().try_for_each(Pending::finish)
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

/// Checks, before anything is read, that the output is not one of the inputs and has room for each.
pub(super) fn check_output(inputs: &[PathBuf], output: &Path) -> Result<(), Failure> {
    let onto = |target: &Path, input: &Path| {
        Err(Failure::Usage(format!(
            "got the input {} as output {}; expected another place; choose another -o",
            input.display(),
            target.display()
        )))
    };
    match kind(inputs)? {
        Kind::Npy if same_file(&inputs[0], output) => onto(output, &inputs[0]),
        Kind::Npy => output::check(output),
        Kind::Safetensors => {
            if output.exists() && !output.is_dir() {
                return Err(Failure::Usage(format!(
                    "got the file {} as output; expected a folder for .safetensors; choose another -o",
                    output.display()
                )));
            }
            for (i, input) in inputs.iter().enumerate() {
                let target = target(output, input);
                if let Some(input) = inputs.iter().find(|input| same_file(input, &target)) {
                    return onto(&target, input);
                }
                if inputs[..i].iter().any(|earlier| earlier.file_name() == input.file_name()) {
                    return Err(Failure::Usage(format!(
                        "got two inputs called {}; expected a name for each client; rename one of them",
                        input.file_name().unwrap_or_default().display()
                    )));
                }
                if output.is_dir() {
                    output::check(&target)?;
                }
            }
            Ok(())
        }
    }
}
