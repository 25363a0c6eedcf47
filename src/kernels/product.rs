//! Matrix products: linear maps with biases and low-rank deltas, and the gated pair of a feed-forward block.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::activations::Activations;
use super::forms::{PANEL, UNPACKED};
use super::group::{GROUP, Group, Panels, TILE_ROWS, TileRows};
use super::memory::at_least;
use super::ops::{Cpu, SCRATCH, Scratch, Shared};
use super::pack::{Matrix, QuantType, WeightType};
use super::variants::Kernels;

/// Panels of a task: enough work to be worth handing out, and activations are read once for all of them.
const TASK_PANELS: usize = 4;
/// Where weights are all that is read, longer runs of them keep the memory streaming.
const LONGEST_TASK: usize = 32;
/// Tasks for each thread that are enough to even out their speeds.
const TASKS_PER_THREAD: usize = 6;
/// Groups that are unpacked at a time when many tokens are multiplied: 16 groups are 10 or 18 kB, within a first
/// cache with a tile of tokens. A multiple of every form's block.
const UNPACK_GROUPS: usize = 16;
/// Up to here a panel is read from the cache once for each tile instead of being unpacked first.
const UNPACK_ABOVE_TILES: usize = 2;

thread_local! {
    /// What the thread that asks for products computes first for their deltas.
    static LOWS: RefCell<LowBuffers> = RefCell::default();
}

/// A low-rank delta for some of the rows: up · (down · x) · scale is added to what the weight gives.
#[derive(Debug, Clone)]
pub struct Delta<'a> {
    /// Whose rows.
    pub rows: Range<usize>,
    /// A, of shape (rank, inputs).
    pub down: &'a Matrix,
    /// B, of shape (outputs, rank, perhaps filled up with zeros); quantised if A is.
    pub up: &'a Matrix,
    /// α / r.
    pub scale: f32,
}

impl Delta<'_> {
    /// Groups of 32 that hold down · x of a row.
    fn low_groups(&self) -> usize {
        self.down.rows().max(self.up.columns()).div_ceil(GROUP)
    }
}

/// Buffers for down · x · scale of the deltas of each part, row by row.
#[derive(Default)]
struct LowBuffers {
    floats: Vec<f32>,
    groups: Vec<Group>,
}

/// Where a part's share of [`LowBuffers`] lies.
#[derive(Clone, Copy, Default)]
struct LowPlace {
    /// Groups of all parts before.
    start: usize,
    /// Groups of a row.
    row_groups: usize,
}

/// What the first tasks of a product compute for the deltas, and the later ones read.
struct Lows {
    floats: Shared<f32>,
    groups: Shared<Group>,
    places: [LowPlace; MAX_PARTS],
    /// First tasks that have not ended.
    pending: AtomicUsize,
}

impl Lows {
    /// Waits for the first tasks. Tasks are taken in order, so whoever waits here waits for work under way.
    fn wait(&self) {
        while self.pending.load(Ordering::Acquire) > 0 {
            std::hint::spin_loop();
        }
    }
}

/// Counts a first task as ended, also when it panics: others wait for it.
struct Ended<'a>(&'a AtomicUsize);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Release);
    }
}

/// Parts of one [`Cpu::linear`] at the most.
const MAX_PARTS: usize = 3;
/// Rows up to which one thread computes down · x of all parts: handing out so little costs more.
const TOGETHER: usize = 2;

/// One linear map: a weight, perhaps a bias, and deltas.
#[derive(Debug, Clone)]
pub struct Part<'a> {
    /// The weight, of shape (outputs, inputs).
    pub weight: &'a Matrix,
    /// A number for each output.
    pub bias: Option<&'a [f32]>,
    /// Deltas of disjoint rows.
    pub deltas: &'a [Delta<'a>],
}

/// Where a linear map's results go.
#[derive(Debug)]
pub struct Output<'a> {
    /// Row by row, `stride` apart.
    pub to: &'a mut [f32],
    /// Numbers from one row to the next.
    pub stride: usize,
    /// Add to what is there.
    pub add: bool,
}

