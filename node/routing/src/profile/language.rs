//! The language of a prompt: its script, and for the Latin script the commonest small words.
//!
//! A guess for routing (small models are weak outside English), not for display: one of thirteen languages or none
//! of them.

use super::reading::Reading;

/// Hits of small words of one language above which it is believed where a prompt has letters of none.
const MIN_HITS: u16 = 1;

/// Language of a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Language {
    /// English; also what a few words without any sign of another language are taken for.
    #[default]
    English,
    /// German.
    German,
    /// French.
    French,
    /// Spanish.
    Spanish,
    /// Portuguese.
    Portuguese,
    /// Italian.
    Italian,
    /// Dutch.
    Dutch,
    /// Russian.
    Russian,
    /// Arabic.
    Arabic,
    /// Hindi and its neighbours in the Devanagari script.
    Hindi,
    /// Chinese.
    Chinese,
    /// Japanese.
    Japanese,
    /// Korean.
    Korean,
    /// Any other.
    Other,
}

impl Language {
    /// Every language, in the order of its index.
    pub const ALL: [Self; 14] = [
        Self::English,
        Self::German,
        Self::French,
        Self::Spanish,
        Self::Portuguese,
        Self::Italian,
        Self::Dutch,
        Self::Russian,
        Self::Arabic,
        Self::Hindi,
        Self::Chinese,
        Self::Japanese,
        Self::Korean,
        Self::Other,
    ];

    /// Returns the word used in logs and metrics: the code of ISO 639-1, or `other`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::English => "en",
            Self::German => "de",
            Self::French => "fr",
            Self::Spanish => "es",
            Self::Portuguese => "pt",
            Self::Italian => "it",
            Self::Dutch => "nl",
            Self::Russian => "ru",
            Self::Arabic => "ar",
            Self::Hindi => "hi",
            Self::Chinese => "zh",
            Self::Japanese => "ja",
            Self::Korean => "ko",
            Self::Other => "other",
        }
    }

    pub(super) const fn bit(self) -> u16 {
        1 << self as u16
    }

    /// Guesses the language of what was read.
    pub(super) fn of(reading: &Reading) -> Self {
        match reading.scripts.main() {
            Script::Latin => Self::of_latin(reading),
            Script::Cyrillic => Self::Russian,
            Script::Arabic => Self::Arabic,
            Script::Devanagari => Self::Hindi,
            Script::Han => Self::Chinese,
            Script::Kana => Self::Japanese,
            Script::Hangul => Self::Korean,
            Script::Other => Self::Other,
        }
    }

    fn of_latin(reading: &Reading) -> Self {
        let hits = |language: &Self| reading.languages[*language as usize];
        // The first of equals wins, and English comes first: words that two languages share prove nothing.
        let best = Self::ALL.iter().rev().max_by_key(|language| hits(language)).copied().unwrap_or_default();
        if hits(&best) > MIN_HITS || best == Self::English {
            best
        } else if reading.has_wide_latin() {
            if hits(&best) >= MIN_HITS { best } else { Self::Other }
        } else {
            Self::English
        }
    }
}

/// A script, or a group of them that means one language here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Script {
    Latin,
    Cyrillic,
    Arabic,
    Devanagari,
    Han,
    Kana,
    Hangul,
    Other,
}

impl Script {
    /// Returns the script of a letter beyond ASCII. Letters by which Ukrainian, Persian, Urdu and others differ from
    /// the language that their script stands for here count as of another script.
    pub(super) fn of(letter: char) -> Self {
        match letter {
            'і' | 'ї' | 'є' | 'ґ' | 'І' | 'Ї' | 'Є' | 'Ґ' | 'ў' | 'ј' | 'љ' | 'њ' => Self::Other,
            'پ' | 'چ' | 'ژ' | 'گ' | 'ک' | 'ی' | 'ے' | 'ٹ' | 'ڈ' => Self::Other,
            '\u{aa}'..='\u{24f}' | '\u{1e00}'..='\u{1eff}' => Self::Latin,
            '\u{400}'..='\u{52f}' => Self::Cyrillic,
            '\u{600}'..='\u{6ff}' | '\u{750}'..='\u{77f}' => Self::Arabic,
            '\u{900}'..='\u{97f}' => Self::Devanagari,
            '\u{3400}'..='\u{9fff}' | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{323af}' => Self::Han,
            '\u{3040}'..='\u{30ff}' | '\u{31f0}'..='\u{31ff}' => Self::Kana,
            '\u{1100}'..='\u{11ff}' | '\u{3130}'..='\u{318f}' | '\u{ac00}'..='\u{d7a3}' => Self::Hangul,
            _ => Self::Other,
        }
    }
}

