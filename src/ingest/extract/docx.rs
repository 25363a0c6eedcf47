//! Word documents to Markdown: the parts of Office Open XML (ECMA-376) that carry text.

use std::collections::HashMap;
use std::io::{Cursor, Read as _};

use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};

use super::markdown::{Block, MarkdownWriter};
use super::{Extracted, Fault};

/// No part of the document is larger than this when unpacked.
const MAX_PART_BYTES: u64 = 64 << 20;
/// Elements nest no deeper than this.
const MAX_DEPTH: usize = 512;

type Archive<'a> = zip::ZipArchive<Cursor<&'a [u8]>>;

/// Reads a document: its body, then its footnotes.
pub(super) fn extract(bytes: &[u8]) -> Result<Extracted, Fault> {
    let mut archive = zip::ZipArchive::new(Cursor::new(bytes)).map_err(|_| {
        Fault::new("not a Word document (.docx); open it in Word and save it as one, or as PDF")
    })?;
    let body = part(&mut archive, "word/document.xml")?.ok_or_else(|| {
        Fault::new("a package without word/document.xml, so no Word document; save it as .docx or as PDF")
    })?;
    let styles = match part(&mut archive, "word/styles.xml")? {
        Some(styles) => read_styles(&styles)?,
        None => HashMap::new(),
    };
    let mut walk = Walk::new(styles);
    walk.part(&body)?;
    if let Some(notes) = part(&mut archive, "word/footnotes.xml")? {
        walk.writer.end();
        walk.part(&notes)?;
    }
    let mut done = walk.writer.finish()?;
    if walk.changes {
        done.warnings.push("holds tracked changes; it is read as if all were accepted".to_owned());
    }
    Ok(done)
}

/// Unpacks a part. Its size is bounded while it is unpacked: what the package says of it proves nothing.
fn part(archive: &mut Archive<'_>, name: &str) -> Result<Option<Vec<u8>>, Fault> {
    let file = match archive.by_name(name) {
        Ok(file) => file,
        Err(zip::result::ZipError::FileNotFound) => return Ok(None),
        Err(error) => {
            return Err(Fault::new(format!("{name} cannot be unpacked: {error}; save the document again")));
        }
    };
    let mut bytes = Vec::new();
    file.take(MAX_PART_BYTES + 1).read_to_end(&mut bytes).map_err(|error| {
        Fault::new(format!("{name} cannot be unpacked: {error}; save the document again"))
    })?;
    if bytes.len() as u64 > MAX_PART_BYTES {
        let mib = MAX_PART_BYTES >> 20;
        return Err(Fault::new(format!("{name} unpacks to more than {mib} MiB; split the document")));
    }
    Ok(Some(bytes))
}

fn xml(error: &quick_xml::Error) -> Fault {
    Fault::new(format!("its XML is damaged: {error}; save the document again"))
}

/// The value of an attribute, by the name after its prefix.
fn attribute(element: &BytesStart<'_>, name: &str) -> Option<String> {
    let found = element.attributes().flatten().find(|a| a.key.local_name().as_ref() == name)?;
    found.normalized_value(quick_xml::XmlVersion::Implicit1_0).ok().map(std::borrow::Cow::into_owned)
}

/// What a style makes of a paragraph.
#[derive(Debug, Clone, Copy, Default)]
struct Style {
    heading: Option<u8>,
    item: bool,
}

/// Styles that are headings, and those of lists. Their ids are whatever the language of the program made them; what tells is the
/// outline level, or the built-in name, which is English in every language.
fn read_styles(styles: &[u8]) -> Result<HashMap<String, Style>, Fault> {
    let mut found: HashMap<String, Style> = HashMap::new();
    let mut id: Option<String> = None;
    let mut reader = Reader::from_reader(styles);
    loop {
        match reader.read_event().map_err(|e| xml(&e))? {
            Event::Start(e) if e.local_name().as_ref() == "style" => id = attribute(&e, "styleId"),
            Event::End(e) if e.local_name().as_ref() == "style" => id = None,
            Event::Start(e) | Event::Empty(e) => {
                let Some(id) = &id else { continue };
                let value = || attribute(&e, "val").unwrap_or_default();
                let heading = match e.local_name().as_ref() {
                    "outlineLvl" => value().parse::<u8>().ok().filter(|l| *l < 9).map(|l| l + 1),
                    "name" => match value().to_ascii_lowercase().as_str() {
                        "title" => Some(1),
                        name => name.strip_prefix("heading ").and_then(|level| level.trim().parse().ok()),
                    },
                    "numPr" => {
                        found.entry(id.clone()).or_default().item = true;
                        None
                    }
                    _ => None,
                };
                if let Some(level) = heading {
                    found.entry(id.clone()).or_default().heading.get_or_insert(level);
                }
            }
            Event::Eof => return Ok(found),
            _ => {}
        }
    }
}

