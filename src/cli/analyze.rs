//! `byzclip analyze`: what the norms of a batch say about its clients, and about a bound for them.

mod plot;

use std::path::PathBuf;

use byzclip::threshold::{Adaptive, State};
use byzclip::{Backend, Clipping, Granularity, Layout, Norms, Status, Threshold};
use serde::Serialize;

use super::batch_file::BatchFile;
use super::failure::{Failure, Outcome};
use super::options::{BackendArgs, WindowArgs};
use super::progress::Progress;
use super::stream::Stream;
use super::{display, output, rows, threshold};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// One .npy (float32 or float16; a row per client, or one client), or a .safetensors per client.
    #[arg(value_name = "IN", required = true)]
    inputs: Vec<PathBuf>,
    /// Draw the histogram of the norms, with the recommended bound, as an SVG.
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    #[command(flatten)]
    backend: BackendArgs,
    #[command(flatten)]
    window: WindowArgs,
}

/// The quantiles that are printed.
const QUANTILES: [f64; 7] = [0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0];

/// The recommended bound lies between these multiples of the typical norm, as the founding study has it.
const LEAST_MULTIPLE: f32 = 2.0;
const GREATEST_MULTIPLE: f32 = 5.0;

/// A norm further above the median than this many robust standard deviations is an outlier.
const OUTLIER_SPREADS: f32 = 5.0;

/// Bins of the histogram.
const BINS: usize = 16;

#[derive(Debug, Serialize)]
struct Analysis {
    backend: &'static str,
    adapter: Option<String>,
    clients: usize,
    params: usize,
    /// Rows with NaN or Inf.
    non_finite: usize,
    quantiles: Vec<Quantile>,
    /// The median absolute deviation from the median, times 1.4826: a standard deviation that outliers do
    /// not move.
    spread: Option<f32>,
    outliers: Vec<Outlier>,
    histogram: Vec<Bin>,
    recommended: Option<Recommendation>,
    policies: Vec<Share>,
}

#[derive(Debug, Serialize)]
struct Quantile {
    q: f64,
    norm: f32,
}

#[derive(Debug, Serialize)]
struct Outlier {
    row: usize,
    norm: f32,
    /// How many times the median; none where that is no finite number, as of a median of 0.
    multiple: Option<f32>,
}

/// Norms from `from` up to `to`; the last bin holds `to` as well. Bins are equal on a logarithmic scale.
#[derive(Debug, Clone, Serialize)]
struct Bin {
    from: f32,
    to: f32,
    count: usize,
}

#[derive(Debug, Serialize)]
struct Recommendation {
    max_norm: f32,
    why: String,
}

/// What a policy would clip.
#[derive(Debug, Serialize)]
struct Share {
    threshold: String,
    bound: Option<rows::Bound>,
    clipped: usize,
    share: f64,
}

pub(super) fn run(args: &Args, json: bool) -> Result<Outcome, Failure> {
    let batch = BatchFile::open(&args.inputs)?;
    // Before all of them are read: policies look at so many norms, and not at more.
    for policy in policies(batch.layout.clients(), None) {
        policy.check(&batch.layout, Granularity::Row)?;
    }
    let backend = args.backend.open()?;
    let clipping = Clipping::default();
    let progress = Progress::start(batch.bytes());
    let stream = Stream::without_center(&batch, backend.as_ref(), &clipping, &args.window);
    let norms = stream.norms(&progress)?;
    stream.check_unchanged()?;
    drop(progress);
    let analysis = analyze(backend.as_ref(), &batch.layout, &norms)?;
    if let Some(path) = &args.plot {
        plot::write(path, &analysis)?;
    }
    if json {
        output::print_json(&analysis)?;
        return Ok(Outcome::Success);
    }
    let plotted = args.plot.as_ref().map(|path| format!("\ndrawn in {}\n", path.display()));
    output::print(&format!("{}\n{}{}", backend.ran(), describe(&analysis), plotted.unwrap_or_default()))?;
    Ok(Outcome::Success)
}

