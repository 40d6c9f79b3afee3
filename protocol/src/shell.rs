//! Splits a command line into words as a shell would, without variables, globs, pipes or redirects.

/// State of the splitter.
#[derive(Clone, Copy)]
enum State {
    Outside,
    InWord,
    SingleQuoted,
    DoubleQuoted,
}

/// Splits `line` into words.
///
/// Unquoted whitespace separates words. Outside quotes, a backslash escapes the next character.
/// Inside single quotes, every character is literal. Inside double quotes, a backslash escapes `"`
/// and `\`, and is literal otherwise. An unclosed quote ends with the line. A trailing backslash is
/// kept. `''` is an empty word.
///
/// Every line can be split, so this function never fails.
#[must_use]
pub fn split(line: &str) -> Vec<String> {
    parse(line).words
}

/// A part of a line that a shell would interpret differently.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Surprise {
    /// An unclosed quote. It ends with the line.
    OpenQuote(char),
    /// An unquoted shell operator, such as `|`. Here it is an ordinary argument.
    Operator(String),
}

/// Finds the parts of a line that a shell would interpret differently, without duplicates.
#[must_use]
pub fn surprises(line: &str) -> Vec<Surprise> {
    const OPERATORS: [&str; 11] = ["|", "||", "|&", "&", "&&", ";", "<", "<<", ">", ">>", "2>"];
    let parsed = parse(line);
    let mut surprises: Vec<_> = parsed.open_quote.map(Surprise::OpenQuote).into_iter().collect();
    for (word, is_bare) in parsed.words.into_iter().zip(parsed.is_bare) {
        let surprise = Surprise::Operator(word);
        if let Surprise::Operator(word) = &surprise
            && is_bare
            && OPERATORS.contains(&word.as_str())
            && !surprises.contains(&surprise)
        {
            surprises.push(surprise);
        }
    }
    surprises
}

/// A line split into words.
struct Parsed {
    words: Vec<String>,
    /// For each word, whether it has neither quotes nor backslashes.
    is_bare: Vec<bool>,
    open_quote: Option<char>,
}

fn parse(line: &str) -> Parsed {
    let mut words = Vec::new();
    let mut bare_words = Vec::new();
    let mut word = String::new();
    let mut is_bare = true;
    let mut state = State::Outside;
    let mut characters = line.chars().peekable();
    while let Some(c) = characters.next() {
        is_bare &= !matches!(c, '\'' | '"' | '\\');
        state = match (state, c) {
            (State::SingleQuoted, '\'') | (State::DoubleQuoted, '"') => State::InWord,
            (State::DoubleQuoted, '\\') => {
                let escaped = characters.next_if(|next| matches!(next, '"' | '\\'));
                word.push(escaped.unwrap_or('\\'));
                State::DoubleQuoted
            }
            (State::SingleQuoted | State::DoubleQuoted, _) => {
                word.push(c);
                state
            }
            (State::Outside | State::InWord, '\'') => State::SingleQuoted,
            (State::Outside | State::InWord, '"') => State::DoubleQuoted,
            (State::Outside | State::InWord, '\\') => {
                word.push(characters.next().unwrap_or('\\'));
                State::InWord
            }
            (State::Outside, _) if c.is_whitespace() => State::Outside,
            (State::InWord, _) if c.is_whitespace() => {
                words.push(std::mem::take(&mut word));
                bare_words.push(std::mem::replace(&mut is_bare, true));
                State::Outside
            }
            (State::Outside | State::InWord, _) => {
                word.push(c);
                State::InWord
            }
        };
    }
    match state {
        State::Outside => {}
        State::InWord | State::SingleQuoted | State::DoubleQuoted => {
            words.push(word);
            bare_words.push(is_bare);
        }
    }
    let open_quote = match state {
        State::SingleQuoted => Some('\''),
        State::DoubleQuoted => Some('"'),
        State::Outside | State::InWord => None,
    };
    Parsed { words, is_bare: bare_words, open_quote }
}

