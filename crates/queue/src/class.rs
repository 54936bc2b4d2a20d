//! Which workers a job is for.

/// What a job has to be run by, and what a worker is. A worker is given the jobs of its class and of those below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Class {
    /// Any machine will do.
    #[default]
    Cpu,
    /// Only one with a GPU.
    Gpu,
}

impl Class {
    pub const ALL: [Self; 2] = [Self::Cpu, Self::Gpu];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Gpu => "gpu",
        }
    }

    /// None for another word than [`Self::as_str`] gives.
    pub fn named(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.as_str() == word)
    }
}
