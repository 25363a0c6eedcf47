//! The model card: what an adapter is for, what it came from, and how it was judged. A README.md with the front matter of Hugging Face's
//! model cards.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::checkpoint::{CheckpointError, write_whole};
use super::run::Summary;
use super::settings::{Begins, TuneSettings};
use crate::model::weights::WeightForm;

/// What stands around the part that evaluation writes.
const BEGIN: &str = "<!-- evaluation -->";
const END: &str = "<!-- end of evaluation -->";

/// A file that was learnt from or looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Source {
    /// Its name, without folders.
    pub name: String,
    /// SHA-256.
    pub sha256: String,
    /// Lines that are no blank ones.
    pub lines: usize,
}

impl Source {
    /// Of a file.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn of(path: &Path) -> std::io::Result<Self> {
        let bytes = std::fs::read(path)?;
        let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty());
        Ok(Self {
            name: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            sha256: crate::model::hex(&<sha2::Sha256 as sha2::Digest>::digest(&bytes)),
            lines: lines.count(),
        })
    }
}

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
    /// Writes `README.md` into the adapter's folder, and the picture of its losses beside it.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn write(&self, folder: &Path) -> Result<(), CheckpointError> {
        // The picture of a run of one step was never drawn.
        let drawn = std::fs::read(folder.join("run/loss.svg")).ok();
        if let Some(picture) = &drawn {
            write_whole(&folder.join("loss.svg"), picture)?;
        }
        write_whole(&folder.join("README.md"), self.text(drawn.is_some()).as_bytes())
    }

    fn text(&self, drawn: bool) -> String {
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
            "A LoRA adapter for `{base}` (sha256 of the base `{fingerprint}`), made by shishin {}. The numbers' sha256 is `{}`.\n",
            env!("CARGO_PKG_VERSION"),
            self.summary.hash
        ));
        line("## Data\n".into());
        line("| file | used to | examples | sha256 |\n| --- | --- | --: | --- |".into());
        let uses = ["learn", "draw from, to learn along", "say when to stop"];
        for (sources, what) in self.data.iter().zip(uses) {
            for source in sources {
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
        line(format!(
            "{BEGIN}\nNot judged yet: `shishin evaluate answers … --card` writes it here.\n{END}\n"
        ));
        line("## Limits\n".into());
        let limits = card.limits.as_deref().unwrap_or("Not a medical device.");
        line(limits.trim().to_owned());
        to
    }
}

fn folder_name(path: &Path) -> String {
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

/// Puts an evaluation into the card of an adapter, in place of an earlier one.
///
/// # Errors
/// When there is no card, or it has no place for it.
pub fn put_evaluation(folder: &Path, evaluation: &str) -> Result<PathBuf, CardError> {
    let path = folder.join("README.md");
    let text =
        std::fs::read_to_string(&path).map_err(|source| CardError::Read { path: path.clone(), source })?;
    let begin = text.find(BEGIN).map(|at| at + BEGIN.len());
    let place = begin.and_then(|begin| Some((begin, begin + text[begin..].find(END)?)));
    let (begin, end) = place.ok_or_else(|| CardError::NoPlace(path.clone()))?;
    let text = format!("{}\n{}\n{}", &text[..begin], evaluation.trim(), &text[end..]);
    write_whole(&path, text.as_bytes())?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_names_what_it_came_from_and_takes_an_evaluation_again_and_again() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("train.jsonl");
        std::fs::write(&data, "{}\n\n{}\n").unwrap();
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
        let source = Source::of(&data).unwrap();
        assert_eq!(source.lines, 2);
        let sha256 = source.sha256.clone();
        let card = Card {
            settings: &settings,
            base: ("small", "f00d"),
            data: [vec![source.clone()], vec![source], Vec::new()],
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
            "| train.jsonl | draw from, to learn along | 2 |",
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
            put_evaluation(dir.path(), turn).unwrap();
            assert!(read().contains(turn) && read().contains("## Limits"));
        }
        assert!(!read().contains("one look") && !read().contains("Not judged"));
        std::fs::write(dir.path().join("README.md"), "mine").unwrap();
        assert!(matches!(put_evaluation(dir.path(), "x"), Err(CardError::NoPlace(_))));
        assert!(matches!(put_evaluation(&dir.path().join("none"), "x"), Err(CardError::Read { .. })));
    }
}
