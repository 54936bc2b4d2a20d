//! The `quant_state` tensor: JSON bytes with what the other tensors do not say.
//!
//! bitsandbytes writes it with Python's `json.dumps`; the bytes here are the same.

use serde::Deserialize;

use crate::error::clip;
use crate::{Code, Float};

/// Longest `quant_state` accepted, in bytes. A real one has about 180.
pub const MAX_STATE_BYTES: usize = 4096;
/// Linear weights have two sides, and nothing in 4 bits has more than a convolution.
const MAX_SIDES: usize = 5;

/// Settings of one 4-bit weight.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantState {
    pub code: Code,
    pub blocksize: usize,
    /// Type of the weight that was quantised: dequantising rounds to it.
    pub dtype: Float,
    pub shape: Vec<usize>,
    pub nested: Option<NestedState>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct NestedState {
    pub blocksize: usize,
    pub offset: f32,
}

#[derive(Deserialize)]
struct Raw {
    quant_type: String,
    blocksize: usize,
    dtype: String,
    shape: Vec<usize>,
    nested_blocksize: Option<usize>,
    nested_dtype: Option<String>,
    nested_offset: Option<f64>,
}

impl QuantState {
    /// # Errors
    /// What is wrong with the bytes; the caller knows the file and the tensor.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() > MAX_STATE_BYTES {
            return Err(format!("quant_state has {} bytes; the limit is {MAX_STATE_BYTES}", bytes.len()));
        }
        let raw: Raw =
            serde_json::from_slice(bytes).map_err(|error| format!("quant_state is not readable: {error}"))?;
        let code = Code::parse(&raw.quant_type)
            .ok_or_else(|| format!("quant_type {:?} is not one of nf4, fp4, uniform4", clip(&raw.quant_type)))?;
        let dtype = Float::parse(&raw.dtype)
            .ok_or_else(|| format!("dtype {:?} is not one of float32, bfloat16, float16", clip(&raw.dtype)))?;
        if raw.blocksize < 2 || raw.blocksize > 4096 || !raw.blocksize.is_power_of_two() {
            return Err(format!("blocksize {} is not a power of two from 2 to 4096", raw.blocksize));
        }
        if raw.shape.len() > MAX_SIDES {
            return Err(format!("shape has {} sides; the limit is {MAX_SIDES}", raw.shape.len()));
        }
        let nested = match (raw.nested_blocksize, raw.nested_offset) {
            (None, None) => None,
            (Some(blocksize), Some(offset)) => {
                if blocksize == 0 || blocksize > 4096 {
                    return Err(format!("nested_blocksize {blocksize} is not between 1 and 4096"));
                }
                if raw.nested_dtype.as_deref().is_some_and(|dtype| dtype != "float32") {
                    return Err(format!(
                        "nested_dtype {:?} is not float32",
                        clip(&raw.nested_dtype.unwrap_or_default())
                    ));
                }
                let offset = offset as f32;
                if !offset.is_finite() {
                    return Err("nested_offset is not finite".into());
                }
                Some(NestedState { blocksize, offset })
            }
            _ => return Err("nested_blocksize and nested_offset must come together".into()),
        };
        Ok(Self { code, blocksize: raw.blocksize, dtype, shape: raw.shape, nested })
    }

    /// The bytes that Python's `json.dumps` gives for the same values.
    pub fn encode(&self) -> Vec<u8> {
        let shape = self.shape.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
        let mut text = format!(
            "{{\"quant_type\": \"{}\", \"blocksize\": {}, \"dtype\": \"{}\", \"shape\": [{shape}]",
            self.code.as_str(),
            self.blocksize,
            self.dtype.as_str()
        );
        if let Some(nested) = &self.nested {
            text += &format!(
                ", \"nested_blocksize\": {}, \"nested_dtype\": \"float32\", \"nested_offset\": {}",
                nested.blocksize,
                python_float(nested.offset as f64)
            );
        }
        text.push('}');
        text.into_bytes()
    }
}

