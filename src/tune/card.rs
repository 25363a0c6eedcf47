//! The model card: what an adapter is for, what it came from, and how it was judged. A README.md with the front matter of Hugging Face's
//! model cards.

use std::path::{Path, PathBuf};

use super::checkpoint::{CheckpointError, write_whole};
use super::examples::Source;
use super::progress::Summary;
use super::settings::{Begins, TuneSettings};
use crate::model::weights::WeightForm;

/// What stands around the part that evaluation writes.
const BEGIN: &str = "<!-- evaluation -->";
const END: &str = "<!-- end of evaluation -->";
/// What stands around the name of one of several evaluations, in a line before it.
const ON: (&str, &str) = ("<!-- evaluation on ", " -->");
/// What stands there before there is one.
const NOT_JUDGED: &str = "Not judged yet: `shishin evaluate answers … --card` writes it here.";

/// What a card says.
pub struct Card<'a> {
    /// The run.
    pub settings: &'a TuneSettings,
    /// The base's name and fingerprint.
    pub base: (&'a str, &'a str),
    /// What was learnt from, drawn from to be learnt along, and looked at to say when to stop.
    pub data: [Vec<Source>; 3],
    /// So many examples were drawn to be learnt along.
    pub replayed: usize,
    /// Examples, tokens, and tokens that were learnt.
    pub counts: (usize, usize, usize),
    /// The fingerprint of the adapter that it went on from.
    pub start: Option<&'a str>,
    /// How the run went.
    pub summary: &'a Summary,
}

impl Card<'_> {
    /// Writes `README.md` into the adapter's folder, and the picture of its losses beside it. Evaluations of an earlier card stay where they
    /// are of the same numbers on the same base.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn write(&self, folder: &Path) -> Result<(), CheckpointError> {
        // The picture of a run of one step was never drawn.
        let drawn = std::fs::read(folder.join("run/loss.svg")).ok();
        if let Some(picture) = &drawn {
            write_whole(&folder.join("loss.svg"), picture)?;
        }
        let path = folder.join("README.md");
        let earlier = std::fs::read_to_string(&path).unwrap_or_default();
        let text = self.text(drawn.is_some(), self.judged(&earlier).unwrap_or(NOT_JUDGED));
        write_whole(&path, text.as_bytes())
    }

    /// The evaluations of an earlier card, where they are of this adapter.
    fn judged<'c>(&self, earlier: &'c str) -> Option<&'c str> {
        let (begin, end) = place(earlier)?;
        let same = earlier.contains(&based_on(self.base.1)) && earlier.contains(&hashed(&self.summary.hash));
        same.then(|| earlier[begin..end].trim())
    }

    fn text(&self, drawn: bool, judged: &str) -> String {
        let TuneSettings { objective, lora, training, card, .. } = self.settings;
        let (base, fingerprint) = self.base;
        let mut to = String::new();
        let mut line = |text: String| {
            to.push_str(&text);
            to.push('\n');
        };
        line("---".into());
        line(format!("base_model: {}", quoted(base)));
        line("library_name: peft".into());
        if let Some(licence) = &card.licence {
            line(format!("license: {}", quoted(licence)));
        }
        line("tags: [lora, shishin]".into());
        line("---".into());
        line(format!("\n# {}\n", folder_name(&self.settings.output)));
        line(format!("{}\n", objective.trim()));
        line(format!(
            "A LoRA adapter for `{base}` ({}), made by shishin {}. {}.\n",
            based_on(fingerprint),
            env!("CARGO_PKG_VERSION"),
            hashed(&self.summary.hash)
        ));
        line("## Data\n".into());
        line("| file | used to | examples | sha256 |\n| --- | --- | --: | --- |".into());
        let uses = ["learn", "draw from, to learn along", "say when to stop"];
        for (sources, what) in self.data.iter().zip(uses) {
            // A file that is named several times, to be learnt from as often, has one line.
            for (at, source) in sources.iter().enumerate().filter(|(at, own)| !sources[..*at].contains(own)) {
                let what = match sources[at..].iter().filter(|other| *other == source).count() {
                    1 => what.to_owned(),
                    times => format!("{what}, {times} times"),
                };
                line(format!("| {} | {what} | {} | `{}` |", source.name, source.lines, source.sha256));
            }
        }
        let (examples, tokens, learnt) = self.counts;
        let along = match self.replayed {
            0 => String::new(),
            replayed => format!(", {replayed} of them drawn"),
        };
        line(format!(
            "\n{examples} examples to learn from{along}; {tokens} tokens, {learnt} of them learnt.\n"
        ));
        line("## Recipe\n".into());
        if let Some(start) = self.start {
            line(format!(
                "It went on from an adapter, fingerprint `{start}`, which had learnt from data of its own.\n"
            ));
            if lora.interpolation < 1.0 {
                line(format!(
                    "The numbers lie {} of the way from that adapter's to those that training made of them; the losses are those of all the way.\n",
                    lora.interpolation
                ));
            }
        }
        let start = match lora.begins {
            Begins::Prompt => "from the first token on",
            Begins::Question => "from the newest user's turn on",
            Begins::Answer => "from the assistant's turn on",
        };
        line(format!(
            "Rank {}, alpha {}{}, dropout {}, on {}, {start}. {}{} examples a step, AdamW, learning rate {:e} (warm-up {}, cosine to {} of it), \
             weight decay {}, gradients clipped at {}, KL weight {},{} seed {}, weights of the base as {}.\n",
            lora.rank,
            lora.alpha,
            if lora.rslora { " (rank-stabilised)" } else { "" },
            lora.dropout,
            lora.targets.join(", "),
            match training.steps {
                0 if training.epochs == 1 => "1 epoch of ".into(),
                0 => format!("{} epochs of ", training.epochs),
                steps => format!(
                    "The first {} steps of {} epochs, ",
                    steps.min(self.summary.steps),
                    training.epochs
                ),
            },
            training.batch,
            training.learning_rate,
            training.warmup,
            training.final_rate,
            training.weight_decay,
            training.clip,
            training.kl,
            match training.quote_weight {
                1.0 => String::new(),
                weight => format!(" tokens that choose a quote weighed {weight} times,"),
            },
            training.seed,
            match training.weights {
                WeightForm::Stored => "stored",
                WeightForm::F32 => "32-bit floats",
            },
        ));
        line("## Training\n".into());
        line(format!(
            "{} steps in {:.0} s; the numbers are those of step {}.",
            self.summary.steps, self.summary.seconds, self.summary.chosen
        ));
        if let Some((first, best)) = self.summary.valid {
            line(format!("Validation loss {first:.4} before, {best:.4} at that step (nats a token)."));
        }
        if drawn {
            line("\n![losses by step](loss.svg)".into());
        }
        line("\n## Evaluation\n".into());
        line(format!("{BEGIN}\n{judged}\n{END}\n"));
        line("## Limits\n".into());
        let limits = card.limits.as_deref().unwrap_or("Not a medical device.");
        line(limits.trim().to_owned());
        to
    }
}

