//! Line charts for a report: one drawing, as SVG or as PNG.
//!
//! A [`Chart`] is drawn onto a [`Canvas`], a list of shapes that knows no file format; `svg` writes the shapes down, `png`
//! paints them. Letters come from a font in the program (DejaVu Sans, Bitstream Vera's licence): a server has none.

mod axis;
mod canvas;
mod chart;
mod png;
mod svg;

pub use canvas::Canvas;
pub use chart::{Chart, Mark, Panel, Series, smoothed};
pub use png::Error;
