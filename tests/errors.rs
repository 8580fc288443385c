//! What is refused, with which error, and that the data is as it was.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use byzclip::{
    AdversaryMode, Backend, Clipping, Error, Granularity, Half, Layout, NonFinite, Scope, Status, Weights,
};
use common::{all, assert_same_bits};

const DATA: [f32; 6] = [3.0, 4.0, -0.0, 1e38, 5.0, 12.0];

/// Every backend refuses this with the error, and writes nothing.
fn refused(layout: &Layout, data: &[f32], clipping: &Clipping, matches: impl Fn(&Error) -> bool) {
    for granularity in [Granularity::Row, Granularity::Segment] {
        for (name, backend) in all() {
            let mut after = data.to_vec();
            let error =
                backend.run(layout, &mut after, &clipping.clone().granularity(granularity)).unwrap_err();
            assert!(matches(&error), "{name}: {error:?}");
            assert_same_bits(name, &after, data);
        }
    }
}

fn pairs() -> Layout {
    Layout::dense(3, 2).unwrap()
}

#[test]
fn nan_and_negative_bounds_are_refused() {
    let bad = [f32::NAN, -f32::NAN, f32::from_bits(0x7f80_0001), -1.0, -1e-45, f32::NEG_INFINITY];
    for bound in bad {
        let refuses =
            |error: &Error| matches!(error, Error::InvalidBound { got } if got.to_bits() == bound.to_bits());
        refused(&pairs(), &DATA, &Clipping::fixed(bound), refuses);
        refused(&pairs(), &DATA, &Clipping::per_row(vec![1.0, bound, 1.0]), refuses);
        refused(&Layout::dense(0, 2).unwrap(), &DATA, &Clipping::fixed(bound), refuses);
        // Also for rows that are out of scope.
        let clipping = Clipping::per_row(vec![1.0, 1.0, bound]).scope(Scope::Rows(vec![0]));
        refused(&pairs(), &DATA, &clipping, refuses);
    }
}

#[test]
fn negative_zero_is_a_bound_of_zero() {
    for (name, backend) in all() {
        let mut data = DATA;
        let report = backend.run(&pairs(), &mut data, &Clipping::fixed(-0.0)).unwrap();
        assert_eq!(report.count(Status::Clipped), 3, "{name}");
        assert_eq!(report.rows[0].bound.map(f32::to_bits), Some(0), "{name}");
        assert_same_bits(name, &data, &[0.0, 0.0, -0.0, 0.0, 0.0, 0.0]);
    }
}

#[test]
fn one_bound_per_row_is_needed() {
    for got in [0, 2, 4] {
        let clipping = Clipping::per_row(vec![1.0; got]);
        refused(&pairs(), &DATA, &clipping, |error| *error == Error::BoundCount { got, expected: 3 });
    }
}

#[test]
fn scopes_that_do_not_fit_the_batch_are_refused() {
    let fixed = Clipping::fixed(1.0);
    for got in [0, 2, 4] {
        let error = Error::ScopeLength { got, expected: 3 };
        for scope in [Scope::Mask(vec![true; got]), Scope::Adversaries(vec![AdversaryMode::GradAscent; got])]
        {
            refused(&pairs(), &DATA, &fixed.clone().scope(scope), |got| *got == error);
        }
    }
    let rows = |rows: &[usize]| fixed.clone().scope(Scope::Rows(rows.to_vec()));
    refused(&pairs(), &DATA, &rows(&[0, 3]), |got| *got == Error::RowOutOfRange { row: 3, clients: 3 });
    refused(&pairs(), &DATA, &rows(&[usize::MAX]), |got| matches!(got, Error::RowOutOfRange { .. }));
    refused(&pairs(), &DATA, &rows(&[1, 2, 1]), |got| *got == Error::DuplicateRow { row: 1 });
    refused(&Layout::dense(0, 2).unwrap(), &DATA, &rows(&[0]), |got| {
        *got == Error::RowOutOfRange { row: 0, clients: 0 }
    });
}

