//! How near a text is to a question, token by token: for each token of the question the nearest of the text (late interaction: Khattab &
//! Zaharia 2020, ColBERT), beside the cosine of the means of all.

/// What the cosine of the means counts, and what the mean of the nearest tokens' cosines does, so that both together are what
/// [`NEARNESS`](crate::quote::NEARNESS) weighs: a log-linear fit with what [`Bearing`](crate::quote::Bearing) counts, of the embedder alone.
pub(crate) const COSINE: f32 = 0.23;
pub(crate) const WORDS: f32 = 1.25;

/// What the encoder gives for the tokens of a text, marks at both ends included.
#[derive(Debug)]
pub(crate) struct States {
    /// Numbers of a row.
    pub(crate) hidden: usize,
    /// The rows between the marks, each of unit length.
    pub(crate) inner: Vec<f32>,
    /// How long each was.
    pub(crate) lengths: Vec<f32>,
    /// The mean of all rows, of unit length.
    pub(crate) mean: Vec<f32>,
    /// How long it was.
    pub(crate) mean_length: f32,
}

impl States {
    pub(crate) fn new(rows: &[f32], hidden: usize) -> Self {
        let count = rows.len() / hidden;
        let mut mean = vec![0f32; hidden];
        for row in rows.chunks_exact(hidden) {
            mean.iter_mut().zip(row).for_each(|(sum, number)| *sum += number / count as f32);
        }
        let mean_length = unit(&mut mean);
        let mut inner = rows.get(hidden..rows.len().saturating_sub(hidden)).unwrap_or_default().to_vec();
        let lengths = inner.chunks_exact_mut(hidden).map(unit).collect();
        Self { hidden, inner, lengths, mean, mean_length }
    }

    /// Its rows between the marks.
    pub(crate) fn rows(&self) -> std::slice::ChunksExact<'_, f32> {
        self.inner.chunks_exact(self.hidden)
    }

    /// The row of a text that is nearest to a row of a question, and the cosine; `None` for a text without any.
    pub(crate) fn nearest(&self, row: &[f32]) -> Option<(usize, f32)> {
        let cosines = self.rows().map(|own| dot(own, row)).enumerate();
        cosines.reduce(|best, other| if other.1 > best.1 { other } else { best })
    }

    /// How near a text is to this question.
    pub(crate) fn nearness(&self, text: &Self) -> f32 {
        let words: f32 = self.rows().filter_map(|row| text.nearest(row)).map(|(_, cosine)| cosine).sum();
        COSINE * dot(&self.mean, &text.mean) + WORDS * words / self.lengths.len().max(1) as f32
    }
}

/// Makes a vector one of unit length and gives what it was; one of zeros has no direction and stays what it is.
fn unit(row: &mut [f32]) -> f32 {
    let length = dot(row, row).sqrt();
    if length > 0.0 {
        row.iter_mut().for_each(|number| *number /= length);
    }
    length
}

/// The inner product, in an order of its own: the same bits on every machine.
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 16;
    let mut sums = [0f32; LANES];
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a.iter().zip(b) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    sums.iter().sum::<f32>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f32>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_tokens_count_and_marks_do_not() {
        // Marks, then two tokens: one along each axis.
        let question = States::new(&[9.0, 9.0, 1.0, 0.0, 0.0, 2.0, 9.0, 9.0], 2);
        let text = States::new(&[9.0, 9.0, 0.0, 3.0, 9.0, 9.0], 2);
        assert_eq!(question.lengths, [1.0, 2.0]);
        assert_eq!(text.nearest(&[0.0, 1.0]), Some((0, 1.0)));
        let cosine = dot(&question.mean, &text.mean);
        assert!((question.nearness(&text) - (COSINE * cosine + WORDS * 0.5)).abs() < 1e-6);
        // Only marks: nothing to be near to.
        let empty = States::new(&[1.0, 0.0, 1.0, 0.0], 2);
        assert!((question.nearness(&empty) - COSINE * dot(&question.mean, &empty.mean)).abs() < 1e-6);
        assert!(empty.nearness(&text).is_finite());
    }
}
