//! What the library says where parts of CUDA are missing. Each case is a process of its own, because the loader's answers
//! are kept.

use std::process::Command;

/// Runs one of the ignored tests below in a process with these variables.
fn in_a_process(test: &str, variables: &[(&str, &str)]) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--nocapture"])
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("1 passed"), "{text}");
}

#[test]
fn a_hidden_device_and_a_wrong_number_are_errors_and_no_panics() {
    in_a_process("no_device", &[("CUDA_VISIBLE_DEVICES", "")]);
    in_a_process("no_such_device", &[("NATTEN_CUDA_DEVICE", "99")]);
    in_a_process("no_number", &[("NATTEN_CUDA_DEVICE", "first")]);
}

#[test]
#[ignore = "runs in a process where no device is visible"]
fn no_device() {
    let error = natten_cuda::probe().unwrap_err();
    assert!(matches!(error, natten_core::Error::Unavailable { .. }), "{error}");
    assert!(error.to_string().contains("--backend cpu"), "{error}");
}

#[test]
#[ignore = "runs in a process that asks for a device that is not there"]
fn no_such_device() {
    let error = natten_cuda::probe().unwrap_err();
    let is_right = match &error {
        natten_core::Error::Invalid { argument, .. } => argument == "device",
        // Without a driver that is what is wrong first.
        error => matches!(error, natten_core::Error::Unavailable { .. }),
    };
    assert!(is_right, "{error}");
}

#[test]
#[ignore = "runs in a process that asks for no number"]
fn no_number() {
    let message = natten_cuda::probe().unwrap_err().to_string();
    assert!(message.contains("NATTEN_CUDA_DEVICE") && message.contains("'first'"), "{message}");
}
