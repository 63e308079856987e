//! Who runs.

use std::fs;
use std::path::Path;

/// The command lines that name the folder.
pub fn processes_of(folder: &Path) -> Vec<String> {
    let needle = folder.to_str().unwrap();
    let commands = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
        entry.file_name().to_str()?.parse::<u32>().ok()?;
        let command = fs::read(entry.path().join("cmdline")).ok()?;
        Some(String::from_utf8_lossy(&command).replace('\0', " "))
    });
    commands.filter(|command| command.contains(needle)).collect()
}
