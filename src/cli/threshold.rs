//! Thresholds on the command line.

use std::path::PathBuf;

use byzclip::threshold::Adaptive;
use byzclip::{Granularity, Threshold};

use super::failure::Failure;
use super::{display, options};

/// How bounds are found.
#[derive(Debug, Clone, Default, clap::Args)]
#[group(required = false, multiple = true)]
pub(super) struct ThresholdArgs {
    /// A fixed bound: updates with a greater L2 norm are scaled down to it; `inf` clips nothing. The same
    /// as --threshold fixed:L.
    #[arg(long, value_name = "L", allow_hyphen_values = true, value_parser = options::parse_max_norm)]
    pub max_norm: Option<f32>,
    /// The policy that finds the bound: fixed:L, median:FACTOR, quantile:Q,
    /// adaptive:c0=1,target=0.8,rate=0.2[,min=..,max=..], history:window=20,factor=1, or arc:f=F.
    #[arg(long, value_name = "POLICY", allow_hyphen_values = true, conflicts_with = "max_norm",
          value_parser = parse_threshold)]
    pub threshold: Option<Threshold>,
    /// Bound every layer (tensor) on its own: each by the policy across clients (own), or by its share of
    /// one fixed total: C/√K of K layers (split-equal) or C·√(dᵢ/d) by size (split-by-size).
    #[arg(long, value_name = "own|split-equal|split-by-size", num_args = 0..=1, require_equals = true,
          default_missing_value = "own", value_parser = parse_per_layer)]
    pub per_layer: Option<PerLayer>,
    /// Cut every coordinate to a magnitude of at most C, instead of scaling updates; norms are then the
    /// largest magnitudes.
    #[arg(long, value_name = "C", allow_hyphen_values = true, value_parser = options::parse_max_norm,
          conflicts_with_all = ["max_norm", "threshold", "per_layer"])]
    pub per_coordinate: Option<f32>,
    /// Where an adaptive or history threshold remembers earlier calls; made by the first.
    #[arg(long, value_name = "FILE")]
    pub state: Option<PathBuf>,
}

/// How layers get their bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PerLayer {
    Own,
    SplitEqual,
    SplitBySize,
}

impl ThresholdArgs {
    pub(super) fn granularity(&self) -> Granularity {
        match (self.per_layer, self.per_coordinate) {
            (_, Some(_)) => Granularity::Coordinate,
            (Some(_), None) => Granularity::Segment,
            (None, None) => Granularity::Row,
        }
    }

    /// The threshold asked for.
    pub(super) fn threshold(&self) -> Result<Threshold, Failure> {
        let threshold = match (self.max_norm.or(self.per_coordinate), &self.threshold) {
            (Some(bound), _) => Threshold::Fixed(bound),
            (None, Some(threshold)) => threshold.clone(),
            (None, None) => {
                return Err(Failure::Usage(
                    "got no bound; expected --max-norm L or --threshold POLICY; pass a bound such as --max-norm 2.0"
                        .into(),
                ));
            }
        };
        let remembers = matches!(threshold, Threshold::Adaptive(_) | Threshold::History { .. });
        if let (Some(path), false) = (&self.state, remembers) {
            return Err(Failure::Usage(format!(
                "got --state {} with {}; expected a threshold that remembers: adaptive or history; leave out --state",
                path.display(),
                name(&threshold)
            )));
        }
        match (self.per_layer, threshold) {
            (None | Some(PerLayer::Own), threshold) => Ok(threshold),
            (Some(PerLayer::SplitEqual), Threshold::Fixed(total)) => Ok(Threshold::SplitEqual(total)),
            (Some(PerLayer::SplitBySize), Threshold::Fixed(total)) => Ok(Threshold::SplitBySize(total)),
            (Some(_), other) => Err(Failure::Usage(format!(
                "got a split of {}; expected a fixed total to split; use --max-norm, or --per-layer=own",
                name(&other)
            ))),
        }
    }
}

fn parse_per_layer(text: &str) -> Result<PerLayer, String> {
    match text {
        "own" => Ok(PerLayer::Own),
        "split-equal" => Ok(PerLayer::SplitEqual),
        "split-by-size" => Ok(PerLayer::SplitBySize),
        _ => Err("expected own, split-equal or split-by-size".into()),
    }
}