/// Which function gates a feed-forward block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// x · sigmoid(x).
    Silu,
    /// The tanh approximation of GELU.
    Gelu,
}

impl Cpu {
    /// Linear maps of the same inputs, each into an output of its own.
    ///
    /// # Panics
    /// When sizes do not agree, or quantised weights meet inputs that are not.
    pub fn linear(&self, x: &Activations, parts: &[Part<'_>], outputs: &mut [Output<'_>]) {
        assert!(parts.len() == outputs.len() && parts.len() <= MAX_PARTS, "an output for each part");
        for (part, output) in parts.iter().zip(&mut *outputs) {
            check_part(x, part);
            let rows = part.weight.rows();
            assert!(
                output.stride >= rows && output.to.len() >= (x.rows.max(1) - 1) * output.stride + rows,
                "room"
            );
        }
        let mut targets = [(Shared(std::ptr::null_mut::<f32>()), 0, false); MAX_PARTS];
        for (target, output) in targets.iter_mut().zip(&mut *outputs) {
            *target = (Shared(output.to.as_mut_ptr()), output.stride, output.add);
        }
        let long =
            parts.iter().map(|p| p.weight.panels()).sum::<usize>() / (TASKS_PER_THREAD * self.threads());
        let size = if x.rows > TILE_ROWS { TASK_PANELS } else { long.clamp(TASK_PANELS, LONGEST_TASK) };
        let tasks: usize = parts.iter().map(|p| p.weight.panels().div_ceil(size)).sum();
        self.share_with_lows(x, parts, tasks, &|task, lows| {
            let mut first = task;
            for (index, part) in parts.iter().enumerate() {
                let own = part.weight.panels().div_ceil(size);
                if first >= own {
                    first -= own;
                    continue;
                }
                let panels = first * size..part.weight.panels().min((first + 1) * size);
                let work = [(part, panels.clone(), lows.places[index])];
                self.with_panels(x, &work, lows, |sums, tokens| {
                    // SAFETY: the output has room for all rows, as checked above, and no other task writes these
                    // panels' columns.
                    unsafe { write_panels(sums, tokens, x.rows, part.weight.rows(), panels, targets[index]) };
                });
                return;
            }
        });
    }

