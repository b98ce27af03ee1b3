//! Where a cgroup stands: a path below the herd's root cgroup.

use std::fmt;
use std::sync::Arc;

/// The path of a cgroup below the herd's root: `herd`, `herd/a`, `herd/a/level-1/b/run-3`.
///
/// It is a name and no proof that the cgroup exists.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place(Arc<str>);

impl Place {
    /// Returns the boundary of everything supervised.
    #[must_use]
    pub fn herd() -> Self {
        Self("herd".into())
    }

    /// Returns the place of a child.
    ///
    /// # Panics
    /// If the name is empty, `.`, `..` or contains a slash: ids are validated long before.
    #[must_use]
    pub fn join(&self, name: &str) -> Self {
        assert!(!matches!(name, "" | "." | "..") && !name.contains('/'), "{name:?} is not the name of a cgroup");
        Self(format!("{}/{name}", self.0).into())
    }

    /// Returns the place above, `None` for the herd itself.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        self.0.rsplit_once('/').map(|(above, _)| Self(above.into()))
    }

    /// Walks from this place upwards: itself, and those above it up to the herd.
    pub fn lineage(&self) -> impl Iterator<Item = Self> {
        std::iter::successors(Some(self.clone()), Self::parent)
    }

    /// Says whether this is the cgroup of an agent: `herd / agent / level-K / agent / …`.
    pub(super) fn is_agents(&self) -> bool {
        self.0.split('/').count().is_multiple_of(2)
    }

    /// Returns the last name on the path.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.rsplit_once('/').map_or(&self.0, |(_, name)| name)
    }

    /// Returns the whole path, without a leading slash.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.0
    }

    /// Says whether this place is `other` or below it.
    #[must_use]
    pub fn is_within(&self, other: &Self) -> bool {
        is_within(&self.0, &other.0)
    }

    /// Returns the place with a path below this one; the path comes from a walk.
    pub(super) fn below(&self, path: &str) -> Self {
        if path.is_empty() { self.clone() } else { Self(format!("{}/{path}", self.0).into()) }
    }
}

/// Says whether a path is another one or below it, name by name.
pub(in crate::kernel) fn is_within(path: &str, above: &str) -> bool {
    path.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_knows_what_it_is_in() {
        let place = Place::herd().join("a").join("level-1");
        assert_eq!((place.path(), place.name()), ("herd/a/level-1", "level-1"));
        assert_eq!(place.parent().unwrap(), Place::herd().join("a"));
        assert_eq!(Place::herd().parent(), None);
        assert_eq!(place.lineage().collect::<Vec<_>>(), [place.clone(), Place::herd().join("a"), Place::herd()]);
        assert!(place.is_within(&Place::herd()) && place.is_within(&place));
        assert!(!Place::herd().join("ab").is_within(&Place::herd().join("a")), "a longer name is another cgroup");
    }

    #[test]
    #[should_panic(expected = "not the name of a cgroup")]
    fn a_place_never_leads_upwards() {
        drop(Place::herd().join(".."));
    }
}
