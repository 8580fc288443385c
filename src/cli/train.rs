//! `byzclip train`.

use std::str::FromStr;
use std::time::Instant;

use byzclip::train::{
    CLIP_FACTOR_VARIABLE, ClipAt, ClipScope, Comparison, Model, Run, Training, max_norm_from,
};
use byzclip::{AdversaryMode, Granularity, Threshold};
use serde::Serialize;

use super::failure::{Failure, Outcome};
use super::options::{self, BackendArgs};
use super::{display, output, progress, rows, threshold};

#[derive(Debug, Default, clap::Args)]
pub(super) struct Args {
    /// What is trained: softmax regression, or a perceptron with one hidden layer of N units
    /// [default: softmax].
    #[arg(long, value_name = "softmax|perceptron:N", value_parser = parse_model)]
    model: Option<Model>,
    /// Clients that share the training data [default: 20].
    #[arg(long, value_name = "N", allow_hyphen_values = true, value_parser = options::parse_whole::<usize>)]
    clients: Option<usize>,
    /// How many of them are hostile [default: a fifth].
    #[arg(long, value_name = "N", allow_hyphen_values = true, value_parser = options::parse_whole::<usize>)]
    hostile: Option<usize>,
    /// What hostile clients do [default: grad_ascent].
    #[arg(long, value_name = "none|grad_ascent|label_flip", value_parser = AdversaryMode::from_str)]
    attack: Option<AdversaryMode>,
    /// How many times larger than honest ones hostile gradients are made.
    #[arg(long, value_name = "X", allow_hyphen_values = true, value_parser = options::parse_f32)]
    boost: Option<f32>,
    /// Rounds of training.
    #[arg(long, value_name = "N", allow_hyphen_values = true, value_parser = options::parse_whole::<usize>)]
    rounds: Option<usize>,
    /// Gradient steps of each client in a round.
    #[arg(long, value_name = "N", allow_hyphen_values = true, value_parser = options::parse_whole::<usize>)]
    local_steps: Option<usize>,
    /// Images of a gradient step.
    #[arg(long, value_name = "N", allow_hyphen_values = true, value_parser = options::parse_whole::<usize>)]
    batch_size: Option<usize>,
    /// Length of a gradient step.
    #[arg(long, value_name = "X", allow_hyphen_values = true, value_parser = options::parse_f32)]
    learning_rate: Option<f32>,
    /// Everything random follows from it [default: 0].
    #[arg(long, value_name = "N", allow_hyphen_values = true, value_parser = options::parse_whole::<u64>)]
    seed: Option<u64>,
    /// The bound λ; overrides the variable D2_ADVERSARY_CLIP_FACTOR, where a value <= 0 switches
    /// clipping off [default: 2.0].
    #[arg(long, value_name = "L", allow_hyphen_values = true, value_parser = options::parse_max_norm)]
    max_norm: Option<f32>,
    /// The policy that finds the bound, as of `byzclip clip`: median:2, adaptive:c0=1, arc:f=4 and so on.
    #[arg(long, value_name = "POLICY", allow_hyphen_values = true, conflicts_with = "max_norm",
          value_parser = threshold::parse_threshold)]
    threshold: Option<Threshold>,
    /// Whether whole updates are bounded, or each layer of the model on its own [default: row].
    #[arg(long, value_name = "row|layer", value_parser = parse_granularity)]
    granularity: Option<Granularity>,
    /// Whose updates may be clipped [default: hostile].
    #[arg(long, value_name = "hostile|all", value_parser = ClipScope::from_str)]
    scope: Option<ClipScope>,
    /// Where: updates that the server receives, or gradients in the attacker's own steps [default: server].
    #[arg(long, value_name = "server|local_step", value_parser = ClipAt::from_str)]
    clip_at: Option<ClipAt>,
    #[command(flatten)]
    backend: BackendArgs,
}

#[derive(Serialize)]
struct Report<'a> {
    backend: &'static str,
    adapter: Option<&'a str>,
    why: &'a str,
    model: &'static str,
    params: usize,
    clients: usize,
    hostile: usize,
    attack: &'static str,
    rounds: usize,
    seed: u64,
    /// λ where it is fixed and clipping is on.
    max_norm: Option<rows::Bound>,
    threshold: Option<String>,
    scope: &'static str,
    clip_at: &'static str,
    runs: Vec<RunReport>,
}

#[derive(Serialize)]
struct RunReport {
    name: &'static str,
    accuracy: f64,
    honest_norm_median: Option<f32>,
    honest_norm_max: Option<f32>,
    hostile_norm_median: Option<f32>,
    hostile_norm_max: Option<f32>,
    clipped: usize,
    zeroed: usize,
}

