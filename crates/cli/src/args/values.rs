//! Values with a form of their own.

/// `name` or `name@3`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionedName {
    pub name: String,
    /// 0: the latest.
    pub version: u64,
}

impl std::fmt::Display for VersionedName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.version {
            0 => f.write_str(&self.name),
            version => write!(f, "{}@{version}", self.name),
        }
    }
}

impl std::str::FromStr for VersionedName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some((name, version)) = text.split_once('@') else {
            return Ok(Self { name: text.to_owned(), version: 0 });
        };
        match version.parse() {
            Ok(version) if version > 0 => Ok(Self { name: name.to_owned(), version }),
            _ => Err(format!("{version:?} is no version; write NAME or NAME@3")),
        }
    }
}

/// Bytes, as `5GB` says them: powers of 1000, as transformers counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteSize(pub u64);

impl std::str::FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.trim_end_matches(|character: char| !character.is_ascii_digit());
        let unit = match text[digits.len()..].trim().to_ascii_uppercase().as_str() {
            "" | "B" => Some(1),
            "KB" => Some(1_000),
            "MB" => Some(1_000_000),
            "GB" => Some(1_000_000_000),
            _ => None,
        };
        let bytes = unit.zip(digits.parse::<u64>().ok()).and_then(|(unit, count)| count.checked_mul(unit));
        match bytes {
            Some(bytes) if bytes > 0 => Ok(Self(bytes)),
            _ => Err(format!("{text:?} is no size; write 500MB or 5GB")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_counted_as_transformers_does() {
        for (text, bytes) in [("5GB", 5_000_000_000), ("500 mb", 500_000_000), ("12KB", 12_000), ("7", 7)] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
        for text in ["", "GB", "5TB", "0", "-1GB", "1.5GB", "99999999999GB"] {
            assert!(text.parse::<ByteSize>().is_err_and(|error| error.contains("500MB")), "{text}");
        }
    }
}
