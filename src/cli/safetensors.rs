//! `.safetensors` files, one per client: tensors are layers, in name order.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

use byzclip::Half;
use safetensors::SafeTensorError;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::elements::Dtype;
use super::failure::{Failure, excerpt};
use super::input_file::{self, InputFile};

/// All clients, their headers read and found to describe the same model.
pub(super) struct Clients {
    pub files: Vec<InputFile>,
    pub names: Vec<String>,
    /// The number of elements of each layer.
    pub widths: Vec<usize>,
    pub dtype: Dtype,
}

/// The longest header that the format's own crate reads, with the eight bytes of its length.
const LONGEST_HEADER: u64 = 100_000_000 + 8;

/// The key of what a header says about itself.
const METADATA: &str = "__metadata__";

/// A tensor as its file describes it.
struct Tensor {
    dtype: Dtype,
    shape: Vec<usize>,
    /// Its place behind the header.
    bytes: Range<usize>,
}

pub(super) fn open(paths: &[PathBuf]) -> Result<Clients, Failure> {
    let mut files: Vec<InputFile> = Vec::with_capacity(paths.len());
    let mut first: Option<BTreeMap<String, Tensor>> = None;
    for path in paths {
        let (mut file, tensors) = open_one(path)?;
        if let Some(first) = &first {
            compare(path, &tensors, &paths[0], first)?;
        }
        let starts = tensors.values().map(|tensor| tensor.bytes.start as u64);
        file.starts = match files.first() {
            Some(first) if starts.clone().eq(first.starts.iter().copied()) => first.starts.clone(),
            _ => starts.collect(),
        };
        files.push(file);
        first.get_or_insert(tensors);
    }
    let first = first.unwrap_or_default();
    let (widths, dtype) = (first.values().map(Tensor::elements).collect(), dtype_of(&first));
    Ok(Clients { files, names: first.into_keys().collect(), widths, dtype })
}

fn open_one(path: &Path) -> Result<(InputFile, BTreeMap<String, Tensor>), Failure> {
    const AGAIN: &str = "copy or save the file again";
    let (mut file, mut reader) = input_file::open(path, "a .safetensors file")?;
    let unreadable = |e: std::io::Error| Failure::unreadable(path, &e);
    let corrupt = |got: &str| {
        let got = format!("\"{}\" in {} bytes", excerpt(got), file.length);
        Failure::content(path, &got, "a whole safetensors file", AGAIN)
    };
    let mut head = vec![0; file.length.min(8) as usize];
    reader.read_exact(&mut head).map_err(unreadable)?;
    if let Some(&length) = head.first_chunk::<8>() {
        let whole = u64::from_le_bytes(length).saturating_add(8).min(file.length).min(LONGEST_HEADER);
        head.resize(whole as usize, 0);
        reader.read_exact(&mut head[8..]).map_err(unreadable)?;
    }
    let metadata = parse(&head).map_err(|e| corrupt(&e))?;
    if (head.len() + metadata.data_len()) as u64 != file.length {
        return Err(corrupt(&SafeTensorError::MetadataIncompleteBuffer.to_string()));
    }
    file.head = head.len();
    // As long as a hundred megabytes, and not needed any more.
    drop(head);
    let tensors = {
        let mut tensors = BTreeMap::new();
        for name in metadata.offset_keys() {
            let Some(info) = metadata.info(&name) else { continue };
            let dtype = match info.dtype {
                safetensors::Dtype::F32 => Dtype::F32,
                safetensors::Dtype::F16 => Dtype::Half(Half::F16),
                safetensors::Dtype::BF16 => Dtype::Half(Half::Bf16),
                other => {
                    let got = format!("tensor '{}' of type {other:?}", excerpt(&name));
                    let remedy = "convert it to float32 or leave it out";
                    return Err(Failure::content(path, &got, "F32, F16 or BF16 in every tensor", remedy));
                }
            };
            let bytes = info.data_offsets.0..info.data_offsets.1;
            tensors.insert(name, Tensor { dtype, shape: info.shape.clone(), bytes });
        }
        tensors
    };
    let dtype = dtype_of(&tensors);
    if let Some((name, tensor)) = tensors.iter().find(|(_, tensor)| tensor.dtype != dtype) {
        let got = format!("tensor '{}' of type {}", excerpt(name), tensor.dtype);
        let expected = format!("{dtype}, the type of the first tensor, in all of them");
        return Err(Failure::content(path, &got, &expected, "convert all tensors to one type"));
    }
    Ok((file, tensors))
}

