//! The machine itself: its processor, and where random numbers come from.

use std::path::Path;

use super::check::Check;

/// Looks at this machine's processor.
pub(super) fn processor() -> Check {
    #[cfg(target_arch = "x86_64")]
    {
        let has = std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma");
        judge_avx2(cfg!(target_feature = "avx2"), has, cfg!(feature = "embedded"))
    }
    #[cfg(not(target_arch = "x86_64"))]
    Check::ok("processor", std::env::consts::ARCH)
}

#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))] // judged on x86-64 alone
fn judge_avx2(wanted: bool, has: bool, embedded: bool) -> Check {
    const NAME: &str = "processor";
    match (wanted, has, embedded) {
        (true, false, _) => Check::bad(
            NAME,
            "this program was built for AVX2 and FMA, which this processor lacks: it may stop at any moment",
            "build it with RUSTFLAGS=\"\"",
        ),
        (false, true, true) => Check::warn(
            NAME,
            "this program was built without AVX2: the embedded engine is several times slower than it could be",
            "build it with the repository's own settings, without RUSTFLAGS",
        ),
        (false, false, true) => Check::warn(
            NAME,
            "without AVX2 the embedded engine is slow",
            "attach another machine: `shoal token create` here, `shoal join` there",
        ),
        (_, true, _) => Check::ok(NAME, "x86-64 with AVX2"),
        (false, false, false) => Check::ok(NAME, "x86-64; no engine in this program needs AVX2"),
    }
}

/// Looks where random numbers come from.
pub(super) fn random() -> Check {
    let is_static = cfg!(all(target_os = "linux", target_env = "gnu", target_feature = "crt-static"));
    judge_random(is_static, ["/dev/random", "/dev/urandom"].iter().all(|file| Path::new(file).exists()))
}

/// A static glibc program does not find the system call's symbol and reads the two files.
fn judge_random(is_static: bool, files: bool) -> Check {
    const NAME: &str = "random numbers";
    match (is_static, files) {
        (true, false) => Check::bad(
            NAME,
            "this static program needs /dev/random and /dev/urandom, and they are not here",
            "mount /dev into the container, or use the image of this repository",
        ),
        (true, true) => Check::ok(NAME, "read from /dev/random"),
        (false, _) => Check::ok(NAME, "by system call"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::Verdict;
    use super::*;

    #[test]
    fn a_build_that_wants_more_than_the_processor_has_is_bad() {
        for (wanted, has, embedded, verdict) in [
            (true, true, true, Verdict::Ok),
            (true, false, false, Verdict::Bad),
            (false, true, true, Verdict::Warn),
            (false, false, true, Verdict::Warn),
            (false, false, false, Verdict::Ok),
        ] {
            assert_eq!(judge_avx2(wanted, has, embedded).verdict, verdict, "{wanted} {has} {embedded}");
        }
    }

    #[test]
    fn only_a_static_program_needs_the_files() {
        assert_eq!(judge_random(true, false).verdict, Verdict::Bad);
        assert_eq!(judge_random(true, true).verdict, Verdict::Ok);
        assert_eq!(judge_random(false, false).verdict, Verdict::Ok);
    }
}
