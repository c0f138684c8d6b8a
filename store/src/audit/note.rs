//! Checkpoints as text: C2SP `tlog-checkpoint` inside C2SP `signed-note`, with Ed25519.
//!
//! ```text
//! annals-log/5b2f…            the log's origin
//! 42                          its size
//! qgMd…=                      its root, base64
//!
//! — annals-log/5b2f… kd0w…=   name, and base64 of key id and signature
//! ```
//!
//! Tools of the transparency-log world (witnesses, `sigsum`, Go's `sumdb/note`) read the same.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use sha2::{Digest, Sha256};

use super::tree::Hash;

/// The signature type of Ed25519 in `signed-note`.
const ED25519: u8 = 1;
/// What a signature line begins with: an em dash and a blank.
const SIGNATURE: &str = "— ";
/// Longest note that is read, in bytes.
pub const NOTE_BYTES_MAX: usize = 64 * 1024;

/// What is wrong with a note, a key or an export. None of it says anything about a person.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoteError {
    /// Not in the form of a signed checkpoint.
    #[error("this is no signed checkpoint: {0}")]
    Note(&'static str),
    /// Not in the form of a public key.
    #[error("this is no public key of a log (name+id+base64): {0}")]
    Key(&'static str),
    /// No signature by the key that was asked for.
    #[error("the checkpoint is not signed by {0}")]
    Unsigned(String),
    /// A signature that claims to be by the key is not.
    #[error("the signature by {0} does not fit the checkpoint: it was forged or altered")]
    Forged(String),
}

/// What a checkpoint says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The log's name.
    pub origin: String,
    /// How many events the log had: the position of the last.
    pub size: u64,
    /// Root of the Merkle tree over them.
    pub root: Hash,
}

impl Checkpoint {
    /// The text that is signed.
    pub fn text(&self) -> String {
        format!("{}\n{}\n{}\n", self.origin, self.size, BASE64.encode(self.root))
    }

    fn parse(text: &str) -> Result<Checkpoint, NoteError> {
        let mut lines = text.split_terminator('\n');
        let named = |line: &&str| !line.is_empty() && !line.contains(char::is_whitespace);
        let origin = lines.next().filter(named).ok_or(NoteError::Note("no origin"))?;
        let size = lines.next().ok_or(NoteError::Note("no size"))?;
        let plain = size.bytes().all(|byte| byte.is_ascii_digit()) && (size == "0" || !size.starts_with('0'));
        let size = size.parse().ok().filter(|_| plain).ok_or(NoteError::Note("the size is no number"))?;
        let root = lines.next().and_then(|line| BASE64.decode(line).ok());
        let root = root.and_then(|root| Hash::try_from(root).ok());
        let root = root.ok_or(NoteError::Note("the root is no SHA-256 hash in base64"))?;
        Ok(Checkpoint { origin: origin.to_owned(), size, root })
    }
}

/// The public key of a log, written as `<name>+<id>+<key>`.
#[derive(Clone, PartialEq, Eq)]
pub struct VerifierKey {
    name: String,
    key: VerifyingKey,
}

impl VerifierKey {
    pub(crate) fn new(name: &str, public: &[u8]) -> Result<VerifierKey, NoteError> {
        if name.is_empty() || name.contains('+') || name.chars().any(char::is_whitespace) {
            return Err(NoteError::Key("the name is empty or has blanks or a plus sign"));
        }
        let bytes: [u8; 32] = public.try_into().map_err(|_| NoteError::Key("it is not 32 bytes"))?;
        let key = VerifyingKey::from_bytes(&bytes).map_err(|_| NoteError::Key("it is no point"))?;
        Ok(VerifierKey { name: name.to_owned(), key })
    }

    /// The name in signature lines: the log's origin.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The first four bytes of the hash of name and key.
    pub fn id(&self) -> [u8; 4] {
        let hash = Sha256::new()
            .chain_update(self.name.as_bytes())
            .chain_update([b'\n', ED25519])
            .chain_update(self.key.as_bytes())
            .finalize();
        [hash[0], hash[1], hash[2], hash[3]]
    }

    fn label(&self) -> String {
        format!("{}+{}", self.name, hex::encode(self.id()))
    }
}

impl fmt::Display for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let typed = [&[ED25519], &self.key.as_bytes()[..]].concat();
        write!(f, "{}+{}", self.label(), BASE64.encode(typed))
    }
}

impl fmt::Debug for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifierKey({self})")
    }
}

impl FromStr for VerifierKey {
    type Err = NoteError;

    fn from_str(text: &str) -> Result<VerifierKey, NoteError> {
        // The key's base64 may hold plus signs, the name and the id may not.
        let mut parts = text.trim().splitn(3, '+');
        let (Some(name), Some(id), Some(typed)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(NoteError::Key("it does not have three parts"));
        };
        let typed = BASE64.decode(typed).map_err(|_| NoteError::Key("its last part is not base64"))?;
        let Some((&ED25519, public)) = typed.split_first() else {
            return Err(NoteError::Key("it is not of Ed25519"));
        };
        let key = VerifierKey::new(name, public)?;
        if hex::encode(key.id()) != id {
            return Err(NoteError::Key("its id is not that of name and key"));
        }
        Ok(key)
    }
}

