//! The shaders of the families with boxes, on the regions and functions that all walks share.

use natten_core::program::{Node, Var};
use natten_core::{Result, Role};

use super::Builder;
use super::functions::Functions;
use crate::matrix::{self, MATRIX};
use crate::matrix_backward::{self, MATRIX_BACKWARD, Pass};
use crate::pieces::HALVES;
use crate::row::{self, ROW};
use crate::sequence::{Binding, Run, workgroups};
use crate::template::Fill;
use crate::tiled::{self, REGISTER_TILE, TILED};
use crate::tiled_backward::{self, Side, TILED_BACKWARD};

const BOXES: &str = include_str!("../wgsl/boxes.wgsl");

impl Builder<'_> {
    /// Whether scores go through functions of the pair.
    fn has_program(&self) -> bool {
        let program = self.problem.program();
        let is_identity = *program.graph().node(program.score()) == Node::Var(Var::Score);
        !is_identity || program.mask().is_some() || self.problem.has_rpb()
    }

    /// The step of the matrix family.
    pub(super) fn matrix_forward(&self, shape: &matrix::Shape, pair: &Functions<'_>) -> Result<Run> {
        let has_program = self.has_program();
        let mut functions = BOXES.to_owned();
        if has_program {
            functions += &pair.mask()?;
            functions += &pair.stages()?;
        }
        let mut bindings = bindings_of(&functions);
        let fill = shape.fill(has_program, bindings.len());
        bindings.extend(
            self.packed
                .iter()
                .map(|packed| Binding::Packed { role: packed.role, is_written: packed.role == Role::Output }),
        );
        let functions = shape.constants() + HALVES + &functions;
        let source = shape.directives() + &self.walk(&self.regions, MATRIX, fill, &functions);
        Ok(Run { label: "matrices".to_owned(), source, bindings, workgroups: shape.workgroups() })
    }

    /// The step that works the numbers of rows out from packed gradients and outputs.
    pub(super) fn rows_of_packed(&self, rows: String, count: u64) -> Run {
        let packed = |number, name| {
            format!("@group(0) @binding({number}) var<storage, read> {name}: array<vec4<f16>>;\n")
        };
        let source =
            "enable f16;\n".to_owned() + &rows + &packed(1, "packed_grads") + &packed(2, "packed_outputs");
        let of = |role| Binding::Packed { role, is_written: false };
        Run {
            label: "rows".to_owned(),
            source,
            bindings: vec![Binding::Arena, of(Role::GradOutput), of(Role::Output)],
            workgroups: workgroups(count, self.target.workgroups),
        }
    }

    /// The steps of the matrix family's backward pass.
    pub(super) fn matrix_backward(
        &self,
        shape: &matrix_backward::Shape,
        pair: &Functions<'_>,
    ) -> Result<Vec<(Side, Run)>> {
        let has_program = self.has_program();
        let functions = if has_program { gradient_functions(pair)? } else { String::new() };
        let of_pass = |pass: Pass| {
            let mut bindings = bindings_of(&functions);
            let fill = shape.fill(&pass, has_program, bindings.len());
            let packed = pass.bindings().into_iter();
            bindings.extend(packed.map(|(_, role, is_written)| Binding::Packed { role, is_written }));
            let functions = [&shape.constants(&pass), BOXES, HALVES, &functions].concat();
            let source =
                shape.matrices.directives() + &self.walk(&self.regions, MATRIX_BACKWARD, fill, &functions);
            let label = if pass.side == Side::Keys { "matrices of keys" } else { "matrices of queries" };
            let workgroups = shape.workgroups(pass.side);
            (pass.side, Run { label: label.to_owned(), source, bindings, workgroups })
        };
        Ok(shape.passes().into_iter().map(of_pass).collect())
    }

    /// The shaders of the backward pass in tiles that are needed.
    pub(super) fn tiled_backward(
        &self,
        shape: &tiled_backward::Shape,
        pair: &Functions<'_>,
    ) -> Result<Vec<(Side, String)>> {
        let has_program = self.has_program();
        let functions = if has_program { gradient_functions(pair)? } else { String::new() };
        let is_wide =
            shape.reads_wide(has_program, &self.places(&["Q", "K", "V", "DO", "TO_DQ", "TO_DK", "TO_DV"]));
        let region = |name: &'static str| self.regions.get(name).map(|_| name);
        let mut sides = Vec::new();
        for (side, to) in
            [(Side::Queries, [region("TO_DQ"), None]), (Side::Keys, [region("TO_DK"), region("TO_DV")])]
        {
            if to != [None; 2] {
                let fill = shape.fill(self.problem, side, [has_program, is_wide], to);
                let functions = shape.constants(self.problem, side) + BOXES + &functions;
                let template = REGISTER_TILE.to_owned() + TILED_BACKWARD;
                sides.push((side, widened(self.walk(&self.regions, &template, fill, &functions), is_wide)));
            }
        }
        Ok(sides)
    }

    /// The shader of the tiled family.
    pub(super) fn tiled_forward(&self, shape: &tiled::Shape, pair: &Functions<'_>) -> Result<String> {
        let has_program = self.has_program();
        let mut functions = shape.constants(self.problem) + BOXES;
        if has_program {
            functions += &pair.mask()?;
            functions += &pair.stages()?;
        }
        let is_wide = shape.reads_wide(has_program, &self.places(&["Q", "K", "V", "TO_OUT"]));
        let fill = shape.fill(has_program, is_wide);
        let source = self.walk(&self.regions, &(REGISTER_TILE.to_owned() + TILED), fill, &functions);
        Ok(widened(source, is_wide))
    }

    /// Where regions begin, those of them that there are.
    fn places(&self, names: &[&'static str]) -> Vec<u64> {
        names.iter().filter_map(|name| self.regions.get(name)).collect()
    }

    /// The shader of the design to measure against.
    pub(super) fn row_forward(&self, shape: &row::Shape) -> String {
        let functions = shape.constants() + BOXES;
        self.walk(&self.regions, ROW, Fill::default(), &functions)
    }
}

/// A program's functions of a pair that gradients are made of.
fn gradient_functions(pair: &Functions<'_>) -> Result<String> {
    Ok(pair.mask()? + &pair.weight()? + &pair.grad_score()?)
}

/// What a shader binds first: the arena, and the captured integers where its functions read some.
fn bindings_of(functions: &str) -> Vec<Binding> {
    let integers = functions.contains("ints[").then_some(Binding::Integers { is_written: false });
    [Binding::Arena].into_iter().chain(integers).collect()
}

/// A shader that sees its memory as vectors of four, if it is to.
fn widened(source: String, is_wide: bool) -> String {
    match is_wide {
        true => source.replacen("arena: array<R>;", "arena: array<vec4<R>>;", 1),
        false => source,
    }
}
