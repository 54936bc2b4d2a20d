//! What a drawing is made of. Lengths are in pixels of the SVG, y runs down.

/// Red, green, blue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Colour(pub u8, pub u8, pub u8);

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Stroke {
    pub colour: Colour,
    pub width: f64,
    pub opacity: f64,
    pub dashed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anchor {
    Start,
    Middle,
    End,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Text {
    pub x: f64,
    /// Of the line that the letters stand on.
    pub y: f64,
    pub text: String,
    pub size: f64,
    pub bold: bool,
    pub colour: Colour,
    pub anchor: Anchor,
    /// Upwards, turned about (x, y).
    pub vertical: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Shape {
    Rectangle {
        x: f64,
        y: f64,
        width: f64,
        height: f64,
        fill: Colour,
    },
    Line {
        points: Vec<(f64, f64)>,
        stroke: Stroke,
    },
    /// A disc with a white rim, so that it stands out from the lines beneath.
    Dot {
        x: f64,
        y: f64,
        radius: f64,
        fill: Colour,
    },
    Text(Text),
}

#[derive(Debug, Clone, PartialEq)]
pub struct Canvas {
    pub(crate) width: f64,
    pub(crate) height: f64,
    pub(crate) shapes: Vec<Shape>,
}

impl Stroke {
    pub fn plain(colour: Colour, width: f64) -> Self {
        Self { colour, width, opacity: 1.0, dashed: false }
    }
}

impl Text {
    pub fn new(x: f64, y: f64, text: impl Into<String>) -> Self {
        let (colour, anchor) = (Colour(0x22, 0x22, 0x22), Anchor::Start);
        Self { x, y, text: text.into(), size: 12.0, bold: false, colour, anchor, vertical: false }
    }

    pub fn anchored(self, anchor: Anchor) -> Self {
        Self { anchor, ..self }
    }
}

impl Canvas {
    pub(crate) fn new(width: f64, height: f64) -> Self {
        let fill = Colour(0xff, 0xff, 0xff);
        let paper = Shape::Rectangle { x: 0.0, y: 0.0, width, height, fill };
        Self { width, height, shapes: vec![paper] }
    }

    pub(crate) fn line(&mut self, points: &[(f64, f64)], stroke: Stroke) {
        self.shapes.push(Shape::Line { points: points.to_vec(), stroke });
    }

    pub(crate) fn text(&mut self, text: Text) {
        self.shapes.push(Shape::Text(text));
    }
}
