//! Looks at what a turn says: damaged characters, look-alikes of control tokens, and what may be data of a real person.
//!
//! Personal data are found by their form. Invented cases look the same, so a finding asks to be looked at, and is no error.

use std::sync::LazyLock;

use regex::Regex;

use super::Severity;

/// Something in a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spot {
    /// Where, in characters of the text.
    pub character: usize,
    /// What kind.
    pub code: &'static str,
    /// How much it weighs.
    pub severity: Severity,
    /// What is wrong and how to mend it.
    pub message: String,
}

struct Pattern {
    code: &'static str,
    what: &'static str,
    severity: Severity,
    regex: Regex,
}

static PATTERNS: LazyLock<Vec<Pattern>> = LazyLock::new(|| {
    use Severity::{Error, Warning};
    let all = [
        (
            "control-token",
            "looks like a control token, which a chat template would not tell from its own; write it another way",
            Error,
            r"<\|[A-Za-z_]{2,30}\|>|\[/?INST\]|<</?SYS>>|<(start|end)_of_turn>",
        ),
        (
            "encoding",
            "text that was read in the wrong encoding; save the original as UTF-8 again",
            Error,
            r"\u{FFFD}|Ã[©¨¤¶¼±]|â€[™œ\u{9d}“”¦–]|ã[\u{80}-\u{83}][\u{80}-\u{bf}]|(?:繧|縺|譁){2}",
        ),
        (
            "personal-email",
            "may be the e-mail address of a person; invent or remove it",
            Warning,
            r"[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+\.[A-Za-z]{2,}",
        ),
        (
            "personal-phone",
            "may be a telephone number; invent or remove it",
            Warning,
            r"(?-u:\b)0\d{1,4}-\d{1,4}-\d{4}(?-u:\b)|(?:\+\d{1,3}[ -]?)?\(?\b\d{3}\)?[ -]\d{3}[ -]\d{4}\b",
        ),
        (
            "personal-record",
            "may be a patient's record number; remove it",
            Warning,
            r"(?i)\b(?:MRN|medical record (?:number|no\.?)|patient id)\s*[:#]?\s*\d{4,}|(?:カルテ番号|患者番号|患者ID|診察券番号)\s*[:：]?\s*[0-9０-９]{4,}",
        ),
        (
            "personal-birth",
            "may be a date of birth; give an age instead",
            Warning,
            r"(?i)\b(?:DOB|date of birth|born on)\s*:?\s*\d{1,4}[/.-]\d{1,2}[/.-]\d{1,4}|(?:生年月日)\s*[:：]?\s*(?:昭和|平成|令和|大正|[12]\d{3})",
        ),
        (
            "personal-address",
            "may be an address; remove it",
            Warning,
            r"〒\s*\d{3}-\d{4}|[\p{Han}]{2,4}[都道府県][\p{Han}]{1,6}[市区町村][^\s。、]{1,12}\d+(?:-|丁目)|\b\d{1,5} [A-Z][a-z]+ (?:Street|St\.|Avenue|Ave\.|Road|Rd\.|Lane)\b",
        ),
        (
            "personal-name",
            "may name a real person; use an invented name or none",
            Warning,
            r"\b(?:Mr|Mrs|Ms|Dr)\.? [A-Z][a-z]{2,}(?: [A-Z][a-z]{2,})\b|[\p{Han}]{1,3}\s?[\p{Han}]{1,3}(?:様|さん|氏)の(?:お母|お父|ご家族|カルテ|検査)",
        ),
    ];
    let pattern = |(code, what, severity, regex): (_, _, _, &str)| {
        // They are constants; a test compiles them.
        Regex::new(regex).ok().map(|regex| Pattern { code, what, severity, regex })
    };
    all.into_iter().filter_map(pattern).collect()
});

/// The first spot of each kind.
#[must_use]
pub fn look(text: &str) -> Vec<Spot> {
    let mut found = Vec::new();
    for Pattern { code, what, severity, regex } in PATTERNS.iter() {
        if let Some(hit) = regex.find(text) {
            let shown: String = hit.as_str().chars().take(30).collect();
            found.push(Spot {
                character: text[..hit.start()].chars().count(),
                code,
                severity: *severity,
                message: format!("“{shown}” {what}"),
            });
        }
    }
    let control = text.chars().position(|c| c.is_control() && !matches!(c, '\n' | '\t' | '\r'));
    if let Some(character) = control {
        let message = "a control character; remove it".to_owned();
        found.push(Spot { character, code: "control-character", severity: Severity::Error, message });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codes(text: &str) -> Vec<&'static str> {
        look(text).into_iter().map(|spot| spot.code).collect()
    }

    #[test]
    fn each_kind_is_found_in_both_languages() {
        assert_eq!(PATTERNS.len(), 8, "every pattern compiles");
        for (text, code) in [
            ("<|im_start|>system", "control-token"),
            ("caf\u{FFFD}", "encoding"),
            ("The patientâ€™s dose", "encoding"),
            ("write to jane.doe@example.org", "personal-email"),
            ("電話は03-1234-5678です", "personal-phone"),
            ("call (555) 123-4567", "personal-phone"),
            ("MRN: 00123456", "personal-record"),
            ("カルテ番号：１２３４５", "personal-record"),
            ("DOB: 1950-01-02", "personal-birth"),
            ("生年月日は昭和30年", ""),
            ("生年月日：昭和30年1月2日", "personal-birth"),
            ("〒100-0001", "personal-address"),
            ("lives at 12 Baker Street", "personal-address"),
            ("Mrs. Jane Smith came in", "personal-name"),
            ("a\u{7}b", "control-character"),
        ] {
            let want: &[&str] = if code.is_empty() { &[] } else { &[code] };
            assert_eq!(codes(text), want, "{text}");
        }
    }

    #[test]
    fn what_clinics_say_is_not() {
        for text in [
            "Give 0.5 mg IM; repeat after 5-15 minutes. Target 130/80 mmHg, HbA1c 7.0 %.",
            "収縮期血圧が90 mmHg未満なら119番に電話してください。75歳、2024年4月から。",
            "Dr. Watson would say: rest. See section 3.1-2 and [1].",
            "夜間や休日でも、呼吸が苦しいときは迷わず救急車を呼んでください。",
        ] {
            assert_eq!(codes(text), [] as [&str; 0], "{text}");
        }
    }
}
