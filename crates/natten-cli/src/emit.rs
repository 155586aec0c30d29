//! `natten emit`: what the library makes of a description, as text. Of a program: the program itself, the algorithm of
//! its rows, and its derivatives, all as the backends take them.

use std::fmt::Write;

use clap::{Args, Subcommand};
use natten::geometry::MAX_RANK;
use natten::program::{
    Algorithm, Capture, Expr, Field, Given, GradStages, Graph, LoadGradient, Lowered, LoweredVector, Program, Pushed,
};
use natten::{DType, Result};

use crate::console;
use crate::program::ProgramArgs;

/// What `natten emit` is asked.
#[derive(Debug, Args)]
pub(crate) struct EmitArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// A program, the algorithm of its rows, its derivatives and their tangents.
    Expr(Box<ExprArgs>),
}

#[derive(Debug, Args)]
struct ExprArgs {
    /// Token axes: 1 to 3.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=MAX_RANK as i64))]
    rank: u8,

    #[command(flatten)]
    program: ProgramArgs,

    /// A tensor that the texts use: its name, where it is no f32 its dtype, and its shape; slope:8, doc:i32:1024,
    /// bias:8,13,13. A name alone is a scalar's. May be given several times.
    #[arg(long, value_name = "NAME[:DTYPE][:SHAPE]", value_parser = capture, help_heading = "Program")]
    capture: Vec<Capture>,
}

fn capture(text: &str) -> Result<Capture, String> {
    let mut parts = text.split(':');
    let name = parts.next().unwrap_or_default();
    let rest: Vec<&str> = parts.collect();
    let (dtype, shape) = match rest[..] {
        [] => (None, ""),
        [dtype] if dtype.starts_with(|c: char| c.is_ascii_alphabetic()) => (Some(dtype), ""),
        [shape] => (None, shape),
        [dtype, shape] => (Some(dtype), shape),
        _ => return Err("it must be NAME, NAME:SHAPE, NAME:DTYPE or NAME:DTYPE:SHAPE".to_owned()),
    };
    let dtype: DType = dtype.map_or(Ok(DType::F32), str::parse).map_err(|error| error.to_string())?;
    let extents = shape.split(',').filter(|_| !shape.is_empty());
    let shape: Vec<usize> = extents
        .map(|extent| extent.trim().parse().map_err(|_| format!("'{extent}' is no extent: the shape must be like 8,13,13")))
        .collect::<Result<_, _>>()?;
    Ok(Capture::new(name, &shape, dtype))
}

/// Prints what is asked.
///
/// # Errors
/// [`Error::Program`](natten::Error::Program) and [`Error::Invalid`](natten::Error::Invalid) where the program breaks a
/// rule.
pub(crate) fn run(args: &EmitArgs) -> Result<()> {
    let What::Expr(args) = &args.what;
    let program = args.program.build(usize::from(args.rank), args.capture.clone())?;
    console::print(&describe(&program))
}

/// The program and everything that is derived from it.
fn describe(program: &Program) -> String {
    let mut page = Page::default();
    page.section("program");
    for capture in program.captures() {
        page.row(&capture.name, format!("captured, {} {:?}", capture.dtype, capture.shape));
    }
    for line in program.to_string().lines() {
        let (field, text) = line.split_once(": ").unwrap_or(("", line));
        page.row(field, text);
    }
    for (field, expr) in [Field::QueryMod, Field::KeyMod, Field::ValueMod].into_iter().zip(program.mods()) {
        if let Some(expr) = expr {
            page.vector(program, field, expr, true);
        }
    }
    match program.decay() {
        Some(decay) => {
            page.section("recurrence: state = exp(decay)*state + outer(key, value), output = scale*query·state");
            page.vector(program, Field::Decay, decay, false);
        }
        None => page.attention(program),
    }
    page.text()
}

/// Sections of rows, each a name and a text, the texts below each other.
#[derive(Debug, Default)]
struct Page(Vec<(String, Vec<(String, String)>)>);

impl Page {
    fn section(&mut self, title: impl Into<String>) {
        self.0.push((title.into(), Vec::new()));
    }

    fn row(&mut self, name: impl Into<String>, text: impl Into<String>) {
        if let Some((_, rows)) = self.0.last_mut() {
            rows.push((name.into(), text.into()));
        }
    }

    fn text(&self) -> String {
        let names = self.0.iter().flat_map(|(_, rows)| rows).map(|(name, _)| name.chars().count());
        let width = names.max().unwrap_or(0);
        let mut text = String::new();
        for (title, rows) in &self.0 {
            let break_ = if text.is_empty() { "" } else { "\n" };
            let _ = writeln!(text, "{break_}{title}");
            for (name, row) in rows {
                let _ = writeln!(text, "  {name:<width$}  {row}");
            }
        }
        text
    }

