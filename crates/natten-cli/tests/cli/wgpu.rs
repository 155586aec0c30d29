//! What the program does with a GPU, and the plans that it writes for pages. Tests that need an adapter say so where
//! there is none; `NATTEN_REQUIRE=wgpu` makes that a failure.

#![allow(clippy::print_stderr, reason = "a test that did not run says so")]

use std::collections::BTreeMap;

use natten::Registry;
use serde_json::Value;

use crate::denoise::{crop, directory_with};
use crate::program::Directory;

fn has_adapter() -> bool {
    let registry = Registry::probe();
    let known: Vec<&str> = registry.entries().iter().map(|entry| entry.name).collect();
    let is_required =
        natten_conformance::required_backends(&known).unwrap().iter().any(|name| name == "wgpu");
    match registry.device("wgpu") {
        Ok(_) => true,
        Err(error) => {
            assert!(!is_required, "wgpu is required: {error}");
            eprintln!("not run: {error}");
            false
        }
    }
}

#[cfg(feature = "cpu")]
#[test]
fn the_gpu_denoises_as_the_cpu_does() {
    if !has_adapter() {
        return;
    }
    let directory = directory_with("in.png", &crop(48, 40));
    let [gpu, cpu] = ["wgpu", "cpu"].map(|backend| {
        let name = format!("{backend}.png");
        let words = ["denoise", "in.png", &name, "--add-noise", "25", "--seed", "1", "--backend", backend];
        let small = ["--kernel-size", "7", "--patch", "5", "--sigma", "25", "--strength", "0.75"];
        let finished = directory.natten(&[&words[..], &small[..]].concat());
        assert_eq!(finished.code, Some(0), "{}", finished.stderr);
        assert!(finished.stdout.contains(&format!("on {backend}")), "{}", finished.stdout);
        image::open(directory.path(&name)).unwrap().to_rgb8()
    });
    let noisy = image::open(directory.path("in.png")).unwrap().to_rgb8();
    assert!(gpu != noisy, "nothing was denoised");
    // Rounding to a level may go either way.
    assert!(gpu.iter().zip(cpu.iter()).all(|(&a, &b)| a.abs_diff(b) <= 1));
}

#[test]
fn adapters_are_listed_with_features_and_limits() {
    if !has_adapter() {
        return;
    }
    let listed = Directory::with_bytes(b"").natten(&["devices"]).stdout;
    let line = listed.lines().position(|line| line.starts_with("wgpu ")).expect("wgpu has a line");
    let of_wgpu: Vec<&str> = listed.lines().skip(line + 1).take_while(|line| line.starts_with(' ')).collect();
    for name in [
        "api",
        "driver",
        "shader f16",
        "shader f64",
        "subgroups",
        "subgroup size",
        "cooperative matrices",
        "workgroup storage",
        "workgroup invocations",
        "storage binding",
        "largest buffer",
        "storage buffers a stage",
    ] {
        let is_there =
            |line: &&str| line.trim_start().strip_prefix(name).is_some_and(|rest| rest.starts_with(": "));
        assert_eq!(of_wgpu.iter().filter(|line| is_there(line)).count(), 1, "{name}: {listed}");
    }
}

/// What `docs/wgpu.md` says of the format, so that a page can rely on it.
#[test]
fn plans_for_pages_have_their_format() {
    let operations =
        ["forward", "jvp", "backward", "double-backward"].map(|op| format!("--op {op} --dtype f16"));
    let unfused = ["qk", "av", "qk-backward", "av-backward"].map(|op| format!("--op {op}"));
    for operation in operations.iter().chain(&unfused) {
        let words = format!(
            "emit wgsl --shape 9,12 --kernel-size 3,5 --dilation 1,2 --causal false,true --heads 4 --heads-kv 2 \
             --head-dim 8 --head-dim-v 6 --additional-tokens 2 {operation}"
        );
        let finished = Directory::with_bytes(b"").natten(&words.split_whitespace().collect::<Vec<_>>());
        assert_eq!((finished.code, finished.stderr.as_str()), (Some(0), ""), "{words}");
        check_plan(&serde_json::from_str(&finished.stdout).unwrap());
    }
}

fn check_plan(plan: &Value) {
    assert_eq!((&plan["format"], &plan["version"]), (&"natten-wgsl".into(), &1.into()));
    assert!(plan["problem"].is_string() && plan["family"].is_string());
    let mut buffers = BTreeMap::new();
    for buffer in plan["buffers"].as_array().unwrap() {
        let bytes = buffer["bytes"].as_u64().unwrap();
        assert!(bytes > 0 && bytes.is_multiple_of(4), "{buffer}");
        match buffer["kind"].as_str().unwrap() {
            "input" | "output" => {
                let extents =
                    buffer["shape"].as_array().unwrap().iter().map(|extent| extent.as_u64().unwrap());
                let size = if buffer["dtype"] == "f16" { 2 } else { 4 };
                assert!(bytes >= size * extents.product::<u64>(), "{buffer}");
            }
            "constant" => {
                let values = buffer["values"].as_array().unwrap();
                assert!(values.iter().all(|value| value.as_i64().is_some_and(|n| i32::try_from(n).is_ok())));
                assert_eq!(bytes, 4 * values.len() as u64);
            }
            kind => assert_eq!(kind, "scratch", "{buffer}"),
        }
        assert!(
            buffers.insert(buffer["name"].as_str().unwrap(), bytes).is_none(),
            "two are called alike: {buffer}"
        );
    }
    let shaders = plan["shaders"].as_array().unwrap();
    for step in plan["steps"].as_array().unwrap() {
        if let Some(cleared) = step.get("clear") {
            let end = step["offset"].as_u64().unwrap() + step["bytes"].as_u64().unwrap();
            assert!(end <= buffers[cleared.as_str().unwrap()], "{step}");
            continue;
        }
        let text = shaders[step["shader"].as_u64().unwrap() as usize].as_str().unwrap();
        assert!(text.contains(&format!("fn {}(", step["entry"].as_str().unwrap())), "{step}");
        assert!(step["constants"].is_object() && step["workgroups"].as_array().unwrap().len() == 3, "{step}");
        let bindings = step["bindings"].as_array().unwrap();
        for (number, name) in bindings.iter().enumerate() {
            assert!(buffers.contains_key(name.as_str().unwrap()), "{step}");
            assert!(text.contains(&format!("@group(0) @binding({number})")), "{step}");
        }
        assert_eq!(text.matches("@binding(").count(), bindings.len(), "{step}");
    }
}
