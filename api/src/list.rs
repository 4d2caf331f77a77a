//! Lists in pages.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::ApiError;

/// Items on a page where nothing is said.
const USUAL: usize = 100;
/// Most items on a page.
const MOST: usize = 1000;

/// A part of a list.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct Page<T> {
    /// What is on this page, in the order of its keys
    pub items: Vec<T>,
    /// How many there are that the filters let through, on all pages
    pub total: usize,
    /// What to send as `continue` for the next page; none on the last one
    #[serde(default, rename = "continue", skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// Which page is wanted.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Paging {
    limit: usize,
    after: Option<String>,
}

impl Paging {
    /// Checks what a query says: at most so many items, and the token of the page before.
    ///
    /// # Errors
    ///
    /// [`ApiError::Parameter`] where that is no such number, or no such token.
    pub fn new(limit: Option<usize>, token: Option<&str>) -> Result<Self, ApiError> {
        let limit = limit.unwrap_or(USUAL);
        if !(1..=MOST).contains(&limit) {
            let text = format!("limit: {limit} is out of range: write a number from 1 to {MOST}");
            return Err(ApiError::Parameter(text));
        }
        let after = token.map(decode).transpose()?;
        Ok(Self { limit, after })
    }

    /// The page of these items, which come in the order of their keys.
    pub fn of<T>(&self, items: impl Iterator<Item = (String, T)>) -> Page<T> {
        let mut page = Page { items: Vec::new(), total: 0, next: None };
        let mut last = None;
        let mut more = false;
        for (key, item) in items {
            page.total += 1;
            if self.after.as_ref().is_some_and(|after| key <= *after) {
                continue;
            }
            if page.items.len() == self.limit {
                more = true;
                continue;
            }
            page.items.push(item);
            last = Some(key);
        }
        page.next = last.filter(|_| more).map(|key| encode(&key));
        page
    }

    /// The page of these items, in whatever order they come; memory grows with the page alone.
    pub fn of_unsorted<T>(&self, items: impl Iterator<Item = (String, T)>) -> Page<T> {
        let mut first = std::collections::BTreeMap::new();
        let mut total = 0;
        for (key, item) in items {
            total += 1;
            if self.after.as_ref().is_some_and(|after| key <= *after) {
                continue;
            }
            first.insert(key, item);
            if first.len() > self.limit + 1 {
                first.pop_last();
            }
        }
        let mut page = Self { limit: self.limit, after: None }.of(first.into_iter());
        page.total = total;
        page
    }
}

/// A token says behind which key to go on, so that pages neither skip nor repeat what stays.
fn encode(key: &str) -> String {
    key.bytes().map(|byte| format!("{byte:02x}")).collect()
}

fn decode(token: &str) -> Result<String, ApiError> {
    let wrong = || ApiError::Parameter("continue: not a token that a page before gave".to_owned());
    let digits = token.as_bytes().chunks(2);
    let byte = |pair: &[u8]| {
        let text = std::str::from_utf8(pair).ok().filter(|text| text.len() == 2)?;
        text.bytes().all(|b| b.is_ascii_hexdigit()).then(|| u8::from_str_radix(text, 16).ok())?
    };
    let bytes: Option<Vec<u8>> = digits.map(byte).collect();
    String::from_utf8(bytes.ok_or_else(wrong)?).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(keys: &[&str]) -> Vec<(String, String)> {
        keys.iter().map(|key| ((*key).to_owned(), (*key).to_owned())).collect()
    }

    #[test]
    fn pages_together_are_the_list() {
        let all = items(&["a", "b", "c/ä", "d", "e"]);
        for limit in 1..=6 {
            let (mut seen, mut token) = (Vec::new(), None);
            loop {
                let paging = Paging::new(Some(limit), token.as_deref()).unwrap();
                let page = paging.of(all.clone().into_iter());
                let same = paging.of_unsorted(all.clone().into_iter().rev());
                assert_eq!(page, same);
                assert_eq!(page.total, 5);
                seen.extend(page.items);
                token = page.next;
                if token.is_none() {
                    break;
                }
            }
            assert_eq!(seen, ["a", "b", "c/ä", "d", "e"], "with pages of {limit}");
        }
    }

    #[test]
    fn what_came_or_went_between_pages_moves_nothing_else() {
        let page = Paging::new(Some(2), None).unwrap().of(items(&["a", "c", "e"]).into_iter());
        let paging = Paging::new(Some(2), page.next.as_deref()).unwrap();
        let page = paging.of(items(&["a", "b", "d", "e"]).into_iter());
        assert_eq!(page.items, ["d", "e"]);
    }

    #[test]
    fn wrong_parameters_are_refused() {
        for (limit, token) in
            [(0, None), (1001, None), (5, Some("xyz")), (5, Some("6")), (5, Some("+1"))]
        {
            assert!(matches!(Paging::new(Some(limit), token), Err(ApiError::Parameter(_))));
        }
    }
}
