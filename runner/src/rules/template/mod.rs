//! Renders a run's variables into the programs of its steps. Values are not rendered.

mod action;
mod bounds;

use gtmpl::error::ExecError;
use gtmpl::{Context, FuncError, Template, Value};
use protocol::pipeline::{Params, Pipeline, Template as Written, Vars};
use serde_json::Value as Json;

use self::action::action;
use self::bounds::{Bounded, Budget};

/// The variable that holds the run ID.
pub const JOB_ID: &str = "__jobID";

/// Merges variables and parameters into the values for programs.
#[must_use]
pub fn values(vars: &Vars, params: &Params) -> Params {
    let vars = vars.iter().map(|(name, value)| (name.clone(), Json::from(value.as_str())));
    vars.chain(params.clone()).collect()
}

/// Returns why a run of this pipeline cannot start with these values, or `None` if it can.
#[must_use]
pub fn reserved(pipeline: &Pipeline, vars: &Vars, params: &Params) -> Option<String> {
    let mut steps = pipeline.all_steps();
    let is_taken = vars.contains_key(JOB_ID) || params.contains_key(JOB_ID);
    let is_rendered = is_taken && steps.any(|step| step.template == Some(Written::Go));
    is_rendered.then(|| format!("the variable {JOB_ID} is the run's own: call yours otherwise"))
}

/// Returns true if a program contains actions. Other programs are used unchanged.
#[must_use]
pub fn is_template(program: &str) -> bool {
    program.contains("{{")
}

/// Renders the programs of a step like Go's `text/template`: `{{ .name }}` is a variable.
///
/// There are two additional functions: `default`, and `quote`, which turns any value into a shell
/// word. The programs share one budget. A hostile program can still exhaust the memory, so this
/// function runs in its own process.
///
/// # Errors
/// A message, if a program is not a template, a variable is missing, or the budget is exceeded.
pub fn render_go(programs: &[String], values: &Params, job: &str) -> Result<Vec<String>, String> {
    if values.contains_key(JOB_ID) {
        return Err(format!("the variable {JOB_ID} is the run's own"));
    }
    let mut budget = Budget::new(values);
    // Check all programs before any of them is rendered.
    for program in programs {
        budget.admit(program)?;
    }
    if !programs.iter().any(|program| is_template(program)) {
        return Ok(programs.to_vec());
    }
    let job = (JOB_ID.to_owned(), Value::from(job));
    let context = values.iter().map(|(name, value)| (name.clone(), value_of(value)));
    let context = Context::from(Value::Object(context.chain([job]).collect()));
    let programs = programs.iter().map(|program| {
        let rendered = one(program, values, &context, budget.bytes)?;
        budget.bytes = budget.bytes.checked_sub(rendered.len()).ok_or_else(bounds::too_long)?;
        Ok(rendered)
    });
    programs.collect()
}

fn one(program: &str, values: &Params, context: &Context, limit: usize) -> Result<String, String> {
    if !is_template(program) {
        return Ok(program.to_owned());
    }
    let plain = plain(program, values)?;
    // The library's parser never returns if a program ends in an action with a trailing space. A
    // newline at the end avoids that.
    parsed(&format!("{plain}\n"))?;
    let template = parsed(&plain)?;
    let mut rendered = Bounded::new(limit);
    template.execute(&mut rendered, context).map_err(|cause| {
        if rendered.is_full {
            return bounds::too_long();
        }
        // The library's own message contains the value of every variable.
        if let ExecError::NoFiledFor(name, _) = &cause {
            return format!("the script needs a variable {name}, which the run does not have");
        }
        if let ExecError::InvalidRange(_) = &cause {
            return "the script ranges over a value that is not a list".to_owned();
        }
        format!("the script cannot be rendered: {cause}")
    })?;
    let rendered = String::from_utf8(rendered.bytes)
        .map_err(|cause| format!("the script cannot be rendered: {cause}"))?;
    // An ASCII program has no encoded letters, and those in values must stay as they are.
    Ok(if program.is_ascii() { rendered } else { whole(&rendered) })
}

fn value_of(json: &Json) -> Value {
    match json {
        Json::Null => Value::NoValue,
        Json::Bool(is) => Value::from(*is),
        Json::String(text) => Value::from(text.as_str()),
        Json::Number(number) => match (number.as_u64(), number.as_i64(), number.as_f64()) {
            (Some(number), _, _) => Value::from(number),
            (None, Some(number), _) => Value::from(number),
            (None, None, Some(number)) => Value::from(number),
            (None, None, None) => Value::from(number.to_string()),
        },
        Json::Array(items) => Value::Array(items.iter().map(value_of).collect()),
        Json::Object(entries) => {
            let entries = entries.iter().map(|(name, value)| (name.clone(), value_of(value)));
            Value::Object(entries.collect())
        }
    }
}

