//! What a prompt wants done, by rules on its words and on what the request brings along.
//!
//! Words count double near the beginning and the end of what was read, where people say what they want; in the
//! middle stands what it is to be done with. A guess by which a learner can tell requests apart, not a promise.

use super::reading::Reading;
use crate::domain::Domain;
use crate::request::Needs;

/// Score from which a task that a single well-placed word asks for is believed.
const BY_WORD: u32 = 2;

/// Score from which code or calculation is believed: a word and the field have to agree.
const BY_WORD_AND_FIELD: u32 = 3;

/// Share of digits above which a prompt has something to calculate with.
const MANY_DIGITS: f32 = 0.02;

/// What a prompt wants done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Task {
    /// A question or talk; whatever is none of the others.
    #[default]
    Chat,
    /// Writing or changing source text.
    Code,
    /// Making a text shorter.
    Summarise,
    /// Saying a text in another language.
    Translate,
    /// Taking facts or labels out of a text.
    Extract,
    /// Stories, poems, slogans.
    Creative,
    /// Calculation and proof.
    Math,
    /// Calling tools.
    ToolUse,
}

impl Task {
    /// Every task, in the order of its index.
    pub const ALL: [Self; 8] = [
        Self::Chat,
        Self::Code,
        Self::Summarise,
        Self::Translate,
        Self::Extract,
        Self::Creative,
        Self::Math,
        Self::ToolUse,
    ];

    /// Returns the word used in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Code => "code",
            Self::Summarise => "summarise",
            Self::Translate => "translate",
            Self::Extract => "extract",
            Self::Creative => "creative",
            Self::Math => "math",
            Self::ToolUse => "tool_use",
        }
    }

    /// Guesses the task of a request from what was read of it.
    pub(super) fn of(reading: &Reading, domain: Domain, needs: &Needs) -> Self {
        if needs.tools {
            return Self::ToolUse;
        }
        let score = |task: Self| {
            let words = u32::from(reading.tasks[task as usize]);
            match task {
                Self::Code => {
                    words + 2 * u32::from(domain == Domain::Code) + 2 * u32::from(reading.has_fence)
                }
                Self::Math => {
                    words
                        + 2 * u32::from(domain == Domain::Math)
                        + u32::from(reading.digit_share() > MANY_DIGITS)
                }
                Self::Extract => words + BY_WORD * u32::from(needs.schema),
                Self::Summarise | Self::Translate | Self::Creative => words,
                Self::Chat | Self::ToolUse => 0,
            }
        };
        let enough = |task: Self| match task {
            Self::Code | Self::Math => BY_WORD_AND_FIELD,
            _ => BY_WORD,
        };
        let surplus = |task: &Self| score(*task).checked_sub(enough(*task));
        // The first of equals wins: a text that is to be translated may be about anything.
        let order = [Self::Translate, Self::Summarise, Self::Extract, Self::Creative, Self::Code, Self::Math];
        let best = order.into_iter().rev().max_by_key(surplus);
        best.filter(|task| surplus(task).is_some()).unwrap_or_default()
    }
}

/// Parts of words that ask for a task in scripts whose words are not listed below.
pub(super) const MARKS: [(Task, &[&str]); 4] = [
    (Task::Translate, &["翻译", "翻譯", "翻訳", "번역", "еревед", "еревод", "ترجم"]),
    (Task::Summarise, &["总结", "總結", "概括", "摘要", "要約", "요약", "езюмир", "لخص"]),
    (Task::Creative, &["故事", "诗", "詩", "小说", "小説", "物語", "소설", "тихотвор", "قصيدة", "قصة"]),
    (Task::Code, &["代码", "代碼", "函数", "コード", "関数", "코드", "функци"]),
];

