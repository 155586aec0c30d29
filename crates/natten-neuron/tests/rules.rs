//! Kernels that break a rule of the hardware, one by one: each gives the error that AWS's tools give.

use natten_neuron::allocate::allocate;
use natten_neuron::dtype::Dtype;
use natten_neuron::error::NeuronError;
use natten_neuron::ir::{Alu, Engine, Function, Kernel, Op, Operand, Space, TensorId, View};
use natten_neuron::lower::builder::Builder;
use natten_neuron::sim::compute;
use natten_neuron::target::Target;
use natten_neuron::verify::verify;

/// Builds a kernel, and gives the first rule that it breaks.
fn broken(build: impl FnOnce(&mut Builder)) -> NeuronError {
    let target = Target::v2();
    let kernel = kernel(build);
    verify(&kernel, &target)
        .and_then(|()| allocate(&kernel, &target).map(|_| ()))
        .and_then(|()| compute::run(&kernel, &target, &[vec![1.0; 128 * 1024]]).map(|_| ()))
        .expect_err("the kernel breaks a rule")
}

/// A kernel of one input of 128 x 1024 numbers.
fn kernel(build: impl FnOnce(&mut Builder)) -> Kernel {
    let mut b = Builder::new("broken");
    b.tensor("x", Space::Input, &[128, 1024], Dtype::F32);
    build(&mut b);
    b.finish()
}

fn input(b: &Builder, parts: usize, len: usize) -> View {
    b.pattern(TensorId(0), 1, 0, vec![(1024, parts), (1, len)])
}

fn check(error: &NeuronError, code: &str, message: &str) {
    assert_eq!(error.code, code, "{error}");
    assert!(error.message.contains(message), "{error}");
}

/// Loaded operands of [128, 128] and [128, columns] in bf16.
fn operands(b: &mut Builder, columns: usize) -> [View; 2] {
    [("w", 128), ("m", columns)].map(|(name, len)| {
        let tensor = b.sbuf(name, &[128, len], Dtype::Bf16);
        let view = b.at(tensor, 128, 0, len);
        let from = input(b, 128, len);
        b.dma(view.clone(), from);
        view
    })
}

#[test]
fn partitions_beyond_128() {
    let error = broken(|b| {
        b.sbuf("wide", &[256, 4], Dtype::F32);
    });
    check(
        &error,
        "err_num_partition_exceed_arch_limit",
        "number of partitions 256 exceed architecture limitation of 128.",
    );
    let error = broken(|b| {
        let wide = b.sbuf("ok", &[128, 4], Dtype::F32);
        let dst = View { parts: 256, ..b.at(wide, 128, 0, 4) };
        let src = b.pattern(TensorId(0), 1, 0, vec![(1, 1024)]);
        b.dma(dst, src);
    });
    check(
        &error,
        "err_num_partition_exceed_arch_limit",
        "dma_copy dst partition dimension 256 exceeds maximum 128",
    );
}

#[test]
fn moving_operands_beyond_512() {
    let error = broken(|b| {
        let [stationary, moving] = operands(b, 1024);
        let psum = b.psum("s", &[128, 1024]);
        let dst = b.at(psum, 128, 0, 1024);
        b.matmul(dst, stationary, moving, false);
    });
    check(
        &error,
        "err_size_of_dimension_exceed_arch_limit",
        "Matmul moving free dimension 1024 exceeds max 512 for nc_version=nc_version.gen2",
    );
}

#[test]
fn stationary_operands_beyond_128() {
    let error = broken(|b| {
        let [moving, stationary] = operands(b, 256);
        let psum = b.psum("s", &[128, 128]);
        let dst = b.at(psum, 128, 0, 128);
        b.matmul(dst, stationary, moving, false);
    });
    check(
        &error,
        "err_size_of_dimension_exceed_arch_limit",
        "Matmul stationary free dimension 256 exceeds gemm_stationary_fmax=128",
    );
}

#[test]
fn contractions_that_differ() {
    let error = broken(|b| {
        let [stationary, moving] = operands(b, 64);
        let psum = b.psum("s", &[128, 64]);
        let dst = b.at(psum, 128, 0, 64);
        b.matmul(dst, stationary.first_parts(64), moving, false);
    });
    check(
        &error,
        "err_num_partition_mismatch",
        "Matmul contraction dimension mismatch: stationary[0]=64 != moving[0]=128",
    );
}