/// What a card says of the base, by which it is known again.
fn based_on(fingerprint: &str) -> String {
    format!("sha256 of the base `{fingerprint}`")
}

/// What it says of the numbers.
fn hashed(numbers: &str) -> String {
    format!("The numbers' sha256 is `{numbers}`")
}

/// The last two parts of a path: what adapters and data are called after.
#[must_use]
pub fn folder_name(path: &Path) -> String {
    let parts: Vec<String> =
        path.components().rev().take(2).map(|c| c.as_os_str().to_string_lossy().into_owned()).collect();
    parts.into_iter().rev().collect::<Vec<_>>().join("/")
}

/// A text as YAML and JSON both read it.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Why an evaluation could not be written into a card.
#[derive(Debug, thiserror::Error)]
pub enum CardError {
    /// There is none, or it cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It was not written here.
    #[error("{} has no place for an evaluation: write {BEGIN} and {END} where it shall stand", .0.display())]
    NoPlace(PathBuf),
    /// It cannot be written.
    #[error(transparent)]
    Write(#[from] CheckpointError),
}

/// Where the evaluations of a card stand.
fn place(card: &str) -> Option<(usize, usize)> {
    let begin = card.find(BEGIN)? + BEGIN.len();
    Some((begin, begin + card[begin..].find(END)?))
}

/// The evaluations of a card with their names, behind what has none: cards of before held one without.
fn evaluations(text: &str) -> (String, Vec<(String, String)>) {
    let mut unnamed = String::new();
    let mut named: Vec<(String, String)> = Vec::new();
    for line in text.trim().lines() {
        if let Some(name) = line.strip_prefix(ON.0).and_then(|rest| rest.strip_suffix(ON.1)) {
            named.push((name.to_owned(), String::new()));
            continue;
        }
        let to = match named.last_mut() {
            Some((_, text)) => text,
            None => &mut unnamed,
        };
        to.push_str(line);
        to.push('\n');
    }
    (unnamed, named)
}

/// Puts an evaluation into the card of an adapter, in place of an earlier one of that name; those of other names stay. One that a card of
/// before holds without a name stays too, unless it begins with the same line, which says what was judged.
///
/// # Errors
/// When there is no card, or it has no place for it.
pub fn put_evaluation(folder: &Path, name: &str, evaluation: &str) -> Result<PathBuf, CardError> {
    let path = folder.join("README.md");
    let card =
        std::fs::read_to_string(&path).map_err(|source| CardError::Read { path: path.clone(), source })?;
    let (begin, end) = place(&card).ok_or_else(|| CardError::NoPlace(path.clone()))?;
    // It stands in a comment, which it must not end.
    let name: String = name.chars().map(|c| if c.is_control() || c == '>' { ' ' } else { c }).collect();
    let evaluation = evaluation.trim();
    let (unnamed, mut named) = evaluations(&card[begin..end]);
    let unnamed = unnamed.trim();
    let again = unnamed == NOT_JUDGED || unnamed.lines().next() == evaluation.lines().next();
    let block = format!("### {name}\n\n{evaluation}\n");
    match named.iter_mut().find(|(other, _)| *other == name) {
        Some((_, text)) => *text = block,
        None => named.push((name, block)),
    }
    let mut inside = if again { String::new() } else { format!("{unnamed}\n\n") };
    let blocks: Vec<String> =
        named.iter().map(|(name, text)| format!("{}{name}{}\n{}\n", ON.0, ON.1, text.trim())).collect();
    inside.push_str(&blocks.join("\n"));
    let card = format!("{}\n{}\n{}", &card[..begin], inside.trim(), &card[end..]);
    write_whole(&path, card.as_bytes())?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_names_what_it_came_from_and_takes_an_evaluation_again_and_again() {
        let dir = tempfile::tempdir().unwrap();
        let data = Path::new("data/ward-en/train.jsonl");
        let settings: TuneSettings = toml::from_str(
            "objective = \"Speak plainly.\"\nbase = \"b\"\noutput = \"x/clinic\"\n[data]\ntrain = [\"train.jsonl\"]\n[card]\nlicence = \"CC0-1.0\"\nlimits = \"Only a test.\"",
        )
        .unwrap();
        let summary = Summary {
            numbers: Vec::new(),
            steps: 9,
            chosen: 6,
            valid: Some((2.0, 1.0)),
            seconds: 3.0,
            hash: "abc".into(),
        };
        let source = Source::of(data, b"{}\n\n{}\n");
        assert_eq!(source.lines, 2);
        let sha256 = source.sha256.clone();
        let card = Card {
            settings: &settings,
            base: ("small", "f00d"),
            data: [vec![source.clone(), source.clone()], vec![source], Vec::new()],
            replayed: 1,
            counts: (2, 30, 10),
            start: Some("5717"),
            summary: &summary,
        };
        card.write(dir.path()).unwrap();
        let read = || std::fs::read_to_string(dir.path().join("README.md")).unwrap();
        for part in [
            "Speak plainly.",
            "f00d",
            "went on from an adapter, fingerprint `5717`",
            "| ward-en/train.jsonl | learn, 2 times | 2 |",
            "| ward-en/train.jsonl | draw from, to learn along | 2 |",
            "2 examples to learn from, 1 of them drawn; 30 tokens",
            sha256.as_str(),
            "CC0-1.0",
            "Only a test.",
            "# x/clinic",
            "step 6",
            "Not judged yet",
            "1e-4",
        ] {
            assert!(read().contains(part), "{part}: {}", read());
        }
        assert!(!read().contains("loss.svg"));
        for turn in ["| one look |", "| another look |"] {
            put_evaluation(dir.path(), "ward/test.jsonl", turn).unwrap();
            assert!(read().contains(turn) && read().contains("## Limits"));
        }
        assert!(!read().contains("one look") && !read().contains("Not judged"));
        // Another one has its own place, whatever it is called.
        put_evaluation(dir.path(), "clinic/test.jsonl -->", "| a third look |").unwrap();
        put_evaluation(dir.path(), "ward/test.jsonl", "| a last look |").unwrap();
        let judged = read();
        assert!(
            judged.contains("### ward/test.jsonl") && judged.contains("### clinic/test.jsonl"),
            "{judged}"
        );
        assert!(judged.contains("a third look") && judged.contains("a last look"), "{judged}");
        assert!(!judged.contains("another look"), "{judged}");
        // The same adapter, written once more, was judged all the same; another one was not.
        card.write(dir.path()).unwrap();
        assert_eq!(read(), judged);
        let other = Summary { hash: "abd".into(), ..summary.clone() };
        Card { summary: &other, ..card }.write(dir.path()).unwrap();
        assert!(read().contains("Not judged yet") && !read().contains("look |"), "{}", read());
        // A card of before has one evaluation and no name for it.
        let old = format!("{BEGIN}\nSpeak plainly.\n\n| old |\n{END}\n");
        std::fs::write(dir.path().join("README.md"), &old).unwrap();
        put_evaluation(dir.path(), "ward/test.jsonl", "Give doses.\n\n| new |").unwrap();
        assert!(read().contains("| old |") && read().contains("| new |"), "{}", read());
        put_evaluation(dir.path(), "clinic/test.jsonl", "Speak plainly.\n\n| newer |").unwrap();
        assert!(!read().contains("| old |") && read().contains("| new |"), "{}", read());
        std::fs::write(dir.path().join("README.md"), "mine").unwrap();
        assert!(matches!(put_evaluation(dir.path(), "x", "x"), Err(CardError::NoPlace(_))));
        assert!(matches!(put_evaluation(&dir.path().join("none"), "x", "x"), Err(CardError::Read { .. })));
    }
}
