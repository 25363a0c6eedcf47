//! HTML to Markdown, by the parser of the browsers (`html5ever`, through `scraper`).

use std::collections::HashSet;

use ego_tree::iter::Edge;
use scraper::node::Element;
use scraper::{Html, Node};

use super::markdown::{Block, MarkdownWriter};
use super::{Extracted, Fault};

/// Elements nest no deeper than this: the parser's time grows with depth times length.
const MAX_DEPTH: usize = 512;
/// A tag has no more attributes than this: the parser's time grows with their square.
const MAX_ATTRIBUTES: usize = 1_000;

/// Reads a page.
pub(super) fn extract(page: &str) -> Result<Extracted, Fault> {
    bounded(page)?;
    let document = Html::parse_document(page);
    let hiding = hiding_selectors(&document);
    let mut walk = Walk {
        writer: MarkdownWriter::default(),
        lists: Vec::new(),
        hidden: 0,
        skipped: 0,
        raised: false,
        hiding,
    };
    for edge in document.tree.root().traverse() {
        match edge {
            Edge::Open(node) => walk.open(node.value())?,
            Edge::Close(node) => walk.close(node.value())?,
        }
    }
    walk.writer.finish()
}

/// Refuses what would take the parser forever. Counts tags as they stand, which is what its time depends on.
fn bounded(page: &str) -> Result<(), Fault> {
    let mut depth = 0usize;
    let mut rest = page;
    while let Some(at) = rest.find('<') {
        rest = &rest[at + 1..];
        let name_end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '/')).unwrap_or(rest.len());
        let (name, after) = rest.split_at(name_end);
        if let Some(name) = name.strip_prefix('/') {
            depth -= usize::from(nests(name) && depth > 0);
            continue;
        }
        if !name.starts_with(|c: char| c.is_ascii_alphabetic()) {
            continue;
        }
        let (attributes, end) = attributes(after);
        if attributes > MAX_ATTRIBUTES {
            return Err(Fault::new(format!(
                "a tag has more than {MAX_ATTRIBUTES} attributes; save the page again with another program"
            )));
        }
        depth += usize::from(nests(name.trim_end_matches('/')));
        if depth > MAX_DEPTH {
            return Err(Fault::new(format!(
                "its elements nest deeper than {MAX_DEPTH}; save the page again with another program"
            )));
        }
        rest = &after[end..];
    }
    Ok(())
}

/// The number of attributes that follow a tag's name, and where the tag ends.
fn attributes(after: &str) -> (usize, usize) {
    let mut count = 0;
    let mut in_name = false;
    let mut quote = None;
    let mut after_equals = false;
    for (at, byte) in after.bytes().enumerate() {
        match (quote, byte) {
            (Some(open), b) if b == open => quote = None,
            (Some(_), _) => {}
            (None, b'>') => return (count, at),
            // Only a value is quoted; in a name a quote is a character like another.
            (None, b'"' | b'\'') if after_equals => quote = Some(byte),
            (None, b) if b.is_ascii_whitespace() || b == b'/' => in_name = false,
            (None, b'=') => {}
            (None, _) => {
                count += usize::from(!in_name && !after_equals);
                in_name = true;
            }
        }
        after_equals = byte == b'=' || (after_equals && byte.is_ascii_whitespace());
    }
    (count, after.len())
}

/// Whether an element of that name stays open until its end tag. Others end by themselves, and pages often leave their end tags out.
fn nests(name: &str) -> bool {
    const ENDS_ITSELF: [&str; 30] = [
        "p", "li", "dt", "dd", "td", "th", "tr", "thead", "tbody", "tfoot", "colgroup", "option", "optgroup",
        "br", "hr", "img", "input", "meta", "link", "col", "area", "base", "embed", "source", "track", "wbr",
        "param", "html", "head", "body",
    ];
    !ENDS_ITSELF.iter().any(|own| own.eq_ignore_ascii_case(name))
}

struct Walk {
    writer: MarkdownWriter,
    /// Lists that are open: the next number, if they have numbers.
    lists: Vec<Option<usize>>,
    /// Hidden elements that are open.
    hidden: usize,
    /// Elements that are open and no text.
    skipped: usize,
    /// The next text begins above the line.
    raised: bool,
    hiding: HashSet<String>,
}

impl Walk {
    fn open(&mut self, node: &Node) -> Result<(), Fault> {
        match node {
            Node::Text(text) if self.skipped == 0 => {
                if std::mem::take(&mut self.raised) {
                    return self.writer.superscript(text, self.hidden > 0);
                }
                self.writer.text(text, self.hidden > 0)
            }
            Node::Element(element) => {
                if self.skipped > 0 || is_no_text(element.name()) {
                    self.skipped += 1;
                    return Ok(());
                }
                self.hidden += usize::from(self.hides(element));
                self.open_element(element)
            }
            _ => Ok(()),
        }
    }