/// Words that ask for a task; a word asks for one task only.
#[rustfmt::skip]
pub(super) const WORDS: [(Task, &[&str]); 6] = [
    (Task::Translate, &[
        "translate", "translated", "translating", "translation", "übersetze", "übersetzen", "übersetzung", "traduis",
        "traduire", "traduisez", "traduction", "traduce", "traducir", "traducción", "traduza", "traduzir", "tradução",
        "traduci", "tradurre", "traduzione", "vertaal", "vertalen", "vertaling",
    ]),
    (Task::Summarise, &[
        "summarize", "summarise", "summarized", "summarizing", "summary", "summaries", "tldr", "condense", "shorten",
        "zusammenfassen", "zusammenfassung", "résume", "résumer", "résumez", "resumir", "resumen", "resuma", "resumo",
        "riassumi", "riassumere", "riassunto", "samenvatten", "samenvatting",
    ]),
    (Task::Extract, &[
        "extract", "extracting", "extraction", "classify", "classification", "categorize", "categorise", "label",
        "labels", "sentiment", "entities", "annotate", "extrahiere", "extrahieren", "klassifiziere", "extrais",
        "extraire", "classifie", "extrae", "extraer", "clasifica", "clasificar", "extraia", "classifique", "estrai",
        "classifica",
    ]),
    (Task::Creative, &[
        "story", "stories", "poem", "poems", "poetry", "haiku", "limerick", "sonnet", "lyrics", "ballad", "fable",
        "fairytale", "screenplay", "fanfiction", "slogan", "slogans", "tagline", "roleplay", "imagine", "rhyme", "joke",
        "jokes", "brainstorm", "gedicht", "kurzgeschichte", "märchen", "witz", "poème", "conte", "blague", "poema",
        "cuento", "chiste", "poesia", "conto", "racconto", "filastrocca", "verhaal", "grap",
    ]),
    (Task::Code, &[
        "code", "coding", "codebase", "implement", "implements", "implementation", "refactor", "debug", "function",
        "script", "program", "bug", "regex", "compile", "unittest", "funktion", "programm", "fonction", "programme",
        "función", "código", "programa", "função", "funzione", "codice", "functie",
    ]),
    (Task::Math, &[
        "calculate", "calculates", "compute", "solve", "simplify", "prove", "integrate", "differentiate", "factorize",
        "many", "much", "determine", "berechne", "berechnen", "löse", "beweise", "calcule", "calculer", "résous",
        "calcula", "calcular", "resuelve", "calcola", "risolvi", "bereken", "wieviel", "combien", "cuántos", "quantos",
    ]),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::sample::Sample;

    fn check(text: &str, domain: Domain, needs: Needs, expected: Task) {
        assert_eq!(Task::of(&Reading::of(&Sample::of_text(text)), domain, &needs), expected, "{text}");
    }

    #[test]
    fn prompts_want_their_task() {
        let cases = [
            ("What is the capital of France?", Domain::General, Task::Chat),
            ("", Domain::General, Task::Chat),
            ("Write a Rust function that reverses a string", Domain::Code, Task::Code),
            ("What is the difference between a process and a thread?", Domain::Code, Task::Chat),
            ("```js\nlet a = 1\n```\nPlease refactor this", Domain::Code, Task::Code),
            ("Translate into German: the function of the heart", Domain::General, Task::Translate),
            ("Übersetze das bitte ins Englische", Domain::General, Task::Translate),
            ("请把下面的句子翻译成英文", Domain::General, Task::Translate),
            ("Переведи на английский", Domain::General, Task::Translate),
            ("Summarize the following article in two sentences.", Domain::General, Task::Summarise),
            ("Classify the review as positive or negative", Domain::General, Task::Extract),
            ("Write a short poem on autumn", Domain::General, Task::Creative),
            ("Schreibe ein Gedicht", Domain::General, Task::Creative),
            ("Solve 3x + 7 = 22 for x", Domain::Math, Task::Math),
            ("How many apples has Tom if he had 12 and ate 5 of them?", Domain::Math, Task::Math),
            ("Port this Python code, do not translate the comments", Domain::Code, Task::Code),
        ];
        for (text, domain, expected) in cases {
            check(text, domain, Needs::default(), expected);
        }
    }

    #[test]
    fn what_the_request_brings_along_decides_before_its_words() {
        let tools = Needs { tools: true, ..Needs::default() };
        check("Write a poem", Domain::General, tools, Task::ToolUse);
        let schema = Needs { schema: true, ..Needs::default() };
        check("Jane Doe, 42, lives in Rome", Domain::General, schema, Task::Extract);
    }

    #[test]
    fn a_long_text_between_does_not_hide_what_is_asked_at_its_end() {
        let text = format!("{}\nSummarize the above.", "The committee met again on Tuesday. ".repeat(400));
        check(&text, Domain::General, Needs::default(), Task::Summarise);
    }
}
