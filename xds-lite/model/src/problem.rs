//! What is wrong with a file: one line for each problem, with its place and what would be
//! right. Not how problems are found.

use std::fmt::{self, Write as _};
use std::path::Path;
use std::sync::Arc;

use super::at::Spot;

/// Problems that are kept of one file; more are only counted.
const KEPT: usize = 100;
/// Characters shown of a text that stood in the file.
const SHOWN: usize = 80;

/// One thing that is wrong. Displays as `FILE:LINE:COLUMN: what; remedy`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file as it was named.
    pub file: Arc<Path>,
    /// From 1; 0 when the file as a whole is meant.
    pub line: u32,
    /// From 1, in characters; 0 when the file as a whole is meant.
    pub column: u32,
    /// What is wrong, with the key's path.
    pub what: String,
    /// What would be right; may be empty.
    pub remedy: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        write!(f, ": {}", self.what)?;
        if !self.remedy.is_empty() {
            write!(f, "; {}", self.remedy)?;
        }
        Ok(())
    }
}

/// Everything that is wrong with one file, in the file's order: at least one problem. Displays one a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems {
    list: Vec<Problem>,
    more: usize,
}

impl Problems {
    /// The problems, at least one and at most 100.
    #[must_use]
    pub fn list(&self) -> &[Problem] {
        &self.list
    }

    /// How many there are, also those beyond the list's end.
    #[must_use]
    pub fn count(&self) -> usize {
        self.list.len().saturating_add(self.more)
    }
}

impl From<Problem> for Problems {
    fn from(problem: Problem) -> Problems {
        Problems { list: vec![problem], more: 0 }
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.list.iter().enumerate() {
            if index > 0 {
                f.write_char('\n')?;
            }
            problem.fmt(f)?;
        }
        if self.more > 0 {
            write!(f, "\n… and {} more", self.more)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// Collects the problems of one file, and what is right and yet not likely meant.
#[derive(Debug)]
pub struct Report {
    file: Arc<Path>,
    list: Vec<Problem>,
    more: usize,
    warnings: Vec<Problem>,
}

impl Report {
    /// Nothing is wrong with `file` yet; the name is for messages.
    #[must_use]
    pub fn new(file: &Path) -> Report {
        Report { file: file.into(), list: Vec::new(), more: 0, warnings: Vec::new() }
    }

    /// Notes one problem: what is wrong at `spot`, with the key's path, and what would be right.
    pub fn add(&mut self, spot: Spot, what: impl fmt::Display, remedy: impl fmt::Display) {
        if self.list.len() >= KEPT {
            self.more = self.more.saturating_add(1);
            return;
        }
        self.list.push(self.problem(spot, what, remedy));
    }

    /// Notes what can stand, and does less than it seems to.
    pub fn warn(&mut self, spot: Spot, what: impl fmt::Display, remedy: impl fmt::Display) {
        if self.warnings.len() < KEPT {
            self.warnings.push(self.problem(spot, what, remedy));
        }
    }

    /// What was warned of.
    #[must_use]
    pub fn warnings(&self) -> &[Problem] {
        &self.warnings
    }

    fn problem(&self, spot: Spot, what: impl fmt::Display, remedy: impl fmt::Display) -> Problem {
        Problem {
            file: Arc::clone(&self.file),
            line: spot.line,
            column: spot.column,
            what: what.to_string(),
            remedy: remedy.to_string(),
        }
    }

    /// The value, if nothing was wrong.
    ///
    /// # Errors
    /// Everything that was noted.
    pub fn finish<T>(mut self, value: Option<T>) -> Result<T, Problems> {
        match value {
            Some(value) if self.list.is_empty() => Ok(value),
            _ => {
                self.list.sort_by_key(|problem| (problem.line, problem.column));
                Err(Problems { list: self.list, more: self.more })
            }
        }
    }
}

/// Where in the tree of keys: `services[3].endpoints[0].weight`. Lives on the stack: it is written out
/// only for a problem, not for each of a million values.
#[derive(Clone, Copy, Debug)]
pub enum Place<'a> {
    /// The file.
    Root,
    /// A key of a mapping.
    Key(&'a Place<'a>, &'static str),
    /// An item of a list.
    Item(&'a Place<'a>, usize),
}

impl Place<'_> {
    /// The place of a key in this mapping.
    #[must_use]
    pub fn key(&self, key: &'static str) -> Place<'_> {
        Place::Key(self, key)
    }

    /// The place of an item in this list.
    #[must_use]
    pub fn item(&self, index: usize) -> Place<'_> {
        Place::Item(self, index)
    }
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Root => Ok(()),
            Place::Key(Place::Root, key) => f.write_str(key),
            Place::Key(parent, key) => write!(f, "{parent}.{key}"),
            Place::Item(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

/// A text from the file, for a message: quoted, without control characters, bounded.
#[derive(Debug)]
pub struct Quoted<'a>(pub &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "'{}'", Plain(self.0))
    }
}

/// The same without the quotes.
#[derive(Debug)]
pub struct Plain<'a>(pub &'a str);

impl fmt::Display for Plain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut characters = self.0.chars();
        for character in characters.by_ref().take(SHOWN) {
            match character {
                '\'' | '"' => f.write_char(character)?,
                _ => write!(f, "{}", character.escape_debug())?,
            }
        }
        if characters.next().is_some() {
            f.write_char('…')?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_one_line_whatever_stood_in_the_file() {
        let mut report = Report::new(Path::new("a.yaml"));
        report.add(
            Spot { line: 2, column: 3 },
            format_args!("no {}", Quoted("a\n\u{1b}[31m\u{202e}'b")),
            "x",
        );
        let problems = report.finish(Some(())).unwrap_err();
        assert_eq!(problems.to_string(), "a.yaml:2:3: no 'a\\n\\u{1b}[31m\\u{202e}'b'; x");
        assert_eq!(Quoted(&"é".repeat(81)).to_string(), format!("'{}…'", "é".repeat(80)));
    }

    #[test]
    fn problems_are_sorted_bounded_and_counted() {
        let mut report = Report::new(Path::new("a.yaml"));
        for line in (1..=150).rev() {
            report.add(Spot { line, column: 1 }, "wrong", "");
        }
        let problems = report.finish::<()>(None).unwrap_err();
        assert_eq!((problems.list().len(), problems.count()), (100, 150));
        assert!(problems.list().is_sorted_by_key(|problem| problem.line));
        assert!(problems.to_string().ends_with("\n… and 50 more"), "{problems}");
    }

    #[test]
    fn places_are_paths_of_keys() {
        let (services, endpoints) = (Place::Root.key("services"), "endpoints");
        let item = services.item(3);
        assert_eq!(item.key(endpoints).item(0).key("weight").to_string(), "services[3].endpoints[0].weight");
    }
}
