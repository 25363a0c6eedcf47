//! A run's figures as TensorBoard reads them: an event file of TFRecords.
//!
//! A record is its length (8 bytes, little-endian), the length's masked CRC-32C, the bytes, and theirs. The bytes are a protocol buffer
//! `Event` of `wall_time` (1, double), `step` (2, varint) and either `file_version` (3) or a `summary` (5) of values with `tag` (1) and
//! `simple_value` (2, float). Source: TensorFlow's `record_writer.cc`, `event.proto` and `summary.proto`.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use crc::{CRC_32_ISCSI, Crc};

use super::progress::Step;

const CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

/// The event file of a run.
#[derive(Debug)]
pub struct Events {
    path: PathBuf,
    file: File,
}

impl Events {
    /// Starts a file in a folder with what is known of a run; an earlier one is replaced, so that a resumed run has one curve.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn create(folder: &Path, steps: &[Step]) -> io::Result<Self> {
        // TensorBoard looks for this beginning; a fixed name is what makes the file the run's only one.
        let path = folder.join("events.out.tfevents.shishin");
        let mut events = Self { file: File::create(&path)?, path };
        let mut first = Vec::new();
        text(&mut first, 3, b"brain.Event:2");
        events.record(&event(0, &first))?;
        for step in steps {
            events.step(step)?;
        }
        Ok(events)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds a step.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn step(&mut self, step: &Step) -> io::Result<()> {
        let tokens = step.tokens as f64 / step.seconds.max(1e-9);
        let figures = [
            ("loss/train", Some(step.loss)),
            ("loss/valid", step.valid),
            ("forgotten", step.forgotten),
            ("loss/kl", step.kl),
            ("learning_rate", Some(step.rate)),
            ("gradient_norm", Some(step.norm)),
            ("tokens_per_second", Some(tokens)),
        ];
        let mut summary = Vec::new();
        for (tag, figure) in figures {
            let Some(figure) = figure else { continue };
            let mut value = Vec::new();
            text(&mut value, 1, tag.as_bytes());
            value.push(2 << 3 | 5);
            value.extend((figure as f32).to_le_bytes());
            text(&mut summary, 1, &value);
        }
        let mut body = Vec::new();
        text(&mut body, 5, &summary);
        self.record(&event(step.step, &body))
    }

    fn record(&mut self, bytes: &[u8]) -> io::Result<()> {
        let length = (bytes.len() as u64).to_le_bytes();
        let mut record = Vec::with_capacity(bytes.len() + 16);
        record.extend(length);
        record.extend(masked(&length).to_le_bytes());
        record.extend(bytes);
        record.extend(masked(bytes).to_le_bytes());
        self.file.write_all(&record)
    }
}

fn masked(bytes: &[u8]) -> u32 {
    CRC.checksum(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

fn varint(to: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        to.push(number as u8 | 0x80);
        number >>= 7;
    }
    to.push(number as u8);
}

/// A field of bytes.
fn text(to: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    to.push(field << 3 | 2);
    varint(to, bytes.len() as u64);
    to.extend(bytes);
}

fn event(step: usize, body: &[u8]) -> Vec<u8> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let mut to = vec![1 << 3 | 1];
    to.extend(now.map_or(0.0, |since| since.as_secs_f64()).to_le_bytes());
    to.push(2 << 3);
    varint(&mut to, step as u64);
    to.extend(body);
    to
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_framed_as_tensorflow_frames_them() {
        // RFC 3720 B.4: thirty-two zero bytes.
        assert_eq!(CRC.checksum(&[0; 32]), 0x8a91_36aa);
        let dir = tempfile::tempdir().unwrap();
        let step = Step {
            step: 300,
            steps: 400,
            loss: 1.5,
            kl: None,
            rate: 1e-4,
            norm: 0.5,
            tokens: 10,
            targets: 5,
            seconds: 2.0,
            valid: Some(1.25),
            forgotten: None,
            over_budget: false,
        };
        let events = Events::create(dir.path(), &[step]).unwrap();
        let bytes = std::fs::read(events.path()).unwrap();
        let mut rest = bytes.as_slice();
        let mut bodies = Vec::new();
        while !rest.is_empty() {
            let (head, tail) = rest.split_at(12);
            let length = u64::from_le_bytes(head[..8].try_into().unwrap()) as usize;
            assert_eq!(u32::from_le_bytes(head[8..].try_into().unwrap()), masked(&head[..8]));
            let (body, tail) = tail.split_at(length);
            assert_eq!(u32::from_le_bytes(tail[..4].try_into().unwrap()), masked(body));
            bodies.push(body.to_vec());
            rest = &tail[4..];
        }
        assert_eq!(bodies.len(), 2);
        let find = |what: &[u8]| bodies[1].windows(what.len()).any(|window| window == what);
        // Step 300 as a varint, and the value of the tag.
        assert!(find(&[2 << 3, 0xac, 0x02]));
        let mut value = b"loss/valid".to_vec();
        value.push(2 << 3 | 5);
        value.extend(1.25f32.to_le_bytes());
        assert!(find(&value));
        assert!(!find(b"loss/kl"));
    }
}
