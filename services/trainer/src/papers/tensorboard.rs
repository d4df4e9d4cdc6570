//! A TensorBoard events file from a job's steps: TFRecord frames around hand-written protobuf.
//! Pure: the same steps and start time give the same bytes.
//!
//! A frame is the body's length (u64), its masked CRC-32C (u32), the body, and the body's masked
//! CRC-32C (u32), all little-endian. A body is an `Event { 1: wall_time double, 2: step int64, 3:
//! file_version string, 5: summary }` with `Summary { 1: repeated Value { 1: tag string, 2:
//! simple_value float } }`.

use togi_proto::trainer::v1::Step;

/// Returns a whole events file: each step's figures under `train/`, at `start_seconds` (Unix time)
/// plus the time that the steps before it took.
#[must_use]
pub fn events_file(start_seconds: f64, steps: &[(f64, Step)]) -> Vec<u8> {
    let mut file = Vec::new();
    let mut version = Vec::new();
    put_double(&mut version, 1, start_seconds);
    put_bytes(&mut version, 3, b"brain.Event:2");
    put_record(&mut file, &version);
    for (seconds, step) in steps {
        let figures = [
            ("train/loss", step.loss),
            ("train/grad_norm", step.gradient_norm),
            ("train/learning_rate", step.learning_rate),
            ("train/epoch", step.epoch),
            ("train/tokens_per_second", step.tokens_per_second),
        ];
        let mut summary = Vec::new();
        for (tag, figure) in figures {
            let mut value = Vec::new();
            put_bytes(&mut value, 1, tag.as_bytes());
            put_float(&mut value, 2, figure);
            put_bytes(&mut summary, 1, &value);
        }
        let mut event = Vec::new();
        put_double(&mut event, 1, start_seconds + seconds);
        put_tag(&mut event, 2, 0);
        put_varint(&mut event, step.step);
        put_bytes(&mut event, 5, &summary);
        put_record(&mut file, &event);
    }
    file
}

fn put_record(file: &mut Vec<u8>, body: &[u8]) {
    let length = (body.len() as u64).to_le_bytes();
    file.extend_from_slice(&length);
    file.extend_from_slice(&masked_crc(&length).to_le_bytes());
    file.extend_from_slice(body);
    file.extend_from_slice(&masked_crc(body).to_le_bytes());
}

/// TFRecord rotates and shifts a checksum, so that a checksum of data that holds checksums stays
/// useful.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
        .rotate_right(15)
        .wrapping_add(0xa282_ead8)
}

fn put_tag(out: &mut Vec<u8>, field: u64, wire_type: u64) {
    put_varint(out, field << 3 | wire_type);
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_double(out: &mut Vec<u8>, field: u64, value: f64) {
    put_tag(out, field, 1);
    out.extend_from_slice(&value.to_le_bytes());
}

fn put_float(out: &mut Vec<u8>, field: u64, value: f64) {
    put_tag(out, field, 5);
    out.extend_from_slice(&(value as f32).to_le_bytes());
}

fn put_bytes(out: &mut Vec<u8>, field: u64, value: &[u8]) {
    put_tag(out, field, 2);
    put_varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads the frames back by the format's own rule.
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
