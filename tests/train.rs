//! The training loop: what attacks do, what clipping saves, and that every run can be repeated.
#![cfg(feature = "train")]
#![allow(clippy::unwrap_used)]

mod common;

use byzclip::backend::{Backend, Cpu, Reference};
use byzclip::threshold::Adaptive;
use byzclip::train::{
    CLIP_FACTOR_VARIABLE, ClipAt, ClipScope, Comparison, Model, Outcome, Run, Training, max_norm_from,
};
use byzclip::{
    AdversaryMode, Clipping, Decision, Error, Granularity, Layout, Norms, Ran, Result, State, Threshold,
};

fn compare(training: &Training) -> Comparison {
    training.compare(&Cpu::new().unwrap(), &mut |_, _| {}).unwrap()
}

fn run(training: &Training, backend: &dyn Backend) -> Outcome {
    training.run(backend, &mut |_| {}).unwrap()
}

fn bits(outcome: &Outcome) -> Vec<u32> {
    outcome.model.iter().map(|parameter| parameter.to_bits()).collect()
}

/// The accuracy that the attack costs although it is clipped.
fn lost(runs: &Comparison) -> f64 {
    runs.no_attack.accuracy - runs.attack_clipped.accuracy
}

#[test]
fn the_default_attack_ruins_the_model_and_clipping_saves_it() {
    for seed in 0..3 {
        let runs = compare(&Training { seed, ..Training::default() });
        assert!(runs.no_attack.accuracy >= 0.92, "seed {seed}: {}", runs.no_attack.accuracy);
        assert!(runs.attack.accuracy <= 0.5, "seed {seed}: {}", runs.attack.accuracy);
        assert!(lost(&runs) <= 0.03, "seed {seed}: {}", lost(&runs));
    }
}

#[test]
fn clipping_at_the_local_step_saves_the_model_as_well() {
    for seed in 0..3 {
        let runs = compare(&Training { seed, place: ClipAt::LocalStep, ..Training::default() });
        assert!(runs.attack.accuracy <= 0.5, "seed {seed}: {}", runs.attack.accuracy);
        assert!(lost(&runs) <= 0.03, "seed {seed}: {}", lost(&runs));
        assert!(runs.attack_clipped.gradients.max > Some(50.0));
        // Five steps of 0.25 along gradients of at most 2.0, rounded.
        assert!(runs.attack_clipped.hostile.max <= Some(2.5001));
    }
}

#[test]
fn flipped_labels_do_harm_until_they_are_clipped() {
    for place in [ClipAt::Server, ClipAt::LocalStep] {
        let attack = AdversaryMode::LabelFlip;
        let runs = compare(&Training { attack, place, ..Training::default() });
        assert!(runs.attack.accuracy <= runs.no_attack.accuracy - 0.25, "{place}: {}", runs.attack.accuracy);
        assert!(lost(&runs) <= 0.045, "{place}: {}", lost(&runs));
    }
}

#[test]
fn the_perceptron_explodes_under_attack_and_still_has_an_accuracy() {
    let model = Model::Perceptron { hidden: 16 };
    // A boost that makes the unclipped model overflow to NaN.
    let runs = compare(&Training { model, boost: 1e20, rounds: 20, ..Training::default() });
    assert!(runs.attack.model.iter().any(|parameter| parameter.is_nan()));
    assert_eq!(runs.attack.accuracy, 0.0);
    assert!(runs.attack.honest.non_finite > 0);
    assert!(runs.attack_clipped.accuracy > 0.8, "{}", runs.attack_clipped.accuracy);
    assert!(runs.attack_clipped.zeroed > 0);
    assert!(runs.attack_clipped.model.iter().all(|parameter| parameter.is_finite()));
}

#[test]
fn norms_are_those_of_the_field() {
    let runs = compare(&Training::default());
    let honest = runs.no_attack.honest.median.unwrap();
    let hostile = runs.attack_clipped.hostile.median.unwrap();
    assert!((0.5..=2.0).contains(&honest), "{honest}");
    assert!((10.0..=100.0).contains(&(hostile / honest)), "{hostile} / {honest}");
}

