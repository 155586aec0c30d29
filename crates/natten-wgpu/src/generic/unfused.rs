//! The unfused pair, whose attention weights lie in memory: the walks of the fused operations on functions that read a
//! slot, and a shader that writes slots.

use natten_core::{Op, Result, Role};

use super::Builder;
use super::attention::Sweep;
use crate::template::Fill;

const SLOTS: &str = include_str!("../wgsl/slots.wgsl");
const ROWS: &str = include_str!("../wgsl/rows.wgsl");

impl Builder<'_> {
    pub(super) fn unfused(&mut self) -> Result<()> {
        match self.request.op {
            Op::Qk => self.slots(Role::Attention, "score", "-inf()"),
            Op::QkJvp => self.slots(Role::TangentAttention, "score_t", "R(0.0)"),
            Op::QkBackward => self.gradients("grad_score", "DA", "DA")?,
            Op::Av | Op::AvJvp => {
                let (name, role) = match self.request.op {
                    Op::Av => ("TO_OUT", Role::Output),
                    _ => ("TO_OUT_T", Role::TangentOutput),
                };
                let at = self.result(role);
                self.regions.put(name, at);
                self.rows_of_slots("weight", "A", "AT")?;
            }
            _ => {
                if self.wants(Role::GradAttention) {
                    self.slots(Role::GradAttention, "grad", "R(0.0)");
                }
                self.gradients("weight", "A", "A")?;
            }
        }
        Ok(())
    }

    /// Writes every slot.
    fn slots(&mut self, role: Role, field: &'static str, empty: &'static str) {
        let at = self.result(role);
        let mut regions = self.regions.clone();
        regions.put("TO_A", at);
        let fill = Fill::default()
            .flag("SCORES", field != "grad")
            .flag("GRADS", field == "grad")
            .value("FIELD", field)
            .value("EMPTY", empty);
        let source = self.walk(&regions, SLOTS, fill, "");
        self.run("slots", source, self.len(role));
    }

    /// Functions of a slot: a number in memory and its tangent, where it has one.
    fn functions_of_slots(&self, name: &str, region: &str, tangent: &str) -> String {
        let tangent = match self.request.op.is_forward_mode() && self.regions.get(tangent).is_some() {
            true => format!("arena[{tangent} + slot_of(at)]"),
            false => "R(0.0)".to_owned(),
        };
        let of = |prefix: &str| {
            format!(
                "fn {prefix}_mask(at: Site, row: Row) -> bool {{ return true; }}\n\
                 fn {prefix}_{name}(at: Site, row: Row, x: Pair) -> array<R, 2> {{\n    \
                 return array<R, 2>(arena[{region} + slot_of(at)], {tangent});\n}}\n"
            )
        };
        of("w") + &of("a")
    }

    fn kinds(&self) -> usize {
        if self.problem.additional_tokens() > 0 { 2 } else { 1 }
    }

    /// The walk with stationary queries: the output from weights, or the gradient of the query from cotangents.
    fn rows_of_slots(&mut self, name: &str, region: &str, tangent: &str) -> Result<()> {
        let is_output = name == "weight";
        let functions = self.functions_of_slots(name, region, tangent);
        let kinds = self.kinds();
        let pairs = if is_output { self.add_value() } else { self.add_key() };
        let fill = Fill::default()
            .flag("TANGENTS", self.request.op.is_forward_mode())
            .flag("SWEEP_OUTPUT", is_output)
            .flag("SWEEP_GRAD_QUERY", !is_output)
            .value("BEFORE_SWEEPS", "")
            .value("SWEEPS", self.sweeps(kinds, &[Sweep { pairs, then: String::new() }]));
        let source = self.walk(&self.regions, ROWS, fill, &functions);
        let rows = [self.problem.batch(), self.problem.heads()].iter().map(|&n| n as u64).product::<u64>();
        let queries: usize = self.problem.neighborhood().query_shape().iter().product();
        self.check_loops("rows", self.of_row())?;
        self.run("rows", source, rows * queries as u64);
        Ok(())
    }

    /// Gradients of the inputs from functions of a slot.
    fn gradients(&mut self, name: &str, region: &str, tangent: &str) -> Result<()> {
        let op = self.request.op;
        let of_scores = name == "grad_score";
        if self.wanted.query {
            let at = self.result(Role::GradQuery);
            self.regions.put("TO_DQ", at);
            self.rows_of_slots(name, region, tangent)?;
        }
        let (of_keys, of_values) = (self.wanted.key, self.wanted.value);
        let (at, roles, to) = match of_scores {
            true => (self.arena, [Role::Key, Role::AdditionalKey], "TO_DK"),
            false => (self.arena, [Role::Value, Role::AdditionalValue], "TO_DV"),
        };
        if of_keys || of_values {
            self.reserve_vectors(roles, op, true);
            self.regions.put(to, at);
            let functions = self.functions_of_slots(name, region, tangent);
            let source = self.keys_shader(self.kinds(), false, of_keys, of_values, &functions);
            self.check_loops("keys", self.of_key())?;
            self.run("keys", source, self.key_vectors());
        }
        if self.wanted.rpb {
            let functions = self.functions_of_slots(name, region, tangent);
            let body = "let ds = $P$_grad_score(at, row, x);\narena[table + bias_entry(at)] += ds[0];\n";
            self.scatter(Role::GradRpb, [false, true, false], 1, &functions, body, false)?;
        }
        Ok(())
    }
}
