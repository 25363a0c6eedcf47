//! From where on an adapter that quotes should begin to, and go on: how much likelier than all else it finds a quote where one answers, and
//! where none does. Adapters differ in that, and so do their languages, which one bar for all cannot fit.

use serde::Serialize;

use super::answers::{AnswersError, Held, passages};
use super::distributions::logits;
use super::in_prompt::PromptSigns;
use super::metrics::area;
use super::rates::Rate;
use crate::language::Language;
use crate::model::BaseModel;
use crate::model::fast::{FastDecoder, PackedAdapter};
use crate::model::template::{TemplateError, encode_segments};
use crate::model::tokenizer::Tokenizer;
use crate::quote::{self, QuoteChoice, QuoteGuide, Signed};

/// What an adapter makes of one place of an example where a quote may begin.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Decision {
    /// The example's language.
    pub language: Language,
    /// So many quotes stand before the place.
    pub after: usize,
    /// Whether a quote begins here.
    pub quoted: bool,
    /// The logarithm of the odds of a quote's likeliest beginning against the likeliest other token: greedily, it quotes where this is above
    /// the bar.
    pub odds: f64,
}

/// What a bar of first quotes comes to in a language.
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

/// What a bar of further quotes comes to in a language.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct FoundFurther {
    /// Of which language.
    pub language: Language,
    /// The bar.
    pub bar: f32,
    /// Of the quotes behind which another stands, those behind which the adapter then goes on quoting.
    pub went_on: Rate,
    /// Of those behind which the answer stands, those behind which it then answers.
    pub ended: Rate,
    /// The area under the curve: how often a place of the first kind has higher odds than one of the second.
    pub area: f64,
}

/// The fewest places of a kind and language that a bar is found of.
pub const FEWEST: usize = 20;

/// Has the adapter begin each example that has passages, and go on behind each of the example's own quotes; with what a reader adds to the odds
/// of a first quote as serving does. `weighed` is told how many are done.
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
            let quotes = quote::split(&one.reference, texts()).0;
            let begins = adapter.begins(&tokens).map(|begins| (adapter, begins));
            let mut written = tokens.clone();
            let mut places = vec![written.len()];
            let lines: Vec<String> = quotes.iter().map(|quote| quote::with(&[&quote.text], "")).collect();
            for line in &lines {
                written.extend(model.tokenizer.encode_content(line)?);
                places.push(written.len());
            }
            let behind = logits(model, &written, written.len() - tokens.len() + 1, begins, stop)
                .map_err(|source| AnswersError::Decode { id: one.id.clone(), source })?;
            let read = match one.question.as_ref().filter(|_| served.reader_odds > 0.0) {
                Some(question) => signs.of(&passages(one, true), question),
                None => Ok(Signed::default()),
            };
            let read = read.map_err(|source| AnswersError::Nearness { id: one.id.clone(), source })?;
            // Any bar shows which tokens begin a quote.
            let choice = QuoteChoice { bar: 1.0, further_bar: 1.0, ..QuoteChoice::default() };
            let mut guide = QuoteGuide::choosing(Signed::plain(possible), choice);
            for (after, place) in places.into_iter().enumerate() {
                let row = (place - tokens.len()) * model.config.vocab;
                let odds = odds(&guide, &behind[row..row + model.config.vocab], &model.tokenizer);
                let support = if after == 0 { served.support(&read) } else { 0.0 };
                let quoted = after < lines.len();
                // Behind the last that may be quoted nothing is left to decide.
                if odds.is_finite() {
                    decisions.push(Decision {
                        language: one.language,
                        after,
                        quoted,
                        odds: odds + f64::from(support),
                    });
                }
                if quoted {
                    guide.push(lines[after].as_bytes());
                }
            }
        }
        weighed(at + 1);
    }
    Ok(decisions)
}

/// The logarithm of the odds: the logits' common sum does not count in it.
fn odds(guide: &QuoteGuide, logits: &[f32], tokenizer: &Tokenizer) -> f64 {
    let (mut quote, mut other) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
    for (id, likely) in (0..).zip(logits) {
        match guide.preference(tokenizer.text_bytes(id)) {
            Some(0.0) => other = other.max(*likely),
            Some(_) => quote = quote.max(*likely),
            None => {}
        }
    }
    f64::from(quote) - f64::from(other)
}