#[test]
fn counts_follow_from_clients_and_rounds() {
    let training = Training { rounds: 7, clients: 11, ..Training::default() };
    let runs = compare(&training);
    assert_eq!(training.hostile_clients(), 2);
    assert_eq!(runs.no_attack.honest.finite, 7 * 11);
    assert_eq!((runs.no_attack.hostile.finite, runs.no_attack.hostile.median), (0, None));
    assert_eq!((runs.no_attack.clipped, runs.attack.clipped), (0, 0));
    assert_eq!((runs.attack.honest.finite, runs.attack.hostile.finite), (7 * 9, 7 * 2));
    assert_eq!(runs.attack_clipped.clipped, 7 * 2);
    assert_eq!(runs.attack_clipped.gradients.finite, 0);
    assert_eq!(runs.attack_clipped.accuracies.len(), 7);
    assert_eq!(runs.attack_clipped.accuracies.last(), Some(&runs.attack_clipped.accuracy));

    // The boost makes every hostile gradient too long; honest ones are out of scope.
    let local = run(&Training { place: ClipAt::LocalStep, boost: 1e6, ..training }, &Reference);
    assert_eq!(local.gradients.finite, 7 * 2 * 5);
    assert_eq!(local.clipped, 7 * 2 * 5);
}

#[test]
fn scope_all_clips_honest_clients_too() {
    for place in [ClipAt::Server, ClipAt::LocalStep] {
        let hostile = Training { place, ..Training::default() };
        let all = Training { scope: ClipScope::All, ..hostile.clone() };
        let (few, many) = (run(&hostile, &Cpu::new().unwrap()), run(&all, &Cpu::new().unwrap()));
        assert!(many.clipped > 2 * few.clipped, "{place}: {} {}", many.clipped, few.clipped);
        assert!(few.clipped > 0);
    }
}

#[test]
fn the_same_seed_gives_the_same_bits_on_every_backend() {
    for place in [ClipAt::Server, ClipAt::LocalStep] {
        for model in [Model::Softmax, Model::Perceptron { hidden: 5 }] {
            let training = Training { rounds: 4, place, model, ..Training::default() };
            let reference = run(&training, &Reference);
            for (name, backend) in common::others() {
                let outcome = run(&training, backend.as_ref());
                assert_eq!(bits(&outcome), bits(&reference), "{name}, {place}, {model}");
                assert_eq!(
                    (outcome.honest, outcome.hostile),
                    (reference.honest, reference.hostile),
                    "{name}"
                );
                assert_eq!(outcome.accuracies, reference.accuracies, "{name}");
            }
        }
    }
}

#[test]
fn another_seed_gives_other_bits() {
    let training = Training { rounds: 2, ..Training::default() };
    let other = Training { seed: 1, ..training.clone() };
    assert_ne!(bits(&run(&training, &Reference)), bits(&run(&other, &Reference)));
}

/// Computed once, on x86-64: another platform, or a change of the random streams, must come to the same.
#[test]
fn the_model_is_the_same_on_every_platform() {
    let training =
        Training { rounds: 3, model: Model::Perceptron { hidden: 8 }, seed: 42, ..Training::default() };
    let fnv = |hash: u64, bits: u32| (hash ^ u64::from(bits)).wrapping_mul(0x100_0000_01b3);
    let hash = bits(&run(&training, &Reference)).into_iter().fold(0xcbf2_9ce4_8422_2325, fnv);
    assert_eq!(hash, 0x95a0_57be_90f6_8b3d, "{hash:#018x}");
}

