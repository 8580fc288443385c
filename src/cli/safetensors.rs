//! `.safetensors` files, one per client: tensors are layers, in name order.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

use byzclip::Half;
use safetensors::SafeTensorError;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::de::{Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use super::elements::Dtype;
use super::failure::{Failure, excerpt};
use super::input_file::{self, InputFile};
use super::starts::Starts;

/// All clients, their headers read and found to describe the same model.
pub(super) struct Clients {
    pub files: Vec<InputFile>,
    pub starts: Starts,
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
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    /// Bytes of its elements.
    bytes: usize,
}

pub(super) fn open(paths: &[PathBuf]) -> Result<Clients, Failure> {
    let mut files: Vec<InputFile> = Vec::with_capacity(paths.len());
    let (mut tensors, mut starts) = (Vec::new(), Starts::default());
    for path in paths {
        let (file, metadata) = open_one(path)?;
        if files.is_empty() {
            tensors = tensors_of(path, &metadata)?;
        } else {
            compare(path, &metadata, &paths[0], &tensors)?;
        }
        let infos = tensors.iter().filter_map(|tensor| metadata.info(&tensor.name));
        starts.add(paths.len(), infos.map(|info| info.data_offsets.0 as u64).collect())?;
        files.push(file);
    }
    let dtype = tensors.first().map_or(Dtype::F32, |tensor| tensor.dtype);
    let widths = tensors.iter().map(|tensor| tensor.bytes / dtype.bytes()).collect();
    let names = tensors.into_iter().map(|tensor| tensor.name).collect();
    Ok(Clients { files, starts, names, widths, dtype })
}

fn open_one(path: &Path) -> Result<(InputFile, Metadata), Failure> {
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
    let length = head.len();
    let (metadata, _) = parse(head).map_err(|e| corrupt(&e))?;
    if (length + metadata.data_len()) as u64 != file.length {
        return Err(corrupt(&SafeTensorError::MetadataIncompleteBuffer.to_string()));
    }
    file.head = length;
    Ok((file, metadata))
}

/// The tensors of the first file in the order of their names, all of one type.
fn tensors_of(path: &Path, metadata: &Metadata) -> Result<Vec<Tensor>, Failure> {
    let mut names = metadata.offset_keys();
    names.sort_unstable();
    let mut tensors: Vec<Tensor> = Vec::with_capacity(names.len());
    for name in names {
        let Some(info) = metadata.info(&name) else { continue };
        let dtype = dtype_of(path, &name, info)?;
        if let Some(first) = tensors.first().filter(|first| first.dtype != dtype) {
            let got = format!("tensor '{}' of type {dtype}", excerpt(&name));
            let expected = format!("{}, the type of the first tensor, in all of them", first.dtype);
            return Err(Failure::content(path, &got, &expected, "convert all tensors to one type"));
        }
        let bytes = info.data_offsets.1 - info.data_offsets.0;
        tensors.push(Tensor { name, dtype, shape: info.shape.clone(), bytes });
    }
    Ok(tensors)
}

fn dtype_of(path: &Path, name: &str, info: &TensorInfo) -> Result<Dtype, Failure> {
    match info.dtype {
        safetensors::Dtype::F32 => Ok(Dtype::F32),
        safetensors::Dtype::F16 => Ok(Dtype::Half(Half::F16)),
        safetensors::Dtype::BF16 => Ok(Dtype::Half(Half::Bf16)),
        other => {
            let got = format!("tensor '{}' of type {other:?}", excerpt(name));
            let remedy = "convert it to float32 or leave it out";
            Err(Failure::content(path, &got, "F32, F16 or BF16 in every tensor", remedy))
        }
    }
}

/// Fails with the first difference between two clients' models.
fn compare(path: &Path, metadata: &Metadata, first_path: &Path, first: &[Tensor]) -> Result<(), Failure> {
    let of_first = format!("of {}", first_path.display());
    let differ = |got: String, expected: String| {
        Err(Failure::content(path, &got, &expected, "pass clients of the same model only"))
    };
    for Tensor { name, dtype, shape, .. } in first {
        let Some(info) = metadata.info(name) else {
            return differ(format!("no tensor '{}'", excerpt(name)), format!("the tensors {of_first}"));
        };
        let tensor = || format!("tensor '{}'", excerpt(name));
        if info.shape != *shape {
            let told = |shape: &[usize]| excerpt(&format!("{shape:?}"));
            let got = format!("{} of shape {}", tensor(), told(&info.shape));
            return differ(got, format!("shape {} {of_first}", told(shape)));
        }
        let got = dtype_of(path, name, info)?;
        if got != *dtype {
            return differ(format!("{} of type {got}", tensor()), format!("type {dtype} {of_first}"));
        }
    }
    let names = metadata.offset_keys();
    if names.len() == first.len() {
        return Ok(());
    }
    let is_in_first = |name: &String| first.binary_search_by(|tensor| tensor.name.cmp(name)).is_ok();
    let name = names.iter().find(|name| !is_in_first(name)).map_or_else(String::new, |name| excerpt(name));
    differ(format!("the additional tensor '{name}'"), format!("the tensors {of_first}"))
}

/// What a header says of tensors, and as it stands what it says about itself. The crate's own reader of headers wants the whole file, and
/// takes twelve times the length of the header.
fn parse(head: Vec<u8>) -> Result<(Metadata, Option<Box<RawValue>>), String> {
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
    let text = str::from_utf8(text).map_err(|e| SafeTensorError::InvalidHeader(e).to_string())?;
    let entries = serde_json::from_str(text).and_then(|Anything| serde_json::from_str(text));
    let Entries { about, mut tensors } =
        entries.map_err(|e| SafeTensorError::InvalidHeaderDeserialization(e).to_string())?;
    // As long as a hundred megabytes, and not needed any more.
    drop(head);
    // Of entries with one name the last one counts, as in a map.
    tensors.reverse();
    tensors.sort_by(|(a, _), (b, _)| a.cmp(b));
    tensors.dedup_by(|(a, _), (b, _)| a == b);
    tensors.sort_unstable_by_key(|(_, tensor)| tensor.data_offsets);
    Ok((Metadata::new(None, tensors).map_err(|e| e.to_string())?, about))
}

/// The entries of a header. Read one by one: serde's derived reader of a map with one key of its own first keeps all entries in a form
/// that takes four times the memory.
struct Entries {
    about: Option<Box<RawValue>>,
    tensors: Vec<(String, TensorInfo)>,
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
        let (mut about, mut tensors) = (None, Vec::new());
        while let Some(name) = map.next_key::<String>()? {
            if name != METADATA {
                tensors.push((name, map.next_value()?));
                continue;
            }
            let text: Box<RawValue> = map.next_value()?;
            serde_json::from_str::<Option<Strings>>(text.get()).map_err(A::Error::custom)?;
            if about.replace(text).is_some() {
                return Err(A::Error::duplicate_field(METADATA));
            }
        }
        Ok(Entries { about: about.filter(|text| text.get() != "null"), tensors })
    }
}

