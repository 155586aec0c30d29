//! NVRTC: CUDA C to machine code (a cubin) for one architecture, at run time and without a driver.

use std::ffi::{CStr, CString, c_char};
use std::sync::OnceLock;

use cudarc::nvrtc::{result, sys};
use natten_core::{Error, Result};

use crate::cache::{DiskCache, Key};
use crate::target::Target;
use crate::{NAME, error};

/// Options of every kernel, before the architecture's.
const OPTIONS: [&str; 5] = [
    "--std=c++17",
    "--device-as-default-execution-space",
    "--ptxas-options=-v",
    "--ptxas-options=-warn-spills",
    "--ptxas-options=-warn-lmem-usage",
];

/// How a user gets the compiler.
const HINT: &str = "install CUDA's NVRTC 12 or 13 (the Python package nvidia-cuda-nvrtc has it too) and put its folder on \
                    the loader's path, or use --backend cpu";

/// The compiler, with its cache on disk.
#[derive(Debug)]
pub struct Compiler {
    version: (i32, i32),
    /// What it compiles for, as numbers: 90 for 9.0. Ascending.
    targets: Vec<u32>,
    cache: Option<DiskCache>,
}

/// Machine code.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Compiled {
    /// The code, an ELF image.
    pub cubin: Vec<u8>,
    /// What the compiler said. Empty where the code comes from the cache.
    pub log: String,
}

impl Compiler {
    /// The compiler on the loader's path, with the cache that the environment names; see
    /// [`CACHE_VARIABLE`](crate::CACHE_VARIABLE).
    ///
    /// # Errors
    /// [`Error::Unavailable`] where there is none, or a part of it is missing.
    pub fn new() -> Result<Self> {
        if !is_present() {
            return Err(Error::unavailable(
                NAME,
                "the compiler NVRTC (libnvrtc) is not on the loader's path",
                HINT,
            ));
        }
        let compiler =
            Self { version: version()?, targets: targets()?, cache: DiskCache::from_environment() };
        compiler.check_parts()?;
        Ok(compiler)
    }

    /// The same compiler without a cache on disk: everything is compiled anew, and every log is there.
    #[must_use]
    pub fn without_cache(self) -> Self {
        Self { cache: None, ..self }
    }

    /// The version: major, minor.
    pub const fn version(&self) -> (i32, i32) {
        self.version
    }

    /// The machine code of a kernel.
    ///
    /// # Errors
    /// [`Error::Compile`] with the log where the source is refused; [`Error::Unavailable`] where this version does not
    /// compile for the architecture.
    pub fn compile(&self, source: &str, options: &[&str], target: &Target) -> Result<Compiled> {
        let arch = format!("--gpu-architecture={}", self.architecture(target)?);
        let options: Vec<&str> =
            OPTIONS.iter().copied().chain(options.iter().copied()).chain([arch.as_str()]).collect();
        let key = Key::new(source, &options, self.version);
        if let Some(cubin) = self.cache.as_ref().and_then(|cache| cache.load(&key)) {
            return Ok(Compiled { cubin, log: String::new() });
        }
        let compiled = compile(source, &options)?;
        if let Some(cache) = &self.cache {
            cache.store(&key, &compiled.cubin);
        }
        Ok(compiled)
    }

    /// The newest architecture that this version knows and the target runs: its own, or an older one of its family.
    fn architecture(&self, target: &Target) -> Result<String> {
        let own = target.number();
        if self.targets.contains(&own) {
            return Ok(target.name());
        }
        let older = self.targets.iter().rev().find(|&&number| number < own && number / 10 == target.arch.0);
        older.map(|number| format!("sm_{number}")).ok_or_else(|| {
            let (major, minor) = self.version;
            Error::unavailable(
                NAME,
                format!(
                    "NVRTC {major}.{minor} does not compile for compute capability {}.{}; it knows {:?}",
                    target.arch.0, target.arch.1, self.targets
                ),
                "install an NVRTC that does: 12.x for GPUs before Turing (7.5), 13.x for the newest; or use --backend cpu",
            )
        })
    }

