//! `.safetensors` files, one per client: tensors are layers, in name order.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use byzclip::Layout;
use safetensors::{Dtype, SafeTensors};

use super::failure::{Failure, excerpt};

/// One client's file.
pub(super) struct ClientFile {
    pub path: PathBuf,
    /// The whole file; clipped values are written over the old ones, so that names, metadata and the
    /// order of the tensors stay as they are.
    bytes: Vec<u8>,
    /// The bytes of each layer, in name order.
    layers: Vec<Range<usize>>,
}

/// All clients, read.
pub(super) struct Clients {
    pub files: Vec<ClientFile>,
    pub names: Vec<String>,
    pub layout: Layout,
    pub data: Vec<f32>,
}

/// A tensor as its file describes it.
struct Tensor {
    shape: Vec<usize>,
    bytes: Range<usize>,
}

pub(super) fn read(paths: &[PathBuf]) -> Result<Clients, Failure> {
    let mut files = Vec::with_capacity(paths.len());
    let mut first: Option<BTreeMap<String, Tensor>> = None;
    let mut data = Vec::new();
    for path in paths {
        let (bytes, tensors) = read_file(path)?;
        if let Some(first) = &first {
            compare(path, &tensors, &paths[0], first)?;
        }
        let layers: Vec<_> = tensors.values().map(|tensor| tensor.bytes.clone()).collect();
        let elements = layers.iter().map(|layer| layer.len() / 4).sum();
        data.try_reserve(elements).map_err(|e| Failure::unreadable(path, &e.into()))?;
        for layer in &layers {
            data.extend(
                bytes[layer.clone()].chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
            );
        }
        files.push(ClientFile { path: path.clone(), bytes, layers });
        first.get_or_insert(tensors);
    }
    let first = first.unwrap_or_default();
    let lengths: Vec<usize> = first.values().map(|tensor| tensor.bytes.len() / 4).collect();
    let layout = Layout::dense(files.len(), lengths.iter().sum())?.layered(&lengths)?;
    Ok(Clients { files, names: first.into_keys().collect(), layout, data })
}

fn read_file(path: &Path) -> Result<(Vec<u8>, BTreeMap<String, Tensor>), Failure> {
    const AGAIN: &str = "copy or save the file again";
    let unreadable = |e: std::io::Error| Failure::unreadable(path, &e);
    let metadata = fs::metadata(path).map_err(unreadable)?;
    if !metadata.is_file() {
        let got = if metadata.is_dir() { "a folder" } else { "a device or pipe" };
        return Err(Failure::content(path, got, "a .safetensors file", "pass the file itself"));
    }
    let bytes = fs::read(path).map_err(unreadable)?;
    let tensors = {
        let parsed = SafeTensors::deserialize(&bytes).map_err(|e| {
            let got = format!("\"{}\" in {} bytes", excerpt(&e.to_string()), bytes.len());
            Failure::content(path, &got, "a whole safetensors file", AGAIN)
        })?;
        let mut tensors = BTreeMap::new();
        for (name, view) in parsed.iter() {
            if view.dtype() != Dtype::F32 {
                let got = format!("tensor '{}' of type {:?}", excerpt(name), view.dtype());
                return Err(Failure::content(
                    path,
                    &got,
                    "F32 in every tensor",
                    "convert it to float32 or leave it out",
                ));
            }
            let start = view.data().as_ptr() as usize - bytes.as_ptr() as usize;
            let tensor = Tensor { shape: view.shape().to_vec(), bytes: start..start + view.data().len() };
            tensors.insert(name.to_owned(), tensor);
        }
        tensors
    };
    Ok((bytes, tensors))
}

/// Fails with the first difference between two clients' models.
fn compare(
    path: &Path,
    tensors: &BTreeMap<String, Tensor>,
    first_path: &Path,
    first: &BTreeMap<String, Tensor>,
) -> Result<(), Failure> {
    let of_first = format!("of {}", first_path.display());
    let differ = |got: String, expected: String| {
        Err(Failure::content(path, &got, &expected, "pass clients of the same model only"))
    };
    for (name, expected) in first {
        match tensors.get(name) {
            None => {
                return differ(format!("no tensor '{}'", excerpt(name)), format!("the tensors {of_first}"));
            }
            Some(tensor) if tensor.shape != expected.shape => {
                return differ(
                    format!("tensor '{}' of shape {:?}", excerpt(name), tensor.shape),
                    format!("shape {:?} {of_first}", expected.shape),
                );
            }
            Some(_) => {}
        }
    }
    match tensors.keys().find(|name| !first.contains_key(*name)) {
        Some(name) => {
            differ(format!("the additional tensor '{}'", excerpt(name)), format!("the tensors {of_first}"))
        }
        None => Ok(()),
    }
}

impl ClientFile {
    /// The file with these values, `[params]`, in the place of the old ones.
    pub(super) fn with_values(mut self, values: &[f32]) -> Vec<u8> {
        let mut rest = values;
        for layer in &self.layers {
            let target = &mut self.bytes[layer.clone()];
            let (values, tail) = rest.split_at(target.len() / 4);
            rest = tail;
            for (bytes, value) in target.chunks_exact_mut(4).zip(values) {
                bytes.copy_from_slice(&value.to_le_bytes());
            }
        }
        self.bytes
    }
}
