//! The energy that each rank keeps: a thin line for each layer and a bold one for their mean.

use tailor_peft::{LayerSpectrum, Spectrum};
use tailor_plot::{Canvas, Chart, Mark, Panel, Series};

const LAYER: (u8, u8, u8) = (0x4c, 0x78, 0xa8);
const MEAN: (u8, u8, u8) = (0xc8, 0x44, 0x2b);
const GREY: (u8, u8, u8) = (0x88, 0x88, 0x88);

/// `about` stands under the title.
pub fn energy_over_rank(spectrum: &Spectrum, about: &str) -> Canvas {
    let ranks = spectrum.max_rank().max(1);
    let line = |share: &dyn Fn(usize) -> f64| -> Vec<(f64, f64)> {
        (0..=ranks).map(|rank| (rank as f64, share(rank).clamp(0.0, 1.0))).collect()
    };
    let changed: Vec<&LayerSpectrum> = spectrum.layers.iter().filter(|layer| layer.energy() > 0.0).collect();
    // One entry in the legend for all of them.
    let names = std::iter::once(format!("one layer ({})", changed.len())).chain(std::iter::repeat(String::new()));
    let mut series: Vec<Series> = changed
        .iter()
        .zip(names)
        .map(|(layer, name)| {
            let points = line(&|rank| layer.energy_kept(rank));
            Series { name, mark: Mark::Thin, colour: LAYER, points }
        })
        .collect();
    let mean = line(&|rank| spectrum.mean_energy_kept(rank));
    series.push(Series { name: "mean of the layers".into(), mark: Mark::Bold, colour: MEAN, points: mean });
    // 99 % is what `compress` is usually asked for.
    series.push(Series { name: "99 %".into(), mark: Mark::Dashed, colour: GREY, points: line(&|_| 0.99) });
    let panel = Panel {
        range: Some((0.0, 1.0)),
        percent: true,
        // Energy falls from rank to rank, so each curve lies above the diagonal.
        legend_below: true,
        ..Panel::new("Share of squared singular values", 330.0, series)
    };
    let chart = Chart {
        title: "Energy of the update kept at each rank".into(),
        about: about.to_owned(),
        x_label: "rank kept".into(),
        panels: vec![panel],
    };
    chart.draw()
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
        let drawn = energy_over_rank(&spectrum, "a<b@1").to_svg();
        let curves: Vec<&str> =
            drawn.lines().filter(|line| line.contains("4c78a8") || line.contains("c8442b")).collect();
        assert_eq!(curves.len(), 3 + 2, "two layers and their mean; the legend's two");
        // Shares 0, 0.8 and 1; 0, 1 and 1; 0, 0.9 and 1 of 330 pixels under y = 78.
        for points in ["78.0,408.0 467.0,144.0 856.0,78.0", "467.0,78.0 856.0,78.0", "467.0,111.0 856.0,78.0"] {
            assert!(drawn.contains(points), "{points} is missing in {drawn}");
        }
        assert!(drawn.contains("a&lt;b@1") && drawn.contains("one layer (2)") && drawn.contains(">80 %</text>"));
    }

    #[test]
    fn a_large_rank_has_few_numbers_under_the_axis() {
        let drawn = energy_over_rank(&Spectrum { layers: vec![layer(&[1.0; 64])] }, "").to_svg();
        assert!(drawn.contains(">60</text>") && !drawn.contains(">61</text>"), "{drawn}");
        assert!(drawn.matches("text-anchor=\"middle\"").count() <= 12, "{drawn}");
    }
}
