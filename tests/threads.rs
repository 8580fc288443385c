//! What threads share on the CPU: rows side by side, the elements of long ones, their segments. However many there are, and
//! whoever calls, the bits are those of the reference.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::OnceLock;

use byzclip::{
    Backend, Clipping, Cpu, Granularity, Half, Layout, Reference, Scope, State, Status, Weights, threshold,
};
use common::{Class, Rng, assert_same_bits, assert_same_norms, assert_same_report};

const GRANULARITIES: [Granularity; 3] = [Granularity::Row, Granularity::Segment, Granularity::Coordinate];

/// Elements of a row beyond which no thread keeps it to itself.
const OWN: usize = Cpu::OWN;

/// Backends of several threads, also more than there are processors, and with every sum open.
fn backends() -> &'static [(String, Cpu)] {
    static ALL: OnceLock<Vec<(String, Cpu)>> = OnceLock::new();
    ALL.get_or_init(|| {
        let of_threads = |threads: usize| (format!("{threads} threads"), Cpu::with_threads(threads).unwrap());
        let mut all: Vec<_> = [1, 2, 3, 8].map(of_threads).into();
        all.push(("global".into(), Cpu::new().unwrap()));
        all.push(("exact, 3 threads".into(), Cpu::with_threads(3).unwrap().force_exact(true)));
        all
    })
}

fn ragged(lengths: &[usize]) -> Layout {
    let ends = lengths.iter().scan(0, |end, length| {
        *end += length;
        Some(*end)
    });
    Layout::ragged(&std::iter::once(0).chain(ends).collect::<Vec<_>>()).unwrap()
}

/// Batches that are shared in different ways, also where two rows in three are in scope.
fn layouts() -> Vec<(&'static str, Layout)> {
    let many: Vec<usize> = (0..90).map(|i| 9_000 + i * 7).collect();
    let layouts = vec![
        ("short rows", Layout::dense(20_000, 60).unwrap()),
        ("short rows in whole groups, padded", Layout::strided(12_000, 101, 104).unwrap()),
        ("rows of a cache", Layout::strided(900, 1500, 1503).unwrap()),
        (
            "rows that are summed side by side, and some left over",
            Layout::strided(251, 5_003, 5_010).unwrap(),
        ),
        ("long rows, one too many", Layout::dense(5, 270_001).unwrap()),
        ("rows that are too few, and too short to share", Layout::dense(11, 125_000).unwrap()),
        ("one row", Layout::dense(1, 900_007).unwrap()),
        ("rows of all lengths", ragged(&[3, 70_000, OWN + 5, 0, 4, OWN - 80_000])),
        ("very many rows of all lengths", ragged(&(0..120_000).map(|row| row % 23).collect::<Vec<_>>())),
        (
            "segments of all lengths",
            Layout::dense(2, OWN + 300_000).unwrap().layered(&[70_000, 0, 229_995, OWN, 5]).unwrap(),
        ),
        ("many segments", Layout::dense(2, many.iter().sum()).unwrap().layered(&many).unwrap()),
    ];
    for (name, layout) in &layouts {
        let in_scope = two_in_three(layout).mask(layout.clients()).unwrap();
        let work: usize =
            (0..layout.clients()).filter(|&row| in_scope[row]).map(|row| layout.row(row).len()).sum();
        assert!(work > Cpu::WORTH_WAKING, "{name}: {work} elements are not shared");
    }
    layouts
}

/// Two rows in three.
fn two_in_three(layout: &Layout) -> Scope {
    Scope::Mask((0..layout.clients()).map(|row| row % 3 != 1).collect())
}

/// Rows of several classes, of the kind for which no fast sum is certain among them.
fn data(layout: &Layout, rng: &mut Rng) -> Vec<f32> {
    const CLASSES: [Class; 7] = [
        Class::Ordinary,
        Class::Equal,
        Class::Huge,
        Class::Tie,
        Class::Tiny,
        Class::Losing,
        Class::NanPayload,
    ];
    let mut data = vec![0.0; layout.len()];
    for row in 0..layout.clients() {
        let place = layout.row(row);
        data[place.clone()].copy_from_slice(&CLASSES[row % CLASSES.len()].row(place.len(), rng));
    }
    data
}

