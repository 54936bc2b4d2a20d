//! Products by the processor's tiles (AMX): W and x in bf16, added up in f32.
//!
//! Sixteen rows of W, unpacked and scaled, lie in a tile as they are: 32 values of a row each. x lies beside them the other
//! way, pairs of values of up to sixteen rows, made once for all products of the same x. One instruction multiplies the two
//! in sixteen cycles, whatever number of x's rows there are: a row's result depends on nothing but the row.
//!
//! Two blocks are unpacked at a time: 64 bytes are 32 lanes with four numbers each, so step n of four has from each lane its
//! nth number, and every fourth value of the 128. x's values follow in that order; the last block of an odd number has zeros
//! beside it.

use std::arch::asm;
use std::arch::x86_64::*;
use std::ops::Range;
use std::sync::OnceLock;

use half::bf16;

use super::{BLOCK, avx512};

/// Rows of W that are worked on at once: two tiles.
pub(super) const OUTS: usize = 2 * SIDE;
/// Rows of a tile, and columns in f32.
pub(super) const SIDE: usize = 16;
/// Values of a row of W in a tile.
pub(super) const STEP: usize = 32;
/// Values of a tile of W.
const TILE: usize = SIDE * STEP;
/// Values of a row that are unpacked together, and their steps.
pub(super) const CHUNK: usize = 2 * BLOCK;
pub(super) const STEPS: usize = CHUNK / STEP;
/// Of which of four neighbours a step has the values: the high four bits of a byte come first.
const NEIGHBOUR: [usize; STEPS] = [1, 0, 3, 2];

/// A row's length in whole chunks.
pub(super) const fn padded(width: usize) -> usize {
    width.next_multiple_of(CHUNK)
}

/// Values of unpacked weights for so many values of each row: [steps, 2, 16, 32].
pub(super) const fn room(width: usize) -> usize {
    width * OUTS
}

/// Whether processor and kernel have tiles. The kernel is asked for them, once in a process.
pub(super) fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE
        .get_or_init(|| avx512::available() && is_x86_feature_detected!("avx512bf16") && has_tiles() && permitted())
}

fn has_tiles() -> bool {
    // Leaf 7: AMX-BF16 and AMX-TILE. The largest leaf is in leaf 0.
    let (leaves, features) = (__cpuid(0).eax, __cpuid_count(7, 0).edx);
    leaves >= 7 && features & (1 << 22) != 0 && features & (1 << 24) != 0
}

/// A process has the tiles' registers when it has asked for them (Linux, Documentation/arch/x86/xstate.rst).
fn permitted() -> bool {
    #[cfg(target_os = "linux")]
    {
        const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
        const XFEATURE_XTILEDATA: libc::c_long = 18;
        // SAFETY: two numbers; nothing is written.
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
    }
    #[cfg(not(target_os = "linux"))]
    false
}

/// Shapes of the eight tiles: 0 to 3 are sums [16 rows of W, rows of x], of both halves of W's rows by both groups of x's;
/// 4 and 5 are W's halves, 6 and 7 x's groups.
#[repr(C, align(64))]
#[derive(Clone, Copy, PartialEq, Eq)]
struct Config {
    palette: u8,
    start: u8,
    reserved: [u8; 14],
    bytes: [u16; 16],
    rows: [u8; 16],
}

impl Config {
    const NONE: Self = Self { palette: 0, start: 0, reserved: [0; 14], bytes: [0; 16], rows: [0; 16] };

    fn new(members: [usize; 2]) -> Self {
        // A group without rows keeps a shape that is allowed and goes unused.
        let [first, second] = members.map(|members| (members.max(1) * 4) as u16);
        let (mut bytes, mut rows) = ([0; 16], [0; 16]);
        bytes[..8].copy_from_slice(&[first, second, first, second, 64, 64, first, second]);
        rows[..8].fill(SIDE as u8);
        Self { palette: 1, bytes, rows, ..Self::NONE }
    }
}

/// This thread's tiles while it works; what shapes it had before come back at the end, since a library that has them too may
/// remember what it set.
pub(super) struct Tiles {
    before: Config,
    now: [usize; 2],
}