/// Returns true if any text in a value contains a letter.
fn holds(value: &Json, letter: char) -> bool {
    match value {
        Json::String(text) => text.contains(letter),
        Json::Array(items) => items.iter().any(|item| holds(item, letter)),
        Json::Object(entries) => {
            entries.iter().any(|(name, value)| name.contains(letter) || holds(value, letter))
        }
        Json::Null | Json::Bool(_) | Json::Number(_) => false,
    }
}

fn parsed(plain: &str) -> Result<Template, String> {
    let mut template = Template::default();
    template.add_func("default", default_of);
    template.add_func("quote", quoted);
    template.parse(plain).map_err(|cause| format!("the script is not a template: {cause}"))?;
    Ok(template)
}

/// Delimits an encoded non-ASCII letter. The library would split such a letter after an action.
const AROUND: char = '\u{1}';

/// Encodes the non-ASCII letters of a program outside its actions as numbers.
fn plain(program: &str, values: &Params) -> Result<String, String> {
    if program.is_ascii() {
        return Ok(program.to_owned());
    }
    if program.contains(AROUND) || values.values().any(|value| holds(value, AROUND)) {
        return Err("the script is not a template: it, or a variable, holds the byte 1".to_owned());
    }
    let mut plain = String::with_capacity(program.len());
    let number = |letter: char| match letter {
        letter if letter.is_ascii() => letter.to_string(),
        letter => format!("{AROUND}{:x}{AROUND}", u32::from(letter)),
    };
    let mut rest = program;
    while let Some((text, behind)) = rest.split_once("{{") {
        plain.extend(text.chars().map(number));
        plain.push_str("{{");
        let (action, after) = action(behind)?;
        plain.push_str(&action);
        rest = after;
    }
    plain.extend(rest.chars().map(number));
    Ok(plain)
}

/// Decodes the letters that `plain` encoded.
fn whole(text: &str) -> String {
    let letter = |(at, part): (usize, &str)| {
        let number = u32::from_str_radix(part, 16).ok().filter(|_| at % 2 == 1);
        number.and_then(char::from_u32).map_or_else(|| part.to_owned(), String::from)
    };
    text.split(AROUND).enumerate().map(letter).collect()
}

/// `{{ .name | default "other" }}` replaces an empty value.
fn default_of(arguments: &[Value]) -> Result<Value, FuncError> {
    let [other, value] = arguments else {
        return Err(FuncError::ExactlyXArgs("default".to_owned(), 2));
    };
    let is_empty = match value {
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Map(items) | Value::Object(items) => items.is_empty(),
        Value::Bool(is) => !is,
        Value::Nil | Value::NoValue => true,
        Value::Number(_) | Value::Function(_) => false,
    };
    Ok(if is_empty { other.clone() } else { value.clone() })
}