/// Joins words into a line that both [`split`] and a shell split into the same words.
#[must_use]
pub fn join(words: &[String]) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_@%+=:,./-".contains(c);
    let quoted = |word: &String| {
        if !word.is_empty() && word.chars().all(is_plain) {
            word.clone()
        } else {
            format!("'{}'", word.replace('\'', r"'\''"))
        }
    };
    words.iter().map(quoted).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn words_that_a_shell_would_split_are_quoted() {
        let words = ["echo", "", "a b", "$HOME", "it's", "-n", "a=b"].map(str::to_owned);
        assert_eq!(join(&words), r"echo '' 'a b' '$HOME' 'it'\''s' -n a=b");
    }

    proptest! {
        #[test]
        fn joined_words_are_split_into_the_same_words(words in prop::collection::vec(".*", 0..5)) {
            prop_assert_eq!(split(&join(&words)), words);
        }
    }

    #[test]
    fn open_quotes_and_unquoted_shell_operators_are_reported() {
        let operator = |word: &str| Surprise::Operator(word.to_owned());
        for (line, expected) in [
            ("echo \"unterminated", vec![Surprise::OpenQuote('"')]),
            ("echo it's", vec![Surprise::OpenQuote('\'')]),
            ("a | b | c > d", vec![operator("|"), operator(">")]),
            ("a && b", vec![operator("&&")]),
            (r#"grep '|' "&&" \; a|b"#, vec![]),
            ("sh -c 'a | b'", vec![]),
        ] {
            assert_eq!(surprises(line), expected, "{line}");
        }
    }

    #[test]
    fn lines_are_split_like_by_the_reference_implementation() {
        let cases: [(&str, &[&str]); 23] = [
            (
                r#"sh -c "while sleep 1; do echo ${RANDOM}; done""#,
                &["sh", "-c", "while sleep 1; do echo ${RANDOM}; done"],
            ),
            (
                "sort -t \"\t\" -k2 test > test-sorted",
                &["sort", "-t", "\t", "-k2", "test", ">", "test-sorted"],
            ),
            ("a > b", &["a", ">", "b"]),
            ("", &[]),
            (" \t\n ", &[]),
            ("  a   b  ", &["a", "b"]),
            ("a '' b", &["a", "", "b"]),
            ("a ''", &["a", ""]),
            (r#"a """#, &["a", ""]),
            (r"a\ b", &["a b"]),
            (r"a\\b", &[r"a\b"]),
            (r#"a\"b"#, &[r#"a"b"#]),
            (r"'a\ b'", &[r"a\ b"]),
            (r#""a\nb""#, &[r"a\nb"]),
            (r#""a\"b\\c""#, &[r#"a"b\c"#]),
            (r#""it's""#, &["it's"]),
            (r#"'say "x"'"#, &[r#"say "x""#]),
            (r#"a"b"'c'd"#, &["abcd"]),
            ("'open to the end ", &["open to the end "]),
            (r#"x "open"#, &["x", "open"]),
            (r"end\", &[r"end\"]),
            (r#""end\"#, &[r"end\"]),
            ("$HOME *.c | wc ; x && y", &["$HOME", "*.c", "|", "wc", ";", "x", "&&", "y"]),
        ];
        for (line, words) in cases {
            assert_eq!(split(line), words, "{line:?}");
        }
    }

    proptest! {
        #[test]
        fn words_in_single_quotes_round_trip(
            words in prop::collection::vec("[^']{0,8}", 0..6)
        ) {
            let line: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
            prop_assert_eq!(split(&line.join(" ")), words);
        }

        #[test]
        fn words_with_every_character_escaped_round_trip(
            words in prop::collection::vec("\\PC{1,8}", 0..6)
        ) {
            let escape = |word: &String| word.chars().flat_map(|c| ['\\', c]).collect::<String>();
            let line: Vec<String> = words.iter().map(escape).collect();
            prop_assert_eq!(split(&line.join("\t")), words);
        }

        #[test]
        fn words_in_double_quotes_round_trip(
            words in prop::collection::vec("[^\"\\\\]{0,8}", 0..6)
        ) {
            let line: Vec<String> = words.iter().map(|word| format!("\"{word}\"")).collect();
            prop_assert_eq!(split(&line.join("\n")), words);
        }

        #[test]
        fn a_line_without_quotes_and_backslashes_is_split_at_its_blanks(line in "[^'\"\\\\]{0,40}") {
            let words: Vec<&str> = line.split_whitespace().collect();
            prop_assert_eq!(split(&line), words);
        }

        #[test]
        fn splitting_adds_no_characters(line in any::<String>()) {
            let length: usize = split(&line).iter().map(String::len).sum();
            prop_assert!(length <= line.len());
        }
    }
}
