//! The loss of a reader and its gradient: an encoder forward over a question and sentences, and back again.
//!
//! As in [`graph`](crate::tune::graph), the derivative of a fixed chain is written down operation by operation in reverse; frozen weights get
//! none. The loss is that of choosing a sentence that answers, by nearness and bearing together, or none at all (the null score of Rajpurkar et
//! al. 2018): −ln Σ p over those that answer, or −ln p of none where none does.

use crate::kernels::{Activations, Affine, Cpu, Matrix, Output, Pages, View, ViewMut};
use crate::model::embed::adapter::{AdapterShape, EncoderMap, Place};
use crate::model::embed::encoder::{Encoder, Shape};
use crate::model::embed::interaction::{COSINE, States, WORDS, dot};
use crate::model::frozen::Transposed;
use crate::quote::NEARNESS;
use crate::tune::attention::{Heads, Kept, Sequence, attend, attend_back};
use crate::tune::elementwise::{self, gelu_back, layer_norm_back};
use crate::tune::maps::{frozen_back, quantised};

use super::examples::ReaderExample;

/// What a layer keeps for the way back.
#[derive(Default)]
struct Layer {
    x: Vec<f32>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    attended: Vec<f32>,
    logs: Vec<f32>,
    /// Before the norm behind attention, and behind it.
    raw_middle: Vec<f32>,
    middle: Vec<f32>,
    /// Before the activation, and behind it.
    up: Vec<f32>,
    active: Vec<f32>,
    /// Before the norm behind the feed-forward layer.
    raw_fed: Vec<f32>,
    /// A x of each map.
    low: [Vec<f32>; EncoderMap::ALL.len()],
}

/// An encoder with room to train an adapter on it.
pub struct ReaderGraph<'a> {
    encoder: &'a Encoder,
    cpu: &'a Cpu,
    adapter: AdapterShape,
    scale: f32,
    /// The score of none.
    pub(super) none: f32,
    back: Vec<[Transposed; EncoderMap::ALL.len()]>,
    layers: Vec<Layer>,
}

/// What an example's loss is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    /// In nats.
    pub loss: f64,
    /// Whether the sentence that is preferred is one that answers.
    pub right: bool,
    /// The logarithm of the odds that one answers against none.
    pub odds: f32,
}

impl<'a> ReaderGraph<'a> {
    /// Over an encoder, for adapters of a rank whose result is multiplied by `scale`. `None` when a weight is not finite.
    pub(crate) fn new(encoder: &'a Encoder, cpu: &'a Cpu, rank: usize, scale: f32) -> Option<Self> {
        let mut pages = Pages::default();
        let mut back = Vec::with_capacity(encoder.shape.layers);
        for layer in 0..encoder.shape.layers {
            let mut maps = Vec::with_capacity(EncoderMap::ALL.len());
            for map in EncoderMap::ALL {
                let weight = &encoder.linear(layer, map).weight;
                let shape = (weight.rows(), weight.columns());
                maps.push(Transposed::of(weight.kind(), shape, &numbers_of(weight), &mut pages)?);
            }
            back.push(maps.try_into().ok()?);
        }
        let layers = (0..encoder.shape.layers).map(|_| Layer::default()).collect();
        Some(Self { encoder, cpu, adapter: encoder.adapter_shape(rank), scale, none: 0.0, back, layers })
    }

    /// How an example is decided by an adapter of these numbers.
    pub fn decide(&mut self, numbers: &[f32], example: &ReaderExample) -> Choice {
        let (texts, spans) = sequences(example);
        let x = self.forward(numbers, &texts, &spans);
        let states = self.states(&x, &spans);
        choose(example, &states, self.none).0
    }

