//! JSON-lines files: the only thing that stages share.
//!
//! Files are append-only and every record is one line, so a kill can at worst tear the last line; [`JsonlWriter`] cuts
//! a torn tail before it appends. Records are written in the order of the work list ([`Ordered`]), whatever order they
//! finish in: that makes files byte-identical at any batch size and after any kill.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use serde::{Serialize, de::DeserializeOwned};

/// Appends records to a JSON-lines file, one `write` per record.
pub struct JsonlWriter {
    path: PathBuf,
    file: File,
}

impl JsonlWriter {
    /// Opens `path` for appending, creating it and its folder if need be; a torn last line is cut off first.
    pub fn append(path: &Path) -> Result<Self> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).with_context(|| format!("cannot create folder `{}`", folder.display()))?;
        }
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(path)
            .with_context(|| format!("cannot open `{}` for appending", path.display()))?;
        cut_torn_tail(path, &mut file)?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Opens `path` empty.
    pub fn create(path: &Path) -> Result<Self> {
        let writer = Self::append(path)?;
        writer.file.set_len(0).with_context(|| format!("cannot empty `{}`", path.display()))?;
        Ok(writer)
    }

    /// Writes one record as one line.
    ///
    /// **Errors**: a full disk names the file; what was written before stays valid.
    pub fn write<T: Serialize>(&mut self, record: &T) -> Result<()> {
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        self.file.write_all(&line).with_context(|| {
            format!(
                "cannot write to `{}` (is the disk full? everything before this record is kept; \
                 free some space and run the same command again)",
                self.path.display()
            )
        })
    }

    /// Hands the data to the disk.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().with_context(|| format!("cannot sync `{}`", self.path.display()))
    }
}

/// Cuts everything after the last newline.
fn cut_torn_tail(path: &Path, file: &mut File) -> Result<()> {
    let length = file.metadata()?.len();
    let mut end = length;
    let mut block = vec![0u8; 64 * 1024];
    while end > 0 {
        let start = end.saturating_sub(block.len() as u64);
        let size = (end - start) as usize;
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(&mut block[..size])?;
        if let Some(newline) = block[..size].iter().rposition(|&byte| byte == b'\n') {
            end = start + newline as u64 + 1;
            break;
        }
        end = start;
    }
    if end < length {
        tracing::warn!(
            "`{}` ended in a torn line; {} bytes cut, the record is made again",
            path.display(),
            length - end
        );
        file.set_len(end).with_context(|| format!("cannot cut the torn line of `{}`", path.display()))?;
    }
    file.seek(SeekFrom::End(0))?;
    Ok(())
}

/// Reads a JSON-lines file one record at a time; blank lines are skipped.
///
/// **Errors**: name the file, the line and what was expected.
pub struct JsonlReader<T> {
    path: PathBuf,
    lines: BufReader<File>,
    line_number: usize,
    buffer: Vec<u8>,
    record: std::marker::PhantomData<T>,
}

impl<T: DeserializeOwned> JsonlReader<T> {
    /// Opens `path`.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot open `{}`", path.display()))?;
        Ok(Self {
            path: path.to_owned(),
            lines: BufReader::with_capacity(1 << 16, file),
            line_number: 0,
            buffer: Vec::new(),
            record: std::marker::PhantomData,
        })
    }

    /// The 1-based number of the line read last.
    pub fn line_number(&self) -> usize {
        self.line_number
    }
}

impl<T: DeserializeOwned> Iterator for JsonlReader<T> {
    type Item = Result<T>;

    fn next(&mut self) -> Option<Result<T>> {
        loop {
            self.buffer.clear();
            let read = self.lines.read_until(b'\n', &mut self.buffer);
            self.line_number += 1;
            match read {
                Err(error) => {
                    return Some(Err(error).with_context(|| format!("cannot read `{}`", self.path.display())));
                }
                Ok(0) => return None,
                Ok(_) if self.buffer.trim_ascii().is_empty() => {}
                Ok(_) => {
                    return Some(serde_json::from_slice(&self.buffer).with_context(|| {
                        format!(
                            "`{}` line {}: not the expected JSON record (mend or remove this line)",
                            self.path.display(),
                            self.line_number
                        )
                    }));
                }
            }
        }
    }
}

/// Reads a whole JSON-lines file.
pub fn read_jsonl<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    JsonlReader::open(path)?.collect()
}

