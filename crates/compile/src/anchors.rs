//! Expressions over whole values, without anchors that say so again: pure.
//!
//! Around an expression something is put that an application may read as nothing: a port behind a host, neighbours in a
//! list. An anchor within would forbid it, and with that what the expression was to find. Holds: whatever matches a whole
//! value still does; of anchors those are left that have something before or behind them, which match nothing (`a^b`), or
//! hold for what may be missing there (`a$b*`).

/// Parts of an expression, by the places of their first and last byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// `^`, `\A`.
    Start,
    /// `$`, `\z`.
    End,
    /// `(`, `(?:`, `(?P<name>`.
    Open,
    Close,
    Bar,
    /// `*`, `+?`, `{1,2}`.
    Repeat,
    /// `(?i)`.
    Flags,
    /// What takes a character, or anything else.
    Other,
}

/// The expression without anchors where a whole value begins or ends anyway.
pub(crate) fn without_anchors(pattern: &str) -> String {
    let parts = parts(pattern);
    let groups = groups(&parts);
    let mut kept = String::with_capacity(pattern.len());
    let mut left_out = false;
    for (at, (part, text)) in parts.iter().enumerate() {
        left_out = match part {
            Part::Start => begins(&parts, &groups, at),
            Part::End => ends(&parts, &groups, at),
            // Of nothing, it would be no expression, or of what is before.
            Part::Repeat => left_out,
            _ => false,
        };
        if !left_out {
            kept.push_str(text);
        }
    }
    kept
}

fn parts(pattern: &str) -> Vec<(Part, &str)> {
    let (mut parts, mut rest) = (Vec::new(), pattern);
    while let Some(letter) = rest.chars().next() {
        let (part, length) = match letter {
            '\\' => {
                let next = rest.chars().nth(1);
                let part = match next {
                    Some('A') => Part::Start,
                    Some('z') => Part::End,
                    _ => Part::Other,
                };
                (part, 1 + next.map_or(0, char::len_utf8))
            }
            '[' => (Part::Other, class(rest)),
            '(' => group(rest),
            ')' => (Part::Close, 1),
            '|' => (Part::Bar, 1),
            '^' => (Part::Start, 1),
            '$' => (Part::End, 1),
            '*' | '+' | '?' => (Part::Repeat, 1),
            '{' => (Part::Repeat, rest.find('}').map_or(1, |end| end + 1)),
            letter => (Part::Other, letter.len_utf8()),
        };
        let Some((text, behind)) = rest.split_at_checked(length) else { break };
        parts.push((part, text));
        rest = behind;
    }
    parts
}

/// The length of what is in brackets, with them.
fn class(text: &str) -> usize {
    let mut letters = text.char_indices().skip(1).peekable();
    letters.next_if(|(_, letter)| *letter == '^');
    letters.next_if(|(_, letter)| *letter == ']');
    while let Some((at, letter)) = letters.next() {
        match letter {
            '\\' => drop(letters.next()),
            // `[:alpha:]`
            '[' if letters.peek().is_some_and(|(_, next)| *next == ':') => {
                let Some(end) = text.get(at..).and_then(|rest| rest.find(":]")) else { continue };
                while letters.next_if(|(next, _)| *next < at + end + 2).is_some() {}
            }
            ']' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// What begins with a parenthesis, and its length.
fn group(text: &str) -> (Part, usize) {
    if !text.starts_with("(?") {
        return (Part::Open, 1);
    }
    match text.find([':', '>', ')']) {
        Some(end) if text.get(end..).is_some_and(|rest| rest.starts_with(')')) => (Part::Flags, end + 1),
        Some(end) => (Part::Open, end + 1),
        None => (Part::Other, text.len()),
    }
}

/// Of each part the places of the parentheses around it, and of these the places of each other.
fn groups(parts: &[(Part, &str)]) -> Vec<(Option<usize>, Option<usize>)> {
    let mut groups = vec![(None, None); parts.len()];
    let mut open: Vec<(usize, Vec<usize>)> = Vec::new();
    for (at, (part, _)) in parts.iter().enumerate() {
        if *part == Part::Close
            && let Some((began, within)) = open.pop()
        {
            for inner in within {
                if let Some(group) = groups.get_mut(inner) {
                    *group = (Some(began), Some(at));
                }
            }
        }
        if let Some((_, within)) = open.last_mut() {
            within.push(at);
        }
        if *part == Part::Open {
            open.push((at, Vec::new()));
        }
    }
    groups
}

/// Whether nothing can come before this part.
fn begins(parts: &[(Part, &str)], groups: &[(Option<usize>, Option<usize>)], mut at: usize) -> bool {
    while let Some(before) = at.checked_sub(1) {
        match parts.get(before).map(|(part, _)| part) {
            Some(Part::Open | Part::Start | Part::Flags) => at = before,
            Some(Part::Bar) => match groups.get(before) {
                Some((Some(opened), _)) => at = *opened,
                _ => return true,
            },
            _ => return false,
        }
    }
    true
}

/// Whether nothing can come behind this part.
fn ends(parts: &[(Part, &str)], groups: &[(Option<usize>, Option<usize>)], mut at: usize) -> bool {
    while let Some((part, _)) = parts.get(at + 1) {
        match part {
            Part::Close | Part::End | Part::Repeat | Part::Flags => at += 1,
            Part::Bar => match groups.get(at + 1) {
                Some((_, Some(closed))) => at = *closed,
                _ => return true,
            },
            _ => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anchors_are_left_out_where_they_say_nothing() {
        for (pattern, expected) in [
            ("^a$", "a"),
            ("a", "a"),
            (r"a\$", r"a\$"),
            (r"\^a", r"\^a"),
            ("^a$|^b$", "a|b"),
            ("^(a|b)$", "(a|b)"),
            ("(?:^a|b$)", "(?:a|b)"),
            ("((^a)|(b$))", "((a)|(b))"),
            ("(?i)^a$", "(?i)a"),
            ("(?P<n>^a$)", "(?P<n>a)"),
            (r"\Aa\z", "a"),
            ("^^a$$", "a"),
            ("(^|.*,)a(,.*|$)", "(|.*,)a(,.*|)"),
            ("[^a]$", "[^a]"),
            ("^*a", "a"),
            ("^{2}a", "a"),
            ("a$?", "a"),
            ("a$*|b", "a|b"),
            ("a?$", "a?"),
            ("[$^|]", "[$^|]"),
            ("[]^|$]", "[]^|$]"),
            ("[^]$]$", "[^]$]"),
            ("[[:alpha:]$]", "[[:alpha:]$]"),
            (r"[\]$]$", r"[\]$]"),
            ("a{1,2}$", "a{1,2}"),
            // These match nothing, or hold for what may be missing.
            ("a^b", "a^b"),
            ("(a|b)^c", "(a|b)^c"),
            ("a$b|c", "a$b|c"),
            ("(a$|b)c", "(a$|b)c"),
            ("a(^b|c)", "a(^b|c)"),
            // No expressions: refused elsewhere.
            ("(a", "(a"),
            (")^", ")^"),
            ("[a", "[a"),
            ("a\\", "a\\"),
            ("(?i", "(?i"),
            ("é$", "é"),
        ] {
            assert_eq!(without_anchors(pattern), expected, "{pattern}");
        }
    }
}