    /// The same; adds the gradient of the loss times a weight to `slopes`, of the layout of the numbers.
    pub fn gradients(
        &mut self,
        numbers: &[f32],
        example: &ReaderExample,
        weight: f32,
        slopes: &mut [f32],
    ) -> Choice {
        let (texts, spans) = sequences(example);
        let x = self.forward(numbers, &texts, &spans);
        let states = self.states(&x, &spans);
        let (choice, of_near) = choose(example, &states, self.none);
        let hidden = self.encoder.shape.hidden;
        let mut slope = vec![0f32; x.len()];
        nearness_back(&states, &of_near, weight, &spans, hidden, &mut slope);
        for layer in (0..self.layers.len()).rev() {
            self.layer_back(layer, numbers, &spans, &mut slope, slopes);
        }
        choice
    }

    fn states(&self, x: &[f32], spans: &[Sequence]) -> Vec<States> {
        let hidden = self.encoder.shape.hidden;
        let of = |one: &Sequence| States::new(&x[one.rows.start * hidden..one.rows.end * hidden], hidden);
        spans.iter().map(of).collect()
    }

    fn heads(&self) -> Heads {
        let Shape { hidden, heads, .. } = self.encoder.shape;
        let dim = hidden / heads;
        let scale = 1.0 / (dim as f32).sqrt();
        Heads { heads, kv_heads: heads, dim, scale, window: usize::MAX, whole: true }
    }

    /// What the last layer gives, of shape (tokens, hidden).
    fn forward(&mut self, numbers: &[f32], texts: &[Vec<u32>], spans: &[Sequence]) -> Vec<f32> {
        let (cpu, encoder) = (self.cpu, self.encoder);
        let Shape { hidden, ffn, heads, eps, .. } = encoder.shape;
        let mut start = Vec::new();
        encoder.inputs(cpu, texts, &mut start);
        let rows = start.len() / hidden;
        let mut x = Activations::default();
        x.resize(rows, hidden);
        x.floats_mut().fill(0.0);
        cpu.add_layer_norm(&mut x, &start, encoder.norm.affine(eps));
        let h = self.heads();
        for layer in 0..self.layers.len() {
            let mut kept = std::mem::take(&mut self.layers[layer]);
            let this = &*self;
            let block = &encoder.blocks[layer];
            set(&mut kept.x, x.floats());
            let of_x = [EncoderMap::Query, EncoderMap::Key, EncoderMap::Value];
            for (map, to) in of_x.into_iter().zip([&mut kept.q, &mut kept.k, &mut kept.v]) {
                this.linear((layer, map), numbers, &x, &mut kept.low, to);
            }
            kept.attended.resize(rows * hidden, 0.0);
            kept.logs.resize(rows * heads, 0.0);
            attend(cpu, h, spans, [&kept.q, &kept.k, &kept.v], &mut kept.attended, &mut kept.logs);
            let attended = quantised(cpu, &kept.attended, hidden, 1.0);
            let mut out = Vec::new();
            this.linear((layer, EncoderMap::AttentionOut), numbers, &attended, &mut kept.low, &mut out);
            this.add_norm(&mut x, &out, block.attention_norm.affine(eps), &mut kept.raw_middle);
            set(&mut kept.middle, x.floats());
            this.linear((layer, EncoderMap::Up), numbers, &x, &mut kept.low, &mut kept.up);
            let mut active = Activations::default();
            active.resize(rows, ffn);
            active.floats_mut().copy_from_slice(&kept.up);
            cpu.gelu(&mut active);
            set(&mut kept.active, active.floats());
            this.linear((layer, EncoderMap::Down), numbers, &active, &mut kept.low, &mut out);
            this.add_norm(&mut x, &out, block.ffn_norm.affine(eps), &mut kept.raw_fed);
            self.layers[layer] = kept;
        }
        x.floats().to_vec()
    }

    /// x ← LayerNorm(x + y); what is normalised is kept.
    fn add_norm(&self, x: &mut Activations, y: &[f32], norm: Affine<'_>, raw: &mut Vec<f32>) {
        set(raw, x.floats());
        elementwise::add(self.cpu, y, raw);
        self.cpu.add_layer_norm(x, y, norm);
    }