pub(super) fn run(args: &Args, json: bool) -> Result<Outcome, Failure> {
    let training = args.training()?;
    let backend = args.backend.open()?;
    let start = Instant::now();
    let bar = progress::bar(3 * training.rounds as u64, "training");
    let comparison = training.compare(backend.as_ref(), &mut |run, _| {
        bar.set_message(run.name());
        bar.inc(1);
    })?;
    bar.finish_and_clear();
    let seconds = start.elapsed().as_secs_f64();
    let ran = backend.ran();
    let runs = reports(&comparison);
    if !json {
        output::print(&format!(
            "{ran}\n{}\n\n{}\nthe last round of every run equals the exact reference, bit for bit; {seconds:.1} s\n",
            describe(&training),
            table(&runs)
        ))?;
        return Ok(Outcome::Success);
    }
    output::print_json(&Report {
        backend: ran.backend.name(),
        adapter: ran.adapter.as_deref(),
        why: &ran.why,
        model: training.model.name(),
        params: training.model.params(),
        clients: training.clients,
        hostile: training.hostile_clients(),
        attack: training.attack.name(),
        rounds: training.rounds,
        seed: training.seed,
        max_norm: match training.threshold {
            Some(Threshold::Fixed(bound)) => Some(rows::Bound(bound)),
            _ => None,
        },
        threshold: training.threshold.as_ref().map(threshold::name),
        scope: training.scope.name(),
        clip_at: training.place.name(),
        runs,
    })?;
    Ok(Outcome::Success)
}

fn parse_granularity(text: &str) -> Result<Granularity, String> {
    match text {
        "row" => Ok(Granularity::Row),
        "layer" => Ok(Granularity::Segment),
        _ => Err("expected row or layer".into()),
    }
}

fn parse_model(text: &str) -> Result<Model, String> {
    let perceptron = text.strip_prefix("perceptron:").and_then(|units| units.parse().ok());
    match (text, perceptron) {
        ("softmax", _) => Ok(Model::Softmax),
        (_, Some(hidden)) => Ok(Model::Perceptron { hidden }),
        _ => Err("expected softmax, or perceptron: and a number of units, such as perceptron:32".into()),
    }
}

impl Args {
    /// The defaults, the environment, and the options over both.
    fn training(&self) -> Result<Training, Failure> {
        let mut training = Training::default();
        let variable = match std::env::var(CLIP_FACTOR_VARIABLE) {
            Ok(value) => Some(value),
            Err(std::env::VarError::NotPresent) => None,
            Err(std::env::VarError::NotUnicode(value)) => Some(value.to_string_lossy().into_owned()),
        };
        training.threshold = match (self.max_norm, &self.threshold) {
            (Some(bound), _) => Some(Threshold::Fixed(bound)),
            (None, Some(threshold)) => Some(threshold.clone()),
            (None, None) => max_norm_from(variable.as_deref())?.map(Threshold::Fixed),
        };
        training.granularity = self.granularity.unwrap_or(training.granularity);
        training.model = self.model.unwrap_or(training.model);
        training.clients = self.clients.unwrap_or(training.clients);
        training.hostile = self.hostile;
        training.attack = self.attack.unwrap_or(training.attack);
        training.boost = self.boost.unwrap_or(training.boost);
        training.rounds = self.rounds.unwrap_or(training.rounds);
        training.local_steps = self.local_steps.unwrap_or(training.local_steps);
        training.batch_size = self.batch_size.unwrap_or(training.batch_size);
        training.learning_rate = self.learning_rate.unwrap_or(training.learning_rate);
        training.seed = self.seed.unwrap_or(training.seed);
        training.scope = self.scope.unwrap_or(training.scope);
        training.place = self.clip_at.unwrap_or(training.place);
        training.validate()?;
        Ok(training)
    }
}

fn describe(training: &Training) -> String {
    let clipping = match &training.threshold {
        None => "clipping switched off".to_owned(),
        Some(threshold) => {
            let bound = threshold::name(threshold);
            let scope = match training.scope {
                ClipScope::Hostile => "hostile clients",
                ClipScope::All => "all clients",
            };
            let place = match training.place {
                ClipAt::Server => "at the server",
                ClipAt::LocalStep => "in their local steps",
            };
            format!("{scope} clipped to {bound} {place}")
        }
    };
    format!(
        "{} with {} params, {} rounds, {} clients, {} of them hostile ({}), seed {}\n{clipping}",
        training.model.name(),
        training.model.params(),
        training.rounds,
        training.clients,
        training.hostile_clients(),
        training.attack,
        training.seed
    )
}

fn table(runs: &[RunReport]) -> String {
    let head =
        ["run", "test accuracy", "honest norms: median", "max", "hostile: median", "max", "rows clipped"];
    let number = |value: Option<f32>| match value {
        None => "-".to_owned(),
        // Unclipped attacks may blow a model up to any size.
        Some(value) if value >= 1e6 => format!("{value:.3e}"),
        Some(value) => format!("{value:.3}"),
    };
    let cells = |i: usize| {
        let run: &RunReport = &runs[i];
        vec![
            run.name.to_owned(),
            format!("{:.4}", run.accuracy),
            number(run.honest_norm_median),
            number(run.honest_norm_max),
            number(run.hostile_norm_median),
            number(run.hostile_norm_max),
            run.clipped.to_string(),
        ]
    };
    display::table(&head, runs.len(), cells)
}

fn reports(comparison: &Comparison) -> Vec<RunReport> {
    let report = |(run, outcome): (Run, &byzclip::train::Outcome)| RunReport {
        name: run.name(),
        accuracy: outcome.accuracy,
        honest_norm_median: outcome.honest.median,
        honest_norm_max: outcome.honest.max,
        hostile_norm_median: outcome.hostile.median,
        hostile_norm_max: outcome.hostile.max,
        clipped: outcome.clipped,
        zeroed: outcome.zeroed,
    };
    let Comparison { no_attack, attack, attack_clipped } = comparison;
    Run::ALL.into_iter().zip([no_attack, attack, attack_clipped]).map(report).collect()
}
