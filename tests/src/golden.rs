//! Golden cases: inputs in f32 and results in f64 that PyTorch computed from the definition, not from any code of this
//! project. Eleven of them were also computed by NATTEN 0.17.5, with the same output and scores to 1e-10.
//!
//! The files are in the safetensors format; their parameters are JSON in the metadata, under the key `case`. Gradients
//! are those of `sum(output * grad_output)`, of the unrounded output; tangents are along `tangent_query`, `tangent_key`
//! and `tangent_value`, all others zero; `grad2_*` are the gradients of the sum of `grad_*` times these three.

use natten_core::geometry::{Alignment, AxisParams, Neighborhood};
use natten_core::program::{Capture, Program};
use natten_core::{DType, Error, HostTensor, OpRequest, Problem, Result, Role};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use crate::case::Case;
use crate::data::{Data, hash};
use crate::tolerance::Numbers;

/// A golden case.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Golden {
    /// The problem and its inputs, f32: every operation that the file has results of.
    pub case: Case,
    /// Every result in the file: those of the forward and backward pass and of their tangents, and of windows without a
    /// program [`Role::Attention`], the scores that `qk` gives.
    pub results: Numbers,
}

macro_rules! files {
    ($($name:literal),* $(,)?) => {
        const FILES: &[(&str, &[u8])] =
            &[$(($name, include_bytes!(concat!("../golden/", $name, ".safetensors")))),*];
    };
}

files![
    "full-causal-bottom-right-empty-rows",
    "full-causal-top-left",
    "full-cross-lengths",
    "na1d-causal",
    "na1d-causal-extra",
    "na1d-dilated-ragged",
    "na1d-even-left",
    "na1d-full-window",
    "na1d-odd",
    "na1d-strided",
    "na1d-strided-dilated-causal",
    "na2d-blocked",
    "na2d-causal-one-axis",
    "na2d-extra-tokens",
    "na2d-gqa-dv",
    "na2d-oblong-dilated",
    "na2d-rpb",
    "na2d-rpb-dilated",
    "na2d-rpb-even-strided-causal",
    "na2d-scale",
    "na2d-square",
    "na2d-strided",
    "na3d-dilated-causal",
    "na3d-mixed",
    "na3d-strided",
    "program-alibi",
    "program-relu",
    "program-retention",
    "program-sigmoid",
    "program-softcap",
    "program-softcap-extra-rpb",
];

/// Every golden case.
///
/// # Panics
/// Where an embedded file is broken: a mistake of this crate, which its tests would find.
pub fn golden() -> Vec<Golden> {
    let read = |&(name, bytes): &(&str, &[u8])| {
        parse(name, bytes).unwrap_or_else(|error| panic!("golden file {name}: {error}"))
    };
    FILES.iter().map(read).collect()
}

fn parse(name: &str, bytes: &[u8]) -> Result<Golden> {
    let broken = |what: String| Error::invalid("golden file", what, "it is not readable", "write it again");
    let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(|error| broken(error.to_string()))?;
    let text = metadata.metadata().as_ref().and_then(|metadata| metadata.get("case"));
    let parameters: Value = text
        .and_then(|text| serde_json::from_str(text).ok())
        .ok_or_else(|| broken("without parameters".to_owned()))?;
    let problem = problem(&Parameters(parameters))?;
    let file = SafeTensors::deserialize(bytes).map_err(|error| broken(error.to_string()))?;
    let (mut data, mut results) = (Data::new(hash(name)), Numbers::new());
    for (tensor, view) in file.tensors() {
        let dtype = if view.dtype() == Dtype::F64 { DType::F64 } else { DType::F32 };
        let values = HostTensor::from_le_bytes(dtype, view.shape(), view.data())?;
        let role = problem.role(&tensor).ok_or_else(|| broken(format!("it has a tensor {tensor}")))?;
        // Inputs are f32, results f64.
        if dtype == DType::F64 {
            results.insert(role, values.to_f64());
        } else {
            data = data.given(role, values);
        }
    }
    let given = [Role::TangentQuery, Role::TangentKey, Role::TangentValue];
    let mut requests = vec![
        OpRequest::forward(&problem),
        OpRequest::forward_jvp(&problem, given),
        OpRequest::backward(&problem),
        OpRequest::backward_jvp(&problem, given),
    ];
    if let Some(scores) = results.get(&Role::Attention) {
        let shape = problem.shape(Role::Attention);
        let slots = *shape.last().ok_or_else(|| broken("the scores are a scalar".to_owned()))?;
        data = data.given(Role::Attention, HostTensor::new(&shape, softmax(scores, slots))?);
        requests.extend([OpRequest::qk(&problem), OpRequest::av(&problem)]);
    }
    let case = Case::new(format!("golden-{name}"), problem).data(data).requests(requests);
    Ok(Golden { case, results })
}