/// `{{ .name | quote }}` quotes a value as one shell word, and a list as one word per item.
fn quoted(arguments: &[Value]) -> Result<Value, FuncError> {
    let [value] = arguments else {
        return Err(FuncError::ExactlyXArgs("quote".to_owned(), 1));
    };
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => {
            let words: Result<Vec<_>, _> =
                items.iter().map(|item| quoted(std::slice::from_ref(item))).collect();
            let words: Vec<_> = words?.iter().map(Value::to_string).collect();
            return Ok(Value::from(words.join(" ")));
        }
        Value::Map(_)
        | Value::Object(_)
        | Value::Bool(_)
        | Value::Nil
        | Value::NoValue
        | Value::Number(_)
        | Value::Function(_) => value.to_string(),
    };
    Ok(Value::from(format!("'{}'", text.replace('\'', r"'\''"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vars(of: &[(&str, &str)]) -> Params {
        of.iter().map(|(name, value)| ((*name).to_owned(), Json::from(*value))).collect()
    }

    fn go_one(program: &str, values: &Params) -> Result<String, String> {
        render_go(&[program.to_owned()], values, "r-1").map(|rendered| rendered.concat())
    }

    fn rendered(program: &str, of: &[(&str, &str)]) -> Result<String, String> {
        go_one(program, &vars(of))
    }

    #[test]
    fn variables_are_substituted_in_a_program() {
        let said = rendered("deploy {{ .tag }} {{.__jobID}}", &[("tag", "v1")]).unwrap();
        assert_eq!(said, "deploy v1 r-1");
        assert_eq!(rendered("echo ${HOME}", &[]).unwrap(), "echo ${HOME}");
    }

    #[test]
    fn a_missing_variable_is_an_error_that_names_it() {
        let error = rendered("deploy {{ .tag }}", &[("password", "s3cret")]).unwrap_err();
        assert!(error.contains("variable tag") && !error.contains("s3cret"), "{error}");
        let error = rendered("{{ if .a }}x", &[("a", "b")]).unwrap_err();
        assert!(error.contains("not a template"), "{error}");
    }

    #[test]
    fn a_program_with_an_unclosed_action_is_not_a_template() {
        for program in
            ["{{_ ", "{{ ", "{{", "a {{ .a ", "{{ .a\n ", "{{ \"}}\" ", "{{ .a }", "{{ 1 "]
        {
            let error = rendered(program, &[("a", "b")]).unwrap_err();
            assert!(error.contains("not a template"), "{program:?}: {error}");
        }
        assert_eq!(rendered("{{ .a -}} \n", &[("a", "b\n")]).unwrap(), "b\n");
    }

    #[test]
    fn closing_braces_in_quotes_do_not_end_an_action() {
        assert_eq!(rendered("ä{{ `}}ä` }}ö{{- /* }}ß */ -}} ü", &[]).unwrap(), "ä}}äöü");
        assert_eq!(rendered("ä{{ \"a\\\"}}\" }}", &[]).unwrap(), "äa\"}}");
        for program in ["{{ `a}} {{ `bä }}", "ä{{ `a}}", "ä{{/* }}", "ä{{ \"\\\\\" }}"] {
            let error = rendered(program, &[]).unwrap_err();
            assert!(error.contains("not a template"), "{program:?}: {error}");
        }
    }

    #[test]
    fn values_are_not_rendered() {
        let said = rendered("echo {{ .a }}", &[("a", "{{ .b }}")]).unwrap();
        assert_eq!(said, "echo {{ .b }}");
    }

    #[test]
    fn empty_values_can_have_a_default_and_any_value_can_be_quoted() {
        let of = [("empty", ""), ("full", "x"), ("odd", "it's; rm -rf /")];
        let said = rendered("{{ .empty | default `y` }}{{ .full | default `y` }}", &of).unwrap();
        assert_eq!(said, "yx");
        assert_eq!(rendered("echo {{ .odd | quote }}", &of).unwrap(), r"echo 'it'\''s; rm -rf /'");
    }

    // Rows: D4
    #[test]
    fn lists_and_maps_can_be_iterated_and_queried_but_are_never_rendered() {
        let params = serde_json::json!({
            "list": ["a b", "{{ .x }}", 3], "map": { "k": { "n": 2.5 } }, "none": [], "no": {},
            "off": false, "nil": null, "ü": ["ä"],
        });
        let params: Params = serde_json::from_value(params).unwrap();
        for (program, expected) in [
            ("{{ range .list }}<{{ . }}>{{ end }}", "<a b><{{ .x }}><3>"),
            ("{{ range $i, $x := .list }}{{ $i }}{{ $x }}{{ end }}", "0a b1{{ .x }}23"),
            ("{{ range .list }}{{ $.map.k.n }} {{ end }}", "2.5 2.5 2.5 "),
            ("{{ if .none }}x{{ else }}none{{ end }}", "none"),
            ("{{ index .list 0 }} {{ len .list }}", "a b 3"),
            ("{{ .list | quote }}", "'a b' '{{ .x }}' '3'"),
            ("{{ .none | default `d` }}{{ .no | default `d` }}{{ .off | default `d` }}", "ddd"),
            ("{{ .nil | default `d` }}{{ .list | default `d` | len }}", "d3"),
            ("ü{{ range .list }}€{{ . }}{{ end }}", "ü€a b€{{ .x }}€3"),
        ] {
            assert_eq!(go_one(program, &params).as_deref(), Ok(expected), "{program}");
        }
        let missing = go_one("{{ .map.x }}", &params).unwrap_err();
        assert!(missing.contains("variable x"), "{missing}");
        let no_list = go_one("{{ range .off }}{{ end }}", &params).unwrap_err();
        assert!(no_list.contains("not a list"), "{no_list}");
        let other = go_one("{{ range .list }}{{ else }}x{{ end }}", &params).unwrap_err();
        assert!(other.contains("not supported"), "{other}");
    }

    #[test]
    fn conditions_and_blocks_work_like_in_go() {
        let of = [("level", "2"), ("name", "n")];
        let said = rendered("{{- if eq .level `2` -}} two {{- else -}} other {{- end -}}", &of);
        assert_eq!(said.unwrap(), "two");
        let said = rendered("{{ with $x := .name }}{{ printf `%s!` $x }}{{ end }}", &of);
        assert_eq!(said.unwrap(), "n!");
    }

    #[test]
    fn non_ascii_characters_can_be_used_in_text_quotes_and_values() {
        let of = [("a", "ß"), ("e", "")];
        for (program, expected) in [
            ("ü{{ .a }}ü", "üßü"),
            ("{{ .e | default \"ü\" }}ä", "üä"),
            ("{{ .e | default `ü€` }}", "ü€"),
            ("{{/* ü */}}é", "é"),
            ("{{- /* ü */ -}} €{{ .a }}€ {{- .a -}} €", "€ß€ß€"),
            ("{{ if .a }}ü{{ end }}", "ü"),
        ] {
            assert_eq!(rendered(program, &of).as_deref(), Ok(expected), "{program}");
        }
        for odd in ["{{ ü }}", "{{ .ü }}", "{{ .a ü", "{{ .a | ü }}", "{{ü", "{{.a€", "{{ 1€ }}"]
        {
            assert!(rendered(odd, &of).unwrap_err().contains("only in quotes"), "{odd}");
        }
        for odd in ["{{ \"ü", "{{ `€", "{{ 'ü"] {
            assert!(rendered(odd, &of).unwrap_err().contains("unterminated"), "{odd}");
        }
        assert_eq!(rendered("{{ .a }}", &[("a", "\u{1}41\u{1}")]).unwrap(), "\u{1}41\u{1}");
    }

    #[test]
    fn the_runs_own_variable_cannot_be_set() {
        assert!(rendered("{{ .a }}", &[("a", ""), (JOB_ID, "x")]).is_err());
        assert!(rendered("echo", &[(JOB_ID, "x")]).is_err(), "whether or not it is asked for");
    }

    #[test]
    fn a_program_that_is_too_long_too_deep_or_too_expensive_is_refused() {
        let list: Vec<u32> = (0..2000).collect();
        let values = serde_json::json!({ "l": list, "t": "x".repeat(1 << 20) });
        let values = values.as_object().cloned().unwrap();
        let refused = |program: &str, why: &str| {
            let said = go_one(program, &values).unwrap_err();
            assert!(said.contains(why), "{program:.60}: {said}");
        };
        refused("{{define \"a\"}}{{template \"a\" .}}{{end}}{{template \"a\" .}}", "`define`");
        refused("{{range .l}}{{range $.l}}{{end}}{{end}}", "too long to render");
        refused(&"{{range .l}}".repeat(60), "too long to render");
        refused("{{range .l}}{{range .}}.{{end}}{{end}}", "too long to render");
        refused(&"{{.t}}".repeat(5), "bytes with their variables");
        refused(&"{{if .t}}".repeat(100), "deep");
        refused(&format!("{{{{ {} .t }}}}", "(".repeat(100)), "deep");
        assert_eq!(go_one("{{range .l}}.{{end}}", &values).unwrap().len(), 2000);
    }

    #[test]
    fn the_budget_counts_all_loops_and_the_output_of_each_action() {
        let list: Vec<u32> = (0..1000).collect();
        let values = serde_json::json!({ "l": list, "t": "x".repeat(400_000) });
        let values = values.as_object().cloned().unwrap();
        let once = "{{range .l}}{{if $.t}}{{end}}{{end}}";
        assert_eq!(go_one(once, &values).as_deref(), Ok(""));
        for expensive in [
            once.repeat(20),
            "{{range .l}}{{range $.l}}{{end}}{{end}}".repeat(20),
            format!("{{{{range .l}}}}{}{{{{end}}}}", "{{if $.t}}{{end}}".repeat(20)),
            "{{range .l}}{{with $.t}}{{if .}}{{end}}{{if .}}{{end}}{{end}}{{end}}".repeat(8),
            "{{range .l}}{{$t := $.t}}{{if $t}}{{end}}{{if $t}}{{end}}{{end}}".repeat(8),
        ] {
            let said = go_one(&expensive, &values).unwrap_err();
            assert!(said.contains("too long to render"), "{expensive:.80}: {said}");
        }
        let programs = vec![once.to_owned(); 20];
        let said = render_go(&programs, &values, "r-1").unwrap_err();
        assert!(said.contains("too long to render"), "the programs of a step share it: {said}");
    }
}
