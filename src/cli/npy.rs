//! NumPy's `.npy` format: float32 or float16, C order, one or two dimensions.
//!
//! The header is parsed here, strictly, because files may be hostile: no allocation that the file does
//! not pay for, no recursion, no arithmetic that can wrap. Format:
//! <https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>.

use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use byzclip::{Half, Layout};

use super::elements::Dtype;
use super::failure::{Failure, excerpt};
use super::input_file::{self, InputFile};

/// The longest header that is read; NumPy's is 128 bytes.
const LONGEST_HEADER: usize = 64 << 10;

/// Rows without elements cost a file nothing and a report memory, so a small file may not ask for many.
const MOST_EMPTY_ROWS: usize = 1 << 16;

/// Nor do columns without rows, of which a mean has one element each.
const MOST_EMPTY_COLUMNS: usize = 1 << 24;

/// A file whose header was read and found to describe a batch.
pub(super) struct Npy {
    pub file: InputFile,
    /// `[clients, params]`; a vector is one client.
    pub layout: Layout,
    pub dtype: Dtype,
}

/// Another copy of the file may be whole.
const AGAIN: &str = "copy the file again, or save it again with numpy.save";

/// A file whose header was read.
struct Opened {
    file: InputFile,
    header: RawHeader,
    described: Header,
}

fn open_header(path: &Path) -> Result<Opened, Failure> {
    let corrupt = |got: &str, expected: &str| Failure::content(path, got, expected, AGAIN);
    let (file, reader) = input_file::open(path, "an .npy file")?;
    let mut reader = BufReader::new(reader);
    let header =
        read_header(&mut reader).map_err(|got| corrupt(&got, "an .npy file of version 1, 2 or 3"))?;
    let described =
        Header::parse(&header.text).map_err(|got| corrupt(&got, "the header of an .npy array"))?;
    Ok(Opened { file, header, described })
}

/// Checks that the file is as long as its header says.
fn check_length(path: &Path, length: u64, expected: u64, shape: &str) -> Result<(), Failure> {
    if length == expected {
        return Ok(());
    }
    let state = if length < expected { "truncated" } else { "longer than its header says" };
    let (got, expected) =
        (format!("{length} bytes, {state}"), format!("{expected} bytes for the shape {shape}"));
    Err(Failure::content(path, &got, &expected, AGAIN))
}

/// The numbers of a vector of any type that NumPy's whole and floating-point numbers have up to 64 bits, read some at a time.
pub(super) struct Numbers {
    pub count: usize,
    pub file: InputFile,
    /// Bytes of a number.
    width: usize,
    decode: Decode,
}

/// Numbers that are read one after the other.
pub(super) struct Reading<'a> {
    numbers: &'a Numbers,
    reader: BufReader<std::fs::File>,
}

/// How numbers are to be saved.
const SAVE_NUMBERS: &str = "save a vector with numpy.save(path, numpy.asarray(list, \"<f4\"))";

impl Numbers {
    pub(super) fn open(path: &Path) -> Result<Self, Failure> {
        let wrong = |got: &str, expected: &str| Failure::content(path, got, expected, SAVE_NUMBERS);
        let Opened { mut file, header, described } = open_header(path)?;
        let [count] = described.shape[..] else {
            let got = format!("an array of {} dimensions", described.shape.len());
            return Err(wrong(&got, "a vector, one number per client"));
        };
        let (width, decode): (usize, Decode) = match described.descr.as_str() {
            "<f4" | "=f4" => (4, |b| Ok(f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]])))),
            "<f8" | "=f8" => (8, |b| Ok(f64::from_le_bytes(eight(b)))),
            "<i4" | "=i4" => (4, |b| Ok(f64::from(i32::from_le_bytes([b[0], b[1], b[2], b[3]])))),
            "<u4" | "=u4" => (4, |b| Ok(f64::from(u32::from_le_bytes([b[0], b[1], b[2], b[3]])))),
            "<i8" | "=i8" => (8, |b| whole(i64::from_le_bytes(eight(b)).into())),
            "<u8" | "=u8" => (8, |b| whole(u64::from_le_bytes(eight(b)).into())),
            _ => {
                let got = format!("elements of type '{}'", excerpt(&described.descr));
                return Err(wrong(&got, "'<f4', '<f8', '<i4', '<u4', '<i8' or '<u8'"));
            }
        };
        let bytes = count.checked_mul(width).and_then(|bytes| bytes.checked_add(header.bytes.len()));
        let bytes = bytes
            .ok_or_else(|| wrong(&format!("the shape ({count},)"), "a shape that fits the address space"))?;
        check_length(path, file.length, bytes as u64, &format!("({count},)"))?;
        file.head = header.bytes.len();
        Ok(Self { count, file, width, decode })
    }

    /// From the first number on.
    pub(super) fn read(&self) -> Result<Reading<'_>, Failure> {
        let mut reader = self.file.reopen()?;
        let seek = reader.seek(SeekFrom::Start(self.file.head as u64));
        seek.map_err(|e| Failure::unreadable(&self.file.path, &e))?;
        Ok(Reading { numbers: self, reader: BufReader::new(reader) })
    }
}

