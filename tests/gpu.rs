//! What only the GPU backend does: the caller's device, windows, strategies, scratch, errors.
//!
//! The contract itself is held in `conformance.rs` and `properties.rs`, on this backend as on all.
#![cfg(feature = "gpu")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use byzclip::backend::gpu::{Plan, Tuning};
use byzclip::{
    Adaptive, Backend, Clipping, Error, Gpu, Granularity, Half, Layout, NonFinite, Reference, Report, Scope,
    State, Status, Strategy, Threshold, Weights, wgpu,
};
use common::gpu::adapter;

/// A device with subgroups where the adapter has them.
fn gpu() -> Option<Gpu> {
    let adapter = adapter()?;
    let (device, queue) = byzclip::backend::gpu::open(&adapter).unwrap();
    Some(Gpu::from_device(device, queue).unwrap())
}

/// Updates of all kinds: small, boosted, tiny, huge, with NaN, and norms that take the exact sum.
fn updates(layout: &Layout) -> Vec<f32> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    let mut data: Vec<f32> = (0..layout.len()).map(|_| next()).collect();
    for row in 0..layout.clients() {
        let values = &mut data[layout.row(row)];
        match row % 6 {
            1 => values.iter_mut().for_each(|v| *v *= 1e30),
            2 => values.iter_mut().for_each(|v| *v *= 1e-30),
            3 => values.iter_mut().enumerate().for_each(|(i, v)| *v = if i == 0 { 3.0 } else { 0.0 }),
            4 if !values.is_empty() => values[0] = f32::NAN,
            _ => {}
        }
    }
    data
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// Reports without what ran, floats as bits.
fn rows(report: &Report) -> String {
    let row = |(i, r): (usize, &byzclip::RowReport)| {
        let segments: Vec<_> = report
            .segments(i)
            .iter()
            .map(|s| (s.norm.to_bits(), s.bound.to_bits(), s.factor.to_bits(), s.status))
            .collect();
        format!(
            "{:08x} {:?} {:016x} {:?} {segments:?}\n",
            r.norm.to_bits(),
            r.bound,
            r.factor.to_bits(),
            r.status
        )
    };
    report.rows.iter().enumerate().map(row).collect()
}

fn assert_same_as_reference(backend: &dyn Backend, layout: &Layout, clipping: &Clipping, what: &str) {
    let report = assert_same_bits_as_reference(backend, layout, clipping, what);
    let strategy = report.ran.strategy.expect("a run on a GPU tells its strategy");
    assert!(report.ran.to_string().contains(strategy.name()), "{}", report.ran);
}

fn assert_same_bits_as_reference(
    backend: &dyn Backend,
    layout: &Layout,
    clipping: &Clipping,
    what: &str,
) -> Report {
    let original = updates(layout);
    let (mut expected, mut got) = (original.clone(), original);
    let specified = Reference.run(layout, &mut expected, clipping).unwrap();
    let report = backend.run(layout, &mut got, clipping).unwrap();
    assert_eq!(rows(&report), rows(&specified), "{what}: report");
    assert!(bits(&got) == bits(&expected), "{what}: clipped values differ");
    report
}

fn buffer_of(gpu: &Gpu, data: &[f32], extra: wgpu::BufferUsages) -> wgpu::Buffer {
    let usage = wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC | extra;
    let buffer = gpu.device().create_buffer(&wgpu::BufferDescriptor {
        label: Some("the caller's updates"),
        size: (data.len() * 4) as u64,
        usage,
        mapped_at_creation: false,
    });
    gpu.queue().write_buffer(&buffer, 0, bytemuck::cast_slice(data));
    buffer
}

fn contents(gpu: &Gpu, buffer: &wgpu::Buffer) -> Vec<u32> {
    let staging = gpu.device().create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: buffer.size(),
        usage: wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::MAP_READ,
        mapped_at_creation: false,
    });
    let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    encoder.copy_buffer_to_buffer(buffer, 0, &staging, 0, buffer.size());
    gpu.queue().submit([encoder.finish()]);
    staging.slice(..).map_async(wgpu::MapMode::Read, |result| result.unwrap());
    gpu.device().poll(wgpu::PollType::wait_indefinitely()).unwrap();
    bytemuck::cast_slice(&staging.slice(..).get_mapped_range().unwrap()).to_vec()
}

fn submit(gpu: &Gpu, record: impl FnOnce(&mut wgpu::CommandEncoder)) {
    let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    record(&mut encoder);
    gpu.queue().submit([encoder.finish()]);
}

/// Shapes of the kernels that this device can run, each in other ways than the others.
fn strategies(gpu: &Gpu) -> Vec<(&'static str, Tuning)> {
    let own = gpu.tuning().clone();
    let portable = Tuning { window: own.window.min(Tuning::portable().window), ..Tuning::portable() };
    vec![
        ("the device's own", own.clone()),
        ("portable", portable.clone()),
        ("narrow workgroups", Tuning { workgroup: 8, span_workgroup: 8, ..portable.clone() }),
        ("one element at a time", Tuning { wide: false, ..own.clone() }),
        ("small tiles", Tuning { tile: 64, ..own.clone() }),
        ("small windows", Tuning { tile: 256, window: 1024, ..own.clone() }),
        ("pairs of f32", Tuning { doubles: false, ..own.clone() }),
        ("side by side", Tuning { stretch: 0, streams: 1, ..own.clone() }),
        ("short stretches", Tuning { stretch: 32, streams: 4, few_tiles: 50, ..own.clone() }),
        (
            "short rows in streams, two invocations each",
            Tuning { stretch: 64, streams: 8, row_lanes: 2, short_row: 8192, short_rows: 0, ..own.clone() },
        ),
        ("fused", Tuning { short_row: 0, fused_row: 1 << 16, ..own.clone() }),
        ("fused and portable", Tuning { short_row: 0, fused_row: 1 << 16, ..portable.clone() }),
        (
            "fused, exact sums only, by two workgroups",
            Tuning {
                short_row: 0,
                fused_row: 1 << 16,
                force_exact: true,
                exact_workgroups: 2,
                ..own.clone()
            },
        ),
        (
            "fused in small windows, one element at a time",
            Tuning { short_row: 0, fused_row: 900, tile: 64, window: 1024, wide: false, ..own.clone() },
        ),
        ("groups of few rows", Tuning { short_row: 0, group_bytes: 10_000, tile: 256, ..own.clone() }),
        ("groups of one row each", Tuning { short_row: 0, group_bytes: 1, few_tiles: 0, ..portable.clone() }),
        (
            "groups of several windows, exact sums",
            Tuning {
                group_bytes: 40_000,
                tile: 256,
                window: 1024,
                short_row: 0,
                force_exact: true,
                ..portable.clone()
            },
        ),
        (
            "rows settled at once, exact sums only",
            Tuning {
                workgroup: 16,
                few_tiles: 16,
                at_once: true,
                short_row: 0,
                force_exact: true,
                ..portable.clone()
            },
        ),
        ("no row is short", Tuning { short_row: 0, few_tiles: 0, ..own.clone() }),
        ("few tiles", Tuning { tile: 1024, few_tiles: 50, short_row: 0, ..portable.clone() }),
        (
            "an invocation to a row",
            Tuning { row_lanes: 1, short_row: 8192, short_rows: 0, ..portable.clone() },
        ),
        (
            "four to a row, in pairs of f32",
            Tuning { row_lanes: 4, short_row: 8192, short_rows: 0, doubles: false, ..own.clone() },
        ),
        (
            "a workgroup to a row in small windows",
            Tuning { row_lanes: 256, short_rows: 0, tile: 1024, window: 2048, ..own.clone() },
        ),
        (
            "exact sums of short rows, by two workgroups",
            Tuning { force_exact: true, exact_workgroups: 2, row_lanes: 2, short_rows: 0, ..own.clone() },
        ),
        ("exact sums only", Tuning { force_exact: true, ..own.clone() }),
        ("exact sums in small windows", Tuning { force_exact: true, tile: 64, window: 256, ..portable }),
    ]
}

#[test]
fn every_strategy_gives_the_bits_of_the_reference() {
    let Some(gpu) = gpu() else { return };
    let layouts = [
        Layout::dense(24, 1000).unwrap(),
        Layout::strided(13, 333, 341).unwrap().layered(&[1, 0, 300, 32]).unwrap(),
        Layout::ragged(&[2, 2, 3, 700, 9001, 9001, 9100, 30_000]).unwrap(),
        Layout::ragged_layered(&[vec![5, 9000], vec![], vec![0, 4, 4, 77], vec![8193]]).unwrap(),
        Layout::strided(300, 61, 64).unwrap(),
        Layout::ragged(&[1, 2, 5, 69, 70, 170, 433, 500, 1000, 1003]).unwrap(),
    ];
    for (name, tuning) in strategies(&gpu) {
        let gpu =
            Gpu::from_device(gpu.device().clone(), gpu.queue().clone()).unwrap().with_tuning(tuning).unwrap();
        for (i, layout) in layouts.iter().enumerate() {
            for granularity in [Granularity::Row, Granularity::Segment, Granularity::Coordinate] {
                let clipping = Clipping::fixed(1.5).granularity(granularity);
                assert_same_as_reference(
                    &gpu,
                    layout,
                    &clipping,
                    &format!("{name}, layout {i}, {granularity:?}"),
                );
            }
        }
    }
}