/// The odds of a language where a quote begins, falling, and where none does; `None` with too few of either.
fn odds_of(decisions: &[Decision], language: Language, first: bool) -> Option<(Vec<f64>, Vec<f64>)> {
    let own = decisions.iter().filter(|one| one.language == language && (one.after == 0) == first);
    let (quoted, other): (Vec<&Decision>, Vec<&Decision>) = own.partition(|one| one.quoted);
    let odds = |of: Vec<&Decision>| of.iter().map(|one| one.odds).collect::<Vec<f64>>();
    let (mut quoted, other) = (odds(quoted), odds(other));
    quoted.sort_by(|a, b| b.total_cmp(a));
    (quoted.len().min(other.len()) >= FEWEST).then_some((quoted, other))
}

/// The largest bar below these odds. Two digits are more than so few examples tell; what is at the bar itself would not be above it.
fn below(odds: f64) -> f64 {
    ((odds * 100.0).ceil() - 1.0) / 100.0
}

/// How many of these odds are above a bar, or are not.
fn rate(odds: &[f64], bar: f64, above: bool) -> Rate {
    Rate::of(&odds.iter().map(|odds| (*odds > bar) == above).collect::<Vec<_>>())
}

/// The largest bar of a language's first quotes at which at least this share of what begins with a quote still does; `None` with too few
/// examples of either kind.
#[must_use]
pub fn bar(decisions: &[Decision], language: Language, share: f64) -> Option<Found> {
    let (quoted, other) = odds_of(decisions, language, true)?;
    let wanted = (share * quoted.len() as f64).ceil().max(1.0) as usize;
    let bar = below(quoted[wanted.min(quoted.len()) - 1]);
    let (answered, declined) = (rate(&quoted, bar, true), rate(&other, bar, false));
    Some(Found { language, bar: bar as f32, answered, declined, area: area(&quoted, &other)? })
}

/// The bar of a language's further quotes at which the adapter most often does as the examples do; of several the lowest. `None` with too few
/// places of either kind.
#[must_use]
pub fn further_bar(decisions: &[Decision], language: Language) -> Option<FoundFurther> {
    let (quoted, other) = odds_of(decisions, language, false)?;
    let at = |bar| (rate(&quoted, bar, true), rate(&other, bar, false));
    // Above the last one nothing is quoted any more.
    let none = quoted.iter().chain(&other).fold(f64::NEG_INFINITY, |most, odds| most.max(*odds));
    let bars = quoted.iter().map(|odds| below(*odds)).chain([(none * 100.0).ceil() / 100.0]);
    let as_examples = |bar: f64| {
        let (went_on, ended) = at(bar);
        went_on.held + ended.held
    };
    let bar = bars.max_by(|a, b| as_examples(*a).cmp(&as_examples(*b)).then(b.total_cmp(a)))?;
    let (went_on, ended) = at(bar);
    Some(FoundFurther { language, bar: bar as f32, went_on, ended, area: area(&quoted, &other)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_bar_that_answers_enough_is_found_of_each_language() {
        let decision = |language, quoted, odds| Decision { language, after: 0, quoted, odds };
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
        assert_eq!(further_bar(&decisions, Language::En), None, "none behind a quote");
    }

    #[test]
    fn further_quotes_begin_where_most_examples_agree() {
        let decision = |quoted, odds| Decision { language: Language::En, after: 1, quoted, odds };
        let mut decisions: Vec<Decision> = (0..20).map(|n| decision(true, f64::from(n) - 2.0)).collect();
        decisions.extend((0..60).map(|n| decision(false, f64::from(n % 6) - 4.0)));
        // Of first quotes it says nothing.
        decisions.extend((0..90).map(|_| Decision { after: 0, ..decision(true, -9.0) }));
        let found = further_bar(&decisions, Language::En).unwrap();
        // At 1.99 sixteen and sixty agree; at 0.99 seventeen and fifty; at 2.99 one less.
        assert_eq!((found.bar, found.went_on.held, found.ended.held), (1.99, 16, 60));
        assert!(found.area > 0.9, "{}", found.area);
        let never: Vec<Decision> = decisions
            .iter()
            .map(|one| Decision { odds: if one.quoted { -5.0 } else { one.odds }, ..*one })
            .collect();
        let found = further_bar(&never, Language::En).unwrap();
        assert_eq!(
            (found.bar, found.went_on.held, found.ended.held),
            (1.0, 0, 60),
            "none is better than all"
        );
    }
}
