//! What is tried, knob by knob, and in which order: first how a batch is spread, then by how many, then how it is
//! summed.

use super::ShapeClass;
use crate::backend::gpu::Tuning;

/// An alternative in words, and its tuning.
pub(super) type Alternative = (String, Tuning);

/// The alternatives of one knob to a tuning.
pub(super) type Knob = fn(ShapeClass, &Tuning) -> Vec<Alternative>;

pub(super) const KNOBS: [Knob; 8] = [rows, groups, workgroups, lanes, tiles, sums, joins, modules];

/// Rows that a workgroup keeps, several to a workgroup, or cut in tiles.
fn rows(class: ShapeClass, from: &Tuning) -> Vec<Alternative> {
    let fused = Tuning { short_rows: u32::MAX, fused_row: 1 << 14, ..from.clone() };
    let tiled = Tuning { short_rows: u32::MAX, fused_row: 0, group_bytes: 0, ..from.clone() };
    match class {
        ShapeClass::Short | ShapeClass::Medium => {
            vec![("rows fused".into(), fused), ("rows in tiles".into(), tiled)]
        }
        // Too long to keep.
        ShapeClass::Long | ShapeClass::Huge => Vec::new(),
    }
}

/// All stages for a group of rows after another, in groups of several sizes, or stage by stage.
fn groups(class: ShapeClass, from: &Tuning) -> Vec<Alternative> {
    if class == ShapeClass::Short {
        return Vec::new();
    }
    let of = |mib: u64| {
        let tuning = Tuning { fused_row: 0, group_bytes: mib << 20, ..from.clone() };
        (if mib == 0 { "no groups".into() } else { format!("groups of {mib} MiB") }, tuning)
    };
    [0, 2, 8, 16, 32].map(of).into()
}

/// Whether a workgroup takes several short rows.
fn shares_workgroups(class: ShapeClass, from: &Tuning) -> bool {
    class == ShapeClass::Short && from.short_rows < u32::MAX
}

/// Invocations of the workgroups that read the elements: `span_workgroup` where several short rows share one.
fn workgroups(class: ShapeClass, from: &Tuning) -> Vec<Alternative> {
    let short = shares_workgroups(class, from);
    let current = if short { from.span_workgroup } else { from.workgroup };
    let of = |size: u32| {
        let tuning = if short {
            Tuning { span_workgroup: size, ..from.clone() }
        } else {
            Tuning { workgroup: size, ..from.clone() }
        };
        (format!("workgroup {size}"), tuning)
    };
    // A factor of two to either side, then of four.
    [current * 2, current / 2, current * 4, current / 4]
        .into_iter()
        .filter(|size| *size > 0)
        .map(of)
        .collect()
}

/// Invocations to a short row.
fn lanes(class: ShapeClass, from: &Tuning) -> Vec<Alternative> {
    let of = |row_lanes: u32| (format!("{row_lanes} lanes a row"), Tuning { row_lanes, ..from.clone() });
    if shares_workgroups(class, from) { [1, 2, 4, 8, 16, 32].map(of).into() } else { Vec::new() }
}

fn tiles(class: ShapeClass, from: &Tuning) -> Vec<Alternative> {
    let of = |tile: u32| (format!("tiles of {tile}"), Tuning { tile, ..from.clone() });
    match class {
        ShapeClass::Short => Vec::new(),
        _ => [from.tile * 2, from.tile / 2, from.tile * 4].map(of).into(),
    }
}

fn sums(_: ShapeClass, from: &Tuning) -> Vec<Alternative> {
    let what = if from.doubles { "sums in pairs of f32" } else { "sums in f64" };
    vec![(what.into(), Tuning { doubles: !from.doubles, ..from.clone() })]
}

/// How the sums of a workgroup are joined.
fn joins(_: ShapeClass, from: &Tuning) -> Vec<Alternative> {
    let what = if from.subgroups { "sums joined in shared memory" } else { "sums joined by subgroups" };
    vec![(what.into(), Tuning { subgroups: !from.subgroups, ..from.clone() })]
}

/// Not tried where the build has no unsafe code for it.
fn modules(_: ShapeClass, from: &Tuning) -> Vec<Alternative> {
    let what = if from.trusted { "checked shaders" } else { "trusted shaders" };
    vec![(what.into(), Tuning { trusted: !from.trusted, ..from.clone() })]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workgroups_are_tried_of_the_kernels_that_read_the_elements() {
        for class in ShapeClass::ALL {
            let from = Tuning::portable();
            let changed = |of: fn(&Tuning) -> u32| {
                workgroups(class, &from).iter().filter(|(_, tuning)| of(tuning) != of(&from)).count()
            };
            let expected = if class == ShapeClass::Short { [0, 4] } else { [4, 0] };
            assert_eq!([changed(|t| t.workgroup), changed(|t| t.span_workgroup)], expected, "{class}");
        }
        // Short rows that are fused or cut in tiles are read by those of tiles.
        let tiled = Tuning { short_rows: u32::MAX, ..Tuning::portable() };
        let of_tiles = workgroups(ShapeClass::Short, &tiled);
        assert_eq!(of_tiles.iter().filter(|(_, t)| t.workgroup != tiled.workgroup).count(), 4);
    }

    #[test]
    fn alternatives_are_others_and_have_names_of_their_own() {
        for class in ShapeClass::ALL {
            let from = Tuning::portable();
            let all: Vec<_> = KNOBS.iter().flat_map(|knob| knob(class, &from)).collect();
            assert!(all.len() >= 6, "{class}");
            for (i, (name, tuning)) in all.iter().enumerate() {
                // Of what is the default already there may be one.
                let same = |(other, as_well): &&Alternative| other == name || as_well == tuning;
                let twins = all[..i].iter().find(same);
                assert!(
                    twins.is_none() || *tuning == from || name == "no groups",
                    "{class}: {name}, {twins:?}"
                );
            }
        }
    }
}
