//! Text tables for people, aligned by the columns of a terminal: Japanese characters take two.

use unicode_width::UnicodeWidthChar;

/// Rows under headings.
#[derive(Debug, Default)]
pub struct Table {
    headings: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Creates an empty table with its headings; the default has none.
    pub fn new(headings: &[&str]) -> Self {
        Self {
            headings: headings.iter().map(|&heading| heading.to_owned()).collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a row; line breaks in a cell become spaces.
    pub fn row<I: IntoIterator<Item = String>>(&mut self, cells: I) {
        let cells = cells.into_iter();
        let cells = cells.map(|cell| cell.replace(['\n', '\r', '\t'], " "));
        self.rows.push(cells.collect());
    }

    /// Returns the table's lines, with two spaces between columns; no line where there is no row.
    pub fn lines(&self) -> Vec<String> {
        if self.rows.is_empty() {
            return Vec::new();
        }
        let headings = Some(&self.headings).filter(|headings| !headings.is_empty());
        let rows: Vec<&Vec<String>> = headings.into_iter().chain(&self.rows).collect();
        let columns = rows.iter().map(|row| row.len()).max().unwrap_or(0);
        let width_of = |column: usize| {
            let cells = rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| width(cell)).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width_of).collect();
        rows.iter().map(|row| line(row, &widths)).collect()
    }
}

/// Returns a line for each name and value, with the values aligned; omits empty values.
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

/// Returns the columns that the text takes on a terminal.
pub fn width(text: &str) -> usize {
    text.chars().filter_map(UnicodeWidthChar::width).sum()
}

/// Pads a text with spaces to a width in columns.
pub fn pad(text: &str, columns: usize) -> String {
    let missing = columns.saturating_sub(width(text));
    format!("{text}{}", " ".repeat(missing))
}

/// Shortens a text to a width in columns; an ellipsis marks the cut.
pub fn shorten(text: &str, columns: usize) -> String {
    if width(text) <= columns {
        return text.to_owned();
    }
    let mut taken = 0;
    let mut short = String::new();
    for character in text.chars() {
        taken += character.width().unwrap_or(0);
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
