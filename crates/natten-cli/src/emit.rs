//! `natten emit`: what the library makes of a description, as text. Of a program: the program itself, the algorithm of
//! its rows, and its derivatives, all as the backends take them; of an operation the shaders that run it, or the
//! NeuronCore's kernels.

#[cfg(feature = "wgpu")]
mod wgsl;

use std::fmt::Write;

use clap::{Args, Subcommand};
use natten::geometry::MAX_RANK;
use natten::program::{
    Algorithm, Capture, Expr, Field, Given, GradStages, Graph, LoadGradient, Lowered, LoweredVector, Program,
    Pushed,
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
    /// The WGSL of an operation as one JSON text that a page can run with nothing but navigator.gpu.
    #[cfg(feature = "wgpu")]
    Wgsl(Box<wgsl::WgslArgs>),
    /// A kernel of the NeuronCore in NKI Python.
    #[cfg(feature = "neuron")]
    Nki(crate::neuron::NkiArgs),
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

pub(crate) fn capture(text: &str) -> Result<Capture, String> {
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
        .map(|extent| {
            extent
                .trim()
                .parse()
                .map_err(|_| format!("'{extent}' is no extent: the shape must be like 8,13,13"))
        })
        .collect::<Result<_, _>>()?;
    Ok(Capture::new(name, &shape, dtype))
}

/// Prints what is asked.
///
/// # Errors
/// [`Error::Program`](natten::Error::Program) and [`Error::Invalid`](natten::Error::Invalid) where the program breaks a
/// rule.
pub(crate) fn run(args: &EmitArgs) -> Result<()> {
    let args = match &args.what {
        What::Expr(args) => args,
        #[cfg(feature = "wgpu")]
        What::Wgsl(args) => return wgsl::run(args),
        #[cfg(feature = "neuron")]
        What::Nki(args) => return crate::neuron::emit(args),
    };
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
            let title =
                format!("{field}: y takes the place of the element x of the vector, grad_x is y's cotangent");
            page.vector(program, title, expr, true);
        }
    }
    match program.decay() {
        Some(decay) => {
            let title = "recurrence: state = exp(y)*state + outer(key, value), output = scale*<query, state>; \
                         grad_x is y's cotangent";
            page.vector(program, title.to_owned(), decay, false);
        }
        None => page.attention(program),
    }
    page.text()
}

/// An expression with its name, and what is written around it.
struct Line {
    name: String,
    expr: Expr,
    around: Option<(String, String)>,
}

impl Line {
    fn new(name: impl Into<String>, expr: Expr) -> Self {
        Self { name: name.into(), expr, around: None }
    }

    fn around(self, before: String, after: &str) -> Self {
        Self { around: Some((before, after.to_owned())), ..self }
    }

