//! What a page holds: lines of characters, put together from glyphs as they are drawn.

use std::panic::resume_unwind;
use std::time::Instant;

use hayro_interpret::font::{Glyph, GlyphRun};
use hayro_interpret::hayro_cmap::{BfString, WritingMode};
use hayro_interpret::kurbo::{Affine, BezPath, Point, Rect, Shape as _};
use hayro_interpret::{
    BlendMode, ClipPath, Device, DrawMode, DrawProps, Image, ImageDrawProps, Paint, SoftMask,
};

use super::super::{Fault, MAX_TIME, too_long};
use crate::analysis::scan::is_cjk;

/// Filled areas that are remembered of a page, to tell white type on a dark ground from white type on white.
const MAX_GROUNDS: usize = 4_000;
/// Units of a font's em square.
const EM: f64 = 1_000.0;

/// A run of characters on one line that look the same.
#[derive(Debug, Clone)]
pub(super) struct Piece {
    pub(super) text: String,
    pub(super) look: Look,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    Seen,
    /// Outside of the page, of no size, or in the colour of the paper.
    Hidden,
    /// Not drawn at all: hidden among text that is, the text layer of a scan where nothing is.
    Undrawn,
}

/// Stands between the cells of a row, which only a wide gap tells apart.
pub(super) const CELL: char = '\u{1F}';

#[derive(Debug, Clone)]
pub(super) struct Line {
    pub(super) pieces: Vec<Piece>,
    /// The size in which most of it is set.
    pub(super) size: f64,
    /// How much is set in each size, in halves of a point.
    pub(super) sizes: Vec<(i64, usize)>,
    /// Its distance from the top of the page; grows downwards.
    pub(super) across: f64,
    /// Where it ends along the line.
    pub(super) end: f64,
    pub(super) vertical: bool,
}

impl Line {
    pub(super) fn text(&self) -> String {
        self.pieces.iter().map(|piece| piece.text.as_str()).collect()
    }

    pub(super) fn is_row(&self) -> bool {
        self.pieces.iter().any(|piece| piece.text.contains(CELL))
    }

    /// Counts characters of a size.
    fn count(&mut self, size: f64, chars: usize) {
        let key = rounded(size);
        match self.sizes.iter_mut().find(|(own, _)| *own == key) {
            Some((_, count)) => *count += chars,
            None => self.sizes.push((key, chars)),
        }
        if let Some((most, _)) = self.sizes.iter().max_by_key(|(_, count)| *count) {
            self.size = *most as f64 / 2.0;
        }
    }

    pub(super) fn chars(&self) -> usize {
        self.pieces.iter().map(|piece| piece.text.chars().count()).sum()
    }
}

/// What a page holds.
pub(super) struct Page {
    pub(super) lines: Vec<Line>,
    pub(super) unread: usize,
    pub(super) glyphs: usize,
    pub(super) has_picture: bool,
}

/// Collects the text of a page as it is drawn.
pub(super) struct PageText {
    pub(super) width: f64,
    pub(super) height: f64,
    lines: Vec<Line>,
    /// Where the last glyph stood, and what it was.
    last: Option<(Point, String)>,
    grounds: Vec<Rect>,
    started: Instant,
    pub(super) bytes: usize,
    max_bytes: usize,
    unread: usize,
    glyphs: usize,
    has_picture: bool,
}

impl PageText {
    pub(super) fn new(width: f64, height: f64, started: Instant, max_bytes: usize) -> Self {
        Self {
            width,
            height,
            lines: Vec::new(),
            last: None,
            grounds: Vec::new(),
            started,
            bytes: 0,
            max_bytes,
            unread: 0,
            glyphs: 0,
            has_picture: false,
        }
    }

    /// Gives up on a page that goes on for too long: nothing else ends the interpreter.
    fn check(&self) {
        if self.started.elapsed() > MAX_TIME {
            resume_unwind(Box::new(Fault::new(format!(
                "could not be read within {} seconds; save it without pictures",
                MAX_TIME.as_secs()
            ))));
        }
    }

    fn ground(&mut self, area: Rect, props: &DrawProps<'_>) {
        let drawn = matches!(&props.paint, Paint::Color(color) if !is_paper(color.to_rgba().components()))
            || matches!(props.paint, Paint::Pattern(_));
        if drawn && self.grounds.len() < MAX_GROUNDS {
            self.grounds.push(props.transform.transform_rect_bbox(area));
        }
    }

    fn glyph(
        &mut self,
        glyph: &Glyph<'_>,
        placed: Affine,
        vertical: bool,
        props: &DrawProps<'_>,
        mode: &DrawMode,
    ) {
        self.glyphs += 1;
        let text = match glyph.as_unicode() {
            Some(BfString::Char(c)) => c.to_string(),
            Some(BfString::String(s)) => s,
            None => "\u{fffd}".to_owned(),
        };
        let text: String = text.chars().filter(|c| !c.is_control()).collect();
        self.unread += usize::from(text.contains('\u{fffd}'));
        self.bytes += text.len();
        if self.bytes > self.max_bytes {
            resume_unwind(Box::new(too_long()));
        }
        let origin = placed * Point::ZERO;
        let up = placed * Point::new(0.0, EM) - origin;
        let along = placed * Point::new(EM, 0.0) - origin;
        let size = up.hypot();
        let advance = match glyph {
            Glyph::Outline(outline) => outline.advance_width(),
            Glyph::Type3(type3) => type3.advance_width(),
        };
        let length = if vertical { size } else { f64::from(advance.unwrap_or(500.0)) / EM * along.hypot() };
        // Unit vectors along the line and across it, downwards.
        let along = if vertical {
            (-up) / size.max(f64::MIN_POSITIVE)
        } else {
            along / along.hypot().max(f64::MIN_POSITIVE)
        };
        let at = origin.x * along.x + origin.y * along.y;
        let across = if vertical { -origin.x } else { origin.y * along.x - origin.x * along.y };
        if !(at.is_finite() && across.is_finite() && size.is_finite()) || text.is_empty() {
            return;
        }
        // Drawn twice, a little apart, type looks bold.
        let again = self.last.as_ref().is_some_and(|(before, same)| {
            *same == text && (*before - origin).hypot() < size * 0.1 && !text.trim().is_empty()
        });
        if again {
            return;
        }
        let look = self.look(origin, size, props, mode);
        self.last = Some((origin, text.clone()));
        self.place(&text, look, Place { at, across, size, length, vertical });
    }

