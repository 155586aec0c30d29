//! What is measured: problems by name, in suites. `natten bench --list` prints them, so that other programs time the same.

use natten::geometry::{Alignment, AxisParams, Neighborhood};
use natten::program::{Capture, Program};
use natten::{DType, Problem, Result};
use serde_json::{Value, json};

/// A list of cases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Suite {
    /// What other libraries were measured on.
    Peers,
    /// Programs between the scores and the values.
    Programs,
    /// One problem at growing sizes.
    Scaling,
}

/// Which machines a case is sized for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Size {
    Host,
    Gpu,
}

/// Who sees whom along an axis.
#[derive(Clone, Copy, Debug)]
enum Sight {
    /// Everything.
    All,
    /// Everything up to itself.
    Past,
    /// A window, its stride and its dilation.
    Window(usize, usize, usize),
}

/// What is put between the scores and the values.
#[derive(Clone, Copy, Debug)]
enum Between {
    Softmax,
    Softcap,
    Alibi,
    Sigmoid,
}

/// A problem with a name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    /// The name, of one suite and size unique.
    pub(crate) name: &'static str,
    suite: Suite,
    size: Size,
    batch: usize,
    heads: usize,
    dim: usize,
    axes: &'static [(usize, Sight)],
    between: Between,
}

const fn case(name: &'static str, [batch, heads, dim]: [usize; 3], axes: &'static [(usize, Sight)]) -> Case {
    Case { name, suite: Suite::Peers, size: Size::Gpu, batch, heads, dim, axes, between: Between::Softmax }
}

impl Case {
    const fn on_host(self) -> Self {
        Self { size: Size::Host, ..self }
    }

    const fn scaling(self) -> Self {
        Self { suite: Suite::Scaling, ..self }
    }

    const fn with(self, between: Between) -> Self {
        Self { suite: Suite::Programs, between, ..self }
    }
}

const FULL: Sight = Sight::All;
const PAST: Sight = Sight::Past;

const fn window(kernel_size: usize) -> Sight {
    Sight::Window(kernel_size, 1, 1)
}

const fn strided(kernel_size: usize, stride: usize) -> Sight {
    Sight::Window(kernel_size, stride, 1)
}

const fn dilated(kernel_size: usize, dilation: usize) -> Sight {
    Sight::Window(kernel_size, 1, dilation)
}

/// Every case.
const CASES: &[Case] = &[
    case("full-16k-d128", [1, 16, 128], &[(16_384, FULL)]),
    case("full-16k-d64", [1, 32, 64], &[(16_384, FULL)]),
    case("causal-16k-d128", [1, 16, 128], &[(16_384, PAST)]),
    case("1d-32k-w2k", [1, 16, 128], &[(32_768, window(2048))]),
    case("1d-32k-w2k-s256", [1, 16, 128], &[(32_768, strided(2048, 256))]),
    case("flux-w80", [1, 24, 128], &[(256, window(80)), (256, window(80))]),
    case("flux-w80-s16", [1, 24, 128], &[(256, strided(80, 16)), (256, strided(80, 16))]),
    case("hunyuan", [1, 24, 128], &[(30, window(18)), (48, window(24)), (80, window(24))]),
    case(
        "hunyuan-s16.8.8",
        [1, 24, 128],
        &[(30, strided(18, 16)), (48, strided(24, 8)), (80, strided(24, 8))],
    ),
    case("dinat-64-k13", [8, 16, 64], &[(64, window(13)), (64, window(13))]),
    case("dinat-64-k13-d4", [8, 16, 64], &[(64, dilated(13, 4)), (64, dilated(13, 4))]),
    case("nat-56-k7-d32", [64, 4, 32], &[(56, window(7)), (56, window(7))]),
    case("na3d-16x24x24-k7", [1, 4, 64], &[(16, window(7)), (24, window(7)), (24, window(7))]),
    case("full-4k-d128", [1, 16, 128], &[(4096, FULL)]),
    case("full-4k-d64", [1, 16, 64], &[(4096, FULL)]),
    case("na2d-56-k7-d32", [1, 4, 32], &[(56, window(7)), (56, window(7))]).on_host(),
    case("na2d-64-k13-d64", [1, 8, 64], &[(64, window(13)), (64, window(13))]).on_host(),
    case("na2d-64-k13-d64-dil4", [1, 8, 64], &[(64, dilated(13, 4)), (64, dilated(13, 4))]).on_host(),
    case("na1d-4096-k255-d64", [1, 8, 64], &[(4096, window(255))]).on_host(),
    case("na3d-16x24x24-k7-d64", [1, 4, 64], &[(16, window(7)), (24, window(7)), (24, window(7))]).on_host(),
    case("full-2048-d64", [1, 8, 64], &[(2048, FULL)]).on_host(),
    case("full-2048-d128", [1, 8, 128], &[(2048, FULL)]).on_host(),
    case("full-16k-d128-softcap", [1, 16, 128], &[(16_384, FULL)]).with(Between::Softcap),
    case("full-16k-d128-alibi", [1, 16, 128], &[(16_384, FULL)]).with(Between::Alibi),
    case("full-16k-d128-sigmoid", [1, 16, 128], &[(16_384, FULL)]).with(Between::Sigmoid),
    case("flux-w80-softcap", [1, 24, 128], &[(256, window(80)), (256, window(80))]).with(Between::Softcap),
    case("full-1024-d64-softcap", [1, 8, 64], &[(1024, FULL)]).with(Between::Softcap).on_host(),
    case("full-1024-d64-alibi", [1, 8, 64], &[(1024, FULL)]).with(Between::Alibi).on_host(),
    case("full-1024-d64-sigmoid", [1, 8, 64], &[(1024, FULL)]).with(Between::Sigmoid).on_host(),
    case("na2d-32-k13", [1, 16, 64], &[(32, window(13)), (32, window(13))]).scaling(),
    case("na2d-64-k13", [1, 16, 64], &[(64, window(13)), (64, window(13))]).scaling(),
    case("na2d-128-k13", [1, 16, 64], &[(128, window(13)), (128, window(13))]).scaling(),
    case("na2d-256-k13", [1, 16, 64], &[(256, window(13)), (256, window(13))]).scaling(),
    case("na2d-512-k13", [1, 16, 64], &[(512, window(13)), (512, window(13))]).scaling(),
    case("na2d-16-k13", [1, 4, 64], &[(16, window(13)), (16, window(13))]).scaling().on_host(),
    case("na2d-32-k13", [1, 4, 64], &[(32, window(13)), (32, window(13))]).scaling().on_host(),
    case("na2d-64-k13", [1, 4, 64], &[(64, window(13)), (64, window(13))]).scaling().on_host(),
    case("na2d-128-k13", [1, 4, 64], &[(128, window(13)), (128, window(13))]).scaling().on_host(),
];

