//! Every example, on every backend that must do everything.
#![allow(dead_code, reason = "an example's main is not called")]
#![allow(clippy::duplicate_mod, reason = "each example has its helpers as a module of its own")]

use natten::Registry;

/// The backends that must be there, and do everything.
const BACKENDS: &[&str] = &["reference"];

macro_rules! examples {
    ($($path:literal $name:ident;)*) => {$(
        #[path = $path]
        mod $name;

        #[test]
        fn $name() {
            for backend in BACKENDS {
                let device = Registry::probe().device(backend).unwrap();
                if let Err(error) = $name::run(&device) {
                    panic!("{backend}: {error}");
                }
            }
        }
    )*};
}

examples! {
    "../examples/block_sparse.rs" block_sparse;
    "../examples/decode_split_kv.rs" decode_split_kv;
    "../examples/gated_retention.rs" gated_retention;
    "../examples/mamba2.rs" mamba2;
    "../examples/mla_decode.rs" mla_decode;
    "../examples/relu.rs" relu;
    "../examples/retention_parallel.rs" retention_parallel;
    "../examples/retention_recurrent.rs" retention_recurrent;
    "../examples/sigmoid.rs" sigmoid;
    "../examples/sliding_window.rs" sliding_window;
    "../examples/softmax.rs" softmax;
    "../examples/sparse_decode.rs" sparse_decode;
    "../examples/varlen.rs" varlen;
}