    fn look(&self, origin: Point, size: f64, props: &DrawProps<'_>, mode: &DrawMode) -> Look {
        let inside =
            (-1.0..=self.width + 1.0).contains(&origin.x) && (-1.0..=self.height + 1.0).contains(&origin.y);
        if !inside || size < 1.0 {
            return Look::Hidden;
        }
        if matches!(mode, DrawMode::Invisible) {
            return Look::Undrawn;
        }
        if let Paint::Color(color) = &props.paint {
            let [red, green, blue, alpha] = color.to_rgba().components();
            let on_ground = || self.grounds.iter().any(|ground| ground.contains(origin));
            if alpha < 0.05 || (is_paper([red, green, blue, alpha]) && !on_ground()) {
                return Look::Hidden;
            }
        }
        Look::Seen
    }

    fn place(&mut self, text: &str, look: Look, place: Place) {
        let Place { at, across, size, length, vertical } = place;
        let joins = self.lines.last().is_some_and(|line| {
            let larger = line.size.max(size);
            line.vertical == vertical
                && (line.across - across).abs() < 0.65 * larger
                && at > line.end - larger
        });
        if !joins {
            if text.trim().is_empty() {
                return;
            }
            let line = Line { pieces: Vec::new(), size, sizes: Vec::new(), across, end: at, vertical };
            self.lines.push(line);
        }
        let Some(line) = self.lines.last_mut() else { return };
        let gap = at - line.end;
        let last = line.pieces.last().and_then(|piece| piece.text.chars().last());
        let mut own = String::new();
        if gap > 0.2 * size && last.is_some_and(|c| !c.is_whitespace()) {
            let wide = text.chars().next().is_some_and(is_cjk) && last.is_some_and(is_cjk);
            // Japanese type is spread to fill a line; only a wide gap is one.
            if gap > size && gap > 8.0 {
                own.push(CELL);
            } else if !wide || gap > 0.9 * size {
                own.push(' ');
            }
        }
        let raised = size < 0.8 * line.size && across < line.across - 0.15 * line.size;
        if raised && text.starts_with(|c: char| c.is_ascii_digit() || "+-−".contains(c)) && gap < 0.2 * size
        {
            // `10^9` must not become `109`; once for each power.
            if last.is_some_and(char::is_alphanumeric) && !ends_in_power(&line.pieces) {
                own.push('^');
            }
        }
        own.push_str(text);
        match line.pieces.last_mut() {
            Some(piece) if piece.look == look => piece.text.push_str(&own),
            _ => line.pieces.push(Piece { text: own, look }),
        }
        line.end = line.end.max(at + length);
        line.count(size, text.chars().filter(|c| !c.is_whitespace()).count());
    }

    pub(super) fn finish(self) -> Page {
        Page { lines: self.lines, unread: self.unread, glyphs: self.glyphs, has_picture: self.has_picture }
    }
}

fn ends_in_power(pieces: &[Piece]) -> bool {
    let text = pieces.last().map_or("", |piece| piece.text.as_str());
    let before = text.trim_end_matches(|c: char| c.is_ascii_digit() || "+-−".contains(c));
    before.ends_with('^')
}

#[derive(Clone, Copy)]
struct Place {
    at: f64,
    across: f64,
    size: f64,
    length: f64,
    vertical: bool,
}

/// Whether a colour cannot be told from paper.
fn is_paper([red, green, blue, alpha]: [f32; 4]) -> bool {
    alpha < 0.05 || [red, green, blue].iter().all(|c| *c > 0.96)
}

impl Device<'_> for PageText {
    fn draw_path(&mut self, path: &BezPath, props: DrawProps<'_>, mode: &DrawMode) {
        self.check();
        if matches!(mode, DrawMode::Fill(_) | DrawMode::FillAndStroke(..)) {
            self.ground(path.bounding_box(), &props);
        }
    }

    fn push_clip_path(&mut self, _: &ClipPath) {
        self.check();
    }

    fn push_transparency_group(&mut self, _: f32, _: Option<SoftMask<'_>>, _: BlendMode) {
        self.check();
    }

    fn draw_glyph_run(&mut self, run: &GlyphRun<'_, '_>, props: DrawProps<'_>, mode: &DrawMode) {
        self.check();
        let vertical = run.writing_mode() == WritingMode::Vertical;
        for glyph in run.glyphs() {
            self.glyph(glyph, props.transform * glyph.transform(), vertical, &props, mode);
        }
    }

    fn draw_image(&mut self, _: Image<'_, '_>, props: ImageDrawProps<'_>) {
        self.check();
        self.has_picture = true;
        if self.grounds.len() < MAX_GROUNDS {
            self.grounds.push(props.transform.transform_rect_bbox(Rect::new(0.0, 0.0, 1.0, 1.0)));
        }
    }

    fn pop_clip(&mut self) {}

    fn pop_transparency_group(&mut self) {}
}

/// Sizes are compared in halves of a point.
pub(super) fn rounded(size: f64) -> i64 {
    (size * 2.0).round() as i64
}
