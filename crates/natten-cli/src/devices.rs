//! `natten devices`: each backend of this build, what it runs on, or why it cannot be used here.

use std::fmt::Write;

use natten::{DeviceInfo, DeviceKind, Error, Registry, Result};

use crate::console;

/// Prints the list.
///
/// # Errors
/// Only where stdout cannot be written: a backend that is absent is a line of the list.
pub(crate) fn run(registry: &Registry) -> Result<()> {
    console::print(&list(registry))
}

fn list(registry: &Registry) -> String {
    let mut text = String::new();
    for entry in registry.entries() {
        match &entry.backend {
            Ok(backend) => describe(&mut text, entry.name, backend.device()),
            Err(error) => line(&mut text, entry.name, &why_not(error)),
        }
    }
    match registry.auto() {
        Ok(device) => line(&mut text, "auto", device.info().backend),
        Err(error) => line(&mut text, "auto", &why_not(&error)),
    }
    text
}

/// The reason without the name, which the line begins with.
fn why_not(error: &Error) -> String {
    match error {
        Error::Unavailable { why, hint, .. } => format!("not available: {why} ({hint})"),
        other => other.to_string(),
    }
}

fn describe(text: &mut String, name: &str, device: &DeviceInfo) {
    let units = match (device.kind, device.units) {
        (DeviceKind::Cpu, 1) => "1 thread".to_owned(),
        (DeviceKind::Cpu, threads) => format!("{threads} threads"),
        (_, 1) => "1 unit".to_owned(),
        (_, units) => format!("{units} units"),
    };
    let memory = device.memory.map(|bytes| format!(", {:.1} GiB", bytes as f64 / f64::from(1 << 30)));
    line(text, name, &format!("{}, {units}{}", device.name, memory.unwrap_or_default()));
    let rates = [
        ("peak f32, estimated", device.peak_f32.map(|flops| format!("{:.1} Gflop/s", flops / 1e9))),
        ("bandwidth", device.bandwidth.map(|bytes| format!("{:.1} GB/s", bytes / 1e9))),
    ];
    let rates = rates.iter().filter_map(|(name, rate)| Some((*name, rate.as_deref()?)));
    let features = device.features.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    for (name, value) in rates.chain(features) {
        line(text, "", &format!("{name}: {value}"));
    }
}

fn line(text: &mut String, name: &str, what: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{name:<10} {what}");
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use natten::Entry;
    use natten::reference::ReferenceBackend;

    use super::*;

    #[test]
    fn says_what_is_there_and_why_not() {
        let mut registry = Registry::empty();
        registry.push(Entry::new("cuda", Err(Error::unavailable("cuda", "no driver", "install one"))));
        registry.push(Entry::new("reference", Ok(Arc::new(ReferenceBackend::new()))));
        let text = list(&registry);
        assert!(text.contains("cuda       not available: no driver (install one)"), "{text}");
        assert!(text.contains("\nreference  ") && text.contains("1 thread"), "{text}");
        assert_eq!(text.matches("\nauto ").count(), 1, "{text}");
    }

    #[test]
    fn rates_and_memory_are_shown_where_known() {
        let mut device = DeviceInfo::new("cuda", "H200", DeviceKind::Gpu);
        device.units = 132;
        device.memory = Some(139 << 30);
        device.bandwidth = Some(4.8e12);
        device.features.push(("compute capability".to_owned(), "9.0".to_owned()));
        let mut text = String::new();
        describe(&mut text, "cuda", &device);
        let expected = ["cuda       H200, 132 units, 139.0 GiB", "           bandwidth: 4800.0 GB/s"];
        assert!(expected.iter().all(|line| text.contains(line)), "{text}");
        assert!(text.contains("compute capability: 9.0"), "{text}");
    }
}