/// What a run of text looks like.
#[derive(Debug, Clone, Copy, Default)]
struct Look {
    vanished: bool,
    white: bool,
    shaded: bool,
    tiny: bool,
    raised: bool,
}

impl Look {
    fn hidden(self) -> bool {
        self.vanished || self.tiny || (self.white && !self.shaded)
    }
}

struct Walk {
    writer: MarkdownWriter,
    styles: HashMap<String, Style>,
    changes: bool,
    depth: usize,
    /// Elements that are open and whose content is shown elsewhere already.
    skipped: usize,
    in_text: bool,
    in_properties: bool,
    look: Look,
    item: Option<usize>,
    heading: Option<u8>,
    /// Cells that are open, innermost last, until their properties are known: columns, whether the cell above goes on, shading.
    cells: Vec<Cell>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Cell {
    columns: usize,
    continues: bool,
    shaded: bool,
    started: bool,
}

impl Walk {
    fn new(styles: HashMap<String, Style>) -> Self {
        Self {
            writer: MarkdownWriter::default(),
            styles,
            changes: false,
            depth: 0,
            skipped: 0,
            in_text: false,
            in_properties: false,
            look: Look::default(),
            item: None,
            heading: None,
            cells: Vec::new(),
        }
    }

    fn part(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        let mut reader = Reader::from_reader(bytes);
        loop {
            match reader.read_event().map_err(|e| xml(&e))? {
                Event::Start(e) => {
                    self.depth += 1;
                    if self.depth > MAX_DEPTH {
                        return Err(Fault::new(format!(
                            "its XML nests deeper than {MAX_DEPTH}; save the document again"
                        )));
                    }
                    self.open(&e)?;
                }
                Event::Empty(e) => {
                    self.open(&e)?;
                    self.close(e.local_name().as_ref())?;
                }
                Event::End(e) => {
                    self.depth = self.depth.saturating_sub(1);
                    self.close(e.local_name().as_ref())?;
                }
                Event::Text(text) if self.in_text && self.skipped == 0 => {
                    self.text(&text)?;
                }
                Event::GeneralRef(reference) if self.in_text && self.skipped == 0 => {
                    let resolved = match reference.resolve_char_ref().ok().flatten() {
                        Some(c) => c.to_string(),
                        None => match &*reference {
                            "amp" => "&".to_owned(),
                            "lt" => "<".to_owned(),
                            "gt" => ">".to_owned(),
                            "quot" => "\"".to_owned(),
                            "apos" => "'".to_owned(),
                            // Word writes no others; expanding what a document defines is how such files explode.
                            _ => "\u{fffd}".to_owned(),
                        },
                    };
                    self.text(&resolved)?;
                }
                Event::Eof => {
                    self.depth = 0;
                    return Ok(());
                }
                _ => {}
            }
        }
    }

    fn text(&mut self, text: &str) -> Result<(), Fault> {
        let shaded = self.look.shaded || self.cells.last().is_some_and(|cell| cell.shaded);
        let hidden = Look { shaded, ..self.look }.hidden();
        // A paragraph's white space stands as it is written, and does not come from indented XML.
        if self.look.raised { self.writer.superscript(text, hidden) } else { self.writer.text(text, hidden) }
    }

