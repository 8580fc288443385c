//! What all tests share: the backends under test, data that is hard on them, and comparisons that
//! name the first difference.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[cfg(feature = "gpu")]
pub mod gpu;
pub mod oracle;

use std::sync::OnceLock;

use byzclip::{Backend, BackendKind, Clipping, Cpu, Layout, Norms, Reference, Report, Result};

/// Every backend that must give the bits of the reference, by name. A new one is one more line.
pub fn backends() -> Vec<(String, Box<dyn Backend>)> {
    let hosts: Vec<(String, Box<dyn Backend>)> = vec![
        ("reference".into(), Box::new(Reference)),
        ("cpu".into(), Box::new(Cpu::new().unwrap())),
        ("cpu, 1 thread".into(), Box::new(Cpu::with_threads(1).unwrap())),
        ("cpu, 3 threads".into(), Box::new(Cpu::with_threads(3).unwrap())),
        ("cpu, forced exact".into(), Box::new(Cpu::new().unwrap().force_exact(true))),
    ];
    #[cfg(feature = "gpu")]
    let devices = gpu::backends();
    #[cfg(not(feature = "gpu"))]
    let devices = Vec::new();
    hosts.into_iter().chain(devices).collect()
}

/// [`backends`], made once for all tests of a binary.
pub fn all() -> &'static [(String, Box<dyn Backend>)] {
    static ALL: OnceLock<Vec<(String, Box<dyn Backend>)>> = OnceLock::new();
    ALL.get_or_init(backends)
}

/// Those that can differ from the reference: all but itself.
pub fn others() -> impl Iterator<Item = &'static (String, Box<dyn Backend>)> {
    all().iter().filter(|(_, backend)| is_other(backend.as_ref()))
}

/// Whether it can differ from the reference.
pub fn is_other(backend: &dyn Backend) -> bool {
    backend.ran().backend != BackendKind::Reference
}

/// What the reference made of a batch, and every other backend after it.
pub struct Outcome {
    pub result: Result<Report>,
    pub data: Vec<f32>,
}

/// Requires the reference to do what the contract says, and every other backend to do what the reference does.
pub fn conform(context: &str, layout: &Layout, data: &[f32], clipping: &Clipping) -> Outcome {
    let mut want_data = data.to_vec();
    let want = Reference.run(layout, &mut want_data, clipping);
    match &want {
        Ok(report) => oracle::verify(context, layout, clipping, data, &want_data, report),
        Err(_) => assert_same_bits(context, &want_data, data),
    }
    for (name, backend) in others() {
        let context = format!("{context}: {name}");
        let mut got_data = data.to_vec();
        let got = backend.run(layout, &mut got_data, clipping);
        match (&got, &want) {
            (Ok(got), Ok(want)) => assert_same_report(&context, got, want),
            (Err(got), Err(want)) => assert_eq!(got, want, "{context}"),
            (got, want) => panic!("{context}: got {got:?}, expected {want:?}"),
        }
        assert_same_bits(&context, &got_data, &want_data);
    }
    Outcome { result: want, data: want_data }
}

/// Requires the same bits, NaN payloads included; names the first element that differs.
pub fn assert_same_bits(context: &str, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len(), "{context}: length");
    if let Some(i) = (0..got.len()).find(|&i| got[i].to_bits() != want[i].to_bits()) {
        panic!("{context}: element {i}: got {}, expected {}", oracle::Bits(got[i]), oracle::Bits(want[i]));
    }
}

