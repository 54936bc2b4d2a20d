//! AdamW's moments: in f32, or in 8 bits (arXiv 2110.02861).
//!
//! Eight bits: each block of [`BLOCK`] values is scaled by its largest magnitude and kept as the nearest entry of a
//! dynamic map (§1.3): signed for the first moment, unsigned for the second. They are opened and closed slice by slice,
//! so the f32 values of one slice are in memory at a time.

use tailor_quant::dynamic_map;
use tailor_torch::device::Moment8;
use tailor_torch::gpu::managed_like;
use tch::{Device, Kind, TchError, Tensor};

use crate::checkpoint::Values;

/// Values under one scale (§2.1 takes 2048; bitsandbytes, which is measured against, 256).
const BLOCK: i64 = 256;
/// Values that are in f32 at once.
const SLICE: i64 = BLOCK << 13;

/// One moment of every parameter.
pub enum Moment {
    Full(Tensor),
    Blocks(Blocks),
}

pub struct Blocks {
    codes: Tensor,   // [n] u8
    scales: Tensor,  // [ceil(n / BLOCK)] f32
    map: Tensor,     // [256] f32, ascending
    middles: Tensor, // [255] f32: where the nearest entry changes
}

impl Moment {
    /// Zeros.
    pub fn full(count: i64, device: Device) -> Result<Self, TchError> {
        Ok(Self::Full(Tensor::f_zeros([count], (Kind::Float, device))?))
    }

    /// Zeros, in 8 bits.
    pub fn blocks(count: i64, signed: bool, device: Device) -> Result<Self, TchError> {
        let map = if signed { dynamic_map() } else { unsigned_dynamic_map() };
        let middles: Vec<f32> = map.windows(2).map(|pair| f32::midpoint(pair[0], pair[1])).collect();
        let map = Tensor::f_from_slice(&map)?.f_to_device(device)?;
        let middles = Tensor::f_from_slice(&middles)?.f_to_device(device)?;
        let zero = Tensor::f_zeros([1], (Kind::Float, device))?.f_bucketize(&middles, false, false)?;
        let codes = zero.f_to_kind(Kind::Uint8)?.f_expand([count], false)?.f_contiguous()?;
        let scales = Tensor::f_zeros([(count + BLOCK - 1) / BLOCK], (Kind::Float, device))?;
        Ok(Self::Blocks(Blocks { codes, scales, map, middles }))
    }

    /// The same in memory that moves between GPU and host page by page.
    ///
    /// # Errors
    /// It is on no GPU; no memory.
    pub fn paged(self) -> Result<Self, TchError> {
        let move_over = |tensor: &Tensor| {
            let mut paged = managed_like(tensor).map_err(|error| TchError::Torch(error.to_string()))?;
            paged.f_copy_(tensor)?;
            Ok::<_, TchError>(paged)
        };
        Ok(match self {
            Self::Full(values) => Self::Full(move_over(&values)?),
            Self::Blocks(blocks) => {
                let (codes, scales) = (move_over(&blocks.codes)?, move_over(&blocks.scales)?);
                Self::Blocks(Blocks { codes, scales, ..blocks })
            }
        })
    }

    /// Starts and lengths of the slices that are worked on one after the other.
    pub fn slices(&self) -> Vec<(i64, i64)> {
        match self {
            Self::Full(values) => vec![(0, values.numel() as i64)],
            Self::Blocks(blocks) => {
                let count = blocks.codes.numel() as i64;
                (0..count).step_by(SLICE as usize).map(|start| (start, SLICE.min(count - start))).collect()
            }
        }
    }

    /// The values of a slice in f32.
    pub fn open(&self, (start, length): (i64, i64)) -> Result<Tensor, TchError> {
        match self {
            Self::Full(values) => values.f_narrow(0, start, length),
            Self::Blocks(blocks) => blocks.open(start, length),
        }
    }

    /// Puts new values in a slice.
    pub fn close(&mut self, (start, length): (i64, i64), values: &Tensor) -> Result<(), TchError> {
        match self {
            Self::Full(all) => all.f_narrow(0, start, length)?.f_copy_(values),
            Self::Blocks(blocks) => blocks.close(start, length, values),
        }
    }

    /// What a checkpoint keeps, by name.
    pub fn state(&self, name: &str) -> Result<Vec<(String, Values)>, TchError> {
        let on_host = |tensor: &Tensor| tensor.f_detach()?.f_to_device(Device::Cpu);
        Ok(match self {
            Self::Full(values) => vec![(name.to_owned(), Values::F32(Vec::try_from(&on_host(values)?)?))],
            Self::Blocks(blocks) => vec![
                (format!("{name}.codes"), Values::U8(Vec::try_from(&on_host(&blocks.codes)?)?)),
                (format!("{name}.scales"), Values::F32(Vec::try_from(&on_host(&blocks.scales)?)?)),
            ],
        })
    }

    /// Takes back what [`Self::state`] gave.
    ///
    /// # Errors
    /// Something is missing or not as many.
    pub fn restore(&mut self, name: &str, find: &dyn Fn(&str) -> Option<Tensor>) -> Result<(), TchError> {
        let copy = |to: &mut Tensor, name: &str| match find(name) {
            Some(values) => to.f_copy_(&values.f_view(to.size().as_slice())?),
            None => Err(TchError::Torch(format!("the checkpoint has no {name}"))),
        };
        match self {
            Self::Full(values) => copy(values, name),
            Self::Blocks(blocks) => {
                copy(&mut blocks.codes, &format!("{name}.codes"))?;
                copy(&mut blocks.scales, &format!("{name}.scales"))
            }
        }
    }
}