#[test]
fn products_into_sbuf() {
    let error = broken(|b| {
        let [stationary, moving] = operands(b, 128);
        let sbuf = b.sbuf("s", &[128, 128], Dtype::F32);
        let dst = b.at(sbuf, 128, 0, 128);
        b.matmul(dst, stationary, moving, false);
    });
    check(&error, "err_unsupported_memory", "dst must be in ['psum'], got sbuf");
}

#[test]
fn operands_in_psum() {
    let error = broken(|b| {
        let [stationary, moving] = operands(b, 128);
        let psum = b.psum("s", &[128, 128]);
        let dst = b.at(psum, 128, 0, 128);
        b.matmul(dst.clone(), stationary, moving.clone(), false);
        b.matmul(dst.clone(), dst, moving, false);
    });
    check(&error, "err_unsupported_memory", "stationary must be in ['sbuf'], got psum");
    assert_eq!(error.instruction, Some(3));
}

#[test]
fn products_of_mixed_precision() {
    let error = broken(|b| {
        let [stationary, _] = operands(b, 128);
        let wide = b.sbuf("f", &[128, 128], Dtype::F32);
        let moving = b.at(wide, 128, 0, 128);
        let from = input(b, 128, 128);
        b.dma(moving.clone(), from);
        let psum = b.psum("s", &[128, 128]);
        let dst = b.at(psum, 128, 0, 128);
        b.matmul(dst, stationary, moving, false);
    });
    check(&error, "err_matmul_dtype", "if one is float32, both must be");
}

#[test]
fn products_over_two_banks() {
    let error = broken(|b| {
        let [stationary, moving] = operands(b, 512);
        let psum = b.psum("s", &[128, 1024]);
        let dst = b.at(psum, 128, 256, 512);
        b.matmul(dst, stationary, moving, false);
    });
    check(&error, "err_psum_bank", "dst spans PSUM banks");
}

#[test]
fn transposes_beyond_128() {
    let error = broken(|b| {
        let [_, wide] = operands(b, 256);
        let psum = b.psum("t", &[128, 256]);
        let dst = b.at(psum, 128, 0, 256);
        b.transpose(dst, wide);
    });
    check(
        &error,
        "err_size_of_dimension_exceed_arch_limit",
        "of 'transpose' exceed architecture limitation of 128.",
    );
}

#[test]
fn more_sbuf_than_there_is() {
    let error = broken(|b| {
        let tensors = ["a", "b"].map(|name| b.sbuf(name, &[128, 30_000], Dtype::F32));
        let views = tensors.map(|tensor| b.at(tensor, 128, 0, 30_000));
        views.iter().for_each(|view| b.memset(view.clone(), 0.0));
        let [a, other] = views;
        b.tensor_tensor(a.clone(), Alu::Add, a, other);
    });
    check(&error, "GCA035", "couldn't be allocated in SB");
    check(&error, "GCA035", "b: 120000 Bytes per Partition and total of: 15360000 Bytes in SB");
    check(&error, "GCA035", "Total Accessed Bytes per partition by instruction: 240000");
    check(&error, "GCA035", "Total SB Partition Size: 196608");
}

#[test]
fn more_psum_than_there_is() {
    let error = broken(|b| {
        let [stationary, moving] = operands(b, 512);
        let banks: Vec<View> = (0..9)
            .map(|bank| {
                let psum = b.psum(format!("s{bank}"), &[128, 512]);
                b.at(psum, 128, 0, 512)
            })
            .collect();
        for dst in banks.iter().chain(&banks) {
            b.matmul(dst.clone(), stationary.clone(), moving.clone(), false);
        }
    });
    check(&error, "GCA046", "Some infinite-cost nodes remain");
}

#[test]
fn reads_of_what_was_never_written() {
    let error = broken(|b| {
        let sbuf = b.sbuf("t", &[128, 8], Dtype::F32);
        let (left, all) = (b.at(sbuf, 128, 0, 4), b.at(sbuf, 128, 0, 8));
        b.memset(left, 1.0);
        b.tensor_scalar(all.clone(), Alu::Add, all, Operand::Const(1.0));
    });
    check(&error, "err_read_before_write", "read of uninitialised sbuf 't'");
    assert_eq!(error.tensor.as_deref(), Some("t"));
}