impl Reading<'_> {
    /// The next numbers, of which there are so many.
    pub(super) fn next(&mut self, count: usize) -> Result<Vec<f64>, Failure> {
        let Numbers { file, width, decode, .. } = self.numbers;
        let mut bytes = vec![0; count * width];
        if let Err(error) = self.reader.read_exact(&mut bytes) {
            file.check_unchanged()?;
            return Err(Failure::unreadable(&file.path, &error));
        }
        let decoded = bytes.chunks_exact(*width).map(decode).collect::<Result<_, _>>();
        decoded.map_err(|number| {
            let got = format!("the number {number}");
            Failure::content(&file.path, &got, "numbers that an f64 holds", SAVE_NUMBERS)
        })
    }
}

/// A number from its bytes, or the number in words where an `f64` does not hold it.
type Decode = fn(&[u8]) -> Result<f64, String>;

fn eight(b: &[u8]) -> [u8; 8] {
    [b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]
}

/// Rounded numbers would be other numbers, silently.
fn whole(number: i128) -> Result<f64, String> {
    let float = number as f64;
    if float as i128 == number { Ok(float) } else { Err(number.to_string()) }
}

/// The header of a vector of so many `f32`.
pub(super) fn header_of_vector(elements: usize) -> Vec<u8> {
    let text = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({elements},), }}");
    // NumPy pads with spaces to a multiple of 64, a newline last.
    let length = (10 + text.len() + 1).next_multiple_of(64) - 10;
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((length as u16).to_le_bytes());
    bytes.extend(format!("{text:<width$}\n", width = length - 1).bytes());
    bytes
}

pub(super) fn open(path: &Path) -> Result<Npy, Failure> {
    const SAVE: &str = "save it with numpy.save(path, array.astype(\"<f4\", order=\"C\"))";
    let wrong = |got: &str, expected: &str| Failure::content(path, got, expected, SAVE);
    let Opened { mut file, header, described } = open_header(path)?;

    let dtype = match described.descr.as_str() {
        "<f4" | "=f4" if cfg!(target_endian = "little") => Dtype::F32,
        "<f2" | "=f2" if cfg!(target_endian = "little") => Dtype::Half(Half::F16),
        other => {
            return Err(wrong(
                &format!("elements of type '{}'", excerpt(other)),
                "'<f4' or '<f2' (float32 or float16, little-endian)",
            ));
        }
    };
    if described.fortran_order && described.shape.len() > 1 {
        return Err(wrong("Fortran order", "C order (a row per client, back to back)"));
    }
    let (clients, params) = match described.shape[..] {
        [params] => (1, params),
        [clients, params] => (clients, params),
        _ => {
            let got = format!("an array of {} dimensions", described.shape.len());
            return Err(wrong(&got, "[clients, params], or [params] for one client"));
        }
    };
    let elements = clients.checked_mul(params).filter(|n| *n <= isize::MAX as usize / 4);
    let elements = elements.ok_or_else(|| {
        wrong(&format!("the shape ({clients}, {params})"), "a shape that fits the address space")
    })?;
    if params == 0 && clients > MOST_EMPTY_ROWS {
        let got = format!("the shape ({clients}, 0)");
        return Err(wrong(&got, &format!("at most {MOST_EMPTY_ROWS} clients without params")));
    }
    let expected = header.bytes.len() as u64 + (elements * dtype.bytes()) as u64;
    check_length(path, file.length, expected, &format!("({clients}, {params})"))?;
    let layout = Layout::dense(clients, params)
        .map_err(|e| Failure::Failed(format!("{}, shape ({clients}, {params}): {e}", path.display())))?;
    if clients == 0 && params > MOST_EMPTY_COLUMNS {
        let got = format!("the shape (0, {params})");
        return Err(wrong(&got, &format!("at most {MOST_EMPTY_COLUMNS} params without clients")));
    }
    file.head = header.bytes.len();
    Ok(Npy { file, layout, dtype })
}

struct RawHeader {
    bytes: Vec<u8>,
    text: String,
}

fn read_header(reader: &mut impl Read) -> Result<RawHeader, String> {
    let mut bytes = vec![0u8; 8];
    let mut more = |bytes: &mut Vec<u8>, count: usize| {
        let start = bytes.len();
        bytes.resize(start + count, 0);
        reader.read_exact(&mut bytes[start..]).map_err(|_| "a truncated header".to_owned())
    };
    bytes.clear();
    more(&mut bytes, 8)?;
    if &bytes[..6] != b"\x93NUMPY" {
        return Err("no .npy file (wrong magic)".into());
    }
    let length = match bytes[6] {
        1 => {
            more(&mut bytes, 2)?;
            u16::from_le_bytes([bytes[8], bytes[9]]) as usize
        }
        2 | 3 => {
            more(&mut bytes, 4)?;
            u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]) as usize
        }
        version => return Err(format!("version {version} of the format")),
    };
    if length > LONGEST_HEADER {
        return Err(format!("a header of {length} bytes"));
    }
    let start = bytes.len();
    more(&mut bytes, length)?;
    let text =
        String::from_utf8(bytes[start..].to_vec()).map_err(|_| "a header that is not text".to_owned())?;
    Ok(RawHeader { bytes, text })
}