/// Requires the same rows, by bits; names the first row that differs.
pub fn assert_same_report(context: &str, got: &Report, want: &Report) {
    assert_eq!(got.rows.len(), want.rows.len(), "{context}: rows");
    for (row, (got, want)) in got.rows.iter().zip(&want.rows).enumerate() {
        assert_eq!(
            (got.norm.to_bits(), got.bound.map(f32::to_bits), got.factor.to_bits(), got.status),
            (want.norm.to_bits(), want.bound.map(f32::to_bits), want.factor.to_bits(), want.status),
            "{context}: row {row}: got {got:x?}, expected {want:x?}"
        );
    }
    for row in 0..want.rows.len() {
        let (got, want) = (got.segments(row), want.segments(row));
        assert_eq!(got.len(), want.len(), "{context}: row {row}: segments");
        for (segment, (got, want)) in got.iter().zip(want).enumerate() {
            assert_eq!(
                (got.norm.to_bits(), got.bound.to_bits(), got.factor.to_bits(), got.status),
                (want.norm.to_bits(), want.bound.to_bits(), want.factor.to_bits(), want.status),
                "{context}: row {row} segment {segment}: got {got:x?}, expected {want:x?}"
            );
        }
    }
}

/// Requires the same norms with the same classes; names the first that differs.
pub fn assert_same_norms(context: &str, got: &Norms, want: &Norms) {
    let both = [("row", &got.rows, &want.rows), ("segment", &got.segments, &want.segments)];
    for (what, got, want) in both {
        assert_eq!(got.len(), want.len(), "{context}: {what}s");
        for (i, (got, want)) in got.iter().zip(want).enumerate() {
            assert_eq!(got, want, "{context}: {what} {i}");
        }
    }
}

/// Deterministic pseudo-random numbers (xorshift64*).
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(end)) >> 64) as u64
    }

    pub fn sign(&mut self) -> f32 {
        if self.next() >> 63 == 0 { 1.0 } else { -1.0 }
    }

    /// In (-1, 1), with full mantissas.
    pub fn unit(&mut self) -> f32 {
        self.sign() * (self.next() >> 40) as f32 / (1 << 24) as f32
    }

    /// Any finite bit pattern.
    pub fn finite(&mut self) -> f32 {
        let field = self.below(255) as u32;
        f32::from_bits(field << 23 | (self.next() >> 32) as u32 & 0x807f_ffff)
    }

    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i as u64 + 1) as usize);
        }
    }
}

/// 2^exponent for exponents down to the least subnormal `f32`.
pub fn power(exponent: i32) -> f64 {
    f64::from_bits(((exponent + 1023) as u64) << 52)
}

/// `integer · 2^exponent`, which must be an `f32`.
pub fn scaled_integer(integer: u64, exponent: i32) -> f32 {
    let wide = integer as f64 * power(exponent);
    let value = wide as f32;
    assert_eq!(f64::from(value), wide, "{integer} * 2^{exponent} is no f32");
    value
}

/// Integers below 2^24 whose squares sum to `target`: `filler` random ones that take up about half
/// of it, then the largest that still fits, again and again.
pub fn squares(rng: &mut Rng, mut target: u64, filler: usize) -> Vec<u64> {
    let most = (target / (2 * filler.max(1) as u64)).isqrt().min((1 << 24) - 1);
    let mut integers = Vec::with_capacity(filler + 24);
    for _ in 0..filler {
        let integer = rng.below(most + 1);
        target -= integer * integer;
        integers.push(integer);
    }
    while target > 0 {
        let integer = target.isqrt().min((1 << 24) - 1);
        target -= integer * integer;
        integers.push(integer);
    }
    integers
}

/// A row that a plain `f64` sum in `heads` lanes gets wrong by `(length - heads) / 2^54` or so of its
/// lanes: behind `heads` large elements come small ones whose squares are `share` units in the last
/// place of a lane. Its exact sum lies on the one side of the square of a 25-bit root, that sum on the
/// other.
pub fn losing_row(rng: &mut Rng, heads: u64, length: usize, share: f64, odd: bool) -> Vec<f32> {
    // Below 2^24.25, so that the square of the root stays within a binade, and a lane as well.
    let root = (1 << 24) + (rng.below(1 << 20) << 1) + u64::from(odd);
    let ulp = power(48 - 52) / heads as f64;
    let small = (share * ulp).sqrt() as f32;
    let tail = length as u64 - heads - 12;
    let middle = tail as f64 * ulp * (share + share.round()) / 2.0;
    let mut rest = root * root - middle.round() as u64;
    let mut row = Vec::with_capacity(length);
    for left in (1..=heads).rev() {
        let integer = (rest / left).isqrt().min((1 << 24) - 1);
        rest -= integer * integer;
        row.push(rng.sign() * scaled_integer(integer, 0));
    }
    row.extend(squares(rng, rest, 0).into_iter().map(|integer| scaled_integer(integer, 0)));
    assert!(row.len() <= heads as usize + 12);
    row.resize(length, small);
    row
}