    /// The functions of pairs and rows.
    fn attention(&mut self, program: &Program) {
        let mut given = Given::default();
        (given.score, given.grad, given.grad_logsumexp) = (true, true, program.logsumexp().is_some());
        given.captures = program.differentiable_captures();
        let lowered = Lowered::new(program, false, &given);
        let names: Vec<&str> = program.row().stages.iter().map(|stage| stage.name.as_str()).collect();
        let print = |expr: Expr| program.print(&lowered.graph, expr);

        self.section(match lowered.algorithm {
            Algorithm::OnePass { exponential: Some(k), .. } => format!(
                "row, in one pass: output = factor * sum(local*value), shift = the running maximum of what {} is of; \
                 sums are multiplied with exp(old - new) when it grows",
                names[usize::from(k)]
            ),
            Algorithm::OnePass { .. } => "row, in one pass: output = factor * sum(local*value)".to_owned(),
            _ => "row, in two passes: the stages, then output = sum(weight*value)".to_owned(),
        });
        for (name, stage) in names.iter().zip(&lowered.stages) {
            self.row(*name, format!("{}({})", stage.reduce.name(), print(stage.element.value)));
        }
        if let Algorithm::OnePass { local, factor, .. } = lowered.algorithm {
            self.row("local", print(local));
            self.row("factor", print(factor));
        }
        self.row("weight", print(lowered.weight.value));

        self.section("backward: g = <grad_output, value>, delta = <grad_output, output>");
        let (cotangents, is_summed): (&[Pushed], bool) = match &lowered.grad_stages {
            GradStages::OfRow(cotangents) => (cotangents, false),
            GradStages::OfPairs(cotangents) => (cotangents, true),
            _ => (&[], false),
        };
        for (k, (name, cotangent)) in (0u8..).zip(names.iter().zip(cotangents)) {
            let mut text = print(cotangent.value);
            if is_summed {
                text = format!("sum({text})");
                if lowered.logsumexp == Some(k) {
                    text += " + grad_logsumexp";
                }
            }
            self.row(format!("grad_{name}"), text);
        }
        self.row("ds", print(lowered.grad_score.value));
        self.loads(program, &lowered.graph, &lowered.loads, |pushed| pushed.value, "");

        self.section("tangents: ' is the tangent of the variable or the tensor");
        self.row("x'", print(lowered.score.tangent));
        for (name, stage) in names.iter().zip(&lowered.stages) {
            self.row(format!("element of {name}'"), print(stage.element.tangent));
        }
        if matches!(lowered.algorithm, Algorithm::OnePass { .. }) {
            self.row("local'", print(lowered.local_tangent));
            self.row("factor'", print(lowered.factor_tangent));
        }
        self.row("weight'", print(lowered.weight.tangent));
        for (name, cotangent) in names.iter().zip(cotangents) {
            let text = print(cotangent.tangent);
            self.row(format!("grad_{name}'"), if is_summed { format!("sum({text})") } else { text });
        }
        self.row("ds'", print(lowered.grad_score.tangent));
        self.loads(program, &lowered.graph, &lowered.loads, |pushed| pushed.tangent, "'");
    }

    /// The functions of a vector function; of a decay, which is of no vector, where not `has_input`.
    fn vector(&mut self, program: &Program, field: Field, expr: Expr, has_input: bool) {
        let lowered = LoweredVector::new(program, expr, has_input, true, &program.differentiable_captures());
        let print = |expr: Expr| program.print(&lowered.graph, expr);
        let name = field.name();
        if has_input {
            self.section(format!("{name}: y is the element of what takes the vector's place, grad_x its cotangent"));
        }
        self.row("y", print(lowered.value.value));
        if has_input {
            self.row("grad of x", print(lowered.gradient.value));
        }
        self.loads(program, &lowered.graph, &lowered.loads, |pushed| pushed.value, "");
        self.row("y'", print(lowered.value.tangent));
        if has_input {
            self.row("grad of x'", print(lowered.gradient.tangent));
        }
        self.loads(program, &lowered.graph, &lowered.loads, |pushed| pushed.tangent, "'");
    }

    /// What is added to the gradients of captured elements.
    fn loads(
        &mut self,
        program: &Program,
        graph: &Graph,
        loads: &[LoadGradient],
        part: impl Fn(&Pushed) -> Expr,
        mark: &str,
    ) {
        for load in loads {
            let name = &program.captures()[usize::from(load.capture)].name;
            let index: Vec<String> = load.index.iter().map(|&axis| program.print(graph, axis)).collect();
            let place = if index.is_empty() { String::new() } else { format!("[{}]", index.join(", ")) };
            self.row(format!("grad_{name}{place}{mark} +="), program.print(graph, part(&load.gradient)));
        }
    }
}
