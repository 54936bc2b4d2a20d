//! Panels one under the other over the same x, each with its own y.

use crate::axis::Axis;
use crate::canvas::{Anchor, Canvas, Colour, Shape, Stroke, Text};

const WIDTH: f64 = 880.0;
const LEFT: f64 = 78.0;
const RIGHT: f64 = WIDTH - 24.0;
const TOP: f64 = 78.0;
/// Between two panels: the lower one's heading.
const GAP: f64 = 40.0;
const FOOT: f64 = 52.0;

const INK: Colour = Colour(0x22, 0x22, 0x22);
const FAINT: Colour = Colour(0x5b, 0x5b, 0x5b);
const GRID: Colour = Colour(0xe6, 0xe6, 0xe6);

/// How a series is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// Every value, behind everything else.
    Thin,
    Bold,
    /// A line with a dot at each value.
    Dots,
    /// One large dot at each value, no line.
    Star,
    Dashed,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// In the legend; empty leaves it out.
    pub name: String,
    pub mark: Mark,
    /// Red, green, blue.
    pub colour: (u8, u8, u8),
    /// By rising x; what is not finite is not drawn.
    pub points: Vec<(f64, f64)>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Panel {
    /// What is measured, with its unit.
    pub title: String,
    pub height: f64,
    pub series: Vec<Series>,
    /// Ends of the y axis; as the values need them when absent.
    pub range: Option<(f64, f64)>,
    /// Shares, written in percent.
    pub percent: bool,
    /// The legend stands below, not above: for curves that rise.
    pub legend_below: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Chart {
    pub title: String,
    /// Under the title, smaller.
    pub about: String,
    pub x_label: String,
    pub panels: Vec<Panel>,
}

impl Panel {
    pub fn new(title: impl Into<String>, height: f64, series: Vec<Series>) -> Self {
        Self { title: title.into(), height, series, range: None, percent: false, legend_below: false }
    }

    fn values(&self) -> impl Iterator<Item = (f64, f64)> {
        let finite = |(x, y): &(f64, f64)| x.is_finite() && y.is_finite();
        self.series.iter().flat_map(|series| series.points.iter().copied()).filter(finite)
    }

    fn axis(&self) -> Axis {
        let most = (self.height / 42.0).round().clamp(3.0, 8.0) as usize;
        if let Some((low, high)) = self.range {
            return Axis { percent: self.percent, ..Axis::over(low, high, most.max(6), false) };
        }
        let low = self.values().map(|(_, y)| y).fold(f64::INFINITY, f64::min);
        let high = self.values().map(|(_, y)| y).fold(f64::NEG_INFINITY, f64::max);
        if low > high {
            return Axis::rounded(0.0, 1.0, most);
        }
        // Zero belongs to the picture where it is near.
        let low = if low > 0.0 && low < 0.4 * high { 0.0 } else { low };
        Axis { percent: self.percent, ..Axis::rounded(low, high, most) }
    }
}

impl Chart {
    pub fn draw(&self) -> Canvas {
        let heights: f64 = self.panels.iter().map(|panel| panel.height + GAP).sum();
        let mut canvas = Canvas::new(WIDTH, TOP + heights - GAP + FOOT);
        canvas.text(Text { size: 17.0, bold: true, ..Text::new(LEFT - 54.0, 28.0, &self.title) });
        canvas.text(Text { colour: FAINT, size: 12.5, ..Text::new(LEFT - 54.0, 49.0, &self.about) });
        let end = self.panels.iter().flat_map(Panel::values).map(|(x, _)| x).fold(1.0, f64::max);
        let across = Axis::over(0.0, end, 11, true);
        let mut top = TOP;
        for (at, panel) in self.panels.iter().enumerate() {
            let is_last = at + 1 == self.panels.len();
            Frame { across: &across, up: panel.axis(), top, bottom: top + panel.height }.draw(
                &mut canvas,
                panel,
                is_last,
            );
            top += panel.height + GAP;
        }
        let under = top - GAP + 40.0;
        canvas.text(Text::new((LEFT + RIGHT) / 2.0, under, &self.x_label).anchored(Anchor::Middle));
        canvas
    }
}

/// Where a panel lies.
struct Frame<'a> {
    across: &'a Axis,
    up: Axis,
    top: f64,
    bottom: f64,
}

