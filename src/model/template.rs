//! Chat templates: turning a conversation into typed prompt segments.
//!
//! A model's own template (Jinja, from its metadata) decides how turns are marked. It is run once with
//! a private sentinel in place of every content; the result is cut at the sentinels, so that the
//! template's text and the contents never meet in one string and a content can never forge a turn.

use std::fmt::Write as _;

use minijinja::{Environment, ErrorKind, Value, context};

use super::tokenizer::{Tokenizer, TokenizerError};

/// Instructions a template may take. Real templates of small models need a few hundred per message.
const FUEL: u64 = 500_000;

/// Marks the place of content number n in the rendered text: characters of the private use area, which
/// no template contains.
const OPEN: char = '\u{F0000}';
const CLOSE: char = '\u{F0001}';

/// Gemma's turn format, for its files without a template (the pretrained ones). Written from the
/// format's description: <https://ai.google.dev/gemma/docs/core/prompt-structure>.
const GEMMA_TEMPLATE: &str = r"{{ bos_token }}
{%- for message in messages if message.role != 'system' -%}
{{ '<start_of_turn>' + ('model' if message.role == 'assistant' else 'user') + '\n' }}
{%- if loop.first and messages[0].role == 'system' %}{{ messages[0].content + '\n\n' }}{% endif %}
{{- message.content + '<end_of_turn>\n' }}
{%- endfor -%}
{{ '<start_of_turn>model\n' if add_generation_prompt }}";

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions from the operator.
    System,
    /// The person who asks.
    User,
    /// The model.
    Assistant,
}

impl Role {
    fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// One stretch of a prompt, by where it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Segment {
    /// Text of the chat template: may spell control tokens.
    Template(String),
    /// Text of a person, a passage or a dataset: never becomes a control token.
    Content(String),
}

/// A turn whose content is made of segments' worth of text, all of it content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub content: String,
}

/// Why a template was refused or did not render.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The model brings none.
    #[error("the model has no chat template; use an instruction-tuned model")]
    Missing,
    /// It is no valid Jinja, or uses too much fuel.
    #[error("the model's chat template fails: {0}")]
    Render(String),
    /// It lost or doubled a message.
    #[error(
        "the model's chat template does not show message {0} exactly once; it cannot take this conversation"
    )]
    Dropped(usize),
}

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
}

