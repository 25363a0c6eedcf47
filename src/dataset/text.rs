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

/// A kind of spot.
struct Kind {
    code: &'static str,
    what: &'static str,
    severity: Severity,
    /// Ways to write it, with `@D` for a digit, `@H` for a hyphen and `@P` for a letter of a place's name, each of either width or script, `@N`
    /// for a family name, `@B` for what stands before a date of birth and `@M` for a month.
    forms: &'static [&'static str],
    /// Whether a hit is one, by what stands before it, itself, and what follows: what an expression without look-around cannot say.
    is_one: fn(&str, &str, &str) -> bool,
}

static KINDS: [Kind; 8] = [
    Kind {
        code: "control-token",
        what: "looks like a control token, which a chat template would not tell from its own; write it another way",
        severity: Severity::Error,
        forms: &[
            r"[<＜][|｜]\s?[\p{L}_▁][^|｜<>＜＞\n]{1,39}[|｜][>＞]",
            r"</?s>",
            r"(?i:</?(?:bos|eos|pad|unk|think|tool_call|tool_response)>)",
            r"</?(?:start|end)_of_turn>",
            r"\[/?INST\]",
            r"<</?SYS>>",
        ],
        is_one: always,
    },
    Kind {
        code: "encoding",
        what: "text that was read in the wrong encoding; save the original as UTF-8 again",
        severity: Severity::Error,
        forms: &[
            r"\u{FFFD}",
            r"Ã[©¨¤¶¼±]",
            r"â€[™œ\u{9d}“”¦–]",
            r"ã[\u{80}-\u{83}][\u{80}-\u{bf}]",
            r"(?:繧|縺|譁){2}",
        ],
        is_one: always,
    },
    Kind {
        code: "personal-email",
        what: "may be the e-mail address of a person; invent or remove it",
        severity: Severity::Warning,
        forms: &[r"[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+\.[A-Za-z]{2,}"],
        is_one: always,
    },
    Kind {
        code: "personal-phone",
        what: "may be a telephone number; invent or remove it",
        severity: Severity::Warning,
        forms: &[
            r"\+\d{1,3}(?:[ .-]?\(?\d{1,4}\)?){2,5}",
            r"[0０]@D{1,4}@H@D{1,4}@H@D{3,4}",
            r"[0０]@D{1,4}[(（]@D{1,4}[)）]@D{4}",
            r"[(（][0０]@D{1,4}[)）]\s?@D{1,4}[ @H]@D{4}",
            r"[0０]@D{9,10}",
            r"0\d{2,4} \d{3,4} \d{3,4}",
            r"0\d{4} \d{5,6}",
            r"\(?[2-9]\d{2}\)?[ .-]\d{3}[ .-]\d{4}",
        ],
        is_one: is_phone,
    },
    Kind {
        code: "personal-record",
        what: "may be a patient's record number; remove it",
        severity: Severity::Warning,
        forms: &[
            r"(?i:(?-u:\b)(?:MRN|medical record (?:number|no\.?)|(?:patient|hospital|chart|NHS) (?:id|number|no\.?))\s*(?:is\s)?\s*[:#]?\s*(?:\d{3} \d{3} \d{4}|[A-Z]{0,3}-?\d[\d-]{3,}))",
            r"(?:カルテ|患者|診察券|受診者)\s*(?:番号|No\.?|NO\.?|Ｎｏ．?|№|ID|ＩＤ)\s*(?:は|が|[:：#＃])?\s*[A-ZＡ-Ｚ]{0,3}@H?@D(?:@D|@H){3,}",
        ],
        is_one: always,
    },
    Kind {
        code: "personal-birth",
        what: "may be a date of birth; give an age instead",
        severity: Severity::Warning,
        forms: &[
            r"(?i:@B(?:the )?\d{1,4}[/.-]\d{1,2}[/.-]\d{1,4})",
            r"(?i:@B(?:the )?\d{1,2}(?:st|nd|rd|th)?(?: of)? @M\.?,? \d{4})",
            r"(?i:@B@M\.? \d{1,2}(?:st|nd|rd|th)?,? \d{4})",
            r"生年月日\s*(?:は|が|[:：])?\s*(?:(?:明治|大正|昭和|平成|令和)\s*(?:元|@D{1,2})\s*年|[12１２]@D{3}\s*[年/.-])",
            r"(?:(?:明治|大正|昭和|平成|令和)\s*(?:元|@D{1,2})|[12１２]@D{3})\s*年\s*@D{1,2}\s*月\s*@D{1,2}\s*日\s*に?\s*(?:生まれ|うまれ|生れ|出生|誕生)",
            r"(?-u:\b)[MTSHR]\d{1,2}\.\d{1,2}\.\d{1,2}\s*生",
        ],
        is_one: always,
    },
    Kind {
        code: "personal-address",
        what: "may be an address; remove it",
        severity: Severity::Warning,
        forms: &[
            r"〒\s*@D{3}@H?@D{4}",
            r"[\p{Han}]{2,3}[都道府県]@P{1,8}[市区町村郡]@P{1,12}@D+(?:@H@D+|丁目|番地)",
            r"@P{1,6}市[\p{Han}]{1,4}区@P{0,12}@D+(?:@H@D+|丁目|番地)",
            r"@P{1,6}[市区町村]@P{1,12}(?:@D+@H@D+@H@D+|(?:@D|[一二三四五六七八九十])+丁目|@D+番地)",
            r"(?-u:\b)\d{1,5}[A-Za-z]? (?:[A-Z][a-z]+ ){1,3}(?:(?:Street|Avenue|Road|Lane|Drive|Crescent|Terrace|Boulevard)(?-u:\b)|St\.|Ave\.|Rd\.)",
        ],
        is_one: always,
    },
    Kind {
        code: "personal-name",
        what: "may name a real person; use an invented name or none",
        severity: Severity::Warning,
        forms: &[
            r"(?-u:\b)(?:Mr|Mrs|Ms|Miss|Mx|Prof|Professor)\.? [A-Z](?:[a-z]+|['’][A-Z][a-z]+)(?:-[A-Z][a-z]+)?(?: [A-Z][a-z]+)?",
            // What follows a doctor's title alone may begin a sentence.
            r"(?-u:\b)Dr\.? [A-Z][a-z]{2,} [A-Z][a-z]{2,}(?-u:\b)",
            r"(?:@N)\s?[\p{Han}]{0,3}(?:さん|さま|様|氏|先生|くん|ちゃん|殿)",
            r"[\p{Han}]{2,6}(?:様|さん|氏)の(?:お母|お父|ご家族|カルテ|検査)",
        ],
        is_one: is_name,
    },
];

