//! Shapes as PNG, twice as fine as the SVG's pixels: sharp in print.

use tiny_skia::{
    Color, FillRule, LineCap, LineJoin, Paint, Path, PathBuilder, Pixmap, Rect, Stroke as Pen, StrokeDash, Transform,
};
use ttf_parser::{Face, GlyphId, OutlineBuilder};

use crate::canvas::{Anchor, Canvas, Colour, Shape, Stroke, Text};

const SCALE: f32 = 2.0;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no image of {0} × {1} pixels can be made")]
    Size(f64, f64),
    #[error("the font in this program cannot be read: {0}")]
    Font(#[from] ttf_parser::FaceParsingError),
    #[error("the image cannot be encoded: {0}")]
    Encode(String),
}

impl Canvas {
    /// # Errors
    /// Only where memory or this program's own font fail.
    pub fn to_png(&self) -> Result<Vec<u8>, Error> {
        let pixels = |length: f64| (length as f32 * SCALE).ceil() as u32;
        let pixmap = Pixmap::new(pixels(self.width), pixels(self.height));
        let mut pixmap = pixmap.ok_or(Error::Size(self.width, self.height))?;
        let fonts =
            Fonts { regular: Face::parse(dejavu::sans::regular(), 0)?, bold: Face::parse(dejavu::sans::bold(), 0)? };
        for shape in &self.shapes {
            paint(&mut pixmap, &fonts, shape);
        }
        pixmap.encode_png().map_err(|error| Error::Encode(error.to_string()))
    }
}

struct Fonts {
    regular: Face<'static>,
    bold: Face<'static>,
}

fn paint(pixmap: &mut Pixmap, fonts: &Fonts, shape: &Shape) {
    let scale = Transform::from_scale(SCALE, SCALE);
    match shape {
        Shape::Rectangle { x, y, width, height, fill } => {
            if let Some(rect) = Rect::from_xywh(*x as f32, *y as f32, *width as f32, *height as f32) {
                pixmap.fill_rect(rect, &ink(*fill, 1.0), scale, None);
            }
        }
        Shape::Line { points, stroke } => {
            if let Some(path) = polyline(points) {
                pixmap.stroke_path(&path, &ink(stroke.colour, stroke.opacity), &pen(stroke), scale, None);
            }
        }
        Shape::Dot { x, y, radius, fill } => {
            if let Some(path) = PathBuilder::from_circle(*x as f32, *y as f32, *radius as f32) {
                pixmap.fill_path(&path, &ink(*fill, 1.0), FillRule::Winding, scale, None);
                let rim = Pen { width: 1.5, ..Pen::default() };
                pixmap.stroke_path(&path, &ink(Colour(0xff, 0xff, 0xff), 1.0), &rim, scale, None);
            }
        }
        Shape::Text(text) => {
            let face = if text.bold { &fonts.bold } else { &fonts.regular };
            let Some((letters, width)) = outline(face, text) else { return };
            let back = match text.anchor {
                Anchor::Start => 0.0,
                Anchor::Middle => width / 2.0,
                Anchor::End => width,
            };
            let turn = if text.vertical { -90.0 } else { 0.0 };
            let place = Transform::from_translate(-back, 0.0)
                .post_rotate(turn)
                .post_translate(text.x as f32, text.y as f32)
                .post_scale(SCALE, SCALE);
            pixmap.fill_path(&letters, &ink(text.colour, 1.0), FillRule::Winding, place, None);
        }
    }
}

fn ink(Colour(red, green, blue): Colour, opacity: f64) -> Paint<'static> {
    let mut paint = Paint { anti_alias: true, ..Paint::default() };
    paint.set_color(Color::from_rgba8(red, green, blue, (opacity.clamp(0.0, 1.0) * 255.0).round() as u8));
    paint
}

fn pen(stroke: &Stroke) -> Pen {
    Pen {
        width: stroke.width as f32,
        line_cap: LineCap::Butt,
        line_join: LineJoin::Round,
        dash: if stroke.dashed { StrokeDash::new(vec![5.0, 4.0], 0.0) } else { None },
        ..Pen::default()
    }
}

fn polyline(points: &[(f64, f64)]) -> Option<Path> {
    let mut path = PathBuilder::new();
    let (first, rest) = points.split_first()?;
    path.move_to(first.0 as f32, first.1 as f32);
    rest.iter().for_each(|(x, y)| path.line_to(*x as f32, *y as f32));
    path.finish()
}

/// The letters with their first one at the origin, and how far they reach; `None` if nothing is to be seen.
fn outline(face: &Face, text: &Text) -> Option<(Path, f32)> {
    let size = text.size as f32 / f32::from(face.units_per_em());
    let mut pencil = Pencil { path: PathBuilder::new(), at: 0.0, size };
    for character in text.text.chars() {
        let glyph = face.glyph_index(character).unwrap_or(GlyphId(0));
        face.outline_glyph(glyph, &mut pencil);
        pencil.at += f32::from(face.glyph_hor_advance(glyph).unwrap_or(0)) * size;
    }
    Some((pencil.path.finish()?, pencil.at))
}

/// Draws a glyph where the line has got to; the font's y runs up.
struct Pencil {
    path: PathBuilder,
    at: f32,
    size: f32,
}

impl Pencil {
    fn place(&self, x: f32, y: f32) -> (f32, f32) {
        (self.at + x * self.size, -y * self.size)
    }
}

impl OutlineBuilder for Pencil {
    fn move_to(&mut self, x: f32, y: f32) {
        let (x, y) = self.place(x, y);
        self.path.move_to(x, y);
    }
    fn line_to(&mut self, x: f32, y: f32) {
        let (x, y) = self.place(x, y);
        self.path.line_to(x, y);
    }
    fn quad_to(&mut self, x1: f32, y1: f32, x: f32, y: f32) {
        let ((x1, y1), (x, y)) = (self.place(x1, y1), self.place(x, y));
        self.path.quad_to(x1, y1, x, y);
    }
    fn curve_to(&mut self, x1: f32, y1: f32, x2: f32, y2: f32, x: f32, y: f32) {
        let ((x1, y1), (x2, y2), (x, y)) = (self.place(x1, y1), self.place(x2, y2), self.place(x, y));
        self.path.cubic_to(x1, y1, x2, y2, x, y);
    }
    fn close(&mut self) {
        self.path.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_leave_ink_where_they_stand() {
        let mut canvas = Canvas::new(60.0, 40.0);
        canvas.text(Text { size: 20.0, ..Text::new(30.0, 30.0, "Häβ → 1") }.anchored(Anchor::Middle));
        let png = canvas.to_png().expect("drawn");
        let pixmap = Pixmap::decode_png(&png).expect("a PNG");
        assert_eq!((pixmap.width(), pixmap.height()), (120, 80));
        let dark = |from: u32, to: u32| {
            let rows = (from..to).flat_map(|y| (0..120).map(move |x| (x, y)));
            rows.filter(|(x, y)| pixmap.pixel(*x, *y).is_some_and(|pixel| pixel.red() < 128)).count()
        };
        assert!(dark(30, 60) > 200, "the line of letters");
        assert_eq!(dark(0, 15) + dark(70, 80), 0, "above and below it");
    }
}
