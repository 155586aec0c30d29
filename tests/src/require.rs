//! Which backends a test run must find. A test that skips a backend that is not there hides that a machine lost it; so
//! continuous integration names in `NATTEN_REQUIRE` what each of its machines has.

use natten_core::{Error, Result};

/// The environment variable: names of backends with commas between them, such as `cpu,wgpu`.
const VARIABLE: &str = "NATTEN_REQUIRE";

/// The backends that the environment variable `NATTEN_REQUIRE` names, each one of `known`; none where it is not set.
///
/// # Errors
/// [`Error::Invalid`] for a name that is not known, or a value that is not Unicode.
pub fn required_backends(known: &[&str]) -> Result<Vec<String>> {
    match std::env::var(VARIABLE) {
        Ok(list) => parse_required(&list, known),
        Err(std::env::VarError::NotPresent) => Ok(Vec::new()),
        Err(error) => {
            Err(Error::invalid(VARIABLE, error, "it must be Unicode", "name backends, as in cpu,wgpu"))
        }
    }
}

/// The names in a list with commas between them, each one of `known`. Spaces and empty names are passed over.
///
/// # Errors
/// [`Error::Invalid`] for a name that is not known.
pub fn parse_required(list: &str, known: &[&str]) -> Result<Vec<String>> {
    let names = list.split(',').map(str::trim).filter(|name| !name.is_empty());
    names
        .map(|name| {
            if known.contains(&name) {
                return Ok(name.to_owned());
            }
            let rule = format!("no backend has this name; there are {}", known.join(", "));
            Err(Error::invalid(VARIABLE, format!("'{name}'"), rule, "name backends, as in cpu,wgpu"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_names_are_read() {
        let known = ["cpu", "wgpu"];
        assert_eq!(parse_required("cpu, wgpu,", &known).unwrap(), ["cpu", "wgpu"]);
        assert!(parse_required("", &known).unwrap().is_empty());
        let message = parse_required("cpu,cuda", &known).unwrap_err().to_string();
        assert!(message.contains("'cuda'") && message.contains("cpu, wgpu"), "{message}");
    }
}
