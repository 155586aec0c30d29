//! What a program's vector functions make of queries, keys and values, before everything else; and their gradients,
//! behind it.

use natten_core::program::{Buffer, Expr, Index, LoweredVector, Primal, Var};
use natten_core::{Op, Result, Role};

use super::functions::{Names, load_roots, loads_struct, store_loads};
use super::{Builder, OPERANDS};
use crate::render::math::Real;
use crate::render::{Leaves, render_vector};
use crate::template::Fill;

const VECTORS: &str = include_str!("../wgsl/vectors.wgsl");

/// Where the vectors lie that a vector function is of: themselves, their tangents, the cotangents of what takes their
/// place, and the tangents of those.
#[derive(Clone, Copy, Debug, Default)]
struct Places {
    x: Option<u64>,
    x_t: Option<u64>,
    grad: Option<u64>,
    grad_t: Option<u64>,
}

/// The leaves of a vector function at an element.
struct Element<'p> {
    names: Names<'p>,
    places: Places,
    lane: String,
}

impl Leaves for Element<'_> {
    fn real(&self) -> Real {
        self.names.real
    }

    fn var(&self, var: Var) -> Option<String> {
        let place = match var {
            Var::X => self.places.x,
            Var::GradX => self.places.grad,
            Var::Tangent(Primal::X) => self.places.x_t,
            Var::Tangent(Primal::GradX) => self.places.grad_t,
            _ => return None,
        };
        Some(match place {
            Some(at) => format!("arena[{at}u + base + u32({})]", self.lane),
            None => "R(0.0)".to_owned(),
        })
    }

    fn index(&self, index: Index) -> Option<String> {
        match index {
            Index::Lane => Some(self.lane.clone()),
            Index::Dim => Some("dim".to_owned()),
            _ => self.names.index(index),
        }
    }

    fn load(&self, buffer: Buffer, index: &[String]) -> Option<String> {
        self.names.load(buffer, index)
    }

    fn random(&self, low: &str, high: &str) -> Option<String> {
        self.names.random(low, high)
    }
}

/// What is made of vectors.
enum Wanted<'a> {
    /// Vectors at a place, of an expression.
    Vectors(Expr, u64),
    /// Tables of a captured tensor's gradient: where they lie and how many, their entries; the loads and their shape.
    Tables { at: u64, pieces: u64, entries: u64, roots: Vec<Expr>, count: usize, shape: &'a [usize] },
}

/// What vector functions took the place of, as it was given.
#[derive(Clone, Copy, Debug)]
pub(super) struct Replaced {
    x: u64,
    x_t: Option<u64>,
}

