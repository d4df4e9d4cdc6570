//! Text tables for people: columns aligned by what a terminal shows, Japanese counted double.

/// Rows under a heading.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Starts a table with its headings.
    pub fn new(headings: &[&str]) -> Self {
        Self {
            rows: vec![headings.iter().map(|&heading| heading.to_owned()).collect()],
        }
    }

    /// Adds a row; a cell's line breaks become spaces.
    pub fn row<I: IntoIterator<Item = String>>(&mut self, cells: I) {
        self.rows.push(
            cells
                .into_iter()
                .map(|cell| cell.replace(['\n', '\r', '\t'], " "))
                .collect(),
        );
    }

    /// Whether only the headings are there.
    pub fn is_empty(&self) -> bool {
        self.rows.len() < 2
    }

    /// Returns the table's lines, columns two spaces apart.
    pub fn lines(&self) -> Vec<String> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns)
            .map(|column| {
                self.rows
                    .iter()
                    .filter_map(|row| row.get(column))
                    .map(|cell| width(cell))
                    .max()
            })
            .map(Option::unwrap_or_default)
            .collect();
        self.rows.iter().map(|row| line(row, &widths)).collect()
    }
}

/// Returns the names and values of one thing, a line each, values aligned; empty values are left out.
pub fn fields(pairs: &[(&str, String)]) -> Vec<String> {
    let shown: Vec<_> = pairs
        .iter()
        .filter(|(_, value)| !value.is_empty())
        .collect();
    let widest = shown.iter().map(|(name, _)| width(name)).max().unwrap_or(0);
    shown
        .iter()
        .map(|(name, value)| format!("{}  {value}", pad(name, widest)))
        .collect()
}

/// Returns the columns that a terminal needs for the text.
pub fn width(text: &str) -> usize {
    text.chars()
        .map(|character| {
            if is_wide(character) {
                2
            } else {
                usize::from(!character.is_control())
            }
        })
        .sum()
}

/// Fills up with spaces to a width in columns.
pub fn pad(text: &str, columns: usize) -> String {
    let missing = columns.saturating_sub(width(text));
    format!("{text}{}", " ".repeat(missing))
}

/// Shortens to a width in columns, the cut marked by an ellipsis.
pub fn shorten(text: &str, columns: usize) -> String {
    if width(text) <= columns {
        return text.to_owned();
    }
    let mut taken = 0;
    let mut short = String::new();
    for character in text.chars() {
        taken += if is_wide(character) { 2 } else { 1 };
        if taken >= columns {
            break;
        }
        short.push(character);
    }
    short + "…"
}

fn line(row: &[String], widths: &[usize]) -> String {
    let cells: Vec<_> = row
        .iter()
        .zip(widths)
        .map(|(cell, &columns)| pad(cell, columns))
        .collect();
    cells.join("  ").trim_end().to_owned()
}

/// The blocks of East Asian Wide and Fullwidth characters that Japanese text uses, and emoji.
fn is_wide(character: char) -> bool {
    matches!(u32::from(character),
        0x1100..=0x115F | 0x2E80..=0x303E | 0x3041..=0xA4CF | 0xAC00..=0xD7A3 | 0xF900..=0xFAFF
        | 0xFE30..=0xFE6F | 0xFF00..=0xFF60 | 0xFFE0..=0xFFE6 | 0x1F300..=0x1FAFF | 0x20000..=0x3FFFD)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_with_japanese() {
        let mut table = Table::new(&["NAME", "ANSWER"]);
        table.row(["木の実".to_owned(), "はい".to_owned()]);
        table.row(["ab".to_owned(), "x\ny".to_owned()]);
        assert_eq!(
            table.lines(),
            ["NAME    ANSWER", "木の実  はい", "ab      x y"]
        );
    }

    #[test]
    fn shortening_counts_columns() {
        assert_eq!(shorten("abcdef", 6), "abcdef");
        assert_eq!(shorten("abcdefg", 6), "abcde…");
        assert!(width(&shorten("東京都千代田区", 7)) <= 7);
    }

    #[test]
    fn empty_fields_are_left_out() {
        let lines = fields(&[
            ("a", "1".into()),
            ("bbb", String::new()),
            ("cc", "2".into()),
        ]);
        assert_eq!(lines, ["a   1", "cc  2"]);
    }
}
