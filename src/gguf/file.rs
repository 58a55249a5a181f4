//! Reads a GGUF file: the header into memory, the tensors through a memory map.

use std::{
    collections::HashMap,
    fs::File,
    ops::Range,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow, bail};

use super::{
    blocks::{self, TensorType},
    metadata::{Metadata, Value},
};

/// Longest array that is read: a vocabulary has at most some hundred thousand entries, and a damaged length must not
/// make us allocate more.
const MAX_ARRAY: u64 = 1 << 24;
/// Most dimensions of a tensor (`GGML_MAX_DIMS`).
const MAX_DIMS: u32 = 4;
/// Where nothing else is said, tensors begin at multiples of this.
const DEFAULT_ALIGNMENT: u64 = 32;

/// One tensor of a file.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorInfo {
    /// Its name in the file.
    pub name: String,
    /// Rows first, as in Hugging Face checkpoints; the file has the sizes the other way round.
    pub shape: Vec<usize>,
    /// How its values are packed.
    pub kind: TensorType,
    /// Its bytes in the file; empty where the type is unknown.
    pub bytes: Range<usize>,
}

/// What stands before the tensors.
#[derive(Debug, Clone, PartialEq)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// All keys and values.
    pub metadata: Metadata,
    /// All tensors, in the order of the file.
    pub tensors: Vec<TensorInfo>,
}

/// An open file.
pub struct GgufFile {
    /// Where it lies.
    pub path: PathBuf,
    /// Its header.
    pub header: Header,
    map: memmap2::Mmap,
    by_name: HashMap<String, usize>,
}

impl GgufFile {
    /// Maps a file and reads its header.
    ///
    /// **Errors**: name the file and the place: no GGUF, another version, cut short, or contradicting itself.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot open `{}`", path.display()))?;
        // SAFETY: the file is only read; as with every memory map, nobody may cut it while the model loads.
        #[expect(unsafe_code, reason = "weights are mapped, not read twice through the page cache")]
        let map = unsafe { memmap2::Mmap::map(&file) }.with_context(|| format!("cannot map `{}`", path.display()))?;
        let header = Header::parse(&map).with_context(|| format!("`{}` cannot be read as GGUF", path.display()))?;
        let by_name = header.tensors.iter().enumerate().map(|(at, tensor)| (tensor.name.clone(), at)).collect();
        Ok(Self { path: path.to_owned(), header, map, by_name })
    }

    /// A tensor by its name in the file.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).map(|&at| &self.header.tensors[at])
    }

    /// One tensor as it lies in the file.
    pub fn bytes(&self, tensor: &TensorInfo) -> &[u8] {
        &self.map[tensor.bytes.clone()]
    }

    /// The values of one tensor, `out` as long as the tensor.
    pub fn read(&self, tensor: &TensorInfo, out: &mut [f32]) -> Result<()> {
        blocks::dequantize(tensor.kind, &self.map[tensor.bytes.clone()], out)
            .with_context(|| format!("tensor `{}` of `{}`", tensor.name, self.path.display()))
    }

    /// The values of whole rows of a tensor, from `first` on; of a vector, each value is a row.
    pub fn read_rows(&self, tensor: &TensorInfo, first: usize, out: &mut [f32]) -> Result<()> {
        let rows = tensor.shape[0].max(1);
        let (row_len, row_bytes) = (tensor.shape[1..].iter().product::<usize>(), tensor.bytes.len() / rows);
        let count = out.len() / row_len.max(1);
        if first + count > rows {
            bail!("tensor `{}` has {rows} rows, asked for are {first} to {}", tensor.name, first + count);
        }
        let start = tensor.bytes.start + first * row_bytes;
        blocks::dequantize(tensor.kind, &self.map[start..start + count * row_bytes], out)
            .with_context(|| format!("rows of tensor `{}` of `{}`", tensor.name, self.path.display()))
    }
}

