//! Values on their way into the file: read from the folder's type, changed as their place demands, rounded to the file's.

use half::{bf16, f16};
use tailor_quant::Float;

use crate::names::Turn;
use crate::writer::GgufWriter;
use crate::{Error, Result};

/// How many values are in memory at once.
const VALUES_AT_ONCE: usize = 1 << 20;

/// A matrix or a vector of the folder.
pub(crate) struct Source<'a> {
    pub name: &'a str,
    pub shape: &'a [usize],
    pub float: Float,
    pub bytes: &'a [u8],
}

/// Writes the whole tensor.
///
/// # Errors
/// A value that is not finite, or is not in the type; the disk.
pub(crate) fn write(writer: &mut GgufWriter, source: &Source<'_>, turn: Turn, float: Float) -> Result<()> {
    // A vector is rows of one value, so that a bias changes places as its weight does.
    let rows = source.shape.first().copied().unwrap_or(1);
    let columns = source.shape.iter().skip(1).product::<usize>();
    let row_bytes = columns * source.float.size();
    let rows_at_once = (VALUES_AT_ONCE / columns.max(1)).max(1);
    let mut bytes = Vec::new();
    for first in (0..rows).step_by(rows_at_once) {
        bytes.clear();
        for row in first..rows.min(first + rows_at_once) {
            let from = turn.source_row(row, rows) * row_bytes;
            bytes.extend_from_slice(&source.bytes[from..from + row_bytes]);
        }
        if let Some(at) = source.float.first_not_finite(&bytes) {
            return Err(Error::value(source.name, format!("value {at} of row {first} and on is no finite number")));
        }
        if source.float == float && turn != Turn::PlusOne {
            writer.put(&bytes)?;
            continue;
        }
        let mut values = source.float.decode(&bytes);
        if turn == Turn::PlusOne {
            values.iter_mut().for_each(|value| *value += 1.0);
        }
        writer.put(&encode(source.name, &values, float)?)?;
    }
    writer.end_tensor()
}

/// The little-endian bytes of values, rounded to nearest.
///
/// # Errors
/// A finite value that the type cannot hold.
pub(crate) fn encode(name: &str, values: &[f32], float: Float) -> Result<Vec<u8>> {
    let bytes: Vec<u8> = match float {
        Float::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        Float::Bf16 => values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect(),
        Float::F16 => values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect(),
    };
    match float.first_not_finite(&bytes) {
        None => Ok(bytes),
        Some(at) => {
            let problem = format!("{} is more than {} holds; write bf16 or f32", values[at], float.as_str());
            Err(Error::value(name, problem))
        }
    }
}
