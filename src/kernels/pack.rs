//! Weight matrices as the kernels read them, packed once at load from the bytes of a file.

use std::sync::Arc;

use rayon::prelude::*;

use super::forms::{FIFTH, HALF_SCALES, K_SCALES, NIBBLES, PANEL, Q6K_GROUP, SIXTH};
use super::group::GROUP;
use super::memory::{Pages, Region};

/// The quantised types that have a packed form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, non_camel_case_types, reason = "the names of ggml's types")]
pub enum QuantType {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4K,
    Q5K,
    Q6K,
    /// Q8_0 of 16 columns instead of 32; no file has it.
    Q8Half,
}

impl QuantType {
    /// All that files have.
    pub const ALL: [Self; 8] =
        [Self::Q4_0, Self::Q4_1, Self::Q5_0, Self::Q5_1, Self::Q8_0, Self::Q4K, Self::Q5K, Self::Q6K];

    /// Columns of a block, and the bytes it has in a file.
    pub fn block(self) -> (usize, usize) {
        match self {
            Self::Q4_0 => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q8_0 => (32, 34),
            Self::Q4K => (256, 144),
            Self::Q5K => (256, 176),
            Self::Q6K => (256, 210),
            Self::Q8Half => (16, 18),
        }
    }
}

/// The unquantised types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names of the types")]
pub enum DenseType {
    F32,
    F16,
    Bf16,
}

impl DenseType {
    /// Bytes of a number.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// The type of a packed matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightType {
    /// Quantised: multiplied with quantised activations.
    Quantised(QuantType),
    /// Not quantised: multiplied with 32-bit activations.
    Dense(DenseType),
}

impl WeightType {
    /// Bytes of one row of `columns` in a file; `None` when the columns are no whole blocks.
    pub fn row_bytes(self, columns: usize) -> Option<usize> {
        match self {
            Self::Quantised(q) => {
                let (block, bytes) = q.block();
                columns.is_multiple_of(block).then(|| columns / block * bytes)
            }
            Self::Dense(d) => Some(columns * d.bytes()),
        }
    }

    /// Bytes of the packed matrix: the file's, with the rows rounded up to whole panels.
    pub fn packed_bytes(self, rows: usize, columns: usize) -> Option<usize> {
        Some(rows.next_multiple_of(PANEL) * self.row_bytes(columns)?)
    }
}

/// A weight matrix of shape (rows, columns), packed in panels of 16 rows.
#[derive(Debug, Clone)]
pub struct Matrix {
    kind: WeightType,
    rows: usize,
    columns: usize,
    data: Region,
}

