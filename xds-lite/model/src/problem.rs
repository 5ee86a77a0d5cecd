//! Collects the problems of a file: one line each, with its place and its remedy.

use std::fmt::{self, Write as _};
use std::path::Path;
use std::sync::Arc;

use super::at::Spot;

/// Problems listed for one file; further ones are only counted.
const KEPT: usize = 100;
/// Characters shown of a text from the file.
const SHOWN: usize = 80;

/// One problem. Displays as `FILE:LINE:COLUMN: what; remedy`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file as it was named.
    pub file: Arc<Path>,
    /// The line from 1; 0 for the file as a whole.
    pub line: u32,
    /// The column from 1, in characters; 0 for the file as a whole.
    pub column: u32,
    /// The problem, with the path of the key.
    pub what: String,
    /// The remedy; may be empty.
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

/// All problems of one file, in the file's order: at least one. Displays one per line.
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

    /// Problems that were found apart from their file; none: `None`.
    #[must_use]
    pub fn from_list(mut list: Vec<Problem>) -> Option<Problems> {
        let more = list.len().saturating_sub(KEPT);
        list.truncate(KEPT);
        (!list.is_empty()).then_some(Problems { list, more })
    }

    /// The number of problems, unlisted ones included.
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

/// Collects the problems and warnings of one file.
#[derive(Debug)]
pub struct Report {
    file: Arc<Path>,
    list: Vec<Problem>,
    more: usize,
    warnings: Vec<Problem>,
}

impl Report {
    /// An empty report; the file's name is for messages.
    #[must_use]
    pub fn new(file: &Path) -> Report {
        Report { file: file.into(), list: Vec::new(), more: 0, warnings: Vec::new() }
    }

    /// Adds a problem at `spot`: what is wrong, with the path of the key, and the remedy.
    pub fn add(&mut self, spot: Spot, what: impl fmt::Display, remedy: impl fmt::Display) {
        if self.list.len() >= KEPT {
            self.more = self.more.saturating_add(1);
            return;
        }
        self.list.push(self.problem(spot, what, remedy));
    }

    /// Adds a warning: valid, but probably not what is meant.
    pub fn warn(&mut self, spot: Spot, what: impl fmt::Display, remedy: impl fmt::Display) {
        if self.warnings.len() < KEPT {
            self.warnings.push(self.problem(spot, what, remedy));
        }
    }

    /// The warnings.
    #[must_use]
    pub fn warnings(&self) -> &[Problem] {
        &self.warnings
    }

    /// A problem that is not added: it may turn out to be none.
    #[must_use]
    pub fn problem(&self, spot: Spot, what: impl fmt::Display, remedy: impl fmt::Display) -> Problem {
        Problem {
            file: Arc::clone(&self.file),
            line: spot.line,
            column: spot.column,
            what: what.to_string(),
            remedy: remedy.to_string(),
        }
    }

    /// Returns the value if there is no problem.
    ///
    /// # Errors
    /// All problems.
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

/// A path of keys: `services[3].endpoints[0].weight`. Lives on the stack: it is formatted only for a problem,
/// not for each of a million values.
#[derive(Clone, Copy, Debug)]
pub enum Place<'a> {
    /// The file.
    Root,
    /// A key of a mapping.
    Key(&'a Place<'a>, &'static str),
    /// A name of a mapping whose keys are names.
    Name(&'a Place<'a>, &'a str),
    /// An item of a list.
    Item(&'a Place<'a>, usize),
}

impl Place<'_> {
    /// The place of a key in this mapping.
    #[must_use]
    pub fn key(&self, key: &'static str) -> Place<'_> {
        Place::Key(self, key)
    }

    /// The place of a name in this mapping.
    #[must_use]
    pub fn name<'a>(&'a self, name: &'a str) -> Place<'a> {
        Place::Name(self, name)
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
            Place::Name(parent, name) => write!(f, "{parent}.{}", Plain(name)),
            Place::Item(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

/// A text from the file for a message: quoted, bounded, without control characters.
#[derive(Debug)]
pub struct Quoted<'a>(pub &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "'{}'", Plain(self.0))
    }
}

/// Like [`Quoted`], without the quotes.
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
    fn problem_is_one_line_whatever_the_file_contains() {
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
    fn place_is_a_path_of_keys() {
        let (services, endpoints) = (Place::Root.key("services"), "endpoints");
        let item = services.item(3);
        assert_eq!(item.key(endpoints).item(0).key("weight").to_string(), "services[3].endpoints[0].weight");
    }
}