/// A text with signatures, each of which stands for itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SignedNote {
    pub(crate) text: String,
    /// Name, key id, signature.
    signatures: Vec<(String, [u8; 4], Vec<u8>)>,
}

impl SignedNote {
    /// Signs a text that ends in a line end, under a log's name.
    pub(crate) fn sign(text: String, name: &str, key: &SigningKey) -> Result<SignedNote, NoteError> {
        let public = VerifierKey::new(name, key.verifying_key().as_bytes())?;
        let signature = key.sign(text.as_bytes()).to_bytes().to_vec();
        Ok(SignedNote { text, signatures: vec![(name.to_owned(), public.id(), signature)] })
    }

    pub(crate) fn verify(&self, key: &VerifierKey) -> Result<(), NoteError> {
        let mine = self.signatures.iter().find(|(name, id, _)| *name == key.name && *id == key.id());
        let Some((_, _, signature)) = mine else { return Err(NoteError::Unsigned(key.label())) };
        let forged = || NoteError::Forged(key.label());
        let signature = Signature::from_slice(signature).map_err(|_| forged())?;
        key.key.verify_strict(self.text.as_bytes(), &signature).map_err(|_| forged())
    }
}

impl fmt::Display for SignedNote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.text)?;
        for (name, id, signature) in &self.signatures {
            writeln!(f, "{SIGNATURE}{name} {}", BASE64.encode([&id[..], signature].concat()))?;
        }
        Ok(())
    }
}

impl FromStr for SignedNote {
    type Err = NoteError;

    fn from_str(note: &str) -> Result<SignedNote, NoteError> {
        if note.len() > NOTE_BYTES_MAX {
            return Err(NoteError::Note("it is too long"));
        }
        if note.chars().any(|c| c.is_control() && c != '\n') {
            return Err(NoteError::Note("it has control characters"));
        }
        // The signatures follow the last empty line.
        let end = note.rfind("\n\n").ok_or(NoteError::Note("no signatures"))?;
        let (text, lines) = (&note[..=end], &note[end + 2..]);
        let mut signatures = Vec::new();
        for line in lines.lines() {
            let malformed = NoteError::Note("a signature line is malformed");
            let rest = line.strip_prefix(SIGNATURE).ok_or(malformed.clone())?;
            let (name, encoded) = rest.split_once(' ').ok_or(malformed.clone())?;
            let decoded = BASE64.decode(encoded).map_err(|_| malformed.clone())?;
            let (id, signature) = decoded.split_first_chunk::<4>().ok_or(malformed)?;
            signatures.push((name.to_owned(), *id, signature.to_vec()));
        }
        if signatures.is_empty() {
            return Err(NoteError::Note("no signatures"));
        }
        Ok(SignedNote { text: text.to_owned(), signatures })
    }
}

/// A checkpoint with its signatures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedCheckpoint {
    /// What it says.
    pub checkpoint: Checkpoint,
    note: SignedNote,
}

impl SignedCheckpoint {
    /// Signs a checkpoint under the log's name.
    pub(crate) fn sign(checkpoint: Checkpoint, key: &SigningKey) -> Result<SignedCheckpoint, NoteError> {
        let note = SignedNote::sign(checkpoint.text(), &checkpoint.origin, key)?;
        Ok(SignedCheckpoint { checkpoint, note })
    }

    /// Proves that the key signed what the checkpoint says, for the log of the key's name.
    ///
    /// # Errors
    /// It did not, or somebody altered the text or the signature.
    pub fn verify(&self, key: &VerifierKey) -> Result<(), NoteError> {
        if self.checkpoint.origin != key.name {
            return Err(NoteError::Unsigned(key.label()));
        }
        self.note.verify(key)
    }

    /// [`SignedCheckpoint::verify`] by any of these keys.
    ///
    /// # Errors
    /// None of them signed it; a forged signature weighs more than a missing one.
    pub fn verify_any<'a>(&self, keys: impl IntoIterator<Item = &'a VerifierKey>) -> Result<(), NoteError> {
        let mut worst = NoteError::Unsigned("any key that is trusted".to_owned());
        for key in keys {
            match self.verify(key) {
                Ok(()) => return Ok(()),
                Err(error @ NoteError::Forged(_)) => worst = error,
                Err(_) => {}
            }
        }
        Err(worst)
    }
}

impl fmt::Display for SignedCheckpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.note.fmt(f)
    }
}

impl FromStr for SignedCheckpoint {
    type Err = NoteError;

    fn from_str(note: &str) -> Result<SignedCheckpoint, NoteError> {
        let note: SignedNote = note.parse()?;
        Ok(SignedCheckpoint { checkpoint: Checkpoint::parse(&note.text)?, note })
    }
}

/// First line of the statement with which a key names its successor. No checkpoint begins so: an origin has
/// no blanks.
const INTRODUCTION: &str = "annals audit key introduction\n";

