//! Progress on standard error: a bar on a terminal, an occasional plain line elsewhere, nothing
//! with `--quiet`.

use std::io::Write;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Time between plain lines.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// How progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Not at all.
    None,
    /// A line every few seconds.
    Lines,
    /// A bar that is redrawn.
    Bar {
        /// With colour.
        colour: bool,
    },
}

/// What a position counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Things: steps, records, questions.
    Count,
    /// Bytes, written in MiB.
    Bytes,
}

/// The progress of one task; it disappears when dropped.
#[derive(Debug)]
pub struct Progress {
    what: String,
    style: Style,
    bar: ProgressBar,
    unit: Unit,
    written: Instant,
    length: u64,
}

impl Progress {
    /// Starts showing a task of unknown length.
    pub fn new(style: Style, what: &str) -> Self {
        let bar = match style {
            Style::Bar { .. } => {
                ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(8))
            }
            _ => ProgressBar::hidden(),
        };
        let mut progress = Self {
            what: what.to_owned(),
            style,
            bar,
            unit: Unit::Count,
            written: Instant::now(),
            length: 0,
        };
        progress.bar.set_prefix(progress.what.clone());
        progress.set_template();
        progress.bar.enable_steady_tick(Duration::from_millis(125));
        progress.write_line("");
        progress
    }

    /// Sets the task's length.
    pub fn set_length(&mut self, length: u64, unit: Unit) {
        if (self.length, self.unit) == (length, unit) {
            return;
        }
        (self.length, self.unit) = (length, unit);
        self.bar.set_length(length);
        self.set_template();
    }

    /// Sets the position and the message.
    pub fn set(&mut self, position: u64, message: &str) {
        self.bar.set_position(position);
        self.bar.set_message(message.to_owned());
        if self.written.elapsed() >= LINE_EVERY {
            self.write_line(message);
        }
    }

    /// Removes the bar, so that other text can follow.
    pub fn finish(self) {
        self.bar.finish_and_clear();
    }

    /// Runs a closure that writes to the terminal, with the bar hidden.
    pub fn suspend<T>(&self, write: impl FnOnce() -> T) -> T {
        self.bar.suspend(write)
    }

    fn set_template(&self) {
        let Style::Bar { colour } = self.style else {
            return;
        };
        let bar = if colour {
            "{bar:24.cyan/dim}"
        } else {
            "{bar:24}"
        };
        let template = match (self.length, self.unit) {
            (0, _) => "{spinner} {prefix}  {elapsed}  {wide_msg}".to_owned(),
            (_, Unit::Count) => {
                format!("{{prefix}} {bar} {{pos}}/{{len}}  {{elapsed}}  {{wide_msg}}")
            }
            (_, Unit::Bytes) => {
                format!(
                    "{{prefix}} {bar} {{binary_bytes}}/{{binary_total_bytes}}  {{elapsed}}  {{wide_msg}}"
                )
            }
        };
        if let Ok(style) = ProgressStyle::with_template(&template) {
            self.bar.set_style(style.progress_chars("━━─"));
        }
    }

    fn write_line(&mut self, message: &str) {
        self.written = Instant::now();
        if self.style != Style::Lines {
            return;
        }
        let position = self.bar.position();
        let done = match (self.length, self.unit) {
            (0, _) => String::new(),
            (length, Unit::Count) => format!(" {position}/{length}"),
            (length, Unit::Bytes) => format!(" {} of {}", mebibytes(position), mebibytes(length)),
        };
        let message = if message.is_empty() {
            String::new()
        } else {
            format!("  {message}")
        };
        let _ = writeln!(std::io::stderr().lock(), "{}{done}{message}", self.what);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Writes a size for people.
pub fn mebibytes(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
        _ => format!("{:.1} GiB", bytes as f64 / 1_073_741_824.0),
    }
}

/// Writes a duration in seconds for people.
pub fn seconds(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return String::new();
    }
    match seconds {
        ..10.0 => format!("{seconds:.1} s"),
        ..120.0 => format!("{seconds:.0} s"),
        ..7200.0 => format!("{:.0} min", seconds / 60.0),
        _ => format!("{:.1} h", seconds / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_read_well() {
        assert_eq!(mebibytes(512), "512 B");
        assert_eq!(mebibytes(2_621_440), "2.5 MiB");
        assert_eq!(seconds(3.24), "3.2 s");
        assert_eq!(seconds(95.0), "95 s");
        assert_eq!(seconds(600.0), "10 min");
        assert_eq!(seconds(f64::NAN), "");
    }
}
