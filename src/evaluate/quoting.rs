//! From where on an adapter that quotes should begin to: how much likelier than all else it finds a quote where one answers, and where none
//! does. Adapters differ in that, and so do their languages, which one bar for all cannot fit.

use serde::Serialize;

use super::answers::{AnswersError, Held, passages};
use super::distributions::predictions;
use super::in_prompt::PromptSigns;
use super::metrics::area;
use super::rates::Rate;
use crate::language::Language;
use crate::model::BaseModel;
use crate::model::fast::{FastDecoder, PackedAdapter};
use crate::model::template::{TemplateError, encode_segments};
use crate::model::tokenizer::Tokenizer;
use crate::quote::{self, QuoteChoice, QuoteGuide, Signed};

/// What an adapter makes of one example's beginning.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Decision {
    /// The example's language.
    pub language: Language,
    /// Whether its answer begins with a quote.
    pub quoted: bool,
    /// The logarithm of the odds of a quote's likeliest beginning against the likeliest other one: greedily, it quotes where this is above the
    /// bar.
    pub odds: f64,
}

/// What a bar of a language comes to.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Found {
    /// Of which language.
    pub language: Language,
    /// The bar.
    pub bar: f32,
    /// Of the examples that begin with a quote, those in which the adapter then does.
    pub answered: Rate,
    /// Of those that do not, those in which the adapter then does not.
    pub declined: Rate,
    /// The area under the curve: how often one that begins with a quote has higher odds than one that does not.
    pub area: f64,
}

/// The fewest examples of a kind and language that a bar is found of.
pub const FEWEST: usize = 20;

/// Has the adapter begin each example that has passages, with what a reader adds to its odds as serving does. `weighed` is told how many are
/// done.
///
/// # Errors
/// When a prompt cannot be made, or `stop` says so.
pub fn decisions(
    model: &BaseModel<FastDecoder>,
    adapter: &PackedAdapter,
    held: &[Held],
    (served, signs): (QuoteChoice, &mut PromptSigns<'_>),
    stop: &dyn Fn() -> bool,
    weighed: &mut dyn FnMut(usize),
) -> Result<Vec<Decision>, AnswersError> {
    let template = model.template.as_ref();
    let mut decisions = Vec::new();
    for (at, one) in held.iter().enumerate() {
        let texts = || passages(one, true).into_iter().map(|passage| passage.text);
        let possible = quote::possible(texts());
        if !possible.is_empty() {
            let bad = |source| AnswersError::Template { id: one.id.clone(), source };
            let segments = template.ok_or(TemplateError::Missing).and_then(|own| own.segments(&one.turns));
            let tokens = encode_segments(&model.tokenizer, &segments.map_err(bad)?)?;
            // The first token of the answer is what the prompt's last one predicts.
            let asked = [&tokens[..], &tokens[tokens.len() - 1..]].concat();
            let begins = adapter.begins(&tokens).map(|begins| (adapter, begins));
            let predicted = predictions(model, &asked, 1, begins, stop)
                .map_err(|source| AnswersError::Decode { id: one.id.clone(), source })?;
            // Any bar shows which tokens begin a quote.
            let choice = QuoteChoice { bar: 1.0, ..QuoteChoice::default() };
            let guide = QuoteGuide::choosing(Signed::plain(possible), choice);
            let quoted = !quote::split(&one.reference, texts()).0.is_empty();
            let read = match one.question.as_ref().filter(|_| served.reader_odds > 0.0) {
                Some(question) => signs.of(&passages(one, true), question),
                None => Ok(Signed::default()),
            };
            let read = read.map_err(|source| AnswersError::Nearness { id: one.id.clone(), source })?;
            let odds = odds(&guide, &predicted[0], &model.tokenizer) + f64::from(served.support(&read));
            decisions.push(Decision { language: one.language, quoted, odds });
        }
        weighed(at + 1);
    }
    Ok(decisions)
}

fn odds(guide: &QuoteGuide, predicted: &[f64], tokenizer: &Tokenizer) -> f64 {
    let (mut quote, mut other) = (f64::NEG_INFINITY, f64::NEG_INFINITY);
    for (id, likely) in (0..).zip(predicted) {
        match guide.preference(tokenizer.text_bytes(id)) {
            Some(0.0) => other = other.max(*likely),
            Some(_) => quote = quote.max(*likely),
            None => {}
        }
    }
    quote - other
}

/// The largest bar of a language at which at least this share of what begins with a quote still does; `None` with too few examples of either
/// kind.
#[must_use]
pub fn bar(decisions: &[Decision], language: Language, share: f64) -> Option<Found> {
    let of = |quoted: bool| -> Vec<f64> {
        let own = decisions.iter().filter(|one| one.language == language && one.quoted == quoted);
        own.map(|one| one.odds).collect()
    };
    let (mut answered, declined) = (of(true), of(false));
    if answered.len().min(declined.len()) < FEWEST {
        return None;
    }
    answered.sort_by(|a, b| b.total_cmp(a));
    let wanted = (share * answered.len() as f64).ceil().max(1.0) as usize;
    let least = answered[wanted.min(answered.len()) - 1];
    // Two digits are more than so few examples tell; one at the bar itself would not be above it.
    let bar = ((least * 100.0).ceil() - 1.0) / 100.0;
    let rate = |odds: &[f64], above: bool| {
        Rate::of(&odds.iter().map(|odds| (*odds > bar) == above).collect::<Vec<_>>())
    };
    let area = area(&answered, &declined)?;
    Some(Found {
        language,
        bar: bar as f32,
        answered: rate(&answered, true),
        declined: rate(&declined, false),
        area,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_bar_that_answers_enough_is_found_of_each_language() {
        let decision = |language, quoted, odds| Decision { language, quoted, odds };
        let mut decisions: Vec<Decision> =
            (0..100).map(|n| decision(Language::En, true, f64::from(n) / 10.0)).collect();
        decisions.extend((0..40).map(|n| decision(Language::En, false, f64::from(n) / 10.0 - 2.0)));
        decisions.extend((0..19).map(|n| decision(Language::Ja, n % 2 == 0, f64::from(n))));
        let found = bar(&decisions, Language::En, 0.9).unwrap();
        let of = |rate: Rate| (rate.held, rate.of);
        assert_eq!((found.bar, of(found.answered), of(found.declined)), (0.99, (90, 100), (30, 40)));
        // 2000 pairs with the 20 below zero, and of the other 20 those with 99.5, 98.5 and so on.
        assert!((found.area - 0.95).abs() < 0.01, "{}", found.area);
        let all = bar(&decisions, Language::En, 1.0).unwrap();
        assert_eq!((all.bar, of(all.answered)), (-0.01, (100, 100)));
        assert_eq!(bar(&decisions, Language::Ja, 0.9), None, "too few");
    }
}