/// Letters of each script.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Scripts([u32; 8]);

impl Scripts {
    pub(super) fn add(&mut self, script: Script, letters: u32) {
        self.0[script as usize] += letters;
    }

    pub(super) fn latin(&self) -> u32 {
        self.0[Script::Latin as usize]
    }

    fn main(&self) -> Script {
        let count = |script: Script| self.0[script as usize];
        // A syllable or an ideograph says as much as three letters.
        let (han, kana, hangul) =
            (3 * count(Script::Han), 3 * count(Script::Kana), 3 * count(Script::Hangul));
        let (cyrillic, arabic) = (count(Script::Cyrillic), count(Script::Arabic));
        let foreign = count(Script::Other);
        let east = han + kana + hangul;
        let most = [count(Script::Latin), east, cyrillic, arabic, count(Script::Devanagari), foreign];
        match most.iter().copied().max() {
            None | Some(0) => Script::Latin,
            Some(max) if max == most[0] => Script::Latin,
            // A Japanese text mixes both, a Chinese one has no kana; Korean may quote ideographs.
            Some(max) if max == east && hangul > han.max(kana) => Script::Hangul,
            Some(max) if max == east && kana > east / 10 => Script::Kana,
            Some(max) if max == east => Script::Han,
            // One letter in thirty that only a neighbour has tells it from the language that the script stands for.
            Some(max) if max == cyrillic && foreign <= cyrillic / 30 => Script::Cyrillic,
            Some(max) if max == arabic && foreign <= arabic / 30 => Script::Arabic,
            Some(max) if max == most[4] => Script::Devanagari,
            Some(_) => Script::Other,
        }
    }
}