impl Matrix {
    /// Packs a matrix whose row r has the file bytes `row(r)`. `None` when a row's length does not fit type and
    /// columns.
    pub fn pack<'a>(
        kind: WeightType,
        (rows, columns): (usize, usize),
        row: impl Fn(usize) -> &'a [u8] + Sync,
        pages: &mut Pages,
    ) -> Option<Self> {
        let row_bytes = kind.row_bytes(columns)?;
        if rows == 0 || columns == 0 || (0..rows).any(|r| row(r).len() != row_bytes) {
            return None;
        }
        let panel_bytes = PANEL * row_bytes;
        // Rows past the last are all zero: their scales are 0, whatever their codes.
        let zero = vec![0u8; row_bytes];
        let data = pages.fill(rows.div_ceil(PANEL) * panel_bytes, |out| {
            out.par_chunks_exact_mut(panel_bytes).enumerate().for_each(|(panel, out)| {
                let rows: [&[u8]; PANEL] = std::array::from_fn(|lane| {
                    let r = panel * PANEL + lane;
                    if r < rows { row(r) } else { &zero }
                });
                match kind {
                    WeightType::Quantised(q) => pack_panel(q, &rows, out),
                    WeightType::Dense(d) => interleave(&rows, d.bytes(), out),
                }
            });
        });
        Some(Self { kind, rows, columns, data })
    }

    /// Packs 32-bit floats given row by row.
    pub fn pack_f32((rows, columns): (usize, usize), numbers: &[f32], pages: &mut Pages) -> Option<Self> {
        Self::pack_dense((rows, columns), numbers, DenseType::F32, pages)
    }

    /// Packs numbers given row by row, rounded to a dense type.
    pub fn pack_dense(
        (rows, columns): (usize, usize),
        numbers: &[f32],
        kind: DenseType,
        pages: &mut Pages,
    ) -> Option<Self> {
        if numbers.len() != rows.checked_mul(columns)? {
            return None;
        }
        let bytes: Vec<u8> = match kind {
            DenseType::F32 => numbers.iter().flat_map(|v| v.to_le_bytes()).collect(),
            DenseType::F16 => numbers.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect(),
            DenseType::Bf16 => numbers.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect(),
        };
        let stride = columns * kind.bytes();
        Self::pack(WeightType::Dense(kind), (rows, columns), |r| &bytes[r * stride..(r + 1) * stride], pages)
    }

    /// Quantises numbers given row by row to 8 bits, as [`QuantType::Q8_0`] or, where 16 columns are enough,
    /// [`QuantType::Q8Half`]; columns are filled up with zeros to whole blocks. Returns the factor, a power of two,
    /// by which the numbers were divided so that scales keep their precision.
    pub fn pack_q8(shape: (usize, usize), numbers: &[f32], pages: &mut Pages) -> Option<(Self, f32)> {
        let largest = numbers.iter().fold(0f32, |top, v| top.max(v.abs()));
        let factor = if largest > 0.0 { largest.log2().ceil().clamp(-100.0, 100.0).exp2() } else { 1.0 };
        Some((Self::pack_q8_by(factor, shape, numbers, pages)?, factor))
    }

    /// As [`pack_q8`](Self::pack_q8), dividing by nothing: for numbers whose largest magnitudes, 32 columns at a time, are above
    /// 0.01 or so, as weights of whole models are. Below, scales lose precision.
    pub fn pack_q8_plain(shape: (usize, usize), numbers: &[f32], pages: &mut Pages) -> Option<Self> {
        Self::pack_q8_by(1.0, shape, numbers, pages)
    }

    fn pack_q8_by(
        factor: f32,
        (rows, columns): (usize, usize),
        numbers: &[f32],
        pages: &mut Pages,
    ) -> Option<Self> {
        if numbers.len() != rows.checked_mul(columns)? || numbers.iter().any(|v| !v.is_finite()) {
            return None;
        }
        let kind = if columns <= 16 { QuantType::Q8Half } else { QuantType::Q8_0 };
        let (block, _) = kind.block();
        let width = columns.next_multiple_of(block);
        let mut bytes = Vec::with_capacity(rows * WeightType::Quantised(kind).row_bytes(width)?);
        for row in numbers.chunks_exact(columns) {
            for start in (0..width).step_by(block) {
                let value = |c: usize| row.get(start + c).map_or(0.0, |v| v / factor);
                let top = (0..block).fold(0f32, |top, c| top.max(value(c).abs()));
                let d = half::f16::from_f32(top / 127.0);
                let inverse = if d.to_f32() > 0.0 { 1.0 / d.to_f32() } else { 0.0 };
                bytes.extend(d.to_le_bytes());
                bytes.extend(
                    (0..block).map(|c| ((value(c) * inverse).round().clamp(-127.0, 127.0) as i8) as u8),
                );
            }
        }
        let stride = bytes.len() / rows.max(1);
        let row = |r: usize| &bytes[r * stride..(r + 1) * stride];
        Self::pack(WeightType::Quantised(kind), (rows, width), row, pages)
    }

    /// Its type.
    pub fn kind(&self) -> WeightType {
        self.kind
    }

    /// Outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Panels of 16 rows, the last one perhaps padded.
    pub fn panels(&self) -> usize {
        self.rows.div_ceil(PANEL)
    }

    /// Its packed bytes.
    pub fn bytes(&self) -> usize {
        self.data.len()
    }

    /// A panel's bytes.
    pub(super) fn panel(&self, panel: usize) -> &[u8] {
        let len = self.data.len() / self.panels();
        &self.data[panel * len..(panel + 1) * len]
    }

    /// The bytes of some panels.
    pub(super) fn panels_bytes(&self, panels: std::ops::Range<usize>) -> &[u8] {
        let len = self.data.len() / self.panels();
        &self.data[panels.start * len..panels.end * len]
    }

    /// Writes one row as 32-bit floats, exactly as the kernels understand it.
    ///
    /// # Panics
    /// When there is no such row, or `out` has not one number for each column.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows && out.len() == self.columns, "a row of another matrix");
        let (panel, lane) = (self.panel(row / PANEL), row % PANEL);
        match self.kind {
            WeightType::Quantised(q) => {
                let (block, bytes) = q.block();
                for (out, block) in out.chunks_exact_mut(block).zip(panel.chunks_exact(bytes * PANEL)) {
                    unpack_row(q, block, lane, out);
                }
            }
            WeightType::Dense(d) => {
                for (c, out) in out.iter_mut().enumerate() {
                    let at = (c * PANEL + lane) * d.bytes();
                    let two = || u16::from_le_bytes([panel[at], panel[at + 1]]);
                    *out = match d {
                        DenseType::F32 => {
                            f32::from_le_bytes([panel[at], panel[at + 1], panel[at + 2], panel[at + 3]])
                        }
                        DenseType::F16 => half::f16::from_bits(two()).to_f32(),
                        DenseType::Bf16 => half::bf16::from_bits(two()).to_f32(),
                    };
                }
            }
        }
    }

    /// Shares the packed bytes: two names for one matrix, such as tied embeddings.
    pub fn is_same_memory(&self, other: &Self) -> bool {
        Arc::ptr_eq(self.data.owner(), other.data.owner()) && self.data.as_ptr() == other.data.as_ptr()
    }
}

