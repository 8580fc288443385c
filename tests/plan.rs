//! What a plan costs: one submission, no map, no allocation; and its report, read in every order.
#![cfg(feature = "gpu")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, unsafe_code)]

mod common;

use std::alloc::{GlobalAlloc, Layout as Allocation, System};
use std::cell::Cell;
use std::sync::Mutex;
use std::sync::atomic::Ordering;

use byzclip::backend::gpu::{MAPS, Tuning};
use byzclip::{
    Adaptive, Backend, Clipping, Error, Gpu, Granularity, Layout, NonFinite, Reference, State, Status,
    Threshold, Weights, wgpu,
};
use common::{Rng, assert_same_bits, assert_same_report};

/// Counts what the current thread allocates.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator unchanged; counting touches a thread-local of a type without
// a destructor, which neither allocates nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Allocation) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promises are those that the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Allocation) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Allocation, size: usize) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations(work: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.get();
    work();
    ALLOCATIONS.get() - before
}

/// The tests count what the whole process does, so they run one after the other.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

struct Bench {
    gpu: Gpu,
    layout: Layout,
    data: Vec<f32>,
    buffer: wgpu::Buffer,
}

impl Bench {
    fn new(clients: usize, params: usize) -> Option<Self> {
        let (device, queue) = byzclip::backend::gpu::open(&common::gpu::adapter()?).unwrap();
        let gpu = Gpu::from_device(device, queue).unwrap();
        // The bare calls below clear once, and take steps of one label for one pass.
        let tuning = Tuning { fused_row: 0, group_bytes: 0, ..gpu.tuning().clone() };
        let gpu = gpu.with_tuning(tuning).unwrap();
        let layout =
            Layout::dense(clients, params).unwrap().layered(&[params / 3, params - params / 3]).unwrap();
        let mut rng = Rng::new(clients as u64);
        let data: Vec<f32> =
            (0..layout.len()).map(|i| rng.unit() * if i / params % 4 == 1 { 50.0 } else { 1.0 }).collect();
        let buffer = gpu.device().create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: data.len() as u64 * 4,
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: false,
        });
        let bench = Self { gpu, layout, data, buffer };
        bench.restore();
        Some(bench)
    }

    fn restore(&self) {
        self.gpu.queue().write_buffer(&self.buffer, 0, bytemuck::cast_slice(&self.data));
    }

    fn encoder(&self) -> wgpu::CommandEncoder {
        self.gpu.device().create_command_encoder(&Default::default())
    }

    fn wait(&self) {
        self.gpu.device().poll(wgpu::PollType::wait_indefinitely()).unwrap();
    }

    /// The number of submissions to the queue so far, this one included.
    fn submissions(&self) -> u64 {
        let index = format!("{:?}", self.gpu.queue().submit([]));
        index.split(|c: char| !c.is_ascii_digit()).find(|part| !part.is_empty()).unwrap().parse().unwrap()
    }

    /// Buffers, bind groups, pipelines, shaders and bytes of memory that the device holds.
    fn resources(&self) -> [isize; 6] {
        let hal = self.gpu.device().get_internal_counters().hal;
        [
            hal.buffers.read(),
            hal.bind_groups.read(),
            hal.compute_pipelines.read(),
            hal.shader_modules.read(),
            hal.buffer_memory.read(),
            hal.memory_allocations.read(),
        ]
    }
}

fn every_policy() -> Vec<Clipping> {
    let adaptive = Adaptive { initial: 1.0, target: 0.8, rate: 0.2, ..Adaptive::default() };
    let of = |threshold: Threshold| Clipping { threshold, ..Clipping::default() };
    let policies = vec![
        of(Threshold::Fixed(2.0)),
        of(Threshold::PerRow((0..24).map(|row| row as f32 * 0.2).collect())),
        of(Threshold::Median { factor: 1.0 }),
        of(Threshold::Quantile(0.7)),
        of(Threshold::Adaptive(adaptive)),
        of(Threshold::History { window: 2, factor: 1.0 }),
        of(Threshold::Arc { byzantine: 5 }),
        of(Threshold::SplitEqual(2.0)).granularity(Granularity::Segment),
        of(Threshold::SplitBySize(2.0)).granularity(Granularity::Segment),
    ];
    let segments = policies.clone().into_iter().map(|clipping| clipping.granularity(Granularity::Segment));
    let coordinates = Clipping::fixed(0.5).granularity(Granularity::Coordinate);
    let around = Clipping::fixed(2.0).around(vec![0.25; 300]);
    policies.iter().cloned().chain(segments).chain([coordinates, around]).collect()
}