    /// A linear map with its delta.
    fn linear(
        &self,
        (layer, map): (usize, EncoderMap),
        numbers: &[f32],
        inputs: &Activations,
        low: &mut [Vec<f32>; EncoderMap::ALL.len()],
        to: &mut Vec<f32>,
    ) {
        let Place { shape: (outputs, columns), a, b } = self.adapter.place(layer, map);
        let rank = self.adapter.rank;
        let x = inputs.floats();
        let rows = x.len() / columns;
        to.resize(rows * outputs, 0.0);
        let part = self.encoder.linear(layer, map).part(&[]);
        self.cpu.linear(inputs, &[part], &mut [Output { to: &mut *to, stride: outputs, add: false }]);
        let low = &mut low[map as usize];
        low.resize(rows * rank, 0.0);
        let (a, b) = (View::new(&numbers[a], (rank, columns)), View::new(&numbers[b], (outputs, rank)));
        let x = View::new(x, (rows, columns));
        self.cpu.product(x, a.transposed(), 1.0, &mut ViewMut::new(low, (rows, rank)), 0.0);
        let to = &mut ViewMut::new(to, (rows, outputs));
        self.cpu.product(View::new(low, (rows, rank)), b.transposed(), self.scale, to, 1.0);
    }

    /// The adjoint of [`linear`](Self::linear): the gradient of the inputs is set or added to, those of the matrices are added to.
    #[allow(clippy::too_many_arguments, reason = "one call's worth of a layer's parts")]
    fn linear_back(
        &self,
        (layer, map): (usize, EncoderMap),
        numbers: &[f32],
        low: &[Vec<f32>; EncoderMap::ALL.len()],
        inputs: &[f32],
        slope: &[f32],
        to: &mut [f32],
        add: bool,
        slopes: &mut [f32],
    ) {
        let (cpu, rank) = (self.cpu, self.adapter.rank);
        frozen_back(cpu, &self.back[layer][map as usize], slope, to, add);
        let Place { shape: (outputs, columns), a, b } = self.adapter.place(layer, map);
        let rows = slope.len() / outputs;
        let dy = View::new(slope, (rows, outputs));
        let low = View::new(&low[map as usize], (rows, rank));
        let db = &mut ViewMut::new(&mut slopes[b.clone()], (outputs, rank));
        cpu.product(dy.transposed(), low, self.scale, db, 1.0);
        let mut d_low = vec![0f32; rows * rank];
        let b = View::new(&numbers[b], (outputs, rank));
        cpu.product(dy, b, self.scale, &mut ViewMut::new(&mut d_low, (rows, rank)), 0.0);
        let d_low = View::new(&d_low, (rows, rank));
        let da = &mut ViewMut::new(&mut slopes[a.clone()], (rank, columns));
        cpu.product(d_low.transposed(), View::new(inputs, (rows, columns)), 1.0, da, 1.0);
        let a = View::new(&numbers[a], (rank, columns));
        cpu.product(d_low, a, 1.0, &mut ViewMut::new(to, (rows, columns)), 1.0);
    }