/// `width`-byte items of 16 rows, item by item.
fn interleave(rows: &[&[u8]; PANEL], width: usize, out: &mut [u8]) {
    for (lane, row) in rows.iter().enumerate() {
        for (item, bytes) in row.chunks_exact(width).enumerate() {
            let at = (item * PANEL + lane) * width;
            out[at..at + width].copy_from_slice(bytes);
        }
    }
}

/// The place of column `c` (below 32) of a row: byte within the nibbles, and whether the high nibble.
fn nibble_at(lane: usize, c: usize) -> (usize, bool) {
    let vector = c / 4;
    (vector / 2 * 64 + lane * 4 + c % 4, vector % 2 == 1)
}

/// Stores the 5-bit or 4-bit codes of a group: nibbles first, then fifth bits where `out` has room for them.
fn put_codes(out: &mut [u8], lane: usize, code: impl Fn(usize) -> u8) {
    for c in 0..GROUP {
        let (at, high) = nibble_at(lane, c);
        let code = code(c);
        out[at] |= (code & 15) << if high { 4 } else { 0 };
        if out.len() >= NIBBLES + FIFTH {
            out[NIBBLES + lane * 4 + c % 4] |= ((code >> 4) & 1) << (c / 4);
        }
    }
}

/// One panel from the file bytes of its rows.
fn pack_panel(kind: QuantType, rows: &[&[u8]; PANEL], out: &mut [u8]) {
    let (_, bytes) = kind.block();
    for (block, out) in out.chunks_exact_mut(bytes * PANEL).enumerate() {
        out.fill(0);
        for (lane, row) in rows.iter().enumerate() {
            pack_block(kind, &row[block * bytes..(block + 1) * bytes], lane, out);
        }
    }
}