/// The gpu's device with another tuning.
fn tuned(gpu: &Gpu, tuning: Tuning) -> Gpu {
    Gpu::from_device(gpu.device().clone(), gpu.queue().clone()).unwrap().with_tuning(tuning).unwrap()
}

/// Tunings under which long rows are fused, tiled and grouped.
fn of_long_rows(gpu: &Gpu) -> [(Strategy, Tuning); 3] {
    let tiled = Tuning { short_row: 0, fused_row: 0, group_bytes: 0, tile: 256, ..gpu.tuning().clone() };
    [
        (Strategy::Fused, Tuning { fused_row: 1 << 14, ..tiled.clone() }),
        (Strategy::Tiled, tiled.clone()),
        (Strategy::Grouped, Tuning { group_bytes: 9000, ..tiled }),
    ]
}

/// Rows that strategies might confuse: every kind of number, norms that only an exact sum decides, and a factor of 1.
fn hostile(layout: &Layout) -> Vec<f32> {
    let mut data = updates(layout);
    for row in 0..layout.clients() {
        let values = &mut data[layout.row(row)];
        match row % 12 {
            4 => values[0] = f32::INFINITY,
            5 => values.fill(0.0),
            6 => values.iter_mut().for_each(|v| *v *= 1e-42),
            7 => values.iter_mut().for_each(|v| *v *= 1e38),
            8 => {
                // A norm of exactly the bound.
                values.fill(0.0);
                values[values.len() - 1] = -1.5;
            }
            9 => {
                // A sum that is a rounding boundary and a little more: open, and just above the bound.
                values.fill(0.0);
                values[0] = 1.5;
                values[1] = 1e-12;
            }
            11 => values[1] = f32::from_bits(0x7f80_0001),
            _ => {}
        }
    }
    data
}

/// The clippings of one plan, one after the other: bounds that rows have alone, those from the whole batch, a batch that
/// is refused, and back.
fn clippings(clients: usize) -> Vec<Clipping> {
    let bounds = (0..clients).map(|row| [0.0, 1.5, f32::INFINITY, 1e-20, 0.3][row % 5]).collect();
    let fixed = || Clipping::fixed(1.5);
    let some = || Scope::Rows((0..clients).filter(|row| row % 3 != 1).collect());
    let clean = Scope::Rows((0..clients).filter(|row| ![4, 10, 11].contains(&(row % 12))).collect());
    let median = || Clipping { threshold: Threshold::Median { factor: 0.75 }, ..fixed() };
    vec![
        fixed(),
        fixed().non_finite(NonFinite::Error),
        median(),
        Clipping::per_row(bounds),
        median().scope(some()),
        fixed().non_finite(NonFinite::Keep),
        fixed().non_finite(NonFinite::Error).scope(clean),
        median().non_finite(NonFinite::Error),
        fixed().scope(some()),
        fixed(),
    ]
}

#[test]
fn plans_take_the_strategy_of_their_tuning_and_shape() {
    let Some(gpu) = gpu() else { return };
    let strategy = |tuning: &Tuning, layout: &Layout, clipping: &Clipping| {
        let gpu = tuned(&gpu, tuning.clone());
        let buffer = buffer_of(&gpu, &vec![0.0; layout.len()], wgpu::BufferUsages::STORAGE);
        gpu.plan(layout, clipping, &buffer).unwrap().strategy()
    };
    let dense = Layout::dense(30, 1000).unwrap();
    for (expected, tuning) in of_long_rows(&gpu) {
        assert_eq!(strategy(&tuning, &dense, &Clipping::default()), expected);
        let by_segment = Clipping::default().granularity(Granularity::Segment);
        assert_eq!(strategy(&tuning, &dense, &by_segment), Strategy::Tiled);
        let short = Tuning { short_row: 1000, short_rows: 0, tile: 1024, ..tuning.clone() };
        assert_eq!(strategy(&short, &dense, &Clipping::default()), Strategy::Rows);
    }
    let [(_, fused), _, (_, grouped)] = of_long_rows(&gpu);
    // Too long to fuse, an empty row, around a centre; a batch of less than a group.
    let long = Tuning { fused_row: 999, ..fused.clone() };
    assert_eq!(strategy(&long, &dense, &Clipping::default()), Strategy::Tiled);
    assert_eq!(strategy(&fused, &Layout::ragged(&[1, 1, 9]).unwrap(), &Clipping::default()), Strategy::Tiled);
    assert_eq!(strategy(&fused, &dense, &Clipping::default().around(vec![1.0; 1000])), Strategy::Tiled);
    assert_eq!(strategy(&grouped, &Layout::dense(2, 1000).unwrap(), &Clipping::default()), Strategy::Tiled);
}

#[test]
fn a_run_takes_no_more_dispatches_than_its_clipping_needs() {
    let Some(gpu) = gpu() else { return };
    let kernels = |tuning: &Tuning, layout: &Layout, clipping: &Clipping| {
        let gpu = tuned(&gpu, tuning.clone());
        let buffer = buffer_of(&gpu, &vec![0.0; layout.len()], wgpu::BufferUsages::STORAGE);
        let plan = gpu.plan(layout, clipping, &buffer).unwrap();
        plan.dispatches().map(|dispatch| dispatch.kernel).collect::<Vec<_>>()
    };
    let layout = Layout::dense(25, 1003).unwrap();
    let fixed = Clipping::fixed(1.5);
    let median = Clipping { threshold: Threshold::Median { factor: 0.75 }, ..Clipping::default() };
    let refusing = fixed.clone().non_finite(NonFinite::Error);
    let threshold = ["threshold_groups", "threshold_spans"];
    let [(_, fused), (_, tiled), (_, grouped)] = of_long_rows(&gpu);
    let tiled = Tuning { few_tiles: 16, at_once: true, ..tiled };
    let rows = Tuning { short_row: 1003, short_rows: 0, ..Tuning { tile: 1024, ..tiled.clone() } };
    for (tuning, norms, clip) in [
        (&fused, vec!["fused", "exact_few"], "clip_left"),
        (&tiled, vec!["norms_tiles", "norms_at_once"], "clip"),
        (&rows, vec!["norms_rows", "exact_few"], "clip_rows"),
    ] {
        assert_eq!(kernels(tuning, &layout, &fixed), [&norms[..], &[clip]].concat());
        for clipping in [&median, &refusing] {
            assert_eq!(kernels(tuning, &layout, clipping), [&norms[..], &threshold, &[clip]].concat());
        }
    }
    // Rows so long that a workgroup would go round its loops too often, were all of those that it settles open.
    let longer = Layout::dense(3, 30_000).unwrap();
    let wide = Tuning {
        workgroup: 128.min(gpu.device().limits().max_compute_invocations_per_workgroup),
        ..tiled.clone()
    };
    let wide = Tuning { tile: 1 << 13, subgroups: false, ..wide };
    assert_eq!(kernels(&wide, &longer, &fixed), ["norms_tiles", "norms_few", "exact_few", "clip"]);
    // Two rows to a portion.
    let portion = ["norms_tiles", "norms_spans", "exact_tiles", "exact_spans", "clip"];
    let grouped = Tuning { few_tiles: 0, ..grouped };
    assert_eq!(kernels(&grouped, &layout, &fixed), portion.repeat(13));
    // Rows of many tiles, and rows in more than one window, are summed exactly by more than a workgroup each.
    let norms = ["norms_tiles", "norms_spans", "exact_tiles", "exact_spans"];
    let long = Layout::dense(2, 17 * 256).unwrap();
    assert_eq!(kernels(&Tuning { few_tiles: 0, ..tiled.clone() }, &long, &fixed)[..4], norms);
    let window = Tuning { window: 16 << 10, ..tiled };
    let of_windows = kernels(&window, &layout, &fixed);
    assert_eq!(of_windows.iter().filter(|kernel| **kernel == "exact_tiles").count(), 2);
}

