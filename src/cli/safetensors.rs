//! `.safetensors` files, one per client: tensors are layers, in name order.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use byzclip::{Half, Layout};
use safetensors::tensor::{TensorInfo, TensorView};
use safetensors::{SafeTensorError, SafeTensors};

use super::elements::{Dtype, Elements};
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
    pub data: Elements,
}

/// A tensor as its file describes it.
struct Tensor {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Range<usize>,
}

pub(super) fn read(paths: &[PathBuf]) -> Result<Clients, Failure> {
    let mut files = Vec::with_capacity(paths.len());
    let mut first: Option<BTreeMap<String, Tensor>> = None;
    let mut data = Elements::new(Dtype::F32);
    for path in paths {
        let (bytes, tensors) = read_file(path)?;
        match &first {
            Some(first) => compare(path, &tensors, &paths[0], first)?,
            None => data = Elements::new(dtype_of(&tensors)),
        }
        let layers: Vec<_> = tensors.values().map(|tensor| tensor.bytes.clone()).collect();
        for layer in &layers {
            data.extend_from_le(&bytes[layer.clone()]).map_err(|e| Failure::unreadable(path, &e))?;
        }
        files.push(ClientFile { path: path.clone(), bytes, layers });
        first.get_or_insert(tensors);
    }
    let first = first.unwrap_or_default();
    let lengths: Vec<usize> = first.values().map(Tensor::elements).collect();
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
            let dtype = match view.dtype() {
                safetensors::Dtype::F32 => Dtype::F32,
                safetensors::Dtype::F16 => Dtype::Half(Half::F16),
                safetensors::Dtype::BF16 => Dtype::Half(Half::Bf16),
                other => {
                    let got = format!("tensor '{}' of type {other:?}", excerpt(name));
                    let remedy = "convert it to float32 or leave it out";
                    return Err(Failure::content(path, &got, "F32, F16 or BF16 in every tensor", remedy));
                }
            };
            let start = view.data().as_ptr() as usize - bytes.as_ptr() as usize;
            let bytes = start..start + view.data().len();
            tensors.insert(name.to_owned(), Tensor { dtype, shape: view.shape().to_vec(), bytes });
        }
        tensors
    };
    let dtype = dtype_of(&tensors);
    if let Some((name, tensor)) = tensors.iter().find(|(_, tensor)| tensor.dtype != dtype) {
        let got = format!("tensor '{}' of type {}", excerpt(name), tensor.dtype);
        let expected = format!("{dtype}, the type of the first tensor, in all of them");
        return Err(Failure::content(path, &got, &expected, "convert all tensors to one type"));
    }
    Ok((bytes, tensors))
}

/// The type of the tensors of a file, which is that of the first.
fn dtype_of(tensors: &BTreeMap<String, Tensor>) -> Dtype {
    tensors.values().next().map_or(Dtype::F32, |tensor| tensor.dtype)
}

impl Tensor {
    fn elements(&self) -> usize {
        self.bytes.len() / self.dtype.bytes()
    }
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
            Some(tensor) if tensor.dtype != expected.dtype => {
                return differ(
                    format!("tensor '{}' of type {}", excerpt(name), tensor.dtype),
                    format!("type {} {of_first}", expected.dtype),
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
    /// The file with the elements from `first` on, as many as it has, in the place of the old ones.
    pub(super) fn with_elements(mut self, data: &Elements, first: usize) -> Vec<u8> {
        let mut start = first;
        for layer in &self.layers {
            let end = start + layer.len() / data.bytes_of(1);
            data.write_le(start..end, &mut self.bytes[layer.clone()]);
            start = end;
        }
        self.bytes
    }

    /// A file like this one, of `f32` with one value per element.
    pub(super) fn with_mean(self, mean: &[f32]) -> Result<Vec<u8>, Failure> {
        let failed = |e: SafeTensorError| Failure::Failed(format!("{}: {e}", self.path.display()));
        let (_, header) = SafeTensors::read_metadata(&self.bytes).map_err(failed)?;
        let bytes: &[u8] = bytemuck::cast_slice(mean);
        let mut start = 0;
        let mut tensors = BTreeMap::new();
        let described: BTreeMap<String, &TensorInfo> = header.tensors().into_iter().collect();
        for (name, tensor) in described {
            let end = start + tensor.shape.iter().product::<usize>() * Dtype::F32.bytes();
            let view = TensorView::new(safetensors::Dtype::F32, tensor.shape.clone(), &bytes[start..end]);
            tensors.insert(name, view.map_err(failed)?);
            start = end;
        }
        safetensors::serialize(tensors, header.metadata().clone()).map_err(failed)
    }
}
