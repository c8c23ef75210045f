//! Recognises an answer that begins by declining, in the languages that small models decline in.
//!
//! Only the beginning counts: an answer that quotes a refusal later is none. The phrases are long enough that a
//! translation of "I cannot" is not taken for one; a regret alone ("I'm sorry for your loss") is only a lead-in.

/// Bytes of the answer that are looked at: two lead-ins and a phrase.
pub(super) const OPENING_BYTES: usize = 160;

/// What may stand before a refusal. Stripped as often as one fits.
const LEAD_INS: [&str; 31] = [
    "as an ai language model",
    "as an ai assistant",
    "as an ai model",
    "as an ai",
    "i'm sorry",
    "i am sorry",
    "sorry",
    "i apologize",
    "i apologise",
    "unfortunately",
    "but",
    "es tut mir leid",
    "tut mir leid",
    "leider",
    "aber",
    "je suis désolé",
    "désolé",
    "malheureusement",
    "mais",
    "lo siento",
    "pero",
    "desculpe",
    "sinto muito",
    "mas",
    "mi dispiace",
    "ma",
    "извините",
    "но",
    "к сожалению",
    "抱歉",
    "对不起",
];

/// How a refusal begins.
const PHRASES: [&str; 54] = [
    "i can't help",
    "i cannot help",
    "i can not help",
    "i can't assist",
    "i cannot assist",
    "i can't answer",
    "i cannot answer",
    "i can't provide",
    "i cannot provide",
    "i can't fulfill",
    "i cannot fulfill",
    "i can't do that",
    "i cannot do that",
    "i can't comply",
    "i cannot comply",
    "i'm unable to",
    "i am unable to",
    "i'm not able to",
    "i am not able to",
    "i won't be able to",
    "i must decline",
    "i don't have access to",
    "i do not have access to",
    "i don't have personal",
    "i do not have personal",
    "ich kann dir dabei nicht helfen",
    "ich kann ihnen dabei nicht helfen",
    "ich kann dabei nicht helfen",
    "dabei kann ich nicht helfen",
    "dabei kann ich dir nicht helfen",
    "dabei kann ich ihnen nicht helfen",
    "ich kann diese frage nicht",
    "ich kann diese anfrage nicht",
    "kann ich dir nicht helfen",
    "kann ich ihnen nicht helfen",
    "als ki-",
    "je ne peux pas vous aider",
    "je ne peux pas t'aider",
    "je ne peux pas répondre",
    "je ne peux pas fournir",
    "je ne suis pas en mesure",
    "en tant qu'ia",
    "no puedo ayudar",
    "no puedo proporcionar",
    "no puedo responder a",
    "não posso ajudar",
    "não posso fornecer",
    "non posso aiutar",
    "non posso fornire",
    "я не могу помочь",
    "我无法",
    "我不能",
    "申し訳ありませんが",
    "申し訳ございませんが",
];

/// True when the text begins with a refusal.
pub fn is_refusal(text: &str) -> bool {
    let mut opening = String::with_capacity(OPENING_BYTES * 2);
    fold_into(&mut opening, text);
    begins_with_refusal(&opening)
}

/// Appends text to a normalised opening, up to its bound: small letters, straight apostrophes, single spaces.
pub(super) fn fold_into(opening: &mut String, text: &str) {
    if opening.len() >= OPENING_BYTES {
        return;
    }
    for c in text.chars() {
        match c {
            '\u{2018}' | '\u{2019}' | '`' => opening.push('\''),
            c if c.is_whitespace() => {
                if !opening.is_empty() && !opening.ends_with(' ') {
                    opening.push(' ');
                }
            }
            c => opening.extend(c.to_lowercase()),
        }
        if opening.len() >= OPENING_BYTES {
            return;
        }
    }
}

/// True when a normalised opening is a refusal.
pub(super) fn begins_with_refusal(opening: &str) -> bool {
    let mut rest = trimmed(opening);
    loop {
        if PHRASES.iter().any(|phrase| rest.starts_with(phrase)) {
            return true;
        }
        let stripped = LEAD_INS.iter().find_map(|lead_in| after_word(rest, lead_in));
        match stripped {
            Some(after) => rest = trimmed(after),
            None => return false,
        }
    }
}

/// Returns what follows a lead-in that ends as a word does.
fn after_word<'a>(text: &'a str, lead_in: &str) -> Option<&'a str> {
    let rest = text.strip_prefix(lead_in)?;
    let ends = rest.chars().next().is_none_or(|c| !c.is_alphanumeric() || c >= '\u{2E80}');
    ends.then_some(rest)
}

fn trimmed(text: &str) -> &str {
    text.trim_start_matches(|c: char| !c.is_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_recognised_in_several_languages() {
        let refusals = [
            "I'm sorry, but I can't help with that.",
            "I’m sorry, but I can’t assist with that request.",
            "**Unfortunately**, I am unable to answer.",
            "  As an AI language model, I do not have personal opinions.",
            "Es tut mir leid, aber ich kann dir dabei nicht helfen.",
            "Leider kann ich Ihnen nicht helfen.",
            "Je suis désolé, mais je ne peux pas vous aider.",
            "Lo siento, pero no puedo ayudarte con eso.",
            "Desculpe, mas não posso ajudar com isso.",
            "Mi dispiace, ma non posso aiutarti.",
            "Извините, но я не могу помочь.",
            "抱歉，我无法回答这个问题。",
            "申し訳ありませんが、その質問にはお答えできません。",
        ];
        for text in refusals {
            assert!(is_refusal(text), "{text}");
        }
    }

    #[test]
    fn answers_that_only_sound_like_one_are_not_refusals() {
        let answers = [
            "",
            "I'm sorry for your loss. Here is a letter you could send.",
            "I can help with that.",
            "Sorry is a word of regret.",
            "Je ne peux pas is French for I cannot.",
            "But why? Because the sea is salt.",
            "As an aide to the king he wrote letters.",
            "Many people reply: I can't help with that.",
            "Paris.",
        ];
        for text in answers {
            assert!(!is_refusal(text), "{text}");
        }
    }
}
