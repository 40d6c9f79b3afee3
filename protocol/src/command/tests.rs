//! Which commands are decoded and what is wrong with the others.

use super::*;

fn start_of(body: &str) -> Result<Start, Malformed> {
    let Command::Start(start) = decode(Some(START), None, body.as_bytes())? else {
        panic!("{body} is not a start command")
    };
    Ok(*start)
}

#[test]
fn a_start_by_name_accepts_both_spellings_of_its_id() {
    for key in ["run-id", "run_id"] {
        let start =
            start_of(&format!(r#"{{"{key}": "r-1", "group": "dev", "name": "x", "more": 1}}"#))
                .unwrap();
        assert_eq!(start.run_id, RunIdSource::Given("r-1".parse().unwrap()));
        assert_eq!(start.target, Target::Stored(PipelineId::new("dev", "x").unwrap()));
    }
}

// Rows: D4
#[test]
fn template_values_are_any_json_under_a_name() {
    let params = r#"{"list":["a",1,2.5,null,true],"map":{"k":[]},"text":"{{ .x }}"}"#;
    let start = start_of(&format!(r#"{{"group":"d","name":"x","params":{params}}}"#)).unwrap();
    assert_eq!(Json::Object(start.params).to_string(), params);
    assert!(start_of(r#"{"group":"d","name":"x","params":null}"#).unwrap().params.is_empty());
    for bad in ["[1]", "\"a\"", r#"{"":1}"#] {
        let fault = start_of(&format!(r#"{{"group":"d","name":"x","params":{bad}}}"#)).unwrap_err();
        assert_eq!(fault.field.as_deref(), Some("params"), "{fault}");
    }
}

#[test]
fn scalar_variables_become_text_as_written_and_other_values_are_refused() {
    let start = start_of(r#"{"group":"d","name":"x","vars":{"a":"1","b":2.50,"c":true}}"#).unwrap();
    let text = |name: &str| start.vars.get(name).map(String::as_str);
    assert_eq!((text("a"), text("b"), text("c")), (Some("1"), Some("2.50"), Some("true")));
    for bad in ["null", "[1]", "{}"] {
        let fault =
            start_of(&format!(r#"{{"group":"d","name":"x","vars":{{"a":{bad}}}}}"#)).unwrap_err();
        assert_eq!(fault.field.as_deref(), Some("vars.a"));
    }
    assert!(start_of(r#"{"group":"d","name":"x","vars":{"a=b":"1"}}"#).is_err());
    assert!(start_of(r#"{"group":"d","name":"x","vars":{"a":"\u0000"}}"#).is_err());
}

#[test]
fn an_invalid_command_names_the_field_and_what_was_expected() {
    let long = format!(r#"{{"group":"d","name":"{}"}}"#, "x".repeat(200));
    let cases: [(Option<&str>, &str, Option<&str>); 11] = [
        (Some(START), &long, Some("name")),
        (Some(START), r#"{"group":"a:b","name":"x"}"#, Some("group")),
        (Some(STOP), r#"{"run-id":"r-1","run_id":"r-2"}"#, Some("run-id")),
        (None, "{}", Some("type")),
        (Some("pipeline/strat"), "{}", Some("type")),
        (Some(START), "{", None),
        (Some(START), "[]", None),
        (Some(START), r#"{"group":"d"}"#, Some("name")),
        (Some(START), r#"{"group":"d","name":7}"#, Some("name")),
        (Some(STOP), "{}", Some("run-id")),
        (Some(PAUSE), r#"{"group":"d","name":"x","at":"now"}"#, Some("at")),
    ];
    for (kind, body, field) in cases {
        let fault = decode(kind, None, body.as_bytes()).unwrap_err();
        assert_eq!(fault.field.as_deref(), field, "{body}: {fault}");
    }
}

#[test]
fn a_body_that_is_too_large_is_rejected_before_it_is_parsed() {
    let body = vec![b'{'; 2 * MAX_START_BYTES + 1];
    for kind in [START, STOP, PAUSE, UNPAUSE] {
        let what = decode(Some(kind), None, &body).unwrap_err().what;
        assert!(what.contains("larger than 1 MiB"), "{what}");
    }
    let what = decode(Some(START), None, &body[1..]).unwrap_err().what;
    assert!(!what.contains("larger"), "{what}");
}

#[test]
fn an_inline_definition_is_checked_completely() {
    let definition = r#""group":"d","name":"x","image":"i","steps":[{"cmd":"true"}]"#;
    let start = start_of(&format!(r#"{{"pipeline":{{{definition}}},"backoff":1}}"#)).unwrap();
    assert!(matches!(start.target, Target::Inline(pipeline) if pipeline.steps.len() == 1));
    let agreeing = format!(r#"{{"group":"d","name":"x","pipeline":{{{definition}}}}}"#);
    assert!(start_of(&agreeing).is_ok());
    let cases = [
        (format!(r#"{{"group":"e","name":"x","pipeline":{{{definition}}}}}"#), "group"),
        (format!(r#"{{"pipeline":{{{definition},"imgae":1}}}}"#), "pipeline.imgae"),
        (
            r#"{"pipeline":{"group":"d","name":"x","image":"i","steps":[{"cmd":7}]}}"#.into(),
            "pipeline.steps[0].cmd",
        ),
        (r#"{"pipeline":[]}"#.into(), "pipeline"),
        (r#"{"pipeline":{"group":"d"}}"#.into(), "pipeline.name"),
    ];
    for (body, field) in cases {
        let fault = start_of(&body).unwrap_err();
        assert_eq!(fault.field.as_deref(), Some(field), "{body}: {fault}");
    }
}

#[test]
fn the_message_id_names_a_start_without_a_run_id() {
    let body = br#"{"group":"d","name":"x"}"#;
    let Command::Start(start) = decode(Some(START), Some("abc"), body).unwrap() else {
        panic!("no start")
    };
    assert_eq!(start.run_id, RunIdSource::Given("r-abc".parse().unwrap()));
}
