//! Path patterns that select the files of an output, and their target paths.

use globset::{Glob, GlobBuilder, GlobMatcher};
use thiserror::Error;

use super::{Layout, Output, OutputKind};

/// Characters that make a path component a pattern.
const WILD: [char; 6] = ['*', '?', '[', '{', '}', '\\'];
/// The directory itself that an output is relative to.
const HERE: &str = ".";
/// Maximum length of a path on any supported system, in bytes.
const LONGEST: usize = 4096;
/// Maximum nesting of braces. A glob with some hundreds of levels makes its compiler panic.
const DEEPEST: usize = 32;

/// Why a text is not a valid pattern, as the rest of a sentence that begins with the text.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BadPattern {
    /// The text is empty.
    #[error("is empty")]
    Empty,
    /// It contains a NUL character.
    #[error("has a NUL character")]
    Nul,
    /// It is longer than any valid path.
    #[error("is longer than {LONGEST} bytes")]
    Long,
    /// It is absolute.
    #[error("is absolute, and must be relative to a directory of the step")]
    Absolute,
    /// It contains `..`.
    #[error("has a `..`, which an output may not have; name the files from the top")]
    Up,
    /// Its braces are nested too deep.
    #[error("has braces that are nested deeper than {DEEPEST}")]
    Deep,
    /// It has an unbalanced bracket or brace, or a trailing backslash.
    #[error("cannot be read as a pattern: {0}")]
    Glob(String),
}

/// A pattern for paths below the directory that an output is relative to.
///
/// `*` matches within a path component. `?` and `[]` match one byte, so not a whole non-ASCII
/// character. `{a,b}` matches either alternative. `**` as a component matches any number of
/// directories. A backslash escapes the next character.
#[derive(Debug, Clone)]
pub struct Pattern {
    base: String,
    matcher: Matcher,
}

#[derive(Debug, Clone)]
enum Matcher {
    /// Matches this one path.
    Exact,
    Glob(GlobMatcher),
}

impl Pattern {
    /// Parses a pattern.
    ///
    /// # Errors
    /// If the text is not a pattern, or can match a path outside that directory.
    pub fn parse(text: &str) -> Result<Self, BadPattern> {
        let (base, glob) = read(text)?;
        let matcher = glob.map_or(Matcher::Exact, |glob| Matcher::Glob(glob.compile_matcher()));
        Ok(Self { base, matcher })
    }

    /// Checks a pattern. Much cheaper than [`Pattern::parse`].
    ///
    /// # Errors
    /// The same as those of [`Pattern::parse`].
    pub fn check(text: &str) -> Result<(), BadPattern> {
        read(text).map(drop)
    }

    /// The longest literal path prefix of the pattern, or `.` if there is none.
    ///
    /// Every match is this path or is below it.
    #[must_use]
    pub fn base(&self) -> &str {
        &self.base
    }

    /// Whether the pattern matches a path relative to that directory, without `.` components. The
    /// empty path is the directory itself.
    #[must_use]
    pub fn matches(&self, path: &str) -> bool {
        match &self.matcher {
            Matcher::Exact if path.is_empty() => self.base == HERE,
            Matcher::Exact => self.base == path,
            // A glob matches the contents of the working directory, never the directory itself.
            Matcher::Glob(_) if path.is_empty() => false,
            Matcher::Glob(glob) => glob.is_match(path),
        }
    }
}

/// The base of a pattern, and its glob unless it is a literal path.
fn read(text: &str) -> Result<(String, Option<Glob>), BadPattern> {
    if text.is_empty() {
        return Err(BadPattern::Empty);
    }
    if text.contains('\0') {
        return Err(BadPattern::Nul);
    }
    if text.len() > LONGEST {
        return Err(BadPattern::Long);
    }
    if text.starts_with('/') {
        return Err(BadPattern::Absolute);
    }
    if depth(text) > DEEPEST {
        return Err(BadPattern::Deep);
    }
    let parts: Vec<&str> = text.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    if parts.iter().copied().any(is_parent_component) {
        return Err(BadPattern::Up);
    }
    let plain: Vec<&str> = parts.iter().copied().take_while(|part| !part.contains(WILD)).collect();
    let base = if plain.is_empty() { HERE.to_owned() } else { plain.join("/") };
    if plain.len() == parts.len() {
        return Ok((base, None));
    }
    let glob = GlobBuilder::new(&within_names(&parts.join("/")))
        .literal_separator(true)
        .backslash_escape(true)
        .empty_alternates(true)
        .build()
        .map_err(|error| BadPattern::Glob(error.kind().to_string()))?;
    Ok((base, Some(glob)))
}

