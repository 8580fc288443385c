//! The adapter that tests run on.

use byzclip::backend::gpu::adapters;
use byzclip::wgpu;

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