fn analyze(backend: &dyn Backend, layout: &Layout, norms: &Norms) -> Result<Analysis, Failure> {
    let all: Vec<f32> = norms.rows.iter().map(|norm| norm.value()).collect();
    let mut sorted: Vec<f32> = all.iter().copied().filter(|norm| norm.is_finite()).collect();
    sorted.sort_by(f32::total_cmp);
    let median = quantile(&sorted, 0.5);
    let spread = median.map(|median| spread(&sorted, median));
    let outliers = match (median, spread) {
        (Some(median), Some(spread)) => outliers(&all, median, spread),
        _ => Vec::new(),
    };
    let recommended = median.and_then(|median| recommend(&sorted, median, outliers.len()));
    let policies = policies(layout.clients(), recommended.as_ref().map(|r| r.max_norm));
    let ran = backend.ran();
    Ok(Analysis {
        backend: ran.backend.name(),
        adapter: ran.adapter,
        clients: layout.clients(),
        params: layout.params(),
        non_finite: all.len() - sorted.len(),
        quantiles: QUANTILES
            .iter()
            .filter_map(|&q| quantile(&sorted, q).map(|norm| Quantile { q, norm }))
            .collect(),
        spread,
        outliers,
        histogram: histogram(&sorted),
        recommended,
        policies: policies
            .into_iter()
            .map(|policy| share(backend, layout, norms, policy))
            .collect::<Result<_, _>>()?,
    })
}

