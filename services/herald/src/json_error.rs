//! Errors of JSON whose values can be secrets.

/// An error of the parser, without the value that it found.
pub(crate) fn without_values(error: &serde_json::Error) -> String {
    let text = error.to_string();
    if error.is_data() && text.starts_with("invalid ") {
        format!(
            "a value has another type than expected at line {} column {}",
            error.line(),
            error.column()
        )
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    struct Keys {
        auth: String,
    }

    #[test]
    fn a_value_is_not_repeated() {
        let error = |json: &str| {
            without_values(
                &serde_json::from_str::<Keys>(json)
                    .map(|keys| keys.auth)
                    .unwrap_err(),
            )
        };
        for json in [
            "\"hunter2\"",
            r#"{"auth":["hunter2"]}"#,
            r#"{"auth":{"hunter2":1}}"#,
            "{hunter2}",
        ] {
            let error = error(json);
            assert!(
                error.contains("line 1 column") && !error.contains("hunter2"),
                "{error}"
            );
        }
        assert!(error("{}").starts_with("missing field `auth`"));
    }
}
