//! Timelines of simulations: one lane an engine, as a picture (SVG) and as a trace that Chrome's tracing page and
//! Perfetto read.

use std::fmt::Write;

use serde_json::json;

use crate::sim::report::{Lane, Report};

/// Pixels of a picture's lanes.
const WIDTH: f64 = 1100.0;
const LANE: f64 = 26.0;
const LEFT: f64 = 70.0;

/// A trace: complete events, microseconds, one thread a lane.
pub fn chrome_trace(report: &Report) -> String {
    let number = |lane: Lane| Lane::ALL.iter().position(|&other| other == lane).unwrap_or(0);
    let names = Lane::ALL.iter().map(|&lane| {
        json!({"name": "thread_name", "ph": "M", "pid": 0, "tid": number(lane), "args": {"name": lane.name()}})
    });
    let events = report.events.iter().map(|event| {
        json!({
            "name": event.name,
            "ph": "X",
            "pid": 0,
            "tid": number(event.lane),
            "ts": event.start / 1e3,
            "dur": (event.end - event.start) / 1e3,
            "args": {"instruction": event.instruction},
        })
    });
    json!({"displayTimeUnit": "ns", "traceEvents": names.chain(events).collect::<Vec<_>>()}).to_string()
}

/// A picture of the nanoseconds `from..to`.
pub fn svg(report: &Report, from: f64, to: f64) -> String {
    let to = to.min(report.nanoseconds).max(from + 1.0);
    let scale = WIDTH / (to - from);
    let height = LANE * Lane::ALL.len() as f64 + 60.0;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
        WIDTH + LEFT + 20.0
    );
    let title = format!(
        "{}: {:.2} to {:.2} us of {:.1} us",
        report.target.name,
        from / 1e3,
        to / 1e3,
        report.microseconds()
    );
    let _ = writeln!(text, "<text x=\"{LEFT}\" y=\"16\">{title}</text>");
    for (row, lane) in Lane::ALL.into_iter().enumerate() {
        let y = 26.0 + LANE * row as f64;
        let share = 100.0 * report.usage(lane).busy / report.nanoseconds.max(1.0);
        let _ = writeln!(text, "<text x=\"4\" y=\"{:.0}\">{} {share:.0}%</text>", y + 16.0, lane.name());
        let _ = writeln!(
            text,
            "<rect x=\"{LEFT}\" y=\"{y}\" width=\"{WIDTH}\" height=\"{}\" fill=\"#f2f2f2\"/>",
            LANE - 4.0
        );
        let inside = |start: f64, end: f64| end > from && start < to;
        let events =
            report.events.iter().filter(|event| event.lane == lane && inside(event.start, event.end));
        for event in events {
            let start = (event.start.max(from) - from) * scale;
            let width = ((event.end.min(to) - from) * scale - start).max(0.2);
            let _ = writeln!(
                text,
                "<rect x=\"{:.2}\" y=\"{y}\" width=\"{width:.2}\" height=\"{}\" fill=\"{}\" stroke=\"white\" \
                 stroke-width=\"0.3\"><title>{} {:.3}-{:.3} us</title></rect>",
                LEFT + start,
                LANE - 4.0,
                colour(event.name),
                event.name,
                event.start / 1e3,
                event.end / 1e3
            );
        }
    }
    let y = 26.0 + LANE * Lane::ALL.len() as f64 + 14.0;
    for (at, (name, colour)) in COLOURS.iter().enumerate() {
        let x = LEFT + 130.0 * at as f64;
        let _ = writeln!(
            text,
            "<rect x=\"{x}\" y=\"{:.0}\" width=\"10\" height=\"10\" fill=\"{colour}\"/>",
            y - 9.0
        );
        let _ = writeln!(text, "<text x=\"{:.0}\" y=\"{y}\">{name}</text>", x + 14.0);
    }
    text + "</svg>\n"
}

/// What is told apart by colour.
const COLOURS: [(&str, &str); 8] = [
    ("nc_matmul", "#3b6fb6"),
    ("nc_transpose", "#7fb2e5"),
    ("activation", "#d9822b"),
    ("tensor_scalar", "#3d9970"),
    ("reduce", "#1f5f43"),
    ("tensor_tensor", "#8a63a8"),
    ("dma_copy", "#9a9a9a"),
    ("other", "#c0504d"),
];

fn colour(name: &str) -> &'static str {
    let kind = match name {
        "nc_matmul" | "nc_transpose" | "activation" | "tensor_scalar" | "tensor_tensor" | "dma_copy" => name,
        "tensor_scalar_reduce" | "tensor_reduce" => "reduce",
        "scalar_tensor_tensor" => "tensor_tensor",
        _ => "other",
    };
    COLOURS.iter().find(|(of, _)| *of == kind).map_or("#c0504d", |(_, colour)| colour)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::allocate::allocate;
    use crate::dtype::Dtype;
    use crate::lower::sd::{Schedule, SdAttention};
    use crate::sim::time::time;
    use crate::target::Target;

    #[test]
    fn every_event_is_in_the_trace_and_every_lane_in_the_picture() {
        let kernel = SdAttention {
            len: 256,
            dim: 64,
            dtype: Dtype::F32,
            mixed_precision: true,
            causal: true,
            schedule: Schedule::Tutorial,
        };
        let kernel = kernel.lower().unwrap();
        let target = Target::v2();
        let report = time(&kernel, &target, &allocate(&kernel, &target).unwrap());
        let trace: serde_json::Value = serde_json::from_str(&chrome_trace(&report)).unwrap();
        let events = trace["traceEvents"].as_array().unwrap();
        assert_eq!(events.len(), report.events.len() + Lane::ALL.len());
        let svg = svg(&report, 0.0, f64::INFINITY);
        assert!(Lane::ALL.iter().all(|lane| svg.contains(&format!(">{} ", lane.name()))));
        assert_eq!(svg.matches("<title>").count(), report.events.len());
    }
}