/// How deep braces are nested. Those in a character class count too.
fn depth(text: &str) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => drop(chars.next()),
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

/// Whether a component is `..`, or can expand to it.
fn is_parent_component(part: &str) -> bool {
    if part.contains(['{', '}']) {
        part.split(['{', '}', ',']).any(|choice| choice == "..")
    } else {
        part == ".."
    }
}

/// Adds `/` to every `[!...]`, because the matcher would let such a class match a `/`.
fn within_names(glob: &str) -> String {
    let mut text = String::with_capacity(glob.len() + 8);
    let mut rest = glob.chars().peekable();
    while let Some(c) = rest.next() {
        text.push(c);
        if c == '\\' {
            text.extend(rest.next());
        }
        if c != '[' {
            continue;
        }
        let not = rest.next_if(|c| matches!(c, '!' | '^'));
        text.extend(not);
        // A leading `]` is literal.
        text.extend(rest.next_if_eq(&']'));
        while let Some(c) = rest.next() {
            let is_last = rest.peek() == Some(&']');
            match (not, c) {
                (Some(_), ']') => text.push_str("/]"),
                // The trailing hyphen must stay last, or it would form a range.
                (Some(_), '-') if is_last => {
                    text.push_str("/-]");
                    rest.next();
                    break;
                }
                (Some(_) | None, c) => text.push(c),
            }
            if c == ']' {
                break;
            }
        }
    }
    text
}

/// The files that an output selects.
///
/// A matching directory is selected with its contents.
#[derive(Debug, Clone)]
pub struct Selection {
    pattern: Pattern,
    kind: Option<OutputKind>,
    layout: Layout,
}

impl Selection {
    /// Makes the selection of an output.
    ///
    /// # Errors
    /// If the output's path is not a valid pattern.
    pub fn of(output: &Output) -> Result<Self, BadPattern> {
        let Output { path, kind, missing: _, layout, relative_to: _ } = output;
        Ok(Self { pattern: Pattern::parse(path)?, kind: *kind, layout: *layout })
    }

    /// A path that contains every selected file. `.` is the directory that the output is relative
    /// to.
    #[must_use]
    pub fn base(&self) -> &str {
        self.pattern.base()
    }

    /// The target path of a file, relative. Returns `None` if the file is not selected.
    #[must_use]
    pub fn file(&self, path: &str) -> Option<String> {
        // The outermost matching directory counts, so that its layout is kept.
        if let Some(dir) = above(path).find(|dir| self.directory(dir)) {
            return Some(self.put(path, dir));
        }
        let takes_files = self.kind != Some(OutputKind::Dir);
        (takes_files && self.pattern.matches(path)).then(|| self.put(path, path))
    }

    /// Whether the directory at a path is selected as a whole.
    #[must_use]
    pub fn directory(&self, path: &str) -> bool {
        self.kind != Some(OutputKind::File) && self.pattern.matches(path)
    }

    /// The target path of a file, given the matching path: the file itself or a directory above it.
    fn put(&self, path: &str, matched: &str) -> String {
        let from = match self.layout {
            Layout::Relative => 0,
            Layout::Flat => matched.rfind('/').map_or(0, |at| at + 1),
        };
        path.get(from..).unwrap_or(path).to_owned()
    }
}