const BORN: &str =
    r"(?-u:\b)(?:DOB|D\.O\.B\.?|date of birth|birth ?date|birthday|born(?: on)?)\s*(?:is\s|was\s)?\s*:?\s*";
const MONTH: &str = "(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]{0,6}";

/// Common family names: what is written before a title could be anything else as well (患者さん, お母様, 皆様).
const FAMILIES: [&str; 96] = [
    "佐藤",
    "鈴木",
    "高橋",
    "田中",
    "伊藤",
    "渡辺",
    "渡邊",
    "渡部",
    "山本",
    "中村",
    "小林",
    "加藤",
    "吉田",
    "山田",
    "佐々木",
    "山口",
    "松本",
    "井上",
    "木村",
    "斎藤",
    "斉藤",
    "齋藤",
    "清水",
    "山崎",
    "阿部",
    "池田",
    "橋本",
    "山下",
    "石川",
    "中島",
    "前田",
    "藤田",
    "小川",
    "後藤",
    "岡田",
    "長谷川",
    "村上",
    "近藤",
    "石井",
    "坂本",
    "遠藤",
    "青木",
    "藤井",
    "西村",
    "福田",
    "太田",
    "三浦",
    "岡本",
    "藤原",
    "松田",
    "中川",
    "中野",
    "原田",
    "小野",
    "田村",
    "竹内",
    "金子",
    "和田",
    "中山",
    "石田",
    "上田",
    "森田",
    "柴田",
    "酒井",
    "工藤",
    "横山",
    "宮崎",
    "宮本",
    "内田",
    "高木",
    "谷口",
    "安藤",
    "丸山",
    "今井",
    "大野",
    "高田",
    "菅原",
    "河野",
    "武田",
    "藤本",
    "上野",
    "杉山",
    "千葉",
    "村田",
    "増田",
    "小島",
    "小山",
    "大塚",
    "平野",
    "久保",
    "渡会",
    "野口",
    "松井",
    "菊地",
    "菊池",
    "新井",
];

/// Who may stand before a title without being named.
const NOBODY: [&str; 40] = [
    "患者",
    "看護",
    "奥様",
    "奥さん",
    "家族",
    "皆様",
    "皆さん",
    "主治医",
    "担当",
    "医師",
    "薬剤師",
    "技師",
    "療法士",
    "栄養士",
    "助産師",
    "保健師",
    "介護",
    "利用者",
    "入居者",
    "本人",
    "相手",
    "赤",
    "旦那",
    "主人",
    "息子",
    "娘",
    "孫",
    "子供",
    "子様",
    "母",
    "父",
    "兄",
    "姉",
    "弟",
    "妹",
    "祖",
    "親",
    "義",
    "客様",
    "妊婦",
];