/// The cases of a suite that suit a GPU, or a host.
pub(crate) fn of(suite: Suite, is_gpu: bool) -> Vec<Case> {
    let size = if is_gpu { Size::Gpu } else { Size::Host };
    CASES.iter().filter(|case| case.suite == suite && case.size == size).copied().collect()
}

impl Case {
    /// The problem, in a dtype.
    ///
    /// # Errors
    /// None: the list's problems are well-formed.
    pub(crate) fn problem(&self, dtype: DType) -> Result<Problem> {
        let neighborhood = match self.axes {
            &[(len, Sight::All)] => Neighborhood::full(len, len, None)?,
            &[(len, Sight::Past)] => Neighborhood::full(len, len, Some(Alignment::TopLeft))?,
            axes => Neighborhood::new(&axes.iter().map(params).collect::<Vec<_>>())?,
        };
        let builder = Program::builder(self.axes.len());
        let program = match self.between {
            Between::Softmax => builder.build()?,
            Between::Softcap => builder.score("30 * tanh(score / 30)").build()?,
            Between::Alibi => {
                let slope = Capture::new("slope", &[self.heads], DType::F32);
                builder.capture(slope).score("score - slope[h] * abs(q - k)").build()?
            }
            Between::Sigmoid => builder.row("sigmoid").build()?,
        };
        Problem::builder(neighborhood, dtype)
            .batch(self.batch)
            .heads(self.heads)
            .head_dim(self.dim)
            .program(program)
            .build()
    }

    /// The case for other programs to read.
    pub(crate) fn describe(&self) -> Value {
        let axis = |choose: fn(&(usize, Sight)) -> usize| self.axes.iter().map(choose).collect::<Vec<_>>();
        let is_window = matches!(self.axes[0].1, Sight::Window(..));
        json!({
            "case": self.name,
            "batch": self.batch,
            "heads": self.heads,
            "head_dim": self.dim,
            "shape": axis(|a| a.0),
            "causal": matches!(self.axes[0].1, Sight::Past),
            "window": is_window.then(|| axis(|a| params(a).kernel_size)),
            "stride": is_window.then(|| axis(|a| params(a).stride)),
            "dilation": is_window.then(|| axis(|a| params(a).dilation)),
            "program": format!("{:?}", self.between).to_lowercase(),
        })
    }
}

fn params(&(len, sight): &(usize, Sight)) -> AxisParams {
    match sight {
        Sight::All => AxisParams::new(len, len),
        Sight::Past => AxisParams::new(len, len).causal(true),
        Sight::Window(kernel_size, stride, dilation) => {
            AxisParams::new(len, kernel_size).stride(stride).dilation(dilation)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_case_is_a_problem_and_has_a_name_of_its_own() {
        for is_gpu in [false, true] {
            for suite in [Suite::Peers, Suite::Programs, Suite::Scaling] {
                let cases = of(suite, is_gpu);
                assert!(cases.len() >= 3, "{suite:?}");
                let names: BTreeSet<_> = cases.iter().map(|case| case.name).collect();
                assert_eq!(names.len(), cases.len());
                for case in cases {
                    let problem = case.problem(DType::F32).unwrap();
                    assert_eq!(
                        case.describe()["shape"].as_array().unwrap().len(),
                        problem.neighborhood().rank()
                    );
                }
            }
        }
    }

    #[test]
    fn flops_are_counted_as_the_peers_count_them() {
        let find = |name| of(Suite::Peers, true).into_iter().find(|case| case.name == name).unwrap();
        let problem = find("full-16k-d128").problem(DType::Bf16).unwrap();
        assert_eq!(
            problem.useful_pairs() * problem.flops_per_pair(natten::Op::Forward),
            16 * (1 << 28) * 512
        );
    }
}
