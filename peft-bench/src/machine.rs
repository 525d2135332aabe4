//! What a program can say of itself and of the machine that it runs on.

use std::sync::OnceLock;

use sha2::{Digest, Sha256};

/// All threads of the machine.
pub fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The most memory that this process ever held, where the system tells.
pub fn peak_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// Forgets what [`peak_bytes`] was so far, where the system lets one: it begins again from what the process holds now, without what the
/// allocator keeps of what was freed.
pub fn forget_peak() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it only gives free pages back; any thread may call it.
    unsafe {
        libc::malloc_trim(0);
    }
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// Memory that the system would give to a program that starts now, where it tells.
pub fn available_bytes() -> Option<u64> {
    let of = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = of.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// How long processors have worked for this process, where the system tells.
pub fn processor_seconds() -> Option<f64> {
    // Behind the name, which may have spaces: the 12th and 13th numbers, in hundredths of a second.
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let numbers = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    Some(numbers.take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0)
}

/// The first 12 digits of the bytes' SHA-256.
pub fn digest(parts: &[&[u8]]) -> String {
    let sized = |hash: Sha256, part: &&[u8]| hash.chain_update(part.len().to_le_bytes()).chain_update(part);
    let hash = parts.iter().fold(Sha256::new(), sized).finalize();
    hash.iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

/// The version of this program, and a digest of its file: what other code computed is not taken for what this would.
pub fn program() -> &'static str {
    static PROGRAM: OnceLock<String> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let file = std::env::current_exe().and_then(std::fs::read).unwrap_or_default();
        format!("{} ({})", env!("CARGO_PKG_VERSION"), digest(&[&file]))
    })
}