#[test]
fn a_recording_is_right_under_clippings_that_come_later_or_clips_nothing_and_is_refused() {
    let Some(gpu) = gpu() else { return };
    let layouts = [
        Layout::dense(25, 1003).unwrap(),
        Layout::strided(25, 700, 709).unwrap(),
        Layout::ragged(&(0..26).map(|i| i * 400 + i * i).collect::<Vec<_>>()).unwrap(),
    ];
    // Recordings without a threshold stage are for these alone.
    let decide_by_row = |clipping: &Clipping| {
        matches!(clipping.threshold, Threshold::Fixed(_) | Threshold::PerRow(_))
            && clipping.non_finite != NonFinite::Error
    };
    let (mut refused, mut grown) = (0, 0);
    let long = of_long_rows(&gpu);
    let short = Tuning { short_row: 1024, short_rows: 0, tile: 1024, ..long[1].1.clone() };
    for (strategy, tuning) in long.into_iter().chain([(Strategy::Rows, short)]) {
        for exact in [false, true] {
            let gpu = tuned(&gpu, Tuning { force_exact: exact, ..tuning.clone() });
            for (i, layout) in layouts.iter().enumerate() {
                let original = hostile(layout);
                let buffer = buffer_of(&gpu, &original, wgpu::BufferUsages::STORAGE);
                // Whatever it was made for, the others follow.
                let all = clippings(layout.clients());
                let mut plan = gpu.plan(layout, &all[i], &buffer).unwrap();
                assert_eq!(plan.strategy(), strategy);
                let mut recorded_under = &all[i];
                for (j, clipping) in all.iter().enumerate() {
                    let what = format!("{strategy:?}, exact {exact}, layout {i}, clipping {j}");
                    // Workgroups came for the tiles that were in scope; the other strategies have one for each tile.
                    let scopes = (&recorded_under.scope, &clipping.scope);
                    let has_grown = strategy == Strategy::Tiled
                        && matches!(scopes, (Scope::Rows(_), Scope::All))
                        && decide_by_row(recorded_under);
                    let is_refused = decide_by_row(recorded_under) && !decide_by_row(clipping) || has_grown;
                    grown += u32::from(has_grown);
                    plan.poison().unwrap();
                    let restore = || gpu.queue().write_buffer(&buffer, 0, bytemuck::cast_slice(&original));
                    restore();
                    if is_refused {
                        // It finds decisions to clip from the run before.
                        submit(&gpu, |encoder| plan.record(encoder));
                        restore();
                    }
                    // Recorded first, set then.
                    let mut encoder =
                        gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
                    plan.record(&mut encoder);
                    plan.set_clipping(clipping).unwrap();
                    gpu.queue().submit([encoder.finish()]);
                    let mut expected = original.clone();
                    let specified = Reference.run(layout, &mut expected, clipping);
                    if is_refused {
                        refused += 1;
                        assert_eq!(plan.report_blocking(), Err(Error::NotRecorded), "{what}");
                        expected.clone_from(&original);
                    } else {
                        match (plan.report_blocking(), specified) {
                            (Ok(got), Ok(want)) => assert_eq!(rows(&got), rows(&want), "{what}"),
                            (got, want) => assert_eq!(got.err(), want.err(), "{what}"),
                        }
                    }
                    assert!(contents(&gpu, &buffer) == bits(&expected), "{what}: data");
                    recorded_under = clipping;
                    // Once more, recorded under it, on what is clipped now.
                    submit(&gpu, |encoder| plan.record(encoder));
                    let specified = Reference.run(layout, &mut expected, clipping);
                    match (plan.report_blocking(), specified) {
                        (Ok(got), Ok(want)) => assert_eq!(rows(&got), rows(&want), "{what}, again"),
                        (got, want) => assert_eq!(got.err(), want.err(), "{what}, again"),
                    }
                    assert!(contents(&gpu, &buffer) == bits(&expected), "{what}: data of a second run");
                }
            }
        }
    }
    assert!(refused >= 16 && grown == 6, "{refused} {grown}");
}

/// Recorded under the first clipping, submitted under the second.
#[test]
fn only_recordings_without_a_threshold_stage_are_refused_and_so_are_their_means() {
    let Some(gpu) = gpu() else { return };
    let layout = Layout::dense(4, 300).unwrap().layered(&[100, 200]).unwrap();
    let of = |threshold: Threshold, granularity| {
        Clipping { threshold, ..Clipping::default() }.granularity(granularity)
    };
    let median = || Threshold::Median { factor: 0.5 };
    let (fixed, split) = (Threshold::Fixed(0.5), Threshold::SplitEqual(0.5));
    let (row, segment, coordinate) = (Granularity::Row, Granularity::Segment, Granularity::Coordinate);
    let refusing = of(fixed.clone(), coordinate).non_finite(NonFinite::Error);
    for (before, after, is_refused) in [
        (of(fixed.clone(), row), of(median(), row), true),
        (of(split.clone(), row), of(median(), row), true),
        (of(fixed.clone(), coordinate), refusing, true),
        (of(fixed.clone(), segment), of(median(), segment), false),
        (of(split, segment), of(fixed.clone(), segment), false),
        (of(median(), row), of(fixed.clone(), row), false),
        (of(fixed, row), Clipping::per_row(vec![0.1; 4]), false),
    ] {
        let what = format!("{before:?}, {after:?}");
        let original = updates(&layout);
        let buffer = buffer_of(&gpu, &original, wgpu::BufferUsages::STORAGE);
        let mut plan = gpu.plan(&layout, &before, &buffer).unwrap();
        let mean = plan.mean(&Weights::Equal).unwrap();
        submit(&gpu, |encoder| plan.record(encoder));
        gpu.queue().write_buffer(&buffer, 0, bytemuck::cast_slice(&original));
        let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        plan.record(&mut encoder);
        mean.record(&mut encoder);
        plan.set_clipping(&after).unwrap();
        gpu.queue().submit([encoder.finish()]);
        let mut expected = original.clone();
        let report = Reference.run(&layout, &mut expected, &after).unwrap();
        assert!(report.count(Status::Clipped) > 0, "{what}");
        if is_refused {
            assert_eq!(plan.report_blocking(), Err(Error::NotRecorded), "{what}");
            assert_eq!(mean.read_blocking(), Err(Error::NotRecorded), "{what}");
            expected = original;
        } else {
            assert_eq!(rows(&plan.report_blocking().unwrap()), rows(&report), "{what}");
            mean.read_blocking().unwrap();
        }
        assert!(contents(&gpu, &buffer) == bits(&expected), "{what}: data");
    }
}

#[test]
fn workgroups_come_for_the_tiles_in_scope_alone() {
    let Some(gpu) = gpu() else { return };
    let [_, (_, tiled), _] = of_long_rows(&gpu);
    let gpu = tuned(&gpu, tiled);
    // Of one to five tiles, and one without any.
    let layout = Layout::ragged(&[0, 200, 700, 700, 1_600, 2_800, 2_801]).unwrap();
    let of = |rows: &[usize]| Clipping::fixed(0.5).scope(Scope::Rows(rows.to_vec()));
    let original = updates(&layout);
    let buffer = buffer_of(&gpu, &original, wgpu::BufferUsages::STORAGE);
    for (before, after, tiles, is_refused) in [
        (of(&[1, 3]), of(&[1, 3]), 6, false),
        (of(&[3]), of(&[5, 0, 1]), 4, false),
        (of(&[3, 5]), of(&[4]), 5, false),
        (of(&[4]), of(&[]), 5, false),
        (of(&[2]), of(&[2]), 1, false),
        (of(&[2]), of(&[5]), 1, false),
        (Clipping::fixed(0.5), of(&[4]), 13, false),
        (of(&[0]), of(&[1]), 1, true),
        (of(&[]), of(&[0, 5]), 1, true),
        (of(&[0, 1, 2, 3, 4]), Clipping::fixed(0.5), 12, true),
    ] {
        let what = format!("{:?}, {:?}", before.scope, after.scope);
        gpu.queue().write_buffer(&buffer, 0, bytemuck::cast_slice(&original));
        let mut plan = gpu.plan(&layout, &before, &buffer).unwrap();
        plan.poison().unwrap();
        for kernel in ["norms_tiles", "clip"] {
            let dispatch = plan.dispatches().find(|dispatch| dispatch.kernel == kernel).unwrap();
            assert_eq!(dispatch.workgroups, (tiles, 1), "{what}: {kernel}");
        }
        let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        plan.record(&mut encoder);
        plan.set_clipping(&after).unwrap();
        gpu.queue().submit([encoder.finish()]);
        let mut expected = original.clone();
        let specified = Reference.run(&layout, &mut expected, &after).unwrap();
        if is_refused {
            assert_eq!(plan.report_blocking(), Err(Error::NotRecorded), "{what}");
            assert!(contents(&gpu, &buffer) == bits(&original), "{what}");
            submit(&gpu, |encoder| plan.record(encoder));
        }
        assert_eq!(rows(&plan.report_blocking().unwrap()), rows(&specified), "{what}");
        assert!(contents(&gpu, &buffer) == bits(&expected), "{what}");
    }
}

