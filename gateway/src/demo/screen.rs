//! Prints the demo's output and counts its promises. A promise's line is printed only by its check. The text is
//! plain unless stdout is a terminal that allows colour.

use std::fmt::Display;
use std::io::{IsTerminal as _, Write as _};

use owo_colors::{OwoColorize as _, Style};

use super::Broken;

/// The output and the promises made on it.
#[derive(Debug)]
pub(super) struct Screen {
    colour: bool,
    steps: usize,
    checked: usize,
    broken: Vec<String>,
}

impl Screen {
    pub(super) fn new() -> Screen {
        let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Screen {
            colour: std::io::stdout().is_terminal() && !no_colour,
            steps: 0,
            checked: 0,
            broken: Vec::new(),
        }
    }

    /// Prints the title of the next step.
    pub(super) fn step(&mut self, title: impl Display) {
        self.steps += 1;
        self.say("");
        self.title(format_args!("{}. {title}", self.steps));
    }

    pub(super) fn title(&self, title: impl Display) {
        self.say(self.styled(title, Style::new().bold()));
    }

    pub(super) fn dim(&self, text: impl Display) {
        self.say(self.styled(format_args!("   {text}"), Style::new().dimmed()));
    }

    pub(super) fn say(&self, text: impl Display) {
        // A closed output is not an error; the promises are still checked.
        let _closed = writeln!(std::io::stdout(), "{text}");
    }

    /// Records one promise and prints whether it was kept.
    pub(super) fn promise(&mut self, promise: impl Display, kept: bool) {
        self.checked += 1;
        let (mark, style) = if kept {
            ("kept  ", Style::new().green())
        } else {
            self.broken.push(promise.to_string());
            ("BROKEN", Style::new().red().bold())
        };
        self.say(format_args!("   {}  {promise}", self.styled(mark, style)));
    }

    /// Prints the last line and returns the outcome of all promises.
    pub(super) fn verdict(self) -> Result<(), Broken> {
        let of = self.checked;
        self.say("");
        if self.broken.is_empty() {
            self.title(format_args!("All {of} promises kept."));
            return Ok(());
        }
        self.title(format_args!("{} of {of} promises BROKEN.", self.broken.len()));
        Err(Broken::Promises { broken: self.broken, of })
    }

    fn styled(&self, text: impl Display, style: Style) -> String {
        let style = if self.colour { style } else { Style::new() };
        text.style(style).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdict_names_broken_promise() {
        let mut screen = Screen::new();
        screen.promise("water is wet", true);
        screen.promise("pigs fly", false);
        let outcome = screen.verdict().unwrap_err();
        assert_eq!(outcome.to_string(), "1 of 2 promises broken: pigs fly");
    }
}