/// What a crafted row adds to an exact square.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Off {
    /// This many units of the integers' squares.
    By(i64),
    /// As little above as another 20 binades allow.
    Over,
    /// As little below.
    Under,
}

/// The ways to be off a rounding boundary that the tests go through. A unit is 2^-48 to 2^-50 of the sum.
pub const OFFS: [Off; 15] = [
    Off::By(0),
    Off::By(1),
    Off::By(-1),
    Off::Over,
    Off::Under,
    Off::By(2),
    Off::By(-2),
    Off::By(31),
    Off::By(-33),
    Off::By(63),
    Off::By(-64),
    Off::By(65),
    Off::By(-129),
    Off::By(1000),
    Off::By(-1001),
];

/// A row whose sum of squares is the square of `root · 2^exponent`, a little off as `off` says, and
/// about `filler + 20` elements long.
///
/// Where `root` has 25 bits and is odd, that is a tie between two norms; where it is even, or has at
/// most 24 bits, the norm is exactly that `f32`.
pub fn near_square(rng: &mut Rng, filler: usize, root: u64, exponent: i32, off: Off) -> Vec<f32> {
    let by = match off {
        Off::By(by) => by,
        Off::Over => 0,
        Off::Under => -1,
    };
    let target = (root * root).checked_add_signed(by).expect("a positive target");
    let mut row: Vec<f32> = squares(rng, target, filler)
        .into_iter()
        .map(|integer| rng.sign() * scaled_integer(integer, exponent))
        .collect();
    match off {
        Off::By(_) => {}
        Off::Over => row.push(scaled_integer(1, (exponent - 20).max(-149))),
        // One minus a quarter, minus a quarter of that, …: 3 · Σ 4^-i = 1 - 4^-n.
        Off::Under => {
            for step in 1..=20.min(exponent + 149) {
                row.extend([scaled_integer(1, exponent - step); 3]);
            }
        }
    }
    rng.shuffle(&mut row);
    row
}

/// Some 25-bit root: odd for a tie, even for equality.
pub fn some_root(rng: &mut Rng, odd: bool) -> u64 {
    (1 << 24) + (rng.below(1 << 23) << 1) + u64::from(odd)
}

/// What the values of a row are like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    Zero,
    NegativeZero,
    LeastSubnormal,
    Subnormal,
    EdgeOfNormal,
    Tiny,
    Ordinary,
    Huge,
    Mixed,
    NanPayload,
    SignallingNan,
    PositiveInf,
    NegativeInf,
    AllNan,
    OneHot,
    OneHuge,
    Overflow,
    JustOverflow,
    Tie,
    Equal,
    Losing,
}

impl Class {
    pub const ALL: [Self; 21] = [
        Self::Zero,
        Self::NegativeZero,
        Self::LeastSubnormal,
        Self::Subnormal,
        Self::EdgeOfNormal,
        Self::Tiny,
        Self::Ordinary,
        Self::Huge,
        Self::Mixed,
        Self::NanPayload,
        Self::SignallingNan,
        Self::PositiveInf,
        Self::NegativeInf,
        Self::AllNan,
        Self::OneHot,
        Self::OneHuge,
        Self::Overflow,
        Self::JustOverflow,
        Self::Tie,
        Self::Equal,
        Self::Losing,
    ];

