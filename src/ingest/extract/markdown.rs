//! Writes blocks as Markdown: what HTML and DOCX have in common.

use std::ops::Range;

use super::{Extracted, Fault, MAX_TEXT_BYTES, too_long};

/// A cell spans no more rows or columns than this.
const MAX_SPAN: usize = 100;
/// A row has no more cells than this, spanned ones included.
const MAX_COLUMNS: usize = 200;

/// What a block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Block {
    Paragraph,
    /// Of level 1 to 6.
    Heading(u8),
    /// In a list nested so deep, from 0; with its number in a numbered list.
    Item(usize, Option<usize>),
    Quote,
}

/// Text on one line, or on lines that belong together.
#[derive(Debug, Clone, Default)]
struct Inline {
    text: String,
    hidden: Vec<Range<usize>>,
    space: bool,
}

impl Inline {
    fn push(&mut self, text: &str, hidden: bool) {
        for c in text.chars() {
            if c.is_whitespace() && c != '\u{3000}' {
                self.space = true;
                continue;
            }
            if std::mem::take(&mut self.space) && !self.text.is_empty() && !self.text.ends_with('\n') {
                self.text.push(' ');
            }
            let from = self.text.len();
            self.text.push(c);
            if hidden {
                mark(&mut self.hidden, from..self.text.len());
            }
        }
    }

    fn line_break(&mut self) {
        self.space = false;
        if !self.text.is_empty() {
            self.text.push('\n');
        }
    }

    fn is_empty(&self) -> bool {
        self.text.trim().is_empty()
    }
}

/// Adds a range, joined to the last where only a space lies between.
fn mark(ranges: &mut Vec<Range<usize>>, range: Range<usize>) {
    match ranges.last_mut() {
        Some(last) if range.start <= last.end + 1 => last.end = range.end,
        _ => ranges.push(range),
    }
}

#[derive(Debug, Clone, Default)]
struct Cell {
    inline: Inline,
    rows: usize,
    columns: usize,
    /// The cell above goes on here.
    continues: bool,
}

#[derive(Debug, Default)]
struct Table {
    rows: Vec<Vec<Cell>>,
    in_cell: bool,
    /// Whether its first row is said to be the head of its columns, and no cell of it not to be.
    headed: Option<bool>,
}

/// Collects blocks.
#[derive(Debug, Default)]
pub(super) struct MarkdownWriter {
    done: Extracted,
    block: Option<Block>,
    inline: Inline,
    /// The outermost table; tables within its cells become text of the cell.
    table: Option<Table>,
    nested: usize,
    last: Option<Block>,
}

impl MarkdownWriter {
    /// Adds text to the block that is open; white space counts as one space.
    pub(super) fn text(&mut self, text: &str, hidden: bool) -> Result<(), Fault> {
        let inline = self.target();
        inline.push(text, hidden);
        let waiting = inline.text.len();
        if self.done.text.len() + waiting > MAX_TEXT_BYTES {
            return Err(too_long());
        }
        Ok(())
    }

    /// Adds superscript text: `10^9` must not become `109`.
    pub(super) fn superscript(&mut self, text: &str, hidden: bool) -> Result<(), Fault> {
        let inline = self.target();
        let number = text.trim_start().starts_with(|c: char| c.is_ascii_digit() || "+-−".contains(c));
        if number && inline.text.ends_with(char::is_alphanumeric) {
            inline.push("^", hidden);
        }
        self.text(text, hidden)
    }

    /// Breaks the line within the block.
    pub(super) fn line_break(&mut self) {
        let in_cell = self.table.is_some();
        let inline = self.target();
        if in_cell { inline.space = true } else { inline.line_break() }
    }

    /// Ends the block that is open and starts one of a kind.
    pub(super) fn start(&mut self, block: Block) {
        if self.table.is_some() {
            self.target().space = true;
        } else {
            self.flush();
            self.block = Some(block);
        }
    }

    /// Ends the block that is open.
    pub(super) fn end(&mut self) {
        self.start(Block::Paragraph);
    }

