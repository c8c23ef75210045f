//! Words that tell a field of knowledge.

use super::Domain;

/// Telling words of each domain; a word belongs to one domain only.
pub(crate) const WORDS: [(Domain, &[&str]); 5] = [
    (Domain::Code, CODE),
    (Domain::Math, MATH),
    (Domain::Medical, MEDICAL),
    (Domain::Legal, LEGAL),
    (Domain::Finance, FINANCE),
];

#[rustfmt::skip]
const CODE: &[&str] = &[
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
const MATH: &[&str] = &[
    "algebra", "arctan", "arithmetic", "bijection", "calculus", "coefficient", "combinatorics",
    "conjecture", "cosine", "derivative", "determinant", "differentiable", "differential", "eigenvalue",
    "eigenvector", "equation", "equations", "exponent", "factorial", "fraction", "geometry",
    "hypotenuse", "integer", "integers", "integral", "irrational", "isosceles", "lemma", "logarithm",
    "mathematics", "matrix", "modulo", "multiply", "orthogonal", "parabola", "perimeter", "permutation",
    "polygon", "polynomial", "prime", "probability", "proof", "prove", "quadratic", "quotient",
    "radius", "sine", "sqrt", "squared", "theorem", "triangle", "trigonometry", "vertex",
];

#[rustfmt::skip]
const MEDICAL: &[&str] = &[
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
const LEGAL: &[&str] = &[
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
const FINANCE: &[&str] = &[
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
    fn the_lists_are_sorted() {
        for (domain, words) in WORDS {
            assert!(words.is_sorted(), "{domain:?}");
        }
    }
}