/// One block of one row; layouts as in `ggml-common.h` and `ggml-quants.c`.
fn pack_block(kind: QuantType, block: &[u8], lane: usize, out: &mut [u8]) {
    let half = |at: usize| [block[at], block[at + 1]];
    let put_half = |out: &mut [u8], at: usize, value: [u8; 2]| {
        out[at + 2 * lane..at + 2 * lane + 2].copy_from_slice(&value);
    };
    // Columns 0–15 in the low nibbles of 16 bytes, 16–31 in the high ones.
    let nibble = |bytes: &[u8], c: usize| if c < 16 { bytes[c] & 15 } else { bytes[c - 16] >> 4 };
    match kind {
        QuantType::Q4_0 | QuantType::Q4_1 => {
            let scales = if kind == QuantType::Q4_0 { 1 } else { 2 };
            put_codes(&mut out[..NIBBLES], lane, |c| nibble(&block[2 * scales..], c));
            for s in 0..scales {
                put_half(out, NIBBLES + s * HALF_SCALES, half(2 * s));
            }
        }
        QuantType::Q5_0 | QuantType::Q5_1 => {
            let scales = if kind == QuantType::Q5_0 { 1 } else { 2 };
            let at = 2 * scales;
            let high = u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
            put_codes(&mut out[..NIBBLES + FIFTH], lane, |c| {
                nibble(&block[at + 4..], c) | (((high >> c) & 1) << 4) as u8
            });
            for s in 0..scales {
                put_half(out, NIBBLES + FIFTH + s * HALF_SCALES, half(2 * s));
            }
        }
        QuantType::Q8_0 | QuantType::Q8Half => {
            let codes = &block[2..];
            for (c, code) in codes.iter().enumerate() {
                out[c / 4 * 64 + lane * 4 + c % 4] = code ^ 0x80;
            }
            put_half(out, codes.len() * PANEL, half(0));
        }
        QuantType::Q4K | QuantType::Q5K => {
            let five = kind == QuantType::Q5K;
            let group_bytes = NIBBLES + if five { FIFTH } else { 0 };
            // d, dmin, 12 bytes of scales, (32 bytes of fifth bits,) 128 bytes of nibbles: 64 columns share
            // 32 bytes, the first 32 of them in the low nibbles.
            let (high, low) = if five { (&block[16..48], &block[48..]) } else { (&block[..0], &block[16..]) };
            for g in 0..8 {
                let out = &mut out[g * group_bytes..(g + 1) * group_bytes];
                put_codes(out, lane, |c| {
                    let byte = low[g / 2 * 32 + c];
                    let code = if g % 2 == 0 { byte & 15 } else { byte >> 4 };
                    code | if five { ((high[c] >> g) & 1) << 4 } else { 0 }
                });
            }
            let at = 8 * group_bytes;
            for i in 0..12 {
                out[at + i * PANEL + lane] = block[4 + i];
            }
            put_half(out, at + K_SCALES, half(0));
            put_half(out, at + K_SCALES + HALF_SCALES, half(2));
        }
        QuantType::Q6K => {
            // 128 bytes of low nibbles, 64 of upper two bits, 16 scales, d. Each half of 128 columns: column
            // 32k + l has its nibble in byte 32 · (k % 2) + l (low for k < 2) and its bits at 2k of byte l.
            let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
            for g in 0..8 {
                let (n, k) = (g / 4, g % 4);
                let out = &mut out[g * Q6K_GROUP..(g + 1) * Q6K_GROUP];
                let (nibbles, bits) = out.split_at_mut(NIBBLES);
                put_codes(nibbles, lane, |c| {
                    let byte = low[64 * n + 32 * (k % 2) + c];
                    if k < 2 { byte & 15 } else { byte >> 4 }
                });
                for c in 0..GROUP {
                    let two = (high[32 * n + c] >> (2 * k)) & 3;
                    bits[c / 16 * (SIXTH / 2) + lane * 4 + c % 4] |= two << (c / 4 % 4 * 2);
                }
            }
            for (i, scale) in scales.iter().enumerate() {
                out[8 * Q6K_GROUP + i * PANEL + lane] = *scale;
            }
            put_half(out, 8 * Q6K_GROUP + 16 * PANEL, half(208));
        }
    }
}