/// The least norm that at least a fraction q of the sorted ones does not exceed.
fn quantile(sorted: &[f32], q: f64) -> Option<f32> {
    let rank = (q * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied()
}

fn spread(sorted: &[f32], median: f32) -> f32 {
    let mut deviations: Vec<f32> = sorted.iter().map(|norm| (norm - median).abs()).collect();
    deviations.sort_by(f32::total_cmp);
    1.4826 * quantile(&deviations, 0.5).unwrap_or(0.0)
}

/// Rows far above the median: by the spread, and by at least twice, since a spread may be 0.
fn outliers(norms: &[f32], median: f32, spread: f32) -> Vec<Outlier> {
    let far = |norm: f32| norm > median + OUTLIER_SPREADS * spread && norm > LEAST_MULTIPLE * median;
    let rows = norms.iter().enumerate().filter(|(_, norm)| !norm.is_nan() && far(**norm));
    let multiple = |norm: f32| Some(norm / median).filter(|multiple| multiple.is_finite());
    rows.map(|(row, &norm)| Outlier { row, norm, multiple: multiple(norm) }).collect()
}

/// The least bound, of 2 to 5 times the typical norm, that leaves every row that is no outlier alone.
fn recommend(sorted: &[f32], median: f32, outliers: usize) -> Option<Recommendation> {
    if median <= 0.0 {
        return None;
    }
    let usual = sorted.get(sorted.len().checked_sub(outliers + 1)?).copied()?;
    // A norm is rounded: the exact one may lie above, and the next number is above that.
    let max_norm = usual.next_up().clamp(LEAST_MULTIPLE * median, GREATEST_MULTIPLE * median);
    let multiple = max_norm / median;
    let reach = if usual > max_norm {
        format!("the greatest norm that is no outlier, {usual}, is above it")
    } else {
        format!("every norm that is no outlier, up to {usual}, stays below it")
    };
    Some(Recommendation {
        max_norm,
        why: format!("{multiple:.2} times the typical norm {median} (2 to 5 times is usual); {reach}"),
    })
}

/// Bins of equal width on a logarithmic scale; norms of 0 fall in the first.
fn histogram(sorted: &[f32]) -> Vec<Bin> {
    let Some(least) = sorted.iter().copied().find(|norm| *norm > 0.0) else { return Vec::new() };
    let greatest = sorted.last().copied().unwrap_or(least);
    let (low, high) = (f64::from(least).ln(), f64::from(greatest).ln());
    let bins = if greatest > least { BINS } else { 1 };
    let edge = |i: usize| (low + (high - low) * i as f64 / bins as f64).exp() as f32;
    let mut all: Vec<Bin> = (0..bins).map(|i| Bin { from: edge(i), to: edge(i + 1), count: 0 }).collect();
    for &norm in sorted {
        let position = (f64::from(norm).ln() - low) / (high - low).max(f64::MIN_POSITIVE) * bins as f64;
        // A norm of 0 has a logarithm of -inf, which the cast takes to 0.
        all[(position as usize).min(bins - 1)].count += 1;
    }
    all
}

/// The policies to compare, with usual settings.
fn policies(clients: usize, recommended: Option<f32>) -> Vec<Threshold> {
    let fixed = recommended.map(Threshold::Fixed);
    let adaptive = recommended.map(|bound| {
        let initial = bound.clamp(f32::MIN_POSITIVE, f32::MAX);
        Threshold::Adaptive(Adaptive { initial, ..Adaptive::default() })
    });
    let rest = [
        Threshold::Median { factor: 2.0 },
        Threshold::Quantile(0.9),
        Threshold::History { window: 1, factor: 2.0 },
        Threshold::Arc { byzantine: (clients / 5) as u32 },
    ];
    fixed.into_iter().chain(adaptive).chain(rest).collect()
}

fn share(backend: &dyn Backend, layout: &Layout, norms: &Norms, policy: Threshold) -> Result<Share, Failure> {
    let name = threshold::name(&policy);
    let clipping = Clipping { threshold: policy, ..Clipping::default() };
    let decisions = backend.threshold(layout, norms, &clipping, &mut State::default())?;
    let clipped = decisions.iter().filter(|decision| decision.status == Status::Clipped).count();
    Ok(Share {
        threshold: name,
        bound: decisions.first().map(|decision| rows::Bound(decision.bound)),
        clipped,
        share: clipped as f64 / decisions.len().max(1) as f64,
    })
}

fn describe(analysis: &Analysis) -> String {
    let mut text = format!("{} clients, {} params", analysis.clients, analysis.params);
    if analysis.non_finite > 0 {
        text.push_str(&format!(", {} with NaN, Inf or a norm too large for an f32", analysis.non_finite));
    }
    text.push_str("\n\n");
    let quantiles = &analysis.quantiles;
    if quantiles.is_empty() {
        text.push_str("no norm to analyze\n");
        return text;
    }
    text.push_str(&display::table(&["quantile", "norm"], quantiles.len(), |i| {
        vec![format!("{:.0} %", quantiles[i].q * 100.0), quantiles[i].norm.to_string()]
    }));
    if let Some(spread) = analysis.spread {
        text.push_str(&format!("robust spread (1.4826 MAD): {spread}\n"));
    }
    text.push_str(&bars(&analysis.histogram));
    text.push_str(&outlier_lines(&analysis.outliers));
    match &analysis.recommended {
        Some(Recommendation { max_norm, why }) => {
            text.push_str(&format!("\nrecommended: --max-norm {max_norm}\n  {why}\n\n"));
        }
        None => text.push_str("\nno bound to recommend: half of the norms are 0\n\n"),
    }
    let policies = &analysis.policies;
    text.push_str(&display::table_left(&["policy", "bound", "rows clipped", "share"], policies.len(), |i| {
        let Share { threshold, bound, clipped, share } = &policies[i];
        let bound = bound.map_or_else(|| "-".into(), |bound| bound.0.to_string());
        vec![threshold.clone(), bound, clipped.to_string(), format!("{:.1} %", share * 100.0)]
    }));
    text
}

/// The histogram in text, a line a bin.
fn bars(histogram: &[Bin]) -> String {
    const WIDTH: usize = 40;
    let most = histogram.iter().map(|bin| bin.count).max().unwrap_or(0).max(1);
    let mut text = String::from("\nnorms, logarithmic bins\n");
    for bin in histogram {
        // A bin that is not empty shows.
        let length = (bin.count * WIDTH).div_ceil(most);
        text.push_str(&format!("{:>12.5e}  {:<WIDTH$}  {}\n", bin.from, "#".repeat(length), bin.count));
    }
    text
}

fn outlier_lines(outliers: &[Outlier]) -> String {
    const SHOWN: usize = 10;
    if outliers.is_empty() {
        return "\nno outliers\n".into();
    }
    let rows = outliers.iter().take(SHOWN).map(|outlier| match outlier.multiple {
        Some(multiple) => format!("row {} ({multiple:.1} times the median)", outlier.row),
        None => format!("row {} (norm {})", outlier.row, outlier.norm),
    });
    let more = outliers.len().saturating_sub(SHOWN);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let count = display::count(outliers.len(), "outlier");
    format!("\n{count}: {}{more}\n", rows.collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn of(norms: &[f32]) -> Analysis {
        let layout = Layout::dense(norms.len(), 1).unwrap();
        let backend = byzclip::Cpu::new().unwrap();
        let norms = backend.norms(&layout, norms, &Clipping::default()).unwrap();
        analyze(&backend, &layout, &norms).unwrap()
    }

    #[test]
    fn hostile_rows_are_outliers_and_the_bound_leaves_the_others_alone() {
        let norms: Vec<f32> = (0..40).map(|i| 0.8 + i as f32 * 0.02).chain([60.0, 100.0, f32::NAN]).collect();
        let analysis = of(&norms);
        assert_eq!(analysis.outliers.iter().map(|o| o.row).collect::<Vec<_>>(), [40, 41]);
        assert_eq!(analysis.non_finite, 1);
        let bound = analysis.recommended.unwrap().max_norm;
        assert!(bound > 1.58 && bound < 5.0 * 1.2, "{bound}");
        assert_eq!(analysis.policies[0].clipped, 2);
        assert!(describe(&of(&norms[..40])).contains("no outliers"));
    }

    #[test]
    fn the_greatest_norm_that_is_no_outlier_is_not_clipped_by_a_hair() {
        // 2.5 times the median, and not a number that its square root rounds to.
        let layout = Layout::dense(9, 2).unwrap();
        let mut data = vec![0.7; 18];
        (0..9).for_each(|row| data[2 * row] = 0.1 + row as f32 * 0.21);
        let backend = byzclip::Cpu::new().unwrap();
        let norms = backend.norms(&layout, &data, &Clipping::default()).unwrap();
        let analysis = analyze(&backend, &layout, &norms).unwrap();
        assert_eq!((analysis.outliers.len(), analysis.policies[0].clipped), (0, 0));
    }

    #[test]
    fn every_norm_is_in_one_bin() {
        let norms: Vec<f32> = (0..1000).map(|i| (i as f32 * 0.01).exp()).chain([0.0]).collect();
        let analysis = of(&norms);
        assert_eq!(analysis.histogram.iter().map(|bin| bin.count).sum::<usize>(), 1001);
        assert!(analysis.histogram.iter().all(|bin| bin.count > 50));
    }

    #[test]
    fn batches_that_say_little_are_analyzed_too() {
        let none = ["no norm to analyze"];
        let zeros = ["no bound to recommend: half of the norms are 0", "1 outlier: row 2 (norm 1)"];
        let alike = ["no outliers", "recommended: --max-norm 4\n"];
        for (norms, bound, words) in [
            (&[][..], None, &none[..]),
            (&[f32::NAN], None, &["1 with NaN", none[0]]),
            (&[0.0, 0.0, 1.0], None, &zeros),
            (&[2.0], Some(4.0), &alike),
            (&[2.0; 7], Some(4.0), &alike),
        ] {
            let analysis = of(norms);
            assert_eq!(analysis.recommended.as_ref().map(|r| r.max_norm), bound, "{norms:?}");
            let text = describe(&analysis);
            words.iter().for_each(|word| assert!(text.contains(word), "{norms:?}: no \"{word}\" in {text}"));
        }
    }
}