    fn open_element(&mut self, element: &Element) -> Result<(), Fault> {
        let number = |key: &str| element.attr(key).and_then(|v| v.trim().parse::<usize>().ok());
        match element.name() {
            name @ ("h1" | "h2" | "h3" | "h4" | "h5" | "h6") => {
                self.writer.start(Block::Heading(name.as_bytes()[1] - b'0'));
            }
            "ul" | "menu" => self.list(None),
            "ol" => self.list(Some(number("start").unwrap_or(1))),
            "li" => {
                let depth = self.lists.len().saturating_sub(1);
                let own = self.lists.last_mut().and_then(Option::as_mut).map(|next| {
                    *next = next.saturating_add(1);
                    *next - 1
                });
                self.writer.start(Block::Item(depth, own));
            }
            "blockquote" => self.writer.start(Block::Quote),
            "table" => self.writer.start_table(),
            "tr" => self.writer.start_row(),
            "td" | "th" => {
                self.writer.head(element.name() == "th");
                self.writer.start_cell(number("rowspan").unwrap_or(1), number("colspan").unwrap_or(1));
            }
            "br" => self.writer.line_break(),
            "img" => {
                if let Some(alternative) = element.attr("alt") {
                    self.writer.text(alternative, self.hidden > 0)?;
                }
            }
            "sup" => self.raised = true,
            name if is_block(name) => self.writer.start(Block::Paragraph),
            _ => {}
        }
        Ok(())
    }

    fn list(&mut self, first: Option<usize>) {
        self.writer.end();
        self.lists.push(first);
    }

    fn close(&mut self, node: &Node) -> Result<(), Fault> {
        let Node::Element(element) = node else { return Ok(()) };
        if self.skipped > 0 {
            self.skipped -= 1;
            return Ok(());
        }
        match element.name() {
            "ul" | "menu" | "ol" => {
                self.lists.pop();
                self.writer.end();
            }
            "table" => self.writer.end_table()?,
            "td" | "th" => self.writer.end_cell(),
            "h1" | "h2" | "h3" | "h4" | "h5" | "h6" | "li" | "blockquote" => self.writer.end(),
            name if is_block(name) => self.writer.end(),
            _ => {}
        }
        self.hidden -= usize::from(self.hides(element));
        Ok(())
    }

    fn hides(&self, element: &Element) -> bool {
        element.attr("hidden").is_some()
            || element.attr("aria-hidden").is_some_and(|v| v.eq_ignore_ascii_case("true"))
            || element.attr("style").is_some_and(style_hides)
            || (!self.hiding.is_empty()
                && (element.classes().any(|class| self.hiding.contains(&format!(".{class}")))
                    || element.id().is_some_and(|id| self.hiding.contains(&format!("#{id}")))))
    }
}

fn is_no_text(name: &str) -> bool {
    matches!(
        name,
        "script"
            | "style"
            | "noscript"
            | "template"
            | "head"
            | "nav"
            | "svg"
            | "iframe"
            | "object"
            | "select"
            | "button"
            | "textarea"
            | "audio"
            | "video"
            | "canvas"
    )
}

fn is_block(name: &str) -> bool {
    matches!(
        name,
        "p" | "div"
            | "section"
            | "article"
            | "main"
            | "header"
            | "footer"
            | "aside"
            | "address"
            | "figure"
            | "figcaption"
            | "dl"
            | "dt"
            | "dd"
            | "pre"
            | "form"
            | "fieldset"
            | "details"
            | "summary"
            | "hr"
            | "caption"
    )
}

/// Whether declarations of CSS make text invisible.
fn style_hides(declarations: &str) -> bool {
    let mut color = None;
    let mut background = None;
    for declaration in declarations.split(';') {
        let Some((name, value)) = declaration.split_once(':') else { continue };
        let value = value.trim().to_ascii_lowercase();
        let value = value.trim_end_matches("!important").trim();
        let zero = value.trim_end_matches(|c: char| c.is_ascii_alphabetic() || c == '%').parse::<f32>().ok();
        match name.trim().to_ascii_lowercase().as_str() {
            "display" if value == "none" => return true,
            "visibility" if matches!(value, "hidden" | "collapse") => return true,
            "font-size" if zero.is_some_and(|v| v <= 1.0) && !value.ends_with("em") => return true,
            "font-size" if zero.is_some_and(|v| v <= 0.1) => return true,
            "opacity" if zero.is_some_and(|v| v < 0.05) => return true,
            "text-indent" | "left" | "top" | "margin-left" if zero.is_some_and(|v| v <= -500.0) => {
                return true;
            }
            "color" => color = Some(value.to_owned()),
            "background" | "background-color" => background = Some(value.to_owned()),
            _ => {}
        }
    }
    let white = |c: &str| {
        let c: String = c.split_whitespace().collect();
        matches!(
            c.as_str(),
            "white" | "#fff" | "#ffffff" | "rgb(255,255,255)" | "transparent" | "rgba(0,0,0,0)"
        )
    };
    match (color, background) {
        (Some(color), Some(background)) => color == background,
        // Without a background of its own, text stands on the page, which is white.
        (Some(color), None) => white(&color),
        _ => false,
    }
}

