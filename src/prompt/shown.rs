//! The passages that stand in a prompt, read back from it.

/// A passage in a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct InPrompt<'a> {
    /// The guideline's title.
    pub title: &'a str,
    /// Its headings there.
    pub section: &'a str,
    /// What it says.
    pub text: &'a str,
}

impl<'a> InPrompt<'a> {
    /// Those of a prompt, by the marks that the server's prompts put around them.
    pub fn of(prompt: &'a str) -> impl Iterator<Item = Self> {
        prompt.split("<passage ").skip(1).filter_map(Self::read)
    }

    /// What stands behind `<passage `, if it is one.
    fn read(part: &'a str) -> Option<Self> {
        let (marks, rest) = part.split_once(">\n")?;
        let (text, _) = rest.split_once("\n</passage>")?;
        let mark = |key: &str| Some(marks.split_once(key)?.1.split_once('"')?.0);
        let (title, section) = (mark("title=\"").unwrap_or_default(), mark("section=\"").unwrap_or_default());
        Some(Self { title, section, text })
    }
}
