//! The histogram as an SVG.

use std::path::Path;

use plotters::prelude::*;

use super::{Analysis, Bin};
use crate::cli::failure::Failure;
use crate::cli::output::{self, Pending};

/// Draws the norms on a logarithmic axis, and the recommended bound as a line.
pub(super) fn write(path: &Path, analysis: &Analysis) -> Result<(), Failure> {
    let mut svg = String::new();
    draw(&mut svg, analysis).map_err(|e| {
        Failure::Failed(format!(
            "cannot draw {}: got \"{e}\"; leave --plot out and report this",
            path.display()
        ))
    })?;
    let mut file = Pending::create(path)?;
    file.write_at(0, svg.as_bytes())?;
    output::finish(vec![file.complete()?])
}

fn draw(svg: &mut String, analysis: &Analysis) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(svg, (900, 500)).into_drawing_area();
    root.fill(&WHITE)?;
    let bound = analysis.recommended.as_ref().map(|recommended| f64::from(recommended.max_norm).log10());
    let edges = analysis.histogram.iter().flat_map(|bin| [log10(bin.from), log10(bin.to)]).chain(bound);
    let (low, high) =
        edges.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| (low.min(x), high.max(x)));
    // Nothing to draw, or one value only: still a picture.
    let (low, high) = if low < high { (low, high) } else { (low.min(0.0) - 0.5, low.min(0.0) + 0.5) };
    let most = analysis.histogram.iter().map(|bin| bin.count).max().unwrap_or(0).max(1);
    let title = format!("L2 norms of {} client updates", analysis.clients);
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 22))
        .margin(15)
        .x_label_area_size(45)
        .y_label_area_size(55)
        .build_cartesian_2d(low..high, 0..most + most.div_ceil(10))?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .max_light_lines(1)
        .x_desc("norm (logarithmic)")
        .y_desc("clients")
        .x_label_formatter(&|x| axis_label(10f64.powf(*x)))
        .draw()?;
    let bar = |bin: &Bin| {
        Rectangle::new([(log10(bin.from), 0), (log10(bin.to), bin.count)], RGBColor(70, 110, 170).filled())
    };
    chart.draw_series(analysis.histogram.iter().map(bar))?;
    if let (Some(x), Some(recommended)) = (bound, &analysis.recommended) {
        let line = [(x, 0), (x, most)];
        chart
            .draw_series(LineSeries::new(line, RGBColor(200, 40, 40).stroke_width(2)))?
            .label(format!("recommended bound {}", recommended.max_norm))
            .legend(|(x, y)| PathElement::new([(x, y), (x + 20, y)], RGBColor(200, 40, 40)));
        let upper = SeriesLabelPosition::UpperRight;
        chart
            .configure_series_labels()
            .position(upper)
            .margin(15)
            .border_style(BLACK.mix(0.3))
            .background_style(WHITE)
            .draw()?;
    }
    root.present()?;
    Ok(())
}

/// A norm in three digits, without an exponent where that is short.
fn axis_label(norm: f64) -> String {
    if (1e-2..1e4).contains(&norm) { format!("{norm:.2}") } else { format!("{norm:.2e}") }
}

fn log10(norm: f32) -> f64 {
    f64::from(norm).log10()
}
