//! The program of a call: the texts of its fields, or a finished [`Program`], and the tensors that it captures.

use std::sync::Arc;

use natten_core::program::{Capture, Field, Program};
use natten_core::{Error, HostElement, Problem, Result, Role};

use crate::execute::{Operand, Operands};

/// What a call computes of its scores.
#[derive(Clone, Debug)]
pub(crate) struct Script<'a, T> {
    program: Option<Arc<Program>>,
    texts: Vec<(Field, String)>,
    dropout: Option<(f64, u64)>,
    captures: Vec<(String, Operand<'a, T>)>,
    constants: Vec<String>,
}

impl<T> Default for Script<'_, T> {
    fn default() -> Self {
        Self { program: None, texts: Vec::new(), dropout: None, captures: Vec::new(), constants: Vec::new() }
    }
}

impl<'a, T: HostElement> Script<'a, T> {
    pub(crate) fn program(&mut self, program: Arc<Program>) {
        self.program = Some(program);
    }

    /// The text of a field. Of several masks all must hold; of any other field the last text counts.
    pub(crate) fn text(&mut self, field: Field, text: String) {
        match self.texts.iter_mut().find(|(given, _)| *given == field) {
            Some((Field::Mask, mask)) => *mask = format!("({mask}) && ({text})"),
            Some((_, given)) => *given = text,
            None => self.texts.push((field, text)),
        }
    }

    pub(crate) fn dropout(&mut self, p: f64, seed: u64) {
        self.dropout = Some((p, seed));
    }

    pub(crate) fn capture(&mut self, name: String, operand: Operand<'a, T>) {
        self.captures.push((name, operand));
    }

    pub(crate) fn constant(&mut self, name: String) {
        self.constants.push(name);
    }

    /// The program, over `rank` token axes.
    ///
    /// # Errors
    /// [`Error::Program`] and [`Error::Invalid`] for texts, names and probabilities that break a rule.
    pub(crate) fn build(&self, rank: usize) -> Result<Arc<Program>> {
        if let Some(program) = &self.program {
            self.check_nothing_beside()?;
            return Ok(Arc::clone(program));
        }
        let mut builder = Program::builder(rank);
        for (name, operand) in &self.captures {
            let capture = Capture::new(name, operand.shape(), operand.dtype());
            let is_constant = self.constants.contains(name);
            builder = builder.capture(if is_constant { capture.constant() } else { capture });
        }
        if let Some(name) = self.constants.iter().find(|name| self.captured(name).is_none()) {
            return Err(Error::invalid(
                "constant",
                format!("'{name}'"),
                "no captured tensor has this name",
                "capture it first: .capture(name, array).constant(name)",
            ));
        }
        for (field, text) in &self.texts {
            builder = builder.text(*field, text);
        }
        if let Some((p, seed)) = self.dropout {
            self.check_dropout(p)?;
            builder = builder.dropout(p, seed);
        }
        builder.build().map(Arc::new)
    }

    fn captured(&self, name: &str) -> Option<&Operand<'a, T>> {
        self.captures.iter().find(|(given, _)| given == name).map(|(_, operand)| operand)
    }

    fn check_nothing_beside(&self) -> Result<()> {
        let text = self.texts.first().map(|(field, _)| field.name());
        let dropout = self.dropout.map(|_| "dropout");
        let constant = self.constants.first().map(|_| "constant");
        match text.or(dropout).or(constant) {
            None => Ok(()),
            Some(beside) => Err(Error::invalid(
                beside,
                "given",
                "the call has a finished program, which says everything",
                "set it where the program is built, or leave the program out",
            )),
        }
    }

    fn check_dropout(&self, p: f64) -> Result<()> {
        if !(0.0..=1.0).contains(&p) {
            return Err(Error::invalid(
                "dropout",
                p,
                "it is the probability that a weight is dropped, from 0 to 1",
                "leave it out for none",
            ));
        }
        if self.texts.iter().any(|(field, _)| *field == Field::Post) {
            return Err(Error::invalid(
                "dropout",
                p,
                "the call has a post text too, and weights have one multiplier",
                "write the dropout into the text: select(random(seed) >= p, 1/(1-p), 0.0)",
            ));
        }
        Ok(())
    }

    /// The captured tensors as inputs of `problem`.
    ///
    /// # Errors
    /// [`Error::Invalid`] where a tensor is missing, is not of the program, or has another shape or dtype than it says.
    pub(crate) fn operands(&self, problem: &Problem) -> Result<Operands<'_, T>> {
        let roles = (0..problem.program().captures().len() as u8).map(Role::Capture);
        let roles: Vec<Role> = roles.filter(|&role| problem.has_input(role)).collect();
        let names = || roles.iter().map(|&role| problem.name(role)).collect::<Vec<_>>().join(", ");
        for (name, _) in &self.captures {
            if !roles.iter().any(|&role| problem.name(role) == *name) {
                return Err(Error::invalid(
                    name.clone(),
                    "captured",
                    "no text of the program loads from it",
                    match &*names() {
                        "" => "the program loads from no tensor: leave it out".to_owned(),
                        names => format!("the program loads from {names}: leave it out, or rename it"),
                    },
                ));
            }
        }
        let operand = |role: Role| {
            let name = problem.name(role).into_owned();
            let (shape, dtype) = (problem.shape(role), problem.dtype_of(role));
            let given = self.captured(&name);
            match given {
                Some(operand) if operand.shape() == shape && operand.dtype() == dtype => Ok((role, operand.reborrow())),
                _ => Err(Error::invalid(
                    name,
                    given.map_or("missing".to_owned(), |o| format!("{:?} of {}", o.shape(), o.dtype())),
                    format!("the program captures {shape:?} of {dtype}"),
                    "give it by capture(name, array), capture_i32 or capture_tensor",
                )),
            }
        };
        roles.iter().copied().map(operand).collect()
    }
}