#[test]
fn progress_is_told_after_every_round_of_every_run() {
    let training = Training { rounds: 3, ..Training::default() };
    let mut seen = Vec::new();
    let runs = training.compare(&Reference, &mut |run, at| seen.push((run, at))).unwrap();
    let order: Vec<_> = seen.iter().map(|(run, at)| (run.name(), at.round, at.rounds)).collect();
    let expected: Vec<_> =
        Run::ALL.iter().flat_map(|run| (1..=3).map(move |round| (run.name(), round, 3))).collect();
    assert_eq!(order, expected);
    for run in Run::ALL {
        let told: Vec<_> = seen.iter().filter(|(of, _)| *of == run).map(|(_, at)| at.accuracy).collect();
        assert_eq!(told, runs.outcome(run).accuracies);
    }
}

#[test]
fn without_a_bound_the_third_run_is_the_second() {
    let runs = compare(&Training { rounds: 3, threshold: None, ..Training::default() });
    assert_eq!(bits(&runs.attack), bits(&runs.attack_clipped));
    assert_eq!(runs.attack_clipped.clipped, 0);
}

/// The reference, except that one stage is a little wrong in row 1.
struct Faulty {
    stage: &'static str,
}

impl Backend for Faulty {
    fn ran(&self) -> Ran {
        Reference.ran()
    }

    fn norms(&self, layout: &Layout, data: &[f32], clipping: &Clipping) -> Result<Norms> {
        let mut norms = Reference.norms(layout, data, clipping)?;
        if self.stage == "norms" {
            norms.rows.swap(1, 2);
        }
        Ok(norms)
    }

    fn threshold(
        &self,
        layout: &Layout,
        norms: &Norms,
        clipping: &Clipping,
        state: &mut State,
    ) -> Result<Vec<Decision>> {
        let mut decisions = Reference.threshold(layout, norms, clipping, state)?;
        if self.stage == "threshold" {
            // The next smaller number of 24 bits.
            decisions[1].factor = f64::from((decisions[1].factor as f32).next_down());
        }
        Ok(decisions)
    }

    fn clip(
        &self,
        layout: &Layout,
        data: &mut [f32],
        clipping: &Clipping,
        decisions: &[Decision],
    ) -> Result<()> {
        Reference.clip(layout, data, clipping, decisions)?;
        if self.stage == "clip" {
            let last = &mut data[layout.row(1).end - 1];
            *last = f32::from_bits(last.to_bits() ^ 1);
        }
        Ok(())
    }
}

#[test]
fn a_backend_that_is_a_little_wrong_is_found_in_the_last_round() {
    for faulty in ["norms", "threshold", "clip"] {
        for place in [ClipAt::Server, ClipAt::LocalStep] {
            let training = Training { rounds: 2, place, ..Training::default() };
            let mut rounds = 0;
            let error = training.run(&Faulty { stage: faulty }, &mut |_| rounds += 1).unwrap_err();
            assert!(matches!(error, Error::Mismatch { row: 1, .. }), "{error}");
            assert!(faulty == "norms" || error.to_string().starts_with(faulty), "{error}");
            assert_eq!(rounds, 1);
        }
    }
}

#[test]
fn settings_out_of_range_are_errors() {
    let ok = Training::default;
    let wrong = [
        ("clients", Training { clients: 0, ..ok() }),
        ("clients", Training { clients: 1438, ..ok() }),
        ("hostile clients", Training { hostile: Some(21), ..ok() }),
        ("boost", Training { boost: 0.0, ..ok() }),
        ("boost", Training { boost: f32::INFINITY, ..ok() }),
        ("rounds", Training { rounds: 0, ..ok() }),
        ("local steps", Training { local_steps: 0, ..ok() }),
        ("batch size", Training { batch_size: 0, ..ok() }),
        ("learning rate", Training { learning_rate: f32::NAN, ..ok() }),
        ("learning rate", Training { learning_rate: -0.1, ..ok() }),
        ("hidden units", Training { model: Model::Perceptron { hidden: 0 }, ..ok() }),
        ("hidden units", Training { model: Model::Perceptron { hidden: usize::MAX }, ..ok() }),
    ];
    for (setting, training) in wrong {
        let error = training.run(&Reference, &mut |_| {}).unwrap_err();
        assert!(matches!(error, Error::Setting { name, .. } if name == setting), "{setting}: {error}");
    }
    for bound in [f32::NAN, -1.0] {
        let error = Training { threshold: Some(Threshold::Fixed(bound)), ..ok() }.validate().unwrap_err();
        assert!(matches!(error, Error::InvalidBound { .. }), "{error}");
    }
}

