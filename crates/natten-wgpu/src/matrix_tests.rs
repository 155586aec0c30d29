#![allow(clippy::print_stderr, reason = "what was looked at, and whether it was there to be looked at")]
//! The statements about matrices, each by itself, on a device that has them: against sums on the host that are exact,
//! because all numbers are small multiples of 1/8. What fails here is the driver's, or the way in which statements are
//! handed to it; where this passes and attention is wrong, the shader is.

use natten_core::{DType, HostTensor};
use pollster::block_on;

use crate::gpu::tests::{REQUIRABLE, backend, left_by};
use crate::pieces::multiply_add;
use crate::rate::{MATRIX_CHAINS, matrix_probe};
use crate::spirv::MATRICES;
use crate::target::Matrices;

/// Subgroups of the workgroup, each with rows of its own, as in attention.
const SUBGROUPS: usize = 4;

/// Cells of four by which rows are longer than matrices.
const PADDING: usize = 2;

/// Times that a tile is written and multiplied.
const STEPS: usize = 5;

/// What every shader begins with. A lane reads what others have stored: the row of the lane half a subgroup away.
const TEXT: &str = "
@group(0) @binding(0) var<storage, read> given: array<vec4<f16>>;
@group(0) @binding(1) var<storage, read_write> left: array<vec4<f32>>;
var<workgroup> tiles: array<vec4<f16>, 2u * ROWS * STRIDE>;
var<workgroup> scores: array<vec4<f32>, ROWS * STRIDE>;

@compute @workgroup_size(THREADS)
fn main(@builtin(subgroup_id) subgroup: u32, @builtin(subgroup_invocation_id) member: u32) {
    let lane = subgroup * LANES + member;
    let mine = EDGE * subgroup * STRIDE;
    let second = ROWS * STRIDE;
    for (var i = lane; i < 2u * ROWS * CELLS; i += THREADS) {
        tiles[i / CELLS * STRIDE + i % CELLS] = given[i];
    }
    for (var i = lane; i < ROWS * CELLS; i += THREADS) {
        scores[i / CELLS * STRIDE + i % CELLS] = vec4<f32>(given[ROWS * CELLS - 1u - i]);
    }
    workgroupBarrier();
$STATEMENTS$
    workgroupBarrier();
    for (var i = lane; i < ROWS * CELLS; i += THREADS) {
        let other = ROWS * CELLS - 1u - i;
        left[other] = scores[other / CELLS * STRIDE + other % CELLS];
    }
}
";

/// The numbers of a test, as rows of matrices: of A, one for each subgroup, of B, and of the sums C.
struct Numbers {
    edge: usize,
    given: Vec<f64>,
}

impl Numbers {
    fn new(edge: usize) -> Self {
        // A linear congruence: multiples of 1/8 between -4 and 4.
        let mut state = 1u32;
        let given = (0..2 * SUBGROUPS * edge * edge).map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f64::from((state >> 24) as i32 % 65 - 32) / 8.0
        });
        Self { edge, given: given.collect() }
    }

    fn rows(&self) -> usize {
        SUBGROUPS * self.edge
    }

    fn a(&self, row: usize, k: usize) -> f64 {
        self.given[row * self.edge + k]
    }

    /// The second tile, of which every subgroup reads the first rows.
    fn b(&self, row: usize, column: usize) -> f64 {
        self.given[(self.rows() + row) * self.edge + column]
    }

    fn c(&self, row: usize, column: usize) -> f64 {
        // In cells of four, from the last to the first.
        let i = row * self.edge + column;
        self.given[(self.rows() * self.edge / 4 - 1 - i / 4) * 4 + i % 4]
    }

    fn each(&self, of: impl Fn(usize, usize) -> f64) -> Vec<f64> {
        (0..self.rows() * self.edge).map(|i| of(i / self.edge, i % self.edge)).collect()
    }

    fn sum(&self, of: impl Fn(usize) -> f64) -> f64 {
        (0..self.edge).map(of).sum()
    }
}

