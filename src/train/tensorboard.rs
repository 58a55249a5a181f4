//! TensorBoard's event files, written by hand: TFRecord frames around a few protobuf fields.
//!
//! A frame is `length u64 · masked crc32c(length) u32 · bytes · masked crc32c(bytes) u32`, little endian. An event has
//! `wall_time = 1` (double), `step = 2` (varint) and one of `file_version = 3` (text), `summary = 5` (message of
//! `value = 1` with `tag = 1` and `simple_value = 2`), `session_log = 7` (`status = 1`, 1 is "start").
//! Source: `tensorflow/core/util/event.proto`, `summary.proto`, `tensorflow/core/lib/io/record_writer.cc`.

use std::{
    fs::{self, File},
    io::Write,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};

/// One event file.
pub struct EventWriter {
    file: File,
}

impl EventWriter {
    /// A new file in `folder`. Events of earlier files at or after `step` are void: that is how a resume is told.
    pub fn create(folder: &Path, step: usize) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("cannot create `{}`", folder.display()))?;
        let now = seconds();
        // The process id keeps two files of the same second apart.
        let path = folder.join(format!("events.out.tfevents.{}.glan.{}", now as u64, std::process::id()));
        let file = File::create(&path).with_context(|| format!("cannot create `{}`", path.display()))?;
        let mut writer = Self { file };
        writer.record(&event(now, 0, &bytes_field(3, b"brain.Event:2")))?;
        if step > 0 {
            writer.record(&event(now, step, &bytes_field(7, &varint_field(1, 1))))?;
        }
        Ok(writer)
    }

    /// Writes the values of one step.
    pub fn write(&mut self, step: usize, values: &[(&str, f64)]) -> Result<()> {
        let summary: Vec<u8> = values
            .iter()
            .flat_map(|(tag, value)| {
                let mut entry = bytes_field(1, tag.as_bytes());
                entry.push(2 << 3 | 5);
                entry.extend((*value as f32).to_le_bytes());
                bytes_field(1, &entry)
            })
            .collect();
        self.record(&event(seconds(), step, &bytes_field(5, &summary)))
    }

    fn record(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(&frame(bytes)).context("cannot write TensorBoard's event file (is the disk full?)")
    }
}

fn seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |elapsed| elapsed.as_secs_f64())
}

fn event(wall_time: f64, step: usize, rest: &[u8]) -> Vec<u8> {
    let mut out = vec![1 << 3 | 1];
    out.extend(wall_time.to_le_bytes());
    out.extend(varint_field(2, step as u64));
    out.extend(rest);
    out
}

fn varint_field(field: u8, value: u64) -> Vec<u8> {
    let mut out = vec![field << 3];
    varint(value, &mut out);
    out
}

fn bytes_field(field: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![field << 3 | 2];
    varint(bytes.len() as u64, &mut out);
    out.extend(bytes);
    out
}

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn frame(bytes: &[u8]) -> Vec<u8> {
    let length = (bytes.len() as u64).to_le_bytes();
    [&length[..], &masked_crc(&length), bytes, &masked_crc(bytes)].concat()
}

/// TFRecord's checksum: crc32c, rotated and shifted so that a checksum of data with checksums in it is sound.
fn masked_crc(bytes: &[u8]) -> [u8; 4] {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

/// CRC-32C (Castagnoli), bit by bit: an event has some 200 bytes.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_and_numbers_are_those_of_the_standards() {
        // RFC 3720, B.4: 32 bytes of zeros, and the usual check value.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        let mut out = Vec::new();
        varint(300, &mut out);
        assert_eq!(out, [0xac, 0x02]);
    }

    #[test]
    fn a_file_holds_its_version_then_one_frame_per_step() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let mut writer = EventWriter::create(folder.path(), 0)?;
        writer.write(300, &[("train/loss", 1.5)])?;
        let path = fs::read_dir(folder.path())?.next().context("there is a file")??.path();
        let bytes = fs::read(path)?;
        let mut rest = &bytes[..];
        let mut frames = Vec::new();
        while !rest.is_empty() {
            let len = u64::from_le_bytes(rest[..8].try_into()?) as usize;
            frames.push(rest[12..12 + len].to_vec());
            assert_eq!(rest[8..12], masked_crc(&rest[..8]));
            assert_eq!(rest[12 + len..16 + len], masked_crc(&rest[12..12 + len]));
            rest = &rest[16 + len..];
        }
        assert_eq!(frames.len(), 2);
        assert!(frames[0].ends_with(b"brain.Event:2"));
        let value = [b"\x0a\x0atrain/loss\x15".as_slice(), &1.5f32.to_le_bytes()].concat();
        assert!(frames[1].ends_with(&value), "{:?}", frames[1]);
        assert_eq!(frames[1][9..12], [0x10, 0xac, 0x02], "step 300");
        Ok(())
    }
}