/// One row of a packed block as floats: what the kernels compute with, in plain arithmetic.
fn unpack_row(kind: QuantType, block: &[u8], lane: usize, out: &mut [f32]) {
    let half =
        |at: usize| half::f16::from_le_bytes([block[at + 2 * lane], block[at + 2 * lane + 1]]).to_f32();
    let four = |at: usize, c: usize| {
        let (byte, high) = nibble_at(lane, c);
        if high { block[at + byte] >> 4 } else { block[at + byte] & 15 }
    };
    let five =
        |at: usize, c: usize| four(at, c) | ((block[at + NIBBLES + lane * 4 + c % 4] >> (c / 4)) & 1) << 4;
    match kind {
        QuantType::Q4_0 => {
            let d = half(NIBBLES);
            out.iter_mut().enumerate().for_each(|(c, v)| *v = d * (f32::from(four(0, c)) - 8.0));
        }
        QuantType::Q4_1 => {
            let (d, m) = (half(NIBBLES), half(NIBBLES + HALF_SCALES));
            out.iter_mut().enumerate().for_each(|(c, v)| *v = d * f32::from(four(0, c)) + m);
        }
        QuantType::Q5_0 => {
            let d = half(NIBBLES + FIFTH);
            out.iter_mut().enumerate().for_each(|(c, v)| *v = d * (f32::from(five(0, c)) - 16.0));
        }
        QuantType::Q5_1 => {
            let (d, m) = (half(NIBBLES + FIFTH), half(NIBBLES + FIFTH + HALF_SCALES));
            out.iter_mut().enumerate().for_each(|(c, v)| *v = d * f32::from(five(0, c)) + m);
        }
        QuantType::Q8_0 | QuantType::Q8Half => {
            let d = half(out.len() * PANEL);
            for (c, v) in out.iter_mut().enumerate() {
                *v = d * f32::from((block[c / 4 * 64 + lane * 4 + c % 4] ^ 0x80) as i8);
            }
        }
        QuantType::Q4K | QuantType::Q5K => {
            let wide = kind == QuantType::Q5K;
            let group_bytes = NIBBLES + if wide { FIFTH } else { 0 };
            let at = 8 * group_bytes;
            let (d, dmin) = (half(at + K_SCALES), half(at + K_SCALES + HALF_SCALES));
            for (g, out) in out.chunks_exact_mut(GROUP).enumerate() {
                let byte = |i: usize| block[at + i * PANEL + lane];
                let (scale, minimum) = if g < 4 {
                    (byte(g) & 63, byte(g + 4) & 63)
                } else {
                    (byte(g + 4) & 15 | byte(g - 4) >> 6 << 4, byte(g + 4) >> 4 | byte(g) >> 6 << 4)
                };
                let (scale, minimum) = (d * f32::from(scale), dmin * f32::from(minimum));
                for (c, v) in out.iter_mut().enumerate() {
                    let code = if wide { five(g * group_bytes, c) } else { four(g * group_bytes, c) };
                    *v = scale * f32::from(code) - minimum;
                }
            }
        }
        QuantType::Q6K => {
            let scales = 8 * Q6K_GROUP;
            let d = half(scales + 16 * PANEL);
            for (g, out) in out.chunks_exact_mut(GROUP).enumerate() {
                let at = g * Q6K_GROUP;
                for (c, v) in out.iter_mut().enumerate() {
                    let bits = block[at + NIBBLES + c / 16 * (SIXTH / 2) + lane * 4 + c % 4];
                    let code = four(at, c) | ((bits >> (c / 4 % 4 * 2)) & 3) << 4;
                    let scale = block[scales + (2 * g + c / 16) * PANEL + lane] as i8;
                    *v = d * f32::from(scale) * (f32::from(code) - 32.0);
                }
            }
        }
    }
}