impl Blocks {
    /// As the kernel takes them.
    pub fn parts(&self) -> Moment8<'_> {
        Moment8 { codes: &self.codes, scales: &self.scales, map: &self.map, middles: &self.middles }
    }

    fn open(&self, start: i64, length: i64) -> Result<Tensor, TchError> {
        let codes = self.codes.f_narrow(0, start, length)?.f_to_kind(Kind::Int64)?;
        let values = self.map.f_index_select(0, &codes)?;
        let (first, blocks) = (start / BLOCK, (length + BLOCK - 1) / BLOCK);
        let scales = self.scales.f_narrow(0, first, blocks)?.f_repeat_interleave_self_int(BLOCK, 0, None)?;
        values.f_mul(&scales.f_narrow(0, 0, length)?)
    }

    fn close(&mut self, start: i64, length: i64, values: &Tensor) -> Result<(), TchError> {
        let (first, blocks) = (start / BLOCK, (length + BLOCK - 1) / BLOCK);
        let padded = values.f_constant_pad_nd([0, blocks * BLOCK - length].as_slice())?.f_view([blocks, BLOCK])?;
        let scales = padded.f_abs()?.f_amax([1i64].as_slice(), true)?; // [blocks, 1]
        // A block of zeros has no scale: anything over 1 is what it is.
        let divisor = scales.f_masked_fill(&scales.f_eq(0.0)?, 1.0)?;
        let codes = padded.f_div(&divisor)?.f_bucketize(&self.middles, false, false)?.f_to_kind(Kind::Uint8)?;
        self.codes.f_narrow(0, start, length)?.f_copy_(&codes.f_view([-1])?.f_narrow(0, 0, length)?)?;
        self.scales.f_narrow(0, first, blocks)?.f_copy_(&scales.f_view([-1])?)
    }
}

/// As [`dynamic_map`] without a sign: the bit that it would take goes to the fraction.
fn unsigned_dynamic_map() -> [f32; 256] {
    let mut values = vec![0.0, 1.0];
    for exponent in 0..7i32 {
        let steps = 1 << (exponent + 1);
        let tenth = 10f64.powi(exponent - 6);
        let edge = |at: i32| 0.1 + 0.9 * f64::from(at) / f64::from(steps);
        values.extend((0..steps).map(|at| (tenth * f64::midpoint(edge(at), edge(at + 1))) as f32));
    }
    values.sort_by(f32::total_cmp);
    let mut map = [0.0; 256];
    map.copy_from_slice(&values);
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unsigned_map_climbs_from_zero_to_one() {
        let map = unsigned_dynamic_map();
        assert_eq!((map[0], map[255]), (0.0, 1.0));
        assert!(map.windows(2).all(|pair| pair[0] < pair[1]));
    }

    #[test]
    fn what_is_closed_is_opened_within_the_maps_steps() {
        tch::manual_seed(4);
        for signed in [true, false] {
            let count = 3 * BLOCK + 17;
            let values = Tensor::randn([count], (Kind::Float, Device::Cpu)) * 1e-3;
            let values = if signed { values } else { values.square() };
            let mut moment = Moment::blocks(count, signed, Device::Cpu).expect("zeros");
            let whole = (0, count);
            assert_eq!(f64::try_from(moment.open(whole).expect("open").abs().sum(Kind::Float)).expect("sum"), 0.0);
            moment.close(whole, &values).expect("close");
            let opened = moment.open(whole).expect("open");
            let block = |x: &Tensor| x.narrow(0, 0, 3 * BLOCK).view([3, BLOCK]);
            let scale = block(&values).abs().amax([1i64].as_slice(), true);
            let error = (block(&opened) - block(&values)).abs() / scale;
            assert!(f64::try_from(error.max()).expect("max") < 0.02, "signed {signed}");
            // Small values keep their relative precision: that is what the exponent is for.
            let small = block(&values).abs().lt_tensor(&(block(&values).abs().amax([1i64].as_slice(), true) * 0.01));
            let relative = (block(&opened) / block(&values) - 1.0).abs().masked_select(&small);
            assert!(f64::try_from(relative.median()).expect("median") < 0.1, "signed {signed}");
        }
    }

    #[test]
    fn a_state_comes_back_to_the_bit() {
        let count = 2 * BLOCK + 5;
        let mut moment = Moment::blocks(count, true, Device::Cpu).expect("zeros");
        moment.close((0, count), &Tensor::randn([count], (Kind::Float, Device::Cpu))).expect("close");
        let state = moment.state("m").expect("state");
        let mut other = Moment::blocks(count, true, Device::Cpu).expect("zeros");
        let find = |name: &str| {
            let (_, values) = state.iter().find(|(known, _)| known == name)?;
            values.tensor().ok()
        };
        other.restore("m", &find).expect("restored");
        assert_eq!(other.open((0, count)).expect("open"), moment.open((0, count)).expect("open"));
        let error = other.restore("n", &find).expect_err("no such").to_string();
        assert!(error.contains("has no n.codes"), "{error}");
    }
}