    /// What others can call the expression: of one within a reduction, the name is not its own.
    fn label(&self) -> &str {
        if self.around.is_some() { "" } else { &self.name }
    }
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
            let gap = if text.is_empty() { "" } else { "\n" };
            let _ = writeln!(text, "{gap}{title}");
            for (name, row) in rows {
                let _ = writeln!(text, "  {name:<width$}  {row}");
            }
        }
        text
    }

    /// Sections of expressions of one graph. What they share is written once, where it is first needed.
    fn sections(&mut self, program: &Program, graph: &Graph, sections: &[(String, Vec<Line>)]) {
        let lines = || sections.iter().flat_map(|(_, lines)| lines);
        let roots: Vec<(&str, Expr)> = lines().map(|line| (line.label(), line.expr)).collect();
        let mut lists = program.list(graph, &roots).into_iter();
        for (title, lines) in sections {
            self.section(title);
            for (line, list) in lines.iter().zip(lists.by_ref()) {
                let mut texts = list.into_iter();
                let own = texts.next_back().map(|(_, text)| text).unwrap_or_default();
                texts.for_each(|(name, text)| self.row(name, text));
                self.row(
                    &line.name,
                    match &line.around {
                        Some((before, after)) => format!("{before}{own}{after}"),
                        None => own,
                    },
                );
            }
        }
    }

    /// The functions of pairs and rows.
    fn attention(&mut self, program: &Program) {
        let mut given = Given::default();
        (given.score, given.grad, given.grad_logsumexp) = (true, true, program.logsumexp().is_some());
        given.captures = program.differentiable_captures();
        let lowered = Lowered::new(program, false, &given);
        let stages = || program.row().stages.iter().zip(&lowered.stages).map(|(stage, of)| (&stage.name, of));

        let mut row = vec![Line::new("x", lowered.score.value)];
        for (name, stage) in stages() {
            row.push(Line::new(name, stage.element.value).around(format!("{}(", stage.reduce.name()), ")"));
        }
        let title = match lowered.algorithm {
            Algorithm::OnePass { local, factor, exponential } => {
                row.extend([Line::new("local", local), Line::new("factor", factor)]);
                let shift = exponential.map_or_else(String::new, |stage| {
                    let name = &program.row().stages[usize::from(stage)].name;
                    format!("; shift = the largest x of {name} so far, sums are multiplied with exp(old - new) when it grows")
                });
                format!("row, in one pass: output = factor*sum(local*value){shift}")
            }
            _ => "row, in two passes: the reductions, then output = sum(weight*value)".to_owned(),
        };
        row.push(Line::new("weight", lowered.weight.value));

        let (cotangents, is_summed): (&[Pushed], bool) = match &lowered.grad_stages {
            GradStages::OfRow(cotangents) => (cotangents, false),
            GradStages::OfPairs(cotangents) => (cotangents, true),
            _ => (&[], false),
        };
        let (mut backward, mut tangents) = (Vec::new(), vec![Line::new("x'", lowered.score.tangent)]);
        for (name, stage) in stages() {
            // The tangent of a reduction is that of its elements, weighted with their share.
            tangents.push(Line::new(format!("of {name}'"), stage.element.tangent));
        }
        if matches!(lowered.algorithm, Algorithm::OnePass { .. }) {
            tangents.push(Line::new("local'", lowered.local_tangent));
            tangents.push(Line::new("factor'", lowered.factor_tangent));
        }
        tangents.push(Line::new("weight'", lowered.weight.tangent));
        for (k, ((name, _), cotangent)) in (0u8..).zip(stages().zip(cotangents)) {
            let (name, has_direct) = (format!("grad_{name}"), lowered.logsumexp == Some(k));
            let line = |mark: &str, expr| {
                let line = Line::new(format!("{name}{mark}"), expr);
                let direct = if has_direct { format!(") + grad_logsumexp{mark}") } else { ")".to_owned() };
                if is_summed { line.around("sum(".to_owned(), &direct) } else { line }
            };
            backward.push(line("", cotangent.value));
            tangents.push(line("'", cotangent.tangent));
        }
        backward.push(Line::new("ds", lowered.grad_score.value));
        tangents.push(Line::new("ds'", lowered.grad_score.tangent));
        for load in &lowered.loads {
            let name = element(program, &lowered.graph, load);
            backward.push(Line::new(format!("{name} +="), load.gradient.value));
            tangents.push(Line::new(format!("{name}' +="), load.gradient.tangent));
        }
        let sections = [
            (title, row),
            ("backward: g = <grad_output, value>, delta = <grad_output, output>".to_owned(), backward),
            ("tangents: those of variables and captured tensors have a '".to_owned(), tangents),
        ];
        self.sections(program, &lowered.graph, &sections);
    }

    /// The functions of a vector function; of a decay, which is of no vector, where not `has_input`.
    fn vector(&mut self, program: &Program, title: String, expr: Expr, has_input: bool) {
        let lowered = LoweredVector::new(program, expr, has_input, true, &program.differentiable_captures());
        let (mut values, mut tangents) =
            (vec![Line::new("y", lowered.value.value)], vec![Line::new("y'", lowered.value.tangent)]);
        if has_input {
            values.push(Line::new("grad of x", lowered.gradient.value));
            tangents.push(Line::new("grad of x'", lowered.gradient.tangent));
        }
        for load in &lowered.loads {
            let name = element(program, &lowered.graph, load);
            values.push(Line::new(format!("{name} +="), load.gradient.value));
            tangents.push(Line::new(format!("{name}' +="), load.gradient.tangent));
        }
        values.extend(tangents);
        self.sections(program, &lowered.graph, &[(title, values)]);
    }
}

/// The gradient of an element of a captured tensor, by the name that it has in texts.
fn element(program: &Program, graph: &Graph, load: &LoadGradient) -> String {
    let name = &program.captures()[usize::from(load.capture)].name;
    let index: Vec<String> = load.index.iter().map(|&axis| program.print(graph, axis)).collect();
    if index.is_empty() { format!("grad_{name}") } else { format!("grad_{name}[{}]", index.join(", ")) }
}
