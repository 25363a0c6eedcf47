//! The graph that training differentiates: a decoder forward over whole sequences, and back again.
//!
//! A decoder is a fixed chain, so its derivative is written down here, operation by operation in reverse, instead of being recorded:
//! nothing is kept that the way back does not need, frozen weights get no gradient, and the head runs only where something is
//! to be learnt. `tests/tune` holds it to candle's own differentiation of the reference decoder.

use super::attention::{Heads, Kept, Sequence, attend, attend_back};
use super::batch::{Batch, Prefix, Target};
use super::dropout::dropped;
use super::elementwise::{self, Angles, norm_back};
use super::loss::{Losses, head};
use super::maps::{frozen_back, quantised};
use super::parameters::{Parameters, Slot};
use crate::kernels::{Activations, Cpu, Output, View, ViewMut};
use crate::model::config::ModelConfig;
use crate::model::frozen::{FrozenBlock, FrozenModel};
use crate::model::tensors::Projection;
use crate::model::weights::WeightForm;

/// How a pass is regularised.
#[derive(Debug, Clone, Copy, Default)]
pub struct Regularisation {
    /// Share of the inputs of A that is left out.
    pub dropout: f32,
    /// Decides which.
    pub seed: u64,
    /// Weight of the divergence from the base, KL(base ‖ adapted).
    pub kl: f32,
}

/// What a layer keeps for the way back.
#[derive(Default)]
struct Layer {
    x: Vec<f32>,
    q: Vec<f32>,
    /// With those of prefixes, as the values.
    k: Vec<f32>,
    v: Vec<f32>,
    /// Before their norms, where there are such.
    raw_qk: Option<(Vec<f32>, Vec<f32>)>,
    attended: Vec<f32>,
    logs: Vec<f32>,
    /// Before the norm after attention.
    raw_attended: Option<Vec<f32>>,
    middle: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    /// Before the norm after the feed-forward block.
    raw_fed: Option<Vec<f32>>,
    /// A x of each adapted map.
    low: [Vec<f32>; Projection::ALL.len()],
}

/// What a pass leaves of each layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keep {
    /// All that the way back needs.
    All,
    /// What it took, to run it again from.
    Inputs,
    /// Keys and values.
    Keys,
    /// Nothing.
    Nothing,
}

/// A base model with room to train adapters on it.
pub struct Graph<'a> {
    model: &'a FrozenModel,
    layers: Vec<Layer>,
    /// The one layer's worth of buffers of a pass that keeps less than all.
    spare: Layer,
    checkpointing: bool,
    global: Vec<f64>,
    sliding: Option<Vec<f64>>,
}

/// What is the same for every layer of a pass.
struct Pass<'p> {
    batch: &'p Batch,
    sequences: Vec<Sequence>,
    parameters: Option<&'p Parameters>,
    regularisation: Regularisation,
    global: Angles,
    sliding: Option<Angles>,
}

impl Pass<'_> {
    fn angles(&self, windowed: bool) -> &Angles {
        self.sliding.as_ref().filter(|_| windowed).unwrap_or(&self.global)
    }
}

impl<'a> Graph<'a> {
    /// A graph over a model.
    #[must_use]
    pub fn new(model: &'a FrozenModel) -> Self {
        let config = model.config();
        let layers = (0..config.layers).map(|_| Layer::default()).collect();
        let global = config.rope.frequencies(config.head_dim);
        let sliding = config.sliding.as_ref().map(|s| s.rope.frequencies(config.head_dim));
        Self { model, layers, spare: Layer::default(), checkpointing: false, global, sliding }
    }

    /// Whether the way back runs each layer again from its inputs, instead of keeping what it needs (Chen et al. 2016, gradient
    /// checkpointing): a layer's worth of activations instead of all layers', for one more pass. The gradients have the same bits.
    #[must_use]
    pub fn checkpointing(mut self, checkpointing: bool) -> Self {
        self.checkpointing = checkpointing;
        self
    }