impl Header {
    /// Reads the header of a whole file.
    ///
    /// **Errors**: name the byte and what was expected there.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let mut cursor = Cursor { bytes, at: 0 };
        let version = cursor.magic_and_version()?;
        let num_tensors = cursor.u64("the number of tensors")?;
        let num_pairs = cursor.u64("the number of metadata keys")?;
        // The smallest tensor entry has 24 bytes, the smallest pair 13.
        cursor.check_count(num_tensors, 24, "tensors")?;
        cursor.check_count(num_pairs, 13, "metadata keys")?;
        let mut metadata = Metadata::default();
        for number in 0..num_pairs {
            let key = cursor.text("a metadata key").with_context(|| format!("metadata pair {number}"))?;
            if metadata.get(&key).is_some() {
                bail!("metadata key `{key}` stands there twice (byte {})", cursor.at);
            }
            let value = cursor.value().with_context(|| format!("the value of metadata key `{key}`"))?;
            metadata.set(&key, value);
        }
        let alignment = metadata.unsigned("general.alignment")?.unwrap_or(DEFAULT_ALIGNMENT);
        if !alignment.is_power_of_two() || !(8..=1 << 20).contains(&alignment) {
            bail!("`general.alignment` is {alignment}, expected a power of two from 8 on");
        }
        let mut entries = Vec::new();
        let mut names = std::collections::HashSet::new();
        for number in 0..num_tensors {
            let entry = cursor.tensor_entry().with_context(|| format!("entry of tensor {number}"))?;
            if !names.insert(entry.name.clone()) {
                bail!("tensor `{}` stands there twice", entry.name);
            }
            entries.push(entry);
        }
        let start = (cursor.at as u64).next_multiple_of(alignment);
        let tensors =
            entries.into_iter().map(|entry| entry.place(start, alignment, bytes.len())).collect::<Result<_>>();
        Ok(Self { version, metadata, tensors: tensors? })
    }
}

/// A tensor's entry before its place in the file is known.
struct Entry {
    name: String,
    shape: Vec<usize>,
    kind: TensorType,
    offset: u64,
}