/// Small words of each language of the Latin script. A word of several languages is in several lists.
#[rustfmt::skip]
pub(super) const WORDS: [(Language, &[&str]); 8] = [
    (Language::English, &[
        "a", "about", "and", "are", "as", "at", "be", "by", "can", "do", "does", "for", "from", "have", "how", "i", "if",
        "in", "is", "it", "its", "me", "my", "not", "of", "on", "or", "please", "should", "that", "the", "their", "this",
        "to", "was", "we", "what", "when", "which", "who", "why", "will", "with", "would", "you", "your",
    ]),
    (Language::German, &[
        "aber", "als", "an", "auch", "auf", "aus", "bei", "bitte", "das", "dass", "dem", "den", "der", "des", "die",
        "ein", "eine", "einem", "einen", "einer", "er", "es", "für", "haben", "hat", "ich", "im", "in", "ist", "kann",
        "können", "mein", "mich", "mir", "mit", "nach", "nicht", "oder", "sich", "sie", "sind", "so", "um", "und", "von",
        "warum", "was", "wenn", "wie", "wir", "wird", "zu", "zum", "zur", "über",
    ]),
    (Language::French, &[
        "au", "aux", "avec", "ce", "cette", "comment", "d", "dans", "de", "des", "du", "elle", "en", "est", "et", "il",
        "je", "l", "la", "le", "les", "mais", "moi", "mon", "ne", "nous", "on", "ou", "où", "par", "pas", "plus", "pour",
        "pourquoi", "qu", "que", "quel", "quelle", "qui", "sa", "se", "ses", "son", "sont", "sur", "tu", "un", "une",
        "vous", "à", "été", "être",
    ]),
    (Language::Spanish, &[
        "al", "como", "con", "cuál", "cómo", "de", "del", "el", "ella", "en", "es", "esta", "este", "está", "hay", "la",
        "las", "lo", "los", "me", "mi", "muy", "más", "no", "o", "para", "pero", "por", "porque", "puede", "que", "qué",
        "se", "si", "sin", "sobre", "son", "su", "sus", "también", "un", "una", "y", "yo",
    ]),
    (Language::Portuguese, &[
        "ao", "as", "até", "com", "como", "da", "das", "de", "do", "dos", "e", "ela", "ele", "em", "entre", "eu", "foi",
        "isso", "mais", "mas", "me", "meu", "muito", "na", "nas", "no", "nos", "não", "o", "os", "ou", "para", "pela",
        "pelo", "por", "qual", "que", "se", "sem", "ser", "seu", "sua", "são", "também", "um", "uma", "você", "à", "é",
    ]),
    (Language::Italian, &[
        "al", "alla", "anche", "che", "chi", "come", "con", "cosa", "da", "dal", "dei", "del", "della", "delle", "di",
        "e", "gli", "ha", "i", "il", "in", "io", "la", "le", "lo", "ma", "mi", "nel", "nella", "non", "o", "per",
        "perché", "più", "può", "qual", "quale", "questo", "se", "si", "sono", "sul", "un", "una", "uno", "è",
    ]),
    (Language::Dutch, &[
        "aan", "als", "bij", "dan", "dat", "de", "deze", "die", "dit", "een", "en", "er", "geen", "het", "hij", "hoe",
        "ik", "in", "is", "je", "kan", "maar", "met", "mijn", "naar", "niet", "of", "om", "ook", "op", "te", "tot",
        "uit", "van", "voor", "waarom", "was", "wat", "we", "wordt", "ze", "zijn",
    ]),
    // Polish, Czech, Swedish, Danish, Norwegian, Turkish, Indonesian, Vietnamese, Romanian, Hungarian, Finnish.
    (Language::Other, &[
        "jest", "nie", "się", "czy", "jak", "dla", "proszę", "oraz", "jsem", "není", "prosím", "och", "är", "att", "inte",
        "jag", "och", "som", "och", "på", "til", "jeg", "ikke", "og", "af", "hvordan", "hvad", "bir", "ve", "için",
        "nasıl", "bu", "ile", "değil", "yang", "dan", "untuk", "dengan", "tidak", "ini", "saya", "adalah", "và", "của",
        "không", "là", "một", "này", "și", "este", "pentru", "sunt", "cum", "hogy", "nem", "egy", "az", "vagy", "ja",
        "ei", "että", "mutta", "kuinka",
    ]),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::sample::Sample;

    #[test]
    fn prompts_are_of_their_language() {
        let cases = [
            ("What is the capital of France?", Language::English),
            ("Hello", Language::English),
            ("fn main() { println!(\"{}\", 1); }", Language::English),
            ("", Language::English),
            ("Wie viele Einwohner hat Berlin, und warum ist das so?", Language::German),
            ("Schreibe mir bitte ein Gedicht für meine Mutter", Language::German),
            ("Quelle est la capitale de l'Australie ?", Language::French),
            ("¿Cuál es la capital de Francia?", Language::Spanish),
            ("Qual é a capital da França e por que você gosta dela?", Language::Portuguese),
            ("Qual è la capitale della Francia?", Language::Italian),
            ("Wat is de hoofdstad van Frankrijk en hoe groot is het?", Language::Dutch),
            ("Какая столица Франции?", Language::Russian),
            ("Яка столиця Франції і чому її люблять?", Language::Other),
            ("ما هي عاصمة فرنسا؟", Language::Arabic),
            ("پایتخت فرانسه چیست؟", Language::Other),
            ("फ्रांस की राजधानी क्या है?", Language::Hindi),
            ("法国的首都是哪里？", Language::Chinese),
            ("フランスの首都はどこですか？", Language::Japanese),
            ("프랑스의 수도는 어디입니까?", Language::Korean),
            ("Jaka jest stolica Francji i czy nie jest za duża?", Language::Other),
            ("Ποια είναι η πρωτεύουσα της Γαλλίας;", Language::Other),
            ("用 Python 写一个快速排序 quicksort 函数，并解释它的时间复杂度", Language::Chinese),
        ];
        for (text, expected) in cases {
            let reading = Reading::of(&Sample::of_text(text));
            assert_eq!(Language::of(&reading), expected, "{text}");
        }
    }

    #[test]
    fn each_language_has_a_bit_of_its_own() {
        let all = Language::ALL.iter().fold(0, |bits, language| bits | Language::bit(*language));
        assert_eq!(all.count_ones() as usize, Language::ALL.len());
        assert!(Language::ALL.iter().enumerate().all(|(index, language)| *language as usize == index));
    }
}
