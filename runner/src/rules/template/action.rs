//! Finds the end of an action in a program.

/// Returns an action with its end, as the library parses it, and the text after it.
pub(super) fn action(behind: &str) -> Result<(String, &str), String> {
    let open = || "the script is not a template: it ends in an action".to_owned();
    if behind.strip_prefix("- ").unwrap_or(behind).starts_with("/*") {
        let (_, after) = behind.split_once("*/").ok_or_else(open)?;
        let (_, after) = after.split_once("}}").ok_or_else(open)?;
        let comment = &behind[..behind.len() - after.len()];
        let ascii = comment.chars().map(|letter| if letter.is_ascii() { letter } else { '?' });
        return Ok((ascii.collect(), after));
    }
    let (mut quote, mut before) = (None, '{');
    for (at, letter) in behind.char_indices() {
        match quote {
            // Like the library, treat `\\` before a quote as an escape of the quote.
            Some(open) if letter == open && (open == '`' || before != '\\') => quote = None,
            Some(_) => {}
            None if matches!(letter, '"' | '`' | '\'') => quote = Some(letter),
            None if behind[at..].starts_with("}}") => {
                let (action, after) = behind.split_at(at + "}}".len());
                return Ok((action.to_owned(), after));
            }
            None if letter.is_ascii() => {}
            None => {
                return Err(format!(
                    "the script is not a template: {letter:?} can stand in an action only in quotes"
                ));
            }
        }
        before = letter;
    }
    Err(match quote {
        Some(quote) => format!("the script is not a template: unterminated {quote} in an action"),
        None => open(),
    })
}