    /// activation(gate · x) · (up · x), quantised for the next product if asked.
    ///
    /// # Panics
    /// When sizes do not agree, or quantised weights meet inputs that are not.
    pub fn gated(
        &self,
        x: &Activations,
        [gate, up]: [&Part<'_>; 2],
        activation: Gate,
        quantise: bool,
        out: &mut Activations,
    ) {
        check_part(x, gate);
        check_part(x, up);
        let (rows, columns) = (x.rows, gate.weight.rows());
        assert_eq!(columns, up.weight.rows(), "gate and up of one size");
        assert!(!quantise || columns.is_multiple_of(GROUP), "whole groups");
        out.reshape(rows, columns, quantise);
        let kernels = self.kernels();
        let (floats, groups) = (Shared(out.floats.as_mut_ptr()), Shared(out.groups.as_mut_ptr()));
        let row_groups = out.row_groups();
        // One group of outputs after the other; a task makes several where weights are all that is read.
        let width = GROUP / PANEL;
        let panels = gate.weight.panels();
        let parts = [gate.clone(), up.clone()];
        let all = panels.div_ceil(width);
        let long = (all / (TASKS_PER_THREAD * self.threads())).clamp(1, LONGEST_TASK / width);
        let size = if rows > TILE_ROWS { 1 } else { long };
        self.share_with_lows(x, &parts, all.div_ceil(size), &|task, lows| {
            let made = task * size..all.min((task + 1) * size);
            let own = made.start * width..panels.min(made.end * width);
            let pair = [(gate, own.clone(), lows.places[0]), (up, own.clone(), lows.places[1])];
            self.with_panels(x, &pair, lows, |sums, tokens| {
                let (gates, ups) = sums.split_at_mut(own.len() * tokens * PANEL);
                let run = if activation == Gate::Silu { kernels.silu } else { kernels.gelu };
                // SAFETY: both hold as many vectors, and the variant is available.
                unsafe { run(gates.as_mut_ptr(), ups.as_ptr(), own.len() * tokens) };
                // SAFETY: the buffer has room for all rows, and no other task writes these columns.
                unsafe { write_panels(gates, tokens, rows, columns, own, (floats, columns, false)) };
                for t in 0..if quantise { rows } else { 0 } {
                    // SAFETY: the groups were just written as floats; their records are this task's alone.
                    unsafe {
                        let x = floats.at(t * columns + made.start * GROUP).cast_const();
                        let records = groups.at(t / TILE_ROWS * row_groups + made.start);
                        (kernels.quantise)(x, made.len(), records, t % TILE_ROWS);
                    }
                }
            });
        });
    }

    /// Asks for the first halves of deltas that the next product will begin with: they are read by one thread, and
    /// in many short pieces, so that their latency would show. Only asks where a token or two are all there is.
    pub fn expect(&self, deltas: &[Delta<'_>]) {
        if deltas.len() > TOGETHER {
            return;
        }
        for delta in deltas.iter().filter(|delta| delta.rows.len() <= TOGETHER) {
            let down = delta.down.panels_bytes(0..delta.down.panels());
            // SAFETY: only asks; the variant is available.
            unsafe { (self.kernels().prefetch)(down.as_ptr(), down.len()) };
        }
    }

    /// Runs `count` tasks, after and beside those that compute down · x · scale of every delta of every part.
    fn share_with_lows(
        &self,
        x: &Activations,
        parts: &[Part<'_>],
        count: usize,
        task: &(dyn Fn(usize, &Lows) + Sync),
    ) {
        let mut places = [LowPlace::default(); MAX_PARTS];
        let tiles = x.rows.div_ceil(TILE_ROWS);
        let mut groups = 0;
        for (place, part) in places.iter_mut().zip(parts) {
            let row_groups = part.deltas.iter().map(Delta::low_groups).max().unwrap_or(0);
            *place = LowPlace { start: groups, row_groups };
            groups += row_groups * tiles;
        }
        let together = x.rows <= TOGETHER;
        let first = match groups {
            0 => 0,
            _ if together => 1,
            _ => parts.len() * tiles,
        };
        LOWS.with_borrow_mut(|buffers| {
            at_least(&mut buffers.floats, groups * TILE_ROWS * GROUP);
            if buffers.groups.len() < groups {
                buffers.groups.resize(groups, Group::ZERO);
            }
            let lows = Lows {
                floats: Shared(buffers.floats.as_mut_ptr()),
                groups: Shared(buffers.groups.as_mut_ptr()),
                places,
                pending: AtomicUsize::new(first),
            };
            self.share(x.rows == 0, first + count, &|at| {
                if at >= first {
                    return task(at - first, &lows);
                }
                let _ended = Ended(&lows.pending);
                let (part, tile) = (at % parts.len(), at / parts.len());
                let own = if together { 0..parts.len() } else { part..part + 1 };
                for part in own {
                    for delta in parts[part].deltas {
                        // SAFETY: both buffers have room for all tiles of all parts, and this tile of this part is this
                        // task's alone until it has ended.
                        unsafe { self.low_tile(x, delta, tile, &lows, part) };
                    }
                }
            });
        });
    }

    /// down · x · scale of a delta for the rows of one tile, as floats and quantised.
    ///
    /// # Safety
    /// The buffers must have room for the tile at its place, and nobody else may use it meanwhile.
    unsafe fn low_tile(&self, x: &Activations, delta: &Delta<'_>, tile: usize, lows: &Lows, part: usize) {
        let rows = delta.rows.start.max(tile * TILE_ROWS)..delta.rows.end.min((tile + 1) * TILE_ROWS);
        if rows.is_empty() {
            return;
        }
        let (kernels, place) = (self.kernels(), lows.places[part]);
        let (t0, stride) = (rows.start % TILE_ROWS, place.row_groups * GROUP);
        // This part's floats: row by row, `stride` apart.
        let low = lows.floats.at(place.start * TILE_ROWS * GROUP + rows.start * stride);
        let padded = delta.low_groups() * GROUP;
        for panel in 0..padded / PANEL {
            let mut sums = [0f32; TILE_ROWS * PANEL];
            match delta.down.kind() {
                _ if panel >= delta.down.panels() => {}
                WeightType::Dense(_) => {
                    let x = &x.floats[rows.start * x.columns..];
                    dense_panel(kernels, delta.down, panel, x, delta.down.columns(), rows.len(), &mut sums);
                }
                WeightType::Quantised(kind) => {
                    let groups = x.row_groups();
                    let w = Panels { first: delta.down.panel(panel).as_ptr(), count: 1, groups };
                    // SAFETY: `check_part` has seen that panel and tile hold as many groups; the sums have room for a whole
                    // tile; the variant is available.
                    unsafe {
                        let x = x.groups.as_ptr().add(tile * groups);
                        let rows = TileRows { start: t0, count: rows.len(), room: TILE_ROWS - t0 };
                        (kernels.dot)(kind, w, x, rows, sums.as_mut_ptr(), 0);
                    }
                }
            }
            for (t, sum) in sums.chunks_exact(PANEL).take(rows.len()).enumerate() {
                // SAFETY: the caller's contract.
                let to = unsafe {
                    std::slice::from_raw_parts_mut(low.wrapping_add(t * stride + panel * PANEL), PANEL)
                };
                to.iter_mut().zip(sum).for_each(|(y, v)| *y = v * delta.scale);
            }
        }
        if matches!(delta.up.kind(), WeightType::Quantised(_)) {
            for t in 0..rows.len() {
                // SAFETY: the caller's contract; the floats of these groups have just been written.
                unsafe {
                    let group = lows.groups.at(place.start + tile * place.row_groups);
                    (kernels.quantise)(
                        low.wrapping_add(t * stride).cast_const(),
                        padded / GROUP,
                        group,
                        t0 + t,
                    );
                }
            }
        }
    }

    /// Computes panels for all rows and hands the sums, of shape (panels, tokens, 16), to `finish`; tokens are
    /// rounded up to whole tiles.
    fn with_panels(
        &self,
        x: &Activations,
        work: &[(&Part<'_>, Range<usize>, LowPlace)],
        lows: &Lows,
        finish: impl FnOnce(&mut [f32], usize),
    ) {
        let tokens = x.rows.next_multiple_of(TILE_ROWS);
        let count: usize = work.iter().map(|(_, panels, _)| panels.len()).sum();
        SCRATCH.with_borrow_mut(|scratch| {
            let Scratch { floats, bytes } = scratch;
            let sums = at_least(floats, count * tokens * PANEL);
            sums.fill(0.0);
            let mut rest = &mut *sums;
            for (part, panels, place) in work {
                let (own, after) = rest.split_at_mut(panels.len() * tokens * PANEL);
                rest = after;
                for delta in part.deltas {
                    // It lies elsewhere than the weight, and would be waited for after it.
                    let up = delta.up.panels_bytes(panels.clone());
                    // SAFETY: only asks; the variant is available.
                    unsafe { (self.kernels().prefetch)(up.as_ptr(), up.len()) };
                }
                self.products(x, part.weight, panels.clone(), own, bytes);
                if let Some(bias) = part.bias {
                    for (sums, panel) in own.chunks_exact_mut(tokens * PANEL).zip(panels.clone()) {
                        let bias = &bias[panel * PANEL..bias.len().min((panel + 1) * PANEL)];
                        for sum in sums.chunks_exact_mut(PANEL).take(x.rows) {
                            sum.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
                        }
                    }
                }
                for delta in part.deltas {
                    lows.wait();
                    self.add_delta(delta, panels.clone(), lows, *place, own);
                }
            }
            finish(sums, tokens);
        });
    }

    /// Adds up · low of some panels to the sums, of shape (panels, tokens, 16), of the delta's rows.
    fn add_delta(
        &self,
        delta: &Delta<'_>,
        panels: Range<usize>,
        lows: &Lows,
        place: LowPlace,
        sums: &mut [f32],
    ) {
        let kernels = self.kernels();
        let per_panel = sums.len() / panels.len().max(1);
        let kind = match delta.up.kind() {
            WeightType::Dense(_) => {
                let stride = place.row_groups * GROUP;
                let from = lows.floats.at(place.start * TILE_ROWS * GROUP + delta.rows.start * stride);
                // SAFETY: the rows of this delta, which the first tasks have written and nobody writes any more.
                let low = unsafe { std::slice::from_raw_parts(from.cast_const(), delta.rows.len() * stride) };
                for (sums, panel) in sums.chunks_exact_mut(per_panel).zip(panels) {
                    let sums = &mut sums[delta.rows.start * PANEL..];
                    dense_panel(kernels, delta.up, panel, low, stride, delta.rows.len(), sums);
                }
                return;
            }
            WeightType::Quantised(kind) => kind,
        };
        let first = delta.up.panels_bytes(panels.clone()).as_ptr();
        let w = Panels { first, count: panels.len(), groups: delta.up.columns().div_ceil(GROUP) };
        for tile in delta.rows.start / TILE_ROWS..delta.rows.end.div_ceil(TILE_ROWS) {
            let rows = delta.rows.start.max(tile * TILE_ROWS)..delta.rows.end.min((tile + 1) * TILE_ROWS);
            assert!(rows.end * PANEL <= per_panel, "room for the sums");
            let sums = &mut sums[rows.start * PANEL..];
            // SAFETY: the panels hold `groups` groups, and so does the tile at its place; no more rows are computed than the
            // sums are of; the variant is available.
            unsafe {
                let x = lows.groups.at(place.start + tile * place.row_groups).cast_const();
                let rows = TileRows { start: rows.start % TILE_ROWS, count: rows.len(), room: rows.len() };
                (kernels.dot)(kind, w, x, rows, sums.as_mut_ptr(), per_panel);
            }
        }
    }

    /// The products of some panels with all rows, added to `sums` of shape (panels, tokens, 16).
    fn products(
        &self,
        x: &Activations,
        w: &Matrix,
        panels: Range<usize>,
        sums: &mut [f32],
        bytes: &mut Vec<u8>,
    ) {
        let kernels = self.kernels();
        let tiles = x.rows.div_ceil(TILE_ROWS);
        let per_panel = tiles * TILE_ROWS * PANEL;
        assert!(sums.len() >= panels.len() * per_panel, "room for the sums");
        let kind = match w.kind() {
            WeightType::Dense(_) => {
                for (n, panel) in panels.enumerate() {
                    dense_panel(kernels, w, panel, &x.floats, x.columns, x.rows, &mut sums[n * per_panel..]);
                }
                return;
            }
            WeightType::Quantised(kind) => kind,
        };
        let groups = x.row_groups();
        let x_groups = x.groups.as_ptr();
        if tiles <= UNPACK_ABOVE_TILES {
            // One tile takes all panels in one call; of two, each takes a panel while it is in the first cache.
            let each = if tiles == 1 { panels.len().max(1) } else { 1 };
            for n in (0..panels.len()).step_by(each) {
                let first = w.panels_bytes(panels.start + n..panels.start + n + each).as_ptr();
                for tile in 0..tiles {
                    let count = TILE_ROWS.min(x.rows - tile * TILE_ROWS);
                    let sums = &mut sums[n * per_panel + tile * TILE_ROWS * PANEL..];
                    // SAFETY: the panels hold `groups` groups, as checked by `check_part`, the tile as many; the sums have
                    // room for eight tokens of each; the variant is available.
                    unsafe {
                        let x = x_groups.add(tile * groups);
                        let rows = TileRows { start: 0, count, room: TILE_ROWS };
                        let w = Panels { first, count: each, groups };
                        (kernels.dot)(kind, w, x, rows, sums.as_mut_ptr(), per_panel);
                    }
                }
            }
            return;
        }
        let unpacked = at_least(bytes, UNPACK_GROUPS * UNPACKED);
        for start in (0..groups).step_by(UNPACK_GROUPS) {
            let len = UNPACK_GROUPS.min(groups - start);
            for (n, panel) in panels.clone().enumerate() {
                let panel = w.panel(panel);
                let sums = &mut sums[n * per_panel..];
                // SAFETY: groups `start..start + len` are whole blocks within panel and tiles, which lie `groups` apart; there
                // is room for `len` unpacked groups and for all tiles' sums; the variant is available.
                unsafe {
                    let packed = panel.as_ptr().add(panel.len() / groups * start);
                    (kernels.unpack)(kind, packed, len, unpacked.as_mut_ptr());
                    let x = x_groups.add(start);
                    (kernels.dot_unpacked)(kind, unpacked.as_ptr(), len, x, groups, tiles, sums.as_mut_ptr());
                }
            }
        }
    }
}

fn check_part(x: &Activations, part: &Part<'_>) {
    let (rows, columns) = (part.weight.rows(), part.weight.columns());
    assert_eq!(columns, x.columns, "a weight of as many inputs as there are");
    if matches!(part.weight.kind(), WeightType::Quantised(_)) {
        assert!(x.quantised, "quantised weights take quantised inputs");
    }
    let half = WeightType::Quantised(QuantType::Q8Half);
    assert!(part.weight.kind() != half, "half groups are for deltas");
    assert!(part.bias.is_none_or(|b| b.len() == rows), "a bias for each output");
    for delta in part.deltas {
        assert!(delta.rows.end <= x.rows && delta.down.columns() == columns, "a delta of these inputs");
        assert!(
            delta.up.rows() == rows && delta.up.columns() >= delta.down.rows(),
            "a delta of these outputs"
        );
        let quantised = |m: &Matrix| matches!(m.kind(), WeightType::Quantised(_));
        assert!(quantised(delta.down) == quantised(delta.up), "both halves of a kind");
        assert!(
            delta.down.kind() != half && (delta.up.kind() != half || delta.up.columns() <= 16),
            "a rank up to 16"
        );
        assert!(x.quantised || !quantised(delta.down), "quantised deltas take quantised inputs");
    }
}

/// Writes the sums of some panels, of shape (panels, tokens, 16), to their columns of an output.
///
/// # Safety
/// The output must have room for `rows` rows, and nobody else may use these columns meanwhile.
unsafe fn write_panels(
    sums: &[f32],
    tokens: usize,
    rows: usize,
    columns: usize,
    panels: Range<usize>,
    (to, stride, add): (Shared<f32>, usize, bool),
) {
    for (n, panel) in panels.enumerate() {
        let width = PANEL.min(columns - panel * PANEL);
        let (sums, _) = sums[n * tokens * PANEL..].as_chunks::<PANEL>();
        for (t, sum) in sums.iter().take(rows).enumerate() {
            let to = to.at(t * stride + panel * PANEL);
            // SAFETY: the caller's contract. Whole panels have a known size, and most are whole: no call for 64 bytes.
            unsafe {
                if width == PANEL && !add {
                    to.cast::<[f32; PANEL]>().write_unaligned(*sum);
                } else if width == PANEL {
                    let to = &mut *to.cast::<[f32; PANEL]>();
                    to.iter_mut().zip(sum).for_each(|(y, v)| *y += v);
                } else {
                    let to = std::slice::from_raw_parts_mut(to, width);
                    to.iter_mut().zip(sum).for_each(|(y, v)| *y = if add { *y + v } else { *v });
                }
            }
        }
    }
}

/// One dense panel with `tokens` rows of `x`, added to `sums` of shape (tokens, 16).
fn dense_panel(
    kernels: &Kernels,
    w: &Matrix,
    panel: usize,
    x: &[f32],
    stride: usize,
    tokens: usize,
    sums: &mut [f32],
) {
    let WeightType::Dense(kind) = w.kind() else { return };
    if tokens == 0 {
        return;
    }
    let columns = w.columns();
    assert!(
        columns <= stride && x.len() >= (tokens - 1) * stride + columns && sums.len() >= tokens * PANEL,
        "sizes"
    );
    // SAFETY: the panel holds 16 · columns numbers; the assertion has checked the rest; the variant is available.
    unsafe {
        let panel = w.panel(panel).as_ptr();
        (kernels.dot_dense)(kind, panel, columns, x.as_ptr(), stride, tokens, sums.as_mut_ptr());
    }
}
