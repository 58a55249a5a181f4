//! Reads the two files of a job line by line: the requests, and the rows that an earlier run has left.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    marker::PhantomData,
    path::{Path, PathBuf},
};

use anyhow::Result;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{fields::Fields, job::Job};
use crate::error::{Failure, usage};

/// One line of the requests.
pub struct Line<P> {
    /// 1-based.
    pub number: usize,
    /// As given; `null` where it is missing or illegal.
    pub id: Value,
    /// What the line asks for, or what is wrong with it.
    pub parsed: Result<P>,
}

impl<P> Line<P> {
    /// Answers that the line is given: one failure when it is damaged.
    pub fn num_answers<J: Job<Parsed = P>>(&self) -> usize {
        self.parsed.as_ref().map_or(1, J::num_answers)
    }

    /// Rows that the line yields.
    pub fn num_rows<J: Job<Parsed = P>>(&self) -> usize {
        self.parsed.as_ref().map_or(1, J::num_rows)
    }
}

/// Reads requests line by line; blank lines are skipped.
pub struct Lines<J> {
    path: PathBuf,
    file: Option<BufReader<File>>,
    number: usize,
    job: PhantomData<J>,
}

impl<J: Job> Lines<J> {
    /// Opens the requests.
    ///
    /// **Errors**: missing input.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|error| {
            Failure::MissingInput(format!("cannot open the requests in `{}`: {error}", path.display()))
        })?;
        Ok(Self { path: path.to_owned(), file: Some(BufReader::new(file)), number: 0, job: PhantomData })
    }
}

impl<J: Job> Iterator for Lines<J> {
    type Item = Result<Line<J::Parsed>>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut line = Vec::new();
        loop {
            line.clear();
            self.number += 1;
            match self.file.as_mut()?.read_until(b'\n', &mut line) {
                Ok(0) => return None,
                Ok(_) if line.trim_ascii().is_empty() => {}
                Ok(_) => return Some(Ok(parse_line::<J>(&line, self.number))),
                Err(error) => {
                    self.file = None;
                    return Some(Err(usage(format!("cannot read `{}`: {error}", self.path.display()))));
                }
            }
        }
    }
}

fn parse_line<J: Job>(line: &[u8], number: usize) -> Line<J::Parsed> {
    let mut id = Value::Null;
    let parsed = Fields::parse(line).and_then(|mut fields| {
        id = fields.peek_id(J::ID_FIELD);
        fields.take_id(J::ID_FIELD)?;
        let parsed = J::parse(&id, &mut fields)?;
        fields.finish()?;
        Ok(parsed)
    });
    Line { number, id, parsed }
}

/// How every row begins: what tells a torn last row from a file that is something else.
const ROW_BEGINS: &[u8] = b"{\"id\":";

/// The rows of an earlier run; none where there is no file. Reads only: a torn last row is left out, not cut.
pub struct Rows<R> {
    path: PathBuf,
    file: Option<BufReader<File>>,
    row: PhantomData<R>,
}

impl<R: DeserializeOwned> Rows<R> {
    /// Opens the output.
    pub fn open(path: &Path) -> Result<Self> {
        let file = match File::open(path) {
            Ok(file) => Some(BufReader::new(file)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(usage(format!("cannot read `{}`: {error}", path.display()))),
        };
        Ok(Self { path: path.to_owned(), file, row: PhantomData })
    }

    /// The next whole row.
    ///
    /// **Errors**: usage, when the file holds something else than rows of this command.
    pub fn next_row(&mut self) -> Result<Option<R>> {
        let Some(file) = &mut self.file else { return Ok(None) };
        let mut line = Vec::new();
        file.read_until(b'\n', &mut line)
            .map_err(|error| usage(format!("cannot read `{}`: {error}", self.path.display())))?;
        if line.last() == Some(&b'\n') {
            return serde_json::from_slice(&line).map(Some).map_err(|error| self.foreign(&error.to_string()));
        }
        self.file = None;
        if line.starts_with(ROW_BEGINS) || ROW_BEGINS.starts_with(&line) {
            return Ok(None);
        }
        Err(self.foreign("its end is no row"))
    }

    fn foreign(&self, why: &str) -> anyhow::Error {
        usage(format!("`{}` holds something else than results of this command ({why}); {WAY_OUT}", self.path.display()))
    }
}

/// What to do about an output that belongs to something else.
pub const WAY_OUT: &str = "name another --output (nothing was changed)";