/// Reads a JSON-lines file that this program was appending to: a missing file is empty and a torn last line is left out.
pub fn read_partial_jsonl<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    cut_torn_tail(path, &mut OpenOptions::new().read(true).write(true).open(path)?)?;
    read_jsonl(path)
}

/// Writes a file so that it is either whole or not there: to a temporary name in the same folder, synced, renamed.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomic_with(path, |file| file.write_all(bytes).with_context(|| cannot_write(path)))
}

fn cannot_write(path: &Path) -> String {
    format!("cannot write `{}` (is the disk full?)", path.display())
}

/// [`write_atomic`] for what is too large to be held as a whole.
///
/// **Errors**: those of `write`; nothing is left under the file's own name then.
pub fn write_atomic_with(path: &Path, write: impl FnOnce(&mut BufWriter<File>) -> Result<()>) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(folder).with_context(|| format!("cannot create folder `{}`", folder.display()))?;
    let Some(name) = path.file_name() else { bail!("`{}` names no file", path.display()) };
    let temporary = folder.join(format!(".{}.partial", name.to_string_lossy()));
    let mut file = BufWriter::new(File::create(&temporary).with_context(|| cannot_write(path))?);
    write(&mut file)?;
    let finish = || -> std::io::Result<()> {
        file.into_inner()?.sync_all()?;
        fs::rename(&temporary, path)
    };
    finish().with_context(|| cannot_write(path))
}

/// Writes a value as pretty-printed JSON, atomically.
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let mut bytes = serde_json::to_vec_pretty(value)?;
    bytes.push(b'\n');
    write_atomic(path, &bytes)
}

/// Reads one JSON value.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = fs::read(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    serde_json::from_slice(&bytes).with_context(|| format!("`{}` is not the expected JSON", path.display()))
}

/// Puts results back into the order of the work list.
///
/// `push(position, value)` hands on every value whose predecessors have all been handed on. Positions start at 0 and
/// each comes exactly once. The engine serves requests in order, so at most about one batch of values waits here.
pub struct Ordered<T> {
    next: usize,
    waiting: BTreeMap<usize, T>,
}

impl<T> Default for Ordered<T> {
    fn default() -> Self {
        Self { next: 0, waiting: BTreeMap::new() }
    }
}

impl<T> Ordered<T> {
    /// Takes the value at `position` and calls `emit` for every value that is now in line.
    pub fn push(&mut self, position: usize, value: T, mut emit: impl FnMut(T) -> Result<()>) -> Result<()> {
        debug_assert!(position >= self.next && !self.waiting.contains_key(&position), "a position came twice");
        self.waiting.insert(position, value);
        while let Some(value) = self.waiting.remove(&self.next) {
            self.next += 1;
            emit(value)?;
        }
        Ok(())
    }

    /// The values that wait for a predecessor, which is not going to come.
    pub fn drain(&mut self) -> Vec<T> {
        std::mem::take(&mut self.waiting).into_values().collect()
    }

    /// Whether every value was handed on.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_last_line_is_cut_and_the_rest_kept() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("a.jsonl");
        fs::write(&path, "{\"a\":1}\n{\"a\":2}\n{\"a\":")?;
        JsonlWriter::append(&path)?.write(&serde_json::json!({"a": 3}))?;
        assert_eq!(fs::read_to_string(&path)?, "{\"a\":1}\n{\"a\":2}\n{\"a\":3}\n");
        fs::write(&path, "{\"a\":")?;
        assert!(read_partial_jsonl::<serde_json::Value>(&path)?.is_empty());
        Ok(())
    }

    #[test]
    fn a_damaged_line_is_named() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("b.jsonl");
        fs::write(&path, "{\"a\":1}\n\nnonsense\n")?;
        let error = read_jsonl::<serde_json::Value>(&path).expect_err("line 3 is damaged");
        assert!(format!("{error:#}").contains("line 3"), "{error:#}");
        Ok(())
    }

    #[test]
    fn ordered_hands_on_in_order_whatever_the_arrival() -> Result<()> {
        let mut out = Vec::new();
        let mut ordered = Ordered::default();
        for position in [2, 0, 1, 4, 3] {
            ordered.push(position, position, |value| {
                out.push(value);
                Ok(())
            })?;
        }
        assert_eq!(out, [0, 1, 2, 3, 4]);
        assert!(ordered.is_empty());
        Ok(())
    }
}