#[test]
fn nothing_is_decided_behind_a_run_that_was_refused() {
    let Some(gpu) = gpu() else { return };
    let [_, (_, tiled), _] = of_long_rows(&gpu);
    let gpu = tuned(&gpu, tiled);
    let layout = Layout::dense(3, 600).unwrap();
    let buffer = buffer_of(&gpu, &updates(&layout), wgpu::BufferUsages::STORAGE);
    let mut plan = gpu.plan(&layout, &Clipping::fixed(0.5).scope(Scope::Rows(vec![0])), &buffer).unwrap();
    let mean = plan.mean(&Weights::Equal).unwrap();
    let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    plan.record(&mut encoder);
    plan.record_threshold(&mut encoder);
    mean.record(&mut encoder);
    plan.set_clipping(&Clipping::fixed(0.5)).unwrap();
    gpu.queue().submit([encoder.finish()]);
    assert_eq!(plan.report_blocking(), Err(Error::NotRecorded));
    assert_eq!(mean.read_blocking(), Err(Error::NotRecorded));
}

/// A portion of nothing but empty rows has no tile, and no window.
#[test]
fn portions_without_a_tile_decide_their_rows_too() {
    let Some(gpu) = gpu() else { return };
    let [.., (_, grouped)] = of_long_rows(&gpu);
    let layout = Layout::ragged(&[0, 0, 4000, 4000, 9000, 9000]).unwrap();
    for exact in [false, true] {
        let gpu = tuned(&gpu, Tuning { force_exact: exact, ..grouped.clone() });
        for clipping in clippings(layout.clients()) {
            let original = updates(&layout);
            let buffer = buffer_of(&gpu, &original, wgpu::BufferUsages::STORAGE);
            let plan = gpu.plan(&layout, &clipping, &buffer).unwrap();
            assert_eq!(plan.strategy(), Strategy::Grouped);
            for round in 0..2 {
                let what = format!("exact {exact}, {clipping:?}, round {round}");
                plan.poison().unwrap();
                gpu.queue().write_buffer(&buffer, 0, bytemuck::cast_slice(&original));
                submit(&gpu, |encoder| plan.record(encoder));
                let mut expected = original.clone();
                let specified = Reference.run(&layout, &mut expected, &clipping);
                match (plan.report_blocking(), specified) {
                    (Ok(got), Ok(want)) => assert_eq!(rows(&got), rows(&want), "{what}"),
                    (got, want) => assert_eq!(got.err(), want.err(), "{what}"),
                }
                assert!(contents(&gpu, &buffer) == bits(&expected), "{what}: data");
            }
        }
    }
}

#[test]
fn thresholds_that_remember_go_on_from_round_to_round_in_every_strategy() {
    let Some(gpu) = gpu() else { return };
    let layout = Layout::strided(25, 700, 709).unwrap();
    let adaptive = Adaptive { initial: 1.0, target: 0.5, rate: 0.7, ..Adaptive::default() };
    for (strategy, tuning) in of_long_rows(&gpu) {
        let gpu = tuned(&gpu, tuning);
        for threshold in [Threshold::Adaptive(adaptive), Threshold::History { window: 2, factor: 0.8 }] {
            let clipping = Clipping { threshold, ..Clipping::default() };
            let buffer = buffer_of(&gpu, &vec![0.0; layout.len()], wgpu::BufferUsages::STORAGE);
            let plan = gpu.plan(&layout, &clipping, &buffer).unwrap();
            assert_eq!(plan.strategy(), strategy);
            let mut state = State::default();
            for round in 0..4u8 {
                let what = format!("{strategy:?}, {:?}, round {round}", clipping.threshold);
                let mut expected = hostile(&layout);
                expected.iter_mut().for_each(|value| *value *= 0.5f32.powi(round.into()));
                gpu.queue().write_buffer(&buffer, 0, bytemuck::cast_slice(&expected));
                submit(&gpu, |encoder| plan.record(encoder));
                let want = Reference.run_with(&layout, &mut expected, &clipping, &mut state).unwrap();
                assert_eq!(rows(&plan.report_blocking().unwrap()), rows(&want), "{what}");
                assert!(contents(&gpu, &buffer) == bits(&expected), "{what}: data");
                assert_eq!(plan.state_blocking().unwrap(), state, "{what}");
            }
        }
    }
}

#[test]
fn stages_recorded_one_by_one_do_only_their_own_work() {
    let Some(gpu) = gpu() else { return };
    let layout = Layout::dense(25, 1003).unwrap();
    for (strategy, tuning) in of_long_rows(&gpu) {
        let gpu = tuned(&gpu, tuning);
        let original = hostile(&layout);
        let buffer = buffer_of(&gpu, &original, wgpu::BufferUsages::STORAGE);
        let plan = gpu.plan(&layout, &Clipping::fixed(1.5), &buffer).unwrap();
        plan.poison().unwrap();
        submit(&gpu, |encoder| plan.record_norms(encoder));
        submit(&gpu, |encoder| plan.record_threshold(encoder));
        assert!(contents(&gpu, &buffer) == bits(&original), "{strategy:?}");
        let mut expected = original;
        let specified = Reference.run(&layout, &mut expected, &Clipping::fixed(1.5)).unwrap();
        assert_eq!(rows(&plan.report_blocking().unwrap()), rows(&specified), "{strategy:?}");
        submit(&gpu, |encoder| plan.record_clip(encoder));
        assert!(contents(&gpu, &buffer) == bits(&expected), "{strategy:?}");
    }
}

#[test]
fn halves_have_the_same_bits_in_every_strategy() {
    let Some(gpu) = gpu() else { return };
    let layout = Layout::strided(25, 701, 704).unwrap();
    for (strategy, tuning) in of_long_rows(&gpu) {
        let gpu = tuned(&gpu, Tuning { group_bytes: tuning.group_bytes / 2, ..tuning });
        for half in [Half::F16, Half::Bf16] {
            // Every pattern of bits in turn, but NaN and Inf in a third of the rows only.
            let original: Vec<u16> = (0..layout.len())
                .map(|i| {
                    let bits = (i as u32).wrapping_mul(0x9e37_79b9) >> 16;
                    if i / 704 % 3 == 0 { bits as u16 } else { (bits & 0xbbff) as u16 }
                })
                .collect();
            for clipping in clippings(layout.clients()) {
                let (mut got, mut want) = (original.clone(), original.clone());
                let report = gpu.run_half(&layout, half, &mut got, &clipping);
                let specified = Reference.run_half(&layout, half, &mut want, &clipping);
                match (report, specified) {
                    (Ok(report), Ok(specified)) => {
                        assert_eq!(rows(&report), rows(&specified), "{strategy:?} {half:?}");
                    }
                    (report, specified) => assert_eq!(report.err(), specified.err()),
                }
                assert!(got == want, "{strategy:?} {half:?} {clipping:?}");
            }
        }
    }
}

/// Batches of several pieces, with runs that lie alone, near each other and far apart.
#[test]
fn host_batches_travel_in_pieces_and_nothing_between_their_rows_is_touched() {
    let Some(gpu) = gpu() else { return };
    let layouts = [
        Layout::strided(90_000, 97, 101).unwrap(),
        // Rows longer than a piece, and a short one between them.
        Layout::ragged(&[1, 4_300_000, 4_300_013, 13_000_001]).unwrap(),
    ];
    for (layout, every) in layouts.iter().flat_map(|layout| [1, 3, 4000].map(|every| (layout, every))) {
        let scope = Scope::Rows((0..layout.clients()).step_by(every).collect());
        let clipping = Clipping::fixed(1.5).scope(scope);
        let before = updates(layout);
        let (mut on_gpu, mut on_cpu) = (before.clone(), before);
        let got = gpu.run(layout, &mut on_gpu, &clipping).unwrap();
        let want = byzclip::Cpu::new().unwrap().run(layout, &mut on_cpu, &clipping).unwrap();
        assert!(want.count(Status::Clipped) > 0);
        assert!(rows(&got) == rows(&want), "one of {every} rows");
        let differs = on_gpu.iter().zip(&on_cpu).position(|(a, b)| a.to_bits() != b.to_bits());
        assert_eq!(differs, None, "one of {every} rows");
    }
}

#[test]
fn a_batch_beyond_one_binding_is_split_in_windows() {
    let Some(gpu) = gpu() else { return };
    // 160 MB; a row of 100 MB and one of 60 MB.
    let layout = Layout::ragged(&[0, 25_000_001, 40_000_000]).unwrap();
    let binding = gpu.device().limits().max_storage_buffer_binding_size;
    let tuning = Tuning { window: (128 << 20) / 4, ..gpu.tuning().clone() };
    assert!(layout.len() as u64 * 4 > tuning.window * 4 && tuning.window * 4 <= binding);
    let gpu = gpu.with_tuning(tuning).unwrap();
    assert_same_as_reference(&gpu, &layout, &Clipping::fixed(2.0), "two windows");
}

#[test]
fn more_workgroups_than_one_dimension_holds_are_folded() {
    let Some(gpu) = gpu() else { return };
    let layout = Layout::dense(70_000, 3).unwrap();
    assert_same_as_reference(&gpu, &layout, &Clipping::fixed(0.9), "70,000 rows");
}

