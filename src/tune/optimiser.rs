//! AdamW (Loshchilov & Hutter 2019) over one run of numbers, and the learning rate's course.

/// Decay of the mean of gradients, and of their squares.
const BETAS: (f64, f64) = (0.9, 0.999);
const EPSILON: f64 = 1e-8;

/// Means of gradients and of their squares.
#[derive(Debug, Clone)]
pub struct AdamW {
    /// The first moment.
    pub mean: Vec<f32>,
    /// The second moment.
    pub square: Vec<f32>,
}

impl AdamW {
    /// All zero.
    #[must_use]
    pub fn new(count: usize) -> Self {
        Self { mean: vec![0.0; count], square: vec![0.0; count] }
    }

    /// Moves the numbers by one step; `step` counts from 1.
    pub fn step(&mut self, numbers: &mut [f32], slopes: &[f32], rate: f64, weight_decay: f64, step: usize) {
        let exponent = i32::try_from(step).unwrap_or(i32::MAX);
        let (b1, b2) = (BETAS.0 as f32, BETAS.1 as f32);
        let rate_1 = (rate / (1.0 - BETAS.0.powi(exponent))) as f32;
        let correction = (1.0 / (1.0 - BETAS.1.powi(exponent))) as f32;
        let keep = (1.0 - rate * weight_decay) as f32;
        let moments = self.mean.iter_mut().zip(&mut self.square);
        for ((number, slope), (mean, square)) in numbers.iter_mut().zip(slopes).zip(moments) {
            *mean = b1 * *mean + (1.0 - b1) * slope;
            *square = b2 * *square + (1.0 - b2) * slope * slope;
            *number = *number * keep - rate_1 * *mean / ((*square * correction).sqrt() + EPSILON as f32);
        }
    }
}

/// The norm of gradients.
#[must_use]
pub fn norm(slopes: &[f32]) -> f64 {
    slopes.iter().map(|s| f64::from(*s) * f64::from(*s)).sum::<f64>().sqrt()
}

/// Scales gradients down to a norm of `largest`; returns the norm that they had.
pub fn clip(slopes: &mut [f32], largest: f64) -> f64 {
    let norm = norm(slopes);
    if norm > largest {
        let factor = (largest / norm) as f32;
        slopes.iter_mut().for_each(|s| *s *= factor);
    }
    norm
}

/// How the learning rate rises and falls.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Course {
    /// The largest.
    pub learning_rate: f64,
    /// Share of the steps in which it rises to that.
    pub warmup: f64,
    /// The last step's, as a share of the largest.
    pub final_rate: f64,
}

/// The learning rate of a step that counts from 1: a line up, then half a cosine down.
#[must_use]
pub fn rate(course: Course, step: usize, steps: usize) -> f64 {
    let Course { learning_rate, warmup, final_rate } = course;
    let rise = (warmup * steps as f64).ceil().max(1.0);
    let at = step as f64;
    if at <= rise && warmup > 0.0 {
        return learning_rate * at / rise;
    }
    let rise = if warmup > 0.0 { rise } else { 0.0 };
    let share = ((at - rise) / (steps as f64 - rise).max(1.0)).clamp(0.0, 1.0);
    let cosine = 0.5 * (1.0 + (std::f64::consts::PI * share).cos());
    learning_rate * (final_rate + (1.0 - final_rate) * cosine)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_rises_and_falls() {
        let course = Course { learning_rate: 2e-4, warmup: 0.1, final_rate: 0.1 };
        let rates: Vec<f64> = (1..=100).map(|step| rate(course, step, 100)).collect();
        assert!((rates[0] - course.learning_rate / 10.0).abs() < 1e-12);
        assert!((rates[9] - course.learning_rate).abs() < 1e-12);
        assert!(rates[9..].windows(2).all(|pair| pair[1] < pair[0]));
        assert!((rates[99] - course.learning_rate * 0.1).abs() < 1e-12);
    }

    /// The numbers of `torch.optim.AdamW` 2.x follow from the paper's formula; two steps by hand.
    #[test]
    fn two_steps_by_hand() {
        let (mut x, mut adam) = (vec![1.0f32], AdamW::new(1));
        adam.step(&mut x, &[0.5], 0.1, 0.01, 1);
        // m/(1−β₁) = .5, √(v/(1−β₂)) = .5: a step of the rate, after a decay of .001.
        assert!((x[0] - (0.999 - 0.1)).abs() < 1e-6, "{}", x[0]);
        adam.step(&mut x, &[-0.5], 0.1, 0.01, 2);
        let (m, v) = ((0.9 * 0.05 - 0.1 * 0.5) / (1.0 - 0.81), 0.25f64);
        let expected = 0.899 * 0.999 - 0.1 * m / v.sqrt();
        assert!((f64::from(x[0]) - expected).abs() < 1e-6, "{} {expected}", x[0]);
    }

    #[test]
    fn clipping_keeps_the_direction() {
        let mut slopes = vec![3.0, 4.0];
        assert!((clip(&mut slopes, 1.0) - 5.0).abs() < 1e-9);
        assert!((slopes[0] - 0.6).abs() < 1e-6 && (slopes[1] - 0.8).abs() < 1e-6);
        assert!((clip(&mut slopes, 2.0) - 1.0).abs() < 1e-6);
        assert!((slopes[0] - 0.6).abs() < 1e-6);
    }
}
