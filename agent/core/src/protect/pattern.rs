//! Glob patterns for executables and units.
//!
//! `*` stands for any run of characters within one path component, `**` for any run at all.
//! Nothing else is special. Matching is linear in memory and at most quadratic in time.

/// A pattern that a path or a path component is matched with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pattern(String);

impl Pattern {
    pub(super) fn new(text: &str) -> Self {
        Self(text.to_owned())
    }

    pub(super) fn text(&self) -> &str {
        &self.0
    }

    /// Whether the whole of `text` matches; a pattern without a leading slash also matches the
    /// trailing components of a path.
    pub(super) fn matches_path(&self, path: &str) -> bool {
        if self.0.starts_with('/') {
            return glob(&self.0, path);
        }
        glob(&self.0, path)
            || path
                .match_indices('/')
                .any(|(slash, _)| glob(&self.0, &path[slash + 1..]))
    }
}

/// Whether `pattern` matches the whole of `text`.
pub(super) fn glob(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    // Where to go on after a mismatch: behind the last star of each kind, one byte further.
    let mut single: Option<(usize, usize)> = None;
    let mut double: Option<(usize, usize)> = None;
    loop {
        if pattern[p..].starts_with(b"**") {
            p += 2;
            double = Some((p, t));
            single = None;
        } else if pattern.get(p) == Some(&b'*') {
            p += 1;
            single = Some((p, t));
        } else if p == pattern.len() && t == text.len() {
            return true;
        } else if p < pattern.len() && pattern.get(p) == text.get(t) {
            p += 1;
            t += 1;
        } else if let Some((behind, at)) = single.filter(|&(_, at)| component_goes_on(text, at)) {
            single = Some((behind, at + 1));
            (p, t) = (behind, at + 1);
        } else if let Some((behind, at)) = double.filter(|&(_, at)| at < text.len()) {
            single = None;
            double = Some((behind, at + 1));
            (p, t) = (behind, at + 1);
        } else {
            return false;
        }
    }
}

fn component_goes_on(text: &[u8], at: usize) -> bool {
    text.get(at).is_some_and(|&byte| byte != b'/')
}

#[cfg(test)]
mod tests {
    use super::{Pattern, glob};

    #[test]
    fn stars_stay_within_a_component_and_double_stars_do_not() {
        for (pattern, text, matches) in [
            ("/usr/bin/x", "/usr/bin/x", true),
            ("/usr/bin/x", "/usr/bin/xy", false),
            ("/usr/*/x", "/usr/bin/x", true),
            ("/usr/*/x", "/usr/a/b/x", false),
            ("/usr/**/x", "/usr/a/b/x", true),
            ("/usr/**", "/usr/", true),
            ("**", "", true),
            ("*", "", true),
            ("*", "/", false),
            ("", "", true),
            ("", "a", false),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbYbZ", false),
            ("**/b*/c", "/b1/x/b2/c", true),
            ("shim*", "shim-runc-v2", true),
            ("*.service", "sshd.service", true),
            ("é*", "écu", true),
        ] {
            assert_eq!(glob(pattern, text), matches, "{pattern} on {text}");
        }
    }

    #[test]
    fn a_relative_pattern_matches_whole_trailing_components() {
        let pattern = Pattern::new("bin/serve*");
        assert!(pattern.matches_path("/opt/x/bin/server"));
        assert!(!pattern.matches_path("/opt/x/sbin/server"));
        assert!(!Pattern::new("ssh").matches_path("/usr/bin/sshd"));
        assert!(!Pattern::new("/bin/ssh").matches_path("/usr/bin/ssh"));
    }
}
