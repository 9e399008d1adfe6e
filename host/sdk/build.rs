//! Hands the facts that only a build script learns to `src/passport.rs`.

use std::env;

fn main() {
    for (fact, from) in [
        ("CREWAI_NATIVE_SDK_TARGET", "TARGET"),
        (
            "CREWAI_NATIVE_SDK_TARGET_FEATURES",
            "CARGO_CFG_TARGET_FEATURE",
        ),
    ] {
        println!(
            "cargo::rustc-env={fact}={}",
            env::var(from).unwrap_or_default()
        );
    }
    println!("cargo::rerun-if-changed=build.rs");
}
