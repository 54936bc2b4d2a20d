//! Products by the processor's tiles (AMX): W and x in bf16, added up in f32.
//!
//! Sixteen rows of W, unpacked and scaled, lie in a tile as they are: 32 values of a row each. x lies beside them the other
//! way, pairs of values of up to sixteen rows, made once for all products of the same x. One instruction multiplies the two
//! in sixteen cycles, whatever number of x's rows there are: a row's result depends on nothing but the row. How both come to
//! lie so is [`super::layout`]'s.

use std::arch::asm;
use std::arch::x86_64::*;
use std::sync::OnceLock;

use super::avx512;

/// Rows of W that are worked on at once: two tiles.
pub(super) const OUTS: usize = 2 * SIDE;
/// Rows of a tile, and columns in f32.
pub(super) const SIDE: usize = 16;
/// Values of a row of W in a tile.
pub(super) const STEP: usize = 32;
/// Values of a tile of W.
pub(super) const TILE: usize = SIDE * STEP;

/// Whether processor and kernel have tiles. The kernel is asked for them, once in a process.
pub(super) fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE
        .get_or_init(|| avx512::available() && is_x86_feature_detected!("avx512bf16") && has_tiles() && permitted())
}

fn has_tiles() -> bool {
    // Leaf 7: AMX-BF16 and AMX-TILE. The largest leaf is in leaf 0.
    #[allow(unused_unsafe, reason = "a safe function in newer releases than the oldest that is supported")]
    // SAFETY: every x86-64 processor has the instruction.
    let (leaves, features) = unsafe { (__cpuid(0).eax, __cpuid_count(7, 0).edx) };
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

    /// Adds W·x over `steps` steps of [`STEP`] values, of both halves of W's rows. `x` is of each group; the second is null where
    /// there is none.
    ///
    /// # Safety
    /// Each half has [`SIDE`] rows of so many steps; so has each group of x.
    #[inline(always)]
    pub unsafe fn add(&mut self, w: [*const u16; 2], x: [*const u16; 2], steps: usize) {
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
                    "tileloadd tmm5, [{v} + {line}]",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "add {w}, 1024",
                    "add {v}, 1024",
                    "add {x}, {step}",
                    "dec {steps}",
                    "jnz 2b",
                    w = inout(reg) w[0] => _,
                    v = inout(reg) w[1] => _,
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
                    "tileloadd tmm5, [{v} + {line}]",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "tileloadd tmm7, [{y} + {y_stride}]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "tdpbf16ps tmm3, tmm5, tmm7",
                    "add {w}, 1024",
                    "add {v}, 1024",
                    "add {x}, {x_step}",
                    "add {y}, {y_step}",
                    "dec {steps}",
                    "jnz 2b",
                    w = inout(reg) w[0] => _,
                    v = inout(reg) w[1] => _,
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

    /// One step of one half of W's rows by one or two groups.
    ///
    /// # Safety
    /// As [`Self::add`].
    #[inline(always)]
    pub unsafe fn add_half<const HALF: usize, const GROUPS: usize>(&mut self, w: *const u16, x: [*const u16; 2]) {
        let (first, second) = (self.now[0].max(1) * 4, self.now[1].max(1) * 4);
        macro_rules! step {
            ($one:literal) => {
                asm!(
                    "tileloadd tmm6, [{x} + {x_stride}]",
                    "tileloadd tmm4, [{w} + {line}]",
                    concat!("tdpbf16ps tmm", $one, ", tmm4, tmm6"),
                    x = in(reg) x[0], x_stride = in(reg) first, w = in(reg) w, line = in(reg) 64usize,
                    options(nostack, readonly, preserves_flags),
                )
            };
            ($one:literal, $two:literal) => {
                asm!(
                    "tileloadd tmm6, [{x} + {x_stride}]",
                    "tileloadd tmm4, [{w} + {line}]",
                    concat!("tdpbf16ps tmm", $one, ", tmm4, tmm6"),
                    "tileloadd tmm7, [{y} + {y_stride}]",
                    concat!("tdpbf16ps tmm", $two, ", tmm4, tmm7"),
                    x = in(reg) x[0], x_stride = in(reg) first, w = in(reg) w, line = in(reg) 64usize,
                    y = in(reg) x[1], y_stride = in(reg) second,
                    options(nostack, readonly, preserves_flags),
                )
            };
        }
        // SAFETY: as the caller says.
        unsafe {
            match (HALF, GROUPS) {
                (0, 1) => step!("0"),
                (0, _) => step!("0", "1"),
                (_, 1) => step!("2"),
                (_, _) => step!("2", "3"),
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
pub(super) fn columns(rows: [__m512; SIDE]) -> [__m512; SIDE] {
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
