//! Tables that fit the terminal.

use console::{Alignment, Style, Term};

/// The size of a terminal, characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Characters in a line.
    pub width: usize,
    /// Lines.
    pub height: usize,
}

impl Size {
    /// The size when standard output is no terminal, or its size is unknown.
    pub const DEFAULT: Self = Self {
        width: 80,
        height: 24,
    };

    /// The size of the terminal at standard output.
    pub fn of_stdout() -> Self {
        match Term::stdout().size_checked() {
            Some((height, width)) if height > 0 && width > 0 => Self {
                width: width.into(),
                height: height.into(),
            },
            _ => Self::DEFAULT,
        }
    }
}

/// A table with a header line and aligned columns.
pub struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
}

struct Column {
    name: &'static str,
    alignment: Alignment,
    shown: bool,
}

impl Table {
    /// Creates a table with these column names; a leading `>` aligns the column to the right, as for numbers.
    pub fn new(columns: &[&'static str]) -> Self {
        let header_style = Style::new().bold();
        let columns: Vec<_> = columns
            .iter()
            .map(|column| Column {
                name: column.trim_start_matches('>'),
                alignment: if column.starts_with('>') {
                    Alignment::Right
                } else {
                    Alignment::Left
                },
                shown: true,
            })
            .collect();
        let header = columns
            .iter()
            .map(|column| header_style.apply_to(column.name.to_uppercase()).to_string())
            .collect();
        Self {
            columns,
            rows: vec![header],
        }
    }

    /// Adds a row with one cell per column.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Leaves out columns until the table is at most `width` characters wide. `unimportant` has the names of the columns
    /// that may be left out, the first one first. Returns the names of those left out.
    pub fn fit(&mut self, width: usize, unimportant: &[&'static str]) -> Vec<&'static str> {
        let mut left_out = Vec::new();
        for name in unimportant {
            if self.width() <= width {
                break;
            }
            for column in self.columns.iter_mut().filter(|column| column.name == *name) {
                column.shown = false;
                left_out.push(*name);
            }
        }
        left_out
    }

    /// Formats the table, without a line break at the end.
    pub fn render(&self) -> String {
        let widths = self.widths();
        let lines = self.rows.iter().map(|row| {
            let cells = row.iter().zip(&widths).zip(&self.columns);
            let cells = cells
                .filter(|(_, column)| column.shown)
                .map(|((cell, width), column)| console::pad_str(cell, *width, column.alignment, None));
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    fn widths(&self) -> Vec<usize> {
        (0..self.columns.len())
            .map(|column| {
                let cells = self.rows.iter().filter_map(|row| row.get(column));
                cells
                    .map(|cell| console::measure_text_width(cell))
                    .max()
                    .unwrap_or(0)
            })
            .collect()
    }

    fn width(&self) -> usize {
        let widths = self.widths();
        let shown = widths
            .iter()
            .zip(&self.columns)
            .filter(|(_, column)| column.shown);
        shown.map(|(width, _)| width + 2).sum::<usize>().saturating_sub(2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let mut table = Table::new(&["name", ">count"]);
        table.row(["a".into(), "1".into()]);
        table.row(["longer".into(), "12,345".into()]);
        assert_eq!(
            console::strip_ansi_codes(&table.render()),
            "NAME     COUNT\na            1\nlonger  12,345"
        );
    }

    #[test]
    fn columns_are_left_out_by_rank_until_the_table_fits() {
        let mut table = Table::new(&["name", ">count", "note", ">rate"]);
        table.row(["a".into(), "1".into(), "something long".into(), "2".into()]);
        assert_eq!(table.fit(33, &["rate", "note"]), [""; 0]);
        assert_eq!(table.fit(32, &["rate", "note"]), ["rate"]);
        assert_eq!(table.fit(11, &["rate", "note"]), ["rate", "note"]);
        assert_eq!(
            console::strip_ansi_codes(&table.render()),
            "NAME  COUNT\na         1"
        );
    }
}
