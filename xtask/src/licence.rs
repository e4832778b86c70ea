//! Licence expressions of crates: SPDX, with the old `/` for OR.

/// Whether an expression can be satisfied with only the licences `allow` names.
pub(crate) fn is_satisfied(expression: &str, allow: &[String]) -> Result<bool, String> {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut parser = Parser { words: &words, allow };
    let result = parser.any();
    match (result, parser.words) {
        (Some(result), []) => Ok(result),
        _ => Err(format!("`{expression}` is not a licence expression")),
    }
}

struct Parser<'a> {
    words: &'a [&'a str],
    allow: &'a [String],
}

impl Parser<'_> {
    fn next_is(&mut self, word: &str) -> bool {
        let hit = self.words.first() == Some(&word);
        if hit {
            self.words = &self.words[1..];
        }
        hit
    }

    fn any(&mut self) -> Option<bool> {
        let mut result = self.all()?;
        while self.next_is("OR") {
            result |= self.all()?;
        }
        Some(result)
    }

    fn all(&mut self) -> Option<bool> {
        let mut result = self.one()?;
        while self.next_is("AND") {
            result &= self.one()?;
        }
        Some(result)
    }

    fn one(&mut self) -> Option<bool> {
        if self.next_is("(") {
            let result = self.any()?;
            return self.next_is(")").then_some(result);
        }
        let (word, rest) = self.words.split_first()?;
        if ["AND", "OR", "WITH", ")"].contains(word) {
            return None;
        }
        self.words = rest;
        // An exception only adds permissions, but it is another licence: it must be named to be allowed.
        let licence = if self.next_is("WITH") {
            let (exception, rest) = self.words.split_first()?;
            self.words = rest;
            format!("{word} WITH {exception}")
        } else {
            (*word).to_owned()
        };
        Some(self.allow.contains(&licence))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions() {
        let allow: Vec<String> = ["MIT", "Apache-2.0", "ISC"].map(str::to_owned).to_vec();
        let cases = [
            ("MIT", Ok(true)),
            ("GPL-3.0", Ok(false)),
            ("MIT OR GPL-3.0", Ok(true)),
            ("MIT/GPL-3.0", Ok(true)),
            ("MIT AND GPL-3.0", Ok(false)),
            ("GPL-3.0 OR MIT AND ISC", Ok(true)),
            ("(GPL-3.0 OR MIT) AND ISC", Ok(true)),
            ("ISC AND (GPL-3.0 OR (BSD AND MIT))", Ok(false)),
            ("Apache-2.0 WITH LLVM-exception", Ok(false)),
            ("Apache-2.0 WITH LLVM-exception OR MIT", Ok(true)),
            ("", Err(())),
            ("MIT OR", Err(())),
            ("MIT ISC", Err(())),
            ("(MIT", Err(())),
            ("AND MIT", Err(())),
        ];
        for (expression, expected) in cases {
            assert_eq!(is_satisfied(expression, &allow).map_err(drop), expected, "{expression}");
        }
    }
}
