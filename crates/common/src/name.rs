//! Checked names. They are parts of object keys and subjects, so few characters are allowed.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The text is not a valid name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must have 1 to 63 characters of a-z, 0-9 and \"-\", with no \"-\" at either end")]
pub struct InvalidName;

/// Checks a name (data set, alias, policy, job, base): `^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`.
///
/// # Errors
/// [`InvalidName`].
pub fn check(name: &str) -> Result<(), InvalidName> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let valid = (1..=63).contains(&name.len())
        && name.bytes().all(allowed)
        && !name.starts_with('-')
        && !name.ends_with('-');
    if valid { Ok(()) } else { Err(InvalidName) }
}

macro_rules! name {
    ($(#[$comment:meta])* $name:ident) => {
        $(#[$comment])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Returns the text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;

            fn from_str(text: &str) -> Result<Self, InvalidName> {
                check(text)?;
                Ok(Self(text.to_owned()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;

            fn try_from(text: String) -> Result<Self, InvalidName> {
                check(&text)?;
                Ok(Self(text))
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }
    };
}

name! {
    /// The id of a job.
    JobId
}

name! {
    /// The name of an alias.
    AliasName
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_table() {
        let long = "a".repeat(63);
        for good in ["a", "0", "dolly-ja", "a-b", "a--b", &long] {
            assert_eq!(good.parse::<AliasName>().unwrap().as_str(), good);
        }
        let longer = "a".repeat(64);
        for bad in [
            "", "-", "-a", "a-", "A", "a_b", "a.b", "..", "../x", "a/b", "a b", "日本", "a\n",
            "%2e", "a\0", &longer,
        ] {
            assert_eq!(bad.parse::<AliasName>(), Err(InvalidName), "{bad}");
            assert!(
                serde_json::from_value::<JobId>(bad.into()).is_err(),
                "{bad}"
            );
        }
    }
}
