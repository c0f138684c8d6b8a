//! Text for comparing: folding, preparation of user names, and one sortable encoding for every type.
//!
//! The encoding is the contract between the stored index and the filter literal: a row and a literal
//! are equal, ordered, or contain one another exactly if their encoded texts are, byte by byte. So SQL
//! with binary collation and [`filter::matches`](super::filter::matches) agree by construction.

use std::borrow::Cow;

use precis_profiles::precis_core::profile::PrecisFastInvocation;
use precis_profiles::{OpaqueString, UsernameCaseMapped};
use serde_json::Value;
use time::{Date, Month, PrimitiveDateTime, Time};
use unicode_normalization::UnicodeNormalization;

use super::schema::{AttrType, Attribute};
use crate::clock::Timestamp;

/// Folds text for comparison without case: NFC and Unicode default case folding, no locale (IN-004).
pub fn fold(s: &str) -> String {
    if s.is_ascii() {
        return s.to_ascii_lowercase();
    }
    // Folding between the two normalisations makes canonically equal texts equal (Unicode D145).
    caseless::default_case_fold_str(&s.nfd().collect::<String>()).nfc().collect()
}

/// Prepares a user name for comparison and uniqueness (IN-001 to IN-003): by UsernameCaseMapped of PRECIS
/// (RFC 8265 §3.3), so full- and halfwidth forms are mapped and upper case becomes lower. A name that PRECIS
/// does not allow, such as one with inner spaces, is folded like other text; a strict client is told by
/// [`is_username`].
pub fn prepare_username(s: &str) -> String {
    if s.is_ascii() {
        // What PRECIS makes of ASCII, whether it allows it or not.
        return s.to_ascii_lowercase();
    }
    UsernameCaseMapped::enforce(s).map_or_else(|_| fold(s), Cow::into_owned)
}

/// Whether PRECIS allows a user name: not empty, code points of the IdentifierClass (RFC 8264 §4.2), and
/// the rule of direction (RFC 5893).
pub fn is_username(s: &str) -> bool {
    UsernameCaseMapped::enforce(s).is_ok()
}

/// Prepares a password for hashing and for comparing (IN-001, IN-002): by OpaqueString of PRECIS (RFC 8265
/// §4.2), so every kind of blank is U+0020 and composed and decomposed letters are the same. One that PRECIS
/// does not allow, such as one with a tab, is taken as NFC: clients send what a generator made.
pub fn prepare_password(s: &str) -> String {
    OpaqueString::enforce(s).map_or_else(|_| s.nfc().collect(), Cow::into_owned)
}

/// Whether PRECIS allows a password.
pub fn is_password(s: &str) -> bool {
    OpaqueString::enforce(s).is_ok()
}

/// The sortable text of a value, for index rows and filter literals alike; `None` if the value does not
/// fit the attribute's type. Complex attributes have none.
///
/// * strings: folded unless case-exact; `userName` prepared
/// * booleans: `false` sorts before `true`
/// * integers: the 64 bits with the sign bit flipped, as 16 hex digits
/// * decimals: the IEEE bits made monotonic (all flipped if negative, else the sign bit), as hex
/// * dates: UTC with milliseconds, as they are returned to the client (CS-026)
/// * references and binary: exact
pub fn index_value(attribute: &Attribute, value: &Value) -> Option<String> {
    const SIGN: u64 = 1 << 63;
    match attribute.kind {
        AttrType::String => {
            let text = value.as_str()?;
            Some(if attribute.key == "username" {
                prepare_username(text)
            } else if attribute.case_exact {
                text.to_owned()
            } else {
                fold(text)
            })
        }
        AttrType::Boolean => value.as_bool().map(|b| b.to_string()),
        AttrType::Integer => value.as_i64().map(|i| format!("{:016x}", i as u64 ^ SIGN)),
        AttrType::Decimal => {
            // Adding zero turns -0.0 into 0.0, which is equal to it.
            let bits = (value.as_f64()? + 0.0).to_bits();
            Some(format!("{:016x}", if bits & SIGN != 0 { !bits } else { bits ^ SIGN }))
        }
        AttrType::DateTime => value.as_str().and_then(parse_datetime).map(Timestamp::to_rfc3339),
        AttrType::Reference | AttrType::Binary => value.as_str().map(str::to_owned),
        AttrType::Complex => None,
    }
}

