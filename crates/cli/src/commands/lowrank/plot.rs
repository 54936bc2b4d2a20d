//! The energy that each rank keeps, as an SVG: a thin line for each layer and a bold one for their mean.

use std::fmt::Write as _;

use tailor_peft::{LayerSpectrum, Spectrum};

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 470.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 720.0;
const TOP: f64 = 70.0;
const BOTTOM: f64 = 400.0;
/// More numbers than these under the axis would touch.
const MAX_TICKS: usize = 10;

const INK: &str = "#222222";
const GRID: &str = "#e3e3e3";
const LAYER: &str = "#4c78a8";
const MEAN: &str = "#c8442b";

/// `about` stands under the title.
pub fn energy_over_rank(spectrum: &Spectrum, about: &str) -> String {
    let ranks = spectrum.max_rank().max(1);
    let mut body = String::new();
    body.push_str(&grid(ranks));
    for layer in spectrum.layers.iter().filter(|layer| layer.energy() > 0.0) {
        let style = format!(r#"stroke="{LAYER}" stroke-width="1" stroke-opacity="0.45""#);
        body.push_str(&line(ranks, |rank| layer.energy_kept(rank), &style));
    }
    let style = format!(r#"stroke="{MEAN}" stroke-width="3""#);
    body.push_str(&line(ranks, |rank| spectrum.mean_energy_kept(rank), &style));
    body.push_str(&legend(spectrum.layers.iter().map(LayerSpectrum::energy).filter(|energy| *energy > 0.0).count()));
    let about = escaped(about);
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"
 font-family="Helvetica, Arial, sans-serif" font-size="13" fill="{INK}">
<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>
<text x="{LEFT}" y="30" font-size="18" font-weight="bold">Energy of the update kept at each rank</text>
<text x="{LEFT}" y="51" fill="#555555">{about}</text>
{body}<text x="{middle}" y="{under}" text-anchor="middle">rank kept</text>
<text transform="translate(22 {centre}) rotate(-90)" text-anchor="middle">share of squared singular values</text>
</svg>
"##,
        middle = (LEFT + RIGHT) / 2.0,
        under = BOTTOM + 46.0,
        centre = (TOP + BOTTOM) / 2.0,
    )
}

fn x(rank: usize, ranks: usize) -> f64 {
    LEFT + (RIGHT - LEFT) * rank as f64 / ranks as f64
}

fn y(share: f64) -> f64 {
    BOTTOM - (BOTTOM - TOP) * share
}

/// Lines across, the axes, and their numbers.
fn grid(ranks: usize) -> String {
    let mut out = String::new();
    for percent in (0..=100).step_by(20) {
        let at = y(f64::from(percent) / 100.0);
        let _ = writeln!(out, r#"<path d="M{LEFT} {at:.1}H{RIGHT}" stroke="{GRID}"/>"#);
        let (left, middle) = (LEFT - 9.0, at + 4.5);
        let _ = writeln!(out, r#"<text x="{left}" y="{middle:.1}" text-anchor="end">{percent} %</text>"#);
    }
    // 99 % is what `compress` is usually asked for.
    let at = y(0.99);
    let _ = writeln!(out, r##"<path d="M{LEFT} {at:.1}H{RIGHT}" stroke="#888888" stroke-dasharray="4 4"/>"##);
    let step = ranks.div_ceil(MAX_TICKS);
    for rank in (0..=ranks).step_by(step) {
        let (at, end, text) = (x(rank, ranks), BOTTOM + 5.0, BOTTOM + 21.0);
        let _ = writeln!(out, r#"<path d="M{at:.1} {BOTTOM}V{end}" stroke="{INK}"/>"#);
        let _ = writeln!(out, r#"<text x="{at:.1}" y="{text}" text-anchor="middle">{rank}</text>"#);
    }
    let _ = writeln!(out, r#"<path d="M{LEFT} {TOP}V{BOTTOM}H{RIGHT}" fill="none" stroke="{INK}"/>"#);
    out
}

fn line(ranks: usize, share: impl Fn(usize) -> f64, style: &str) -> String {
    let points: Vec<String> =
        (0..=ranks).map(|rank| format!("{:.1},{:.1}", x(rank, ranks), y(share(rank).clamp(0.0, 1.0)))).collect();
    format!("<polyline points=\"{}\" fill=\"none\" stroke-linejoin=\"round\" {style}/>\n", points.join(" "))
}

/// Below on the right, where no curve can be: energy falls from rank to rank, so each lies above the diagonal.
fn legend(layers: usize) -> String {
    let entries = [
        (format!(r#"stroke="{LAYER}" stroke-width="1""#), format!("one layer ({layers})")),
        (format!(r#"stroke="{MEAN}" stroke-width="3""#), "mean of the layers".to_owned()),
        (r##"stroke="#888888" stroke-dasharray="4 4""##.to_owned(), "99 %".to_owned()),
    ];
    // Over the grid, so that no line goes through the words.
    let (left, top) = (RIGHT - 190.0, BOTTOM - 86.0);
    let mut out = format!("<rect x=\"{left}\" y=\"{top}\" width=\"188\" height=\"78\" fill=\"#ffffff\"/>\n");
    for (at, (style, text)) in entries.iter().enumerate() {
        let (from, to, words) = (RIGHT - 180.0, RIGHT - 148.0, RIGHT - 138.0);
        let middle = BOTTOM - 68.0 + 22.0 * at as f64;
        let base = middle + 4.5;
        let _ = writeln!(out, r#"<path d="M{from} {middle}H{to}" {style}/><text x="{words}" y="{base}">{text}</text>"#);
    }
    out
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(singular_values: &[f64]) -> LayerSpectrum {
        LayerSpectrum {
            path: "model.layers.0.self_attn.q_proj".into(),
            rank: singular_values.len(),
            out_features: 8,
            in_features: 8,
            singular_values: singular_values.to_vec(),
        }
    }

    #[test]
    fn a_layer_without_change_is_not_drawn_and_the_mean_ends_at_all_of_the_energy() {
        let spectrum = Spectrum { layers: vec![layer(&[2.0, 1.0]), layer(&[3.0, 0.0]), layer(&[0.0, 0.0])] };
        let drawn = energy_over_rank(&spectrum, "a<b@1");
        assert_eq!(drawn.matches("<polyline").count(), 3, "two layers and their mean");
        // Shares 0, 0.8 and 1; 0, 1 and 1; 0, 0.9 and 1.
        for points in ["70.0,400.0 395.0,136.0 720.0,70.0", "395.0,70.0 720.0", "395.0,103.0 720.0"] {
            assert!(drawn.contains(points), "{points} is missing in {drawn}");
        }
        assert!(drawn.contains("a&lt;b@1") && drawn.contains("one layer (2)"));
    }

    #[test]
    fn a_large_rank_has_few_numbers_under_the_axis() {
        let drawn = energy_over_rank(&Spectrum { layers: vec![layer(&[1.0; 64])] }, "");
        assert!(drawn.contains(">63</text>") && !drawn.contains(">64</text>"), "every seventh");
        assert!(drawn.matches("text-anchor=\"middle\">").count() <= MAX_TICKS + 3);
    }
}
