//! Who a child becomes: users and groups by name or number.

use std::path::PathBuf;

use nix::unistd::{Gid, Group, Uid, User};

use crate::model::error::{Code, Error};

/// Everything that a change of user needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// The user's number.
    pub uid: u32,
    /// The primary group's number.
    pub gid: u32,
    /// The supplementary groups' numbers.
    pub groups: Vec<u32>,
    /// What the user database says of the user.
    pub account: Account,
}

/// What the user database says of a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// The user's name, or its number where it has none.
    pub name: String,
    /// The home directory, `/` for a number that has no name.
    pub home: PathBuf,
}

impl Account {
    fn nameless(uid: Uid) -> Self {
        Self { name: uid.to_string(), home: PathBuf::from("/") }
    }
}

impl From<User> for Account {
    fn from(user: User) -> Self {
        Self { name: user.name, home: user.dir }
    }
}

/// Looks up the user that we are. Its groups are not asked for: to find them, a name service may go a long way.
///
/// # Errors
/// [`Code::Kernel`]: the name service failed.
pub fn own_account() -> Result<Account, Error> {
    let (uid, found) = find_ourselves()?;
    Ok(found.map_or_else(|| Account::nameless(uid), Account::from))
}

/// Looks up a user and a group, each by name or by number.
///
/// Without a user it is the one that we are; without a group, the user's own with its supplementary groups. A group that is
/// given takes the place of the primary one. A number need not have a name; then its group must be given, unless it is ours, and it
/// has no supplementary groups.
///
/// The answer comes from the name service (`/etc/passwd`, but maybe a network too): it can take long, and is not for the loop.
///
/// # Errors
/// [`Code::BadValue`]: no such user or group; a number without a name and without a group. [`Code::Kernel`]: the name service
/// failed.
pub fn lookup(user: Option<&str>, group: Option<&str>) -> Result<Credentials, Error> {
    let gid = group.map(find_group).transpose()?;
    let (uid, found) = user.map_or_else(find_ourselves, find_user)?;
    match found {
        Some(found) => known(found, gid),
        // Of ourselves we know the group without being told.
        None => match gid.or_else(|| user.is_none().then(Gid::effective)) {
            Some(gid) => Ok(Credentials {
                uid: uid.as_raw(),
                gid: gid.as_raw(),
                groups: vec![gid.as_raw()],
                account: Account::nameless(uid),
            }),
            None => Err(Error::new(
                Code::BadValue,
                format!("user {uid} has no entry in the user database, and so no group"),
            )
            .remedy("name a group as well")),
        },
    }
}

/// Looks up a group by name or by number.
///
/// # Errors
/// As [`lookup`].
pub fn lookup_group(group: &str) -> Result<u32, Error> {
    find_group(group).map(Gid::as_raw)
}

fn known(user: User, gid: Option<Gid>) -> Result<Credentials, Error> {
    let gid = gid.unwrap_or(user.gid);
    let name = std::ffi::CString::new(user.name.as_bytes())
        .map_err(|_| Error::new(Code::BadValue, format!("user {:?} has a zero byte in its name", user.name)))?;
    let groups = nix::unistd::getgrouplist(&name, gid).map_err(|errno| service(&user.name, errno))?;
    Ok(Credentials {
        uid: user.uid.as_raw(),
        gid: gid.as_raw(),
        groups: groups.into_iter().map(Gid::as_raw).collect(),
        account: user.into(),
    })
}

fn find_ourselves() -> Result<(Uid, Option<User>), Error> {
    let uid = Uid::effective();
    Ok((uid, entry(&uid.to_string(), User::from_uid(uid))?))
}

fn find_user(text: &str) -> Result<(Uid, Option<User>), Error> {
    // A name goes first, as in POSIX: there are users whose name is a number.
    if let Some(user) = entry(text, User::from_name(text))? {
        return Ok((user.uid, Some(user)));
    }
    match number(text) {
        Some(number) => {
            let uid = Uid::from_raw(number);
            Ok((uid, entry(text, User::from_uid(uid))?))
        }
        None => Err(Error::new(Code::BadValue, format!("no user is called {text:?}"))
            .remedy("use a name that `getent passwd` shows, or a number from 0 to 4294967294")),
    }
}

fn find_group(text: &str) -> Result<Gid, Error> {
    if let Some(group) = entry(text, Group::from_name(text))? {
        return Ok(group.gid);
    }
    number(text).map(Gid::from_raw).ok_or_else(|| {
        Error::new(Code::BadValue, format!("no group is called {text:?}"))
            .remedy("use a name that `getent group` shows, or a number from 0 to 4294967294")
    })
}

/// Reads an id. The largest number is the kernel's way to say "leave it": as an id it would keep us root.
fn number(text: &str) -> Option<u32> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten().filter(|id| *id != u32::MAX)
}

/// Takes the answer of the user database: one that is not there, as in a small container, has no entry (getpwnam(3)).
fn entry<T>(name: &str, answer: nix::Result<Option<T>>) -> Result<Option<T>, Error> {
    match answer {
        Err(nix::errno::Errno::ENOENT | nix::errno::Errno::ESRCH) => Ok(None),
        answer => answer.map_err(|errno| service(name, errno)),
    }
}

fn service(name: &str, errno: nix::errno::Errno) -> Error {
    Error::new(Code::Kernel, format!("look up {name:?} in the user database: {} ({errno:?})", errno.desc()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_found_by_name_and_by_number() {
        let root = lookup(Some("root"), None).unwrap();
        assert_eq!((root.uid, root.gid, root.account.name.as_str()), (0, 0, "root"));
        assert!(root.groups.contains(&0));
        assert_eq!(lookup(Some("0"), None).unwrap(), root);
    }

    #[test]
    fn a_group_takes_the_place_of_the_primary_one() {
        let root = lookup(Some("root"), Some("12345")).unwrap();
        assert_eq!(root.gid, 12345);
        assert!(root.groups.contains(&12345) && !root.groups.contains(&u32::MAX));
    }

    #[test]
    fn a_number_without_a_name_needs_a_group() {
        let error = lookup(Some("3999999999"), None).unwrap_err();
        assert_eq!(error.remedy.as_deref(), Some("name a group as well"));
        let nameless = lookup(Some("3999999999"), Some("3999999998")).unwrap();
        assert_eq!((nameless.uid, nameless.gid, nameless.groups), (3_999_999_999, 3_999_999_998, vec![3_999_999_998]));
        assert_eq!(nameless.account.name, "3999999999");
    }

    #[test]
    fn an_unknown_user_or_group_is_refused_by_name() {
        for (user, group) in [
            (Some("no-such-user"), None),
            (Some(""), None),
            (Some("-1"), None),
            (Some("4294967295"), Some("0")),
            (Some("99999999999"), None),
            (None, Some("no-such-group")),
            (Some("root"), Some("4294967295")),
        ] {
            let error = lookup(user, group).unwrap_err();
            assert_eq!(error.code, Code::BadValue, "{user:?} {group:?}");
            assert!(error.remedy.is_some(), "{user:?} {group:?}");
        }
    }
}
