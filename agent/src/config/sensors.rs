//! The `[sensors]` section: how the kernel is asked.

use super::checked::Sensors;
use super::faults::Faults;
use super::raw::Section;
use crate::sensors::Way;
use std::path::{Path, PathBuf};

/// The whole section.
pub(super) fn sensors(mut section: Section<'_>, faults: &mut Faults<'_>) -> Sensors {
    let mut avoid = Vec::new();
    for entry in section
        .texts("avoid", Way::ALL.len(), faults)
        .unwrap_or_default()
    {
        if let Some(way) = Way::from_name(&entry.value) {
            avoid.push(way);
            continue;
        }
        let names: Vec<&str> = Way::ALL.iter().map(|way| way.name()).collect();
        faults.add(
            &entry.span,
            format!("there is no way of attaching called \"{}\"", entry.value),
            Some(format!("it is one of: {}", names.join(", "))),
        );
    }
    let library = section.text("cuda-library", faults);
    if let Some(path) = &library
        && !Path::new(&path.value).is_absolute()
    {
        faults.add(
            &path.span,
            format!("`cuda-library` is not an absolute path: \"{}\"", path.value),
            Some("begin it with `/`".to_owned()),
        );
    }
    section.finish(faults);
    Sensors {
        avoid,
        cuda_library: library.map(|path| PathBuf::from(path.value)),
    }
}