#[test]
fn data_that_is_shorter_than_its_layout_is_refused() {
    let layout = Layout::strided(3, 2, 4).unwrap();
    assert_eq!(layout.len(), 10);
    for got in [0, 6, 9] {
        refused(&layout, &[1.0; 9][..got], &Clipping::fixed(1.0), |error| {
            *error == Error::DataTooShort { got, expected: 10 }
        });
    }
    for (name, backend) in all() {
        let mut data = [1.0; 10];
        assert!(backend.run(&layout, &mut data, &Clipping::fixed(1.0)).is_ok(), "{name}");
        let short = backend.norms(&layout, &data[..9], &Clipping::default()).unwrap_err();
        assert_eq!(short, Error::DataTooShort { got: 9, expected: 10 }, "{name}");
        let short = backend.clip(&layout, &mut data[..9], &Clipping::default(), &[]).unwrap_err();
        assert_eq!(short, Error::DataTooShort { got: 9, expected: 10 }, "{name}");
    }
}

#[test]
fn decisions_that_do_not_fit_the_layout_are_refused() {
    for (name, backend) in all() {
        let mut data = DATA;
        for granularity in [Granularity::Row, Granularity::Segment] {
            let error = backend
                .clip(&pairs(), &mut data, &Clipping::default().granularity(granularity), &[])
                .unwrap_err();
            assert!(matches!(error, Error::Layout { .. }), "{name}: {error:?}");
        }
        assert_same_bits(name, &data, &DATA);
    }
}

#[test]
fn the_error_policy_sees_only_rows_in_scope() {
    let mut data = DATA;
    data[2] = f32::NAN;
    let clipping = Clipping::fixed(1.0).non_finite(NonFinite::Error);
    refused(&pairs(), &data, &clipping, |error| *error == Error::NonFinite { row: 1 });
    for (name, backend) in all() {
        let mut after = data;
        let report =
            backend.run(&pairs(), &mut after, &clipping.clone().scope(Scope::Rows(vec![2, 0]))).unwrap();
        assert_eq!(report.rows[1].status, Status::OutOfScope, "{name}");
        assert_same_bits(name, &after[2..4], &data[2..4]);
    }
}

#[test]
fn factors_that_no_threshold_gives_are_refused() {
    let layout = Layout::dense(1, 2).unwrap();
    for (name, backend) in all() {
        let norms = backend.norms(&layout, &[1.0, 1.0], &Clipping::default()).unwrap();
        for factor in [3.0, -0.5, f64::NAN, f64::INFINITY, 1.0 - f64::EPSILON] {
            let decision =
                byzclip::Decision { norm: norms.rows[0], bound: 1.0, factor, status: Status::Clipped };
            let mut data = [1.0, 3e38];
            let result = backend.clip(&layout, &mut data, &Clipping::default(), &[decision]);
            assert!(
                matches!(result, Err(Error::Setting { name: "factor", .. })),
                "{name}: {factor}: {result:?}"
            );
            assert_same_bits(name, &data, &[1.0, 3e38]);
        }
    }
}

#[test]
fn bounds_of_coordinates_that_no_threshold_gives_are_refused() {
    let clipping = Clipping::default().granularity(Granularity::Coordinate);
    for (name, backend) in all() {
        let norms = backend.norms(&pairs(), &DATA, &clipping).unwrap();
        let decisions = backend.threshold(&pairs(), &norms, &clipping, &mut Default::default()).unwrap();
        for bound in [-1.0, -0.0, f32::NAN] {
            let mut spoiled = decisions.clone();
            spoiled[0].bound = bound;
            let mut after = DATA;
            let refused = backend.clip(&pairs(), &mut after, &clipping, &spoiled);
            assert!(matches!(refused, Err(Error::InvalidBound { .. })), "{name}: {bound}: {refused:?}");
            assert_same_bits(name, &after, &DATA);
        }
    }
}

