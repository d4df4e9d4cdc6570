//! Builds a TensorBoard events file from a job's steps. Pure: the same steps and start time give
//! the same bytes.
//!
//! The file is a sequence of TFRecord frames, each with one [`Event`]. A frame is the body's length
//! (u64), the length's masked CRC-32C (u32), the body, and the body's masked CRC-32C (u32), all
//! little-endian.

use prost::Message;

use crate::learn::step::Step;

/// TensorFlow's `Event`. Its fields are optional so that zeros are written as well.
#[derive(Clone, PartialEq, Message)]
struct Event {
    /// Unix time in seconds.
    #[prost(double, optional, tag = "1")]
    wall_time: Option<f64>,
    #[prost(uint64, optional, tag = "2")]
    step: Option<u64>,
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
}

/// TensorFlow's `Summary`.
#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    values: Vec<Value>,
}

/// TensorFlow's `Summary.Value`.
#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, optional, tag = "1")]
    tag: Option<String>,
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
}

/// Returns a whole events file: each step's figures under `train/`, at `start_seconds` (Unix time)
/// plus the duration of all earlier steps.
#[must_use]
pub(crate) fn events_file(start_seconds: f64, steps: &[(f64, Step)]) -> Vec<u8> {
    let mut file = Vec::new();
    let version = Event {
        wall_time: Some(start_seconds),
        file_version: Some("brain.Event:2".to_owned()),
        ..Event::default()
    };
    put_record(&mut file, &version);
    for (seconds, step) in steps {
        let figures = [
            ("train/loss", step.loss),
            ("train/grad_norm", step.gradient_norm),
            ("train/learning_rate", step.learning_rate),
            ("train/epoch", step.epoch),
            ("train/tokens_per_second", step.tokens_per_second),
        ];
        let values = figures.map(|(tag, figure)| Value {
            tag: Some(tag.to_owned()),
            simple_value: Some(figure as f32),
        });
        let event = Event {
            wall_time: Some(start_seconds + seconds),
            step: Some(step.step),
            summary: Some(Summary {
                values: values.into(),
            }),
            ..Event::default()
        };
        put_record(&mut file, &event);
    }
    file
}

fn put_record(file: &mut Vec<u8>, event: &Event) {
    let body = event.encode_to_vec();
    let length = (body.len() as u64).to_le_bytes();
    file.extend_from_slice(&length);
    file.extend_from_slice(&masked_crc(&length).to_le_bytes());
    file.extend_from_slice(&body);
    file.extend_from_slice(&masked_crc(&body).to_le_bytes());
}

/// Masks a checksum as TFRecord requires: a plain CRC of data that contains CRCs is weak.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
        .rotate_right(15)
        .wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads the frames back as the format defines them.
    fn bodies(mut file: &[u8]) -> Vec<Vec<u8>> {
        let mut bodies = Vec::new();
        while !file.is_empty() {
            let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
            let body = &file[12..12 + length];
            assert_eq!(
                u32::from_le_bytes(file[8..12].try_into().unwrap()),
                masked_crc(&file[..8])
            );
            let end = 12 + length;
            assert_eq!(
                u32::from_le_bytes(file[end..end + 4].try_into().unwrap()),
                masked_crc(body)
            );
            bodies.push(body.to_vec());
            file = &file[end + 4..];
        }
        bodies
    }

    #[test]
    fn a_file_has_a_version_and_a_framed_event_for_each_step() {
        let step = Step {
            step: 300,
            loss: 1.5,
            ..Default::default()
        };
        let file = events_file(1_000.0, &[(2.0, step)]);
        let bodies = bodies(&file);
        assert_eq!(bodies.len(), 2);
        assert!(bodies[0].ends_with(b"brain.Event:2"));
        let mut start = vec![9];
        start.extend_from_slice(&1_002.0_f64.to_le_bytes());
        start.extend_from_slice(&[0x10, 0xac, 0x02, 0x2a]);
        assert!(bodies[1].starts_with(&start));
        let mut loss = b"\x0a\x0atrain/loss\x15".to_vec();
        loss.extend_from_slice(&1.5_f32.to_le_bytes());
        assert!(bodies[1].windows(loss.len()).any(|window| window == loss));
        let epoch = b"\x0a\x0btrain/epoch\x15\0\0\0\0";
        let has_epoch = |body: &[u8]| body.windows(epoch.len()).any(|window| window == epoch);
        assert!(has_epoch(&bodies[1]), "a zero is written");
    }

    #[test]
    fn the_checksum_is_the_formats() {
        // From the format's definition: crc32c("123456789") = 0xe3069283, then rotate right by 15
        // and add 0xa282ead8.
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(
            masked_crc(b"123456789"),
            0xe306_9283_u32.rotate_right(15).wrapping_add(0xa282_ead8)
        );
    }
}