impl ChatTemplate {
    /// Compiles a model's template.
    ///
    /// # Errors
    /// When it is no valid Jinja.
    pub fn new(source: &str, tokenizer: &Tokenizer) -> Result<Self, TemplateError> {
        let mut environment = Environment::new();
        environment.set_fuel(Some(FUEL));
        environment.set_debug(false);
        environment.set_recursion_limit(100);
        // The whitespace rules of `transformers`, which every published template is written for.
        let syntax = environment.syntax().to_builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| TemplateError::Render(e.to_string()))?);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        environment
            .add_template_owned("chat", source.to_owned())
            .map_err(|e| TemplateError::Render(e.to_string()))?;
        Ok(Self { environment, bos: tokenizer.bos_text(), eos: tokenizer.eos_text() })
    }

    /// The turn format of Gemma, whose pretrained files bring none.
    ///
    /// # Errors
    /// Never in practice: the template is our own.
    pub fn gemma(tokenizer: &Tokenizer) -> Result<Self, TemplateError> {
        Self::new(GEMMA_TEMPLATE, tokenizer)
    }

    /// The segments of a conversation, ready for the model's next turn.
    ///
    /// Contents are trimmed, as most templates do themselves.
    ///
    /// # Errors
    /// When the template fails, runs out of fuel, or does not show every turn exactly once.
    pub fn segments(&self, turns: &[Turn]) -> Result<Vec<Segment>, TemplateError> {
        cut(&self.render(turns, true)?, turns)
    }

    /// What asks the model for its turn, such as `<|im_start|>assistant` and a line break.
    ///
    /// # Errors
    /// When the template fails, or asks for a turn in another way than by what it puts at the end.
    pub fn generation_prompt(&self) -> Result<String, TemplateError> {
        let turns = [Turn { role: Role::User, content: "?".into() }];
        let (with, without) = (self.render(&turns, true)?, self.render(&turns, false)?);
        match with.strip_prefix(&without) {
            Some(asks) if !asks.is_empty() => Ok(asks.to_owned()),
            _ => Err(TemplateError::Render("it does not ask for the assistant's turn at its end".into())),
        }
    }

    /// What begins a user's turn, such as `<|im_start|>user` and a line break.
    ///
    /// # Errors
    /// When the template fails, ends an assistant's turn in another way than a user's, so that the two could not be told apart, or puts the
    /// instructions into a user's turn, so that what begins there has them behind it.
    pub fn question_prompt(&self) -> Result<String, TemplateError> {
        let turns = |roles: &[Role]| -> Vec<Turn> {
            roles.iter().map(|role| Turn { role: *role, content: "?".into() }).collect()
        };
        let one = self.render(&turns(&[Role::User]), false)?;
        let all = self.render(&turns(&[Role::User, Role::Assistant, Role::User]), false)?;
        let instructed = self.render(&turns(&[Role::System, Role::User]), false)?;
        let ends = one.split_once(&sentinel(0)).map(|(_, ends)| ends);
        let between = all.split_once(&sentinel(1)).and_then(|(_, rest)| rest.split_once(&sentinel(2)));
        let asks = between.zip(ends).and_then(|((between, _), ends)| between.strip_prefix(ends));
        let asks = asks.filter(|asks| !asks.is_empty()).ok_or_else(|| {
            TemplateError::Render("it does not begin a user's turn by marks of its own".into())
        })?;
        let behind = instructed.split_once(&sentinel(0)).is_some_and(|(_, behind)| behind.contains(asks));
        if !behind {
            let why = "it puts the instructions into the user's turn, so that nothing of a prompt stands before the question";
            return Err(TemplateError::Render(why.into()));
        }
        Ok(asks.to_owned())
    }

    fn render(&self, turns: &[Turn], add_generation_prompt: bool) -> Result<String, TemplateError> {
        let messages: Vec<Value> = turns
            .iter()
            .enumerate()
            .map(|(n, turn)| context! { role => turn.role.as_str(), content => sentinel(n) })
            .collect();
        self.environment
            .get_template("chat")
            .and_then(|template| {
                template.render(context! {
                    messages,
                    bos_token => self.bos.as_str(),
                    eos_token => self.eos.as_str(),
                    add_generation_prompt,
                    // Qwen3 would spend the answer's tokens on reasoning that nobody asked to see.
                    enable_thinking => false,
                })
            })
            .map_err(|e| TemplateError::Render(format!("{e:#}")))
    }

    /// Which turn each [`Segment::Content`] of [`segments`](Self::segments) is: templates may move them.
    ///
    /// # Errors
    /// As [`segments`](Self::segments).
    pub fn order(&self, turns: &[Turn]) -> Result<Vec<usize>, TemplateError> {
        // Each turn says its own number, so that the places tell whose they are.
        let numbered: Vec<Turn> =
            turns.iter().enumerate().map(|(n, t)| Turn { role: t.role, content: n.to_string() }).collect();
        let contents = self.segments(&numbered)?.into_iter().filter_map(|segment| match segment {
            Segment::Content(text) => text.parse().ok(),
            Segment::Template(_) => None,
        });
        Ok(contents.collect())
    }
}

fn sentinel(n: usize) -> String {
    let mut s = String::new();
    // Writing to a string cannot fail.
    let _ = write!(s, "{OPEN}{n}{CLOSE}");
    s
}

/// Cuts rendered text at its sentinels; every turn must appear exactly once.
fn cut(rendered: &str, turns: &[Turn]) -> Result<Vec<Segment>, TemplateError> {
    let mut seen = vec![0usize; turns.len()];
    let mut segments = Vec::with_capacity(2 * turns.len() + 1);
    let template = |text: &str| Segment::Template(text.to_owned());
    let mut rest = rendered;
    while let Some(open) = rest.find(OPEN) {
        let close = rest.find(CLOSE).filter(|close| *close > open);
        let number = close.and_then(|close| rest[open + OPEN.len_utf8()..close].parse::<usize>().ok());
        let (Some(close), Some(n)) = (close, number.filter(|n| *n < turns.len())) else {
            return Err(TemplateError::Render("it alters the text of a message".into()));
        };
        if open > 0 {
            segments.push(template(&rest[..open]));
        }
        segments.push(Segment::Content(turns[n].content.trim().to_owned()));
        seen[n] += 1;
        rest = &rest[close + CLOSE.len_utf8()..];
    }
    if !rest.is_empty() {
        segments.push(template(rest));
    }
    match seen.iter().position(|count| *count != 1) {
        Some(n) => Err(TemplateError::Dropped(n)),
        None => Ok(segments),
    }
}

/// Tokenises segments, each by its own rule, with the start token in front where the model wants one.
///
/// # Errors
/// When a segment cannot be tokenised.
pub fn encode_segments(tokenizer: &Tokenizer, segments: &[Segment]) -> Result<Vec<u32>, TokenizerError> {
    let mut ids = Vec::new();
    for segment in segments {
        match segment {
            Segment::Template(text) => ids.extend(tokenizer.encode_template(text)?),
            Segment::Content(text) => ids.extend(tokenizer.encode_content(text)?),
        }
    }
    if let Some(bos) = tokenizer.bos().filter(|bos| tokenizer.add_bos() && ids.first() != Some(bos)) {
        ids.insert(0, bos);
    }
    Ok(ids)
}
