//! Clipping a batch in host memory on whatever this machine has.
//!
//! ```text
//! cargo run --release --example clip
//! ```

use byzclip::backend::{Choice, select};
use byzclip::{Clipping, Layout};

fn main() -> byzclip::Result<()> {
    let mut updates =
        vec![0.5, -0.5, 0.5, /* hostile: */ 90.0, -120.0, 0.0, /* and worse: */ f32::NAN, 0.0, 1.0];
    let layout = Layout::dense(3, 3)?;
    let backend = select(Choice::Auto, None)?;
    let report = backend.run(&layout, &mut updates, &Clipping::fixed(2.0))?;
    println!("{}", report.ran);
    for (client, row) in report.rows.iter().enumerate() {
        println!(
            "client {client}: norm {:<10} {:<9} now {:?}",
            row.norm,
            row.status.name(),
            &updates[layout.row(client)]
        );
    }
    Ok(())
}
