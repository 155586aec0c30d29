    // What follows from the output: that of the forward pass, where it is given.
    if (row.alive) {
//:if PACKED
        for (var c = 0u; c < $CELLS$u; c++) {
            let at = number * $CELLS$u + c;
            row.delta += dot(vec4<f32>(packed_grads[at]), vec4<f32>(packed_outputs[at]));
        }
//:else
//:each DIM_V
            let grad = arena[DO + number * DIM_V + d];
//:if OUT
            row.delta += grad * arena[OUT + number * DIM_V + d];
//:else
            row.delta += grad * output[d];
//:end
//:if TANGENTS
            row.delta_t += grad * output_t[d];
//:if DOT
            row.delta_t += arena[DOT + number * DIM_V + d] * output[d];
//:end
//:end
//:end
//:end
        let cotangents = grad_stages_of_row(query, row);
        for (var k = 0u; k < STAGES; k++) {
            row.grad_stage[k] = cotangents[2u * k];
            row.grad_stage_t[k] = cotangents[2u * k + 1u];
        }
    }
