//! The clip stage with decisions of other data: what is finite is multiplied as ever, and NaN and Inf stay what they are.
#![allow(clippy::unwrap_used)]

mod common;

use byzclip::{Backend, Clipping, Decision, Granularity, Half, Layout, Reference, Status};
use common::{all, assert_same_bits};

/// Elements far above what the norms were of, whose products are finite all the same.
const LARGE: [f32; 3] = [3e38, -2.9e38, 1e36];

/// Bits of NaN of either sign, signalling and quiet, with and without payload, and of Inf.
const OF_SINGLES: [u32; 6] = [0x7f80_0001, 0xffc1_2345, 0x7fc0_0000, 0xff80_0200, 0x7f80_0000, 0xff80_0000];
const OF_F16: [u16; 6] = [0x7c01, 0xfe34, 0x7e00, 0xfc10, 0x7c00, 0xfc00];
const OF_BF16: [u16; 6] = [0x7f81, 0xffd2, 0x7fc0, 0xff84, 0x7f80, 0xff80];

/// Layouts, and whether their rows are alike: short rows, rows of several segments, and rows that threads share and GPUs cut in tiles.
fn layouts() -> [(Layout, bool); 4] {
    [
        (Layout::dense(7, 1).unwrap(), true),
        (Layout::dense(9, 83).unwrap().layered(&[10, 73]).unwrap(), true),
        (
            Layout::ragged_layered(&[vec![3, 40], vec![], vec![17], vec![0, 100, 9], vec![260]]).unwrap(),
            false,
        ),
        (Layout::dense(3, 150_001).unwrap().layered(&[100_000, 50_001]).unwrap(), true),
    ]
}

/// Finite values, most of which are above a half.
fn values(layout: &Layout) -> Vec<f32> {
    (0..layout.len()).map(|i| ((i * 7919) % 1009) as f32 * 0.011 - 5.3).collect()
}

/// Decisions of a batch; one in three is changed to a status that is written otherwise, or not at all.
fn decisions_of(layout: &Layout, data: &[f32], clipping: &Clipping) -> Vec<Decision> {
    let norms = Reference.norms(layout, data, clipping).unwrap();
    let mut decisions = Reference.threshold(layout, &norms, clipping, &mut Default::default()).unwrap();
    for (i, decision) in decisions.iter_mut().enumerate().skip(2).step_by(3) {
        decision.status = [Status::Zeroed, Status::Untouched][i % 2];
    }
    // Above all of them: nothing but NaN is cut.
    if let (Granularity::Coordinate, Some(first)) = (clipping.granularity, decisions.first_mut()) {
        first.bound = f32::INFINITY;
    }
    assert!(decisions.iter().any(|decision| decision.status == Status::Clipped));
    decisions
}

/// Where elements are replaced: all, few, one.
fn places(length: usize) -> [Vec<usize>; 3] {
    [(0..length).collect(), (0..length).step_by(7).collect(), vec![length / 2]]
}

/// What the clip stage makes of a batch after some of its elements were replaced, from what it makes of the batch itself.
fn expected<T: Copy>(
    layout: &Layout,
    granularity: Granularity,
    decisions: &[Decision],
    finite_after: &[T],
    (places, before): (&[usize], &[T]),
    of_decision: impl Fn(T, &Decision) -> T,
) -> Vec<T> {
    let mut want = finite_after.to_vec();
    let mut decision_of = vec![None; want.len()];
    for (span, decision) in decisions.iter().enumerate() {
        decision_of[layout.span(granularity, span)].fill(Some(decision));
    }
    for &i in places {
        want[i] = decision_of[i].map_or(before[i], |decision| of_decision(before[i], decision));
    }
    want
}

/// Holds every backend to what becomes of a batch that was decided, some of whose elements were then replaced.
fn clips_to(
    layout: &Layout,
    data: &[f32],
    clipping: &Clipping,
    others: &[f32],
    of_decision: impl Fn(f32, &Decision) -> f32,
) {
    let granularity = clipping.granularity;
    let decisions = decisions_of(layout, data, clipping);
    let mut finite_after = data.to_vec();
    Reference.clip(layout, &mut finite_after, clipping, &decisions).unwrap();
    for places in places(data.len()) {
        let mut before = data.to_vec();
        places.iter().enumerate().for_each(|(k, &i)| before[i] = others[k % others.len()]);
        let changed = (&places[..], &before[..]);
        let want = expected(layout, granularity, &decisions, &finite_after, changed, &of_decision);
        let (count, centered) = (places.len(), clipping.center.is_some());
        for (name, backend) in all() {
            let mut got = before.clone();
            backend.clip(layout, &mut got, clipping, &decisions).unwrap();
            let context = format!("{name}, {granularity:?}, centre {centered}, {count} places");
            assert_same_bits(&context, &got, &want);
        }
    }
}