#[test]
fn reads_beyond_a_tensor() {
    let error = broken(|b| {
        let sbuf = b.sbuf("t", &[128, 8], Dtype::F32);
        let view = b.at(sbuf, 128, 4, 8);
        b.memset(view, 1.0);
    });
    check(
        &error,
        "err_tensor_access_out_of_bound",
        "Out-of-bound access for tensor `t` on dimension 1: index range [4, 11] exceed dimension size of 8",
    );
}

#[test]
fn partitions_that_differ() {
    let error = broken(|b| {
        let (wide, narrow) = (b.sbuf("w", &[128, 8], Dtype::F32), b.sbuf("n", &[1, 8], Dtype::F32));
        let (wide, narrow) = (b.at(wide, 128, 0, 8), b.at(narrow, 1, 0, 8));
        b.memset(wide.clone(), 1.0);
        b.memset(narrow.clone(), 1.0);
        b.tensor_tensor(wide.clone(), Alu::Add, wide, narrow);
    });
    check(
        &error,
        "err_num_partition_mismatch",
        "mismatch in parameters (w[128, 8], data2 n[1, 8]) of 'tensor_tensor'",
    );
}

#[test]
fn start_partitions_that_engines_cannot_address() {
    let error = broken(|b| {
        let sbuf = b.sbuf("t", &[128, 8], Dtype::F32);
        let view = View { part: 16, ..b.at(sbuf, 32, 0, 8) };
        b.memset(view, 1.0);
    });
    check(&error, "err_start_partition", "cannot start at partition 16");
}

#[test]
fn dmas_of_psum() {
    let error = broken(|b| {
        let psum = b.psum("p", &[128, 8]);
        let dst = b.at(psum, 128, 0, 8);
        let src = input(b, 128, 8);
        b.dma(dst, src);
    });
    check(
        &error,
        "err_unsupported_memory",
        "dma_copy requires HBM or SBUF tensors, got src=MemoryRegion.shared_hbm, dst=MemoryRegion.psum",
    );
}

#[test]
fn dmas_of_other_sizes() {
    let error = broken(|b| {
        let sbuf = b.sbuf("t", &[128, 8], Dtype::F32);
        let dst = b.at(sbuf, 128, 0, 8);
        let src = input(b, 128, 4);
        b.dma(dst, src);
    });
    check(
        &error,
        "err_dma_elements",
        "dma_copy requires src and dst to have the same number of elements, got src=512, dst=1024",
    );
}

#[test]
fn engines_without_the_instruction() {
    let copy = |engine: Engine| {
        move |b: &mut Builder| {
            let sbuf = b.sbuf("t", &[128, 8], Dtype::F32);
            let view = b.at(sbuf, 128, 0, 8);
            b.memset(view.clone(), 1.0);
            b.push(engine, Op::TensorCopy { dst: view.clone(), src: view });
        }
    };
    check(
        &broken(copy(Engine::Scalar)),
        "err_engine",
        "tensor_copy does not run on the scalar engine of NeuronCore-v2",
    );
    assert!(verify(&kernel(copy(Engine::Scalar)), &Target::v3()).is_ok());
}

#[test]
fn rows_of_numbers_that_are_not_f32() {
    let error = broken(|b| {
        let sbuf = b.sbuf("t", &[128, 8], Dtype::Bf16);
        let (view, bias) = (b.at(sbuf, 128, 0, 8), b.at(sbuf, 128, 0, 1));
        b.memset(view.clone(), 1.0);
        b.activation(view.clone(), Function::Exp, view, Some(bias), Operand::Const(1.0), None);
    });
    check(&error, "err_activation_bias_invalid_type", "activation bias must be float32");
}

#[test]
fn outputs_that_are_never_written() {
    let error = broken(|b| {
        b.tensor("out", Space::Output, &[4], Dtype::F32);
    });
    check(&error, "err_tensor_output_not_written_to", "never written to");
}