/// What the header says: a Python dictionary of exactly these three keys.
#[derive(Debug, Default, PartialEq)]
struct Header {
    descr: String,
    fortran_order: bool,
    shape: Vec<usize>,
}

impl Header {
    fn parse(text: &str) -> Result<Self, String> {
        let mut parser = Parser { rest: text.trim() };
        let (mut descr, mut fortran_order, mut shape) = (None, None, None);
        parser.expect('{')?;
        while !parser.accept('}') {
            let key = parser.string()?;
            parser.expect(':')?;
            match key.as_str() {
                "descr" => descr = Some(parser.string()?),
                "fortran_order" => fortran_order = Some(parser.boolean()?),
                "shape" => shape = Some(parser.tuple()?),
                _ => return Err(format!("the unknown key '{}'", excerpt(&key))),
            }
            if !parser.accept(',') {
                parser.expect('}')?;
                break;
            }
        }
        if !parser.rest.trim().is_empty() {
            return Err("text after the dictionary".into());
        }
        match (descr, fortran_order, shape) {
            (Some(descr), Some(fortran_order), Some(shape)) => Ok(Self { descr, fortran_order, shape }),
            _ => Err("a dictionary without 'descr', 'fortran_order' or 'shape'".into()),
        }
    }
}

struct Parser<'a> {
    rest: &'a str,
}

impl Parser<'_> {
    fn accept(&mut self, wanted: char) -> bool {
        self.rest = self.rest.trim_start();
        match self.rest.strip_prefix(wanted) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn expect(&mut self, wanted: char) -> Result<(), String> {
        if self.accept(wanted) {
            Ok(())
        } else {
            Err(format!("\"{}\" where '{wanted}' belongs", self.excerpt()))
        }
    }

    fn string(&mut self) -> Result<String, String> {
        let quote = if self.accept('\'') { '\'' } else { '"' };
        if quote == '"' && !self.accept('"') {
            return Err(format!(
                "\"{}\" where a string belongs (structured arrays are not updates)",
                self.excerpt()
            ));
        }
        let (text, rest) = self.rest.split_once(quote).ok_or("a string without an end")?;
        let text = text.to_owned();
        self.rest = rest;
        Ok(text)
    }

    fn boolean(&mut self) -> Result<bool, String> {
        self.rest = self.rest.trim_start();
        for (name, value) in [("True", true), ("False", false)] {
            if let Some(rest) = self.rest.strip_prefix(name) {
                self.rest = rest;
                return Ok(value);
            }
        }
        Err(format!("\"{}\" where True or False belongs", self.excerpt()))
    }

    fn tuple(&mut self) -> Result<Vec<usize>, String> {
        let mut values = Vec::new();
        self.expect('(')?;
        while !self.accept(')') {
            self.rest = self.rest.trim_start();
            let digits = self.rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(self.rest.len());
            let (number, rest) = self.rest.split_at(digits);
            values.push(number.parse().map_err(|_| format!("\"{}\" where a size belongs", self.excerpt()))?);
            // Python 2 wrote long integers with an L.
            self.rest = rest.strip_prefix('L').unwrap_or(rest);
            if !self.accept(',') {
                self.expect(')')?;
                break;
            }
        }
        Ok(values)
    }

    fn excerpt(&self) -> String {
        self.rest.chars().take(20).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_numpy_are_understood() {
        let text = "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }   \n";
        let header = Header { descr: "<f4".into(), fortran_order: false, shape: vec![3, 4] };
        assert_eq!(Header::parse(text), Ok(header));
        assert_eq!(
            Header::parse("{'shape': (), \"descr\":'<f4','fortran_order':True}").map(|h| h.shape),
            Ok(vec![])
        );
        assert_eq!(
            Header::parse("{'shape': (7L,), 'descr':'<f4','fortran_order':True}").map(|h| h.shape),
            Ok(vec![7])
        );
    }

    #[test]
    fn corrupt_headers_are_refused() {
        for text in [
            "",
            "{",
            "{}",
            "{'descr': '<f4'}",
            "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,)}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}",
            "{'descr': '<f4', 'fortran_order': Maybe, 'shape': (1,)}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (1,)} and more",
            "{'descr': '<f4', 'fortran_order': False, 'shape': ((((1))))}",
        ] {
            assert!(Header::parse(text).is_err(), "{text}");
        }
    }
}