    /// One layer back: `slope`, the gradient of what it gave, becomes that of what it took.
    fn layer_back(
        &mut self,
        layer: usize,
        numbers: &[f32],
        spans: &[Sequence],
        slope: &mut Vec<f32>,
        slopes: &mut [f32],
    ) {
        let kept = std::mem::take(&mut self.layers[layer]);
        let this = &*self;
        let (cpu, block) = (this.cpu, &this.encoder.blocks[layer]);
        let Shape { hidden, ffn, eps, .. } = this.encoder.shape;
        let rows = slope.len() / hidden;
        let low = &kept.low;

        let mut d_sum = layer_norm_back(cpu, &kept.raw_fed, block.ffn_norm.affine(eps), slope);
        let mut d_up = vec![0f32; rows * ffn];
        let down = (layer, EncoderMap::Down);
        this.linear_back(down, numbers, low, &kept.active, &d_sum, &mut d_up, false, slopes);
        gelu_back(cpu, &kept.up, &kept.active, &mut d_up);
        // The residual connection's share is there already.
        let d_middle = &mut d_sum;
        this.linear_back((layer, EncoderMap::Up), numbers, low, &kept.middle, &d_up, d_middle, true, slopes);

        let mut d_sum = layer_norm_back(cpu, &kept.raw_middle, block.attention_norm.affine(eps), d_middle);
        let mut d_attended = vec![0f32; rows * hidden];
        let out = (layer, EncoderMap::AttentionOut);
        this.linear_back(out, numbers, low, &kept.attended, &d_sum, &mut d_attended, false, slopes);
        let [mut dq, mut dk, mut dv] = [(); 3].map(|()| vec![0f32; rows * hidden]);
        let forward = Kept { q: &kept.q, k: &kept.k, v: &kept.v, out: &kept.attended, logs: &kept.logs };
        attend_back(cpu, this.heads(), spans, forward, &d_attended, [&mut dq, &mut dk, &mut dv]);
        for (map, dy) in [(EncoderMap::Query, &dq), (EncoderMap::Key, &dk), (EncoderMap::Value, &dv)] {
            this.linear_back((layer, map), numbers, low, &kept.x, dy, &mut d_sum, true, slopes);
        }
        *slope = d_sum;
        self.layers[layer] = kept;
    }
}

fn set(to: &mut Vec<f32>, from: &[f32]) {
    to.clear();
    to.extend_from_slice(from);
}

fn numbers_of(weight: &Matrix) -> Vec<f32> {
    let columns = weight.columns();
    let mut numbers = vec![0f32; weight.rows() * columns];
    numbers.chunks_exact_mut(columns).enumerate().for_each(|(row, to)| weight.row(row, to));
    numbers
}

/// The question and the sentences as texts that run together, with their rows.
fn sequences(example: &ReaderExample) -> (Vec<Vec<u32>>, Vec<Sequence>) {
    let sentences = example.sentences.iter().map(|sentence| &sentence.tokens);
    let texts: Vec<Vec<u32>> = std::iter::once(&example.question).chain(sentences).cloned().collect();
    let mut end = 0;
    let spans = texts.iter().map(|text| {
        let rows = end..end + text.len();
        end = rows.end;
        Sequence { keys: rows.clone(), rows }
    });
    let spans = spans.collect();
    (texts, spans)
}

/// The loss of choosing among an example's sentences, and its derivative by the nearness of each.
fn choose(example: &ReaderExample, states: &[States], none: f32) -> (Choice, Vec<f32>) {
    let Some((question, texts)) = states.split_first() else {
        return (Choice { loss: 0.0, right: false, odds: 0.0 }, Vec::new());
    };
    let scores = texts.iter().zip(&example.sentences);
    let scores: Vec<f32> =
        scores.map(|(text, sentence)| NEARNESS * question.nearness(text) + sentence.bearing).collect();
    let top = scores.iter().copied().fold(none, f32::max);
    let likely: Vec<f64> = scores.iter().map(|score| f64::from(score - top).exp()).collect();
    let answers = || example.sentences.iter().map(|sentence| sentence.answers);
    let (some, none): (f64, f64) = (likely.iter().sum(), f64::from(none - top).exp());
    let all = some + none;
    let right: f64 = likely.iter().zip(answers()).filter(|(_, answers)| *answers).map(|(p, _)| p).sum();
    let right = if example.is_answered() { right } else { none };
    let right = right.max(f64::MIN_POSITIVE);
    let slopes = likely.iter().zip(answers()).map(|(p, answers)| {
        let of_right = if answers { p / right } else { 0.0 };
        NEARNESS * (p / all - of_right) as f32
    });
    let best = (0..scores.len()).max_by(|a, b| scores[*a].total_cmp(&scores[*b]));
    let choice = Choice {
        loss: (all / right).ln(),
        right: best.is_some_and(|best| example.sentences[best].answers),
        odds: (some.max(f64::MIN_POSITIVE) / none.max(f64::MIN_POSITIVE)).ln() as f32,
    };
    (choice, slopes.collect())
}