impl Tiles {
    /// # Safety
    /// [`available`].
    pub unsafe fn new() -> Self {
        let mut before = Config::NONE;
        // SAFETY: writes 64 bytes.
        unsafe { asm!("sttilecfg [{}]", in(reg) &raw mut before, options(nostack, preserves_flags)) };
        Self { before, now: [0; 2] }
    }

    /// Sums of up to two groups of x's rows, of which there are so many, begin at zero.
    pub fn begin(&mut self, members: [usize; 2]) {
        if self.now != members {
            let config = Config::new(members);
            // SAFETY: a valid configuration.
            unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const config, options(nostack, preserves_flags)) };
            self.now = members;
        }
        // SAFETY: registers only, whose shapes are set.
        unsafe {
            asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3", options(nostack, preserves_flags));
        }
    }

    /// Adds W·x over `steps` steps of [`STEP`] values. `x` is of each group; the second is null where there is none.
    ///
    /// # Safety
    /// `w` has [`OUTS`] rows of so many steps; so has each group of x.
    #[inline(always)]
    pub unsafe fn add(&mut self, w: *const u16, x: [*const u16; 2], steps: usize) {
        let (first, second) = (self.now[0].max(1) * 4, self.now[1].max(1) * 4);
        if steps == 0 {
            return;
        }
        // SAFETY: as the caller says.
        unsafe {
            if x[1].is_null() {
                asm!(
                    "2:",
                    "tileloadd tmm6, [{x} + {stride}]",
                    "tileloadd tmm4, [{w} + {line}]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm5, [{w} + {line} + 1024]",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "add {w}, 2048",
                    "add {x}, {step}",
                    "dec {steps}",
                    "jnz 2b",
                    w = inout(reg) w => _,
                    x = inout(reg) x[0] => _,
                    steps = inout(reg) steps => _,
                    stride = in(reg) first,
                    step = in(reg) first * SIDE,
                    line = in(reg) 64usize,
                    options(nostack, readonly),
                );
            } else {
                asm!(
                    "2:",
                    "tileloadd tmm6, [{x} + {x_stride}]",
                    "tileloadd tmm4, [{w} + {line}]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm5, [{w} + {line} + 1024]",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "tileloadd tmm7, [{y} + {y_stride}]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "tdpbf16ps tmm3, tmm5, tmm7",
                    "add {w}, 2048",
                    "add {x}, {x_step}",
                    "add {y}, {y_step}",
                    "dec {steps}",
                    "jnz 2b",
                    w = inout(reg) w => _,
                    x = inout(reg) x[0] => _,
                    y = inout(reg) x[1] => _,
                    steps = inout(reg) steps => _,
                    x_stride = in(reg) first,
                    y_stride = in(reg) second,
                    x_step = in(reg) first * SIDE,
                    y_step = in(reg) second * SIDE,
                    line = in(reg) 64usize,
                    options(nostack, readonly),
                );
            }
        }
    }

    /// As [`Self::add`] for the second group alone.
    ///
    /// # Safety
    /// As there.
    pub unsafe fn add_second(&mut self, w: *const u16, x: *const u16, steps: usize) {
        let stride = self.now[1].max(1) * 4;
        for step in 0..steps {
            // SAFETY: as the caller says.
            unsafe {
                asm!(
                    "tileloadd tmm7, [{x} + {stride}]",
                    "tileloadd tmm4, [{w} + {line}]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "tileloadd tmm5, [{w} + {line} + 1024]",
                    "tdpbf16ps tmm3, tmm5, tmm7",
                    w = in(reg) w.add(step * 2 * TILE),
                    x = in(reg) x.cast::<u8>().add(step * stride * SIDE),
                    stride = in(reg) stride,
                    line = in(reg) 64usize,
                    options(nostack, readonly, preserves_flags),
                );
            }
        }
    }

    /// The sums of one group.
    pub fn sums(&self, group: usize, sums: &mut Sums) {
        let sums = sums.0.as_mut_ptr();
        // SAFETY: 16 rows of 64 bytes for each half of W's rows.
        unsafe {
            if group == 0 {
                asm!(
                    "tilestored [{at} + {line}], tmm0", "tilestored [{at} + {line} + 1024], tmm2",
                    at = in(reg) sums, line = in(reg) 64usize, options(nostack, preserves_flags),
                );
            } else {
                asm!(
                    "tilestored [{at} + {line}], tmm1", "tilestored [{at} + {line} + 1024], tmm3",
                    at = in(reg) sums, line = in(reg) 64usize, options(nostack, preserves_flags),
                );
            }
        }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: what was there before, or nothing.
        unsafe {
            if self.before.palette == 0 {
                asm!("tilerelease", options(nostack, preserves_flags));
            } else {
                asm!("ldtilecfg [{}]", in(reg) &raw const self.before, options(nostack, preserves_flags));
            }
        }
    }
}

