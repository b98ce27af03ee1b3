//! What an applied file has given: the limits that it set, so that they go with it, and what stood there before.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::limits::{Knob, Limits};
use super::request::LimitScope;

/// The most applied files that a herd remembers.
pub const APPLIED_MAX: usize = 1_000;

/// Limits of one scope.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ScopedLimits {
    /// Whose.
    pub scope: LimitScope,
    /// Which.
    pub limits: Limits,
}

/// The limits that an applied file has given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Applied {
    /// What the file says.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub given: Vec<ScopedLimits>,
    /// What stood in its place before, where something did.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub before: Vec<ScopedLimits>,
}

impl Applied {
    /// Says whether the file has given nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.given.is_empty()
    }

    /// Returns what the file has given in a scope.
    #[must_use]
    pub fn given_in(&self, scope: &LimitScope) -> Limits {
        limits_in(&self.given, scope)
    }

    /// Returns what stood in a scope before.
    #[must_use]
    pub fn before_in(&self, scope: &LimitScope) -> Limits {
        limits_in(&self.before, scope)
    }

    /// Notes what the file gives in a scope, and what stood there.
    pub fn note(&mut self, scope: &LimitScope, given: &Limits, before: Limits) {
        for (list, limits) in [(&mut self.given, given.clone()), (&mut self.before, before)] {
            if !limits.is_empty() {
                list.push(ScopedLimits { scope: scope.clone(), limits });
            }
        }
    }

    /// Returns this with everything that only `earlier` has given: what is to be taken back is known until it is.
    #[must_use]
    pub fn with_earlier(&self, earlier: &Self) -> Self {
        let mut both = self.clone();
        for (list, old) in [(&mut both.given, &earlier.given), (&mut both.before, &earlier.before)] {
            for ScopedLimits { scope, limits } in old {
                match list.iter_mut().find(|it| it.scope == *scope) {
                    Some(here) => here.limits = limits.overlaid(&here.limits),
                    None => list.push(ScopedLimits { scope: scope.clone(), limits: limits.clone() }),
                }
            }
        }
        both
    }

    /// Finds a limit that both give, and differently.
    #[must_use]
    pub fn conflict<'a>(&'a self, other: &Self) -> Option<(&'a LimitScope, Knob)> {
        self.given.iter().find_map(|ScopedLimits { scope, limits }| {
            let theirs = other.given_in(scope);
            let differs = |(knob, mine)| theirs.get(knob).is_some_and(|their| their != mine).then_some((scope, knob));
            limits.iter().find_map(differs)
        })
    }
}

fn limits_in(list: &[ScopedLimits], scope: &LimitScope) -> Limits {
    list.iter().find(|it| it.scope == *scope).map(|it| it.limits.clone()).unwrap_or_default()
}