/// The plan of the last shape is kept, but not under another tuning.
#[test]
fn a_new_tuning_is_taken_for_the_shape_that_was_there_before() {
    let Some(gpu) = gpu() else { return };
    let layout = Layout::dense(12, 101).unwrap();
    let strategy = |gpu: &Gpu| {
        let report = gpu.run(&layout, &mut updates(&layout), &Clipping::fixed(0.7)).unwrap();
        report.ran.strategy
    };
    let rows = Tuning { short_row: 128, short_rows: 1, fused_row: 0, group_bytes: 0, ..gpu.tuning().clone() };
    let gpu = gpu.with_tuning(rows.clone()).unwrap();
    assert_eq!(strategy(&gpu), Some(Strategy::Rows));
    let gpu = gpu.with_tuning(Tuning { short_row: 0, ..rows }).unwrap();
    assert_eq!(strategy(&gpu), Some(Strategy::Tiled));
}

#[test]
fn stages_called_one_by_one_give_what_one_call_gives() {
    let Some(gpu) = gpu() else { return };
    let layout = Layout::strided(12, 101, 104).unwrap().layered(&[100, 1]).unwrap();
    for granularity in [Granularity::Row, Granularity::Segment, Granularity::Coordinate] {
        let clipping = Clipping::fixed(0.7).granularity(granularity).scope(Scope::Rows(vec![0, 1, 3, 4, 9]));
        let mut expected = updates(&layout);
        let report = Reference.run(&layout, &mut expected, &clipping).unwrap();

        let mut data = updates(&layout);
        let norms = gpu.norms(&layout, &data, &clipping).unwrap();
        assert_eq!(norms, Reference.norms(&layout, &data, &clipping).unwrap());
        let decisions = gpu.threshold(&layout, &norms, &clipping, &mut State::default()).unwrap();
        assert_eq!(
            decisions,
            Reference.threshold(&layout, &norms, &clipping, &mut State::default()).unwrap()
        );
        gpu.clip(&layout, &mut data, &clipping, &decisions).unwrap();
        assert!(bits(&data) == bits(&expected));
        assert_eq!(report.count(Status::OutOfScope), 7);
    }
}

#[test]
fn a_plan_clips_the_callers_buffer_in_the_callers_encoder() {
    let Some(gpu) = gpu() else { return };
    // An odd stride: rows begin at any element, padding is poisoned and must survive.
    let layout = Layout::strided(18, 1001, 1003).unwrap();
    let mut expected = updates(&layout);
    let buffer = buffer_of(&gpu, &expected, wgpu::BufferUsages::STORAGE);
    let clipping = Clipping::fixed(2.0).scope(Scope::Rows((0..18).filter(|r| r % 5 != 0).collect()));
    let specified = Reference.run(&layout, &mut expected, &clipping).unwrap();

    let plan = gpu.plan(&layout, &clipping, &buffer).unwrap();
    plan.poison().unwrap();
    submit(&gpu, |encoder| plan.record(encoder));

    assert!(contents(&gpu, &buffer) == bits(&expected));
    assert_eq!(rows(&plan.report_blocking().unwrap()), rows(&specified));
}

#[test]
fn scratch_of_any_content_changes_nothing() {
    let Some(gpu) = gpu() else { return };
    let layout = Layout::dense(30, 500).unwrap();
    for force_exact in [false, true] {
        let tuning = Tuning { force_exact, ..gpu.tuning().clone() };
        let gpu =
            Gpu::from_device(gpu.device().clone(), gpu.queue().clone()).unwrap().with_tuning(tuning).unwrap();
        let original = updates(&layout);
        let mut expected = original.clone();
        let specified = Reference.run(&layout, &mut expected, &Clipping::default()).unwrap();
        let buffer = buffer_of(&gpu, &original, wgpu::BufferUsages::STORAGE);
        let plan = gpu.plan(&layout, &Clipping::default(), &buffer).unwrap();
        for _ in 0..2 {
            gpu.queue().write_buffer(&buffer, 0, bytemuck::cast_slice(&original));
            plan.poison().unwrap();
            submit(&gpu, |encoder| plan.record(encoder));
            assert_eq!(rows(&plan.report_blocking().unwrap()), rows(&specified));
            assert!(contents(&gpu, &buffer) == bits(&expected));
        }
    }
}

#[test]
fn two_plans_share_one_submission() {
    let Some(gpu) = gpu() else { return };
    let layout = Layout::dense(6, 256).unwrap();
    let original = updates(&layout);
    let buffers = [0, 1].map(|_| buffer_of(&gpu, &original, wgpu::BufferUsages::STORAGE));
    let clippings = [Clipping::fixed(0.5), Clipping::fixed(3.5)];
    let plans: Vec<Plan> =
        clippings.iter().zip(&buffers).map(|(c, b)| gpu.plan(&layout, c, b).unwrap()).collect();
    submit(&gpu, |encoder| plans.iter().for_each(|plan| plan.record(encoder)));
    for ((plan, clipping), buffer) in plans.iter().zip(&clippings).zip(&buffers) {
        let mut expected = original.clone();
        let specified = Reference.run(&layout, &mut expected, clipping).unwrap();
        assert_eq!(rows(&plan.report_blocking().unwrap()), rows(&specified));
        assert!(contents(&gpu, buffer) == bits(&expected));
    }
}

#[test]
fn the_report_arrives_asynchronously_while_its_owner_polls_the_device() {
    let Some(gpu) = gpu() else { return };
    let layout = Layout::dense(6, 256).unwrap();
    let buffer = buffer_of(&gpu, &updates(&layout), wgpu::BufferUsages::STORAGE);
    let plan = gpu.plan(&layout, &Clipping::default(), &buffer).unwrap();
    submit(&gpu, |encoder| plan.record(encoder));
    let blocking = rows(&plan.report_blocking().unwrap());
    let done = std::sync::atomic::AtomicBool::new(false);
    let report = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Acquire) {
                gpu.device().poll(wgpu::PollType::Poll).unwrap();
                std::thread::yield_now();
            }
        });
        let report = pollster::block_on(plan.report());
        done.store(true, std::sync::atomic::Ordering::Release);
        report.unwrap()
    });
    assert_eq!(rows(&report), blocking);
}

#[test]
fn a_report_that_is_dropped_halfway_does_not_spoil_the_next() {
    let Some(gpu) = gpu() else { return };
    let layout = Layout::dense(6, 256).unwrap();
    let buffer = buffer_of(&gpu, &updates(&layout), wgpu::BufferUsages::STORAGE);
    let plan = gpu.plan(&layout, &Clipping::default(), &buffer).unwrap();
    submit(&gpu, |encoder| plan.record(encoder));
    for _ in 0..3 {
        let mut report = Box::pin(plan.report());
        let waker = std::task::Waker::noop();
        let first = report.as_mut().poll(&mut std::task::Context::from_waker(waker));
        drop((first, report));
        assert_eq!(plan.report_blocking().unwrap().rows.len(), 6);
    }
}

#[test]
fn a_new_clipping_takes_effect_with_the_next_submission() {
    let Some(gpu) = gpu() else { return };
    let layout = Layout::dense(5, 64).unwrap();
    let original = updates(&layout);
    let buffer = buffer_of(&gpu, &original, wgpu::BufferUsages::STORAGE);
    let mut plan = gpu.plan(&layout, &Clipping::fixed(f32::INFINITY), &buffer).unwrap();
    submit(&gpu, |encoder| plan.record(encoder));
    assert_eq!(plan.report_blocking().unwrap().count(Status::Clipped), 0);
    plan.set_clipping(&Clipping::per_row(vec![0.0, 1.0, 1e-38, 2.0, 0.1])).unwrap();
    submit(&gpu, |encoder| plan.record(encoder));
    let report = plan.report_blocking().unwrap();
    assert_eq!(report.rows[3].bound, Some(2.0));
    assert_eq!(report.count(Status::Clipped), 4);
    assert!(matches!(
        plan.set_clipping(&Clipping::default().granularity(Granularity::Segment)),
        Err(Error::Layout { .. })
    ));
}

#[test]
fn the_error_policy_leaves_the_callers_buffer_as_it_is() {
    let Some(gpu) = gpu() else { return };
    let layout = Layout::dense(6, 100).unwrap();
    let original = updates(&layout);
    let buffer = buffer_of(&gpu, &original, wgpu::BufferUsages::STORAGE);
    let clipping = Clipping::fixed(0.1).non_finite(NonFinite::Error);
    let plan = gpu.plan(&layout, &clipping, &buffer).unwrap();
    submit(&gpu, |encoder| plan.record(encoder));
    assert_eq!(plan.report_blocking(), Err(Error::NonFinite { row: 4 }));
    assert!(contents(&gpu, &buffer) == bits(&original));

    let mut data = original.clone();
    assert_eq!(gpu.run(&layout, &mut data, &clipping), Err(Error::NonFinite { row: 4 }));
    assert!(bits(&data) == bits(&original));
}