#[test]
fn rows_and_segments_that_threads_share_have_the_bits_of_the_reference() {
    let mut rng = Rng::new(70);
    for (name, layout) in layouts() {
        let data = data(&layout, &mut rng);
        for granularity in GRANULARITIES {
            for scope in [Scope::All, two_in_three(&layout)] {
                let clipping = Clipping::fixed(0.7).granularity(granularity).scope(scope);
                let norms = Reference.norms(&layout, &data, &clipping).unwrap();
                let mut values = data.clone();
                let report = Reference.run(&layout, &mut values, &clipping).unwrap();
                assert_ne!(report.count(Status::Clipped), 0);
                for (backend, cpu) in backends() {
                    let context = format!("{name}, {granularity:?}, {backend}");
                    assert_same_norms(&context, &cpu.norms(&layout, &data, &clipping).unwrap(), &norms);
                    let mut got = data.clone();
                    assert_same_report(&context, &cpu.run(&layout, &mut got, &clipping).unwrap(), &report);
                    assert_same_bits(&context, &got, &values);
                    // The clip stage alone shares otherwise.
                    let decisions =
                        threshold::decide(&layout, &norms, &clipping, &mut State::default()).unwrap();
                    let mut got = data.clone();
                    cpu.clip(&layout, &mut got, &clipping, &decisions).unwrap();
                    assert_same_bits(&context, &got, &values);
                }
            }
        }
    }
}

#[test]
fn means_that_threads_share_have_the_bits_of_the_reference() {
    let mut rng = Rng::new(71);
    // Few strips of many rows, and many strips of few.
    for (clients, params) in [(3000, 90), (700, 2500), (64, 7000), (9, 70_000)] {
        let layout = Layout::dense(clients, params).unwrap();
        let data = data(&layout, &mut rng);
        let clipping = Clipping::fixed(0.7);
        let norms = Reference.norms(&layout, &data, &clipping).unwrap();
        let decisions = threshold::decide(&layout, &norms, &clipping, &mut State::default()).unwrap();
        let weights = Weights::PerRow((0..clients).map(|row| (row % 5) as f32).collect());
        let mean = Reference.mean(&layout, &data, &clipping, &decisions, &weights).unwrap();
        for (backend, cpu) in backends() {
            let got = cpu.mean(&layout, &data, &clipping, &decisions, &weights).unwrap();
            assert_same_bits(&format!("{clients}x{params}, {backend}"), &got, &mean);
        }
    }
}

#[test]
fn halves_that_threads_share_have_the_bits_of_the_reference() {
    let mut rng = Rng::new(72);
    for (name, layout) in layouts() {
        let data: Vec<u16> = (0..layout.len()).map(|_| 0x3000 | (rng.next() >> 50) as u16).collect();
        for half in [Half::F16, Half::Bf16] {
            let clipping = Clipping::fixed(0.7);
            let mut values = data.clone();
            let report = Reference.run_half(&layout, half, &mut values, &clipping).unwrap();
            for (backend, cpu) in backends() {
                let context = format!("{name}, {half:?}, {backend}");
                let mut got = data.clone();
                assert_same_report(
                    &context,
                    &cpu.run_half(&layout, half, &mut got, &clipping).unwrap(),
                    &report,
                );
                assert!(got == values, "{context}");
            }
        }
    }
}

/// A caller may be a thread of the pool itself, or of another one, and may not be alone.
#[test]
fn callers_may_be_threads_of_a_pool() {
    let mut rng = Rng::new(73);
    let layout = ragged(&[70_000, OWN + 5, 300, 70_000, 90_000]);
    let data = data(&layout, &mut rng);
    let clipping = Clipping::fixed(0.7);
    let mut values = data.clone();
    let report = Reference.run(&layout, &mut values, &clipping).unwrap();
    let check = |cpu: &Cpu, caller: &str| {
        let mut got = data.clone();
        assert_same_report(caller, &cpu.run(&layout, &mut got, &clipping).unwrap(), &report);
        assert_same_bits(caller, &got, &values);
    };
    let (global, own) = (Cpu::new().unwrap(), Cpu::with_threads(2).unwrap());
    rayon::scope(|scope| {
        for caller in 0..6 {
            let cpu = if caller % 2 == 0 { &global } else { &own };
            scope.spawn(move |_| check(cpu, &format!("task {caller}")));
        }
    });
    std::thread::scope(|scope| {
        for caller in 0..6 {
            let cpu = if caller % 2 == 0 { &global } else { &own };
            scope.spawn(move || check(cpu, &format!("thread {caller}")));
        }
    });
}