/// A case: its name, its statements, and what is to be left.
type Case = (&'static str, String, Vec<f64>);

fn cases(matrices: &Matrices) -> Vec<Case> {
    let n = Numbers::new(matrices.edge as usize);
    let a = matrices.load("a", 'A', "tiles", "mine", "STRIDE", true);
    let a_columns = matrices.load("a", 'A', "tiles", "mine", "STRIDE", false);
    let b = matrices.load("b", 'B', "tiles", "second", "STRIDE", true);
    let b_columns = matrices.load("b", 'B', "tiles", "second", "STRIDE", false);
    let sum = matrices.ty('C');
    let zero = format!("var c = {sum}();\n");
    let load_again = format!("c = coopLoadT<{sum}>(&scores[mine], SCORE_STRIDE);\n");
    let c = zero.clone() + &load_again;
    let product = multiply_add("c", "a", "b");
    let store = "coopStoreT(c, &scores[mine], SCORE_STRIDE);\n";
    // The lanes of all subgroups clear what was loaded, so that it has to come from the matrix.
    let clear = "workgroupBarrier();
    for (var i = lane; i < ROWS * STRIDE; i += THREADS) { scores[i] = vec4<f32>(); }
    workgroupBarrier();\n";
    let turn = format!(
        "for (var step = 0u; step < {STEPS}u; step++) {{
        workgroupBarrier();
        for (var i = lane; i < ROWS * CELLS; i += THREADS) {{
            let place = (i + step * CELLS) % (ROWS * CELLS);
            tiles[i / CELLS * STRIDE + i % CELLS] = given[place];
        }}
        workgroupBarrier();
        {a}{b_columns}{product}}}\n"
    );
    let lanes_edit = format!(
        "for (var step = 0u; step < {STEPS}u; step++) {{
        {store}workgroupBarrier();
        for (var i = lane; i < ROWS * CELLS; i += THREADS) {{
            let at = (ROWS - 1u - i / CELLS) * STRIDE + i % CELLS;
            scores[at] = scores[at] * 2.0 + vec4<f32>(f32(i / CELLS));
        }}
        workgroupBarrier();
        {load_again}workgroupBarrier();\n}}\n"
    );
    let rows = n.rows();
    let doubled = |row: usize, column: usize| {
        (0..STEPS).fold(n.c(row, column), |value, _| value * 2.0 + (rows - 1 - row) as f64)
    };
    let transposed_a = |row: usize, k: usize| n.a(row / n.edge * n.edge + k, row % n.edge);
    vec![
        ("declare, store", format!("{zero}{clear}{store}"), n.each(|_, _| 0.0)),
        ("load_again, store", format!("{c}{clear}{store}"), n.each(|row, column| n.c(row, column))),
        (
            "A in rows, B in rows",
            format!("{a}{b}{zero}{product}{store}"),
            n.each(|row, column| n.sum(|k| n.a(row, k) * n.b(k, column))),
        ),
        (
            "A in rows, B in columns",
            format!("{a}{b_columns}{zero}{product}{store}"),
            n.each(|row, column| n.sum(|k| n.a(row, k) * n.b(column, k))),
        ),
        (
            "A in columns, B in rows",
            format!("{a_columns}{b}{zero}{product}{store}"),
            n.each(|row, column| n.sum(|k| transposed_a(row, k) * n.b(k, column))),
        ),
        (
            "sum that was loaded",
            format!("{c}{clear}{a}{b}{product}{store}"),
            n.each(|row, column| n.c(row, column) + n.sum(|k| n.a(row, k) * n.b(k, column))),
        ),
        (
            "tiles that change between barriers",
            format!("{zero}{turn}{store}"),
            n.each(|row, column| {
                let of_step = |step: usize| n.sum(|k| n.a((row + step) % rows, k) * n.b(column, k));
                (0..STEPS).map(of_step).sum()
            }),
        ),
        ("sums that lanes edit between barriers", format!("{c}{lanes_edit}{store}"), n.each(doubled)),
    ]
}

