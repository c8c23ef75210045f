//! Field of knowledge of a prompt, from its words.
//!
//! A table of telling words, not a model: it costs microseconds and is right where it matters (code against
//! talk). Words are lowered into a small buffer and looked up in a sorted table, so nothing is allocated.

/// Bytes of a prompt that are looked at: a field shows in its first screen.
const LOOK_BYTES: usize = 4 * 1024;

/// Hits below which a prompt is general: one stray word is not a subject.
const MIN_HITS: u32 = 2;

/// Longest word of the table.
const WORD_BYTES: usize = 16;

/// Field of knowledge of a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Domain {
    /// Programs, shells, data formats.
    Code,
    /// Calculation and proof.
    Math,
    /// Health and medicine.
    Medical,
    /// Law and contracts.
    Legal,
    /// Money, markets, taxes.
    Finance,
    /// Everything else.
    #[default]
    General,
}

impl Domain {
    /// Every domain, in the order of its index.
    pub const ALL: [Self; 6] =
        [Self::Code, Self::Math, Self::Medical, Self::Legal, Self::Finance, Self::General];

    /// Returns the word used in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Code => "code",
            Self::Math => "math",
            Self::Medical => "medical",
            Self::Legal => "legal",
            Self::Finance => "finance",
            Self::General => "general",
        }
    }

    /// Guesses the domain of a prompt from its first 4 KiB.
    pub fn of(text: &str) -> Self {
        let mut end = text.len().min(LOOK_BYTES);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let text = &text[..end];
        let mut hits = [0u32; Self::ALL.len()];
        for word in text.split(|c: char| !c.is_alphanumeric()) {
            if let Some(domain) = look_up(word) {
                hits[domain as usize] += 1;
            }
        }
        hits[Self::Code as usize] += code_marks(text);
        let best = Self::ALL.into_iter().rev().max_by_key(|domain| hits[*domain as usize]);
        best.filter(|domain| hits[*domain as usize] >= MIN_HITS).unwrap_or_default()
    }
}

/// Counts signs that only source text shows, each at most a few times.
fn code_marks(text: &str) -> u32 {
    const MARKS: [&str; 8] = ["```", "();", " => ", "->", "!=", "==", "});", "</"];
    let marks: u32 = MARKS.iter().map(|mark| u32::from(text.contains(mark))).sum();
    if text.contains("```") { marks + MIN_HITS } else { marks }
}

fn look_up(word: &str) -> Option<Domain> {
    let mut buffer = [0u8; WORD_BYTES];
    let lowered = buffer.get_mut(..word.len())?;
    lowered.copy_from_slice(word.as_bytes());
    lowered.make_ascii_lowercase();
    let known = |words: &[&str]| words.binary_search_by(|known| known.as_bytes().cmp(&*lowered)).is_ok();
    WORDS.iter().find(|(_, words)| known(words)).map(|(domain, _)| *domain)
}

/// Telling words of each domain, sorted by their bytes; a word belongs to one domain only.
static WORDS: [(Domain, &[&str]); 5] = [
    (Domain::Code, CODE),
    (Domain::Math, MATH),
    (Domain::Medical, MEDICAL),
    (Domain::Legal, LEGAL),
    (Domain::Finance, FINANCE),
];

#[rustfmt::skip]
static CODE: &[&str] = &[
    "algorithm", "api", "array", "async", "await", "backend", "bash", "boolean", "bug", "class", "cli",
    "codebase", "compile", "compiler", "compiles", "const", "css", "cuda", "dataframe", "debug",
    "decorator", "def", "deprecated", "docker", "dockerfile", "elif", "endpoint", "enum", "exception",
    "fn", "frontend", "func", "function", "git", "github", "golang", "grep", "html", "http", "impl",
    "import", "int", "java", "javascript", "json", "kotlin", "kubernetes", "lambda", "linux", "llvm",
    "loop", "malloc", "middleware", "mutex", "npm", "null", "numpy", "pandas", "parse", "parser", "php",
    "pip", "pointer", "programming", "python", "pytorch", "query", "react", "recursion", "recursive",
    "refactor", "regex", "repository", "rust", "script", "sdk", "segfault", "sql", "stacktrace", "std",
    "stdout", "string", "struct", "subclass", "swift", "syntax", "tensorflow", "thread", "traceback",
    "typescript", "unittest", "variable", "void", "webhook", "xml", "yaml",
];

