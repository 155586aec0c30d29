//! Fuzzes what a caller can hand to the geometry and to a problem: any numbers. Nothing may panic, and what is accepted
//! must keep its promises at the corners. Runs as a property test on stable, and under a fuzzer by `cargo bolero test`.

use bolero::check;
use natten_core::geometry::{Alignment, Axis, AxisParams, Neighborhood, Tiles};
use natten_core::{DType, OpRequest, Problem};

/// Small numbers mostly, and the ones that overflow.
fn size((kind, small, large): (u8, u8, u64)) -> usize {
    match kind % 8 {
        0 => large as usize,
        1 => usize::MAX - usize::from(small),
        2 => 0,
        _ => usize::from(small),
    }
}

type Size = (u8, u8, u64);

#[test]
fn axes_keep_their_promises() {
    check!().with_type::<([Size; 4], bool, Size)>().for_each(|&(sizes, is_causal, at)| {
        let [len, kernel_size, stride, dilation] = sizes.map(size);
        let params = AxisParams::new(len, kernel_size).stride(stride).dilation(dilation).causal(is_causal);
        let fitted = params.fit();
        for params in [params, fitted] {
            let Ok(axis) = Axis::new(0, params) else { continue };
            let (group, position) = axis.locate(size(at) % axis.query_len());
            let window = axis.window(group, position);
            assert!(window.contains(&position) && window.end <= axis.key_group_len(group), "{params:?}");
            assert!(window.len() <= axis.window_len());
            for key in [window.start, window.end - 1] {
                assert!(axis.queries_of(group, key).contains(&position), "{params:?} {key}");
            }
        }
    });
}

#[test]
fn full_axes_keep_their_promises() {
    check!().with_type::<(Size, Size, u8, Size)>().for_each(|&(queries, keys, causal, at)| {
        let causal = [None, Some(Alignment::TopLeft), Some(Alignment::BottomRight)][usize::from(causal % 3)];
        let Ok(axis) = Axis::full(size(queries), size(keys), causal) else { return };
        let query = size(at) % axis.query_len();
        let window = axis.window(0, query);
        assert!(window.end <= axis.key_len());
        if let Some(last) = window.last() {
            assert!(axis.queries_of(0, last).contains(&query));
        }
    });
}

#[test]
fn problems_of_any_numbers_are_built_or_refused() {
    type Numbers = ([Size; 3], [Size; 3], [Size; 3], [Size; 6], u8, bool);
    check!().with_type::<Numbers>().for_each(|&(lens, kernels, dilations, shape, rank, rpb)| {
        let rank = usize::from(rank % 5);
        let axes: Vec<AxisParams> = (0..rank.min(3))
            .map(|a| {
                AxisParams::new(size(lens[a]), size(kernels[a])).dilation(size(dilations[a])).causal(a == 1)
            })
            .collect();
        let Ok(neighborhood) = Neighborhood::fit(&axes, rpb) else { return };
        let [batch, heads, heads_kv, dim, dim_v, extra] = shape.map(size);
        let built = Problem::builder(neighborhood.clone(), DType::F32)
            .batch(batch)
            .heads(heads)
            .heads_kv(heads_kv)
            .head_dim(dim)
            .head_dim_v(dim_v)
            .additional_tokens(extra)
            .relative_positional_bias(rpb)
            .build();
        let Ok(problem) = built else { return };
        for request in [OpRequest::forward(&problem), OpRequest::backward(&problem)] {
            let specs = problem.tensors(&request).unwrap();
            assert!(specs.iter().all(|spec| spec.bytes() <= isize::MAX as usize));
        }
        let tiles = Tiles::new(&neighborhood, [1, 8, 8], [4, 4, 16]);
        let last = tiles.query_box(tiles.query_boxes() - 1);
        assert!(tiles.keys_of(&last).next().is_some());
    });
}
