//! Tokenised rows on disk: what is in memory is 16 bytes a row, however long the rows are.
//!
//! The file has no name (it vanishes with the process, however that ends) and lies beside the run, not in the system's
//! folder for temporary files, which may be memory. A row is its tokens, four bytes each with the highest bit for
//! "trained", and then its id.

use std::{
    fs::File,
    io::{BufWriter, Read, Seek, SeekFrom, Write},
    path::Path,
    sync::{Mutex, PoisonError},
};

use anyhow::{Context, Result};

use super::dataset::Example;

/// Marks a token that is trained. No vocabulary is that large.
const TRAINED: u32 = 1 << 31;

/// Where a row lies and how long it is.
#[derive(Debug, Clone, Copy)]
struct Entry {
    start: u64,
    tokens: u32,
    trained: u32,
}

/// Rows that are still being written.
pub struct TokenWriter {
    file: BufWriter<File>,
    end: u64,
    entries: Vec<Entry>,
}

/// Rows that can be read, in any order.
#[derive(Debug)]
pub struct TokenFile {
    file: Mutex<File>,
    end: u64,
    entries: Vec<Entry>,
}

impl TokenWriter {
    /// An empty file in `folder`, or among the system's temporary files where that folder is not there.
    pub fn create(folder: &Path) -> Result<Self> {
        let file = if folder.is_dir() { tempfile::tempfile_in(folder) } else { tempfile::tempfile() };
        let file = file.with_context(|| format!("cannot make a temporary file in `{}`", folder.display()))?;
        Ok(Self { file: BufWriter::with_capacity(1 << 18, file), end: 0, entries: Vec::new() })
    }

    /// Appends a row.
    ///
    /// **Errors**: a full disk.
    pub fn push(&mut self, example: &Example) -> Result<()> {
        let mut bytes = Vec::with_capacity(4 * example.token_ids.len() + example.id.len());
        for (id, trained) in example.token_ids.iter().zip(&example.trained) {
            debug_assert!(*id < TRAINED);
            bytes.extend((id | if *trained { TRAINED } else { 0 }).to_le_bytes());
        }
        bytes.extend(example.id.as_bytes());
        self.file.write_all(&bytes).context("cannot write the tokenised rows (is the disk full?)")?;
        let trained = example.num_trained() as u32;
        self.entries.push(Entry { start: self.end, tokens: example.token_ids.len() as u32, trained });
        self.end += bytes.len() as u64;
        Ok(())
    }

    /// Ends the writing.
    pub fn finish(self) -> Result<TokenFile> {
        let file = self.file.into_inner().context("cannot write the tokenised rows (is the disk full?)")?;
        Ok(TokenFile { file: Mutex::new(file), end: self.end, entries: self.entries })
    }
}

impl TokenFile {
    /// Rows.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Tokens of a row.
    pub fn num_tokens(&self, row: usize) -> usize {
        self.entries[row].tokens as usize
    }

    /// Tokens of a row that have a loss.
    pub fn num_trained(&self, row: usize) -> usize {
        self.entries[row].trained as usize
    }

    /// Reads a row.
    pub fn read(&self, row: usize) -> Result<Example> {
        let entry = self.entries[row];
        let end = self.entries.get(row + 1).map_or(self.end, |next| next.start);
        let mut bytes = vec![0; (end - entry.start) as usize];
        {
            // A panic elsewhere leaves the file as it is: every reader seeks first.
            let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
            file.seek(SeekFrom::Start(entry.start))
                .and_then(|_| file.read_exact(&mut bytes))
                .context("cannot read the tokenised rows back")?;
        }
        let (tokens, id) = bytes.split_at(4 * entry.tokens as usize);
        let tokens = tokens.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes));
        let (token_ids, trained) = tokens.map(|token| (token & !TRAINED, token & TRAINED != 0)).unzip();
        Ok(Example { id: String::from_utf8_lossy(id).into_owned(), token_ids, trained })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back_in_any_order_and_the_file_has_no_name() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let mut writer = TokenWriter::create(folder.path())?;
        let example = |row: usize| Example {
            id: "ü".repeat(row % 3),
            token_ids: (0..row as u32 * 7 % 50).map(|token| token * 1000).collect(),
            trained: (0..row * 7 % 50).map(|token| token % 3 == 0).collect(),
        };
        for row in 0..200 {
            writer.push(&example(row))?;
        }
        let file = writer.finish()?;
        assert_eq!(file.len(), 200);
        for row in (0..200).rev().chain([5, 199, 0]) {
            let wanted = example(row);
            assert_eq!((file.num_tokens(row), file.num_trained(row)), (wanted.token_ids.len(), wanted.num_trained()));
            assert_eq!(file.read(row)?, wanted);
        }
        assert_eq!(std::fs::read_dir(folder.path())?.count(), 0);
        Ok(())
    }
}