    pub(super) fn start_table(&mut self) {
        if self.table.is_some() {
            self.nested += 1;
        } else {
            self.flush();
            self.table = Some(Table::default());
        }
    }

    pub(super) fn start_row(&mut self) {
        let outermost = self.nested == 0;
        match &mut self.table {
            Some(table) if outermost => table.rows.push(Vec::new()),
            Some(_) => self.target().space = true,
            None => self.end(),
        }
    }

    /// Says whether the cell that starts next, or all of the row that is open, heads columns.
    pub(super) fn head(&mut self, heads: bool) {
        if let (Some(table), 0) = (&mut self.table, self.nested)
            && table.rows.len() <= 1
        {
            table.headed = Some(heads && table.headed.unwrap_or(true));
        }
    }

    /// Starts a cell that spans so many rows and columns.
    pub(super) fn start_cell(&mut self, rows: usize, columns: usize) {
        self.cell(Cell {
            rows: rows.clamp(1, MAX_SPAN),
            columns: columns.clamp(1, MAX_SPAN),
            ..Cell::default()
        });
    }

    /// Starts a cell that the one above spans.
    pub(super) fn continue_cell(&mut self, columns: usize) {
        self.cell(Cell { rows: 1, columns: columns.clamp(1, MAX_SPAN), continues: true, ..Cell::default() });
    }

    fn cell(&mut self, cell: Cell) {
        let outermost = self.nested == 0;
        match &mut self.table {
            Some(table) if outermost => {
                if table.rows.is_empty() {
                    table.rows.push(Vec::new());
                }
                if let Some(row) = table.rows.last_mut().filter(|row| row.len() < MAX_COLUMNS) {
                    row.push(cell);
                }
                table.in_cell = true;
            }
            Some(_) => self.target().space = true,
            None => self.end(),
        }
    }

    pub(super) fn end_cell(&mut self) {
        if let (Some(table), 0) = (&mut self.table, self.nested) {
            table.in_cell = false;
        }
    }

    pub(super) fn end_table(&mut self) -> Result<(), Fault> {
        if self.nested > 0 {
            self.nested -= 1;
            return Ok(());
        }
        let Some(table) = self.table.take() else { return Ok(()) };
        // A caption, which stands above.
        self.flush();
        let mut rows = grid(table.rows);
        let width = rows.iter().map(Vec::len).max().unwrap_or(0);
        // In Markdown a table has a head: where the source names none, an empty one, so that no row of facts is taken for it.
        if width > 1 && table.headed != Some(true) {
            rows.insert(0, Vec::new());
        }
        for (n, row) in rows.iter().enumerate() {
            if width == 1 {
                // A table of one column is a box around text.
                self.block = Some(Block::Paragraph);
                self.inline = row.first().cloned().unwrap_or_default();
                self.flush();
                continue;
            }
            self.separate(if n == 0 { "\n\n" } else { "\n" });
            for column in 0..width {
                self.done.text.push_str("| ");
                if let Some(inline) = row.get(column) {
                    self.append(inline);
                }
                self.done.text.push(' ');
            }
            self.done.text.push('|');
            if n == 0 {
                self.done.text.push('\n');
                self.done.text.push_str(&"| --- ".repeat(width));
                self.done.text.push('|');
            }
            if self.done.text.len() > MAX_TEXT_BYTES {
                return Err(too_long());
            }
        }
        self.last = Some(Block::Paragraph);
        Ok(())
    }

    /// All that was written.
    pub(super) fn finish(mut self) -> Result<Extracted, Fault> {
        self.nested = 0;
        self.end_table()?;
        self.flush();
        Ok(self.done)
    }

    fn target(&mut self) -> &mut Inline {
        match &mut self.table {
            Some(table) => match table.rows.last_mut().and_then(|row| row.last_mut()) {
                Some(cell) if table.in_cell => &mut cell.inline,
                // A caption, or text that stands between cells.
                _ => &mut self.inline,
            },
            None => &mut self.inline,
        }
    }