#[rustfmt::skip]
static MATH: &[&str] = &[
    "algebra", "arctan", "arithmetic", "bijection", "calculus", "coefficient", "combinatorics",
    "conjecture", "cosine", "derivative", "determinant", "differentiable", "differential", "eigenvalue",
    "eigenvector", "equation", "equations", "exponent", "factorial", "fraction", "geometry",
    "hypotenuse", "integer", "integers", "integral", "irrational", "isosceles", "lemma", "logarithm",
    "mathematics", "matrix", "modulo", "multiply", "orthogonal", "parabola", "perimeter", "permutation",
    "polygon", "polynomial", "prime", "probability", "proof", "prove", "quadratic", "quotient",
    "radius", "sine", "sqrt", "squared", "theorem", "triangle", "trigonometry", "vertex",
];

#[rustfmt::skip]
static MEDICAL: &[&str] = &[
    "acute", "allergy", "anatomy", "antibiotic", "antibiotics", "arrhythmia", "artery", "asthma",
    "biopsy", "cancer", "cardiac", "chemotherapy", "chronic", "clinical", "cough", "diabetes",
    "diabetic", "diagnose", "diagnosis", "disease", "diseases", "disorder", "doctor", "dosage", "dose",
    "drug", "epilepsy", "fever", "headache", "hospital", "hypertension", "ibuprofen", "immune",
    "infection", "inflammation", "insulin", "kidney", "liver", "lungs", "medication", "medicine", "mg",
    "nausea", "nurse", "oncology", "pain", "pancreas", "paracetamol", "patient", "patients",
    "pediatric", "pneumonia", "prescribed", "prescription", "psychiatric", "pulmonary", "renal",
    "surgery", "surgical", "symptom", "symptoms", "syndrome", "therapy", "thyroid", "treatment",
    "tumor", "vaccination", "vaccine", "vein", "virus",
];

#[rustfmt::skip]
static LEGAL: &[&str] = &[
    "acquitted", "affidavit", "amendment", "appeal", "appellate", "arbitration", "attorney", "bailiff",
    "breach", "clause", "clauses", "compliance", "constitution", "constitutional", "contract",
    "contracts", "copyright", "counsel", "court", "courts", "damages", "defamation", "defendant",
    "deposition", "felony", "fiduciary", "gdpr", "hearsay", "indemnify", "infringement", "injunction",
    "judge", "jurisdiction", "jury", "landlord", "law", "lawful", "lawsuit", "lawyer", "lease", "legal",
    "legislation", "liability", "liable", "litigation", "misdemeanor", "negligence", "plaintiff",
    "precedent", "prosecution", "prosecutor", "regulation", "settlement", "statute", "statutory",
    "subpoena", "sue", "tenant", "testimony", "tort", "trademark", "treaty", "tribunal", "verdict",
    "warranty",
];

#[rustfmt::skip]
static FINANCE: &[&str] = &[
    "accounting", "amortization", "annuity", "apr", "arbitrage", "asset", "assets", "audit",
    "bankruptcy", "bond", "bonds", "broker", "budget", "capital", "cash", "collateral", "commodity",
    "cpi", "credit", "currency", "debt", "deficit", "depreciation", "derivatives", "dividend",
    "dividends", "ebitda", "equity", "etf", "fiscal", "forex", "fund", "gdp", "hedge", "inflation",
    "interest", "invest", "investing", "investment", "investor", "invoice", "ipo", "ledger", "leverage",
    "liquidity", "loan", "margin", "market", "mortgage", "nasdaq", "payroll", "pension", "portfolio",
    "profit", "profits", "revenue", "savings", "securities", "shareholder", "shares", "stock", "stocks",
    "tax", "taxation", "taxes", "treasury", "volatility", "yield",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_are_sorted_disjoint_and_fit_the_buffer() {
        let mut seen = std::collections::BTreeSet::new();
        for (domain, words) in WORDS {
            assert!(words.is_sorted(), "{domain:?}");
            for word in words {
                assert!(word.len() <= WORD_BYTES && seen.insert(*word), "{word}");
            }
        }
    }

    #[test]
    fn prompts_land_in_their_domain() {
        let cases = [
            ("Write a Rust function that parses JSON into a struct", Domain::Code),
            ("```py\nprint(1)\n```\nwhat does this do?", Domain::Code),
            ("Prove that the square root of 2 is irrational; use a lemma on integers", Domain::Math),
            ("The patient shows acute symptoms of pneumonia. Which antibiotic?", Domain::Medical),
            ("Is the landlord liable for damages under the lease contract?", Domain::Legal),
            ("How are stock dividends and bond yield taxed in a portfolio?", Domain::Finance),
            ("Tell me a story about a fox", Domain::General),
            ("", Domain::General),
            ("what is a contract", Domain::General),
        ];
        for (text, expected) in cases {
            assert_eq!(Domain::of(text), expected, "{text}");
        }
    }

    #[test]
    fn a_cut_inside_a_character_is_no_panic() {
        let text = "é".repeat(LOOK_BYTES);
        assert_eq!(Domain::of(&format!("a{text}")), Domain::General);
    }
}
