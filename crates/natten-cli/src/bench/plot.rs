//! Rates as bars, one group a case, in an SVG file.

use std::io::Write;
use std::path::Path;

use natten::{Error, Result};
use plotters::prelude::*;

use super::report::{Entry, Results};
use crate::output;

/// The height of a bar, in pixels.
const BAR: u32 = 16;

/// The width of the picture.
const WIDTH: u32 = 1000;

/// Draws the results, and what others have of the same cases.
///
/// # Errors
/// [`Error::Io`] where the file cannot be written; [`Error::Device`] where the drawing fails.
pub(crate) fn write(path: &Path, results: &Results, others: &[Results]) -> Result<()> {
    let text =
        draw(results, others).map_err(|message| Error::Device { backend: "the plot".into(), message })?;
    output::write(path, |file| file.write_all(text.as_bytes()))
}

/// An entry's bars, its own first.
fn bars<'a>(entry: &'a Entry, others: &'a [Results]) -> Vec<&'a Entry> {
    let same = others.iter().flat_map(|other| &other.entries).filter(|other| other.is_of(entry));
    std::iter::once(entry).chain(same).filter(|entry| entry.failure.is_none()).collect()
}

fn draw(results: &Results, others: &[Results]) -> Result<String, String> {
    let groups: Vec<Vec<&Entry>> = results.entries.iter().map(|entry| bars(entry, others)).collect();
    let groups: Vec<Vec<&Entry>> = groups.into_iter().filter(|group| !group.is_empty()).collect();
    // A bar's place each, and one between groups.
    let places = groups.iter().map(|group| group.len() + 1).sum::<usize>().max(1);
    let largest = groups.iter().flatten().map(|entry| entry.tflops).fold(1e-9, f64::max);
    let mut text = String::new();
    {
        let height = 60 + BAR * u32::try_from(places).unwrap_or(u32::MAX / BAR / 2);
        let root = SVGBackend::with_string(&mut text, (WIDTH, height)).into_drawing_area();
        let failed = |error: DrawingAreaErrorKind<_>| error.to_string();
        root.fill(&WHITE).map_err(failed)?;
        let mut chart = ChartBuilder::on(&root)
            .caption(format!("{}, TFLOP/s of visible pairs", results.device), ("sans-serif", 16))
            .x_label_area_size(24)
            .margin(8)
            .build_cartesian_2d(0.0..largest * 1.6, 0.0..places as f64)
            .map_err(failed)?;
        chart.configure_mesh().disable_y_mesh().disable_y_axis().draw().map_err(failed)?;
        let mut place = places as f64;
        for group in &groups {
            place -= 1.0;
            for (number, entry) in group.iter().enumerate() {
                let colour = if number == 0 { RGBColor(31, 119, 180) } else { RGBColor(170, 170, 170) };
                let corners = [(0.0, place - 0.9), (entry.tflops, place - 0.1)];
                let bar = Rectangle::new(corners, colour.filled());
                let label =
                    format!("{:.4} {} {} {} {}", entry.tflops, entry.peer, entry.case, entry.dtype, entry.op);
                let label =
                    Text::new(label, (entry.tflops + largest * 0.01, place - 0.15), ("sans-serif", 12));
                chart.draw_series([bar]).map_err(failed)?;
                chart.draw_series([label]).map_err(failed)?;
                place -= 1.0;
            }
        }
        root.present().map_err(failed)?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use natten::{DType, DeviceInfo, DeviceKind, Op};

    use super::super::measure::Measured;
    use super::*;

    #[test]
    fn every_case_has_a_bar_and_failures_have_none() {
        let second = std::time::Duration::from_secs(1);
        let measured = Measured {
            median: second,
            least: second,
            useful_flops: 2e12,
            visited_flops: 2e12,
            memory: 0,
            workspace: 0,
            config: Vec::new(),
            error: None,
        };
        let mut results = Results::new(&DeviceInfo::new("cuda", "H200", DeviceKind::Gpu));
        let entry = |case, measured| Entry::new(case, Op::Forward, DType::Bf16, "cuda", measured);
        results.entries.push(entry("one", Ok(measured)));
        results.entries.push(entry("two", Err(Error::Cancelled)));
        let text = draw(&results, &[results.clone()]).unwrap();
        assert!(text.starts_with("<svg") && text.contains("H200"), "{text}");
        assert_eq!(text.matches("natten-rs cuda one").count(), 2, "{text}");
        assert!(!text.contains(" two "), "{text}");
    }
}