/// The weights of rows of scores, 0 where a score is -inf.
fn softmax(scores: &[f64], row: usize) -> Vec<f64> {
    let weights = scores.chunks_exact(row).flat_map(|scores| {
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = scores.iter().map(|score| (score - max).exp()).sum();
        scores.iter().map(move |score| (score - max).exp() / total)
    });
    weights.collect()
}

/// The parameters of a file. What is not there is as the format's default has it.
struct Parameters(Value);

impl Parameters {
    fn number(&self, name: &str, default: usize) -> usize {
        self.0[name].as_u64().map_or(default, |number| number as usize)
    }

    fn numbers(&self, name: &str) -> Vec<usize> {
        let list = self.0[name].as_array().into_iter().flatten();
        list.filter_map(Value::as_u64).map(|number| number as usize).collect()
    }

    fn flag(&self, name: &str) -> bool {
        self.0[name].as_bool().unwrap_or(false)
    }

    fn flags(&self, name: &str) -> Vec<bool> {
        self.0[name].as_array().into_iter().flatten().filter_map(Value::as_bool).collect()
    }
}

fn problem(parameters: &Parameters) -> Result<Problem> {
    let (shape, is_causal) = (parameters.numbers("shape"), parameters.flags("is_causal"));
    let neighborhood = if parameters.flag("full") {
        let alignment = match parameters.0["align"].as_str() {
            Some("bottom-right") => Alignment::BottomRight,
            _ => Alignment::TopLeft,
        };
        Neighborhood::full(shape[0], parameters.numbers("shape_kv")[0], is_causal[0].then_some(alignment))?
    } else {
        let [kernel_size, stride, dilation] =
            ["kernel_size", "stride", "dilation"].map(|name| parameters.numbers(name));
        let axis = |a: usize| {
            AxisParams::new(shape[a], kernel_size[a])
                .stride(stride[a])
                .dilation(dilation[a])
                .causal(is_causal[a])
        };
        Neighborhood::new(&(0..shape.len()).map(axis).collect::<Vec<_>>())?
    };
    let (heads, head_dim) = (parameters.number("heads", 1), parameters.number("head_dim", 1));
    let mut program = Program::builder(neighborhood.rank());
    if let Some(cap) = parameters.0["softcap"].as_f64() {
        program = program.score(format!("{cap:?}*tanh(score/{cap:?})"));
    }
    if parameters.flag("alibi") {
        let slope = Capture::new("slope", &[heads], DType::F32);
        program = program.capture(slope).score("score - slope[h]*abs(q - k)");
    }
    if let Some(row) = parameters.0["row"].as_str() {
        program = program.row(row);
    }
    Problem::builder(neighborhood, DType::F32)
        .batch(parameters.number("batch", 1))
        .heads(heads)
        .heads_kv(parameters.number("heads_kv", heads))
        .head_dim(head_dim)
        .head_dim_v(parameters.number("head_dim_v", head_dim))
        .additional_tokens(parameters.number("extra", 0))
        .relative_positional_bias(parameters.flag("rpb"))
        .scale(parameters.0["scale"].as_f64())
        .program(program.build()?)
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_hold_what_their_parameters_say() {
        let all = golden();
        assert_eq!(all.len(), 31);
        for Golden { case, results } in all {
            for (role, values) in &results {
                let len: usize = case.problem.shape(*role).iter().product();
                assert_eq!(values.len(), len, "{} {role}", case.name);
            }
            for request in &case.requests {
                let missing: Vec<Role> =
                    request.wants.iter().filter(|role| !results.contains_key(role)).collect();
                // Second gradients of additional tokens, biases and slopes are not in the files.
                assert!(
                    missing
                        .iter()
                        .all(|role| role.second_gradient_of().is_some() || *role == Role::TangentLogsumexp),
                    "{} {missing:?}",
                    case.name
                );
            }
            assert_eq!(case.name.contains("program"), !case.problem.program().is_plain_softmax());
            for role in Role::ALL.into_iter().filter(|&role| case.problem.has_input(role)) {
                assert_eq!(
                    case.input(role).unwrap().shape(),
                    case.problem.shape(role),
                    "{} {role}",
                    case.name
                );
            }
        }
    }
}
