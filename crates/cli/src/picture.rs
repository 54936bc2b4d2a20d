//! A chart into the file that a person named.

use std::path::Path;

use anyhow::Context as _;
use tailor_plot::Canvas;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Svg,
    Png,
}

impl Format {
    /// By the file's ending; asked for before work is done.
    pub fn of(file: &Path) -> anyhow::Result<Self> {
        let ending = file.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
        match ending.to_ascii_lowercase().as_str() {
            "svg" => Ok(Self::Svg),
            "png" => Ok(Self::Png),
            _ => anyhow::bail!("{}: a plot is SVG or PNG; give FILE.svg or FILE.png", file.display()),
        }
    }

    pub fn write(self, canvas: &Canvas, file: &Path) -> anyhow::Result<()> {
        let bytes = match self {
            Self::Svg => canvas.to_svg().into_bytes(),
            Self::Png => canvas.to_png()?,
        };
        std::fs::write(file, bytes).with_context(|| format!("cannot write {}", file.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ending_says_what_is_drawn() {
        assert_eq!(Format::of(Path::new("a/loss.svg")).ok(), Some(Format::Svg));
        assert_eq!(Format::of(Path::new("LOSS.PNG")).ok(), Some(Format::Png));
        for other in ["loss", "loss.pdf", ".svg"] {
            let error = Format::of(Path::new(other)).expect_err("refused").to_string();
            assert!(error.contains(other) && error.contains("FILE.png"), "{error}");
        }
    }
}
