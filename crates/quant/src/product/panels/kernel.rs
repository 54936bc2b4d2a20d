//! Fourteen rows of x by a panel: 28 registers of sums, a pair of values of each row for all 32 outputs at a time.

use std::arch::asm;
use std::arch::x86_64::*;

use half::bf16;

use super::{OUTS, SIDE};

/// Sums of a block of rows and a panel.
#[derive(Clone)]
#[repr(align(64))]
pub(super) struct Block([[f32; OUTS]; SIDE]);

impl Default for Block {
    fn default() -> Self {
        Self([[0.0; OUTS]; SIDE])
    }
}

/// A row's pair by both halves of a panel, into its two registers.
macro_rules! row {
    ($number:literal, $first:literal, $second:literal, $x:literal) => {
        concat!(
            "vpbroadcastd zmm",
            $x,
            ", dword ptr [{x} + 4*",
            $number,
            "]\n",
            "vdpbf16ps zmm",
            $first,
            ", zmm28, zmm",
            $x,
            "\n",
            "vdpbf16ps zmm",
            $second,
            ", zmm29, zmm",
            $x,
            "\n",
        )
    };
}

/// All sums to their registers.
macro_rules! load {
    ($($register:literal)*) => {
        concat!($("vmovaps zmm", $register, ", zmmword ptr [{sums} + 64*", $register, "]\n"),*)
    };
}

/// And back.
macro_rules! store {
    ($($register:literal)*) => {
        concat!($("vmovaps zmmword ptr [{sums} + 64*", $register, "], zmm", $register, "\n"),*)
    };
}

/// All sums begin at zero.
macro_rules! zero {
    ($($register:literal)*) => { concat!($("vpxord zmm", $register, ", zmm", $register, ", zmm", $register, "\n"),*) };
}

impl Block {
    /// Adds pairs of values: of each x [pairs, 14], of the panel [all pairs, 32]. With `first` they are added to zeros.
    ///
    /// # Safety
    /// [`super::halves::available`]; they are there.
    pub unsafe fn add(&mut self, first: bool, [x, next]: [(*const u32, usize); 2], panel: *const i16) {
        if x.1 == 0 {
            return;
        }
        // SAFETY: as the caller says; hints may point behind the end. Every register of the kind is named.
        unsafe {
            asm!(
                "test {first}, {first}",
                "jz 3f",
                zero!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27),
                "jmp 2f",
                "3:",
                load!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27),
                ".p2align 5",
                "2:",
                "vmovaps zmm28, zmmword ptr [{panel}]",
                "vmovaps zmm29, zmmword ptr [{panel} + 64]",
                "prefetcht0 byte ptr [{panel} + 1024]",
                "prefetcht0 byte ptr [{panel} + 1088]",
                row!(0, 0, 1, 30), row!(1, 2, 3, 31), row!(2, 4, 5, 30), row!(3, 6, 7, 31),
                row!(4, 8, 9, 30), row!(5, 10, 11, 31), row!(6, 12, 13, 30), row!(7, 14, 15, 31),
                row!(8, 16, 17, 30), row!(9, 18, 19, 31), row!(10, 20, 21, 30), row!(11, 22, 23, 31),
                row!(12, 24, 25, 30), row!(13, 26, 27, 31),
                "add {panel}, 128",
                "add {x}, 56",
                "dec {pairs}",
                "jnz 2b",
                // The other x, once.
                "mov {x}, {next}",
                "mov {pairs}, {left}",
                "xor {left:e}, {left:e}",
                "test {pairs}, {pairs}",
                "jnz 2b",
                store!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27),
                first = in(reg) u64::from(first), sums = in(reg) self.0.as_mut_ptr(),
                x = inout(reg) x.0 => _, pairs = inout(reg) x.1 => _, panel = inout(reg) panel => _,
                next = in(reg) next.0, left = inout(reg) next.1 => _,
                out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _, out("zmm4") _, out("zmm5") _,
                out("zmm6") _, out("zmm7") _, out("zmm8") _, out("zmm9") _, out("zmm10") _, out("zmm11") _,
                out("zmm12") _, out("zmm13") _, out("zmm14") _, out("zmm15") _, out("zmm16") _, out("zmm17") _,
                out("zmm18") _, out("zmm19") _, out("zmm20") _, out("zmm21") _, out("zmm22") _, out("zmm23") _,
                out("zmm24") _, out("zmm25") _, out("zmm26") _, out("zmm27") _, out("zmm28") _, out("zmm29") _,
                out("zmm30") _, out("zmm31") _,
                options(nostack),
            );
        }
    }

    /// Rounds what belongs to some rows and outputs to `y`, whose rows lie `stride` apart; with `add` after adding what is there.
    ///
    /// # Safety
    /// [`super::halves::available`]; there are so many rows and outputs.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    pub unsafe fn write(&self, rows: usize, outs: usize, add: bool, y: *mut bf16, stride: usize) {
        let mask = u32::MAX >> (OUTS - outs);
        for (row, sums) in self.0[..rows].iter().enumerate() {
            // SAFETY: as the caller says; what is not there is neither read nor written.
            unsafe {
                let y = y.add(row * stride);
                let mut sums = [_mm512_load_ps(sums.as_ptr()), _mm512_load_ps(sums[OUTS / 2..].as_ptr())];
                if add {
                    let before = _mm512_maskz_loadu_epi16(mask, y.cast());
                    let wide = |half| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(half)));
                    let halves = [_mm512_castsi512_si256(before), _mm512_extracti64x4_epi64::<1>(before)];
                    sums = [_mm512_add_ps(sums[0], wide(halves[0])), _mm512_add_ps(sums[1], wide(halves[1]))];
                }
                let narrow = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(sums[1], sums[0]));
                _mm512_mask_storeu_epi16(y.cast(), mask, narrow);
            }
        }
    }
}
