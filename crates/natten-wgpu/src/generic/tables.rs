//! Gradients of captured tensors and of the bias: each is added up from tables, of which every invocation that adds to it
//! has one that no other one writes to at the same elements.

use std::fmt::Write;

use natten_core::program::{Loads, Lowered};
use natten_core::{Op, Result, Role};

use super::Builder;
use super::functions::Functions;
use crate::sequence::Step;
use crate::template::Fill;

const SCATTER: &str = include_str!("../wgsl/scatter.wgsl");
const REDUCE: &str = include_str!("../wgsl/reduce.wgsl");

/// Elements that the tables of one tensor may take, beyond the one that it needs.
const MOST_ELEMENTS: u64 = 4 << 20;

/// The most tables of one tensor.
const MOST_PIECES: u64 = 4096;

/// The tables of all tensors: where they lie, and how many.
#[derive(Debug, Default)]
pub(super) struct Tables(Vec<Table>);

#[derive(Debug)]
struct Table {
    role: Role,
    at: u64,
    pieces: u64,
}

impl Builder<'_> {
    /// Tables for a result, cleared, for work that falls apart into `inner` rows which may meet in an element: where they
    /// lie, and how many there are.
    pub(super) fn tables_for(&mut self, role: Role, inner: u64) -> (u64, u64) {
        let entries = self.len(role);
        // The rest of the arena has to find room beside them.
        let most = MOST_ELEMENTS.min(self.target.most_binding() / self.real.size() / 4);
        let pieces = (most / entries.max(1)).clamp(1, MOST_PIECES).min(inner).max(1);
        let at = self.reserve(pieces * entries);
        if entries > 0 {
            self.steps.push(Step::Clear { at, len: pieces * entries });
        }
        self.tables.0.push(Table { role, at, pieces });
        (at, pieces)
    }

    /// What pairs add to captured tensors and to the bias.
    pub(super) fn scatter_all(&mut self, lowered: &[Lowered]) -> Result<()> {
        if self.wanted.rpb {
            let role = if self.request.op == Op::BackwardJvp { Role::Grad2Rpb } else { Role::GradRpb };
            let is_tangent = self.request.op == Op::BackwardJvp;
            let mut functions = self.functions(&lowered[0], false).mask()?;
            functions += &self.functions(&lowered[0], false).grad_score()?;
            let body = format!(
                "let ds = $P$_grad_score(at, row, x);\narena[table + bias_entry(at)] += ds[{}];\n",
                usize::from(is_tangent)
            );
            self.scatter(role, [false, true, false], 1, &functions, &body, true)?;
        }
        for number in self.wanted.captures.clone() {
            let shape = self.problem.program().captures()[usize::from(number)].shape.clone();
            let loads = lowered.iter().flat_map(|lowered| {
                lowered.loads.iter().filter(|load| load.capture == number).map(|load| (&lowered.graph, load))
            });
            if loads.clone().next().is_none() {
                continue;
            }
            let determined = Loads::new(&shape, loads).rows_apart(self.problem);
            let is_tangent = self.request.op == Op::BackwardJvp;
            let mut functions = String::new();
            for (kind, lowered) in lowered.iter().enumerate() {
                let of = self.functions(lowered, kind == 1);
                functions += &of.mask()?;
                functions += &of.loads(number, &shape, is_tangent)?;
            }
            let body = "let loads = $P$_loads(at, row, x);\nfor (var i = 0; i < $P$_LOADS; i++) {\n    \
                        arena[table + u32(loads.element[i])] += loads.gradient[i];\n}\n";
            let role = if is_tangent { Role::Grad2Capture(number) } else { Role::GradCapture(number) };
            self.scatter(role, determined, lowered.len(), &functions, body, true)?;
        }
        Ok(())
    }

    fn functions<'a>(&'a self, lowered: &Lowered, is_additional: bool) -> Functions<'a> {
        Functions::new(self.problem, lowered.clone(), self.names(), is_additional)
    }

    /// Runs the shader that adds what pairs contribute to tables. `determined` says which of batch entry, head and query
    /// the elements' indices determine.
    pub(super) fn scatter(
        &mut self,
        role: Role,
        determined: [bool; 3],
        kinds: usize,
        functions: &str,
        body: &str,
        is_fused: bool,
    ) -> Result<()> {
        let problem = self.problem;
        let queries: usize = problem.neighborhood().query_shape().iter().product();
        let extents = [problem.batch(), problem.heads(), queries].map(|n| n as u64);
        let of =
            |is: bool| extents.iter().zip(determined).filter(|(_, d)| *d == is).map(|(&n, _)| n).product();
        let (outer, inner): (u64, u64) = (of(true), of(false));
        let (at, pieces) = self.tables_for(role, inner);
        let mut row = String::new();
        for ((name, extent), is_determined) in ["b", "h", "q"].iter().zip(extents).zip(determined).rev() {
            let rest = if is_determined { "outer" } else { "inner" };
            let _ = writeln!(row, "        let {name} = {rest} % {extent}u;\n        {rest} /= {extent}u;");
        }
        let fill = Fill::default()
            .flag("SCORES", is_fused)
            .flag("GRADS", is_fused)
            .value("ROW_OF_UNIT", row)
            .value("SWEEP", self.sweep(kinds, body));
        // Which of the axes may be empty does not matter: then there is no unit.
        let sizes = format!(
            "const OUTER: u32 = {}u;\nconst INNER: u32 = {inner}u;\nconst PIECES: u32 = {pieces}u;\n\
             const ENTRIES: u32 = {}u;\nconst TABLE: u32 = {at}u;\n",
            outer.max(1),
            self.len(role),
        );
        let source = self.walk(&self.regions, SCATTER, fill, functions) + &sizes;
        let is_empty = extents.contains(&0);
        self.check_loops("scatter", inner.div_ceil(pieces) * self.of_row())?;
        self.run("scatter", source, if is_empty { 0 } else { outer * pieces });
        Ok(())
    }

    /// Adds up the tables of every wanted gradient; one that nothing adds to is zero.
    pub(super) fn add_up_tables(&mut self) {
        let mut tables = std::mem::take(&mut self.tables).0;
        let wanted: Vec<Role> = self.request.wants.iter().filter(|&role| is_tabled(role)).collect();
        for role in wanted {
            let entries = self.len(role);
            let to = self.result(role);
            // Tables of several shaders that do not lie one behind the other are added one kind after the other.
            let (of_role, others): (Vec<Table>, Vec<Table>) =
                tables.into_iter().partition(|table| table.role == role);
            tables = others;
            if entries == 0 {
                continue;
            }
            let places: Vec<u64> =
                of_role.iter().flat_map(|table| (0..table.pieces).map(|p| table.at + p * entries)).collect();
            let runs = runs_of(&places, entries);
            if runs.is_empty() {
                self.steps.push(Step::Clear { at: to, len: entries });
            }
            for (i, (at, pieces)) in runs.into_iter().enumerate() {
                let sizes = format!(
                    "const ENTRIES: u32 = {entries}u;\nconst PIECES: u32 = {pieces}u;\nconst TABLE: u32 = {at}u;\n\
                     const TO: u32 = {to}u;\n"
                );
                let prelude = crate::render::math::prelude(self.real, false);
                let reduce = match i {
                    0 => REDUCE.to_owned(),
                    // What came before is already there.
                    _ => REDUCE.replace("var sum = R(0.0);", "var sum = arena[TO + entry];"),
                };
                self.run("reduce", prelude + &sizes + &reduce, entries);
            }
        }
    }
}

/// Whether a result is added up from tables.
const fn is_tabled(role: Role) -> bool {
    matches!(role, Role::GradRpb | Role::Grad2Rpb | Role::GradCapture(_) | Role::Grad2Capture(_))
}

/// Places that lie one behind the other, put together: where each such run begins, and how many it has.
fn runs_of(places: &[u64], entries: u64) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for &place in places {
        match runs.last_mut() {
            Some((at, count)) if *at + *count * entries == place => *count += 1,
            _ => runs.push((place, 1)),
        }
    }
    runs
}
