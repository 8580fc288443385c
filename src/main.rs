//! The `byzclip` command; see [`cli`].

mod cli;

fn main() -> std::process::ExitCode {
    quiet_device_selection();
    cli::main()
}

/// Keeps Mesa's device-select layer from printing to stderr where there is no display: on a server each
/// look for adapters would add two lines of "XDG_RUNTIME_DIR is invalid" to our one-line errors. The layer
/// only reorders devices for display servers; who steers it by a variable keeps it.
#[allow(unsafe_code, reason = "the layer is told by its environment only")]
fn quiet_device_selection() {
    let is_unset = |name| std::env::var_os(name).is_none();
    if ["XDG_RUNTIME_DIR", "NODEVICE_SELECT", "MESA_VK_DEVICE_SELECT"].into_iter().all(is_unset) {
        // SAFETY: the first statement of main; no other thread exists that could read the environment.
        unsafe { std::env::set_var("NODEVICE_SELECT", "1") };
    }
}