/// The adjoint of [`States::nearness`] of each sentence: adds the gradient of all rows, given those of the nearnesses, times a weight.
fn nearness_back(
    states: &[States],
    slopes: &[f32],
    weight: f32,
    spans: &[Sequence],
    hidden: usize,
    to: &mut [f32],
) {
    let [question, texts @ ..] = states else { return };
    let [of_question, of_texts @ ..] = spans else { return };
    // Of rows of unit length; what that makes of the rows themselves comes after.
    let mut d_question = vec![0f32; question.inner.len()];
    let mut d_mean = vec![0f32; hidden];
    for ((text, span), slope) in texts.iter().zip(of_texts).zip(slopes) {
        let slope = slope * weight;
        let mut d_text = vec![0f32; text.inner.len()];
        let share = WORDS * slope / question.lengths.len().max(1) as f32;
        for (row, d_row) in question.rows().zip(d_question.chunks_exact_mut(hidden)) {
            let Some((nearest, _)) = text.nearest(row) else { continue };
            let own = nearest * hidden..(nearest + 1) * hidden;
            add_scaled(&mut d_text[own.clone()], row, share);
            add_scaled(d_row, &text.inner[own], share);
        }
        let mut d_text_mean = vec![0f32; hidden];
        add_scaled(&mut d_text_mean, &question.mean, COSINE * slope);
        add_scaled(&mut d_mean, &text.mean, COSINE * slope);
        states_back(text, &d_text, &d_text_mean, span, to);
    }
    states_back(question, &d_question, &d_mean, of_question, to);
}

/// The adjoint of [`States::new`].
fn states_back(states: &States, d_inner: &[f32], d_mean: &[f32], span: &Sequence, to: &mut [f32]) {
    let hidden = states.hidden;
    let to = &mut to[span.rows.start * hidden..span.rows.end * hidden];
    let mut of_mean = vec![0f32; hidden];
    unit_back(&states.mean, states.mean_length, d_mean, &mut of_mean);
    let share = 1.0 / span.rows.len() as f32;
    to.chunks_exact_mut(hidden).for_each(|row| add_scaled(row, &of_mean, share));
    let inner = to.chunks_exact_mut(hidden).skip(1);
    let rows = states.rows().zip(&states.lengths).zip(d_inner.chunks_exact(hidden));
    for (to, ((row, length), slope)) in inner.zip(rows) {
        unit_back(row, *length, slope, to);
    }
}

/// The adjoint of making a vector one of unit length, given that and how long it was; added.
fn unit_back(unit: &[f32], length: f32, slope: &[f32], to: &mut [f32]) {
    if length > 0.0 {
        let along = dot(unit, slope);
        for ((to, unit), slope) in to.iter_mut().zip(unit).zip(slope) {
            *to += (slope - along * unit) / length;
        }
    }
}

fn add_scaled(to: &mut [f32], from: &[f32], by: f32) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += by * from);
}

#[cfg(test)]
mod tests {
    use rand::{Rng as _, SeedableRng as _};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::kernels::Variant;
    use crate::model::embed::adapter::{EncoderAdapter, PackedEncoderAdapter};
    use crate::model::embed::encoder::{Block, Linear, Norm, Pooling, Workspace};
    use crate::tune::reader::examples::Sentence;