#[test]
fn three_rounds_of_any_policy_are_one_submission_without_a_map() {
    let _alone = ONE_AT_A_TIME.lock();
    let Some(bench) = Bench::new(24, 300) else { return };
    for clipping in every_policy() {
        bench.restore();
        let plan = bench.gpu.plan(&bench.layout, &clipping, &bench.buffer).unwrap();
        let mean = plan.mean(&Weights::Equal).unwrap();
        let (submissions, maps) = (bench.submissions(), MAPS.load(Ordering::Relaxed));

        let mut encoder = bench.encoder();
        for _ in 0..3 {
            plan.record(&mut encoder);
        }
        mean.record(&mut encoder);
        assert_eq!(bench.submissions(), submissions + 1, "{clipping:?}: recording submitted something");
        bench.gpu.queue().submit([encoder.finish()]);
        bench.wait();
        assert_eq!(bench.submissions(), submissions + 3, "{clipping:?}");
        assert_eq!(MAPS.load(Ordering::Relaxed), maps, "{clipping:?}");

        // All of it happened: three rounds, the state carried from each to the next.
        let (mut want, mut state) = (bench.data.clone(), State::default());
        let mut report = None;
        for _ in 0..3 {
            report = Some(Reference.run_with(&bench.layout, &mut want, &clipping, &mut state).unwrap());
        }
        let mut got = bench.data.clone();
        assert_same_report(&format!("{clipping:?}"), &plan.report_blocking().unwrap(), &report.unwrap());
        assert_eq!(plan.state_blocking().unwrap(), state, "{clipping:?}");
        read(&bench, &mut got);
        assert_same_bits(&format!("{clipping:?}"), &got, &want);
        assert!(MAPS.load(Ordering::Relaxed) > maps, "a report is read by a map");
    }
}

fn read(bench: &Bench, into: &mut [f32]) {
    let device = bench.gpu.device();
    let staging = device.create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: bench.buffer.size(),
        usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    });
    let mut encoder = bench.encoder();
    encoder.copy_buffer_to_buffer(&bench.buffer, 0, &staging, 0, bench.buffer.size());
    bench.gpu.queue().submit([encoder.finish()]);
    staging.map_async(wgpu::MapMode::Read, .., |result| result.unwrap());
    bench.wait();
    into.copy_from_slice(bytemuck::cast_slice(&staging.get_mapped_range(..).unwrap()));
}

/// The same passes and dispatches as the plan's, by bare calls to wgpu.
fn record_bare(plan: &byzclip::backend::gpu::Plan, encoder: &mut wgpu::CommandEncoder) {
    let (run, bytes) = plan.cleared();
    encoder.clear_buffer(run, 0, Some(bytes));
    let mut dispatches = plan.dispatches().peekable();
    while let Some(label) = dispatches.peek().map(|dispatch| dispatch.pass) {
        let descriptor = wgpu::ComputePassDescriptor { label: Some(label), timestamp_writes: None };
        let mut pass = encoder.begin_compute_pass(&descriptor);
        while let Some(dispatch) = dispatches.next_if(|dispatch| dispatch.pass == label) {
            pass.set_pipeline(dispatch.pipeline);
            pass.set_bind_group(0, dispatch.bindings, &[]);
            pass.dispatch_workgroups(dispatch.workgroups.0, dispatch.workgroups.1, 1);
        }
    }
}

#[test]
fn recording_a_plan_allocates_nothing_beyond_what_wgpu_does() {
    let _alone = ONE_AT_A_TIME.lock();
    for (clients, params) in [(24, 300), (500, 3000)] {
        let Some(bench) = Bench::new(clients, params) else { return };
        for clipping in every_policy().into_iter().filter(|clipping| {
            clients == 24 || !matches!(clipping.threshold, Threshold::PerRow(_)) && clipping.center.is_none()
        }) {
            let plan = bench.gpu.plan(&bench.layout, &clipping, &bench.buffer).unwrap();
            let least = |record: &dyn Fn(&mut wgpu::CommandEncoder)| {
                let counts = (0..8).map(|_| {
                    let mut encoder = bench.encoder();
                    let count = allocations(|| record(&mut encoder));
                    bench.gpu.queue().submit([encoder.finish()]);
                    bench.wait();
                    count
                });
                counts.min().unwrap()
            };
            let bare = least(&|encoder| record_bare(&plan, encoder));
            let ours = least(&|encoder| plan.record(encoder));
            assert!(bare > 0, "wgpu allocates when it records; if that is over, so is this comparison");
            assert_eq!(ours, bare, "{clipping:?}: allocations of {clients} x {params}");
        }
    }
}

