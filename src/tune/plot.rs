//! The losses of a run as a picture.

use std::path::Path;
use std::sync::Once;

use plotters::prelude::*;
use plotters::style::FontStyle;

use super::progress::Step;

const SIZE: (u32, u32) = (900, 500);
/// Colours that people who do not tell red from green tell apart (Okabe and Ito).
const TRAIN: RGBColor = RGBColor(86, 180, 233);
const SMOOTH: RGBColor = RGBColor(0, 114, 178);
const VALID: RGBColor = RGBColor(213, 94, 0);

/// Why there is no picture.
#[derive(Debug, thiserror::Error)]
#[error("cannot draw {path}: {reason}")]
pub struct PlotError {
    /// The file.
    path: String,
    /// Why.
    reason: String,
}

/// Draws `loss.svg` and `loss.png` into a folder: each step's loss, its running mean, and the validation losses. Without two steps there
/// is nothing to draw.
///
/// # Errors
/// When the disk refuses.
pub fn draw(folder: &Path, first_valid: Option<f64>, steps: &[Step]) -> Result<(), PlotError> {
    static FONT: Once = Once::new();
    FONT.call_once(|| {
        // Fails only for a file that is no font.
        let _ = plotters::style::register_font("sans-serif", FontStyle::Normal, dejavu::sans::regular());
    });
    if steps.len() < 2 {
        return Ok(());
    }
    let fail = |path: &Path| {
        let path = path.display().to_string();
        move |reason: String| PlotError { path, reason }
    };
    let svg = folder.join("loss.svg");
    onto(SVGBackend::new(&svg, SIZE), first_valid, steps).map_err(fail(&svg))?;
    let png = folder.join("loss.png");
    onto(BitMapBackend::new(&png, SIZE), first_valid, steps).map_err(fail(&png))
}

fn onto<B: DrawingBackend>(backend: B, first_valid: Option<f64>, steps: &[Step]) -> Result<(), String> {
    let area = backend.into_drawing_area();
    paint(&area, first_valid, steps).map_err(|e| e.to_string())
}

fn paint<B: DrawingBackend>(
    area: &DrawingArea<B, plotters::coord::Shift>,
    first_valid: Option<f64>,
    steps: &[Step],
) -> Result<(), DrawingAreaErrorKind<B::ErrorType>> {
    let train: Vec<(f64, f64)> = steps.iter().map(|s| (s.step as f64, s.loss)).collect();
    let valid: Vec<(f64, f64)> = first_valid
        .map(|loss| (0.0, loss))
        .into_iter()
        .chain(steps.iter().filter_map(|s| Some((s.step as f64, s.valid?))))
        .collect();
    let losses = || train.iter().chain(&valid).map(|(_, loss)| *loss);
    let (lowest, highest) = (losses().fold(f64::INFINITY, f64::min), losses().fold(0.0, f64::max));
    let edge = 0.05 * (highest - lowest) + 1e-6;
    area.fill(&WHITE)?;
    let last = steps.last().map_or(1, |s| s.steps) as f64;
    let mut chart = ChartBuilder::on(area)
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(60)
        .build_cartesian_2d(0.0..last, (lowest - edge).max(0.0)..highest + edge)?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .bold_line_style(RGBColor(225, 225, 225))
        .x_desc("step")
        .x_label_formatter(&|step| format!("{step:.0}"))
        .y_desc("loss (nats per token)")
        .label_style(("sans-serif", 14))
        .axis_desc_style(("sans-serif", 16))
        .draw()?;
    let line =
        |colour: RGBColor| move |(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], colour.stroke_width(2));
    chart.draw_series(LineSeries::new(train.iter().copied(), TRAIN))?.label("train").legend(line(TRAIN));
    chart
        .draw_series(LineSeries::new(smoothed(&train), SMOOTH.stroke_width(2)))?
        .label("train, running mean")
        .legend(line(SMOOTH));
    if !valid.is_empty() {
        chart
            .draw_series(LineSeries::new(valid.iter().copied(), VALID.stroke_width(2)).point_size(4))?
            .label("validation")
            .legend(line(VALID));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .label_font(("sans-serif", 14))
        .background_style(WHITE.mix(0.9))
        .border_style(RGBColor(200, 200, 200))
        .draw()?;
    area.present()
}

/// The mean of a tenth of the run up to each step.
fn smoothed(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let width = (points.len() / 10).max(1);
    let mean = |at: usize| {
        let window = &points[(at + 1).saturating_sub(width)..=at];
        window.iter().map(|(_, y)| y).sum::<f64>() / window.len() as f64
    };
    points.iter().enumerate().map(|(at, (x, _))| (*x, mean(at))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_pictures_are_drawn_with_their_words() {
        let dir = tempfile::tempdir().unwrap();
        let step = |n: usize| Step {
            step: n,
            steps: 40,
            loss: 2.0 / n as f64,
            kl: None,
            rate: 1e-4,
            norm: 1.0,
            tokens: 1,
            targets: 1,
            seconds: 1.0,
            valid: n.is_multiple_of(10).then_some(2.2 / n as f64),
            forgotten: None,
            over_budget: false,
        };
        let steps: Vec<Step> = (1..=40).map(step).collect();
        draw(dir.path(), Some(2.5), &steps).unwrap();
        let svg = std::fs::read_to_string(dir.path().join("loss.svg")).unwrap();
        for word in ["step", "validation", "running mean", "nats"] {
            assert!(svg.contains(word), "{word}");
        }
        let png = std::fs::read(dir.path().join("loss.png")).unwrap();
        assert!(png.starts_with(b"\x89PNG") && png.len() > 5_000, "{} bytes", png.len());
        // Nothing to draw is no error.
        draw(&dir.path().join("none"), None, &steps[..1]).unwrap();
        assert!(draw(&dir.path().join("none"), None, &steps).is_err());
    }

    #[test]
    fn running_means_look_back() {
        let points: Vec<(f64, f64)> = (0..20).map(|n| (f64::from(n), f64::from(n))).collect();
        let smooth = smoothed(&points);
        assert_eq!((smooth[0], smooth[19]), ((0.0, 0.0), (19.0, 18.5)));
    }
}
