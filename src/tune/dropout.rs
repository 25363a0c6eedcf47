//! Dropout that can be drawn again: what is left out depends on the seed and the place alone.

use super::graph::Regularisation;
use super::parameters::Slot;
use crate::kernels::Cpu;
use crate::model::tensors::Projection;

/// x with a share of it set to zero and the rest scaled up; `None` without dropout. The same numbers are left out whenever the seed
/// is the same.
pub(super) fn dropped(
    cpu: &Cpu,
    x: &[f32],
    columns: usize,
    slot: &Slot,
    r: Regularisation,
) -> Option<Vec<f32>> {
    if r.dropout <= 0.0 {
        return None;
    }
    let mut to = vec![0f32; x.len()];
    let (bound, keep) = ((f64::from(r.dropout) * (1u64 << 32) as f64) as u64, 1.0 / (1.0 - r.dropout));
    let salt = mixed(r.seed ^ mixed((slot.layer * Projection::ALL.len() + slot.projection as usize) as u64));
    let chunk = 16 * columns;
    let work = to.chunks_mut(chunk).zip(x.chunks(chunk)).enumerate().collect();
    cpu.each(work, |(at, (to, x)): (usize, (&mut [f32], &[f32]))| {
        for (i, (to, x)) in to.iter_mut().zip(x).enumerate() {
            let draw = mixed(salt.wrapping_add((at * chunk + i) as u64)) >> 32;
            *to = if draw < bound { 0.0 } else { x * keep };
        }
    });
    Some(to)
}

/// SplitMix64's mixing function (Steele et al. 2014).
fn mixed(z: u64) -> u64 {
    let z = z.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
