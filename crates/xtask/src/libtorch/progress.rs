//! Shows a download: a bar on a terminal, a line every tenth of it elsewhere (a CI log, a pipe).

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};

pub struct Progress {
    bar: ProgressBar,
    /// Present where no bar can be drawn.
    lines: Option<Lines>,
}

struct Lines {
    name: String,
    next_tenth: u64,
    started: Instant,
}

impl Progress {
    pub fn new(name: &str, total_bytes: u64) -> Self {
        if !std::io::stderr().is_terminal() {
            let lines = Lines { name: name.to_owned(), next_tenth: 1, started: Instant::now() };
            let bar = ProgressBar::hidden();
            bar.set_length(total_bytes);
            return Self { bar, lines: Some(lines) };
        }
        let bar = ProgressBar::new(total_bytes).with_message(name.to_owned());
        let template = "{msg:20} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec}, {eta} left";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.enable_steady_tick(Duration::from_millis(200));
        Self { bar, lines: None }
    }

    /// For pieces too small to be worth a bar.
    pub fn silent() -> Self {
        Self { bar: ProgressBar::hidden(), lines: None }
    }

    pub fn add(&mut self, bytes: u64) {
        self.bar.inc(bytes);
        let (Some(lines), Some(total @ 1..)) = (&mut self.lines, self.bar.length()) else { return };
        let done = self.bar.position();
        if done * 10 >= lines.next_tenth * total {
            lines.next_tenth = done * 10 / total + 1;
            let seconds = lines.started.elapsed().as_secs_f64();
            eprintln!("{}: {:3} % of {}, {seconds:.0} s", lines.name, done * 100 / total, HumanBytes(total));
        }
    }

    /// Counts the bytes that an earlier, broken-off run left.
    pub fn resume_at(&mut self, bytes: u64) {
        self.note(&format!("resuming after {} that are already there", HumanBytes(bytes)));
        self.bar.inc(bytes);
        self.bar.reset_eta();
        if let (Some(lines), Some(total @ 1..)) = (&mut self.lines, self.bar.length()) {
            lines.next_tenth = self.bar.position() * 10 / total + 1;
        }
    }

    /// Prints a line above the bar.
    pub fn note(&self, text: &str) {
        match &self.lines {
            Some(lines) => eprintln!("{}: {text}", lines.name),
            None => self.bar.println(text),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