/// Reads an xsd:dateTime (CS-026): date and time, a fraction, an offset; without a zone it is UTC. The
/// result has milliseconds, further digits are cut. Years outside 0000 to 9999 are refused.
pub fn parse_datetime(s: &str) -> Option<Timestamp> {
    let bytes = s.as_bytes();
    let fixed = bytes.get(..19)?;
    let separators = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')];
    if separators.iter().any(|&(at, c)| fixed[at] != c) {
        return None;
    }
    let year = digits(&fixed[..4])?;
    let month = Month::try_from(u8::try_from(digits(&fixed[5..7])?).ok()?).ok()?;
    let date = Date::from_calendar_date(year, month, u8::try_from(digits(&fixed[8..10])?).ok()?).ok()?;
    let (hour, minute, second) = (digits(&fixed[11..13])?, digits(&fixed[14..16])?, digits(&fixed[17..])?);
    let (millis, zone) = fraction(&bytes[19..])?;
    let offset_ms = offset_minutes(zone)? * 60_000;
    // "24:00:00" is the first moment of the next day (XML Schema 1.1 §3.3.7).
    let midnight = (hour, minute, second, millis) == (24, 0, 0, 0);
    let hour = if midnight { 0 } else { u8::try_from(hour).ok()? };
    let time = Time::from_hms(hour, u8::try_from(minute).ok()?, u8::try_from(second).ok()?).ok()?;
    let seconds = PrimitiveDateTime::new(date, time).assume_utc().unix_timestamp();
    let day_ms = if midnight { 86_400_000 } else { 0 };
    let moment = Timestamp(seconds * 1000 + i64::from(millis) + day_ms - i64::from(offset_ms));
    (-62_167_219_200_000..=253_402_300_799_999).contains(&moment.0).then_some(moment)
}

fn digits(bytes: &[u8]) -> Option<i32> {
    bytes.iter().try_fold(0i32, |n, b| b.is_ascii_digit().then(|| n * 10 + i32::from(b - b'0')))
}

/// The fraction's milliseconds and what follows it.
fn fraction(rest: &[u8]) -> Option<(i32, &[u8])> {
    let Some(rest) = rest.strip_prefix(b".") else { return Some((0, rest)) };
    let len = rest.iter().take_while(|b| b.is_ascii_digit()).count();
    let (fraction, zone) = rest.split_at(len);
    let digit = |at: usize| fraction.get(at).map_or(0, |b| i32::from(b - b'0'));
    (len > 0).then(|| (digit(0) * 100 + digit(1) * 10 + digit(2), zone))
}

/// The offset of a zone: nothing and `Z` are UTC, `±hh:mm` up to 14 hours.
fn offset_minutes(zone: &[u8]) -> Option<i32> {
    match zone {
        [] | b"Z" => Some(0),
        [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2] => {
            let (hours, minutes) = (digits(&[*h1, *h2])?, digits(&[*m1, *m2])?);
            let total = hours * 60 + minutes;
            let sign = if *sign == b'-' { -1 } else { 1 };
            (minutes < 60 && total <= 14 * 60).then_some(sign * total)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folding_knows_no_locale() {
        assert_eq!(fold("Straße"), fold("STRASSE"));
        assert_eq!(fold("e\u{301}"), fold("É"));
        assert_ne!(fold("ı"), fold("i"));
        assert_eq!(fold(&fold("ẞΣς")), fold("ẞΣς"));
    }

    #[test]
    fn a_username_loses_its_width_but_not_its_spaces() {
        assert_eq!(prepare_username("Ａnna"), "anna");
        assert_eq!(prepare_username("Ana Ruiz"), "ana ruiz");
        assert_eq!(prepare_username("ｶﾞ"), "ガ");
        assert!(is_username("anna.berg@example.com") && is_username("Åsa"));
        assert!(!is_username("ana ruiz") && !is_username("") && !is_username("a\u{200b}"));
    }

    #[test]
    fn datetimes_are_read_as_xsd_writes_them() {
        let ms = |s| parse_datetime(s).map(|t| t.to_rfc3339());
        assert_eq!(ms("2026-02-01T01:00:00+01:00").as_deref(), Some("2026-02-01T00:00:00.000Z"));
        assert_eq!(ms("2026-02-01T00:00:00.1239").as_deref(), Some("2026-02-01T00:00:00.123Z"));
        assert_eq!(ms("2026-02-28T24:00:00Z").as_deref(), Some("2026-03-01T00:00:00.000Z"));
        assert_eq!(ms("2026-02-01T00:00:00-05:30").as_deref(), Some("2026-02-01T05:30:00.000Z"));
        for bad in [
            "",
            "yesterday",
            "2026-02-01",
            "2026-02-30T00:00:00Z",
            "2026-02-01T25:00:00Z",
            "2026-02-01T24:00:01Z",
            "2026-02-01T00:00:00.Z",
            "2026-02-01T00:00:00+15:00",
            "2026-02-01t00:00:00Z",
            "0000-01-01T00:00:00+01:00",
            "2026-02-01T00:00:00Ä",
        ] {
            assert_eq!(parse_datetime(bad), None, "{bad}");
        }
    }
}
