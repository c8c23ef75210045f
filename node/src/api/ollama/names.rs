//! Names of models as Ollama's clients write them: with a tag or without.

/// The tag that a name without one means.
const USUAL_TAG: &str = ":latest";

/// Returns the served name that a client means; what is not served in either form stays as it is.
pub(super) fn served_name(asked: &str, is_served: impl Fn(&str) -> bool) -> String {
    if is_served(asked) {
        return asked.to_owned();
    }
    match asked.strip_suffix(USUAL_TAG) {
        // Clients also add the tag to `auto`, which no device serves.
        Some(bare) if is_served(bare) || bare == "auto" => bare.to_owned(),
        None if is_served(&format!("{asked}{USUAL_TAG}")) => format!("{asked}{USUAL_TAG}"),
        _ => asked.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_tag_may_be_there_or_not() {
        let served = |name: &str| ["a:latest", "b", "c:1b"].contains(&name);
        for (asked, name) in [
            ("a", "a:latest"),
            ("a:latest", "a:latest"),
            ("b:latest", "b"),
            ("b", "b"),
            ("c", "c"),
            ("auto", "auto"),
            ("auto:latest", "auto"),
            ("auto:fast", "auto:fast"),
        ] {
            assert_eq!(served_name(asked, served), name, "{asked}");
        }
    }
}