impl Frame<'_> {
    fn place(&self, (x, y): (f64, f64)) -> (f64, f64) {
        let across = LEFT + (RIGHT - LEFT) * self.across.share(x);
        (across, self.bottom - (self.bottom - self.top) * self.up.share(y))
    }

    fn draw(&self, canvas: &mut Canvas, panel: &Panel, numbers_across: bool) {
        canvas.text(Text { bold: true, ..Text::new(LEFT, self.top - 9.0, &panel.title) });
        for (value, written) in self.up.numbers() {
            let y = self.place((0.0, value)).1;
            canvas.line(&[(LEFT, y), (RIGHT, y)], Stroke::plain(GRID, 1.0));
            canvas.text(Text::new(LEFT - 9.0, y + 4.2, written).anchored(Anchor::End));
        }
        for (value, written) in self.across.numbers() {
            let x = self.place((value, 0.0)).0;
            canvas.line(&[(x, self.bottom), (x, self.bottom + 5.0)], Stroke::plain(INK, 1.0));
            if numbers_across {
                canvas.text(Text::new(x, self.bottom + 19.0, written).anchored(Anchor::Middle));
            }
        }
        canvas.line(&[(LEFT, self.top), (LEFT, self.bottom), (RIGHT, self.bottom)], Stroke::plain(INK, 1.0));
        panel.series.iter().for_each(|series| self.series(canvas, series));
        self.legend(canvas, panel);
    }

    fn series(&self, canvas: &mut Canvas, series: &Series) {
        let finite = series.points.iter().filter(|(x, y)| x.is_finite() && y.is_finite());
        let places: Vec<_> = thinned(finite.map(|point| self.place(*point)).collect());
        if let Some(stroke) = stroke(series)
            && places.len() > 1
        {
            canvas.line(&places, stroke);
        }
        if let Some(radius) = radius(series.mark, places.len()) {
            canvas.shapes.extend(places.iter().map(|(x, y)| Shape::Dot { x: *x, y: *y, radius, fill: colour(series) }));
        }
    }

    /// On the right, entry under entry, over a white ground.
    fn legend(&self, canvas: &mut Canvas, panel: &Panel) {
        const LINE: f64 = 19.0;
        let named: Vec<&Series> =
            panel.series.iter().filter(|series| !series.name.is_empty() && !series.points.is_empty()).collect();
        let longest = named.iter().map(|series| series.name.chars().count()).max().unwrap_or(0);
        if named.len() < 2 {
            return;
        }
        let (width, height) = (52.0 + 6.9 * longest as f64, LINE * named.len() as f64 + 6.0);
        let top = if panel.legend_below { self.bottom - height - 12.0 } else { self.top + 4.0 };
        let left = RIGHT - width - 4.0;
        canvas.shapes.push(Shape::Rectangle { x: left, y: top, width, height, fill: Colour(0xff, 0xff, 0xff) });
        for (at, series) in named.into_iter().enumerate() {
            let y = top + 13.0 + LINE * at as f64;
            if let Some(stroke) = stroke(series) {
                canvas.line(&[(left + 8.0, y), (left + 36.0, y)], stroke);
            }
            if let Some(radius) = radius(series.mark, 1) {
                canvas.shapes.push(Shape::Dot { x: left + 22.0, y, radius, fill: colour(series) });
            }
            canvas.text(Text::new(left + 44.0, y + 4.2, &series.name));
        }
    }
}

fn colour(series: &Series) -> Colour {
    let (red, green, blue) = series.colour;
    Colour(red, green, blue)
}

fn stroke(series: &Series) -> Option<Stroke> {
    let plain = |width| Stroke::plain(colour(series), width);
    match series.mark {
        Mark::Thin => Some(Stroke { opacity: 0.4, ..plain(1.0) }),
        Mark::Bold => Some(plain(2.2)),
        Mark::Dots => Some(plain(1.6)),
        Mark::Star => None,
        Mark::Dashed => Some(Stroke { dashed: true, ..plain(1.2) }),
    }
}

