//! What is checked before a run's first step: that every map would learn, and that the loss moves as its gradient says.

use super::examples::pack;
use super::graph::{Graph, Regularisation};
use super::loss::Losses;
use super::optimiser::norm;
use super::parameters::Parameters;
use super::prefixes::Prefixes;
use super::progress::Watch;
use super::run::{Run, RunError, fill};

impl Run<'_> {
    /// Before the first step: every B must get a gradient, and the loss must move along the gradient as the gradient says.
    pub(super) fn self_test(
        &self,
        graph: &mut Graph<'_>,
        prefixes: &mut Prefixes,
        parameters: &Parameters,
        watch: &mut dyn Watch,
    ) -> Result<(), RunError> {
        // How much the loss is moved, as a share of it, and by how much its rise may miss: 8-bit activations jitter, and the
        // rise has to be well above that; in floats a small move is straight.
        let quantised = self.model.decoder.is_quantised();
        let (change, tolerance) = if quantised { (0.1, 0.25) } else { (0.01, 0.02) };
        let members = self.members(1);
        let rows = pack(&members, self.settings.row_tokens, 1.0, self.settings.quote_weight);
        let Some((mut batch, places)) = rows.into_iter().next() else {
            return Err(RunError::SelfTest("there is no example".into()));
        };
        if watch.stop() {
            return Err(RunError::Stopped);
        }
        fill(prefixes, graph, &mut batch, &members, &places);
        let mut slopes = vec![0f32; parameters.numbers.len()];
        let losses = graph.gradients(&batch, parameters, Regularisation::default(), &mut slopes);
        for slot in parameters.slots() {
            let own = &slopes[slot.b.clone()];
            if own.iter().all(|s| *s == 0.0) || own.iter().any(|s| !s.is_finite()) {
                let what = format!("lora_B of layer {} {} gets no gradient", slot.layer, slot.projection);
                return Err(RunError::SelfTest(what));
            }
        }
        let weights: Vec<f64> = batch.targets.iter().map(|target| f64::from(target.weight)).collect();
        let total = |losses: &Losses| {
            losses.nll.iter().zip(&weights).map(|(loss, weight)| weight * f64::from(*loss)).sum::<f64>()
        };
        let norm = norm(&slopes);
        let reach = change * total(&losses) / norm;
        let mut along = |sign: f64| -> Result<f64, RunError> {
            if watch.stop() {
                return Err(RunError::Stopped);
            }
            let mut moved = parameters.clone();
            let factor = sign * reach / norm;
            moved.numbers.iter_mut().zip(&slopes).for_each(|(n, s)| *n += (f64::from(*s) * factor) as f32);
            Ok(total(&graph.losses(&batch, Some(&moved))))
        };
        let measured = (along(1.0)? - along(-1.0)?) / (2.0 * reach);
        watch.note(&format!(
            "self-test: {} maps get gradients; along the gradient the loss rises {measured:.4}, expected {norm:.4}",
            parameters.slots().len()
        ));
        if !is_straight(measured, norm, tolerance) {
            let what = format!("along the gradient the loss rises {measured:.4} and should {norm:.4}");
            return Err(RunError::SelfTest(what));
        }
        Ok(())
    }
}

/// Whether a loss rises as its gradient says, up to this share of it; what is no number does not.
fn is_straight(measured: f64, expected: f64, tolerance: f64) -> bool {
    (measured - expected).abs() <= tolerance * expected
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slope_that_is_no_number_is_not_straight() {
        assert!(is_straight(1.01, 1.0, 0.02) && !is_straight(1.03, 1.0, 0.02));
        for (measured, expected) in [(f64::NAN, 1.0), (1.0, f64::NAN), (f64::INFINITY, f64::INFINITY)] {
            assert!(!is_straight(measured, expected, 0.02), "{measured} {expected}");
        }
    }
}