    /// An encoder of random numbers in 32 bits.
    fn encoder(random: &mut ChaCha8Rng) -> Encoder {
        let shape = Shape {
            hidden: 32,
            layers: 2,
            heads: 2,
            ffn: 64,
            vocab: 20,
            positions: 16,
            first_position: 0,
            eps: 1e-5,
            pooling: Pooling::Mean,
        };
        let mut pages = Pages::default();
        let mut numbers = |count: usize, size: f32| {
            (0..count).map(|_| random.random_range(-size..size)).collect::<Vec<_>>()
        };
        let norm = |numbers: &mut dyn FnMut(usize, f32) -> Vec<f32>| Norm {
            weight: numbers(32, 0.3).into_iter().map(|n| n + 1.0).collect(),
            bias: numbers(32, 0.2),
        };
        let words = Matrix::pack_f32((20, 32), &numbers(20 * 32, 1.0), &mut pages).unwrap();
        let positions = numbers(16 * 32, 0.5);
        let first = norm(&mut numbers);
        let mut blocks = Vec::new();
        for _ in 0..shape.layers {
            let mut linear = |outputs: usize, inputs: usize| Linear {
                weight: Matrix::pack_f32((outputs, inputs), &numbers(outputs * inputs, 0.3), &mut pages)
                    .unwrap(),
                bias: numbers(outputs, 0.1),
            };
            let attention = [linear(32, 32), linear(32, 32), linear(32, 32)];
            let (attention_out, up, down) = (linear(32, 32), linear(64, 32), linear(32, 64));
            let (attention_norm, ffn_norm) = (norm(&mut numbers), norm(&mut numbers));
            blocks.push(Block { attention, attention_out, attention_norm, up, down, ffn_norm });
        }
        Encoder { shape, words, positions, norm: first, blocks }
    }

    fn example() -> ReaderExample {
        let sentence =
            |tokens: &[u32], bearing, answers| Sentence { tokens: tokens.to_vec(), bearing, answers };
        ReaderExample {
            place: "test:1".into(),
            question: vec![0, 5, 6, 7, 2],
            sentences: vec![
                sentence(&[0, 5, 9, 10, 11, 2], 0.5, false),
                sentence(&[0, 12, 13, 6, 2], -0.2, true),
                sentence(&[0, 14, 2], 0.1, false),
                sentence(&[0, 15, 16, 17, 7, 18, 2], 0.0, true),
            ],
        }
    }

    /// Along a random direction of all numbers the loss changes by what the gradient says.
    #[test]
    fn the_gradient_is_that_of_the_loss() {
        let mut random = ChaCha8Rng::seed_from_u64(3);
        let (encoder, cpu) = (encoder(&mut random), Cpu::new(Variant::best(), 2).unwrap());
        let mut graph = ReaderGraph::new(&encoder, &cpu, 4, 0.7).unwrap();
        let count = encoder.adapter_shape(4).count();
        let numbers: Vec<f32> = (0..count).map(|_| random.random_range(-0.2..0.2)).collect();
        let example = example();
        let mut slopes = vec![0f32; count];
        let choice = graph.gradients(&numbers, &example, 1.0, &mut slopes);
        assert_eq!(choice, graph.decide(&numbers, &example));
        assert!(choice.loss > 0.01 && choice.loss < 20.0, "{}", choice.loss);
        for layer in 0..2 {
            for map in EncoderMap::ALL {
                let place = encoder.adapter_shape(4).place(layer, map);
                for range in [place.a, place.b] {
                    assert!(slopes[range].iter().any(|slope| *slope != 0.0), "{layer} {map:?}");
                }
            }
        }
        for _ in 0..8 {
            let direction: Vec<f32> = (0..count).map(|_| random.random_range(-1.0..1.0)).collect();
            let mut along = |by: f32| {
                let moved: Vec<f32> = numbers.iter().zip(&direction).map(|(n, d)| n + by * d).collect();
                graph.decide(&moved, &example).loss
            };
            let step = 2e-4;
            let measured = (along(step) - along(-step)) / f64::from(2.0 * step);
            let told: f64 = slopes.iter().zip(&direction).map(|(s, d)| f64::from(s * d)).sum();
            let size = slopes.iter().map(|s| f64::from(s * s)).sum::<f64>().sqrt();
            assert!((measured - told).abs() < 0.02 * size, "{measured} {told} {size}");
        }
    }

