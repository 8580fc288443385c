//! The adapter that tests run on.

use byzclip::backend::gpu::{Tuning, adapters, open};
use byzclip::{Backend, Gpu, wgpu};

/// The adapter whose name contains `BYZCLIP_TEST_ADAPTER`, or the first one, software or not.
///
/// Where there is none the test is skipped, loudly; with `BYZCLIP_REQUIRE_GPU` set it fails.
pub fn adapter() -> Option<wgpu::Adapter> {
    let part = std::env::var("BYZCLIP_TEST_ADAPTER").unwrap_or_default().to_lowercase();
    let found = adapters().into_iter().find(|a| a.get_info().name.to_lowercase().contains(&part));
    if found.is_none() {
        let required = std::env::var_os("BYZCLIP_REQUIRE_GPU").is_some();
        assert!(!required, "BYZCLIP_REQUIRE_GPU is set and no adapter has \"{part}\" in its name");
        eprintln!("SKIPPED: no GPU adapter; install a Vulkan driver (lavapipe will do) to run this test");
    }
    found
}

/// The adapter as backends: with the kernels as shaped for it, and as any WebGPU device runs them,
/// the latter with exact sums only; and with several rows to a workgroup and sums in pairs of `f32`, whatever
/// suits it.
pub fn backends() -> Vec<(String, Box<dyn Backend>)> {
    let Some(adapter) = adapter() else { return Vec::new() };
    let (device, queue) = open(&adapter).unwrap();
    let own = Gpu::from_device(device.clone(), queue.clone()).unwrap();
    let window = own.tuning().window.min(Tuning::portable().window);
    let portable =
        Tuning { window, force_exact: true, workgroup: 32, span_workgroup: 16, ..Tuning::portable() };
    let (short_row, short_rows) = (1 << 13, 0);
    let short = Tuning { short_row, short_rows, row_lanes: 2, doubles: false, ..own.tuning().clone() };
    let with = |tuning| Gpu::from_device(device.clone(), queue.clone()).unwrap().with_tuning(tuning).unwrap();
    vec![
        ("gpu, portable, forced exact".into(), Box::new(with(portable))),
        ("gpu, short rows, pairs of f32".into(), Box::new(with(short))),
        ("gpu".into(), Box::new(own)),
    ]
}