fn always(_: &str, _: &str, _: &str) -> bool {
    true
}

fn is_digit(c: char) -> bool {
    c.is_ascii_digit() || ('０'..='９').contains(&c)
}

/// Whether digits are as many as a telephone number has, and no part of a longer number, a name of a thing, or an amount.
fn is_phone(before: &str, hit: &str, after: &str) -> bool {
    const UNITS: [&str; 11] = ["mg", "mL", "ml", "µg", "μg", "mcg", "mmHg", "IU", "単位", "錠", "円"];
    let digits = hit.chars().filter(|c| is_digit(*c)).count();
    let enough = if hit.starts_with('+') { 9..=15 } else { 10..=11 };
    let joins = |c: char| matches!(c, '.' | ',' | '/' | '-' | '－' | '‐' | '−');
    let mut back = before.chars().rev();
    let longer = match back.next() {
        Some(c) if is_digit(c) => true,
        Some(c) if joins(c) => back.next().is_some_and(is_digit),
        Some(c) if c.is_ascii_alphabetic() => {
            let word = before.rsplit(|c: char| !c.is_ascii_alphabetic()).next().unwrap_or_default();
            !["tel", "fax", "phone"].contains(&word.to_ascii_lowercase().as_str())
        }
        _ => false,
    };
    let mut next = after.chars();
    let goes_on = match next.next() {
        Some(c) if is_digit(c) || c.is_ascii_alphabetic() => true,
        Some(c) if joins(c) => next.next().is_some_and(is_digit),
        _ => false,
    };
    let amount = UNITS.iter().any(|unit| after.trim_start().starts_with(unit));
    enough.contains(&digits) && !longer && !goes_on && !amount
}

/// Whether a hit names somebody: 様 also begins words, and many have a title who have no name.
fn is_name(_: &str, hit: &str, after: &str) -> bool {
    let word = hit.ends_with('様') && after.starts_with(['子', '々', '式', '相']);
    let named = FAMILIES.iter().any(|family| hit.starts_with(family));
    // Whose mother or family it is stands behind the title.
    let titled = ["様", "氏", "さん"].iter().filter_map(|title| Some(hit.find(title)? + title.len())).min();
    let titled = &hit[..titled.unwrap_or(hit.len())];
    !word && (named || !NOBODY.iter().any(|nobody| titled.contains(nobody)))
}

/// For each kind, all of its forms as one expression.
static EXPRESSIONS: LazyLock<Vec<(&Kind, Regex)>> = LazyLock::new(|| {
    let expression = |kind: &'static Kind| {
        let forms = kind.forms.join("|").replace("@N", &FAMILIES.join("|")).replace("@D", "[0-9０-９]");
        let forms = forms.replace("[ @H]", "[ －‐–−ー-]").replace("@H", "[－‐–−ー-]");
        let forms = forms.replace("@B", BORN).replace("@M", MONTH);
        let forms = forms.replace("@P", r"[\p{Han}\p{Hiragana}\p{Katakana}ー]");
        // They are constants; a test compiles them.
        Regex::new(&forms).ok().map(|regex| (kind, regex))
    };
    KINDS.iter().filter_map(expression).collect()
});