    /// What is trained is what serves.
    #[test]
    fn serving_finds_the_same() {
        let mut random = ChaCha8Rng::seed_from_u64(6);
        let (encoder, cpu) = (encoder(&mut random), Cpu::new(Variant::best(), 2).unwrap());
        let (shape, scale) = (encoder.adapter_shape(4), 0.7);
        let numbers: Vec<f32> = (0..shape.count()).map(|_| random.random_range(-0.2..0.2)).collect();
        let mut graph = ReaderGraph::new(&encoder, &cpu, 4, scale).unwrap();
        let example = example();
        let choice = graph.decide(&numbers, &example);

        let adapter = EncoderAdapter { shape, scale, none: 0.0, numbers };
        let packed = PackedEncoderAdapter::pack(&adapter, &encoder).unwrap();
        let (texts, spans) = sequences(&example);
        let mut work = Workspace::default();
        let rows = encoder.states(&cpu, &texts, Some(&packed), &mut work);
        let states: Vec<States> = spans
            .iter()
            .map(|span| States::new(&rows[span.rows.start * 32..span.rows.end * 32], 32))
            .collect();
        let (served, _) = choose(&example, &states, 0.0);
        // The packed matrices are in half precision.
        assert!((served.odds - choice.odds).abs() < 0.02 * choice.odds.abs(), "{served:?} {choice:?}");
        assert_eq!(served.right, choice.right);
        let (plain, _) = choose(
            &example,
            &{
                let rows = encoder.states(&cpu, &texts, None, &mut work);
                spans
                    .iter()
                    .map(|s| States::new(&rows[s.rows.start * 32..s.rows.end * 32], 32))
                    .collect::<Vec<_>>()
            },
            0.0,
        );
        assert!((plain.odds - choice.odds).abs() > 0.1, "the adapter does something");
    }

    /// Where none answers, scores must come down below that of none.
    #[test]
    fn none_may_answer() {
        let mut random = ChaCha8Rng::seed_from_u64(5);
        let (encoder, cpu) = (encoder(&mut random), Cpu::new(Variant::best(), 1).unwrap());
        let mut graph = ReaderGraph::new(&encoder, &cpu, 2, 1.0).unwrap();
        let count = encoder.adapter_shape(2).count();
        let mut numbers: Vec<f32> = (0..count).map(|_| random.random_range(-0.2..0.2)).collect();
        let mut example = example();
        graph.none = graph.decide(&numbers, &example).odds;
        let level = graph.decide(&numbers, &example);
        assert!(level.odds.abs() < 1e-3, "{level:?}");
        example.sentences.iter_mut().for_each(|sentence| sentence.answers = false);
        let mut slopes = vec![0f32; count];
        let choice = graph.gradients(&numbers, &example, 1.0, &mut slopes);
        assert!(!choice.right && (choice.loss - std::f64::consts::LN_2).abs() < 1e-3, "{choice:?}");
        numbers.iter_mut().zip(&slopes).for_each(|(number, slope)| *number -= 1e-5 * slope);
        assert!(graph.decide(&numbers, &example).odds < level.odds);
    }

    /// An example with weight ½ twice is the example.
    #[test]
    fn weights_add_up() {
        let mut random = ChaCha8Rng::seed_from_u64(4);
        let (encoder, cpu) = (encoder(&mut random), Cpu::new(Variant::best(), 1).unwrap());
        let mut graph = ReaderGraph::new(&encoder, &cpu, 2, 1.0).unwrap();
        let count = encoder.adapter_shape(2).count();
        let numbers: Vec<f32> = (0..count).map(|_| random.random_range(-0.2..0.2)).collect();
        let [mut once, mut twice] = [(); 2].map(|()| vec![0f32; count]);
        graph.gradients(&numbers, &example(), 1.0, &mut once);
        for _ in 0..2 {
            graph.gradients(&numbers, &example(), 0.5, &mut twice);
        }
        assert!(once.iter().zip(&twice).all(|(a, b)| (a - b).abs() <= 1e-4 * (1.0 + a.abs())));
    }
}
