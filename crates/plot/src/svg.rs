//! Shapes as SVG.

use std::fmt::Write as _;

use crate::canvas::{Anchor, Canvas, Colour, Shape, Stroke, Text};

impl Canvas {
    pub fn to_svg(&self) -> String {
        let (width, height) = (self.width, self.height);
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
             height=\"{height}\" font-family=\"DejaVu Sans, Verdana, Helvetica, Arial, sans-serif\">\n"
        );
        for shape in &self.shapes {
            // Writing to a string cannot fail.
            let _ = match shape {
                Shape::Rectangle { x, y, width, height, fill } => writeln!(
                    out,
                    r#"<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}" fill="{}"/>"#,
                    hex(*fill)
                ),
                Shape::Line { points, stroke } => writeln!(out, "{}", line(points, stroke)),
                Shape::Dot { x, y, radius, fill } => writeln!(
                    out,
                    r##"<circle cx="{x:.1}" cy="{y:.1}" r="{radius}" fill="{}" stroke="#ffffff" stroke-width="1.5"/>"##,
                    hex(*fill)
                ),
                Shape::Text(shown) => writeln!(out, "{}", text(shown)),
            };
        }
        out.push_str("</svg>\n");
        out
    }
}

fn line(points: &[(f64, f64)], stroke: &Stroke) -> String {
    let places: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    let opacity = if stroke.opacity < 1.0 { format!(r#" stroke-opacity="{}""#, stroke.opacity) } else { String::new() };
    let dashes = if stroke.dashed { r#" stroke-dasharray="5 4""# } else { "" };
    format!(
        r#"<polyline points="{}" fill="none" stroke="{}" stroke-width="{}" stroke-linejoin="round"{opacity}{dashes}/>"#,
        places.join(" "),
        hex(stroke.colour),
        stroke.width
    )
}

fn text(text: &Text) -> String {
    let anchor = match text.anchor {
        Anchor::Start => "start",
        Anchor::Middle => "middle",
        Anchor::End => "end",
    };
    let weight = if text.bold { r#" font-weight="bold""# } else { "" };
    let (x, y) = (text.x, text.y);
    let place = if text.vertical {
        format!(r#"transform="translate({x:.1} {y:.1}) rotate(-90)""#)
    } else {
        format!(r#"x="{x:.1}" y="{y:.1}""#)
    };
    format!(
        r#"<text {place} font-size="{}" text-anchor="{anchor}" fill="{}"{weight}>{}</text>"#,
        text.size,
        hex(text.colour),
        escaped(&text.text)
    )
}

fn hex(Colour(red, green, blue): Colour) -> String {
    format!("#{red:02x}{green:02x}{blue:02x}")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_from_outside_are_no_markup() {
        let mut canvas = Canvas::new(10.0, 10.0);
        canvas.text(Text::new(1.0, 2.0, "a<b & c>d"));
        canvas.line(&[(0.0, 1.0), (2.0, 3.25)], Stroke::plain(Colour(1, 2, 255), 1.5));
        let svg = canvas.to_svg();
        assert!(svg.contains(">a&lt;b &amp; c&gt;d</text>"), "{svg}");
        assert!(svg.contains(r##"points="0.0,1.0 2.0,3.2" fill="none" stroke="#0102ff""##), "{svg}");
    }
}