/// [32 rows of W, 16 of x]
#[repr(C, align(64))]
pub(super) struct Sums([f32; OUTS * SIDE]);

impl Sums {
    pub fn new() -> Self {
        Self([0.0; OUTS * SIDE])
    }

    /// The other way round: [16 rows of x, 32 of W], of which the first so many matter.
    ///
    /// # Safety
    /// [`available`].
    pub unsafe fn turned(&self, members: usize, out: &mut Self) {
        if members == 1 {
            let first = self.0.as_chunks::<SIDE>().0.iter().map(|row| row[0]);
            return out.0.iter_mut().zip(first).for_each(|(out, sum)| *out = sum);
        }
        // SAFETY: as the caller says.
        unsafe { turn(&self.0, &mut out.0) };
    }

    /// Of a row of x, after [`Self::turned`].
    pub fn row(&self, row: usize) -> &[f32; OUTS] {
        &self.0.as_chunks::<OUTS>().0[row]
    }
}

/// [2, 16, 16] to [16, 2·16]
#[target_feature(enable = "avx512f")]
fn turn(from: &[f32; OUTS * SIDE], to: &mut [f32; OUTS * SIDE]) {
    for half in 0..2 {
        let mut rows = [_mm512_setzero_ps(); SIDE];
        for (row, values) in rows.iter_mut().enumerate() {
            // SAFETY: 16 rows of 16 values.
            *values = unsafe { _mm512_loadu_ps(from.as_ptr().add((half * SIDE + row) * SIDE)) };
        }
        for (column, values) in columns(rows).into_iter().enumerate() {
            // SAFETY: 16 rows of 32 values.
            unsafe { _mm512_storeu_ps(to.as_mut_ptr().add(column * OUTS + half * SIDE), values) };
        }
    }
}

/// The columns of a square of 16 rows.
#[inline]
#[target_feature(enable = "avx512f")]
fn columns(rows: [__m512; SIDE]) -> [__m512; SIDE] {
    // Pairs of rows, then fours, lane by lane of 128 bits; then the lanes.
    let (mut pairs, mut fours) = (rows, rows);
    for (pairs, rows) in pairs.as_chunks_mut::<2>().0.iter_mut().zip(rows.as_chunks::<2>().0) {
        *pairs = [_mm512_unpacklo_ps(rows[0], rows[1]), _mm512_unpackhi_ps(rows[0], rows[1])];
    }
    for (fours, pairs) in fours.as_chunks_mut::<4>().0.iter_mut().zip(pairs.as_chunks::<4>().0) {
        for (half, fours) in fours.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            let (a, b) = (_mm512_castps_pd(pairs[half]), _mm512_castps_pd(pairs[2 + half]));
            *fours = [_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b))];
        }
    }
    // fours[4f + c] has in lane l column 4l + c of rows 4f to 4f + 3.
    let mut columns = rows;
    for c in 0..4 {
        let [a, b, d, e] = [fours[c], fours[4 + c], fours[8 + c], fours[12 + c]];
        let (low, high) = (_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b));
        let (low2, high2) = (_mm512_shuffle_f32x4::<0x88>(d, e), _mm512_shuffle_f32x4::<0xdd>(d, e));
        columns[c] = _mm512_shuffle_f32x4::<0x88>(low, low2);
        columns[4 + c] = _mm512_shuffle_f32x4::<0x88>(high, high2);
        columns[8 + c] = _mm512_shuffle_f32x4::<0xdd>(low, low2);
        columns[12 + c] = _mm512_shuffle_f32x4::<0xdd>(high, high2);
    }
    columns
}

/// Place of a row's first values among the unpacked ones.
fn place(out: usize) -> usize {
    out / SIDE * TILE + out % SIDE * STEP
}