#[test]
fn what_is_not_finite_stays_bit_for_bit() {
    for (layout, are_alike) in layouts() {
        let data = values(&layout);
        let mut clippings = vec![Clipping::fixed(0.5)];
        clippings.push(Clipping::fixed(0.5).granularity(Granularity::Segment));
        clippings.push(Clipping { granularity: Granularity::Coordinate, ..Clipping::fixed(0.5) });
        if are_alike {
            clippings.push(Clipping::fixed(0.5).around(vec![0.25; layout.params()]));
        }
        for clipping in clippings {
            let granularity = clipping.granularity;
            let of_decision = |value: f32, decision: &Decision| match decision.status {
                Status::Clipped if granularity == Granularity::Coordinate => decision.bound.copysign(value),
                Status::Zeroed => clipping.center.as_ref().map_or(0.0, |center| center[0]),
                _ => value,
            };
            clips_to(&layout, &data, &clipping, &OF_SINGLES.map(f32::from_bits), of_decision);
        }
    }
}

#[test]
fn halves_that_are_not_finite_stay_bit_for_bit() {
    for (half, bad) in [(Half::F16, OF_F16), (Half::Bf16, OF_BF16)] {
        for (layout, _) in layouts() {
            let halves: Vec<u16> = values(&layout).iter().map(|value| half.truncate(*value)).collect();
            let data = half.widened(&halves);
            for granularity in [Granularity::Row, Granularity::Segment, Granularity::Coordinate] {
                let clipping = Clipping { granularity, ..Clipping::fixed(0.5) };
                let decisions = decisions_of(&layout, &data, &clipping);
                let mut finite_after = halves.clone();
                Reference.clip_half(&layout, half, &mut finite_after, &clipping, &decisions).unwrap();
                for places in places(halves.len()) {
                    let mut before = halves.clone();
                    places.iter().enumerate().for_each(|(k, &i)| before[i] = bad[k % bad.len()]);
                    let of_decision = |bits: u16, decision: &Decision| match decision.status {
                        Status::Clipped if granularity == Granularity::Coordinate => {
                            bits & 0x8000 | half.truncate(decision.bound)
                        }
                        Status::Zeroed => 0,
                        _ => bits,
                    };
                    let changed = (&places[..], &before[..]);
                    let want =
                        expected(&layout, granularity, &decisions, &finite_after, changed, of_decision);
                    for (name, backend) in all() {
                        let mut got = before.clone();
                        backend.clip_half(&layout, half, &mut got, &clipping, &decisions).unwrap();
                        let differs = (0..got.len()).find(|&i| got[i] != want[i]);
                        let what =
                            differs.map(|i| (i, format!("got {:04x}, expected {:04x}", got[i], want[i])));
                        let context = format!("{name}, {half:?}, {granularity:?}, {} places", places.len());
                        assert_eq!(what, None, "{context}");
                    }
                }
            }
        }
    }
}

/// Products are those of the elements, whatever the norm that the factor was made from; on a device they may overflow on the way.
#[test]
fn what_is_finite_is_multiplied_however_large_it_is() {
    for (layout, _) in layouts() {
        let data = values(&layout);
        for granularity in [Granularity::Row, Granularity::Segment] {
            let clipping = Clipping::fixed(0.5).granularity(granularity);
            let of_decision = |value: f32, decision: &Decision| match decision.status {
                Status::Clipped => (f64::from(value) * decision.factor) as f32,
                Status::Zeroed => 0.0,
                _ => value,
            };
            clips_to(&layout, &data, &clipping, &LARGE, of_decision);
        }
    }
}

/// Where its parts meet that go to a device and back one by one.
#[test]
fn a_row_that_is_shipped_in_parts_is_looked_at_in_all_of_them() {
    const PART: usize = 8 << 20;
    let (layout, clipping) = (Layout::dense(1, PART + 1001).unwrap(), Clipping::fixed(0.5));
    let decisions = decisions_of(&Layout::dense(1, 4).unwrap(), &[3.0; 4], &clipping);
    let halves: Vec<u16> = (0..layout.len()).map(|i| 0x2800 + (i % 4999) as u16).collect();
    let mut want = halves.clone();
    Reference.clip_half(&layout, Half::F16, &mut want, &clipping, &decisions).unwrap();
    let places = [0, 4095, 4096, PART - 1, PART, PART + 1000];
    let mut before = halves;
    for (k, i) in places.into_iter().enumerate() {
        (before[i], want[i]) = (OF_F16[k], OF_F16[k]);
    }
    for (name, backend) in all() {
        let mut got = before.clone();
        backend.clip_half(&layout, Half::F16, &mut got, &clipping, &decisions).unwrap();
        let differs = (0..got.len()).find(|&i| got[i] != want[i]);
        assert_eq!(differs.map(|i| (i, got[i], want[i])), None, "{name}");
    }
}