    /// A row of this class.
    pub fn row(self, length: usize, rng: &mut Rng) -> Vec<f32> {
        let mut row: Vec<f32> = (0..length).map(|i| self.element(i, rng)).collect();
        if length == 0 {
            return row;
        }
        let at = rng.below(length as u64) as usize;
        match self {
            Self::NanPayload => row[at] = f32::from_bits(0xffc0_0000 | rng.below(1 << 22) as u32),
            Self::SignallingNan => row[at] = f32::from_bits(0x7f80_0001 + rng.below(1 << 21) as u32),
            Self::PositiveInf => row[at] = f32::INFINITY,
            Self::NegativeInf => row[length - 1] = f32::NEG_INFINITY,
            Self::OneHot => row[at] = 3.0 + rng.unit(),
            Self::OneHuge => row[length - 1] = -f32::MAX,
            Self::JustOverflow if length >= 2 => {
                row.fill(0.0);
                row[0] = f32::MAX;
                // Half a unit in the last place of the largest f32 is passed or not by this one.
                row[at.max(1)] = [8.0e34, 8.4e34, 1.0, f32::from_bits(1)][rng.below(4) as usize];
            }
            Self::Tie | Self::Equal if length >= 48 => {
                let root = some_root(rng, self == Self::Tie);
                let exponent = rng.below(80) as i32 - 40;
                let off = OFFS[rng.below(OFFS.len() as u64) as usize];
                let off = if length < 96 { Off::By(rng.below(3) as i64 - 1) } else { off };
                let filler = if length < 96 { length - 40 } else { length - 90 };
                row = near_square(rng, filler, root, exponent, off);
                assert!(row.len() <= length, "{} of {length}", row.len());
                row.resize(length, 0.0);
            }
            _ => {}
        }
        row
    }

    fn element(self, index: usize, rng: &mut Rng) -> f32 {
        match self {
            Self::Zero | Self::OneHot => 0.0,
            Self::NegativeZero => [-0.0, 0.0][usize::from(rng.below(4) == 0)],
            Self::LeastSubnormal => rng.sign() * f32::from_bits(1),
            Self::Subnormal => rng.sign() * f32::from_bits(rng.below(1 << 23) as u32),
            Self::EdgeOfNormal => rng.sign() * f32::from_bits(0x007f_fff0 + rng.below(0x0080_0020) as u32),
            Self::Tiny | Self::OneHuge => rng.unit() * 1e-30,
            Self::Huge => rng.sign() * (0.5e38 + rng.unit().abs() * 0.5e38),
            Self::Mixed => rng.finite(),
            Self::AllNan => f32::from_bits((rng.next() >> 32) as u32 | 0x7f80_0001),
            Self::Overflow => rng.sign() * f32::MAX,
            Self::Tie | Self::Equal => rng.below(1 << 12) as f32,
            // In plain f64 sums behind the first elements every later one is lost: 2^44 + 2^-9 - a little.
            Self::Losing if index < 32 => 4_194_304.0 + rng.below(64) as f32,
            Self::Losing => 0.0441,
            _ => rng.unit(),
        }
    }
}

/// The bounds that matter for a row of this norm.
pub fn bounds_for(norm: f32) -> Vec<f32> {
    let norm = if norm.is_finite() { norm } else { 1.0 };
    let (below, above) = (norm.next_down().max(0.0), norm.next_up());
    let mut bounds = vec![
        norm,
        below,
        above,
        norm / 2.0,
        norm / 3.0,
        0.0,
        -0.0,
        f32::from_bits(1),
        f32::from_bits(0x007f_ffff),
        f32::MIN_POSITIVE,
        1e-30,
        1.0,
        f32::MAX,
        f32::INFINITY,
        norm * 0.999_999,
        norm * 1e-7,
    ];
    bounds.retain(|bound| !bound.is_nan());
    bounds
}

/// A NaN that says where it is: what the padding is filled with.
pub fn poison(index: usize) -> f32 {
    f32::from_bits(0x7fa0_0000 | (index as u32 & 0x000f_ffff))
}