#[test]
fn a_device_with_webgpu_baseline_limits_and_no_features_is_enough() {
    let Some(adapter) = adapter() else { return };
    let descriptor =
        wgpu::DeviceDescriptor { required_limits: wgpu::Limits::defaults(), ..Default::default() };
    let (device, queue) = pollster::block_on(adapter.request_device(&descriptor)).unwrap();
    let gpu = Gpu::from_device(device, queue).unwrap();
    assert!(!gpu.tuning().subgroups);
    let layout = Layout::dense(12, 5000).unwrap();
    assert_same_as_reference(&gpu, &layout, &Clipping::fixed(2.0), "baseline");
}

/// A device with buffers of at most this many bytes.
fn with_buffers_of(bytes: u64) -> Option<Gpu> {
    with_limits(bytes, bytes)
}

/// A device with buffers of at most so many bytes, and bindings of so many.
fn with_limits(buffer: u64, binding: u64) -> Option<Gpu> {
    let limits = wgpu::Limits {
        max_buffer_size: buffer,
        max_storage_buffer_binding_size: binding,
        ..wgpu::Limits::defaults()
    };
    let descriptor = wgpu::DeviceDescriptor { required_limits: limits, ..Default::default() };
    let (device, queue) = pollster::block_on(adapter()?.request_device(&descriptor)).unwrap();
    Some(Gpu::from_device(device, queue).unwrap())
}

#[test]
fn a_batch_that_no_buffer_holds_is_clipped_in_pieces() {
    let Some(gpu) = with_buffers_of(1 << 20) else { return };
    let layouts = [
        Layout::strided(37, 33_333, 33_340).unwrap(),
        Layout::strided(37, 33_333, 33_340).unwrap().layered(&[3, 30_000, 0, 3_330]).unwrap(),
        Layout::ragged(&(0..40).map(|row| 7 + row * 31_111).collect::<Vec<_>>()).unwrap(),
        // Rows that no buffer holds, among others, and alone; their segments too, or only one of them.
        Layout::ragged(&[3, 100_003, 400_004, 500_000, 500_000, 800_003]).unwrap(),
        Layout::strided(3, 300_001, 300_005).unwrap(),
        Layout::ragged_layered(&[vec![9, 30_000], vec![150_000, 0, 150_001], vec![300_001, 5], vec![70_000]])
            .unwrap(),
        // As many segments as no buffer has exact sums for.
        Layout::ragged_layered(&[vec![3; 40], vec![2; 7_000], vec![5; 50]]).unwrap(),
    ];
    let thresholds = [
        Threshold::Fixed(2.0),
        Threshold::Median { factor: 1.0 },
        Threshold::Arc { byzantine: 5 },
        Threshold::SplitEqual(3.0),
    ];
    for layout in &layouts {
        let rows = layout.clients();
        let per_row = Threshold::PerRow((0..rows).map(|row| row as f32 * 0.7).collect());
        for threshold in thresholds.iter().chain([&per_row]) {
            for granularity in [Granularity::Row, Granularity::Segment, Granularity::Coordinate] {
                let scope = Scope::Mask((0..rows).map(|row| row % 5 != 2).collect());
                let clipping = Clipping { threshold: threshold.clone(), ..Clipping::default() };
                let clipping = clipping.granularity(granularity).scope(scope);
                let report = assert_same_bits_as_reference(&gpu, layout, &clipping, "in pieces");
                // The segments of the last layout are too many only where they have norms.
                let fits = granularity != Granularity::Segment && layout.len() < 100_000;
                assert_eq!(report.ran.why.contains("piece"), !fits, "{}", report.ran);
            }
        }
    }
    let report_of = |layout: &Layout| gpu.run(layout, &mut updates(layout), &Clipping::fixed(2.0)).unwrap();
    let told = report_of(&layouts[3]).ran;
    assert!(told.why.ends_with("the batch; 2 rows, too large for them, on the CPU"), "{told}");
    assert!(told.why.contains("in 4 pieces") && told.strategy.is_some(), "{told}");
    let told = report_of(&Layout::dense(1, 300_001).unwrap()).ran;
    assert!(told.why.contains("in 1 piece, ") && told.why.contains("; 1 row, too large"), "{told}");
    assert_eq!(told.strategy, None);
    let layout = &layouts[0];
    let mut data = updates(layout);
    let report = gpu.run(layout, &mut data, &Clipping::fixed(2.0)).unwrap();
    assert!(report.ran.why.contains("in 6 pieces"), "{}", report.ran);
    let center: Vec<f32> = (0..33_333).map(|i| i as f32 * 1e-3).collect();
    assert_same_as_reference(
        &gpu,
        layout,
        &Clipping::fixed(2.0).around(center),
        "in pieces, around a centre",
    );

    // A row that is refused is one of the whole batch, and nothing is written; nor is it where the caller is wrong.
    let original = updates(layout);
    let hostile = original.iter().position(|value| !value.is_finite()).unwrap() / 33_340;
    for (clipping, error) in [
        (Clipping::fixed(0.1).non_finite(NonFinite::Error), Error::NonFinite { row: hostile }),
        (Clipping::per_row(vec![0.1; 36]), Error::BoundCount { got: 36, expected: 37 }),
        (Clipping::fixed(0.1).scope(Scope::Rows(vec![37])), Error::RowOutOfRange { row: 37, clients: 37 }),
    ] {
        let mut data = original.clone();
        assert_eq!(gpu.run(layout, &mut data, &clipping), Err(error));
        assert!(bits(&data) == bits(&original));
    }
    assert!(gpu.norms(layout, &original, &Clipping::per_row(vec![0.1; 36])).is_ok());
}

#[test]
fn the_mean_of_a_batch_that_no_buffer_holds_is_taken_by_columns() {
    let Some(gpu) = with_buffers_of(1 << 20) else { return };
    let layouts = [
        Layout::strided(37, 33_333, 33_340).unwrap(),
        Layout::strided(37, 33_333, 33_340).unwrap().layered(&[3, 30_000, 0, 330, 3_000]).unwrap(),
        // Rows that no buffer holds.
        Layout::strided(4, 300_001, 300_005).unwrap(),
        Layout::dense(3, 300_001).unwrap().layered(&[3, 270_000, 0, 29_998]).unwrap(),
    ];
    for layout in &layouts {
        let rows_of = |value: fn(usize) -> f32| (0..layout.clients()).map(value).collect();
        let weights = Weights::PerRow(rows_of(|row| (row % 4) as f32));
        let data = updates(layout);
        for threshold in [Threshold::Fixed(2.0), Threshold::Median { factor: 1.0 }] {
            for granularity in [Granularity::Row, Granularity::Segment, Granularity::Coordinate] {
                let scope = Scope::Mask((0..layout.clients()).map(|row| row % 5 != 2).collect());
                let clipping = Clipping { threshold: threshold.clone(), ..Clipping::default() };
                let clipping = clipping.granularity(granularity).scope(scope);
                let (ours, report) = gpu.run_mean(layout, &data, &clipping, &weights).unwrap();
                let (expected, specified) = Reference.run_mean(layout, &data, &clipping, &weights).unwrap();
                assert!(bits(&ours) == bits(&expected), "{clipping:?}");
                assert_eq!(rows(&report), rows(&specified));
                assert!(report.ran.why.contains("pieces"), "{}", report.ran);
            }
        }
        let center: Vec<f32> = (0..layout.params()).map(|i| i as f32 * 1e-3).collect();
        let clipping = Clipping::fixed(2.0).around(center.clone());
        let (ours, _) = gpu.run_mean(layout, &data, &clipping, &weights).unwrap();
        assert!(bits(&ours) == bits(&Reference.run_mean(layout, &data, &clipping, &weights).unwrap().0));
        // Where nothing counts, the mean is the centre.
        let nothing = Weights::PerRow(rows_of(|_| 0.0));
        assert!(bits(&gpu.run_mean(layout, &data, &clipping, &nothing).unwrap().0) == bits(&center));
    }
    // Where a strip has several windows, its sums wait between them: they take a binding of their own.
    let tuning = Tuning { window: 1 << 16, ..gpu.tuning().clone() };
    let gpu = gpu.with_tuning(tuning).unwrap();
    let data = updates(&layouts[0]);
    let (ours, _) = gpu.run_mean(&layouts[0], &data, &Clipping::fixed(2.0), &Weights::Equal).unwrap();
    let (expected, _) =
        Reference.run_mean(&layouts[0], &data, &Clipping::fixed(2.0), &Weights::Equal).unwrap();
    assert!(bits(&ours) == bits(&expected));

    // Whether a row counts is told by its first segment, also where a caller decides otherwise of others.
    let (layout, clipping) = (&layouts[1], Clipping::fixed(2.0).granularity(Granularity::Segment));
    let data = updates(layout);
    let norms = Reference.norms(layout, &data, &clipping).unwrap();
    let mut decisions = Reference.threshold(layout, &norms, &clipping, &mut State::default()).unwrap();
    decisions[1].status = Status::Zeroed;
    decisions[5].status = Status::Kept;
    let ours = gpu.mean(layout, &data, &clipping, &decisions, &Weights::Equal).unwrap();
    let expected = Reference.mean(layout, &data, &clipping, &decisions, &Weights::Equal).unwrap();
    assert!(bits(&ours) == bits(&expected));
}

