//! The parser: recursive descent, one pass, bounded in every direction.

use serde_json::Number;

use super::{Budget, CompareOp, Filter, Literal, Place};
use crate::scim::error::ScimError;

/// Reads a filter. Errors name the position, counted in characters from 1, and what stands there.
pub fn parse(text: &str, budget: Budget) -> Result<Filter, ScimError> {
    Parser { text, at: 0, terms: 0, budget, inside: false }.run()
}

/// Reads the filter inside a value path's brackets, where no further brackets may occur.
pub fn parse_inner(text: &str, budget: Budget) -> Result<Filter, ScimError> {
    Parser { text, at: 0, terms: 0, budget, inside: true }.run()
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    terms: usize,
    budget: Budget,
    inside: bool,
}

type Parsed = Result<Filter, ScimError>;

impl<'a> Parser<'a> {
    fn run(mut self) -> Parsed {
        if self.text.len() > self.budget.bytes_max {
            let detail = format!("the filter is longer than {} bytes", self.budget.bytes_max);
            return Err(ScimError::invalid_filter(detail));
        }
        self.space();
        if self.rest().is_empty() {
            return Err(ScimError::invalid_filter("the filter is empty"));
        }
        let filter = self.or(0)?;
        self.space();
        match self.rest() {
            "" => Ok(filter),
            _ => Err(self.expected("'and', 'or' or the end")),
        }
    }

    fn or(&mut self, depth: usize) -> Parsed {
        let mut filters = vec![self.and(depth)?];
        while self.keyword("or") {
            filters.push(self.and(depth)?);
        }
        Ok(Filter::or(filters))
    }

    fn and(&mut self, depth: usize) -> Parsed {
        let mut filters = vec![self.unary(depth)?];
        while self.keyword("and") {
            filters.push(self.unary(depth)?);
        }
        Ok(Filter::and(filters))
    }

    fn unary(&mut self, depth: usize) -> Parsed {
        self.space();
        if self.take('(') {
            return self.closed(depth, ')');
        }
        let start = self.at;
        let path = self.word();
        if path.eq_ignore_ascii_case("not") {
            self.space();
            if !self.take('(') {
                return Err(self.expected("'(' after 'not'"));
            }
            return Ok(Filter::Not(Box::new(self.closed(depth, ')')?)));
        }
        if !path.starts_with(|c: char| c.is_ascii_alphabetic() || c == '$') {
            self.at = start;
            return Err(self.expected("an attribute"));
        }
        if self.rest().starts_with('[') {
            return self.element(path, depth);
        }
        self.test(path)
    }

    /// What stands in parentheses or brackets, behind the opening one.
    fn closed(&mut self, depth: usize, close: char) -> Parsed {
        if depth >= self.budget.depth_max {
            let detail = format!("the filter is nested deeper than {} levels", self.budget.depth_max);
            return Err(ScimError::invalid_filter(detail));
        }
        let filter = self.or(depth + 1)?;
        self.space();
        if self.take(close) { Ok(filter) } else { Err(self.expected(&format!("'and', 'or' or '{close}'"))) }
    }

    fn element(&mut self, path: &'a str, depth: usize) -> Parsed {
        if self.inside {
            return Err(self.expected("no value path inside a value path"));
        }
        self.take('[');
        self.inside = true;
        let filter = Box::new(self.closed(depth, ']')?);
        self.inside = false;
        let path = path.to_owned();
        if !self.take('.') {
            return Ok(Filter::Element { path, filter });
        }
        let sub = self.word();
        if !crate::scim::path::is_name(sub) {
            return Err(self.expected("a sub-attribute"));
        }
        let test = Box::new(self.test(sub)?);
        Ok(Filter::Postfix { path, filter, test })
    }

    /// Operator and literal behind an attribute path.
    fn test(&mut self, path: &str) -> Parsed {
        self.terms += 1;
        if self.terms > self.budget.terms_max {
            let detail = format!("the filter has more than {} terms", self.budget.terms_max);
            return Err(ScimError::invalid_filter(detail));
        }
        self.space();
        let start = self.at;
        let word = self.word();
        let path = path.to_owned();
        if word.eq_ignore_ascii_case("pr") {
            return Ok(Filter::Present { path });
        }
        let Some(op) = CompareOp::ALL.into_iter().find(|op| op.as_str().eq_ignore_ascii_case(word)) else {
            self.at = start;
            return Err(self.expected(&format!("an operator after {path:?}")));
        };
        self.space();
        Ok(Filter::Compare { path, op, literal: self.literal()? })
    }

    fn literal(&mut self) -> Result<Literal, ScimError> {
        const WHAT: &str = "a JSON string, number, true, false or null";
        if self.rest().starts_with('"') {
            let len = string_len(self.rest()).ok_or_else(|| self.expected("a string that ends"))?;
            let text = serde_json::from_str(&self.rest()[..len]).map_err(|_| self.expected(WHAT))?;
            self.at += len;
            return Ok(Literal::String(text));
        }
        let start = self.at;
        let word = self.word();
        match word {
            "null" => return Ok(Literal::Null),
            "true" => return Ok(Literal::Bool(true)),
            "false" => return Ok(Literal::Bool(false)),
            _ => {}
        }
        if ["null", "true", "false"].iter().any(|known| known.eq_ignore_ascii_case(word)) {
            return Ok(Literal::Word(word.to_owned()));
        }
        if let Ok(number) = serde_json::from_str::<Number>(word) {
            return Ok(Literal::Number(number));
        }
        self.at = start;
        self.loose().ok_or_else(|| self.expected(WHAT))
    }

    /// Text in single quotes or in none. Whether it may stand there is the dialect's to say (FI-022).
    fn loose(&mut self) -> Option<Literal> {
        let place = Place(self.position());
        let quoted = self.take('\'');
        let text = match quoted {
            true => {
                let text = &self.rest()[..self.rest().find('\'')?];
                self.at += text.len() + 1;
                text
            }
            false => self.word(),
        };
        let there = quoted || text.starts_with(|c: char| c.is_alphanumeric());
        there.then(|| Literal::Loose { text: text.to_owned(), quoted, place })
    }

    fn position(&self) -> usize {
        self.text[..self.at].chars().count() + 1
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn space(&mut self) {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start_matches([' ', '\t', '\r', '\n']).len();
    }

    fn take(&mut self, c: char) -> bool {
        let found = self.rest().starts_with(c);
        if found {
            self.at += c.len_utf8();
        }
        found
    }

    fn word(&mut self) -> &'a str {
        let rest = self.rest();
        let len = rest.find(|c: char| c.is_whitespace() || "()[]\"".contains(c)).unwrap_or(rest.len());
        self.at += len;
        &rest[..len]
    }

    fn keyword(&mut self, keyword: &str) -> bool {
        let start = self.at;
        self.space();
        let found = self.word().eq_ignore_ascii_case(keyword);
        if !found {
            self.at = start;
        }
        found
    }

    fn expected(&self, what: &str) -> ScimError {
        let position = self.position();
        let found: String = self.rest().chars().take_while(|c| !c.is_whitespace()).take(40).collect();
        let found = if found.is_empty() { "nothing".to_owned() } else { format!("{found:?}") };
        ScimError::invalid_filter(format!("filter at position {position}: expected {what}, found {found}"))
    }
}

/// The length of a quoted string, both quotes included.
fn string_len(text: &str) -> Option<usize> {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return Some(at + 1),
            _ => {}
        }
    }
    None
}