    fn open(&mut self, e: &BytesStart<'_>) -> Result<(), Fault> {
        let name = e.local_name();
        let name = name.as_ref();
        if self.skipped > 0 || matches!(name, "Fallback" | "delText" | "instrText") {
            self.skipped += 1;
            return Ok(());
        }
        let value = || attribute(e, "val");
        // Word writes a property that is off as one with the value 0 or false.
        let on = || !value().is_some_and(|v| matches!(v.as_str(), "0" | "false" | "none" | "off"));
        let number = || value().and_then(|v| v.parse::<usize>().ok());
        match name {
            "ins" | "del" if !self.in_properties => self.changes = true,
            "tbl" => {
                self.end_paragraph();
                self.writer.start_table();
            }
            "tr" => self.writer.start_row(),
            "tblHeader" if on() => self.writer.head(true),
            "tc" => self.cells.push(Cell { columns: 1, ..Cell::default() }),
            "gridSpan" => self.with_cell(|cell, n| cell.columns = n.unwrap_or(1), number()),
            "vMerge" => {
                let continues = value().is_none_or(|v| v == "continue");
                self.with_cell(|cell, _| cell.continues = continues, None);
            }
            "shd" => {
                let shaded = attribute(e, "fill").is_some_and(|fill| !is_white(&fill) && fill != "auto");
                match self.cells.last_mut().filter(|cell| !cell.started) {
                    Some(cell) => cell.shaded |= shaded,
                    None => self.look.shaded |= shaded,
                }
            }
            "p" => {
                self.start_cell();
                self.item = None;
                self.heading = None;
                self.look = Look::default();
                self.writer.end();
            }
            "pPr" | "rPr" | "tcPr" | "tblPr" | "trPr" | "sectPr" => self.in_properties = true,
            "pStyle" => {
                let style = value().and_then(|id| self.styles.get(&id).copied()).unwrap_or_default();
                self.heading = style.heading;
                self.item = style.item.then_some(0);
            }
            "outlineLvl" => self.heading = number().filter(|l| *l < 9).map(|l| l as u8 + 1),
            "ilvl" => self.item = Some(number().unwrap_or(0)),
            "numId" => self.item = if number() == Some(0) { None } else { self.item.or(Some(0)) },
            "r" => {
                self.begin_paragraph();
                self.look = Look::default();
            }
            "vanish" | "webHidden" | "specVanish" => self.look.vanished |= on(),
            "color" => self.look.white = value().is_some_and(|v| is_white(&v)),
            "highlight" => self.look.shaded |= value().is_some_and(|v| v != "none" && v != "white"),
            // In half points.
            "sz" => self.look.tiny = number().is_some_and(|n| n <= 2),
            "vertAlign" => self.look.raised = value().is_some_and(|v| v == "superscript"),
            "t" => self.in_text = true,
            "tab" if !self.in_properties => self.text("\t")?,
            "br" | "cr" => self.writer.line_break(),
            "noBreakHyphen" => self.text("-")?,
            _ => {}
        }
        Ok(())
    }

    fn with_cell(&mut self, set: impl FnOnce(&mut Cell, Option<usize>), n: Option<usize>) {
        if let Some(cell) = self.cells.last_mut() {
            set(cell, n);
        }
    }

    /// A cell's properties stand before its first paragraph.
    fn start_cell(&mut self) {
        let Some(cell) = self.cells.last_mut().filter(|cell| !cell.started) else { return };
        cell.started = true;
        if cell.continues {
            self.writer.continue_cell(cell.columns);
        } else {
            self.writer.start_cell(1, cell.columns);
        }
    }

    /// A paragraph's properties stand before its first run.
    fn begin_paragraph(&mut self) {
        if let Some(level) = self.heading.take() {
            self.writer.start(Block::Heading(level));
            self.item = None;
        } else if let Some(depth) = self.item.take() {
            self.writer.start(Block::Item(depth, None));
        }
    }

    fn end_paragraph(&mut self) {
        self.heading = None;
        self.item = None;
        self.writer.end();
    }