/// The directories above a path, outermost first. The empty path is the step's working directory.
fn above(path: &str) -> impl Iterator<Item = &str> {
    let ends = path.bytes().enumerate().filter(|(_, byte)| *byte == b'/').map(|(at, _)| at);
    std::iter::once(0).chain(ends).filter_map(|end| path.get(..end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::{Missing, RelativeTo};

    fn pattern(text: &str) -> Pattern {
        Pattern::parse(text).unwrap()
    }

    fn selection(path: &str, kind: Option<OutputKind>, layout: Layout) -> Selection {
        let (missing, relative_to) = (Missing::Warn, RelativeTo::WorkDir);
        let output = Output { path: path.into(), kind, missing, layout, relative_to };
        Selection::of(&output).unwrap()
    }

    #[test]
    fn a_pattern_matches_like_a_glob_and_only_two_stars_descend() {
        for (text, good, bad) in [
            ("out/*.log", vec!["out/a.log", "out/.log"], vec!["out/a/b.log", "a.log", "out/a"]),
            ("out/**/*.log", vec!["out/a.log", "out/a/b/c.log"], vec!["x/a.log", "outa.log"]),
            ("**", vec!["a", "a/b"], vec![""]),
            ("a?c", vec!["abc", "a.c"], vec!["ac", "a/c", "abbc"]),
            ("a*ü", vec!["aü", "aüüü"], vec!["au"]),
            ("[a-c]x[!0-9]", vec!["axx", "cx-"], vec!["dxx", "ax1", "ax/"]),
            ("a[!b]c", vec!["axc"], vec!["abc", "a/c"]),
            ("a[!]-]c[^-]", vec!["axcx"], vec!["a]cx", "a/cx", "axc/", "axc-"]),
            ("{a,b/c}/{,x}y", vec!["a/y", "b/c/xy"], vec!["b/y", "c/y"]),
            (r"a\*", vec!["a*"], vec!["ab", r"a\*"]),
            ("./a//b/", vec!["a/b"], vec!["a", "a/b/c"]),
            (".", vec![""], vec!["a"]),
            ("100%, done", vec!["100%, done"], vec!["100%"]),
        ] {
            let pattern = pattern(text);
            for path in good {
                assert!(pattern.matches(path), "{text} does not match {path:?}");
            }
            for path in bad {
                assert!(!pattern.matches(path), "{text} matches {path:?}");
            }
        }
    }

    #[test]
    fn the_base_of_a_pattern_is_the_path_before_the_first_wildcard() {
        for (text, base) in [
            ("out/x/*.log", "out/x"),
            ("**/*.log", "."),
            ("*", "."),
            (".", "."),
            ("./out/./report.txt", "out/report.txt"),
            ("a/{b/c,d}/e", "a"),
            (r"a/\[b/c", "a"),
        ] {
            assert_eq!(pattern(text).base(), base, "{text}");
        }
    }

    #[test]
    fn an_invalid_or_escaping_pattern_is_refused_with_the_reason() {
        for (bad, why) in [
            ("", "is empty"),
            ("/etc/*", "absolute"),
            ("../x", ".."),
            ("a/../b", ".."),
            ("{a,..}/b", ".."),
            ("a\0", "NUL"),
            ("[a", "unclosed character class"),
            ("{a,b", "unclosed"),
            ("a}*", "unopened"),
            ("a\\", "dangling"),
        ] {
            let error = Pattern::parse(bad).unwrap_err().to_string();
            assert!(error.contains(why), "{bad:?}: {error}");
        }
        assert!(Pattern::parse(&"a/".repeat(2049)).is_err());
        let nested = |levels| format!("{}a{}", "{a,".repeat(levels), "}".repeat(levels));
        for levels in [33, 200, 1000] {
            assert_eq!(Pattern::parse(&nested(levels)).unwrap_err(), BadPattern::Deep);
        }
        assert!(pattern(&nested(32)).matches("a"));
        assert!(pattern(&format!("{{{}a}}*", "\\{".repeat(40))).matches(&("{".repeat(40) + "ab")));
        assert!(pattern("..a/b..").matches("..a/b.."));
    }

    // A11: flat and relative layout.
    #[test]
    fn a_file_is_stored_under_its_last_name_or_its_relative_path() {
        let flat = selection("out/**/*.log", None, Layout::Flat);
        assert_eq!(flat.file("out/a/b.log").as_deref(), Some("b.log"));
        let relative = selection("out/**/*.log", None, Layout::Relative);
        assert_eq!(relative.file("out/a/b.log").as_deref(), Some("out/a/b.log"));
        assert_eq!(relative.file("out/a/b.txt"), None);
    }

    // A11: a directory.
    #[test]
    fn a_matching_directory_includes_all_its_files() {
        let named = selection("build/report", None, Layout::Flat);
        assert_eq!(named.file("build/report/a/b").as_deref(), Some("report/a/b"));
        assert_eq!(named.file("build/report").as_deref(), Some("report"));
        assert_eq!(named.file("build/reports/a"), None);
        let relative = selection("build/*", None, Layout::Relative);
        assert_eq!(relative.file("build/x/y/z").as_deref(), Some("build/x/y/z"));
        let all = selection(".", None, Layout::Flat);
        assert_eq!(all.file("a/b").as_deref(), Some("a/b"));
        let outermost = selection("**", None, Layout::Flat);
        assert_eq!(outermost.file("a/b/c").as_deref(), Some("a/b/c"));
    }

    #[test]
    fn a_kind_selects_only_files_or_only_directories() {
        let files = selection("out/*", Some(OutputKind::File), Layout::Flat);
        assert_eq!(files.file("out/a").as_deref(), Some("a"));
        assert_eq!(files.file("out/dir/a"), None);
        assert!(!files.directory("out/dir"));
        let dirs = selection("out/*", Some(OutputKind::Dir), Layout::Flat);
        assert_eq!(dirs.file("out/a"), None);
        assert_eq!(dirs.file("out/dir/a").as_deref(), Some("dir/a"));
        assert!(dirs.directory("out/dir"));
    }
}