#[test]
fn running_a_plan_makes_nothing_on_the_device() {
    let _alone = ONE_AT_A_TIME.lock();
    let Some(bench) = Bench::new(24, 300) else { return };
    for clipping in every_policy() {
        let before_plan = bench.resources();
        let plan = bench.gpu.plan(&bench.layout, &clipping, &bench.buffer).unwrap();
        let mean = plan.mean(&Weights::Equal).unwrap();
        let run = || {
            let mut encoder = bench.encoder();
            plan.record(&mut encoder);
            mean.record(&mut encoder);
            bench.gpu.queue().submit([encoder.finish()]);
            bench.wait();
        };
        // What the plan's making left to the queue is freed with the first run.
        run();
        run();
        let made = bench.resources();
        assert!(made[0] > before_plan[0], "the counters count: {before_plan:?}, {made:?}");
        for _ in 0..5 {
            run();
            assert_eq!(bench.resources(), made, "{clipping:?}");
        }
    }
}

#[test]
fn a_report_is_refused_until_the_run_was_submitted() {
    let _alone = ONE_AT_A_TIME.lock();
    let Some(bench) = Bench::new(24, 300) else { return };
    let plan = bench.gpu.plan(&bench.layout, &Clipping::fixed(1.0), &bench.buffer).unwrap();
    let mean = plan.mean(&Weights::Equal).unwrap();
    assert_eq!(plan.report_blocking(), Err(Error::NotRecorded));
    assert_eq!(mean.read_blocking(), Err(Error::NotRecorded));

    let mut encoder = bench.encoder();
    plan.record(&mut encoder);
    mean.record(&mut encoder);
    assert_eq!(plan.report_blocking(), Err(Error::NotRecorded));
    assert_eq!(mean.read_blocking(), Err(Error::NotRecorded));
    bench.gpu.queue().submit([encoder.finish()]);
    assert_eq!(plan.report_blocking().unwrap().rows.len(), 24);
    assert_eq!(mean.read_blocking().unwrap().len(), 300);

    // Norms without decisions are no report yet.
    let other = bench.gpu.plan(&bench.layout, &Clipping::fixed(1.0), &bench.buffer).unwrap();
    let mut encoder = bench.encoder();
    other.record_norms(&mut encoder);
    bench.gpu.queue().submit([encoder.finish()]);
    assert_eq!(other.report_blocking(), Err(Error::NotRecorded));
}

#[test]
fn a_report_reads_non_finite_rows_as_its_run_was_told() {
    let _alone = ONE_AT_A_TIME.lock();
    let Some(mut bench) = Bench::new(24, 300) else { return };
    bench.data[300] = f32::NAN;
    bench.restore();
    let zero = Clipping::fixed(1.0);
    let refuse = zero.clone().non_finite(NonFinite::Error);
    let mut plan = bench.gpu.plan(&bench.layout, &zero, &bench.buffer).unwrap();
    let run = |plan: &byzclip::backend::gpu::Plan| {
        let mut encoder = bench.encoder();
        plan.record(&mut encoder);
        bench.gpu.queue().submit([encoder.finish()]);
    };
    run(&plan);
    plan.set_clipping(&refuse).unwrap();
    assert_eq!(plan.report_blocking().unwrap().rows[1].status, Status::Zeroed);
    bench.restore();
    run(&plan);
    plan.set_clipping(&zero).unwrap();
    assert_eq!(plan.report_blocking().unwrap_err(), Error::NonFinite { row: 1 });
}

#[test]
fn reports_may_be_read_by_several_at_once() {
    let _alone = ONE_AT_A_TIME.lock();
    let Some(bench) = Bench::new(24, 300) else { return };
    let plan = bench.gpu.plan(&bench.layout, &Clipping::fixed(1.0), &bench.buffer).unwrap();
    let mut encoder = bench.encoder();
    plan.record(&mut encoder);
    bench.gpu.queue().submit([encoder.finish()]);
    let want = plan.report_blocking().unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..20 {
                    assert_eq!(plan.report_blocking().unwrap(), want);
                }
            });
        }
    });
    // Two futures of one thread, both under way before anybody polls the device.
    let (mut first, mut second) = (Box::pin(plan.report()), Box::pin(plan.report()));
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(first.as_mut().poll(&mut context).is_pending());
    assert!(second.as_mut().poll(&mut context).is_pending());
    bench.wait();
    assert_eq!(pollster::block_on(second).unwrap(), want);
    assert_eq!(pollster::block_on(first).unwrap(), want);
}