    fn close(&mut self, name: &str) -> Result<(), Fault> {
        if self.skipped > 0 {
            self.skipped -= 1;
            return Ok(());
        }
        match name {
            "tbl" => self.writer.end_table()?,
            "tc" => {
                self.start_cell();
                self.cells.pop();
                self.writer.end_cell();
            }
            "p" => self.end_paragraph(),
            "pPr" | "rPr" | "tcPr" | "tblPr" | "trPr" | "sectPr" => self.in_properties = false,
            "t" => self.in_text = false,
            _ => {}
        }
        Ok(())
    }
}

fn is_white(color: &str) -> bool {
    color.eq_ignore_ascii_case("FFFFFF") || color.eq_ignore_ascii_case("white")
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::Write as _;

    use super::*;

    /// A package with a body, and styles whose heading is called as in a Japanese Word.
    pub(crate) fn package(body: &str) -> Vec<u8> {
        let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
        let options = zip::write::SimpleFileOptions::default();
        let space = "xmlns:w=\"http://schemas.openxmlformats.org/wordprocessingml/2006/main\"";
        let styles = format!(
            "<w:styles {space}><w:style w:styleId=\"2\"><w:name w:val=\"heading 2\"/></w:style></w:styles>"
        );
        zip.start_file("word/styles.xml", options).unwrap();
        zip.write_all(styles.as_bytes()).unwrap();
        zip.start_file("word/document.xml", options).unwrap();
        write!(zip, "<?xml version=\"1.0\"?><w:document {space}><w:body>{body}</w:body></w:document>")
            .unwrap();
        zip.finish().unwrap().into_inner()
    }

    fn run(text: &str) -> String {
        format!("<w:r><w:t xml:space=\"preserve\">{text}</w:t></w:r>")
    }

    #[test]
    fn headings_lists_tables_and_powers() {
        let cell =
            |more: &str, text: &str| format!("<w:tc><w:tcPr>{more}</w:tcPr><w:p>{}</w:p></w:tc>", run(text));
        let body = [
            format!("<w:p><w:pPr><w:pStyle w:val=\"2\"/></w:pPr>{}</w:p>", run("降圧目標")),
            format!("<w:p>{}{}</w:p>", run("Below 130/80 "), run("mmHg &amp; no lower.")),
            format!("<w:p><w:pPr><w:numPr><w:ilvl w:val=\"0\"/><w:numId w:val=\"3\"/></w:numPr></w:pPr>{}</w:p>", run("first")),
            format!("<w:p><w:pPr><w:numPr><w:ilvl w:val=\"1\"/><w:numId w:val=\"3\"/></w:numPr></w:pPr>{}</w:p>", run("second")),
            format!(
                "<w:tbl><w:tr>{}{}</w:tr><w:tr>{}{}</w:tr></w:tbl>\
                 <w:tbl><w:tr><w:trPr><w:tblHeader/></w:trPr>{}{}</w:tr><w:tr>{}{}</w:tr></w:tbl>",
                cell("<w:vMerge w:val=\"restart\"/>", "ACE"),
                cell("", "ramipril"),
                cell("<w:vMerge/>", ""),
                cell("", "enalapril"),
                cell("", "Drug"),
                cell("", "Dose"),
                cell("", "ramipril"),
                cell("", "5 mg"),
            ),
            "<w:p><w:r><w:t>10</w:t></w:r><w:r><w:rPr><w:vertAlign w:val=\"superscript\"/></w:rPr><w:t>9</w:t></w:r></w:p>".to_owned(),
        ];
        let read = extract(&package(&body.concat())).unwrap();
        let want = "## 降圧目標\n\nBelow 130/80 mmHg & no lower.\n\n- first\n  - second\n\n|  |  |\n| --- | --- |\n\
            | ACE | ramipril |\n| ACE | enalapril |\n\n| Drug | Dose |\n| --- | --- |\n| ramipril | 5 mg |\n\n10^9";
        assert_eq!(read.text, want);
        assert!(read.hidden.is_empty() && read.warnings.is_empty());
    }

    #[test]
    fn what_is_not_seen_is_marked_and_changes_are_told() {
        for look in ["<w:vanish/>", "<w:color w:val=\"FFFFFF\"/>", "<w:sz w:val=\"2\"/>"] {
            let body =
                format!("<w:p>{}<w:r><w:rPr>{look}</w:rPr><w:t>secret</w:t></w:r></w:p>", run("seen "));
            let read = extract(&package(&body)).unwrap();
            assert_eq!(
                read.hidden.iter().map(|r| &read.text[r.clone()]).collect::<String>(),
                "secret",
                "{look}"
            );
        }
        let read =
            extract(&package("<w:p><w:r><w:rPr><w:vanish w:val=\"0\"/></w:rPr><w:t>seen</w:t></w:r></w:p>"))
                .unwrap();
        assert!(read.hidden.is_empty());
        let read = extract(&package(
            "<w:p><w:del><w:r><w:delText>old</w:delText></w:r></w:del><w:ins><w:r><w:t>new</w:t></w:r></w:ins></w:p>",
        ));
        let read = read.unwrap();
        assert_eq!((read.text.as_str(), read.warnings.len()), ("new", 1));
    }

    #[test]
    fn what_is_no_document_says_so() {
        assert!(extract(b"not a zip").unwrap_err().message.contains("Word"));
        assert!(extract(&package(&"<w:p>".repeat(5_000))).unwrap_err().message.contains("nests"));
        let whole = package(&format!("<w:p>{}</w:p>", run("text")));
        for cut in (0..whole.len()).step_by(7) {
            let _ = extract(&whole[..cut]);
        }
    }
}