/// Python's `repr` of a float: shortest digits that read back, an exponent below 1e-4 and from 1e16.
fn python_float(value: f64) -> String {
    let magnitude = value.abs();
    if magnitude != 0.0 && !(1e-4..1e16).contains(&magnitude) {
        let shortest = format!("{value:e}");
        let Some((digits, _)) = shortest.split_once('e') else { return shortest };
        let text = even_on_a_tie(value, &shortest, format!("{value:.*e}", decimals(digits)));
        let Some((digits, exponent)) = text.split_once('e') else { return text };
        let (sign, exponent) = match exponent.strip_prefix('-') {
            Some(digits) => ("-", digits),
            None => ("+", exponent),
        };
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    let shortest = value.to_string();
    let text = even_on_a_tie(value, &shortest, format!("{value:.*}", decimals(&shortest)));
    if text.contains('.') { text } else { text + ".0" }
}

fn decimals(number: &str) -> usize {
    number.split_once('.').map_or(0, |(_, decimals)| decimals.len())
}

/// Where two shortest numbers are equally near, Python takes the one that ends in an even digit and Rust the larger. An f32
/// has few enough binary digits for that to happen. `rounded` is the value at as many decimals, rounded to even.
fn even_on_a_tie(value: f64, shortest: &str, rounded: String) -> String {
    if rounded.parse() == Ok(value) { rounded } else { shortest.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_is_written_with_pythons_spacing_and_order() {
        let state = QuantState {
            code: Code::Nf4,
            blocksize: 64,
            dtype: Float::Bf16,
            shape: vec![512, 256],
            nested: Some(NestedState { blocksize: 256, offset: 2.599_742 }),
        };
        let text = String::from_utf8(state.encode()).unwrap();
        assert_eq!(
            text,
            "{\"quant_type\": \"nf4\", \"blocksize\": 64, \"dtype\": \"bfloat16\", \"shape\": [512, 256], \
             \"nested_blocksize\": 256, \"nested_dtype\": \"float32\", \"nested_offset\": 2.5997419357299805}"
        );
        assert_eq!(QuantState::decode(text.as_bytes()).unwrap(), state);
    }

    #[test]
    fn floats_are_written_as_python_writes_them() {
        for (value, text) in [(0.0, "0.0"), (1.0, "1.0"), (0.000_1, "0.0001"), (1.5e-5, "1.5e-05"), (1e16, "1e+16")] {
            assert_eq!(python_float(value), text);
        }
    }

    #[test]
    fn a_float_between_two_shortest_numbers_ends_in_an_even_digit() {
        for (value, text) in [
            (0.629_432_7f32, "0.6294326782226562"), // 0.62943267822265625
            (128.1315, "128.13150024414062"),
            (5.960_464_5e-7, "5.960464477539062e-07"),
            (-0.629_432_7, "-0.6294326782226562"),
        ] {
            assert_eq!(python_float(value.into()), text);
        }
    }

    #[test]
    fn hostile_states_are_refused_by_field() {
        let with = |field: &str, value: &str| {
            let mut state =
                serde_json::json!({"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [4, 4]});
            state[field] = serde_json::from_str(value).unwrap();
            QuantState::decode(state.to_string().as_bytes()).unwrap_err()
        };
        assert!(with("quant_type", "\"int9\"").contains("quant_type"));
        assert!(with("blocksize", "0").contains("blocksize 0"));
        assert!(with("blocksize", "63").contains("blocksize 63"));
        assert!(with("dtype", "\"complex64\"").contains("dtype"));
        assert!(with("nested_offset", "1.0").contains("nested_blocksize"));
        assert!(with("shape", "[-1, 4]").contains("not readable"));
        assert!(with("shape", "[1, 1, 1, 1, 1, 1]").contains("6 sides"));
        assert!(QuantState::decode(&[b' '; 5000]).unwrap_err().contains("5000 bytes"));
    }
}
