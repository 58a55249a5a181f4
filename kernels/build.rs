//! Compiles `cuda/*.cu` for the feature `cuda`; does nothing otherwise.
//!
//! Each file becomes one container with machine code for every architecture that is supported and PTX of the oldest, which
//! the driver compiles for newer ones. The compiler is `$NVCC`, or nvcc of `$CUDA_HOME`, of the folder that
//! `scripts/cuda_env.sh` fills, or of the path. Candle's own CUDA kernels are not built: see `docs/architecture.md`.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, exit},
    thread,
};

/// Ampere, Ada, Hopper, Blackwell (workstation).
const ARCHITECTURES: [&str; 4] = ["80", "89", "90", "120"];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    println!("cargo::rerun-if-changed=cuda");
    for name in ["NVCC", "CUDA_HOME"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let nvcc = compiler();
    let mut sources: Vec<PathBuf> = fs::read_dir("cuda")
        .expect("the package holds kernels/cuda")
        .map(|entry| entry.expect("a readable folder").path())
        .filter(|path| path.extension().is_some_and(|it| it == "cu"))
        .collect();
    sources.sort();
    // nvcc is mostly one process per architecture: two files at a time keep a small machine busy.
    let next = std::sync::atomic::AtomicUsize::new(0);
    let jobs = env::var("NUM_JOBS").ok().and_then(|it| it.parse().ok()).unwrap_or(2usize).clamp(1, sources.len());
    thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some(source) = sources.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
                    compile(&nvcc, source, &out);
                }
            });
        }
    });
    let list: String = sources
        .iter()
        .map(|source| {
            let stem = stem(source);
            format!("    ({stem:?}, include_bytes!({:?})),\n", out.join(format!("{stem}.fatbin")))
        })
        .collect();
    fs::write(out.join("modules.rs"), format!("&[\n{list}]\n")).expect("cargo's folder takes a file");
}

fn compile(nvcc: &Path, source: &Path, out: &Path) {
    let mut command = Command::new(nvcc);
    command.args(["--fatbin", "-std=c++17", "-O3"]);
    for architecture in ARCHITECTURES {
        command.arg(format!("-gencode=arch=compute_{architecture},code=sm_{architecture}"));
    }
    command.arg("-gencode=arch=compute_80,code=compute_80");
    let status = command.arg("-o").arg(out.join(format!("{}.fatbin", stem(source)))).arg(source).status();
    if !status.as_ref().is_ok_and(|status| status.success()) {
        println!("cargo::error={} does not compile with `{}`: {status:?}", source.display(), nvcc.display());
        exit(1);
    }
}

fn compiler() -> PathBuf {
    if let Some(nvcc) = env::var_os("NVCC") {
        return nvcc.into();
    }
    let fetched = Path::new(env!("CARGO_MANIFEST_DIR")).join("../build/cuda/nvidia/cu13");
    let homes = [env::var_os("CUDA_HOME").map(PathBuf::from), Some(fetched)];
    let of_home = homes.into_iter().flatten().map(|home| home.join("bin/nvcc")).find(|nvcc| nvcc.exists());
    let nvcc = of_home.unwrap_or_else(|| "nvcc".into());
    if Command::new(&nvcc).arg("--version").output().is_err() {
        println!("cargo::error=the feature `cuda` needs nvcc: run `eval \"$(scripts/cuda_env.sh)\"`, or set CUDA_HOME");
        exit(1);
    }
    nvcc
}

fn stem(path: &Path) -> &str {
    path.file_stem().and_then(|it| it.to_str()).expect("kernels have plain names")
}
