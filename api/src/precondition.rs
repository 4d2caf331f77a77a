//! Entity tags, and what requests ask of them (RFC 9110, 8.8.3 and 13.1).

use std::hash::Hasher as _;

use axum::http::{HeaderMap, HeaderName, header};
use serde::Serialize;
use siphasher::sip128::{Hasher128 as _, SipHasher13};

use crate::ApiError;

/// A strong entity tag of a view: equal views have equal tags, on every instance.
pub fn etag(view: &impl Serialize) -> String {
    let mut hasher = SipHasher13::new_with_keys(0, 0);
    // Views are structures of text and numbers, which can always be written.
    hasher.write(&serde_json::to_vec(view).unwrap_or_default());
    format!("\"{:032x}\"", hasher.finish128().as_u128())
}

/// A list of entity tags.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Tags {
    /// `*`: whatever there is
    Any,
    /// One of these
    List(Vec<String>),
}

impl Tags {
    /// Reads a header; nothing where it is absent.
    ///
    /// # Errors
    ///
    /// Where it is no list of entity tags.
    fn read(headers: &HeaderMap, name: &HeaderName) -> Result<Option<Self>, ApiError> {
        let mut tags = Vec::new();
        let mut any = false;
        for value in headers.get_all(name) {
            let wrong = || {
                ApiError::Parameter(format!("{name} is no list of ETags, like \"0123abcd\", or *"))
            };
            for one in value.to_str().map_err(|_| wrong())?.split(',').map(str::trim) {
                let opaque = one.strip_prefix("W/").unwrap_or(one);
                let quoted = opaque.len() >= 2 && opaque.starts_with('"') && opaque.ends_with('"');
                match one {
                    "*" => any = true,
                    _ if quoted => tags.push(one.to_owned()),
                    _ => return Err(wrong()),
                }
            }
        }
        match (any, tags.is_empty()) {
            (true, _) => Ok(Some(Self::Any)),
            (false, true) => Ok(None),
            (false, false) => Ok(Some(Self::List(tags))),
        }
    }

    /// Whether it names the tag of what there is, by strong comparison.
    fn names(&self, found: Option<&str>) -> bool {
        match (self, found) {
            (_, None) => false,
            (Self::Any, Some(_)) => true,
            (Self::List(tags), Some(found)) => tags.iter().any(|tag| tag == found),
        }
    }
}

/// What must hold for a request to be carried out.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Precondition {
    /// It is one of these
    pub if_match: Option<Tags>,
    /// It is none of these
    pub if_none_match: Option<Tags>,
}

impl Precondition {
    /// Reads the headers `If-Match` and `If-None-Match`.
    ///
    /// # Errors
    ///
    /// Where one is no list of entity tags.
    pub fn read(headers: &HeaderMap) -> Result<Self, ApiError> {
        Ok(Self {
            if_match: Tags::read(headers, &header::IF_MATCH)?,
            if_none_match: Tags::read(headers, &header::IF_NONE_MATCH)?,
        })
    }

    /// Whether it holds for what there is: the entity tag, or nothing.
    ///
    /// # Errors
    ///
    /// [`ApiError::Precondition`] where it does not.
    pub fn check(&self, name: &str, found: Option<&str>) -> Result<(), ApiError> {
        let wanted = self.if_match.as_ref().is_none_or(|tags| tags.names(found));
        let unwanted = self.if_none_match.as_ref().is_some_and(|tags| tags.names(found));
        if wanted && !unwanted {
            return Ok(());
        }
        let found = found.unwrap_or("none, since it does not exist").to_owned();
        Err(ApiError::Precondition { name: format!("service {name}"), found })
    }

    /// Whether a client that reads has this already.
    pub(crate) fn is_known(&self, found: &str) -> bool {
        // For reading, weak tags count as well (RFC 9110, 13.1.2).
        match &self.if_none_match {
            None => false,
            Some(Tags::Any) => true,
            Some(Tags::List(tags)) => {
                tags.iter().any(|tag| tag.strip_prefix("W/").unwrap_or(tag) == found)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(if_match: Option<&str>, if_none_match: Option<&str>) -> Result<Precondition, ApiError> {
        let mut headers = HeaderMap::new();
        for (name, value) in [(header::IF_MATCH, if_match), (header::IF_NONE_MATCH, if_none_match)]
        {
            if let Some(value) = value {
                headers.insert(name, value.parse().unwrap());
            }
        }
        Precondition::read(&headers)
    }

    #[test]
    fn preconditions_hold_as_the_rfc_says() {
        let (a, b) = (Some("\"a\""), Some("\"b\""));
        // If-Match, If-None-Match, what is there, whether it holds
        let cases = [
            (None, None, None, true),
            (None, None, a, true),
            (Some("\"a\""), None, a, true),
            (Some("\"a\""), None, b, false),
            (Some("\"a\""), None, None, false),
            (Some("\"b\", \"a\""), None, a, true),
            (Some("W/\"a\""), None, a, false),
            (Some("*"), None, a, true),
            (Some("*"), None, None, false),
            (None, Some("*"), None, true),
            (None, Some("*"), a, false),
            (None, Some("\"a\""), b, true),
            (None, Some("\"a\""), a, false),
        ];
        for (if_match, if_none_match, found, holds) in cases {
            let result = read(if_match, if_none_match).unwrap().check("s", found);
            assert_eq!(result.is_ok(), holds, "{if_match:?} {if_none_match:?} {found:?}");
        }
        assert!(matches!(read(Some("a"), None), Err(ApiError::Parameter(_))));
    }

    #[test]
    fn tags_tell_views_apart() {
        assert_eq!(etag(&[1, 2]), etag(&[1, 2]));
        assert_ne!(etag(&[1, 2]), etag(&[2, 1]));
        assert_eq!(etag(&()).len(), 34);
    }
}