/// Reads a policy and its settings.
pub(super) fn parse_threshold(text: &str) -> Result<Threshold, String> {
    const EXPECTED: &str = "expected fixed:2.0, median:2, quantile:0.9, adaptive:c0=1,target=0.8,rate=0.2, \
                            history:window=20,factor=1 or arc:f=3";
    let (policy, settings) = text.split_once(':').unwrap_or((text, ""));
    let wrong = |what: &str| format!("got {what}; {EXPECTED}");
    let number =
        |text: &str| text.parse::<f64>().map_err(|_| wrong(&format!("\"{text}\" where a number belongs")));
    let narrow = |text: &str| number(text).and_then(|_| options::parse_f32(text));
    match policy {
        "fixed" => options::parse_max_norm(settings).map(Threshold::Fixed),
        "median" => match settings {
            "" => Ok(Threshold::Median { factor: 1.0 }),
            factor => Ok(Threshold::Median { factor: narrow(factor)? }),
        },
        "quantile" => Ok(Threshold::Quantile(number(settings)?)),
        "adaptive" => {
            let mut adaptive = Adaptive::default();
            for (key, value) in pairs(settings).map_err(|e| wrong(&e))? {
                match key {
                    "c0" => adaptive.initial = narrow(value)?,
                    "target" => adaptive.target = number(value)?,
                    "rate" => adaptive.rate = number(value)?,
                    "min" => adaptive.min = narrow(value)?,
                    "max" => adaptive.max = narrow(value)?,
                    _ => return Err(wrong(&format!("the unknown setting {key}"))),
                }
            }
            Ok(Threshold::Adaptive(adaptive))
        }
        "history" => {
            let (mut window, mut factor) = (20, 1.0);
            for (key, value) in pairs(settings).map_err(|e| wrong(&e))? {
                match key {
                    "window" => {
                        window = value.parse().map_err(|_| wrong("a window that is no whole number"))?
                    }
                    "factor" => factor = narrow(value)?,
                    _ => return Err(wrong(&format!("the unknown setting {key}"))),
                }
            }
            Ok(Threshold::History { window, factor })
        }
        "arc" => {
            let f = settings.strip_prefix("f=").unwrap_or(settings);
            f.parse()
                .map(|byzantine| Threshold::Arc { byzantine })
                .map_err(|_| wrong("no number of Byzantine clients"))
        }
        _ => Err(wrong(&format!("the unknown policy \"{policy}\""))),
    }
}

fn pairs(settings: &str) -> Result<Vec<(&str, &str)>, String> {
    let items = settings.split(',').filter(|item| !item.is_empty());
    items.map(|item| item.split_once('=').ok_or_else(|| format!("\"{item}\" without a value"))).collect()
}

/// The threshold as the command line writes it.
pub(super) fn name(threshold: &Threshold) -> String {
    match threshold {
        Threshold::Fixed(bound) => format!("fixed:{}", display::number(*bound)),
        Threshold::SplitEqual(total) => format!("fixed:{}, split equally", display::number(*total)),
        Threshold::SplitBySize(total) => format!("fixed:{}, split by size", display::number(*total)),
        Threshold::Median { factor } => format!("median:{factor}"),
        Threshold::Quantile(q) => format!("quantile:{q}"),
        Threshold::Adaptive(Adaptive { initial, target, rate, min, max }) => {
            let mut text = format!("adaptive:c0={initial},target={target},rate={rate}");
            let default = Adaptive::default();
            if *min != default.min {
                text.push_str(&format!(",min={min:e}"));
            }
            if *max != default.max {
                text.push_str(&format!(",max={max:e}"));
            }
            text
        }
        Threshold::History { window, factor } => format!("history:window={window},factor={factor}"),
        Threshold::Arc { byzantine } => format!("arc:f={byzantine}"),
        other => format!("{other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_read_and_written_back() {
        for text in [
            "fixed:2",
            "fixed:inf",
            "median:2.5",
            "quantile:0.9",
            "history:window=20,factor=1",
            "arc:f=3",
            "adaptive:c0=1,target=0.8,rate=0.2,min=1e-3,max=1e1",
        ] {
            assert_eq!(parse_threshold(text).map(|threshold| name(&threshold)), Ok(text.to_owned()));
        }
        assert_eq!(parse_threshold("arc:3"), Ok(Threshold::Arc { byzantine: 3 }));
        assert_eq!(parse_threshold("adaptive"), Ok(Threshold::Adaptive(Adaptive::default())));
    }

    #[test]
    fn other_words_are_refused() {
        for text in [
            "",
            "fixed",
            "fixed:-1",
            "fixed:nan",
            "median:x",
            "quantile",
            "quantile:",
            "adaptive:c0",
            "adaptive:x=1",
            "history:window=1.5",
            "arc",
            "arc:f=-1",
            "mean:2",
        ] {
            assert!(parse_threshold(text).is_err(), "{text}");
        }
    }
}