/// Classes and ids that the page's own style sheets hide. Only rules with a lone class or id are looked at: what combines more
/// hides parts of a page's furniture.
fn hiding_selectors(document: &Html) -> HashSet<String> {
    let mut found = HashSet::new();
    for node in document.tree.nodes() {
        let Some(style) = node.value().as_element().filter(|e| e.name() == "style").map(|_| node) else {
            continue;
        };
        for text in style.children().filter_map(|child| child.value().as_text()) {
            for rule in text.split('}') {
                let Some((selectors, declarations)) = rule.rsplit_once('{') else { continue };
                // White type is judged where it stands.
                if !style_hides(declarations) || declarations.contains("color") {
                    continue;
                }
                let selectors = selectors.rsplit(['{', ';']).next().unwrap_or(selectors);
                for selector in selectors.split(',').map(str::trim) {
                    let name = selector.trim_start_matches(['.', '#']);
                    let lone = name.chars().all(|c| c.is_alphanumeric() || c == '-' || c == '_');
                    if lone && !name.is_empty() && selector.len() == name.len() + 1 {
                        found.insert(selector.to_owned());
                    }
                }
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn markdown(page: &str) -> String {
        extract(page).unwrap().text
    }

    #[test]
    fn headings_lists_and_tables_are_kept() {
        let page = "<html><head><title>T</title><script>x()</script></head><body><nav>Menu</nav><h1>Gout</h1>\
            <p>Give <b>colchicine</b>\n 0.5&nbsp;mg.</p><ul><li>once<li>twice<ol><li>or so</ol></ul>\
            <table><caption>Doses</caption><tr><th>Drug<th>Dose</tr><tr><td rowspan=2>A|B<td>1 mg<tr><td>2 mg</table>after";
        let want = "# Gout\n\nGive colchicine 0.5 mg.\n\n- once\n- twice\n  1. or so\n\nDoses\n\n| Drug | Dose |\n| --- | --- |\n\
            | A\\|B | 1 mg |\n| A\\|B | 2 mg |\n\nafter";
        assert_eq!(markdown(page), want);
    }

    #[test]
    fn a_power_stays_a_power_and_text_becomes_no_heading() {
        assert_eq!(
            markdown("<p>10<sup>9</sup>/L, 1.73 m<sup>2</sup>, CO<sub>2</sub>"),
            "10^9/L, 1.73 m^2, CO2"
        );
        assert_eq!(markdown("<p># no heading"), "\\# no heading");
        assert_eq!(markdown("<table><tr><td><p>boxed<p>text</table>"), "boxed text");
        // Rows may have heads of their own.
        let rows = "<table><tr><th>Dose<td>5 mg<tr><th>Days<td>3</table>";
        assert_eq!(markdown(rows), "|  |  |\n| --- | --- |\n| Dose | 5 mg |\n| Days | 3 |");
    }

    #[test]
    fn what_is_not_seen_is_marked() {
        for hidden in [
            "<span hidden>secret</span>",
            "<div style='display:none'>secret</div>",
            "<i style='color:#FFF'>secret</i>",
            "<i style=\"font-size: 0px\">secret</i>",
            "<style>.x{display:none}</style><div class=x>secret</div>",
            "<div aria-hidden=true><table><tr><td>a<td>secret</table></div>",
        ] {
            let read = extract(&format!("<p>seen</p>{hidden}<p>also seen</p>")).unwrap();
            let marked: String = read.hidden.iter().map(|r| &read.text[r.clone()]).collect();
            assert!(marked.contains("secret") && !marked.contains("seen"), "{hidden}: {read:?}");
        }
        let read = extract("<p style='color:white;background:#234'>seen").unwrap();
        assert!(read.hidden.is_empty());
    }

    #[test]
    fn what_would_take_forever_is_refused() {
        assert!(extract(&"<div>".repeat(100_000)).unwrap_err().message.contains("nest"));
        let many = format!("<p {}>", (0..5_000).map(|n| format!("a{n}=1 ")).collect::<String>());
        assert!(extract(&many).unwrap_err().message.contains("attributes"));
        assert_eq!(extract(&"<p>x".repeat(1_000)).unwrap().text.matches('x').count(), 1_000);
    }

    proptest! {
        #[test]
        fn never_panics_and_marks_on_boundaries(page in "(<(p|/p|table|tr|td|/table|div hidden|/div|li|ol|b|sup|h2|!--|br)>|[a-zあ& #|\n]{0,5}){0,40}") {
            let read = extract(&page).unwrap();
            let mut last = 0;
            for range in &read.hidden {
                prop_assert!(read.text.get(range.clone()).is_some());
                prop_assert!(range.start >= last);
                last = range.end;
            }
        }
    }
}
