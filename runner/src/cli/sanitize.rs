//! Makes external text safe for display on a terminal.

/// Sanitizes a line of step output so that it cannot move the cursor. Text overwritten by a
/// carriage return is dropped. Colours are kept if `colour` is set.
pub(super) fn sanitize(line: &str, colour: bool) -> String {
    let line = line.strip_suffix('\r').unwrap_or(line);
    let line = line.rsplit('\r').next().unwrap_or(line);
    let mut text = String::with_capacity(line.len());
    let mut painted = false;
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\u{1b}' => {
                let Some(sequence) = escape(&mut chars) else { continue };
                if colour {
                    painted = true;
                    text.push_str(&sequence);
                }
            }
            '\t' => text.push_str("    "),
            c if c.is_control() => {}
            c => text.push(c),
        }
    }
    if painted {
        text.push_str("\u{1b}[0m");
    }
    text
}

/// Consumes an escape sequence, and returns it if it sets colours.
fn escape(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<String> {
    match chars.next()? {
        '[' => {
            let mut sequence = "\u{1b}[".to_owned();
            for c in chars.by_ref() {
                sequence.push(c);
                if ('\u{40}'..='\u{7e}').contains(&c) {
                    let is_colour = c == 'm'
                        && sequence[2..].chars().all(|c| c.is_ascii_digit() || ";:m".contains(c));
                    return is_colour.then_some(sequence);
                }
            }
            None
        }
        // A string for the terminal itself, such as a title. Ends with BEL or ESC \.
        ']' | 'P' | '_' | '^' => {
            while let Some(c) = chars.next() {
                if c == '\u{7}' {
                    break;
                }
                if c == '\u{1b}' {
                    chars.next();
                    break;
                }
            }
            None
        }
        _ => None,
    }
}

/// Cuts a text to a number of columns.
pub(super) fn cut(text: &str, columns: usize) -> String {
    let mut used = 0;
    let mut end = String::new();
    for c in text.chars() {
        used += char_width(c);
        if used > columns {
            end.pop();
            end.push('\u{2026}');
            return end;
        }
        end.push(c);
    }
    end
}

/// East Asian characters and emoji take two columns.
fn char_width(c: char) -> usize {
    let wide = matches!(c,
        '\u{1100}'..='\u{115f}'
        | '\u{2e80}'..='\u{a4cf}'
        | '\u{ac00}'..='\u{d7a3}'
        | '\u{f900}'..='\u{faff}'
        | '\u{fe30}'..='\u{fe6f}'
        | '\u{ff00}'..='\u{ff60}'
        | '\u{ffe0}'..='\u{ffe6}'
        | '\u{1f300}'..='\u{1faff}'
        | '\u{20000}'..='\u{3fffd}');
    if wide { 2 } else { 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_can_use_colours_but_cannot_move_the_cursor() {
        assert_eq!(sanitize("a\u{1b}[2J\u{1b}[1Ab\u{7}\u{8}", true), "ab");
        assert_eq!(sanitize("\u{1b}[31mred\u{1b}[0m", true), "\u{1b}[31mred\u{1b}[0m\u{1b}[0m");
        assert_eq!(sanitize("\u{1b}[31mred\u{1b}[0m", false), "red");
        assert_eq!(sanitize("\u{1b}]0;title\u{7}x\u{1b}]0;t\u{1b}\\y", true), "xy");
        assert_eq!(sanitize("10%\r20%\r", true), "20%");
        assert_eq!(sanitize("\u{1b}", true), "");
        assert_eq!(sanitize("a\tb", true), "a    b");
    }

    #[test]
    fn text_is_cut_to_what_fits() {
        assert_eq!(cut("abc", 3), "abc");
        assert_eq!(cut("abcd", 3), "ab…");
        assert_eq!(cut("日本語", 4), "日…");
        assert_eq!(cut("abc", 0), "…");
    }
}