impl Entry {
    fn place(self, start: u64, alignment: u64, file_len: usize) -> Result<TensorInfo> {
        let Self { name, shape, kind, offset } = self;
        let Some((block_len, block_bytes)) = kind.block() else {
            return Ok(TensorInfo { name, shape, kind, bytes: 0..0 });
        };
        let row = shape.last().copied().unwrap_or(1);
        if !row.is_multiple_of(block_len) {
            bail!("tensor `{name}` has rows of {row} values, which {} packs in blocks of {block_len}", kind.name());
        }
        let elements = shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
        let size = elements.and_then(|elements| (elements / block_len).checked_mul(block_bytes));
        let size = size.ok_or_else(|| anyhow!("tensor `{name}` of shape {shape:?} is larger than any memory"))?;
        if !offset.is_multiple_of(alignment) {
            bail!("tensor `{name}` begins at {offset}, which is no multiple of the alignment {alignment}");
        }
        let begin = start.checked_add(offset).and_then(|begin| usize::try_from(begin).ok());
        let range = begin.and_then(|begin| Some(begin..begin.checked_add(size)?));
        match range.filter(|range| range.end <= file_len) {
            Some(bytes) => Ok(TensorInfo { name, shape, kind, bytes }),
            None => bail!(
                "tensor `{name}` ({size} bytes from {start} + {offset}) lies outside of the file of {file_len} bytes; \
                 was a download cut short? fetch it again"
            ),
        }
    }
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, count: u64, what: &str) -> Result<&'a [u8]> {
        let left = self.bytes.len() - self.at;
        match usize::try_from(count).ok().filter(|&count| count <= left) {
            Some(count) => {
                let taken = &self.bytes[self.at..self.at + count];
                self.at += count;
                Ok(taken)
            }
            None => bail!(
                "{what} at byte {} needs {count} bytes, but {left} are left of the file; was a download cut short? \
                 fetch it again",
                self.at
            ),
        }
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        Ok(self.take(N as u64, what)?.try_into().expect("as many bytes were taken"))
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    fn check_count(&self, count: u64, least_bytes: u64, what: &str) -> Result<()> {
        let left = (self.bytes.len() - self.at) as u64;
        if count > left / least_bytes {
            bail!(
                "the header announces {count} {what}, for which the {left} bytes after byte {} are too few; \
                 was a download cut short? fetch it again",
                self.at
            );
        }
        Ok(())
    }

    fn magic_and_version(&mut self) -> Result<u32> {
        let magic: [u8; 4] = self.array("the magic number")?;
        if &magic != b"GGUF" {
            bail!("the file begins with the bytes {magic:02x?}, expected `GGUF`");
        }
        match self.u32("the version")? {
            version @ (2 | 3) => Ok(version),
            1 => bail!("it has version 1, which nothing writes since August 2023; convert the model again"),
            version if version & 0xFFFF == 0 => {
                bail!("it is a big-endian file; convert the model again for this machine")
            }
            version => bail!("it has version {version}, supported are 2 and 3"),
        }
    }

    fn text(&mut self, what: &str) -> Result<String> {
        let length = self.u64(what)?;
        let bytes = self.take(length, what)?;
        // Some files close their texts with a zero byte, and some vocabularies hold pieces that are not UTF-8.
        let end = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
        Ok(String::from_utf8_lossy(&bytes[..end]).into_owned())
    }

    fn value(&mut self) -> Result<Value> {
        let kind = self.u32("the type of a value")?;
        match kind {
            8 => Ok(Value::Text(self.text("a text")?)),
            9 => self.values(),
            kind => self.scalar(kind),
        }
    }

    fn scalar(&mut self, kind: u32) -> Result<Value> {
        const WHAT: &str = "a number";
        Ok(match kind {
            0 => Value::Unsigned(u64::from(self.array::<1>(WHAT)?[0])),
            1 => Value::Signed(i64::from(i8::from_le_bytes(self.array(WHAT)?))),
            2 => Value::Unsigned(u64::from(u16::from_le_bytes(self.array(WHAT)?))),
            3 => Value::Signed(i64::from(i16::from_le_bytes(self.array(WHAT)?))),
            4 => Value::Unsigned(u64::from(self.u32(WHAT)?)),
            5 => Value::Signed(i64::from(i32::from_le_bytes(self.array(WHAT)?))),
            6 => Value::Float(shortest(f32::from_le_bytes(self.array(WHAT)?))),
            7 => match self.array::<1>("a truth value")? {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                [other] => bail!("the truth value at byte {} is {other}, expected 0 or 1", self.at - 1),
            },
            10 => Value::Unsigned(self.u64(WHAT)?),
            11 => Value::Signed(i64::from_le_bytes(self.array(WHAT)?)),
            12 => Value::Float(f64::from_le_bytes(self.array(WHAT)?)),
            other => bail!("the value type at byte {} is {other}, expected 0 to 12", self.at - 4),
        })
    }

    fn values(&mut self) -> Result<Value> {
        let kind = self.u32("the element type of an array")?;
        let count = self.u64("the length of an array")?;
        let width = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            9 => bail!("the array at byte {} holds arrays, which no model needs", self.at),
            other => bail!("the array at byte {} has elements of type {other}, expected 0 to 12", self.at),
        };
        self.check_count(count, width, "array elements")?;
        if count > MAX_ARRAY {
            bail!("the array at byte {} has {count} elements, supported are {MAX_ARRAY}", self.at);
        }
        if kind == 8 {
            return Ok(Value::Texts((0..count).map(|_| self.text("a text of an array")).collect::<Result<_>>()?));
        }
        let (mut integers, mut floats) = (Vec::new(), Vec::new());
        for _ in 0..count {
            match self.scalar(kind)? {
                Value::Float(number) => floats.push(number),
                Value::Signed(number) => integers.push(number),
                Value::Bool(flag) => integers.push(i64::from(flag)),
                Value::Unsigned(number) => integers
                    .push(i64::try_from(number).map_err(|_| anyhow!("the array holds {number}, which is too large"))?),
                _ => unreachable!("a scalar is a number or a truth value"),
            }
        }
        Ok(if matches!(kind, 6 | 12) { Value::Floats(floats) } else { Value::Integers(integers) })
    }

    fn tensor_entry(&mut self) -> Result<Entry> {
        let name = self.text("a tensor's name")?;
        let num_dims = self.u32("the number of dimensions")?;
        if !(1..=MAX_DIMS).contains(&num_dims) {
            bail!("tensor `{name}` has {num_dims} dimensions, supported are 1 to {MAX_DIMS}");
        }
        let mut shape = Vec::new();
        for _ in 0..num_dims {
            let size = self.u64("a dimension")?;
            let size = usize::try_from(size).ok().filter(|&size| size > 0);
            shape.push(size.ok_or_else(|| anyhow!("tensor `{name}` has a dimension of 0 or beyond all memory"))?);
        }
        shape.reverse();
        let kind = TensorType::from_id(self.u32("a tensor's type")?);
        Ok(Entry { name, shape, kind, offset: self.u64("a tensor's offset")? })
    }
}

/// The f64 that prints like an f32: 1e-5 stays 1e-5, as the model's configuration once had it.
fn shortest(number: f32) -> f64 {
    number.to_string().parse().unwrap_or(f64::from(number))
}