/// All spots, kind by kind, and of a kind in their order.
#[must_use]
pub fn look(text: &str) -> Vec<Spot> {
    let mut found = Vec::new();
    for (kind, regex) in EXPRESSIONS.iter() {
        // Counted on from hit to hit: there may be many.
        let (mut counted, mut character) = (0, 0);
        for hit in regex.find_iter(text) {
            if !(kind.is_one)(&text[..hit.start()], hit.as_str(), &text[hit.end()..]) {
                continue;
            }
            character += text[counted..hit.start()].chars().count();
            counted = hit.start();
            let shown: String = hit.as_str().chars().take(30).collect();
            found.push(Spot {
                character,
                code: kind.code,
                severity: kind.severity,
                message: format!("“{shown}” {}", kind.what),
            });
        }
    }
    let control = |(_, c): &(usize, char)| c.is_control() && !matches!(*c, '\n' | '\t' | '\r');
    for (character, _) in text.chars().enumerate().filter(control) {
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
        assert_eq!(EXPRESSIONS.len(), KINDS.len(), "every expression compiles");
        for (code, texts) in [
            (
                "control-token",
                &[
                    "<|im_start|>system",
                    "<|reserved_special_token_5|>",
                    "<｜begin▁of▁sentence｜>",
                    "＜｜im_end｜＞",
                    "Rest.</s>",
                    "<s>",
                    "<bos>",
                    "<eos>",
                    "<tool_call>",
                    "<think>",
                    "[INST] x",
                    "<<SYS>>",
                    "<end_of_turn>",
                ][..],
            ),
            ("encoding", &["caf\u{FFFD}", "The patientâ€™s dose"]),
            ("personal-email", &["write to jane.doe@example.org"]),
            (
                "personal-phone",
                &[
                    "電話は03-1234-5678です",
                    "TEL03-1234-5678",
                    "携帯09012345678です",
                    "０３－１２３４－５６７８",
                    "03(1234)5678まで",
                    "call (555) 123-4567",
                    "555.123.4567",
                    "ring 020 7946 0958 today",
                    "+44 20 7946 0958",
                    "07700 900123.",
                ],
            ),
            (
                "personal-record",
                &[
                    "MRN: 00123456",
                    "MRN 12-34567",
                    "カルテ番号：１２３４５",
                    "カルテNo.12345",
                    "患者IDは0012345",
                ],
            ),
            (
                "personal-birth",
                &[
                    "DOB: 1950-01-02",
                    "DOB 12 March 1950",
                    "Born on 3 May 1948, in a village",
                    "born May 3rd, 1948",
                    "生年月日は昭和30年",
                    "生年月日：昭和30年1月2日",
                    "昭和30年1月2日生まれ",
                    "令和元年5月1日生まれ",
                    "平成12年3月4日に出生",
                ],
            ),
            (
                "personal-address",
                &[
                    "〒100-0001",
                    "東京都新宿区西新宿2-8-1",
                    "横浜市西区みなとみらい2-3-1",
                    "さいたま市浦和区高砂3丁目",
                    "lives at 12 Baker Street",
                    "at 221B Baker Street.",
                    "at 5 Mill St. near the bridge",
                ],
            ),
            (
                "personal-name",
                &[
                    "Mrs. Jane Smith came in",
                    "Mr. Smith",
                    "Mrs Jones",
                    "Mr O’Brien",
                    "Prof. Jane Doe",
                    "Dr. Jane Doe",
                    "田中さんは",
                    "山田太郎様",
                    "山田 義子さん",
                    "佐藤先生に",
                    "大神田様のカルテ",
                    "大神田様のお母",
                    "大神田さんのご家族",
                ],
            ),
            ("control-character", &["a\u{7}b"]),
        ] {
            for text in texts {
                assert_eq!(codes(text), [code], "{text}");
            }
        }
    }

    #[test]
    fn what_clinics_say_is_not() {
        for text in [
            "Give 0.5 mg IM; repeat after 5-15 minutes. Target 130/80 mmHg, HbA1c 7.0 %.",
            "収縮期血圧が90 mmHg未満なら119番に電話してください。75歳、2024年4月から。",
            "Dr. Watson would say: rest. See section 3.1-2 and [1].",
            "The Dr. on call. Miss a dose and wait.",
            "夜間や休日でも、呼吸が苦しいときは迷わず救急車を呼んでください。",
            "<5 mg/dL or > 3; a < b | c > d; |x|<3; x<sup>2</sup>",
            "お母さん、看護師さん、患者さん、お医者さん、奥様、皆様、主治医の先生、担当の先生に。患者様の検査、ご家族様のご家族",
            "Take 250 500 1000 mg; 2024.04.0123; 06-11-2024, 2026-11-01 10:30, 3456 7890 1234 5678",
            "市販の薬を1-2錠、同市内で2-3日、区別して2-3回。",
            "born in 1948; born on Monday; a birthday cake",
            "患者1000人、カルテを3回、患者番号を言う",
            "昭和30年代に生まれ、令和6年4月から、平成12年の基準",
            "田中の様子、鈴木病院、山本様式、様々",
            "Take 3 Main Meals; 12 Lead ECG",
        ] {
            assert_eq!(codes(text), [] as [&str; 0], "{text}");
        }
    }

    #[test]
    fn all_of_a_kind_are_found_each_at_its_place() {
        let found: Vec<(usize, &str)> = look("血圧: a@b.org, 田中さん, c@d.org\u{7}\u{7}")
            .into_iter()
            .map(|spot| (spot.character, spot.code))
            .collect();
        let want = [
            (4, "personal-email"),
            (19, "personal-email"),
            (13, "personal-name"),
            (26, "control-character"),
            (27, "control-character"),
        ];
        assert_eq!(found, want);
    }
}