    /// Compiles an empty kernel, because NVRTC opens a library of its own (libnvrtc-builtins) only when it compiles.
    fn check_parts(&self) -> Result<()> {
        let Some(newest) = self.targets.last() else {
            return Err(Error::unavailable(NAME, "NVRTC says that it compiles for no architecture", HINT));
        };
        let options = [OPTIONS[0], OPTIONS[1], &format!("--gpu-architecture=sm_{newest}")];
        compile("extern \"C\" __global__ void probe() {}", &options).map(|_| ()).map_err(|error| {
            let why = match &error {
                Error::Compile { log, .. } if log.contains("builtins") => {
                    format!("NVRTC does not find its builtins library (libnvrtc-builtins): {}", log.trim())
                }
                error => format!("NVRTC cannot compile an empty kernel: {error}"),
            };
            Error::unavailable(NAME, why, HINT)
        })
    }
}

/// Whether the loader finds NVRTC; asked once, because each answer opens libraries.
fn is_present() -> bool {
    static PRESENT: OnceLock<bool> = OnceLock::new();
    // SAFETY: it opens shared libraries by name and closes them; that runs their initialisers, as using them would.
    *PRESENT.get_or_init(|| unsafe { sys::is_culib_present() })
}

fn version() -> Result<(i32, i32)> {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: both point to integers that live through the call.
    unsafe { sys::nvrtcVersion(&raw mut major, &raw mut minor) }
        .result()
        .map_err(|e| error::nvrtc("asking NVRTC for its version", e))?;
    Ok((major, minor))
}

fn targets() -> Result<Vec<u32>> {
    let what = "asking NVRTC for its architectures";
    let mut count = 0;
    // SAFETY: it points to an integer that lives through the call.
    unsafe { sys::nvrtcGetNumSupportedArchs(&raw mut count) }.result().map_err(|e| error::nvrtc(what, e))?;
    let mut targets = vec![0i32; usize::try_from(count).unwrap_or_default()];
    // SAFETY: there is room for as many numbers as the call before said.
    unsafe { sys::nvrtcGetSupportedArchs(targets.as_mut_ptr()) }
        .result()
        .map_err(|e| error::nvrtc(what, e))?;
    let mut targets: Vec<u32> = targets.into_iter().filter_map(|number| u32::try_from(number).ok()).collect();
    targets.sort_unstable();
    Ok(targets)
}

/// A program of NVRTC, destroyed when dropped.
struct Program(sys::nvrtcProgram);

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: it came from `create_program`, and nothing uses it after this. A failure leaks it, no more.
        let _ = unsafe { result::destroy_program(self.0) };
    }
}

fn compile(source: &str, options: &[&str]) -> Result<Compiled> {
    let refused = |log: String| Error::Compile { backend: NAME.into(), log, source_text: source.to_owned() };
    let text = CString::new(source).map_err(|_| refused("the source has a NUL character".to_owned()))?;
    let program = Program(
        result::create_program(&text, Some(c"natten.cu"))
            .map_err(|e| error::nvrtc("making a program of NVRTC", e))?,
    );
    let options = options
        .iter()
        .map(|option| CString::new(*option))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| refused("an option has a NUL character".to_owned()))?;
    let pointers: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
    let count = i32::try_from(pointers.len()).unwrap_or(i32::MAX);
    // SAFETY: the program is alive, and `options` owns the strings that the pointers name until after the call.
    let outcome = unsafe { sys::nvrtcCompileProgram(program.0, count, pointers.as_ptr()) };
    let log = log(&program);
    outcome.result().map_err(|error| refused(format!("{error}\n{log}")))?;
    let what = "reading the machine code from NVRTC";
    let mut size = 0;
    // SAFETY: the program is alive and compiled, and `size` lives through the call.
    unsafe { sys::nvrtcGetCUBINSize(program.0, &raw mut size) }
        .result()
        .map_err(|e| error::nvrtc(what, e))?;
    let mut cubin = vec![0u8; size];
    // SAFETY: there is room for as many bytes as the call before said.
    unsafe { sys::nvrtcGetCUBIN(program.0, cubin.as_mut_ptr().cast()) }
        .result()
        .map_err(|e| error::nvrtc(what, e))?;
    Ok(Compiled { cubin, log })
}

fn log(program: &Program) -> String {
    // SAFETY: the program is alive and was compiled, with or without success.
    let bytes = unsafe { result::get_program_log(program.0) }.unwrap_or_default();
    let bytes: Vec<u8> = bytes.into_iter().map(|c| c.to_ne_bytes()[0]).collect();
    CStr::from_bytes_until_nul(&bytes).map(|text| text.to_string_lossy().into_owned()).unwrap_or_default()
}