fn radius(mark: Mark, places: usize) -> Option<f64> {
    match mark {
        Mark::Star => Some(6.5),
        Mark::Dots if places <= 60 => Some(3.8),
        Mark::Thin | Mark::Bold | Mark::Dots | Mark::Dashed => None,
    }
}

/// At most the lowest and the highest value of each pixel column: nothing that could be seen is lost.
fn thinned(places: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    if places.len() <= 4 * WIDTH as usize {
        return places;
    }
    let mut kept = Vec::new();
    for column in places.chunk_by(|(left, _), (right, _)| left.floor() == right.floor()) {
        let by_height = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
        let ends = [column.iter().min_by(by_height), column.iter().max_by(by_height)];
        let mut ends: Vec<(f64, f64)> = ends.into_iter().flatten().copied().collect();
        ends.sort_by(|a, b| a.0.total_cmp(&b.0));
        kept.extend(ends);
    }
    kept
}

/// The mean of each value and those up to `reach` places before and behind it, fewer at the ends.
pub fn smoothed(points: &[(f64, f64)], reach: usize) -> Vec<(f64, f64)> {
    let finite: Vec<(f64, f64)> = points.iter().copied().filter(|(_, y)| y.is_finite()).collect();
    let sums: Vec<f64> = std::iter::once(0.0)
        .chain(finite.iter().scan(0.0, |sum, (_, y)| {
            *sum += y;
            Some(*sum)
        }))
        .collect();
    let mean = |at: usize| {
        // As far to one side as to the other, or a slope would bend at the ends.
        let reach = reach.min(at).min(finite.len() - 1 - at);
        (sums[at + reach + 1] - sums[at - reach]) / (2 * reach + 1) as f64
    };
    finite.iter().enumerate().map(|(at, (x, _))| (*x, mean(at))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(mark: Mark, points: Vec<(f64, f64)>) -> Series {
        Series { name: format!("{mark:?}"), mark, colour: (10, 20, 30), points }
    }

    fn chart(series: Vec<Series>) -> Chart {
        let panels = vec![Panel::new("loss, nats", 200.0, series)];
        Chart { title: "job".into(), about: "about".into(), x_label: "step".into(), panels }
    }

    #[test]
    fn smoothing_keeps_a_slope_and_takes_out_what_alternates() {
        let slope: Vec<(f64, f64)> = (0..9).map(|x| (f64::from(x), f64::from(x))).collect();
        assert_eq!(smoothed(&slope, 3), slope);
        let zigzag: Vec<(f64, f64)> = (0..99).map(|x| (f64::from(x), f64::from(x % 3))).collect();
        assert!(smoothed(&zigzag, 1)[1..98].iter().all(|(_, y)| (y - 1.0).abs() < 1e-9));
        assert_eq!(smoothed(&[], 4), []);
    }

    #[test]
    fn a_run_of_any_length_is_drawn_with_bounded_ink_and_its_peaks() {
        let mut points: Vec<(f64, f64)> = (0..100_000).map(|x| (f64::from(x), 1.0)).collect();
        points[54_321].1 = 9.0;
        let canvas = chart(vec![series(Mark::Thin, points)]).draw();
        let lines = canvas.shapes.iter().filter_map(|shape| match shape {
            Shape::Line { points, stroke } if stroke.opacity < 1.0 => Some(points),
            _ => None,
        });
        let drawn: Vec<_> = lines.collect();
        assert_eq!(drawn.len(), 1);
        assert!(drawn[0].len() <= 2 * WIDTH as usize, "{}", drawn[0].len());
        assert!(drawn[0].iter().any(|(_, y)| *y < TOP + 30.0), "the peak is there");
    }

    #[test]
    fn nothing_measured_or_nothing_finite_is_still_a_picture() {
        for points in [vec![], vec![(1.0, f64::NAN)], vec![(1.0, 0.5)], vec![(1.0, f64::INFINITY), (2.0, 1.0)]] {
            let canvas = chart(vec![series(Mark::Bold, points.clone()), series(Mark::Star, points)]).draw();
            let svg = canvas.to_svg();
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
            assert!(canvas.to_png().is_ok());
        }
    }
}