#[test]
fn extreme_settings_in_range_run() {
    let one = Training { rounds: 1, ..Training::default() };
    for training in [
        Training { clients: 1, ..one.clone() },
        Training { clients: 1437, batch_size: usize::MAX, local_steps: 1, ..one.clone() },
        Training { hostile: Some(20), threshold: Some(Threshold::Fixed(0.0)), ..one.clone() },
        Training { hostile: Some(0), threshold: Some(Threshold::Fixed(f32::INFINITY)), ..one },
    ] {
        let outcome = run(&training, &Cpu::new().unwrap());
        assert!((0.0..=1.0).contains(&outcome.accuracy));
    }
}

#[test]
fn the_variable_sets_the_bound() {
    assert_eq!(CLIP_FACTOR_VARIABLE, "D2_ADVERSARY_CLIP_FACTOR");
    let cases = [
        (None, Some(2.0)),
        (Some("2"), Some(2.0)),
        (Some(" 3.5 "), Some(3.5)),
        (Some("1e-3"), Some(0.001)),
        (Some("inf"), Some(f32::INFINITY)),
        (Some("0"), None),
        (Some("-0.0"), None),
        (Some("-2"), None),
        (Some("-inf"), None),
    ];
    for (value, expected) in cases {
        assert_eq!(max_norm_from(value), Ok(expected), "{value:?}");
    }
    for value in ["", " ", "NaN", "two", "2,0", "2.0f", "0x2"] {
        let error = max_norm_from(Some(value)).unwrap_err();
        assert!(matches!(error, Error::Setting { name: CLIP_FACTOR_VARIABLE, .. }), "{error}");
    }
}

#[test]
fn names_are_read_back() {
    for place in [ClipAt::Server, ClipAt::LocalStep] {
        assert_eq!(place.to_string().parse(), Ok(place));
    }
    for scope in [ClipScope::Hostile, ClipScope::All] {
        assert_eq!(scope.to_string().parse(), Ok(scope));
    }
    assert!("client".parse::<ClipAt>().is_err());
    assert!("none".parse::<ClipScope>().is_err());
    assert!("linear".parse::<Model>().is_err());
}

#[test]
fn thresholds_that_learn_from_the_batch_save_the_model_too() {
    let policies = [
        Threshold::Median { factor: 1.0 },
        Threshold::Adaptive(Adaptive { initial: 1.0, target: 0.5, rate: 0.2, ..Adaptive::default() }),
        Threshold::History { window: 5, factor: 1.0 },
        Threshold::Arc { byzantine: 4 },
    ];
    for threshold in policies {
        let training = Training { threshold: Some(threshold), scope: ClipScope::All, ..Training::default() };
        let runs = compare(&training);
        let (lost, without) = (lost(&runs), runs.attack.accuracy);
        assert!(without <= 0.5 && lost <= 0.15, "{:?}: lost {lost}", training.threshold);
    }
}

#[test]
fn layers_of_a_perceptron_are_bounded_on_their_own_on_every_backend() {
    let training = Training {
        model: Model::Perceptron { hidden: 5 },
        rounds: 3,
        scope: ClipScope::All,
        threshold: Some(Threshold::History { window: 2, factor: 0.5 }),
        granularity: Granularity::Segment,
        ..Training::default()
    };
    let reference = run(&training, &Reference);
    assert!(reference.clipped > 0);
    for (name, backend) in common::others() {
        assert_eq!(bits(&run(&training, backend.as_ref())), bits(&reference), "{name}");
    }
}