/// The device's matrices, where it has some.
fn native(backend: &crate::WgpuBackend) -> Option<Matrices> {
    let found = backend.target().matrices.filter(|matrices| matrices.is_native);
    let required = natten_conformance::required_backends(&REQUIRABLE).unwrap();
    let is_required = required.iter().any(|name| name == "wgpu-matrices");
    assert!(found.is_some() || !is_required, "the device has no matrices");
    if found.is_none() {
        eprintln!("the device has no cooperative matrices: nothing was looked at");
    }
    found
}

fn text(matrices: &Matrices, statements: &str) -> String {
    let edge = matrices.edge as usize;
    let mut text = format!("enable f16;\n{MATRICES}");
    for (name, value) in [
        ("EDGE", edge),
        ("LANES", matrices.lanes as usize),
        ("THREADS", SUBGROUPS * matrices.lanes as usize),
        ("ROWS", SUBGROUPS * edge),
        ("CELLS", edge / 4),
        ("STRIDE", edge / 4 + PADDING),
        ("SCORE_STRIDE", edge / 4 + PADDING),
    ] {
        text += &format!("const {name}: u32 = {value}u;\n");
    }
    text + &TEXT.replace("$STATEMENTS$", statements)
}

/// What no device is needed for.
#[test]
fn statements_of_every_case_are_modules() {
    for edge in [8, 16] {
        let matrices = Matrices { edge, lanes: 32, is_native: true };
        for (_, statements, expected) in cases(&matrices) {
            let compiled = crate::spirv::compile(&text(&matrices, &statements), false).unwrap();
            assert!(crate::spirv::tests::check(&compiled.words) > 0);
            assert_eq!(expected.len(), SUBGROUPS * (edge * edge) as usize);
        }
    }
}

#[test]
fn matrices_on_device_do_what_statements_say() {
    let Some(backend) = backend() else { return };
    let Some(matrices) = native(&backend) else { return };
    let mut wrong = Vec::new();
    for (name, statements, expected) in cases(&matrices) {
        let pipeline = block_on(backend.gpu().pipeline(name, &text(&matrices, &statements))).unwrap();
        let numbers = Numbers::new(matrices.edge as usize);
        let given = HostTensor::from_fn(DType::F16, &[numbers.given.len()], |i| numbers.given[i]).unwrap();
        let left = left_by(&backend, &pipeline, Some(given), expected.len());
        let differing: Vec<usize> = (0..left.len()).filter(|&i| left[i] != expected[i]).collect();
        let verdict = match differing.first() {
            None => "right".to_owned(),
            Some(&i) => {
                wrong.push(name);
                let count = differing.len();
                format!("{count} of {} are wrong; number {i} is {}, not {}", left.len(), left[i], expected[i])
            }
        };
        eprintln!("{name}: {verdict}");
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

/// A rate of products that are not made is none.
#[test]
fn matrices_on_device_are_multiplied_by_the_probe() {
    let Some(backend) = backend() else { return };
    let Some(matrices) = native(&backend) else { return };
    let (edge, rounds) = (matrices.edge as usize, 3);
    let pipeline = block_on(backend.gpu().pipeline("probe", &matrix_probe(&matrices, rounds))).unwrap();
    let left = left_by(&backend, &pipeline, None, edge * edge);
    let factor = |row: usize, column: usize| ((row * edge + column) / 4 % 8) as f64 * 0.01;
    for (i, value) in left.into_iter().enumerate() {
        let product: f64 = (0..edge).map(|k| factor(i / edge, k) * factor(k, i % edge)).sum();
        let expected = (MATRIX_CHAINS * rounds) as f64 * product;
        assert!((value - expected).abs() < 1e-2 * expected, "{i}: {value}, not {expected}");
    }
}
