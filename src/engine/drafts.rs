//! Drafts: guesses at the next tokens, taken from what the text has said before.
//!
//! An answer over passages quotes them, so what followed the last few tokens where they stood before is
//! a good guess at what follows now (prompt lookup; Saxena 2023). A guess is run in one pass behind the
//! newest token and kept as far as the sampler, asked in order with the true logits, draws the same
//! tokens: the answer is the same with drafts and without, whatever the temperature.

use std::collections::HashMap;

/// Tokens that must agree for what followed to be a guess.
const KEY: usize = 3;
/// With the newest token a whole tile of the kernels, which costs little more than one row.
pub(super) const MAX_DRAFT: usize = 7;
/// How long drafting rests after it did not pay; doubled each time in a row.
const REST: usize = 16;
const LONGEST_REST: usize = 256;
/// Weight of the newest observation in the averages.
const NEWEST: f64 = 0.25;

/// Finds drafts for one sequence and watches whether they pay.
#[derive(Debug)]
pub(super) struct Drafter {
    /// The place after the latest occurrence of each key.
    after: HashMap<[u32; KEY], u32>,
    indexed: usize,
    /// Tokens won per pass with a draft, beside the one that is won anyway.
    won: f64,
    rest: usize,
    next_rest: usize,
}

impl Drafter {
    pub(super) fn new() -> Self {
        // The first guess is worth a try: as if half of the drafts so far had been right.
        Self { after: HashMap::new(), indexed: 0, won: MAX_DRAFT as f64 / 2.0, rest: 0, next_rest: REST }
    }

    /// What may follow `tokens`, at most `limit` tokens; none while drafting rests.
    ///
    /// `price` is what a pass with a draft costs in passes without.
    pub(super) fn draft<'t>(&mut self, tokens: &'t [u32], limit: usize, price: f64) -> &'t [u32] {
        self.index(tokens);
        if self.rest > 0 {
            self.rest -= 1;
            return &[];
        }
        if 1.0 + self.won < price {
            self.rest = self.next_rest;
            self.next_rest = (2 * self.next_rest).min(LONGEST_REST);
            // After the rest it gets another chance.
            self.won = price;
            return &[];
        }
        let Some(key) = tokens.last_chunk::<KEY>() else { return &[] };
        let Some(&start) = self.after.get(key) else { return &[] };
        let start = start as usize;
        &tokens[start..tokens.len().min(start + limit.min(MAX_DRAFT))]
    }

    /// Says how many tokens of a draft were right.
    pub(super) fn observe(&mut self, right: usize) {
        self.won += NEWEST * (right as f64 - self.won);
        if right > 0 {
            self.next_rest = REST;
        }
    }

    /// Learns the places of all keys but the one at the very end, which must not find itself.
    fn index(&mut self, tokens: &[u32]) {
        while self.indexed + KEY < tokens.len() {
            let end = self.indexed + KEY;
            if let Some(key) = tokens[..end].last_chunk::<KEY>() {
                self.after.insert(*key, end as u32);
            }
            self.indexed += 1;
        }
    }
}

/// What passes cost, measured: the price of a draft.
#[derive(Debug, Default)]
pub(super) struct Prices {
    plain: Option<f64>,
    drafted: Option<f64>,
}

impl Prices {
    /// Notes the seconds of a pass in which one sequence decoded and nothing else ran.
    pub(super) fn observe(&mut self, drafted: bool, seconds: f64) {
        let average = if drafted { &mut self.drafted } else { &mut self.plain };
        let old = average.unwrap_or(seconds);
        *average = Some(old + NEWEST * (seconds - old));
    }

    /// What a pass with drafts costs in passes without; 1 until both are known.
    pub(super) fn draft(&self) -> f64 {
        match (self.plain, self.drafted) {
            (Some(plain), Some(drafted)) if plain > 0.0 => drafted / plain,
            _ => 1.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_followed_before_is_the_draft() {
        let mut drafter = Drafter::new();
        let text = [1, 2, 3, 4, 5, 6, 9, 1, 2, 3];
        assert_eq!(drafter.draft(&text, 3, 1.0), [4, 5, 6]);
        assert_eq!(drafter.draft(&text, 2, 1.0), [4, 5]);
        // The latest occurrence wins, and a draft may run into the key itself.
        let text = [1, 2, 3, 4, 1, 2, 3, 5, 1, 2, 3];
        assert_eq!(Drafter::new().draft(&text, 7, 1.0), [5, 1, 2, 3]);
        assert_eq!(Drafter::new().draft(&[7, 7, 7, 7], 7, 1.0), [7]);
        assert!(Drafter::new().draft(&[1, 2, 3], 7, 1.0).is_empty());
        assert!(Drafter::new().draft(&[1], 7, 1.0).is_empty());
        assert!(Drafter::new().draft(&[], 7, 1.0).is_empty());
    }

    #[test]
    fn an_index_that_grows_is_an_index_made_at_once() {
        let text: Vec<u32> = (0..200).map(|i| (i * i + 3 * i) % 7).collect();
        let mut growing = Drafter::new();
        for end in 0..text.len() {
            assert_eq!(growing.draft(&text[..end], 7, 0.0), Drafter::new().draft(&text[..end], 7, 0.0));
        }
    }

    #[test]
    fn drafts_that_do_not_pay_rest_longer_and_longer() {
        let text = [1, 2, 3, 4, 1, 2, 3];
        let mut drafter = Drafter::new();
        let mut drafts = 0;
        for _ in 0..1_000 {
            if !drafter.draft(&text, 7, 1.5).is_empty() {
                drafts += 1;
                drafter.observe(0);
            }
        }
        assert!((5..80).contains(&drafts), "{drafts}");
        // Right ones are worth it at any sensible price.
        let mut drafter = Drafter::new();
        for _ in 0..100 {
            assert!(!drafter.draft(&text, 7, 2.0).is_empty());
            drafter.observe(4);
        }
    }
}