    fn config(&self) -> &'a ModelConfig {
        self.model.config()
    }

    fn cpu(&self) -> &'a Cpu {
        self.model.cpu()
    }

    fn pass<'p>(
        &self,
        batch: &'p Batch,
        parameters: Option<&'p Parameters>,
        regularisation: Regularisation,
    ) -> Pass<'p> {
        let sequences = batch.sequences();
        let positions = || sequences.iter().flat_map(|one| one.prefix()..one.keys.len());
        let global = Angles::new(&self.global, positions());
        let sliding = self.sliding.as_ref().map(|f| Angles::new(f, positions()));
        Pass { batch, sequences, parameters, regularisation, global, sliding }
    }

    /// The losses of a batch's targets, without gradients.
    pub fn losses(&mut self, batch: &Batch, parameters: Option<&Parameters>) -> Losses {
        let pass = self.pass(batch, parameters, Regularisation::default());
        let x = self.forward(&pass, Keep::Nothing);
        let picked = self.picked(&x, &batch.targets);
        head(self.model, &picked, None, &batch.targets, 0.0, None)
    }

    /// The losses of a batch's targets; adds the gradient of their weighted sum to `slopes`, of the layout of the parameters.
    pub fn gradients(
        &mut self,
        batch: &Batch,
        parameters: &Parameters,
        regularisation: Regularisation,
        slopes: &mut [f32],
    ) -> Losses {
        let base = (regularisation.kl > 0.0).then(|| {
            let pass = self.pass(batch, None, Regularisation::default());
            let x = self.forward(&pass, Keep::Nothing);
            self.picked(&x, &batch.targets)
        });
        let pass = self.pass(batch, Some(parameters), regularisation);
        let x = self.forward(&pass, if self.checkpointing { Keep::Inputs } else { Keep::All });
        let picked = self.picked(&x, &batch.targets);
        let mut picked_slopes = vec![0f32; picked.len()];
        let losses = head(
            self.model,
            &picked,
            base.as_deref(),
            &batch.targets,
            regularisation.kl,
            Some(&mut picked_slopes),
        );
        let hidden = self.config().hidden;
        let mut slope = vec![0f32; x.len()];
        let mut normed = vec![0f32; picked.len()];
        let eps = self.config().norm_eps as f32;
        norm_back(self.cpu(), &picked, &self.model.output_norm, eps, &picked_slopes, &mut normed, false);
        for (target, from) in batch.targets.iter().zip(normed.chunks_exact(hidden)) {
            let to = &mut slope[target.row * hidden..(target.row + 1) * hidden];
            to.iter_mut().zip(from).for_each(|(y, x)| *y += x);
        }
        for layer in (0..self.layers.len()).rev() {
            if !self.checkpointing {
                self.layer_back(layer, &pass, parameters, &mut slope, slopes);
                continue;
            }
            let mut x = std::mem::take(&mut self.layers[layer].x);
            std::mem::swap(&mut self.layers[layer], &mut self.spare);
            self.layer(layer, &pass, &mut x);
            self.layer_back(layer, &pass, parameters, &mut slope, slopes);
            std::mem::swap(&mut self.layers[layer], &mut self.spare);
        }
        losses
    }

    /// What the base alone makes of tokens, for sequences that go on from there; kept in 32 bits where its weights have this form, and in half
    /// precision otherwise.
    pub fn prefix(&mut self, tokens: &[u32], form: WeightForm) -> Prefix {
        let spans = std::iter::once(0..tokens.len()).collect();
        let batch = Batch { tokens: tokens.to_vec(), spans, ..Batch::default() };
        let pass = self.pass(&batch, None, Regularisation::default());
        self.forward(&pass, Keep::Keys);
        Prefix::new(tokens.len(), self.layers.iter().map(|kept| [&*kept.k, &*kept.v]), form)
    }

    /// The rows of x that predict targets.
    fn picked(&self, x: &[f32], targets: &[Target]) -> Vec<f32> {
        let hidden = self.config().hidden;
        targets.iter().flat_map(|t| &x[t.row * hidden..(t.row + 1) * hidden]).copied().collect()
    }

    /// Runs all layers and returns the residual stream, of shape (rows, hidden).
    fn forward(&mut self, pass: &Pass<'_>, keep: Keep) -> Vec<f32> {
        let config = self.config();
        let mut x = vec![0f32; pass.batch.tokens.len() * config.hidden];
        self.cpu().embed(&self.model.embedding, &pass.batch.tokens, config.embedding_scale as f32, &mut x);
        for layer in 0..self.layers.len() {
            if keep == Keep::All {
                self.layer(layer, pass, &mut x);
                continue;
            }
            std::mem::swap(&mut self.layers[layer], &mut self.spare);
            self.layer(layer, pass, &mut x);
            std::mem::swap(&mut self.layers[layer], &mut self.spare);
            let (kept, made) = (&mut self.layers[layer], &mut self.spare);
            match keep {
                Keep::Inputs => std::mem::swap(&mut kept.x, &mut made.x),
                Keep::Keys => {
                    std::mem::swap(&mut kept.k, &mut made.k);
                    std::mem::swap(&mut kept.v, &mut made.v);
                }
                Keep::All | Keep::Nothing => {}
            }
        }
        x
    }

    fn heads(&self, layer: usize) -> Heads {
        let config = self.config();
        Heads {
            heads: config.heads,
            kv_heads: config.kv_heads,
            dim: config.head_dim,
            scale: config.attention_scale as f32,
            window: config.layer_attention(layer).1.unwrap_or(usize::MAX),
            whole: false,
        }
    }

    fn layer(&mut self, layer: usize, pass: &Pass<'_>, x: &mut [f32]) {
        let (config, cpu, block) = (self.config(), self.cpu(), &self.model.blocks[layer]);
        let h = self.heads(layer);
        let eps = config.norm_eps as f32;
        let mut kept = std::mem::take(&mut self.layers[layer]);
        let rows = pass.batch.tokens.len();
        let (q_width, kv_width) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        let this = &*self;

        kept.x.clear();
        kept.x.extend_from_slice(x);
        let mut normed = Activations::default();
        cpu.normalise(x, &block.attention_norm, eps, true, &mut normed);
        let (mut k, mut v) = (std::mem::take(&mut kept.k), std::mem::take(&mut kept.v));
        let targets = [
            (Projection::Q, &mut kept.q, q_width),
            (Projection::K, &mut k, kv_width),
            (Projection::V, &mut v, kv_width),
        ];
        for (p, to, width) in targets {
            to.resize(rows * width, 0.0);
            this.linear(layer, p, &normed, pass, &mut kept.low, to, false);
        }
        if let Some((q_norm, k_norm)) = &block.qk_norm {
            let raw = kept.raw_qk.get_or_insert_default();
            raw.0.clone_from(&kept.q);
            raw.1.clone_from(&k);
            cpu.normalise_in_place(&mut kept.q, q_norm, eps);
            cpu.normalise_in_place(&mut k, k_norm, eps);
        }
        let angles = pass.angles(h.window != usize::MAX);
        angles.rotate(cpu, &mut kept.q, q_width, 1.0);
        angles.rotate(cpu, &mut k, kv_width, 1.0);
        (kept.k, kept.v) = (pass.batch.joined(layer, 0, k), pass.batch.joined(layer, 1, v));
        kept.attended.resize(rows * q_width, 0.0);
        kept.logs.resize(rows * config.heads, 0.0);
        attend(cpu, h, &pass.sequences, [&kept.q, &kept.k, &kept.v], &mut kept.attended, &mut kept.logs);
        let attended = quantised(cpu, &kept.attended, q_width, 1.0);
        this.add_residual(
            layer,
            Projection::O,
            &attended,
            pass,
            &block.post_attention_norm,
            (&mut kept.low, &mut kept.raw_attended),
            x,
        );

        kept.middle.clear();
        kept.middle.extend_from_slice(x);
        cpu.normalise(x, &block.ffn_norm, eps, true, &mut normed);
        for (p, to) in [(Projection::Gate, &mut kept.gate), (Projection::Up, &mut kept.up)] {
            to.resize(rows * config.ffn, 0.0);
            this.linear(layer, p, &normed, pass, &mut kept.low, to, false);
        }
        let mut fed = Activations::default();
        fed.resize(rows, config.ffn);
        elementwise::gated(cpu, config.activation, &kept.gate, &kept.up, config.ffn, fed.floats_mut());
        cpu.quantise(&mut fed);
        this.add_residual(
            layer,
            Projection::Down,
            &fed,
            pass,
            &block.post_ffn_norm,
            (&mut kept.low, &mut kept.raw_fed),
            x,
        );
        self.layers[layer] = kept;
    }

    /// x += norm(map), the norm where there is one; what came before the norm is kept.
    #[allow(clippy::too_many_arguments, reason = "one call's worth of a layer's parts")]
    fn add_residual(
        &self,
        layer: usize,
        p: Projection,
        inputs: &Activations,
        pass: &Pass<'_>,
        norm: &Option<Vec<f32>>,
        (low, raw): (&mut [Vec<f32>; Projection::ALL.len()], &mut Option<Vec<f32>>),
        x: &mut [f32],
    ) {
        let Some(norm) = norm else {
            return self.linear(layer, p, inputs, pass, low, x, true);
        };
        let raw = raw.get_or_insert_default();
        raw.resize(x.len(), 0.0);
        self.linear(layer, p, inputs, pass, low, raw, false);
        let mut y = raw.clone();
        self.cpu().normalise_in_place(&mut y, norm, self.config().norm_eps as f32);
        elementwise::add(self.cpu(), &y, x);
    }

    /// A linear map with its delta.
    #[allow(clippy::too_many_arguments, reason = "one call's worth of a layer's parts")]
    fn linear(
        &self,
        layer: usize,
        p: Projection,
        inputs: &Activations,
        pass: &Pass<'_>,
        low: &mut [Vec<f32>; Projection::ALL.len()],
        to: &mut [f32],
        add: bool,
    ) {
        let linear = &self.model.blocks[layer].linears[p as usize];
        let stride = linear.weight.rows();
        self.cpu().linear(inputs, &[linear.part()], &mut [Output { to: &mut *to, stride, add }]);
        let Some((parameters, slot)) = pass.parameters.and_then(|ps| Some((ps, ps.slot(layer, p)?))) else {
            return;
        };
        let (rank, (outputs, columns)) = (parameters.shape().rank, slot.shape);
        let x = inputs.floats();
        let rows = x.len() / columns;
        let dropped = dropped(self.cpu(), x, columns, slot, pass.regularisation);
        let x = View::new(dropped.as_deref().unwrap_or(x), (rows, columns));
        let (a, b) = matrices(&parameters.numbers, slot, rank);
        let low = &mut low[p as usize];
        low.resize(rows * rank, 0.0);
        self.cpu().product(x, a.transposed(), 1.0, &mut ViewMut::new(low, (rows, rank)), 0.0);
        let to = &mut ViewMut::new(to, (rows, outputs));
        self.cpu().product(View::new(low, (rows, rank)), b.transposed(), parameters.shape().scale(), to, 1.0);
    }

    /// The adjoint of [`linear`](Self::linear): the gradient of the inputs is set or added to, those of the matrices are added to.
    #[allow(clippy::too_many_arguments, reason = "one call's worth of a layer's parts")]
    fn linear_back(
        &self,
        layer: usize,
        p: Projection,
        pass: &Pass<'_>,
        parameters: &Parameters,
        low: &[Vec<f32>; Projection::ALL.len()],
        inputs: &[f32],
        slope: &[f32],
        to: &mut [f32],
        add: bool,
        slopes: &mut [f32],
    ) {
        let (cpu, linear) = (self.cpu(), &self.model.blocks[layer].linears[p as usize]);
        let (outputs, columns) = p.shape(self.config());
        frozen_back(cpu, &linear.back, slope, to, add);
        let Some(slot) = parameters.slot(layer, p) else { return };
        let rank = parameters.shape().rank;
        let scale = parameters.shape().scale();
        let rows = slope.len() / outputs;
        let (a, b) = matrices(&parameters.numbers, slot, rank);
        let dy = View::new(slope, (rows, outputs));
        let low = View::new(&low[p as usize], (rows, rank));
        let db = &mut ViewMut::new(&mut slopes[slot.b.clone()], (outputs, rank));
        cpu.product(dy.transposed(), low, scale, db, 1.0);
        let mut d_low = vec![0f32; rows * rank];
        cpu.product(dy, b, scale, &mut ViewMut::new(&mut d_low, (rows, rank)), 0.0);
        let d_low = View::new(&d_low, (rows, rank));
        let da = &mut ViewMut::new(&mut slopes[slot.a.clone()], (rank, columns));
        match dropped(cpu, inputs, columns, slot, pass.regularisation) {
            None => {
                cpu.product(d_low.transposed(), View::new(inputs, (rows, columns)), 1.0, da, 1.0);
                cpu.product(d_low, a, 1.0, &mut ViewMut::new(to, (rows, columns)), 1.0);
            }
            Some(x) => {
                cpu.product(d_low.transposed(), View::new(&x, (rows, columns)), 1.0, da, 1.0);
                let mut dx = vec![0f32; rows * columns];
                cpu.product(d_low, a, 1.0, &mut ViewMut::new(&mut dx, (rows, columns)), 0.0);
                let dx = dropped(cpu, &dx, columns, slot, pass.regularisation).unwrap_or(dx);
                elementwise::add(cpu, &dx, to);
            }
        }
    }

    /// One layer back: `slope`, the gradient of what it gave, becomes that of what it took.
    fn layer_back(
        &mut self,
        layer: usize,
        pass: &Pass<'_>,
        parameters: &Parameters,
        slope: &mut [f32],
        slopes: &mut [f32],
    ) {
        let (config, cpu) = (self.config(), self.cpu());
        let block: &FrozenBlock = &self.model.blocks[layer];
        let (h, eps) = (self.heads(layer), config.norm_eps as f32);
        let (hidden, ffn) = (config.hidden, config.ffn);
        let (q_width, kv_width) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        let rows = slope.len() / hidden;
        let mut kept = std::mem::take(&mut self.layers[layer]);
        let this = &*self;
        let normed_back = |raw: &Option<Vec<f32>>, norm: &Option<Vec<f32>>, slope: &[f32]| {
            let (raw, norm) = (raw.as_ref()?, norm.as_ref()?);
            let mut to = vec![0f32; slope.len()];
            norm_back(cpu, raw, norm, eps, slope, &mut to, false);
            Some(to)
        };
        let normed = |x: &[f32], norm: &[f32]| {
            let mut y = x.to_vec();
            cpu.normalise_in_place(&mut y, norm, eps);
            y
        };

        let raw = normed_back(&kept.raw_fed, &block.post_ffn_norm, slope);
        let dy = raw.as_deref().unwrap_or(slope);
        let (gate, up) = (&mut kept.gate[..], &mut kept.up[..]);
        let mut fed = vec![0f32; rows * ffn];
        elementwise::gated(cpu, config.activation, gate, up, ffn, &mut fed);
        let mut d_fed = vec![0f32; rows * ffn];
        let low = &kept.low;
        this.linear_back(layer, Projection::Down, pass, parameters, low, &fed, dy, &mut d_fed, false, slopes);
        elementwise::gated_back(cpu, config.activation, (&mut *gate, &mut *up), &d_fed, ffn);
        let n = normed(&kept.middle, &block.ffn_norm);
        let mut dn = vec![0f32; rows * hidden];
        this.linear_back(layer, Projection::Gate, pass, parameters, low, &n, gate, &mut dn, false, slopes);
        this.linear_back(layer, Projection::Up, pass, parameters, low, &n, up, &mut dn, true, slopes);
        norm_back(cpu, &kept.middle, &block.ffn_norm, eps, &dn, slope, true);

        let raw = normed_back(&kept.raw_attended, &block.post_attention_norm, slope);
        let dy = raw.as_deref().unwrap_or(slope);
        let mut d_attended = vec![0f32; rows * q_width];
        let attended = &kept.attended;
        this.linear_back(
            layer,
            Projection::O,
            pass,
            parameters,
            low,
            attended,
            dy,
            &mut d_attended,
            false,
            slopes,
        );
        let (mut dq, mut dk) = (vec![0f32; rows * q_width], vec![0f32; rows * kv_width]);
        let mut dv = dk.clone();
        let forward = Kept { q: &kept.q, k: &kept.k, v: &kept.v, out: &kept.attended, logs: &kept.logs };
        attend_back(cpu, h, &pass.sequences, forward, &d_attended, [&mut dq, &mut dk, &mut dv]);
        let angles = pass.angles(h.window != usize::MAX);
        angles.rotate(cpu, &mut dq, q_width, -1.0);
        angles.rotate(cpu, &mut dk, kv_width, -1.0);
        if let (Some((q_norm, k_norm)), Some((q, k))) = (&block.qk_norm, &kept.raw_qk) {
            for (raw, norm, slope) in [(q, q_norm, &mut dq), (k, k_norm, &mut dk)] {
                let given = slope.clone();
                norm_back(cpu, raw, norm, eps, &given, slope, false);
            }
        }
        let n = normed(&kept.x, &block.attention_norm);
        let parts = [(Projection::Q, &dq, false), (Projection::K, &dk, true), (Projection::V, &dv, true)];
        for (p, dy, add) in parts {
            this.linear_back(layer, p, pass, parameters, low, &n, dy, &mut dn, add, slopes);
        }
        norm_back(cpu, &kept.x, &block.attention_norm, eps, &dn, slope, true);
        self.layers[layer] = kept;
    }
}

/// A and B of a slot.
fn matrices<'n>(numbers: &'n [f32], slot: &Slot, rank: usize) -> (View<'n>, View<'n>) {
    let (outputs, columns) = slot.shape;
    (
        View::new(&numbers[slot.a.clone()], (rank, columns)),
        View::new(&numbers[slot.b.clone()], (outputs, rank)),
    )
}