/// What a header says; the crate's own reader of headers wants the whole file, and holds what it reads three times.
fn parse(head: &[u8]) -> Result<Metadata, String> {
    let Some((length, text)) = head.split_first_chunk::<8>() else {
        return Err(SafeTensorError::HeaderTooSmall.to_string());
    };
    let length = u64::from_le_bytes(*length);
    if length > LONGEST_HEADER - 8 {
        return Err(SafeTensorError::HeaderTooLarge.to_string());
    }
    if length != text.len() as u64 {
        return Err(SafeTensorError::InvalidHeaderLength.to_string());
    }
    let Entries { metadata, tensors } = serde_json::from_slice(text)
        .map_err(|e| SafeTensorError::InvalidHeaderDeserialization(e).to_string())?;
    let mut tensors: Vec<_> = tensors.into_iter().collect();
    tensors.sort_unstable_by_key(|(_, tensor)| tensor.data_offsets);
    Metadata::new(metadata, tensors).map_err(|e| e.to_string())
}

/// The entries of a header. Read one by one: serde's derived reader of a map with one key of its own first keeps all entries in a form
/// that takes four times the memory.
struct Entries {
    metadata: Option<HashMap<String, String>>,
    tensors: HashMap<String, TensorInfo>,
}

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(EntriesVisitor)
    }
}

struct EntriesVisitor;

impl<'de> Visitor<'de> for EntriesVisitor {
    type Value = Entries;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("tensors by their names")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
        let (mut metadata, mut tensors) = (None, HashMap::new());
        while let Some(name) = map.next_key::<String>()? {
            if name != METADATA {
                tensors.insert(name, map.next_value()?);
            } else if metadata.replace(map.next_value()?).is_some() {
                return Err(A::Error::duplicate_field(METADATA));
            }
        }
        Ok(Entries { metadata: metadata.flatten(), tensors })
    }
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

/// What precedes the elements of a file with the tensors of this one, of `f32`, behind each other in the order of their
/// names.
pub(super) fn header_of_values(file: &InputFile) -> Result<Vec<u8>, Failure> {
    let failed = |e: String| Failure::Failed(format!("{}: {e}", file.path.display()));
    let header = parse(&file.read_head()?).map_err(failed)?;
    let described: BTreeMap<String, &TensorInfo> = header.tensors().into_iter().collect();
    let mut end = 0;
    let tensors = described.into_iter().map(|(name, tensor)| {
        let (start, shape) = (end, tensor.shape.clone());
        end = start + shape.iter().product::<usize>() * Dtype::F32.bytes();
        (name, TensorInfo { dtype: safetensors::Dtype::F32, shape, data_offsets: (start, end) })
    });
    let tensors = tensors.collect();
    let metadata = header.metadata().as_ref().map(|metadata| metadata.iter().collect());
    let text = serde_json::to_vec(&Header { metadata, tensors }).map_err(|e| failed(e.to_string()))?;
    // Padded, so that elements begin at a multiple of eight bytes.
    let length = text.len().next_multiple_of(8);
    let mut bytes = (length as u64).to_le_bytes().to_vec();
    bytes.extend(text);
    bytes.resize(8 + length, b' ');
    Ok(bytes)
}

/// A header with its entries in the order of their names; the format's own crate writes metadata in any order.
#[derive(Serialize)]
struct Header<'a> {
    #[serde(rename = "__metadata__", skip_serializing_if = "Option::is_none")]
    metadata: Option<BTreeMap<&'a String, &'a String>>,
    #[serde(flatten)]
    tensors: BTreeMap<String, TensorInfo>,
}
