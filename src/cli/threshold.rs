//! Thresholds on the command line, and the file that remembers them between calls.

use std::fmt;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use byzclip::threshold::{Adaptive, State};
use byzclip::{Clipping, Granularity, Layout, Threshold};
use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::failure::{Failure, excerpt};
use super::input_file;
use super::output::{Complete, Pending};
use super::{options, rows};

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
        Threshold::Fixed(bound) => format!("fixed:{}", rows::number(*bound)),
        Threshold::SplitEqual(total) => format!("fixed:{}, split equally", rows::number(*total)),
        Threshold::SplitBySize(total) => format!("fixed:{}, split by size", rows::number(*total)),
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

/// A state file: what it belongs to, and the state.
#[derive(Debug, Serialize, Deserialize)]
struct StateFile {
    byzclip_state: u32,
    threshold: String,
    /// What the threshold looked at.
    #[serde(default)]
    norms: String,
    clients: usize,
    spans: usize,
    #[serde(deserialize_with = "some_words")]
    words: Vec<u32>,
}

/// The version of the file's format.
const VERSION: u32 = 2;

/// Norms that a history may remember: 64 MiB of them.
const MOST_REMEMBERED: usize = 1 << 24;

/// Words of the longest state: norms, and for each group of at least one the number of its rounds.
const MOST_WORDS: usize = 2 * MOST_REMEMBERED;

/// Bytes of the longest state: eleven for a word in decimal with its comma, and what it belongs to.
const LONGEST: u64 = 11 * MOST_WORDS as u64 + (64 << 10);

/// Fails where a history would be longer than any that is read again.
fn check_history(threshold: &Threshold, norms: usize) -> Result<(), Failure> {
    match *threshold {
        Threshold::History { window, .. } if (window as usize).saturating_mul(norms) > MOST_REMEMBERED => {
            Err(Failure::Usage(format!(
                "got a history of {}, each of {}; expected at most 16,777,216 norms, those of all layers; take fewer rounds",
                rows::count(window as usize, "round"),
                rows::count(norms, "norm"),
            )))
        }
        _ => Ok(()),
    }
}

/// Reads words, but no more than any state has.
fn some_words<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u32>, D::Error> {
    struct Words;
    impl<'de> Visitor<'de> for Words {
        type Value = Vec<u32>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "the words of a state")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut words: A) -> Result<Vec<u32>, A::Error> {
            let mut all = Vec::new();
            while let Some(word) = words.next_element()? {
                if all.len() == MOST_WORDS {
                    return Err(A::Error::custom("too many words"));
                }
                all.push(word);
            }
            Ok(all)
        }
    }
    deserializer.deserialize_seq(Words)
}

/// What a threshold looks at: norms of another kind say nothing about these.
fn kind_of_norms(granularity: Granularity, is_centered: bool) -> &'static str {
    match (granularity, is_centered) {
        (Granularity::Row, false) => "norms of updates",
        (Granularity::Row, true) => "norms of differences from a centre",
        (Granularity::Segment, false) => "norms of layers",
        (Granularity::Segment, true) => "norms of layers' differences from a centre",
        (Granularity::Coordinate, _) => "largest magnitudes",
    }
}

/// A threshold's state, and the file it is kept in.
pub(super) struct SavedState<'a> {
    pub state: State,
    path: Option<&'a Path>,
    described: StateFile,
}

impl<'a> SavedState<'a> {
    /// The state in the file, or a new one where there is no file or none was named.
    pub(super) fn load(
        path: Option<&'a Path>,
        clipping: &Clipping,
        is_centered: bool,
        layout: &Layout,
    ) -> Result<Self, Failure> {
        let mut saved = Self {
            state: State::default(),
            path,
            described: StateFile {
                byzclip_state: VERSION,
                threshold: name(&clipping.threshold),
                norms: kind_of_norms(clipping.granularity, is_centered).into(),
                clients: layout.clients(),
                spans: layout.span_count(clipping.granularity),
                words: Vec::new(),
            },
        };
        // First, because it has the narrower limit where there is one layer.
        clipping.threshold.check(layout, clipping.granularity)?;
        check_history(&clipping.threshold, saved.described.spans)?;
        let Some(path) = path else { return Ok(saved) };
        let (file, reader) = match input_file::open(path, "a state that byzclip wrote") {
            Ok(opened) => opened,
            Err(_) if matches!(path.try_exists(), Ok(false)) => return Ok(saved),
            Err(failure) => return Err(failure),
        };
        if file.length > LONGEST {
            let got = format!("{} bytes", file.length);
            let expected = format!("a state that byzclip wrote, of at most {LONGEST}");
            return Err(Failure::content(path, &got, &expected, "name another file"));
        }
        let file: StateFile = serde_json::from_reader(BufReader::new(reader.take(LONGEST))).map_err(|e| {
            if e.is_io() {
                return Failure::unreadable(path, &e.into());
            }
            Failure::content(
                path,
                &format!("\"{}\"", excerpt(&e.to_string())),
                "a state that byzclip wrote",
                "name another file, or remove this one",
            )
        })?;
        saved.described.check(&file, path)?;
        saved.state = State::from_words(file.words);
        Ok(saved)
    }

    /// The state that the run left, written and ready to take its place, if a file was named.
    pub(super) fn complete(self) -> Result<Option<Complete>, Failure> {
        let Some(path) = self.path else { return Ok(None) };
        let mut pending = Pending::create(path)?;
        pending.write_json(&StateFile { words: self.state.into_words(), ..self.described })?;
        Ok(Some(pending.complete()?))
    }
}

impl StateFile {
    /// Fails where a file belongs to something else.
    fn check(&self, file: &Self, path: &Path) -> Result<(), Failure> {
        let other = |got: String, expected: String| {
            Err(Failure::content(
                path,
                &got,
                &expected,
                "name another file, or remove this one to begin anew",
            ))
        };
        if file.byzclip_state != VERSION {
            return other(format!("version {}", file.byzclip_state), format!("version {VERSION}"));
        }
        if file.threshold != self.threshold {
            return other(
                format!("the state of {}", excerpt(&file.threshold)),
                format!("that of {}", self.threshold),
            );
        }
        if file.norms != self.norms {
            return other(
                format!("a state from {}", excerpt(&file.norms)),
                format!("one from {}", self.norms),
            );
        }
        if file.words.is_empty() && self.spans > 0 {
            return other("a state without words".into(), "the words that byzclip wrote".into());
        }
        if (file.clients, file.spans) != (self.clients, self.spans) {
            return other(
                format!("the state of {} clients with {} bounds", file.clients, file.spans),
                format!("{} clients with {}", self.clients, self.spans),
            );
        }
        Ok(())
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