/// As with WebGPU's default limits: what is bound whole, the centre and the mean, may be too long where the batch is not.
#[test]
fn centres_and_means_that_no_binding_holds_are_no_limit() {
    let Some(gpu) = with_limits(8 << 20, 1 << 20) else { return };
    let center = |params: usize| (0..params).map(|i| i as f32 * 1e-3).collect::<Vec<_>>();
    for (rows_and_params, centered) in [
        ((3, 262_145), false),
        ((2, 300_001), true),
        ((5, 140_000), true),
        ((5, 131_000), true),
        ((9, 262_140), true),
    ] {
        let layout = Layout::dense(rows_and_params.0, rows_and_params.1).unwrap();
        let clipping = Clipping::fixed(2.0);
        let clipping = if centered { clipping.around(center(layout.params())) } else { clipping };
        let what = format!("{rows_and_params:?}");
        assert_same_bits_as_reference(&gpu, &layout, &clipping, &what);
        let data = updates(&layout);
        let (ours, report) = gpu.run_mean(&layout, &data, &clipping, &Weights::Equal).unwrap();
        let (expected, specified) = Reference.run_mean(&layout, &data, &clipping, &Weights::Equal).unwrap();
        assert!(bits(&ours) == bits(&expected), "{what}");
        assert_eq!(rows(&report), rows(&specified), "{what}");
        // Where the centre is too long too, rows are the CPU's.
        let is_on_device = !centered || layout.params() <= 131_072;
        assert_eq!(report.ran.why.contains("no binding holds the mean"), is_on_device, "{}", report.ran);
        let norms = gpu.norms(&layout, &data, &clipping).unwrap();
        assert_eq!(norms, Reference.norms(&layout, &data, &clipping).unwrap(), "{what}");
        let decisions = Reference.threshold(&layout, &norms, &clipping, &mut State::default()).unwrap();
        let ours = gpu.mean(&layout, &data, &clipping, &decisions, &Weights::Equal).unwrap();
        assert!(bits(&ours) == bits(&expected), "{what}");
    }
}

/// More segments than there may be tiles of a row, and long ones beside many.
#[test]
fn rows_of_any_number_of_segments_have_the_bits_of_the_reference() {
    let Some(gpu) = gpu() else { return };
    let many = Layout::ragged_layered(&[vec![500; 3], vec![1; 66_000], vec![2; 40]]).unwrap();
    let clipping = Clipping::fixed(1.5).granularity(Granularity::Segment);
    let report = assert_same_bits_as_reference(&gpu, &many, &clipping, "many segments");
    assert!(report.ran.why.contains("; 1 row, too large"), "{}", report.ran);
    // Tiles as long as the row's length asks for.
    let gpu = tuned(&gpu, Tuning { tile: 64, short_row: 0, ..gpu.tuning().clone() });
    let long = Layout::ragged_layered(&[vec![400_000; 11], vec![3; 20]]).unwrap();
    assert_same_bits_as_reference(&gpu, &long, &clipping, "long segments");
}

#[test]
fn the_mean_of_more_rows_than_a_buffer_holds_exact_sums_for_is_taken_on_the_host() {
    let Some(gpu) = with_buffers_of(1 << 20) else { return };
    let layout = Layout::dense(7_000, 3).unwrap();
    let (data, clipping) = (updates(&layout), Clipping::fixed(2.0));
    let (ours, report) = gpu.run_mean(&layout, &data, &clipping, &Weights::Equal).unwrap();
    let (expected, specified) = Reference.run_mean(&layout, &data, &clipping, &Weights::Equal).unwrap();
    assert!(bits(&ours) == bits(&expected));
    assert_eq!(rows(&report), rows(&specified));
    assert!(
        report.ran.why.ends_with("; the mean on the CPU, because no buffer holds what is kept of each row")
    );
    let halves: Vec<u16> = data.iter().map(|&value| Half::F16.truncate(value)).collect();
    let (ours, _) = gpu.run_mean_half(&layout, Half::F16, &halves, &clipping, &Weights::Equal).unwrap();
    let (expected, _) =
        Reference.run_mean_half(&layout, Half::F16, &halves, &clipping, &Weights::Equal).unwrap();
    assert!(bits(&ours) == bits(&expected));
}

#[test]
fn a_thresholds_memory_is_kept_over_batches_in_pieces() {
    let Some(gpu) = with_buffers_of(1 << 20) else { return };
    let layout = Layout::dense(12, 50_000).unwrap();
    let clipping =
        Clipping { threshold: Threshold::History { window: 3, factor: 0.9 }, ..Clipping::default() };
    let (mut ours, mut expected) = (State::default(), State::default());
    for _ in 0..3 {
        let (mut got, mut want) = (updates(&layout), updates(&layout));
        let report = gpu.run_with(&layout, &mut got, &clipping, &mut ours).unwrap();
        let specified = Reference.run_with(&layout, &mut want, &clipping, &mut expected).unwrap();
        assert_eq!(rows(&report), rows(&specified));
        assert!(bits(&got) == bits(&want) && ours == expected);
    }
}

#[test]
fn halves_that_no_buffer_holds_are_clipped_in_pieces() {
    let Some(gpu) = with_buffers_of(1 << 20) else { return };
    for (layout, threshold) in [
        (Layout::dense(9, 100_001).unwrap(), Threshold::Fixed(2.0)),
        (Layout::dense(9, 100_001).unwrap(), Threshold::Quantile(0.4)),
        (Layout::ragged(&[1, 100_002, 700_003, 700_010]).unwrap(), Threshold::Fixed(2.0)),
        (Layout::ragged(&[1, 100_002, 700_003, 700_010]).unwrap(), Threshold::Quantile(0.4)),
    ] {
        let original: Vec<u16> = updates(&layout).iter().map(|&value| Half::Bf16.truncate(value)).collect();
        let clipping = Clipping { threshold, ..Clipping::default() };
        let (mut got, mut want) = (original.clone(), original.clone());
        let report = gpu.run_half(&layout, Half::Bf16, &mut got, &clipping).unwrap();
        let specified = Reference.run_half(&layout, Half::Bf16, &mut want, &clipping).unwrap();
        assert_eq!(rows(&report), rows(&specified));
        assert!(got == want, "{clipping:?}");
        assert!(report.ran.why.contains("pieces"), "{}", report.ran);
        let weights = Weights::PerRow((0..layout.clients()).map(|row| row as f32).collect());
        let has_mean = layout.clients() == 9;
        if has_mean {
            let (ours, _) = gpu.run_mean_half(&layout, Half::Bf16, &original, &clipping, &weights).unwrap();
            let (expected, _) =
                Reference.run_mean_half(&layout, Half::Bf16, &original, &clipping, &weights).unwrap();
            assert!(bits(&ours) == bits(&expected), "{clipping:?}");
        }
    }
}

#[test]
fn a_batch_whose_rows_are_too_many_for_one_buffer_is_clipped_in_pieces() {
    let Some(gpu) = with_buffers_of(1 << 20) else { return };
    for layout in
        [Layout::dense(20_000, 8).unwrap(), Layout::dense(4_000, 9).unwrap().layered(&[4, 5]).unwrap()]
    {
        for granularity in [Granularity::Row, Granularity::Segment] {
            let clipping = Clipping::fixed(1.5).granularity(granularity);
            assert_same_bits_as_reference(&gpu, &layout, &clipping, "many rows");
        }
    }
    let report =
        gpu.run(&Layout::dense(20_000, 8).unwrap(), &mut vec![1.0; 160_000], &Clipping::fixed(1.0)).unwrap();
    assert!(report.ran.why.contains("in 4 pieces"), "{}", report.ran);
}

#[test]
fn nothing_is_written_where_a_row_that_no_buffer_holds_is_refused() {
    let Some(gpu) = with_buffers_of(1 << 20) else { return };
    let layout = Layout::ragged(&[0, 200_000, 500_000, 500_100]).unwrap();
    let mut data = vec![1.0; layout.len()];
    data[499_999] = f32::INFINITY;
    let original = data.clone();
    for threshold in [Threshold::Fixed(1.0), Threshold::Quantile(0.0)] {
        let clipping = Clipping { threshold, ..Clipping::default() }.non_finite(NonFinite::Error);
        assert_eq!(gpu.run(&layout, &mut data, &clipping), Err(Error::NonFinite { row: 1 }));
        assert!(bits(&data) == bits(&original));
    }
}