impl Builder<'_> {
    /// The vector function of queries, keys or values.
    pub(super) fn mod_of(&self, role: Role) -> Option<Expr> {
        self.problem.program().mods()[number_of(role)]
    }

    /// Applies vector functions: from here on the walks see what they make.
    pub(super) fn apply_mods(&mut self) -> Result<()> {
        let captures = self.tangents.captures.clone();
        for operand in &OPERANDS {
            let (role, [name, name_t]) = (operand.roles[0], operand.names);
            let (Some(expr), Some(x)) = (self.mod_of(role), self.regions.get(name)) else { continue };
            let places = Places { x: Some(x), x_t: self.regions.get(name_t), ..Places::default() };
            let lowered =
                LoweredVector::new(self.problem.program(), expr, places.x_t.is_some(), false, &captures);
            let at = self.arena;
            self.reserve_vectors(operand.roles, Op::Forward, false);
            self.vectors(role, &lowered, places, &Wanted::Vectors(lowered.value.value, at))?;
            self.replaced[number_of(role)] = Some(Replaced { x, x_t: places.x_t });
            if (operand.has_tangent)(&self.tangents) {
                let at_t = self.arena;
                self.reserve_vectors(operand.roles, Op::Forward, false);
                self.vectors(role, &lowered, places, &Wanted::Vectors(lowered.value.tangent, at_t))?;
                self.regions.put(name_t, at_t);
            }
            self.regions.put(name, at);
        }
        Ok(())
    }

    /// The gradients of what vector functions were given, from those of what they made, and of what they load.
    pub(super) fn pull_mods(&mut self) -> Result<()> {
        let (op, captures) = (self.request.op, self.tangents.captures.clone());
        let is_tangent = op == Op::BackwardJvp;
        let wanted = [self.wanted.query, self.wanted.key, self.wanted.value];
        for (operand, names) in
            OPERANDS.iter().zip([["TO_DQ", "TO_DQ_T"], ["TO_DK", "TO_DK_T"], ["TO_DV", "TO_DV_T"]])
        {
            let number = number_of(operand.roles[0]);
            let (Some(expr), Some(given), true) =
                (self.problem.program().mods()[number], self.replaced[number], wanted[number])
            else {
                continue;
            };
            let places = Places {
                x: Some(given.x),
                x_t: given.x_t,
                grad: self.regions.get(names[0]),
                grad_t: self.regions.get(names[1]),
            };
            let lowered = LoweredVector::new(
                self.problem.program(),
                expr,
                given.x_t.is_some(),
                places.grad_t.is_some(),
                &captures,
            );
            let at = self.arena;
            self.reserve_vectors(operand.roles, op, true);
            let gradient = if is_tangent { lowered.gradient.tangent } else { lowered.gradient.value };
            self.vectors(operand.roles[0], &lowered, places, &Wanted::Vectors(gradient, at))?;
            for capture in self.wanted.captures.clone() {
                let loads: Vec<_> = lowered.loads.iter().filter(|load| load.capture == capture).collect();
                if loads.is_empty() {
                    continue;
                }
                let role = if is_tangent { Role::Grad2Capture(capture) } else { Role::GradCapture(capture) };
                let shape = self.problem.program().captures()[usize::from(capture)].shape.clone();
                let (at, pieces) = self.tables_for(role, self.vectors_of(operand.roles[0]));
                let entries = self.len(role);
                let roots = load_roots(&loads, is_tangent);
                let tables = Wanted::Tables { at, pieces, entries, roots, count: loads.len(), shape: &shape };
                self.vectors(operand.roles[0], &lowered, places, &tables)?;
            }
        }
        Ok(())
    }

    /// Vectors of queries, or of keys, additional ones counted.
    fn vectors_of(&self, role: Role) -> u64 {
        match role {
            Role::Query => self.len(Role::Query) / self.problem.head_dim() as u64,
            _ => self.key_vectors(),
        }
    }

    fn vectors(
        &mut self,
        role: Role,
        lowered: &LoweredVector,
        places: Places,
        wanted: &Wanted<'_>,
    ) -> Result<()> {
        let (roots, functions) = match wanted {
            Wanted::Vectors(expr, _) => (vec![*expr], String::new()),
            Wanted::Tables { roots, count, .. } => (roots.clone(), loads_struct('v', *count)),
        };
        let mut names = self.names();
        if role != Role::Query {
            // Keys and values count key heads.
            names.first.head = names.first.head_kv;
        }
        let leaves = |lane: &str| -> Box<dyn Leaves + '_> {
            Box::new(Element { names, places, lane: lane.to_owned() })
        };
        let text = render_vector(self.problem.program(), &lowered.graph, &roots, &leaves)?;
        let vectors = self.vectors_of(role);
        let mut sizes = format!("const VECTORS: u32 = {}u;\n", vectors.max(1));
        let (store, invocations) = match wanted {
            Wanted::Vectors(_, at) => {
                (format!("    arena[{at}u + base + u32(d)] = {};\n", text.results[0]), vectors)
            }
            Wanted::Tables { at, pieces, entries, count, shape, .. } => {
                sizes += &format!(
                    "const PIECES: u32 = {pieces}u;\nconst ENTRIES: u32 = {entries}u;\nconst TABLE: u32 = {at}u;\n"
                );
                let add = format!(
                    "    for (var i = 0; i < {count}; i++) {{ arena[table + u32(loads.element[i])] += loads.gradient[i]; }}\n"
                );
                let loads = store_loads(&text.results, shape);
                (format!("    var loads = v_Loads();\n{loads}{add}"), if vectors == 0 { 0 } else { *pieces })
            }
        };
        let dim = if role == Role::Value { self.problem.head_dim_v() } else { self.problem.head_dim() };
        let fill = Fill::default()
            .flag("OF_QUERIES", role == Role::Query)
            .flag("SCATTER", matches!(wanted, Wanted::Tables { .. }))
            .value("LENGTH", dim)
            .value("SUMS", &text.sums)
            .value("EACH", &text.each)
            .value("STORE", store);
        let source = self.walk(&super::Regions::default(), VECTORS, fill, &functions) + &sizes;
        self.run("vectors", source, invocations);
        Ok(())
    }
}

/// The place among query, key and value.
const fn number_of(role: Role) -> usize {
    match role {
        Role::Query => 0,
        Role::Key => 1,
        _ => 2,
    }
}