/// Rows of a 4-bit weight, packed.
pub(super) struct Packed<'a> {
    /// The rows lie `stride` apart.
    pub bytes: &'a [u8],
    pub stride: usize,
    /// Of each row.
    pub blocks: usize,
    pub values: &'a [f32; 16],
    /// One a block, and a zero behind an odd number; the rows' lie `scale_stride` apart.
    pub scales: &'a [f32],
    pub scale_stride: usize,
    /// How far behind these rows lies what will be wanted next.
    pub ahead: usize,
}

impl Packed<'_> {
    /// Unpacks a chunk of some rows: value·scale, rounded to bf16.
    ///
    /// # Safety
    /// [`available`]; `to` is [`room`] for a chunk of all rows.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    pub unsafe fn unpack(&self, rows: Range<usize>, chunk: usize, to: *mut u16) {
        let whole = 2 * chunk + 1 < self.blocks;
        let line = |row: usize| row * self.stride + chunk * (CHUNK / 2);
        let scale = |row: usize| row * self.scale_stride + 2 * chunk;
        if let Some(last) = rows.clone().last() {
            assert!(line(last) + if whole { CHUNK / 2 } else { BLOCK / 2 } <= self.bytes.len());
            assert!(scale(last) + 2 <= self.scales.len());
        }
        // SAFETY: there are 16.
        let values = unsafe { _mm512_loadu_ps(self.values.as_ptr()) };
        let (low, second) =
            (_mm512_set1_epi16(15), _mm512_inserti64x4::<1>(_mm512_setzero_si512(), _mm256_set1_epi16(16)));
        for row in rows {
            // SAFETY: looked at above, and as the caller says.
            let (bytes, scales, to) = unsafe {
                (self.bytes.as_ptr().add(line(row)), self.scales.as_ptr().add(scale(row)), to.add(place(row)))
            };
            // From the front to the back, so that the processor's own foresight sees a stream.
            let next = self.ahead + (chunk * OUTS + row) * (CHUNK / 2);
            _mm_prefetch::<_MM_HINT_T1>(self.bytes.as_ptr().wrapping_add(next).cast());
            // SAFETY: as above.
            let (numbers, first_scale, second_scale) = unsafe {
                let numbers = match whole {
                    true => _mm512_loadu_si512(bytes.cast()),
                    false => _mm512_zextsi256_si512(_mm256_loadu_si256(bytes.cast())),
                };
                (numbers, _mm512_set1_ps(*scales), _mm512_set1_ps(*scales.add(1)))
            };
            // The results of both blocks; a lane of the second has the fifth bit, which looks into its half of the table.
            let (first, next) = (_mm512_mul_ps(values, first_scale), _mm512_mul_ps(values, second_scale));
            // SAFETY: both are 64 bytes.
            let table = unsafe { std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(next, first)) };
            // (a & b) | c
            let look_up =
                |numbers| _mm512_permutexvar_epi16(_mm512_ternarylogic_epi32::<0xea>(numbers, low, second), table);
            let steps = [
                look_up(numbers),
                look_up(_mm512_srli_epi16::<4>(numbers)),
                look_up(_mm512_srli_epi16::<8>(numbers)),
                look_up(_mm512_srli_epi16::<12>(numbers)),
            ];
            for (step, values) in steps.into_iter().enumerate() {
                // SAFETY: as the caller says.
                unsafe { _mm512_storeu_si512(to.add(step * 2 * TILE).cast(), values) };
            }
        }
    }
}

/// Every fourth value of a chunk in four registers, from each of the first four on in turn: what the steps have.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn steps([a, b, c, d]: [__m512i; STEPS]) -> [__m512i; STEPS] {
    let fourths = _mm512_set_epi16(
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 60, 56, 52, 48, 44, 40, 36, 32, 28, 24, 20, 16, 12, 8, 4, 0,
    );
    let mut steps = [a; STEPS];
    for (step, neighbour) in steps.iter_mut().zip(NEIGHBOUR) {
        let order = _mm512_add_epi16(fourths, _mm512_set1_epi16(neighbour as i16));
        let (first, second) = (_mm512_permutex2var_epi16(a, order, b), _mm512_permutex2var_epi16(c, order, d));
        *step = _mm512_inserti64x4::<1>(first, _mm512_castsi512_si256(second));
    }
    steps
}