    fn separate(&mut self, with: &str) {
        if !self.done.text.is_empty() {
            self.done.text.push_str(with);
        }
    }

    fn flush(&mut self) {
        let inline = std::mem::take(&mut self.inline);
        let block = self.block.take().unwrap_or(Block::Paragraph);
        if inline.is_empty() {
            return;
        }
        let tight = matches!((self.last, block), (Some(Block::Item(..)), Block::Item(..)));
        self.separate(if tight { "\n" } else { "\n\n" });
        match block {
            // What looks like a heading or a list and is none must not become one.
            Block::Paragraph if inline.text.starts_with(['#', '>', '|', '`', '~', '=']) => {
                self.done.text.push('\\');
            }
            Block::Paragraph => {}
            Block::Heading(level) => {
                self.done.text.push_str(&"#".repeat(usize::from(level.clamp(1, 6))));
                self.done.text.push(' ');
            }
            Block::Item(depth, number) => {
                self.done.text.push_str(&"  ".repeat(depth.min(8)));
                match number {
                    Some(n) => self.done.text.push_str(&format!("{n}. ")),
                    None => self.done.text.push_str("- "),
                }
            }
            Block::Quote => self.done.text.push_str("> "),
        }
        match block {
            Block::Heading(_) => {
                let one_line =
                    Inline { text: inline.text.replace('\n', " "), hidden: inline.hidden, space: false };
                self.append(&one_line);
            }
            _ => self.append(&inline),
        }
        self.last = Some(block);
    }

    fn append(&mut self, inline: &Inline) {
        let at = self.done.text.len();
        self.done.text.push_str(&inline.text);
        for range in &inline.hidden {
            mark(&mut self.done.hidden, at + range.start..at + range.end);
        }
    }
}

/// Gives each spanned place its cell, so that a row says by itself what it is about.
fn grid(rows: Vec<Vec<Cell>>) -> Vec<Vec<Inline>> {
    // What reaches down into the next rows, by column.
    let mut below: Vec<Option<(usize, Inline)>> = Vec::new();
    let mut out: Vec<Vec<Inline>> = Vec::new();
    for row in rows {
        let mut line: Vec<Inline> = Vec::new();
        let from_above = |line: &mut Vec<Inline>, below: &mut Vec<Option<(usize, Inline)>>| {
            while let Some(Some((left, inline))) = below.get_mut(line.len()) {
                *left -= 1;
                line.push(inline.clone());
                if *left == 0 {
                    below[line.len() - 1] = None;
                }
            }
        };
        for cell in row {
            from_above(&mut line, &mut below);
            if line.len() >= MAX_COLUMNS {
                break;
            }
            let inline = if cell.continues {
                out.last().and_then(|above| above.get(line.len())).cloned().unwrap_or_default()
            } else {
                escaped(cell.inline)
            };
            for column in 0..cell.columns {
                let at = line.len();
                if cell.rows > 1 {
                    below.resize(below.len().max(at + 1), None);
                    below[at] = Some((cell.rows - 1, inline.clone()));
                }
                // A cell over several columns stands in the first.
                line.push(if column == 0 { inline.clone() } else { Inline::default() });
            }
        }
        from_above(&mut line, &mut below);
        if line.iter().any(|inline| !inline.is_empty()) {
            out.push(line);
        }
    }
    out
}

/// A cell on one line, its bars escaped.
fn escaped(inline: Inline) -> Inline {
    if !inline.text.contains(['|', '\n']) {
        return inline;
    }
    let mut out = Inline::default();
    let mut hidden = inline.hidden.iter().peekable();
    for (at, c) in inline.text.char_indices() {
        while hidden.peek().is_some_and(|range| range.end <= at) {
            hidden.next();
        }
        let is_hidden = hidden.peek().is_some_and(|range| range.start <= at);
        let from = out.text.len();
        match c {
            '|' => out.text.push_str("\\|"),
            '\n' => out.text.push(' '),
            c => out.text.push(c),
        }
        if is_hidden {
            mark(&mut out.hidden, from..out.text.len());
        }
    }
    out
}