/// Decisions are there: a scope has nothing to say any more, whether or not it fits the batch.
#[test]
fn the_clip_stage_asks_decisions_and_no_scope() {
    let scopes = [Scope::Rows(vec![2]), Scope::Mask(vec![false; 3]), Scope::Rows(vec![7, 7])];
    for (name, backend) in all() {
        let norms = backend.norms(&pairs(), &DATA, &Clipping::default()).unwrap();
        let decisions =
            byzclip::threshold::decide(&pairs(), &norms, &Clipping::fixed(1.0), &mut Default::default());
        let decisions = decisions.unwrap();
        let mut expected = DATA;
        byzclip::Reference.clip(&pairs(), &mut expected, &Clipping::default(), &decisions).unwrap();
        assert!(expected.iter().zip(&DATA).filter(|(got, before)| got != before).count() > 4);
        for scope in &scopes {
            let mut data = DATA;
            let clipping = Clipping::default().scope(scope.clone());
            backend.clip(&pairs(), &mut data, &clipping, &decisions).unwrap();
            assert_same_bits(name, &data, &expected);
        }
    }
}

/// Bounds of a caller's own, which no threshold has checked.
#[test]
fn decisions_from_bounds_ask_for_bounds_and_norms_that_fit() {
    use byzclip::threshold::decide_from_bounds;
    let norms = byzclip::Reference.norms(&pairs(), &DATA, &Clipping::default()).unwrap();
    let clipping = Clipping::default();
    let decide = |bounds: &[f32]| decide_from_bounds(&pairs(), &norms, bounds, &clipping);
    assert_eq!(decide(&[1.0; 2]), Err(Error::BoundCount { got: 2, expected: 3 }));
    for wrong in [-1e-30, f32::NAN, f32::NEG_INFINITY] {
        let error = decide(&[1.0, wrong, 2.0]).unwrap_err();
        assert_eq!(error.to_string(), Error::InvalidBound { got: wrong }.to_string());
    }
    // A bound of its own for each row, and the zero that is written with a sign.
    let decisions = decide(&[f32::INFINITY, 1.0, -0.0]).unwrap();
    let got: Vec<_> = decisions.iter().map(|decision| (decision.bound.to_bits(), decision.factor)).collect();
    assert_eq!(got[0], (f32::INFINITY.to_bits(), 1.0));
    assert!(got[1].0 == 1.0f32.to_bits() && (0.0..1.0).contains(&got[1].1), "{got:?}");
    assert_eq!(got[2], (0, 0.0));
    let of_segments = clipping.clone().granularity(Granularity::Segment);
    let error = decide_from_bounds(&pairs(), &norms, &[1.0; 3], &of_segments).unwrap_err();
    assert!(matches!(error, Error::Layout { .. }), "{error}");
    let broken = [&DATA[..4], &[f32::NAN, 1.0]].concat();
    let norms = byzclip::Reference.norms(&pairs(), &broken, &clipping).unwrap();
    let refusing = clipping.non_finite(NonFinite::Error);
    assert_eq!(decide_from_bounds(&pairs(), &norms, &[1.0; 3], &refusing), Err(Error::NonFinite { row: 2 }));
}

#[test]
fn a_call_that_is_wrong_in_two_ways_has_one_error_everywhere() {
    let weights = Weights::PerRow(vec![1.0; 2]);
    let bits = [0u16; 6];
    for (name, backend) in all() {
        let error = backend.mean(&pairs(), &DATA, &Clipping::default(), &[], &weights).unwrap_err();
        assert_eq!(error, weights.of_rows(3).unwrap_err(), "{name}");
        let of_halves = backend.mean_half(&pairs(), Half::F16, &bits, &Clipping::default(), &[], &weights);
        assert_eq!(of_halves.unwrap_err(), error, "{name}");
    }
}
