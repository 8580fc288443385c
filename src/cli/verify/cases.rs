//! The batches that `verify` runs: classes of data, laid out and clipped in every way.

use byzclip::{AdversaryMode, Clipping, Granularity, Layout, NonFinite, Scope};

/// A batch and what is done with it.
pub(super) struct Case {
    pub name: String,
    /// Which of [`CLASSES`] its data is of.
    pub class: usize,
    pub layout: Layout,
    pub data: Vec<f32>,
    pub clipping: Clipping,
}

/// The classes of data; the columns of the table.
pub(super) const CLASSES: [&str; 8] =
    ["honest", "boosted", "zero", "subnormal", "1e-30", "1e38", "mixed", "NaN/Inf"];

/// Every class in every layout under every clipping that says something about it.
pub(super) fn all() -> byzclip::Result<Vec<Case>> {
    let mut cases = Vec::new();
    for (class, class_name) in CLASSES.iter().enumerate() {
        for (layout_name, layout) in layouts()? {
            let data = fill(&layout, class);
            for (clipping_name, clipping) in clippings(&layout, bound(class)) {
                cases.push(Case {
                    name: format!("{class_name}, {layout_name}, {clipping_name}"),
                    class,
                    layout: layout.clone(),
                    data: data.clone(),
                    clipping,
                });
            }
        }
    }
    Ok(cases)
}

fn layouts() -> byzclip::Result<Vec<(&'static str, Layout)>> {
    Ok(vec![
        ("one column", Layout::dense(33, 1)?),
        ("dense", Layout::dense(12, 1021)?),
        ("long rows", Layout::dense(3, 40_001)?),
        ("strided, layered", Layout::strided(9, 300, 307)?.layered(&[1, 0, 255, 44])?),
        ("ragged", Layout::ragged(&[5, 5, 6, 70, 4167, 4167, 12_400])?),
        ("ragged, layered", Layout::ragged_layered(&[vec![3, 8193], vec![], vec![0, 4, 100], vec![64]])?),
        ("empty", Layout::dense(0, 10)?),
    ])
}

/// Clippings around a bound that parts the class.
fn clippings(layout: &Layout, bound: f32) -> Vec<(&'static str, Clipping)> {
    let clients = layout.clients();
    let per_row = (0..clients).map(|row| [0.0, bound, bound * 0.01, f32::INFINITY][row % 4]).collect();
    let modes = [AdversaryMode::None, AdversaryMode::GradAscent, AdversaryMode::LabelFlip];
    let modes = (0..clients).map(|row| modes[row % 3]).collect();
    let every_other = (0..clients).step_by(2).collect();
    let mut clippings = vec![
        ("fixed", Clipping::fixed(bound)),
        ("per row", Clipping::per_row(per_row)),
        ("per layer", Clipping::fixed(bound * 0.5).granularity(Granularity::Segment)),
        ("per coordinate", Clipping::fixed(bound * 0.1).granularity(Granularity::Coordinate)),
        (
            "adversaries, kept",
            Clipping::fixed(bound).scope(Scope::Adversaries(modes)).non_finite(NonFinite::Keep),
        ),
        (
            "rows, refused",
            Clipping::fixed(bound).scope(Scope::Rows(every_other)).non_finite(NonFinite::Error),
        ),
    ];
    // Rows of one length have a centre: of the size of the bound, and of both signs.
    if (0..clients).all(|row| layout.row(row).len() == layout.params()) {
        let signed = |i: usize| bound * [0.01, -0.02, 0.0, 0.3][i % 4];
        let center: Vec<f32> = (0..layout.params()).map(signed).collect();
        clippings.push(("around a centre", Clipping::fixed(bound).around(center)));
    }
    clippings
}

/// A bound near the norms of the class.
const fn bound(class: usize) -> f32 {
    match class {
        3 => 3e-38,
        4 => 2e-29,
        5 => 3e38,
        _ => 2.0,
    }
}

fn fill(layout: &Layout, class: usize) -> Vec<f32> {
    // Padding is NaN: who reads it shows it.
    let mut data = vec![f32::NAN; layout.len()];
    let mut random = SplitMix(class as u64);
    for row in 0..layout.clients() {
        for (i, value) in data[layout.row(row)].iter_mut().enumerate() {
            *value = element(class, row, i, &mut random);
        }
    }
    data
}

fn element(class: usize, row: usize, i: usize, random: &mut SplitMix) -> f32 {
    let unit = random.signed_unit();
    match class {
        0 => unit * 0.05,
        1 => unit * if row.is_multiple_of(2) { 10.0 } else { 0.01 },
        2 => {
            if unit < 0.0 {
                -0.0
            } else {
                0.0
            }
        }
        3 => f32::from_bits(random.bits() & 0x807f_ffff),
        4 => unit * 1e-30,
        5 => unit * 1e38,
        6 => f32::from_bits(random.bits() & 0xbfff_ffff),
        _ if row % 3 == 1 && i.is_multiple_of(5) => {
            f32::from_bits(0x7f80_0000 | if i.is_multiple_of(2) { 0 } else { random.bits() & 0x807f_ffff })
        }
        _ => unit,
    }
}

/// Steele, Lea and Flood's SplitMix64 (2014): the same numbers in every build.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn bits(&mut self) -> u32 {
        (self.next() >> 32) as u32
    }

    /// A number in [-1, 1) with 24 significant bits.
    fn signed_unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}