/// The statement of a key that another one follows it.
pub(crate) fn introduce(new: &VerifierKey, by: &SigningKey) -> Result<SignedNote, NoteError> {
    SignedNote::sign(format!("{INTRODUCTION}{new}\n"), new.name(), by)
}

/// The key that a statement introduces, if one of the trusted keys made it.
pub(crate) fn introduced(note: &SignedNote, trusted: &[VerifierKey]) -> Option<VerifierKey> {
    let new: VerifierKey = note.text.strip_prefix(INTRODUCTION)?.parse().ok()?;
    trusted.iter().any(|key| key.name == new.name && note.verify(key).is_ok()).then_some(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signing(seed: u8) -> SigningKey {
        SigningKey::from_bytes(&[seed; 32])
    }

    fn public(seed: u8) -> VerifierKey {
        VerifierKey::new("annals-log/1", signing(seed).verifying_key().as_bytes()).unwrap()
    }

    fn checkpoint() -> Checkpoint {
        Checkpoint { origin: "annals-log/1".into(), size: 42, root: [7; 32] }
    }

    #[test]
    fn a_note_survives_its_text_and_is_verified_by_its_keys_only() {
        let note = SignedCheckpoint::sign(checkpoint(), &signing(1)).unwrap();
        let read: SignedCheckpoint = note.to_string().parse().unwrap();
        assert_eq!(read, note);
        assert_eq!(read.verify(&public(1)), Ok(()));
        assert_eq!(read.verify_any([&public(3), &public(1)]), Ok(()));
        assert!(matches!(read.verify(&public(3)), Err(NoteError::Unsigned(_))));
        let elsewhere = VerifierKey::new("other", signing(1).verifying_key().as_bytes()).unwrap();
        assert!(matches!(read.verify(&elsewhere), Err(NoteError::Unsigned(_))));
        assert!(read.to_string().starts_with("annals-log/1\n42\nBwcH"), "{read}");
        assert!(read.to_string().contains("=\n\n— annals-log/1 "), "{read}");
    }

    #[test]
    fn an_altered_note_is_forged() {
        let note = SignedCheckpoint::sign(checkpoint(), &signing(1)).unwrap().to_string();
        let altered: SignedCheckpoint = note.replace("\n42\n", "\n43\n").parse().unwrap();
        assert!(matches!(altered.verify(&public(1)), Err(NoteError::Forged(_))));
        // Whatever else was signed is signed: further lines of the text count, too.
        let longer: SignedCheckpoint = note.replace("=\n\n", "=\nmore\n\n").parse().unwrap();
        assert!(matches!(longer.verify(&public(1)), Err(NoteError::Forged(_))));
    }

    #[test]
    fn what_is_no_note_is_refused() {
        let note = SignedCheckpoint::sign(checkpoint(), &signing(1)).unwrap().to_string();
        let bad = [
            String::new(),
            "annals-log/1\n42\n".into(),
            note.replace("\n42\n", "\n042\n"),
            note.replace("\n42\n", "\n+42\n"),
            note.replace("\n42\n", "\n-1\n"),
            note.replace("\n42\n", "\n99999999999999999999\n"),
            note.replace("BwcH", "Bwc"),
            note.replace("— ", "- "),
            note.replace("— annals-log/1 ", "— annals-log/1"),
            note.replace('\n', "\r\n"),
            "x".repeat(NOTE_BYTES_MAX + 1),
        ];
        for text in bad {
            assert!(text.parse::<SignedCheckpoint>().is_err(), "{text:.80}");
        }
    }

    #[test]
    fn a_public_key_survives_its_text() {
        let text = public(1).to_string();
        assert_eq!(text.parse::<VerifierKey>(), Ok(public(1)));
        assert_eq!(format!("{text}\n").parse::<VerifierKey>(), Ok(public(1)));
        for bad in ["", "a+b", &text.replace("annals-log/1", "annals-log/2"), &text[..text.len() - 4]] {
            assert!(bad.parse::<VerifierKey>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_key_is_introduced_by_a_trusted_one_only() {
        let note = introduce(&public(2), &signing(1)).unwrap();
        let read: SignedNote = note.to_string().parse().unwrap();
        assert_eq!(introduced(&read, &[public(1)]), Some(public(2)));
        assert_eq!(introduced(&read, &[public(3)]), None);
        // A signature that somebody adds to a checkpoint introduces nobody.
        let other = SignedCheckpoint::sign(checkpoint(), &signing(1)).unwrap();
        assert_eq!(introduced(&other.note, &[public(1)]), None);
        assert!(note.to_string().parse::<SignedCheckpoint>().is_err());
    }

    /// The example key and note of Go's `sumdb/note`, which the format comes from.
    #[test]
    fn the_key_of_another_implementation_is_read() {
        let key = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
        let key: VerifierKey = key.parse().unwrap();
        assert_eq!(key.name(), "PeterNeumann");
        assert_eq!(hex::encode(key.id()), "c74f20a3");
    }
}
