//! TensorBoard event files: TFRecords of small protocol buffers.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use peft_core::{Error, Result};
use serde_json::{Map, Value};

/// An event file, opened when the first value comes.
#[derive(Default)]
pub struct Events {
    dir: Option<PathBuf>,
    file: Option<File>,
}

impl Events {
    /// In this directory, or nowhere.
    pub fn new(dir: Option<&Path>) -> Self {
        Events { dir: dir.map(Path::to_path_buf), file: None }
    }

    /// One event with the scalars of a step.
    pub fn write(&mut self, step: usize, values: &Map<String, Value>) -> Result<()> {
        let Some(dir) = &self.dir else { return Ok(()) };
        let failed = || Error::io("write", dir);
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                std::fs::create_dir_all(dir).map_err(failed())?;
                let name = format!("events.out.tfevents.{}.{}.peft", now() as u64, std::process::id());
                let mut file = File::create(dir.join(name)).map_err(failed())?;
                // Event { wall_time = 1, file_version = 3 }
                let version = [double(1, now()), bytes(3, b"brain.Event:2")].concat();
                // Event { wall_time = 1, step = 2, session_log = 7 { status = 1: START } }: what older files have of this step and
                // later ones, which a run that was taken up does again, counts no more.
                let start = [double(1, now()), vec![2 << 3], varint(step as u64), bytes(7, &[1 << 3, 1])].concat();
                file.write_all(&[record(&version), record(&start)].concat()).map_err(failed())?;
                self.file.insert(file)
            }
        };
        // Summary { value = 1 { tag = 1, simple_value = 2 } }
        let scalar = |(name, value): (&String, &Value)| {
            let value = value.as_f64().unwrap_or(f64::NAN) as f32;
            bytes(1, &[bytes(1, name.as_bytes()), float(2, value)].concat())
        };
        let summary: Vec<u8> = values.iter().flat_map(scalar).collect();
        // Event { wall_time = 1, step = 2, summary = 5 }
        let event = [double(1, now()), vec![2 << 3], varint(step as u64), bytes(5, &summary)].concat();
        file.write_all(&record(&event)).map_err(failed())
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

/// Length, its checksum, data, their checksum.
fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    [&length[..], &checksum(&length), data, &checksum(data)].concat()
}

/// CRC-32C, masked as TFRecords have it.
fn checksum(data: &[u8]) -> [u8; 4] {
    let step = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg()))
    };
    let crc = !data.iter().fold(!0, step);
    crc.rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut all = Vec::new();
    while value >= 0x80 {
        all.push(value as u8 | 0x80);
        value >>= 7;
    }
    all.push(value as u8);
    all
}

fn double(field: u8, value: f64) -> Vec<u8> {
    [&[field << 3 | 1][..], &value.to_le_bytes()].concat()
}

fn float(field: u8, value: f32) -> Vec<u8> {
    [&[field << 3 | 5][..], &value.to_le_bytes()].concat()
}

fn bytes(field: u8, value: &[u8]) -> Vec<u8> {
    [&[field << 3 | 2][..], &varint(value.len() as u64), value].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The standard check value of CRC-32C, masked.
    #[test]
    fn checksums_are_masked_crc_32c() {
        let masked = 0xe306_9283_u32.rotate_right(15).wrapping_add(0xa282_ead8);
        assert_eq!(checksum(b"123456789"), masked.to_le_bytes());
    }
}