/// Strings by strings, not kept.
struct Strings;

impl<'de> Deserialize<'de> for Strings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Self)
    }
}

impl<'de> Visitor<'de> for Strings {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("strings by their names")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self, A::Error> {
        while map.next_entry::<String, String>()?.is_some() {}
        Ok(self)
    }
}

/// JSON that every reader takes, not kept: what is asked for by type skips over keys that it does not know, whatever their strings,
/// numbers and depth.
struct Anything;

impl<'de> Deserialize<'de> for Anything {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Self)
    }
}

impl<'de> Visitor<'de> for Anything {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self, A::Error> {
        while items.next_element::<Self>()?.is_some() {}
        Ok(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self, A::Error> {
        while map.next_entry::<Self, Self>()?.is_some() {}
        Ok(self)
    }
}

/// What precedes the elements of a file with the tensors of this one, of `f32`, behind each other in the order of their
/// names.
pub(super) fn header_of_values(file: &InputFile) -> Result<Vec<u8>, Failure> {
    let failed = |e: String| Failure::Failed(format!("{}: {e}", file.path.display()));
    let (header, about) = parse(file.read_head()?).map_err(failed)?;
    let described: BTreeMap<String, &TensorInfo> = header.tensors().into_iter().collect();
    let mut end = 0;
    let tensors = described.into_iter().map(|(name, tensor)| {
        let (start, shape) = (end, tensor.shape.clone());
        end = start + shape.iter().product::<usize>() * Dtype::F32.bytes();
        (name, TensorInfo { dtype: safetensors::Dtype::F32, shape, data_offsets: (start, end) })
    });
    let tensors = tensors.collect();
    let text = serde_json::to_vec(&Header { about, tensors }).map_err(|e| failed(e.to_string()))?;
    // Padded, so that elements begin at a multiple of eight bytes.
    let length = text.len().next_multiple_of(8);
    let mut bytes = (length as u64).to_le_bytes().to_vec();
    bytes.extend(text);
    bytes.resize(8 + length, b' ');
    Ok(bytes)
}

/// A header with its tensors in the order of their names, and what it says about itself as that stood.
#[derive(Serialize)]
struct Header {
    #[serde(rename = "__metadata__", skip_serializing_if = "Option::is_none")]
    about: Option<Box<RawValue>>,
    #[serde(flatten)]
    tensors: BTreeMap<String, TensorInfo>,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parsed(text: &str) -> Result<(Metadata, Option<Box<RawValue>>), String> {
        parse([&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat())
    }

    /// The format's own reader of headers is the one to agree with.
    #[test]
    fn headers_are_read_as_the_formats_own_crate_reads_them() {
        let a = r#""a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#;
        let b = r#""b":{"dtype":"F16","shape":[],"data_offsets":[8,10]}"#;
        let wider_a = r#""a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]}"#;
        let empty = r#""e":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}"#;
        for entries in [
            &[a, b][..],
            &[b, a],
            &[a, empty, b],
            &[],
            &[r#""__metadata__":{"k":"v"}"#, a],
            &[a, r#""__metadata__":null"#],
            // The last of a name counts.
            &[a, b, wider_a],
            &[wider_a, b, a],
            &[b, a, r#""b":{"dtype":"BF16","shape":[1],"data_offsets":[8,10]}"#],
            // What is refused.
            &[b],
            &[a, r#""b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}"#],
            &[r#""a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}"#],
            &[r#""a":{"dtype":"F33","shape":[2],"data_offsets":[0,8]}"#],
            &[r#""a":{"dtype":"F32","shape":[2]}"#],
            &[a, r#""__metadata__":{"k":1}"#],
            &[r#""__metadata__":{}"#, a, r#""__metadata__":{}"#],
            &[r#""a":1"#],
            &[r#""__metadata__":["k"]"#, a],
            // Keys that no one asks for.
            &[r#""a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":{"y":[1,-2,3e5,true,null,"z"]}}"#],
            &[r#""a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"shape":[2]}"#],
            &[r#""a":["F32",[2],[0,8]]"#],
            &[r#""a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":"\ud800"}"#],
            &[r#""a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":1e999}"#],
            &[&format!(
                r#""a":{{"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":{}0{}}}"#,
                "[".repeat(500),
                "]".repeat(500)
            )],
        ] {
            let text = format!("{{{}}}", entries.join(","));
            let (got, want) = (parsed(&text), serde_json::from_str::<Metadata>(&text));
            assert_eq!(got.is_ok(), want.is_ok(), "{text}");
            let (Ok((got, about)), Ok(want)) = (got, want) else { continue };
            let about = about.map(|about| serde_json::from_str(about.get()).unwrap());
            assert_eq!(about, *want.metadata(), "{text}");
            assert_eq!(got.data_len(), want.data_len(), "{text}");
            let described = |metadata: &Metadata| {
                let infos =
                    metadata.offset_keys().into_iter().map(|name| (metadata.info(&name).cloned(), name));
                format!("{:?}", infos.collect::<Vec<_>>())
            };
            assert_eq!(described(&got), described(&want), "{text}");
        }
        for text in ["[]", "", "1", "{} {}", "{\"a\":"] {
            assert!(parsed(text).is_err(), "{text}");
        }
        let text = b"{\"a\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0],\"x\":\"\xff\"}}";
        assert!(parse([&(text.len() as u64).to_le_bytes(), &text[..]].concat()).is_err());
    }
}