/// A row's chunk, with zeros behind an end that is no whole one.
#[inline(always)]
fn whole<T: Copy + Default>(values: &[T], filled: &mut [T; CHUNK]) -> *const T {
    if values.len() < CHUNK {
        *filled = [T::default(); CHUNK];
        filled[..values.len()].copy_from_slice(values);
        return filled.as_ptr();
    }
    values.as_ptr()
}

/// The same of a row in bf16, of which a chunk and what follows is given.
///
/// # Safety
/// [`available`]; `to` is [`room`] for a chunk of all rows; `row` below [`OUTS`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) unsafe fn arrange(values: &[bf16], row: usize, to: *mut u16, ahead: *const bf16) {
    let mut filled = [bf16::ZERO; CHUNK];
    let values = whole(values, &mut filled);
    for line in 0..CHUNK / STEP {
        _mm_prefetch::<_MM_HINT_T1>(ahead.wrapping_add(line * STEP).cast());
    }
    // SAFETY: four times 32 values.
    let values = std::array::from_fn(|i| unsafe { _mm512_loadu_si512(values.add(i * STEP).cast()) });
    for (step, values) in steps(values).into_iter().enumerate() {
        // SAFETY: as the caller says.
        unsafe { _mm512_storeu_si512(to.add(step * 2 * TILE + place(row)).cast(), values) };
    }
}

/// Puts the rows of a group of x, [members, width], beside each other: [steps, 16 pairs, members, 2].
///
/// # Safety
/// [`available`]; there are [`SIDE`] rows at most, and room for whole chunks of them.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) unsafe fn place_group(rows: &[f32], width: usize, group: *mut u32) {
    let members = rows.len() / width;
    let present = (1u32 << members).wrapping_sub(1) as __mmask16;
    let mut of_step = [[_mm512_setzero_ps(); SIDE]; STEPS];
    let mut filled = [0f32; CHUNK];
    for chunk in 0..width.div_ceil(CHUNK) {
        for (member, row) in rows.chunks_exact(width).enumerate() {
            let values = whole(&row[chunk * CHUNK..], &mut filled);
            let narrow = std::array::from_fn(|i| {
                // SAFETY: 32 values; both types are 64 bytes.
                unsafe {
                    let (low, high) =
                        (_mm512_loadu_ps(values.add(i * STEP)), _mm512_loadu_ps(values.add(i * STEP + SIDE)));
                    std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low))
                }
            });
            for (step, pairs) in steps(narrow).into_iter().enumerate() {
                of_step[step][member] = _mm512_castsi512_ps(pairs);
            }
        }
        for (step, rows) in of_step.iter().enumerate() {
            // SAFETY: as the caller says.
            let to = unsafe { group.add((chunk * STEPS + step) * SIDE * members) };
            if members == 1 {
                // SAFETY: as the caller says.
                unsafe { _mm512_storeu_ps(to.cast(), rows[0]) };
                continue;
            }
            for (pair, values) in columns(*rows).into_iter().enumerate() {
                // SAFETY: as the caller says: what is not present is not written.
                unsafe { _mm512_mask_storeu_ps(to.add(pair * members).cast(), present, values) };
            }
        }
    }
}

/// Rows of B as one or more steps of W, padded with zeros: `b` [outs, padded rank].
pub(super) fn place_factor(b: &[bf16], padded: usize, to: &mut [i16]) {
    to.fill(0);
    for (out, row) in b.chunks_exact(padded).enumerate() {
        for (step, values) in row.chunks(STEP).enumerate() {
            let to = &mut to[step * 2 * TILE + place(out)..][..values.len()];
            to.iter_mut().zip(values).for_each(|(to, value)| *to = value.to_bits() as i16);
        }
    }
}

/// A row's s·A·x into its group's tiles: [steps, 16 pairs, members, 2].
pub(super) fn place_values(values: &[f32], member: usize, members: usize, to: &mut [u16]) {
    for (at, value) in values.iter().enumerate() {
        let (pair, second) = (at / 2, at % 2);
        to[(pair * members + member) * 2 + second] = bf16::from_f32(*value).to_bits();
    }
}