#[test]
fn a_buffer_over_the_limits_of_the_device_is_an_error_that_names_them() {
    let Some(gpu) = with_buffers_of(1 << 20) else { return };
    // What a plan keeps of each row, for a buffer that is the caller's.
    let layout = Layout::dense(7_000, 3).unwrap();
    let buffer = buffer_of(&gpu, &vec![1.0; layout.len()], wgpu::BufferUsages::STORAGE);
    match gpu.plan(&layout, &Clipping::default(), &buffer) {
        Err(Error::BatchTooLarge { what: "the exact sums", got: 1_120_000, limit: 1_048_576, .. }) => {}
        other => panic!("{:?}", other.err()),
    }
    // The device still works.
    assert_same_as_reference(&gpu, &Layout::dense(4, 100).unwrap(), &Clipping::default(), "after the error");
}

#[test]
fn unusable_buffers_are_refused_before_anything_is_recorded() {
    let Some(gpu) = gpu() else { return };
    let layout = Layout::dense(4, 10).unwrap();
    let no_storage = buffer_of(&gpu, &[0.0; 40], wgpu::BufferUsages::empty());
    assert!(matches!(gpu.plan(&layout, &Clipping::default(), &no_storage), Err(Error::Buffer { .. })));
    let short = buffer_of(&gpu, &[0.0; 39], wgpu::BufferUsages::STORAGE);
    assert_eq!(
        gpu.plan(&layout, &Clipping::default(), &short).err(),
        Some(Error::DataTooShort { got: 39, expected: 40 })
    );
}

#[test]
fn a_report_before_the_first_run_is_an_error() {
    let Some(gpu) = gpu() else { return };
    let buffer = buffer_of(&gpu, &[1.0; 40], wgpu::BufferUsages::STORAGE);
    let plan = gpu.plan(&Layout::dense(4, 10).unwrap(), &Clipping::default(), &buffer).unwrap();
    assert_eq!(plan.report_blocking(), Err(Error::NotRecorded));
}

#[test]
fn a_destroyed_device_is_an_error_and_no_panic() {
    let Some(gpu) = gpu() else { return };
    let layout = Layout::dense(4, 100).unwrap();
    let mut data = updates(&layout);
    gpu.run(&layout, &mut data, &Clipping::default()).unwrap();
    gpu.device().destroy();
    let before = bits(&data);
    let error = gpu.run(&layout, &mut data, &Clipping::fixed(0.5)).unwrap_err();
    assert!(matches!(error, Error::DeviceLost { .. } | Error::Gpu { .. }), "{error:?}");
    assert_eq!(bits(&data), before);
    let other = Layout::dense(5, 100).unwrap();
    assert!(gpu.run(&other, &mut vec![1.0; 500], &Clipping::fixed(0.5)).is_err());
}

#[test]
fn empty_batches_run() {
    let Some(gpu) = gpu() else { return };
    for layout in [Layout::dense(0, 5).unwrap(), Layout::dense(3, 0).unwrap(), Layout::ragged(&[0]).unwrap()]
    {
        for granularity in [Granularity::Row, Granularity::Segment, Granularity::Coordinate] {
            let clipping = Clipping::default().granularity(granularity);
            assert_same_as_reference(&gpu, &layout, &clipping, "empty");
        }
    }
}

#[test]
fn tunings_that_the_device_cannot_run_are_refused() {
    let Some(gpu) = gpu() else { return };
    let own = gpu.tuning().clone();
    let wrong = [
        Tuning { workgroup: 100, ..own.clone() },
        Tuning { workgroup: 1 << 20, ..own.clone() },
        Tuning { tile: 0, ..own.clone() },
        Tuning { row_lanes: 3, ..own.clone() },
        Tuning { short_row: 1 << 20, ..own.clone() },
        Tuning { exact_workgroups: 0, ..own.clone() },
        Tuning { stretch: 3, ..own.clone() },
        Tuning { subgroups: true, subgroup_min: 512, ..own.clone() },
        Tuning { streams: 0, ..own.clone() },
        Tuning { fused_row: 1 << 17, ..own.clone() },
        Tuning { window: 10, ..own.clone() },
        Tuning { window: u64::MAX / 8, ..own.clone() },
        Tuning { offset_alignment: 4, ..own },
    ];
    for tuning in wrong {
        let gpu = Gpu::from_device(gpu.device().clone(), gpu.queue().clone()).unwrap();
        assert!(matches!(gpu.with_tuning(tuning.clone()), Err(Error::Setting { .. })), "{tuning:?}");
    }
}

#[test]
fn a_device_whose_fast_sums_are_wrong_is_found_out_and_sums_exactly() {
    let Some(gpu) = gpu() else { return };
    let sound = gpu.ran().why;
    let tuning = Tuning { zero: 1, ..gpu.tuning().clone() };
    let gpu = gpu.with_tuning(tuning).unwrap();
    assert_same_as_reference(&gpu, &Layout::dense(200, 3000).unwrap(), &Clipping::fixed(2.0), "spoiled sums");
    assert!(
        gpu.ran().why.len() > sound.len() && gpu.ran().why.contains("every norm takes"),
        "{}",
        gpu.ran().why
    );
    for (half, name) in [(Half::F16, "every norm of f16 takes"), (Half::Bf16, "every norm of bf16 takes")] {
        let layout = Layout::dense(20, 3000).unwrap();
        let data: Vec<u16> = updates(&layout).iter().map(|&value| half.truncate(value)).collect();
        let got = gpu.norms_half(&layout, half, &data, &Clipping::default()).unwrap();
        assert!(got == Reference.norms_half(&layout, half, &data, &Clipping::default()).unwrap(), "{half:?}");
        assert!(gpu.ran().why.contains(name), "{}", gpu.ran().why);
    }
}

/// In a caller's buffer, where two rows may share a group of four elements; its end too may lie anywhere.
#[test]
fn rows_that_begin_anywhere_have_the_bits_of_the_reference() {
    let Some(gpu) = gpu() else { return };
    let offsets: Vec<usize> = (0..30).map(|row| 5 + row * (row + 1) / 2 * 7).collect();
    let mut layouts = vec![
        Layout::strided(9, 1_050, 1_051).unwrap(),
        Layout::dense(3, 9_001).unwrap(),
        Layout::strided(11, 333, 335).unwrap().layered(&[1, 0, 301, 31]).unwrap(),
        Layout::ragged(&offsets).unwrap(),
    ];
    layouts.extend([1, 2, 3, 5, 7].map(|params| Layout::dense(101, params).unwrap()));
    // Each of the kernels that reach elements, with sums of either kind; compiling them takes most of the time.
    let names = [
        "the device's own",
        "portable",
        "fused",
        "four to a row, in pairs of f32",
        "exact sums in small windows",
    ];
    let chosen: Vec<_> = strategies(&gpu).into_iter().filter(|(name, _)| names.contains(name)).collect();
    assert_eq!(chosen.len(), names.len());
    for (name, tuning) in chosen {
        let tuning = Tuning { loose: gpu.tuning().loose, ..tuning };
        let gpu =
            Gpu::from_device(gpu.device().clone(), gpu.queue().clone()).unwrap().with_tuning(tuning).unwrap();
        for (number, layout) in layouts.iter().enumerate() {
            let mut original = updates(layout);
            // So that the last group is whole in the buffer, but for every fifth layout.
            let behind = if number % 5 == 0 { 0 } else { 4 };
            original.extend((0..behind).map(|i| i as f32));
            let granularity = if number == 2 { Granularity::Segment } else { Granularity::Row };
            let clipping = Clipping::fixed(1.5).granularity(granularity);
            let mut expected = original.clone();
            let specified = Reference.run(layout, &mut expected, &clipping).unwrap();

            let buffer = buffer_of(&gpu, &original, wgpu::BufferUsages::STORAGE);
            let plan = gpu.plan(layout, &clipping, &buffer).unwrap();
            plan.poison().unwrap();
            submit(&gpu, |encoder| plan.record(encoder));
            let report = plan.report_blocking().unwrap();
            assert_eq!(rows(&report), rows(&specified), "{name}, {layout:?}");
            assert!(contents(&gpu, &buffer) == bits(&expected), "{name}, {layout:?}");
        }
    }
}

#[test]
fn a_sound_device_passes_its_check() {
    let Some(gpu) = gpu() else { return };
    for (name, tuning) in strategies(&gpu) {
        let gpu =
            Gpu::from_device(gpu.device().clone(), gpu.queue().clone()).unwrap().with_tuning(tuning).unwrap();
        assert_same_as_reference(&gpu, &Layout::dense(2, 30).unwrap(), &Clipping::fixed(2.0), name);
        assert!(!gpu.ran().why.contains("exact"), "{name}: {}", gpu.ran().why);
    }
}
